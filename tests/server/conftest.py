"""Every test leaves an empty house."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import txaio

from tests.server.listener import House


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    """Houses with settings of their own."""
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)
    houses: list[House] = []

    def built(*args: Any, **settings: Any) -> House:
        houses.append(House(*args, **settings))
        return houses[-1]

    yield built
    for house in houses:
        house.check_rest()


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()
