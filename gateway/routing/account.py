"""One upstream credential at run time: its settings, its upstream, its health and its figures."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Protocol

from gateway.config import AccountSettings
from gateway.routing.announcing import HealthAnnouncer
from gateway.routing.capabilities import LearnedCapabilities
from gateway.routing.health import AccountHealth, AccountState, Unavailable
from gateway.routing.lease import Lease
from gateway.routing.rate import RequestRate
from gateway.routing.settling import Settling
from gateway.upstream.interface import Upstream

_FULL = Unavailable(AccountState.READY, "max_in_flight is reached", None)

#: What makes an account another one at its upstream.
_IDENTITY = ("base_url", "key", "key_file", "oauth", "auth_header")


class AccountTransport(Protocol):
    """How an account's connections leave the machine."""

    def unavailable(self) -> tuple[str, float] | None:
        """Why, and until when (unix seconds), nothing can be sent that way; None when it can."""

    def clear(self) -> None:
        """By word of the operator nothing is held against it."""


class Account:
    """An account of the pool.

    :param settings: what the operator said of it.
    :param upstream: how requests get to it.
    :param now: unix seconds.
    :param cooldown_max_seconds: the longest it may be left alone before it is tried again.
    :param way: how its connections leave the machine; None for directly.
    :ivar in_flight: turns running on it.
    :ivar turns: turns that ended on it.
    :ivar failures: attempts that it refused or broke, client errors not counted.
    """

    def __init__(
        self,
        settings: AccountSettings,
        upstream: Upstream,
        now: Callable[[], float],
        cooldown_max_seconds: float = 600.0,
        way: AccountTransport | None = None,
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.learned = LearnedCapabilities(now)
        self.health = AccountHealth(
            now, cooldown_max_seconds, observer=HealthAnnouncer(settings.name)
        )
        self.in_flight = 0
        self.turns = 0
        self.failures = 0
        self._way = way
        per_minute = settings.requests_per_minute
        self._rate = None if per_minute is None else RequestRate(per_minute, now)
        self._now = now
        self._max_in_flight = settings.max_in_flight
        self._to_tell: set[Callable[[Account], None]] = set()
        #: Those whose place it took, with turns that may still run.
        self._former: tuple[Account, ...] = ()
        if not settings.enabled:
            self.health.disable()

    @property
    def name(self) -> str:
        """The operator's name for it."""
        return self.settings.name

    @property
    def request_headers(self) -> list[tuple[str, str]]:
        """The headers that the operator adds to every request of this account."""
        return list(self.settings.headers.items())

    def succeed(self, former: Account) -> None:
        """Take the place of ``former``, which is described otherwise now.

        Its limits and rests are the credential's and the service's: they go on where both
        are the same, and with them what the operator wished of it.  What was sent within the
        last minute counts on, and so do turns that still run there.
        """
        mine, its = self.settings, former.settings
        if any(getattr(mine, each) != getattr(its, each) for each in _IDENTITY):
            return
        self.health = former.health
        self._former = tuple(each for each in (former, *former._former) if each.in_flight)
        if self._rate is not None and former._rate is not None:
            former._rate.per_minute = self._rate.per_minute
            self._rate = former._rate
        if mine.enabled and not its.enabled:
            self.health.enable()
        elif its.enabled and not mine.enabled:
            self.health.disable()

    def serves(self, model: str | None) -> bool:
        """Whether the operator offers ``model`` on this account."""
        return (
            model is None
            or model in self.settings.aliases
            or any(fnmatchcase(model, pattern) for pattern in self.settings.models)
        )

    def unavailable(self, model: str | None) -> Unavailable | None:
        """Why a turn with ``model`` cannot go here now, or None when it can."""
        blocked = self.health.unavailable(model)
        if blocked is not None:
            return blocked
        if self._max_in_flight is not None and self._places_taken() >= self._max_in_flight:
            return _FULL
        if self._rate is not None:
            wait = self._rate.wait_seconds()
            if wait > 0:
                until = self._now() + wait
                return Unavailable(AccountState.READY, "requests_per_minute is reached", until)
        return self._barred()

    def unready(self) -> Unavailable | None:
        """Why nobody should count on it, whatever the model and be it full or not."""
        return self.health.unready() or self._barred()

    def _barred(self) -> Unavailable | None:
        """What ails the way out."""
        barred = None if self._way is None else self._way.unavailable()
        return None if barred is None else Unavailable(AccountState.COOLING, *barred)

    def clear(self) -> None:
        """The operator says that nothing is wrong with it, or with its way out, any more."""
        self.health.clear()
        if self._way is not None:
            self._way.clear()

    def reserve(
        self, model: str | None, released: Callable[[], None], settling: Settling | None = None
    ) -> Lease:
        """Take a place for one attempt; the caller has seen that it is available.

        :param released: hears when the place is free again.
        :param settling: what becomes of the conversation's binding, or None.
        """
        if self._rate is not None:
            self._rate.take()
        self.in_flight += 1
        return Lease(self, model, self.health.reserve(model), released, settling)

    def leave(self) -> None:
        """An attempt is over, its place is free."""
        self.in_flight -= 1
        if self._to_tell:
            told, self._to_tell = self._to_tell, set()
            for tell in told:
                tell(self)

    def _places_taken(self) -> int:
        """Those of turns that began before a reload are taken, too."""
        if not self._former:
            return self.in_flight
        before = sum(each.in_flight for each in self._former)
        if not before:
            self._former = ()
        return self.in_flight + before

    def tell_when_free(self, tell: Callable[[Account], None]) -> None:
        """Call ``tell`` once, when the next place becomes free; asking twice changes nothing."""
        self._to_tell.add(tell)
