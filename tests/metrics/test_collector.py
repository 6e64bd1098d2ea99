"""The measurements as the admin side reads them, of a gateway without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.config import KeySettings
from gateway.metrics.collector import STEP_SECONDS, STEPS, History, MetricsCollector
from gateway.metrics.turns import TurnMetrics
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.upstream.proxy import UnavailableProxy
from tests.admin.stage import SOCKETS, Admin, Way
from tests.metrics.test_turns import attempt, turn


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def collector(admin: Admin) -> MetricsCollector:
    return admin.collector


def test_turns_that_end_are_counted_by_way_of_the_journal(
    admin: Admin, collector: MetricsCollector
) -> None:
    admin.world.services.turn_log.ended(turn())
    collector.step()
    assert collector.turns.turns == 1


def test_it_measures_while_it_runs_and_leaves_no_timer(
    admin: Admin, collector: MetricsCollector
) -> None:
    collector.startService()
    for _ in range(3 * STEP_SECONDS * 4):
        admin.clock.advance(0.25)
    assert len(collector.history()["series"]["connections"]) == 3
    assert collector.process()["loop_lag_ms"]["p99"] is not None
    collector.stopService()
    assert admin.clock.getDelayedCalls() == [], "timers expected to be gone"


def test_a_step_that_fails_is_not_the_last(
    admin: Admin, collector: MetricsCollector, monkeypatch: pytest.MonkeyPatch, flush: Any
) -> None:
    collector.startService()
    with monkeypatch.context() as broken:
        broken.setattr(collector, "gauges", lambda: 1 / 0)
        admin.clock.advance(STEP_SECONDS)
    admin.clock.advance(STEP_SECONDS)
    assert len(collector.history()["series"]["connections"]) == 1
    collector.stopService()
    assert len(flush(ZeroDivisionError)) == 1


@pytest.fixture
def flush() -> Any:
    """Takes logged failures out, as trial would."""
    from twisted.logger import globalLogPublisher

    logged: list[Any] = []

    def watch(event: Any) -> None:
        if "log_failure" in event:
            logged.append(event["log_failure"])

    globalLogPublisher.addObserver(watch)
    yield lambda kind: [failure for failure in logged if failure.check(kind)]
    globalLogPublisher.removeObserver(watch)


def test_an_accounts_figures_are_worked_out_once_a_step(
    admin: Admin, collector: MetricsCollector
) -> None:
    before = collector.account("one")
    admin.world.services.turn_log.ended(turn(attempt("one", "server_error"), account="one"))
    assert collector.account("one") is before
    collector.step()
    assert collector.account("one")["errors"] == {"server_error": 1}


def test_alarms_come_with_a_step(collector: MetricsCollector) -> None:
    assert collector.alarms() == []
    collector.memory_budget = 1
    collector.step()
    if collector.process_figures.rss_bytes is not None:
        assert [alarm["level"] for alarm in collector.alarms()] == ["red"]


def test_a_client_that_asks_on_and_on_at_its_limit_is_no_alarm(
    admin: Admin, collector: MetricsCollector
) -> None:
    for _ in range(50):
        admin.tenants.refused("laptop", "requests_per_minute")
        refused = turn(account=None, status="error", error_code="rate_limit_exceeded")
        admin.world.services.turn_log.ended(refused)
    collector.step()
    assert collector.alarms() == []
    for _ in range(20):
        failed = turn(account=None, status="error", error_code="server_error")
        admin.world.services.turn_log.ended(failed)
    collector.step()
    (alarm,) = collector.alarms()
    assert alarm["what"] == "every turn of the last minute failed, most by server_error"


def test_failures_are_forgotten_after_a_minute(admin: Admin, collector: MetricsCollector) -> None:
    for _ in range(20):
        failed = turn(account=None, status="error", error_code="server_error")
        admin.world.services.turn_log.ended(failed)
    collector.step()
    assert len(collector.alarms()) == 1
    for _ in range(60 // STEP_SECONDS):
        collector.step()
    assert collector.alarms() == []


def test_a_key_that_a_reload_took_away_leaves_no_negative_figures(
    admin: Admin, collector: MetricsCollector
) -> None:
    admin.tenants.refused("laptop", "requests_per_minute")
    collector.step()
    admin.tenants.reconfigure([KeySettings(name="desk", key="sk-gw-2")])
    for _ in range(20):
        failed = turn(account=None, status="error", error_code="server_error")
        admin.world.services.turn_log.ended(failed)
    collector.step()
    assert [alarm["level"] for alarm in collector.alarms()] == ["red"]


def test_an_account_rests_since_its_first_failure_however_often_it_is_tried(
    admin: Admin, collector: MetricsCollector
) -> None:
    health = admin.world.accounts["a"].health
    began = admin.clock.seconds()

    def since() -> Any:
        return admin.json("/status/accounts")["accounts"][0]["since"]

    for _ in range(5):
        health.refused("gpt-5.5", Fault(FaultKind.UNAUTHORIZED, "401", None))
        for _ in range(200):
            admin.clock.advance(STEP_SECONDS)
            collector.step()
        assert since() == began
        assert health.state.value in ("unauthorized", "unproven")
    health.clear()
    collector.step()
    assert since() == admin.clock.seconds(), "it is ready, since now"
    health.refused("gpt-5.5", Fault(FaultKind.UNAUTHORIZED, "401", None))
    assert since() == admin.clock.seconds()


def test_an_account_behind_a_broken_proxy_rests_since_that_was_seen(
    admin: Admin, collector: MetricsCollector
) -> None:
    way: Any = Way(UnavailableProxy("no way out", admin.clock.seconds() + 3000))
    admin.world.accounts["a"]._egress = way
    collector.step()
    seen = admin.clock.seconds()
    admin.clock.advance(100)
    collector.step()
    shown = admin.json("/status/accounts")["accounts"][0]
    assert (shown["state"], shown["since"]) == ("cooling", seen)


def test_every_register_has_a_size_within_its_bound(
    admin: Admin, collector: MetricsCollector
) -> None:
    registers = collector.bounded_structures()
    names = [register["name"] for register in registers]
    assert len(names) == len(set(names))
    for name in ("ledger", "seals", "owners", "bindings", "waiting room", "journal", "history"):
        assert name in names, f"{name} expected in the register"
    for register in registers:
        assert set(register) == {"name", "size", "bound", "unit", "bytes"}
        assert register["size"] >= 0
        assert register["bound"] is None or register["size"] <= register["bound"], register


def test_registers_grow_with_what_they_tell_of(
    admin: Admin, collector: MetricsCollector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes() -> dict[str, int]:
        return {register["name"]: register["size"] for register in collector.bounded_structures()}

    before = sizes()
    admin.world.services.turn_log.ended(turn())
    admin.world.services.owners.note("laptop", "resp_1", "one")
    session: Any = SimpleNamespace(lanes=3, turns_queued=2, turns_running=1)
    monkeypatch.setattr(admin.websockets, "sessions", lambda: [session])
    after = sizes()
    assert after["journal"] == before["journal"] + 1
    assert after["owners"] == before["owners"] + 1
    assert after["queued turns"] == before["queued turns"] + 2
    gauges = collector.gauges()
    assert (gauges["lanes"], gauges["turns_queued"]) == (3, 2)


# --- the last 15 minutes -------------------------------------------------------------------


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
    turns = TurnMetrics()
    history = History(turns, 0.0)
    for _ in range(10):
        turns.count(turn())
    history.step(5.0, {})
    turns.count(turn(status="failed", error_code="server_error", cached_tokens=0))
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
    turns = TurnMetrics()
    history = History(turns, 0.0)
    for step in range(1, 31):
        turns.count(turn())
        history.step(step * 5.0, {})
    assert history.rates(150.0)["turns_per_minute"] == 12
    assert history.in_the_last_minute() == (11, 0)
    assert history.rates(150.0)["upstream_first_token_ms"]["p50"] is not None


def test_a_series_that_begins_late_is_as_long_as_the_others() -> None:
    history = History(TurnMetrics(), 0.0)
    history.step(5.0, {"connections": 1})
    history.step(10.0, {"connections": 1, "lanes": 2})
    assert history.shown()["series"]["lanes"] == [None, 2]


def test_websockets_to_accounts_are_bounded_by_each_and_by_all(
    admin: Admin, collector: MetricsCollector
) -> None:
    def register() -> dict[str, Any]:
        found = {each["name"]: each for each in collector.bounded_structures()}
        return found["upstream websockets"]

    assert (register()["size"], register()["bound"]) == (0, 0), "all accounts have HTTP only"
    admin.world.upstreams["a"].figures = SOCKETS
    assert (register()["size"], register()["bound"]) == (6, 50)
    admin.world.upstreams["b"].figures = SOCKETS._replace(most=2000)
    assert (register()["size"], register()["bound"]) == (12, 1000)
