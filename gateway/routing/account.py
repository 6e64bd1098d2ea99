"""One upstream credential at run time: its settings, its upstream, its health, and leases on it."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from gateway.config import AccountSettings
from gateway.protocol.error_classification import Fault
from gateway.routing.affinity import BindingUpdate
from gateway.routing.capabilities import LearnedCapabilities
from gateway.routing.cooldown import HealthLog
from gateway.routing.health import AccountHealth, AccountState, Unavailable
from gateway.routing.quotas import RequestRate
from gateway.upstream.agent import EgressPath
from gateway.upstream.interface import Upstream

_FULL = Unavailable(AccountState.READY, "max_in_flight is reached", None)

#: What makes an account another one at its upstream.
_IDENTITY = ("base_url", "key", "key_file", "oauth", "auth_header")


class Account:
    """An account of the pool.

    :param settings: what the operator said of it.
    :param upstream: how requests get to it.
    :param now: unix seconds.
    :param cooldown_max_seconds: the longest it may be left alone before it is tried again.
    :param egress: how its connections leave the machine; None for directly.
    :ivar name: the operator's name for it.
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
        egress: EgressPath | None = None,
    ) -> None:
        self.settings = settings
        self.name = settings.name
        self.upstream = upstream
        self.learned = LearnedCapabilities(now)
        self.health = AccountHealth(now, cooldown_max_seconds, log=HealthLog(settings.name))
        self.in_flight = 0
        self.turns = 0
        self.failures = 0
        #: Only where it may be unavailable: connections without a proxy always may be tried.
        self._egress = None if egress is None or egress.proxy is None else egress
        per_minute = settings.requests_per_minute
        self._rate = None if per_minute is None else RequestRate(per_minute, now)
        self._now = now
        self._max_in_flight = settings.max_in_flight
        self._when_free: set[Callable[[Account], None]] = set()
        #: Those that it inherited from, with turns that may still run.
        self._former: tuple[Account, ...] = ()
        if not settings.enabled:
            self.health.disable()

    @property
    def request_headers(self) -> list[tuple[str, str]]:
        """The headers that the operator adds to every request of this account."""
        return list(self.settings.headers.items())

    def inherit(self, former: Account) -> None:
        """Take the place of ``former``, whose settings have changed.

        Limits and cooldowns belong to the credential and the service: they go on where both
        are the same, and so does what the operator wanted of it.  Requests of the last minute
        still count, and so do turns that still run there.
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
        return None if self._egress is None else self._egress_unavailable()

    def unready(self) -> Unavailable | None:
        """Why it should not be counted on, whatever the model and be it full or not."""
        return self.health.unready() or self._egress_unavailable()

    def _egress_unavailable(self) -> Unavailable | None:
        """Why its egress cannot be used, or None when it can."""
        why = None if self._egress is None else self._egress.unavailable()
        return None if why is None else Unavailable(AccountState.COOLING, *why)

    def clear(self) -> None:
        """The operator says that nothing is wrong with it, or with its egress, any more."""
        self.health.clear()
        if self._egress is not None:
            self._egress.clear()

    def lease(
        self,
        model: str | None,
        released: Callable[[], None],
        binding: BindingUpdate | None = None,
    ) -> Lease:
        """Take a place for one attempt; the caller has seen that the account is available.

        :param released: called when the place is free again.
        :param binding: what becomes of the conversation's binding, or None.
        """
        if self._rate is not None:
            self._rate.take()
        self.in_flight += 1
        return Lease(self, model, released, binding)

    def leave(self) -> None:
        """An attempt is over, its place is free."""
        self.in_flight -= 1
        if self._when_free:
            called, self._when_free = self._when_free, set()
            for call in called:
                call(self)

    def call_when_free(self, call: Callable[[Account], None]) -> None:
        """Call once, when the next place becomes free; asking twice changes nothing."""
        self._when_free.add(call)

    def _places_taken(self) -> int:
        """Turns that began before a reload take places, too."""
        if not self._former:
            return self.in_flight
        before = sum(each.in_flight for each in self._former)
        if not before:
            self._former = ()
        return self.in_flight + before


class Lease:
    """An attempt's place on an account, from the choice until the attempt is over.

    The account's health and the conversation's binding learn from it how the attempt went.

    :ivar account: where the place is.
    :param released: called when the place is free again.
    :param binding: what becomes of the conversation's binding, or None.
    """

    __slots__ = (
        "_attempts",
        "_binding",
        "_held",
        "_model",
        "_released",
        "_told",
        "_works",
        "account",
    )

    def __init__(
        self,
        account: Account,
        model: str | None,
        released: Callable[[], None],
        binding: BindingUpdate | None = None,
    ) -> None:
        self.account = account
        self._model = model
        self._attempts = account.health.begin(model)
        self._released = released
        self._binding = binding
        self._held = True
        #: Whether the account's health has heard of the attempt.
        self._told = False
        self._works = False

    def answered(self) -> None:
        """The account answered, whatever that says of its limits: the conversation stays there."""
        binding, self._binding = self._binding, None
        if binding is not None:
            binding.answered()

    def acknowledged(self) -> None:
        """The upstream took the turn up: whatever kept others away from it is over."""
        if self._held and not self._told:
            self._told = self._works = True
            self.account.health.acknowledged(self._model, self._attempts)
            self.answered()

    def refused(self, fault: Fault) -> None:
        """The attempt failed with this fault, be it after the upstream took the turn up."""
        if self._held:
            self._told, self._works = True, False
            self.account.health.refused(self._model, fault, self._attempts)

    def release(self) -> None:
        """The attempt is over.  One that was only cancelled says nothing of the account."""
        if not self._held:
            return
        self._held = False
        self.account.leave()
        if self._works:
            self.account.health.ended_well()
        elif not self._told:
            self.account.health.dropped(self._attempts)
        if self._binding is not None:
            self._binding.unanswered()
        self._released()
