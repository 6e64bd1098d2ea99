"""Fifteen minutes of points, and the rates of the last one."""

from __future__ import annotations

from gateway.metrics.history import STEP_SECONDS, STEPS, History
from gateway.metrics.turns import TurnMetrics
from tests.metrics.test_turns import turn


def test_points_are_bounded_and_the_oldest_go() -> None:
    history = History(TurnMetrics(), 0.0)
    for step in range(1, STEPS + 11):
        history.step(step * STEP_SECONDS, {"connections": step})
    shown = history.shown()
    assert shown["step_seconds"] == STEP_SECONDS
    assert shown["start"] == 11 * STEP_SECONDS
    assert {len(points) for points in shown["series"].values()} == {STEPS}
    assert shown["series"]["connections"][-1] == STEPS + 10
    assert history.newest()["values"]["connections"] == STEPS + 10
    assert len(history) == STEPS


def test_nothing_yet_is_nothing() -> None:
    history = History(TurnMetrics(), 0.0)
    assert history.shown() == {"step_seconds": STEP_SECONDS, "start": None, "series": {}}
    assert history.newest() == {"at": None, "values": {}}
    assert history.rates(1.0)["turns_per_minute"] == 0


def test_a_step_tells_of_itself_alone() -> None:
    tally = TurnMetrics()
    history = History(tally, 0.0)
    for _ in range(10):
        tally.count(turn())
    history.step(5.0, {})
    tally.count(turn(status="failed", error_code="server_error", cached_tokens=0))
    history.step(10.0, {})
    series = history.shown()["series"]
    assert series["turns_per_minute"] == [120, 12]
    assert series["errors_per_minute"] == [0, 12]
    assert series["tokens_per_minute"] == [10 * 1060 * 12, 1060 * 12]
    assert series["cached_share"] == [0.8, 0.0]
    assert [value is None for value in series["added_first_token_ms.p99"]] == [False, False]


def test_a_quiet_step_has_no_percentiles() -> None:
    history = History(TurnMetrics(), 0.0)
    history.step(5.0, {})
    assert history.newest()["values"]["upstream_first_token_ms.p50"] is None


def test_rates_are_those_of_the_last_minute() -> None:
    tally = TurnMetrics()
    history = History(tally, 0.0)
    for step in range(1, 31):
        tally.count(turn())
        history.step(step * 5.0, {})
    assert history.rates(150.0)["turns_per_minute"] == 12
    assert history.in_the_last_minute() == (11, 0)
    assert history.rates(150.0)["upstream_first_token_ms"]["p50"] is not None


def test_a_series_that_begins_late_is_as_long_as_the_others() -> None:
    history = History(TurnMetrics(), 0.0)
    history.step(5.0, {"connections": 1})
    history.step(10.0, {"connections": 1, "lanes": 2})
    assert history.shown()["series"]["lanes"] == [None, 2]
