"""Pools whose accounts are real and reach nobody, on a clock of the test's own."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any, NoReturn

from twisted.internet.task import Clock

from gateway.config import AccountSettings, RoutingSettings
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, MemoryBindings
from gateway.routing.health import AccountHealth
from gateway.routing.router import AccountPool
from gateway.routing.selection import NoAccount, RouteRequest, Selection
from gateway.upstream.interface import BodyReceiver, EventReceiver, ForwardedRequest

MODEL = "gpt-5"
_others = itertools.count()


class NoUpstream:
    """Choosing an account sends nothing."""

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> NoReturn:
        raise AssertionError("the pool only chooses")

    def forward(self, call: ForwardedRequest, receiver: BodyReceiver) -> NoReturn:
        raise AssertionError("the pool only chooses")

    def without_secrets(self, said: bytes) -> NoReturn:
        raise AssertionError("the pool only chooses")

    def forget(self) -> None:
        """Nothing is learned."""

    def close(self) -> None:
        """Nothing is open."""


def thread(value: str) -> AffinityKey:
    return AffinityKey("thread", "laptop", value)


def wanted(key: str | None = None, model: str | None = MODEL, **members: Any) -> RouteRequest:
    """A conversation of its own, unless ``key`` names one."""
    return RouteRequest(model, [thread(key or f"another {next(_others)}")], **members)


class HealthAttempt:
    """One attempt as an account's health sees it, without a place; ends once, as a lease does."""

    def __init__(self, health: AccountHealth, model: str | None) -> None:
        self._health = health
        self._model = model
        self._attempts = health.begin(model)
        self._ended = False

    def acknowledged(self) -> None:
        if not self._ended:
            self._ended = True
            self._health.acknowledged(self._model, self._attempts)

    def refused(self, fault: Fault) -> None:
        if not self._ended:
            self._ended = True
            self._health.refused(self._model, fault, self._attempts)

    def breaks_off(self, fault: Fault) -> None:
        """After it was acknowledged."""
        self._health.refused(self._model, fault, self._attempts)

    def dropped(self) -> None:
        if not self._ended:
            self._ended = True
            self._health.dropped(self._attempts)


class Basin:
    """A pool, its accounts by name, and its clock."""

    def __init__(self, *names: str, accounts: dict[str, Any] | None = None, **routing: Any) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        given = accounts or {}
        self.accounts = {name: self.account(name, **given.get(name, {})) for name in names}
        self.bindings = MemoryBindings(1000, 1e9, self.clock.seconds)
        self.pool = AccountPool(
            list(self.accounts.values()), self.bindings, RoutingSettings(**routing)
        )

    @property
    def now(self) -> float:
        return self.clock.seconds()

    def account(self, name: str, **settings: Any) -> Account:
        about = AccountSettings(
            name=name, base_url="http://127.0.0.1:1", key=f"sk-{name}", **settings
        )
        return Account(about, NoUpstream(), self.clock.seconds)

    def ask(
        self, key: str | None = None, tried: Collection[str] = (), **members: Any
    ) -> Selection | NoAccount:
        """What the pool says; whoever is chosen answers, and is busy for no time at all."""
        answer = self.pool.choose(wanted(key, **members), tried)
        if isinstance(answer, Selection):
            answer.lease.acknowledged()
            answer.lease.release()
        return answer

    def home(self, key: AffinityKey) -> str | None:
        """Where a conversation is at home."""
        binding = self.bindings.peek(key)
        return None if binding is None else binding.account

    def goes(
        self, key: str | None = None, tried: Collection[str] = (), **members: Any
    ) -> tuple[str, str]:
        """Where a turn goes, and by which rule."""
        answer = self.ask(key, tried, **members)
        assert isinstance(answer, Selection), f"expected the pool to name an account, got {answer}"
        return answer.account.name, answer.rule

    def nobody(
        self, key: str | None = None, tried: Collection[str] = (), **members: Any
    ) -> NoAccount:
        """Why a turn goes nowhere."""
        answer = self.ask(key, tried, **members)
        assert isinstance(answer, NoAccount), f"expected the pool to name nobody, got {answer}"
        return answer

    def fails(
        self,
        *names: str,
        kind: FaultKind = FaultKind.RATE_LIMITED,
        seconds: float | None = 30.0,
        why: str = "429 for a test",
    ) -> None:
        """These accounts refuse a turn now, and name a time."""
        retry_at = None if seconds is None else self.now + seconds
        for name in names:
            HealthAttempt(self.accounts[name].health, MODEL).refused(Fault(kind, why, retry_at))

    def recovers(self, *names: str) -> None:
        """Somebody else's probe went well."""
        for name in names:
            self.accounts[name].health.clear()
