"""When somebody should look, and since when."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.metrics.alarms import Condition, MeasuredAlarms, Measurements, alarm, conditions
from gateway.state.keeper import StateFigures
from gateway.state.write_behind import WriteFigures

CALM = Measurements(
    lag_ms=1.0,
    memory=100,
    memory_budget=1000,
    files=10,
    files_limit=1000,
    evicted=0,
    evicted_age=None,
    turns=50,
    failed=1,
)

WELL = WriteFigures(0, 0, 1 << 26, 0, 0, 0, 0.0, None, None, None)
UNREAD = StateFigures("sqlite /var/state", WELL, None, 2)
UNKEPT = UNREAD._replace(writes=WELL._replace(why="disk full", since=1.0), unreadable=0)


def test_nothing_is_wrong_with_what_is_calm_or_unknown() -> None:
    assert list(conditions(CALM)) == []
    assert list(conditions(CALM._replace(kept=UNREAD._replace(unreadable=0)))) == []
    unknown = CALM._replace(lag_ms=None, memory=None, memory_budget=None, files_limit=None)
    assert list(conditions(unknown)) == []


@pytest.mark.parametrize(
    ("signs", "level", "says"),
    [
        ({"lag_ms": 260.0}, "red", "260 ms"),
        ({"memory": 850}, "amber", "85%"),
        ({"memory": 950}, "red", "95%"),
        ({"files": 850}, "amber", "85%"),
        ({"files": 990}, "red", "99%"),
        ({"files": 800, "turned_away": True}, "red", "clients are turned away"),
        ({"unrecorded": "disk full"}, "amber", "no request log is written: disk full"),
        ({"kept": UNKEPT}, "red", "cannot be kept in sqlite /var/state: disk full"),
        ({"kept": UNREAD}, "amber", "2 values of the state were encrypted with another key"),
        ({"evicted": 3, "evicted_age": 240.0}, "amber", "4 minutes"),
        ({"failed": 50}, "red", "every turn of the last minute failed"),
        ({"failed": 50, "error": "server_error"}, "red", "failed, most by server_error"),
        ({"failed": 10, "error": "server_error"}, "amber", "20% of the turns"),
    ],
)
def test_each_condition_says_what_is_wrong(signs: dict[str, Any], level: str, says: str) -> None:
    (found,) = conditions(CALM._replace(**signs))
    assert found.level == level
    assert says in found.what


@pytest.mark.parametrize(
    "signs",
    [
        {"evicted": 3, "evicted_age": 3000.0},
        {"evicted": 0, "evicted_age": 10.0},
        {"turns": 5, "failed": 5},
        {"turns": 0, "failed": 0},
        {"failed": 5},
        {"memory_budget": None, "memory": 10**12},
    ],
)
def test_what_needs_nobody_is_no_alarm(signs: dict[str, Any]) -> None:
    assert list(conditions(CALM._replace(**signs))) == []


def test_an_alarm_knows_since_when() -> None:
    alarms = MeasuredAlarms()
    slow = Condition("lag", "red", "300 ms")
    full = Condition("memory amber", "amber", "85 %")
    alarms.update([full, slow], 100.0)
    alarms.update([full, slow._replace(what="400 ms")], 105.0)
    assert alarms.shown() == [
        alarm("red", "400 ms", 100.0),
        alarm("amber", "85 %", 100.0),
    ]
    alarms.update([], 110.0)
    assert alarms.shown() == []
    alarms.update([slow], 115.0)
    assert alarms.shown()[0]["since"] == 115.0


def test_a_bad_moment_is_forgiven() -> None:
    alarms = MeasuredAlarms()
    for now in range(0, 60, 5):
        alarms.update(conditions(CALM._replace(lag_ms=300.0)), float(now))
        assert alarms.shown() == [], f"after {now} s"
    alarms.update(conditions(CALM._replace(lag_ms=300.0)), 60.0)
    assert [alarm["since"] for alarm in alarms.shown()] == [0.0]
