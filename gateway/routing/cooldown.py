"""The cooldown of an account or of one of its models: a circuit breaker and the fault.

Also the states of an account that the operator sees or sets, and the log lines about them.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable
from datetime import datetime, timezone
from typing import Any, NamedTuple

from twisted.logger import Logger

from gateway.circuit_breaker import (
    BreakerAttempt,
    BreakerSnapshot,
    BreakerState,
    CircuitBreaker,
)
from gateway.protocol.error_classification import Fault, FaultKind

#: When to ask again while a probe is on its way, in seconds.
_PROBE_SECONDS = 1.0

_log = Logger(namespace="gateway.routing")


class AccountState(enum.Enum):
    """The state of an account, as the operator sees it.

    A cooldown makes it ``cooling``, ``exhausted`` or ``unauthorized``.  After that it is
    ``unproven`` until it answers well.  ``exhausted`` lasts until the reset that the upstream
    named.
    """

    READY = "ready"
    COOLING = "cooling"
    EXHAUSTED = "exhausted"
    UNAUTHORIZED = "unauthorized"
    UNPROVEN = "unproven"
    DISABLED = "disabled"
    DRAINING = "draining"


class AdminState(enum.Enum):
    """The state of an account that the operator has set."""

    SERVE = "serve"
    DRAIN = "drain"
    DISABLE = "disable"


#: The transitions of each action of the operator.
ADMIN_TRANSITIONS = {
    "disable": dict.fromkeys(AdminState, AdminState.DISABLE),
    "enable": {AdminState.DISABLE: AdminState.SERVE},
    "drain": {AdminState.SERVE: AdminState.DRAIN},
    "resume": {AdminState.DRAIN: AdminState.SERVE},
}


class Unavailable(NamedTuple):
    """Why an account cannot serve.

    :ivar state: of the account, or COOLING for the model alone.
    :ivar why: for people.
    :ivar until: unix seconds when it may be asked again; None if only the operator can end it.
    :ivar resets_at: the time that the upstream named, which may be far beyond ``until``.
    :ivar kind: of the fault; None if the operator disabled or drains it.
    """

    state: AccountState
    why: str
    until: float | None
    resets_at: float | None = None
    kind: FaultKind | None = None


class CooldownSnapshot(NamedTuple):
    """What another process must know of a cooldown.

    :ivar why: the fault's, for people.
    """

    breaker: BreakerSnapshot
    kind: FaultKind | None = None
    why: str = ""


class Cooldown:
    """A circuit breaker, and the fault that tripped it.

    :ivar state: the account's state during the cooldown.
    :ivar fault: the fault that tripped it last.
    """

    __slots__ = ("_requests", "breaker", "fault", "state")

    def __init__(self, state: AccountState, breaker: CircuitBreaker) -> None:
        self.state = state
        self.breaker = breaker
        self.fault: Fault | None = None
        #: Requests that failed in a row while the breaker is closed.
        self._requests: set[Hashable] = set()

    def failed(
        self, attempt: BreakerAttempt | None, fault: Fault, first_seconds: float | None
    ) -> bool:
        """Count a failure, unless the same request has failed here before.

        A failure of only one request may be caused by that request, however often it is sent.

        :param first_seconds: length of the first cooldown, if it differs for this fault.
        :return: whether a cooldown begins.
        """
        if not self._is_news(attempt, fault):
            if attempt is not None:
                self.breaker.dropped(attempt)
            return False
        trips = self.breaker.trips
        self.breaker.failed(attempt, fault.retry_at, first_seconds)
        if self.breaker.trips == trips:
            return False
        self.fault = fault
        return True

    def _is_news(self, attempt: BreakerAttempt | None, fault: Fault) -> bool:
        """Whether a failure counts: while the breaker is closed, only the first of each request.

        A failure with a time named by the upstream always counts, and so does one of an attempt
        that had ended a cooldown.
        """
        ended_a_cooldown = attempt is not None and attempt.forgave > 0
        if not self.breaker.closed or fault.retry_at is not None or ended_a_cooldown:
            return True
        if not self.breaker.failures:
            self._requests.clear()
        if fault.request is None or fault.request not in self._requests:
            self._requests.add(fault.request)
            return True
        return False

    @property
    def probe_due(self) -> bool:
        """Whether the breaker is half-open."""
        return self.breaker.state is BreakerState.HALF_OPEN

    def awaits_reset(self, now: float) -> bool:
        """Whether a quota is used up and the reset that the upstream named is in the future."""
        named = self.breaker.named
        used_up = self.state is AccountState.EXHAUSTED and not self.breaker.closed
        return used_up and named is not None and named > now

    def account_state(self, now: float) -> AccountState:
        """The account's state because of this cooldown."""
        if self.breaker.closed:
            return AccountState.READY
        open_ = self.breaker.state is BreakerState.OPEN or self.awaits_reset(now)
        return self.state if open_ else AccountState.UNPROVEN

    def unready(self, now: float) -> Unavailable:
        """Why the account is not ready, while the breaker is not closed.

        The reason stays the same during cooldown and probe.
        """
        is_open = self.breaker.state is BreakerState.OPEN
        until = self.breaker.until if is_open else None
        resets_at = self.breaker.named if self.awaits_reset(now) or is_open else None
        return self._unavailable(self.account_state(now), "", until, resets_at)

    def unavailable(self, now: float) -> Unavailable | None:
        """Why it cannot be used; None if it can, also for a probe."""
        if self.breaker.usable:
            return None
        if self.breaker.state is BreakerState.PROBING:
            prefix, until = "a probe is on its way after: ", now + _PROBE_SECONDS
        else:
            prefix, until = "", self.breaker.until
        return self._unavailable(self.state, prefix, until, self.breaker.named)

    def _unavailable(
        self, state: AccountState, prefix: str, until: float | None, resets_at: float | None
    ) -> Unavailable:
        fault = self.fault
        if fault is None:
            return Unavailable(state, prefix, until, resets_at)
        return Unavailable(state, prefix + fault.why, until, resets_at, fault.kind)

    def snapshot(self) -> CooldownSnapshot:
        """What another process must know."""
        breaker, fault = self.breaker.snapshot(), self.fault
        if fault is None or breaker.state is BreakerState.CLOSED:
            return CooldownSnapshot(breaker)
        return CooldownSnapshot(breaker, fault.kind, fault.why)

    def restore(self, told: CooldownSnapshot) -> None:
        """Take over what another process knows; it is no failure here."""
        self.breaker.restore(told.breaker)
        self._requests.clear()
        if told.kind is not None:
            self.fault = Fault(told.kind, told.why, told.breaker.named)

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "state": self.state.value,
            "breaker": self.breaker.state.value,
            "why": self.fault.why if self.fault is not None else None,
            "since": self.breaker.since,
            "until": self.breaker.until,
            "resets_at": self.breaker.named,
        }


class HealthLog:
    """Logs when an account, or one model of it, begins to cool down and when that is over.

    :param account: its name; None logs nothing.
    """

    def __init__(self, account: str | None = None) -> None:
        self._account = account

    def cooldown_began(self, cooldown: Cooldown, model: str | None, again: bool) -> None:
        """Log the begin of a cooldown.

        :param model: the model that cools down; None for the whole account.
        :param again: whether a probe failed; only the first cooldown is a warning.
        """
        if self._account is None:
            return
        until = datetime.fromtimestamp(cooldown.breaker.until, timezone.utc)
        log = _log.info if again else _log.warn
        log(
            "account {account}{of_model} is {state} until {until}: {why}",
            account=self._account,
            model=model,
            of_model="" if model is None else f" for {model}",
            state=cooldown.state.value,
            until=until.isoformat(timespec="seconds"),
            why=cooldown.fault.why if cooldown.fault is not None else "",
        )

    def serves_again(self, model: str | None) -> None:
        """Log the end of a cooldown."""
        if self._account is not None:
            _log.info(
                "account {account}{of_model} serves again",
                account=self._account,
                model=model,
                of_model="" if model is None else f" for {model}",
            )
