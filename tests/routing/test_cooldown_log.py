"""What the log says of an account's health."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.cooldown import HealthLog
from gateway.routing.health import AccountHealth


class Told:
    """The health of an account named east, and the lines that the log has of it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        self.health = AccountHealth(self.clock.seconds, 600.0, lambda: 0.0, HealthLog("east"))

    def refused(self, kind: FaultKind, seconds: float | None = None) -> list[tuple[str, str]]:
        """The lines of one refused turn."""
        until = None if seconds is None else self.clock.seconds() + seconds
        with capturedLogs() as events:
            self.health.refused("gpt-5", Fault(kind, "429 no", until), self.health.begin("gpt-5"))
        return [(each["log_level"].name, formatEvent(each)) for each in events]

    def served(self) -> list[str]:
        """The lines of one turn that goes well."""
        with capturedLogs() as events:
            self.health.acknowledged("gpt-5", self.health.begin("gpt-5"))
            self.health.ended_well()
        assert all(each["log_level"] is LogLevel.info for each in events)
        return [formatEvent(each) for each in events]


def test_a_rest_is_told_with_its_reason_and_its_end_and_then_that_it_is_over() -> None:
    told = Told()
    assert told.refused(FaultKind.EXHAUSTED, 60) == [
        ("warn", "account east is exhausted until 2027-01-15T08:01:00+00:00: 429 no")
    ]
    told.clock.advance(60)
    assert told.refused(FaultKind.EXHAUSTED, 120) == [
        ("info", "account east is exhausted until 2027-01-15T08:03:00+00:00: 429 no")
    ]
    told.clock.advance(120)
    assert told.served() == ["account east serves again"]
    assert told.served() == []


def test_a_rest_of_one_model_names_it() -> None:
    told = Told()
    assert told.refused(FaultKind.RATE_LIMITED, 30) == [
        ("warn", "account east for gpt-5 is cooling until 2027-01-15T08:00:30+00:00: 429 no")
    ]
    told.clock.advance(30)
    assert told.served() == ["account east for gpt-5 serves again"]


def test_two_reasons_to_rest_are_over_at_once() -> None:
    told = Told()
    told.refused(FaultKind.UNAUTHORIZED)
    told.refused(FaultKind.EXHAUSTED, 20)
    told.clock.advance(60)
    assert told.served() == ["account east serves again"]


def test_failures_are_told_when_they_lead_to_a_rest() -> None:
    told = Told()
    lines = [told.refused(FaultKind.SERVICE) for _ in range(3)]
    assert lines[:2] == [[], []]
    assert [text for _, text in lines[2]] == [
        "account east is cooling until 2027-01-15T08:00:01+00:00: 429 no"
    ]


def test_what_the_operator_clears_serves_again() -> None:
    told = Told()
    told.refused(FaultKind.EXHAUSTED, 60)
    told.refused(FaultKind.RATE_LIMITED, 60)
    with capturedLogs() as events:
        told.health.clear()
    assert sorted(map(formatEvent, events)) == [
        "account east for gpt-5 serves again",
        "account east serves again",
    ]
