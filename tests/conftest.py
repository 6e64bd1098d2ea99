"""What all tests share: generous limits for noisy machines, and whether tools may be absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

# How long an example takes says more about the machine than about the code.
hypothesis_settings.register_profile(
    "gateway", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("gateway")


@pytest.fixture(scope="session")
def require_e2e() -> bool:
    """True where a missing tool is a failure instead of a reason to skip (`.ci/run`)."""
    return os.environ.get("GATEWAY_REQUIRE_E2E") == "1"


@pytest.fixture(autouse=True)
def own_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test's gateways keep their state apart, and nothing stays in the user's directory."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever drives a gateway in its own process is slow: `make fast` leaves it out."""
    for item in items:
        if {"conformance", "e2e"} & set(item.path.parent.parts):
            item.add_marker(pytest.mark.e2e)
