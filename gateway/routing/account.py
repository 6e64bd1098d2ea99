"""An account at run time: its settings, its upstream, its health, and leases on it."""

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
from gateway.upstream.endpoints import EgressPath
from gateway.upstream.interface import Upstream

_FULL = Unavailable(AccountState.READY, "max_in_flight is reached", None)

#: The settings that identify an account at its upstream.
_IDENTITY = ("base_url", "key", "key_file", "oauth", "auth_header")


class Account:
    """An account of the pool.

    :param settings: its configuration.
    :param upstream: the transport to it.
    :param now: unix seconds.
    :param cooldown_max_seconds: the longest cooldown.
    :param egress: how its connections leave the machine; None for directly.
    :ivar name: the operator's name for it.
    :ivar in_flight: turns that run on it.
    :ivar turns: turns that ended on it.
    :ivar failures: attempts that it refused or broke off, without client errors.
    :ivar load_changed: called when a turn begins or ends here; None if nobody wants to know.
    :ivar in_flight_elsewhere: turns that run on it in other processes, as they told lately.
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
        self.load_changed: Callable[[], None] | None = None
        self.in_flight_elsewhere = 0
        #: Only with a proxy, because direct connections are always tried.
        self._egress = None if egress is None or egress.proxy is None else egress
        per_minute = settings.requests_per_minute
        self._rate = None if per_minute is None else RequestRate(per_minute, now)
        self._now = now
        self._max_in_flight = settings.max_in_flight
        self._when_free: set[Callable[[Account], None]] = set()
        #: Its predecessors from before reloads, whose turns may still run.
        self._former: tuple[Account, ...] = ()
        if not settings.enabled:
            self.health.disable()

    @property
    def request_headers(self) -> list[tuple[str, str]]:
        """The headers that the operator adds to every request of this account."""
        return list(self.settings.headers.items())

    def inherit(self, former: Account) -> None:
        """Replace ``former``, because its settings have changed.

        If credential and service are the same, health, cooldowns and the operator's actions are
        kept.  Requests of the last minute and turns that still run there count as well.
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
        """Whether the configuration offers ``model`` on this account."""
        return (
            model is None
            or model in self.settings.aliases
            or any(fnmatchcase(model, pattern) for pattern in self.settings.models)
        )

    def unavailable(self, model: str | None) -> Unavailable | None:
        """Why a turn with ``model`` cannot be sent here now, or None if it can."""
        blocked = self.health.unavailable(model)
        if blocked is not None:
            return blocked
        if self._max_in_flight is not None:
            taken = self._places_taken() + self.in_flight_elsewhere
            if taken >= self._max_in_flight:
                return _FULL
        if self._rate is not None:
            wait = self._rate.wait_seconds()
            if wait > 0:
                until = self._now() + wait
                return Unavailable(AccountState.READY, "requests_per_minute is reached", until)
        return None if self._egress is None else self._egress_unavailable()

    def unready(self) -> Unavailable | None:
        """Why it is not ready, whatever the model and its load; None if it is."""
        return self.health.unready() or self._egress_unavailable()

    def _egress_unavailable(self) -> Unavailable | None:
        """Why its proxy cannot be used, or None if it can."""
        why = None if self._egress is None else self._egress.unavailable()
        return None if why is None else Unavailable(AccountState.COOLING, *why)

    def clear(self) -> None:
        """Clear all cooldowns, its proxy's too, and try WebSockets again (operator action)."""
        self.health.clear()
        self.upstream.forget()
        if self._egress is not None:
            self._egress.clear()

    def lease(
        self,
        model: str | None,
        released: Callable[[], None],
        binding: BindingUpdate | None = None,
    ) -> Lease:
        """Take a lease for one attempt; the caller has checked that the account is available.

        :param released: called when the lease is released.
        :param binding: the update of the conversation's binding, or None.
        """
        if self._rate is not None:
            self._rate.take()
        self.in_flight += 1
        if self.load_changed is not None:
            self.load_changed()
        return Lease(self, model, released, binding)

    def leave(self) -> None:
        """An attempt is over."""
        self.in_flight -= 1
        if self.load_changed is not None:
            self.load_changed()
        self._call_waiting()

    def _call_waiting(self) -> None:
        if self._when_free:
            called, self._when_free = self._when_free, set()
            for call in called:
                call(self)

    @property
    def has_load_limits(self) -> bool:
        """Whether it limits its running turns or its requests per minute."""
        return self._max_in_flight is not None or self._rate is not None

    @property
    def load(self) -> tuple[int, int]:
        """The turns that run on it in this process, and its requests of the last minute."""
        return self._places_taken(), 0 if self._rate is None else self._rate.count

    def loaded_elsewhere(self, in_flight: int, requests: int) -> bool:
        """Take what other processes have on it.

        :param in_flight: their running turns.
        :param requests: their requests of the last minute.
        :return: whether it is less than before.
        """
        less = in_flight < self.in_flight_elsewhere
        self.in_flight_elsewhere = in_flight
        if self._rate is not None:
            less = less or requests < self._rate.elsewhere
            self._rate.elsewhere = requests
        if less:
            self._call_waiting()
        return less

    def call_when_free(self, call: Callable[[Account], None]) -> None:
        """Call once, when the next attempt is over; a second registration changes nothing."""
        self._when_free.add(call)

    def _places_taken(self) -> int:
        """Running turns, also those that began before a reload."""
        if not self._former:
            return self.in_flight
        before = sum(each.in_flight for each in self._former)
        if not before:
            self._former = ()
        return self.in_flight + before


class Lease:
    """The use of an account by one attempt, from the choice until the attempt is over.

    It reports to the account's health and to the conversation's binding how the attempt went.

    :ivar account: the account.
    :param released: called when the lease is released.
    :param binding: the update of the conversation's binding, or None.
    """

    __slots__ = (
        "_attempts",
        "_binding",
        "_held",
        "_model",
        "_released",
        "_reported",
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
        #: Whether a result was reported to the account's health.
        self._reported = False
        self._works = False

    def answered(self) -> None:
        """The account answered: the conversation is bound to it."""
        binding, self._binding = self._binding, None
        if binding is not None:
            binding.answered()

    def acknowledged(self) -> None:
        """The upstream accepted the turn: its cooldowns are over."""
        if self._held and not self._reported:
            self._reported = self._works = True
            self.account.health.acknowledged(self._model, self._attempts)
            self.answered()

    def refused(self, fault: Fault) -> None:
        """The attempt failed with this fault, before or after the upstream accepted the turn."""
        if self._held:
            self._reported, self._works = True, False
            self.account.health.refused(self._model, fault, self._attempts)

    def release(self) -> None:
        """The attempt is over.  A cancelled one says nothing about the account."""
        if not self._held:
            return
        self._held = False
        self.account.leave()
        if self._works:
            self.account.health.ended_well()
        elif not self._reported:
            self.account.health.dropped(self._attempts)
        if self._binding is not None:
            self._binding.unanswered()
        self._released()
