"""Which accounts a reload keeps, makes anew and lets go of."""

from __future__ import annotations

from typing import Any, cast

import pytest
from msgspec.structs import replace
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from gateway.account_registry import AccountRegistry
from gateway.config import AccountSettings, RoutingSettings, Settings, TimeoutSettings
from gateway.protocol.concessions import Concession, ConcessionKind
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.account import Account
from gateway.routing.capabilities import CapabilityScope
from gateway.upstream.http import HttpUpstream
from gateway.upstream.websocket import WebSocketUpstream

PROXY = "socks5://127.0.0.1:1080"


def settings_of(*names: str, **more: Any) -> Settings:
    accounts = [
        AccountSettings(name=name, base_url=f"http://{name}.test/v1", key=f"sk-{name}", proxy=PROXY)
        for name in names
    ]
    return Settings(accounts=tuple(accounts), **more)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[HttpUpstream]:
    """Upstreams whose connections were closed, in that order."""
    closed: list[HttpUpstream] = []

    def close(upstream: HttpUpstream) -> Deferred[None]:
        closed.append(upstream)
        return succeed(None)

    monkeypatch.setattr(HttpUpstream, "close", close)
    return closed


class Lists:
    """A roster, and the settings in force."""

    def __init__(self, settings: Settings) -> None:
        self.clock = Clock()
        self.settings = settings
        self.registry = AccountRegistry(self.clock, settings)
        self.registry.reconfigure(settings)

    def reload(self, settings: Settings) -> list[str]:
        """Put other settings into force; the names of accounts that are gone or made anew."""
        gone = self.registry.reconfigure(settings, self.settings)
        self.settings = settings
        return [each.name for each in gone]

    def __getitem__(self, name: str) -> Account:
        return next(each for each in self.registry.accounts if each.name == name)


def test_an_account_that_is_described_as_before_stays_itself() -> None:
    lists = Lists(settings_of("a", "b"))
    kept, other = lists["a"], lists["b"]
    changed = replace(other.settings, weight=3)
    assert lists.reload(replace(lists.settings, accounts=(kept.settings, changed))) == ["b"]
    assert lists["a"] is kept
    assert lists["b"] is not other
    assert lists["b"].settings.weight == 3


def test_what_an_account_taught_is_forgotten_with_any_reload() -> None:
    lists = Lists(settings_of("a", "b"))
    lists["a"].learned.learn(CapabilityScope(), Concession(ConcessionKind.STORAGE), "400")
    lists.reload(settings_of("a", "b"))
    assert lists["a"].learned.shown() == []


def test_the_operators_order_counts() -> None:
    lists = Lists(settings_of("a", "b"))
    assert lists.reload(settings_of("c", "b", "a")) == []
    assert [each.name for each in lists.registry.accounts] == ["c", "b", "a"]


def test_other_timeouts_make_every_account_anew_and_it_rests_on() -> None:
    lists = Lists(settings_of("a"))
    before = lists["a"]
    before.health.refused(None, Fault(FaultKind.EXHAUSTED, "used up", 300.0))
    assert lists.reload(settings_of("a", timeouts=TimeoutSettings(idle_seconds=5))) == ["a"]
    assert lists["a"] is not before
    assert lists["a"].unavailable(None) is not None, "the reload forgot that it rests"


def test_accounts_share_what_is_known_of_their_proxy() -> None:
    lists = Lists(settings_of("a", "b"))
    break_proxy(lists["a"])
    assert lists["b"].unavailable(None) is not None
    lists["b"].clear()
    assert lists["a"].unavailable(None) is None


def test_another_cap_on_cooldowns_leaves_accounts_themselves_and_ends_long_rests() -> None:
    lists = Lists(settings_of("a", "b"))
    limited, drained = lists["a"], lists["b"]
    limited.health.refused(None, Fault(FaultKind.EXHAUSTED, "used up", 300.0))
    drained.health.drain()
    shorter = settings_of("a", "b", routing=RoutingSettings(cooldown_max_seconds=5))
    assert lists.reload(shorter) == []
    assert drained.unavailable(None) is not None, "the reload forgot what the operator did"
    assert limited.unavailable(None) is not None
    lists.clock.advance(5)
    assert limited.unavailable(None) is None, "the former cap is still in force"


def test_another_cap_on_cooldowns_reaches_proxies() -> None:
    lists = Lists(settings_of("a"))
    lists.reload(settings_of("a", routing=RoutingSettings(cooldown_max_seconds=5)))
    for _ in range(20):
        break_proxy(lists["a"])
        barred = lists["a"].unavailable(None)
        assert barred is not None
        assert barred.until is not None
        assert barred.until <= lists.clock.seconds() + 5, "the former cap is still in force"
        lists.clock.advance(5)


def test_who_left_closes_when_its_last_turn_is_over_and_once(closed: list[HttpUpstream]) -> None:
    lists = Lists(settings_of("a", "b"))
    leaving = lists["a"]
    turn = leaving.lease(None, lambda: None)
    assert lists.reload(settings_of("b")) == ["a"]
    lists.registry.release_idle()
    assert closed == [], "a turn still runs there"
    turn.release()
    lists.registry.release_idle()
    lists.registry.release_idle()
    assert closed == [leaving.upstream]


def test_a_stop_closes_those_in_service_and_those_that_leave(closed: list[HttpUpstream]) -> None:
    lists = Lists(settings_of("a", "b"))
    every = {each.upstream for each in lists.registry.accounts}
    lists["a"].lease(None, lambda: None)
    lists.reload(settings_of("b"))
    lists.registry.close()
    assert set(closed) == every


def break_proxy(account: Account) -> None:
    """Its proxy fails until it is left alone."""
    health = account._egress.health  # type: ignore[union-attr]
    while (attempt := health.attempt()) is not None:
        health.failed(attempt, "the proxy refused the connection")


def test_counts_of_sockets_outlive_a_change_of_settings_but_not_the_account() -> None:
    lists = Lists(settings_of("a", "b"))

    def reload(*names: str, weight: int) -> list[WebSocketUpstream]:
        wanted = [
            replace(each, transport="auto", weight=weight) for each in settings_of(*names).accounts
        ]
        lists.reload(replace(lists.settings, accounts=tuple(wanted)))
        upstreams = [lists[name].upstream for name in names]
        assert all(isinstance(each, WebSocketUpstream) for each in upstreams)
        return cast(list[WebSocketUpstream], upstreams)

    first, other = reload("a", "b", weight=1)
    first.access.pool.counts.opened = other.access.pool.counts.opened = 5
    second, _ = reload("a", "b", weight=2)
    assert second is not first
    assert second.sockets().opened == 5
    reload("a", weight=2)
    _, again = reload("a", "b", weight=2)
    assert again.sockets().opened == 0
