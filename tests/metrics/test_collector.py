"""The measurements as the admin side reads them, of a gateway without a network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gateway.admin.views.figures import Figures
from gateway.config import KeySettings
from gateway.metrics.collector import Observatory
from gateway.metrics.history import STEP_SECONDS
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.upstream.proxy_health import Barred
from tests.admin.figures import NoFigures
from tests.admin.stage import Admin, Way, observatory_of
from tests.metrics.test_turns import attempt, turn


@pytest.fixture
def admin() -> Admin:
    return Admin()


@pytest.fixture
def observatory(admin: Admin) -> Observatory:
    return observatory_of(admin)


def test_it_says_all_that_the_admin_side_asks_for(observatory: Observatory) -> None:
    figures: Figures = observatory
    nothing = NoFigures()
    assert set(figures.process()) == set(nothing.process())
    assert set(figures.rates()) == set(nothing.rates())
    assert set(figures.history()) == set(nothing.history())
    assert set(figures.newest()) == set(nothing.newest())
    assert set(figures.account("north")) == set(nothing.account("north"))


def test_turns_that_end_are_counted_by_way_of_the_journal(
    admin: Admin, observatory: Observatory
) -> None:
    admin.world.environment.journal.ended(turn())
    observatory.step()
    assert observatory.tally.turns == 1


def test_it_measures_while_it_runs_and_leaves_no_timer(
    admin: Admin, observatory: Observatory
) -> None:
    observatory.startService()
    for _ in range(3 * STEP_SECONDS * 4):
        admin.clock.advance(0.25)
    assert len(observatory.history()["series"]["connections"]) == 3
    assert observatory.process()["loop_lag_ms"]["p99"] is not None
    observatory.stopService()
    assert admin.clock.getDelayedCalls() == [], "timers expected to be gone"


def test_a_step_that_fails_is_not_the_last(
    admin: Admin, observatory: Observatory, monkeypatch: pytest.MonkeyPatch, flush: Any
) -> None:
    observatory.startService()
    with monkeypatch.context() as broken:
        broken.setattr(observatory, "gauges", lambda: 1 / 0)
        admin.clock.advance(STEP_SECONDS)
    admin.clock.advance(STEP_SECONDS)
    assert len(observatory.history()["series"]["connections"]) == 1
    observatory.stopService()
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
    admin: Admin, observatory: Observatory
) -> None:
    before = observatory.account("one")
    admin.world.environment.journal.ended(turn(attempt("one", "server_error"), account="one"))
    assert observatory.account("one") is before
    observatory.step()
    assert observatory.account("one")["errors"] == {"server_error": 1}


def test_alarms_come_with_a_step(observatory: Observatory) -> None:
    assert observatory.alarms() == []
    observatory.memory_budget = 1
    observatory.step()
    if observatory.looked.rss_bytes is not None:
        assert [alarm["level"] for alarm in observatory.alarms()] == ["red"]


def test_a_client_that_asks_on_and_on_at_its_limit_is_no_alarm(
    admin: Admin, observatory: Observatory
) -> None:
    for _ in range(50):
        admin.tenants.refused("laptop", "requests_per_minute")
        refused = turn(account=None, status="error", error_code="rate_limit_exceeded")
        admin.world.environment.journal.ended(refused)
    observatory.step()
    assert observatory.alarms() == []
    for _ in range(20):
        failed = turn(account=None, status="error", error_code="server_error")
        admin.world.environment.journal.ended(failed)
    observatory.step()
    (alarm,) = observatory.alarms()
    assert alarm["what"] == "every turn of the last minute failed, most by server_error"


def test_failures_are_forgotten_after_a_minute(admin: Admin, observatory: Observatory) -> None:
    for _ in range(20):
        failed = turn(account=None, status="error", error_code="server_error")
        admin.world.environment.journal.ended(failed)
    observatory.step()
    assert len(observatory.alarms()) == 1
    for _ in range(60 // STEP_SECONDS):
        observatory.step()
    assert observatory.alarms() == []


def test_a_key_that_a_reload_took_away_leaves_no_negative_figures(
    admin: Admin, observatory: Observatory
) -> None:
    admin.tenants.refused("laptop", "requests_per_minute")
    observatory.step()
    admin.tenants.arrange([KeySettings(name="desk", key="sk-gw-2")])
    for _ in range(20):
        failed = turn(account=None, status="error", error_code="server_error")
        admin.world.environment.journal.ended(failed)
    observatory.step()
    assert [alarm["level"] for alarm in observatory.alarms()] == ["red"]


def test_an_account_rests_since_its_first_failure_however_often_it_is_tried(
    admin: Admin, observatory: Observatory
) -> None:
    admin.running.figures = observatory
    health = admin.world.accounts["a"].health
    began = admin.clock.seconds()

    def since() -> Any:
        return admin.json("/status/accounts")["accounts"][0]["since"]

    for _ in range(5):
        health.reserve("gpt-5.5").refused(Fault(FaultKind.UNAUTHORIZED, "401", None))
        for _ in range(200):
            admin.clock.advance(STEP_SECONDS)
            observatory.step()
        assert since() == began
        assert health.state.value in ("unauthorized", "unproven")
    health.clear()
    observatory.step()
    assert since() == admin.clock.seconds(), "it is ready, since now"
    health.reserve("gpt-5.5").refused(Fault(FaultKind.UNAUTHORIZED, "401", None))
    assert since() == admin.clock.seconds()


def test_an_account_behind_a_broken_proxy_rests_since_that_was_seen(
    admin: Admin, observatory: Observatory
) -> None:
    admin.running.figures = observatory
    way: Any = Way(Barred("no way out", admin.clock.seconds() + 3000))
    admin.world.accounts["a"]._way = way
    observatory.step()
    seen = admin.clock.seconds()
    admin.clock.advance(100)
    observatory.step()
    shown = admin.json("/status/accounts")["accounts"][0]
    assert (shown["state"], shown["since"]) == ("cooling", seen)


def test_every_register_has_a_size_within_its_bound(admin: Admin, observatory: Observatory) -> None:
    registers = observatory.registers()
    names = [register["name"] for register in registers]
    assert len(names) == len(set(names))
    for name in ("ledger", "seals", "owners", "bindings", "waiting room", "journal", "history"):
        assert name in names, f"{name} expected in the register"
    for register in registers:
        assert set(register) == {"name", "size", "bound", "unit", "bytes"}
        assert register["size"] >= 0
        assert register["bound"] is None or register["size"] <= register["bound"], register


def test_registers_grow_with_what_they_tell_of(
    admin: Admin, observatory: Observatory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sizes() -> dict[str, int]:
        return {register["name"]: register["size"] for register in observatory.registers()}

    before = sizes()
    admin.world.environment.journal.ended(turn())
    admin.world.environment.owners.note("laptop", "resp_1", "one")
    session: Any = SimpleNamespace(lanes=3, turns_queued=2, turns_running=1)
    monkeypatch.setattr(admin.door, "sessions", lambda: [session])
    after = sizes()
    assert after["journal"] == before["journal"] + 1
    assert after["owners"] == before["owners"] + 1
    assert after["queued turns"] == before["queued turns"] + 2
    gauges = observatory.gauges()
    assert (gauges["lanes"], gauges["turns_queued"]) == (3, 2)
