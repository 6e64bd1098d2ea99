"""What tests of the transports share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.logger import globalLogPublisher


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    """The failures that were logged; a test that expects some takes them out."""
    failures: list[Any] = []

    def observe(said: Any) -> None:
        if said.get("log_failure") is not None:
            failures.append(said["log_failure"].value)

    globalLogPublisher.addObserver(observe)
    yield failures
    gc.collect(1)
    globalLogPublisher.removeObserver(observe)
    assert not failures, failures
