"""One reason for an account to rest: a breaker, what tripped it, and how that is told."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from typing import Any, NamedTuple

from gateway.circuit_breaker import BreakerAttempt, BreakerState, CircuitBreaker
from gateway.protocol.error_classification import Fault, FaultKind

#: When to ask again while a probe is on its way, in seconds.
_PROBE_SECONDS = 1.0


class AccountState(enum.Enum):
    """What the operator sees of an account.

    A rest makes it ``cooling``, ``exhausted`` or ``unauthorized``.  Once that is over it is
    ``unproven`` until it answers well; ``exhausted`` lasts as long as the upstream said.
    """

    READY = "ready"
    COOLING = "cooling"
    EXHAUSTED = "exhausted"
    UNAUTHORIZED = "unauthorized"
    UNPROVEN = "unproven"
    DISABLED = "disabled"
    DRAINING = "draining"


class Unavailable(NamedTuple):
    """Why an account cannot serve.

    :ivar state: of the account, or COOLING for the model alone.
    :ivar why: for people.
    :ivar until: unix seconds when it may be asked again; None until somebody acts.
    :ivar resets_at: the upstream's own word for when, which may be far beyond ``until``.
    :ivar kind: of the fault; None when the operator wants it so.
    """

    state: AccountState
    why: str
    until: float | None
    resets_at: float | None = None
    kind: FaultKind | None = None


class Cooldown:
    """A breaker, and what tripped it.

    :ivar state: of an account because of it.
    :ivar fault: what tripped it last.
    """

    __slots__ = ("_requests", "breaker", "fault", "state")

    def __init__(self, state: AccountState, breaker: CircuitBreaker) -> None:
        self.state = state
        self.breaker = breaker
        self.fault: Fault | None = None
        #: Those that failed in a row, while it is closed.
        self._requests: set[Hashable] = set()

    def failed(
        self, attempt: BreakerAttempt | None, fault: Fault, first_seconds: float | None
    ) -> bool:
        """See :meth:`CircuitBreaker.failed`; but a request that fails again tells nothing new.

        What only one request meets may be its own doing, however often it is sent.

        :return: whether a rest begins because of it.
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
        """Whether a failure counts: while it is closed each request has one, in a row.

        A time that the upstream names is its own word, and so is what ends a rest and breaks.
        """
        ended_a_rest = attempt is not None and attempt.forgave > 0
        if not self.breaker.closed or fault.retry_at is not None or ended_a_rest:
            return True
        if not self.breaker.failures:
            self._requests.clear()
        if fault.request is None or fault.request not in self._requests:
            self._requests.add(fault.request)
            return True
        return False

    @property
    def due(self) -> bool:
        """Whether it waits for a probe."""
        return self.breaker.state is BreakerState.HALF_OPEN

    def awaits_reset(self, now: float) -> bool:
        """Whether a quota is used up whose reset the upstream named, and that is still ahead."""
        named = self.breaker.named
        used_up = self.state is AccountState.EXHAUSTED and not self.breaker.closed
        return used_up and named is not None and named > now

    def standing(self, now: float) -> AccountState:
        """The state of an account because of it."""
        if self.breaker.closed:
            return AccountState.READY
        rests = self.breaker.state is BreakerState.OPEN or self.awaits_reset(now)
        return self.state if rests else AccountState.UNPROVEN

    def unready(self, now: float) -> Unavailable:
        """Why nobody should count on the account, while it is not closed; the same as long as
        it fails, whether it rests or is tried."""
        fault, rests = self.fault, self.breaker.state is BreakerState.OPEN
        return Unavailable(
            self.standing(now),
            fault.why if fault is not None else "",
            self.breaker.until if rests else None,
            self.breaker.named if self.awaits_reset(now) or rests else None,
            fault.kind if fault is not None else None,
        )

    def unavailable(self, now: float) -> Unavailable | None:
        """Why it cannot be used, or None when it can, be it for a probe."""
        if self.breaker.usable:
            return None
        probing = self.breaker.state is BreakerState.PROBING
        fault = self.fault
        why = fault.why if fault is not None else ""
        return Unavailable(
            self.state,
            f"a probe is on its way after: {why}" if probing else why,
            now + _PROBE_SECONDS if probing else self.breaker.until,
            self.breaker.named,
            fault.kind if fault is not None else None,
        )

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
