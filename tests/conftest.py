"""Options shared by all tests: which are slow, and whether absent tools may be skipped."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def require_e2e() -> bool:
    """True where a missing tool is a failure instead of a reason to skip (`.ci/run`)."""
    return os.environ.get("GATEWAY_REQUIRE_E2E") == "1"
