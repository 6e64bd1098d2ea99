"""One reason for an account to rest: a breaker, what tripped it, and how that is told."""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from ..breaker import Attempt, Breaker, BreakerState
from ..protocol.faults import Fault, FaultKind

#: When to ask again while a probe is on its way, in seconds.
_PROBE_SECONDS = 1.0


class AccountState(enum.Enum):
    """What the operator sees of an account."""

    READY = "ready"
    COOLING = "cooling"
    EXHAUSTED = "exhausted"
    UNAUTHORIZED = "unauthorized"
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


class Rest:
    """A breaker, and what tripped it.

    :ivar state: of an account because of it.
    :ivar fault: what tripped it last.
    """

    __slots__ = ("breaker", "fault", "state")

    def __init__(self, state: AccountState, breaker: Breaker) -> None:
        self.state = state
        self.breaker = breaker
        self.fault: Fault | None = None

    def failed(self, attempt: Attempt | None, fault: Fault, first_seconds: float | None) -> bool:
        """See :meth:`Breaker.failed`.

        :return: whether a rest begins because of it.
        """
        trips = self.breaker.trips
        self.breaker.failed(attempt, fault.retry_at, first_seconds)
        if self.breaker.trips == trips:
            return False
        self.fault = fault
        return True

    @property
    def due(self) -> bool:
        """Whether it waits for a probe."""
        return self.breaker.state is BreakerState.HALF_OPEN

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
