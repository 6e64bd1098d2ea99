"""Clients without a key are counted, and cannot fill the log."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from gateway.api_keys import strangers as module
from gateway.api_keys.strangers import UnknownKeyThrottle


@pytest.fixture
def clock() -> Clock:
    return Clock()


def lines(act: Callable[[], object]) -> list[str]:
    with capturedLogs() as events:
        act()
    return [formatEvent(event) for event in events]


def test_the_first_refusal_is_told_and_the_rest_of_the_minute_is_counted(clock: Clock) -> None:
    strangers = UnknownKeyThrottle(clock.seconds)

    def knock() -> None:
        strangers.refused("192.0.2.7", "invalid_api_key")

    assert lines(knock) == ["a client at 192.0.2.7 was turned away: invalid_api_key"]
    for _ in range(1000):
        assert lines(knock) == []
    clock.advance(60)
    assert lines(knock) == [
        "a client at 192.0.2.7 was turned away: invalid_api_key,"
        " and 1000 times before since the last line"
    ]
    assert strangers.refusals == {"invalid_api_key": 1002}


def test_each_address_has_its_own_minute(clock: Clock) -> None:
    strangers = UnknownKeyThrottle(clock.seconds)
    for address in ("192.0.2.7", "2001:db8::7"):
        assert len(lines(lambda who=address: strangers.refused(who, "no"))) == 1  # type: ignore[misc]


def test_so_many_addresses_are_remembered(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ADDRESSES", 3)
    strangers = UnknownKeyThrottle(clock.seconds)
    told = lines(lambda: [strangers.refused(f"192.0.2.{n}", "no") for n in range(100)])
    assert (len(told), len(strangers), strangers.refusals["no"]) == (3, 3, 100)
    clock.advance(61)
    told = lines(lambda: [strangers.refused(f"192.0.2.{n}", "no") for n in range(50, 100)])
    assert (len(told), len(strangers)) == (3, 3)


def test_a_clock_that_is_set_back_silences_nobody_for_long(clock: Clock) -> None:
    strangers = UnknownKeyThrottle(clock.seconds)
    clock.advance(10_000)
    strangers.refused("192.0.2.7", "no")
    clock.rightNow -= 5_000
    assert len(lines(lambda: strangers.refused("192.0.2.7", "no"))) == 1
