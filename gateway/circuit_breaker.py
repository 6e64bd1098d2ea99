"""A circuit breaker: blocks a failed resource for a cooldown, then lets one probe through.

It does not depend on accounts: the resource may be an account's quota, a model, a service or a
proxy.  It becomes half-open when the cooldown is over; the clock is read when the state is
requested.

::

    CLOSED ──trips──▶ OPEN ──its time is over──▶ HALF_OPEN ──an attempt──▶ PROBING
       ▲                ▲                            ▲                      │ │ │
       │                ├───────── fails ────────────────────────────────────┘ │ │
       │                └───────── dropped, or takes too long ─────────────────┘ │
       └──────────────────────────── succeeds ───────────────────────────────────┘
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct

#: Longest share of a cooldown, and longest time in seconds, by which its end is spread.
_SPREAD_SHARE = 0.25
_SPREAD_SECONDS = 5.0

#: Shortest cooldown, in seconds, that a time named by an upstream can lead to.
_SHORTEST_SECONDS = 1.0

_MAX_DOUBLINGS = 20

#: How long a probe of another process is waited for, in seconds.
_OTHERS_PROBE_SECONDS = 10.0


class BreakerState(enum.Enum):
    """The states of the drawing above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    PROBING = "probing"


class BreakerEvent(enum.Enum):
    """What changes the state of a breaker."""

    TRIPPED = "tripped"
    LENGTHENED = "lengthened"
    ELAPSED = "elapsed"
    PROBED = "probed"
    WITHDREW = "withdrew"
    CLOSED = "closed"
    OPEN_ELSEWHERE = "open elsewhere"
    PROBED_ELSEWHERE = "probed elsewhere"


_S, _E = BreakerState, BreakerEvent

#: Every allowed transition.
TRANSITIONS = {
    (_S.CLOSED, _E.TRIPPED): _S.OPEN,
    (_S.CLOSED, _E.CLOSED): _S.CLOSED,
    (_S.OPEN, _E.LENGTHENED): _S.OPEN,
    (_S.OPEN, _E.ELAPSED): _S.HALF_OPEN,
    (_S.OPEN, _E.CLOSED): _S.CLOSED,
    (_S.HALF_OPEN, _E.TRIPPED): _S.OPEN,
    (_S.HALF_OPEN, _E.PROBED): _S.PROBING,
    (_S.HALF_OPEN, _E.CLOSED): _S.CLOSED,
    (_S.PROBING, _E.TRIPPED): _S.OPEN,
    (_S.PROBING, _E.LENGTHENED): _S.PROBING,
    (_S.PROBING, _E.WITHDREW): _S.OPEN,
    (_S.PROBING, _E.CLOSED): _S.CLOSED,
    **{(each, _E.OPEN_ELSEWHERE): _S.OPEN for each in _S},
    **{(each, _E.PROBED_ELSEWHERE): _S.PROBING for each in _S},
}


#: The states that other processes are told; when a cooldown is over each of them sees itself.
_SHARED_STATES = frozenset({_S.CLOSED, _S.OPEN, _S.PROBING})


class BreakerSnapshot(NamedTuple):
    """What another process must know of a breaker.

    :ivar state: closed, open (also once its time is over), or probing.
    :ivar strikes: cooldowns in a row.
    """

    state: BreakerState
    since: float
    until: float
    named: float | None
    strikes: int


class BreakerAttempt(Struct, eq=False):
    """One use of the guarded resource; its result is reported to the breaker.

    :ivar trips: how often the breaker had tripped when it began.
    :ivar forgave: cooldowns in a row that it ended by beginning well, until it ends itself.
    """

    trips: int
    forgave: int = 0


class CircuitBreaker:
    """Guards one resource that may fail.

    Attempts that began before it tripped count less: their success does not close it, and
    their failures do not double the cooldown.  They lengthen it if the upstream names a later
    time, and repeat it if it was just over.

    An attempt that begins well closes it: others need not wait for its end.  If it fails all
    the same, that counts as the failure of a probe.

    :param now: unix seconds; it may jump.
    :param threshold: failures in a row that trip it; a failure with a named time always does.
    :param first_seconds: the first cooldown; each further one, without a success between, is
        twice as long.
    :param jitter: from 0 to 1; spreads the ends of cooldowns.
    :ivar max_seconds: bound on a cooldown, named or not, and on the wait for a probe; may change.
    :ivar failures: in a row, while closed.
    :ivar trips: ever.
    :ivar since: when it last closed or tripped.
    :ivar until: when the cooldown ends; 0.0 while closed.
    :ivar named: the end of the cooldown that the upstream named, unbounded, or None.
    """

    def __init__(
        self,
        now: Callable[[], float],
        threshold: int,
        first_seconds: float,
        max_seconds: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._threshold = threshold
        self._first_seconds = first_seconds
        self.max_seconds = max_seconds
        self._jitter = jitter
        self._state = BreakerState.CLOSED
        self._strikes = 0
        self._probe: BreakerAttempt | None = None
        self._probed_at = 0.0
        self._probe_seconds: float | None = None
        self.failures = 0
        self.trips = 0
        self.since = now()
        self.until = 0.0
        self.named: float | None = None

    @property
    def closed(self) -> bool:
        """Whether the breaker is closed."""
        return self._state is BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        """The state now."""
        self._settle()
        return self._state

    @property
    def usable(self) -> bool:
        """Whether an attempt may begin: it is closed, or a probe is due."""
        return self.closed or self.state is BreakerState.HALF_OPEN

    def attempt(self) -> BreakerAttempt:
        """An attempt begins; the first one of a half-open breaker is its probe."""
        attempt = BreakerAttempt(self.trips)
        if not self.closed and self.state is BreakerState.HALF_OPEN:
            now = self._now()
            self._move(BreakerEvent.PROBED)
            self._probe, self._probed_at, self._probe_seconds = attempt, now, None
            self.until = min(self.until, now)
        return attempt

    def began(self, attempt: BreakerAttempt) -> None:
        """The attempt began well: the cooldown is over, but failures in a row still count."""
        if not self.closed and attempt.trips == self.trips:
            attempt.forgave = self._strikes
            self.close()

    def succeeded(self, attempt: BreakerAttempt) -> None:
        """The attempt succeeded."""
        self.began(attempt)
        attempt.forgave = 0
        self.ended_well()

    def ended_well(self) -> None:
        """An attempt that had begun well ended well: reset the failures in a row."""
        if self.closed:
            self.failures = 0

    def failed(
        self,
        attempt: BreakerAttempt | None = None,
        retry_at: float | None = None,
        first_seconds: float | None = None,
    ) -> None:
        """The attempt failed.

        :param attempt: None for one that began before the breaker existed.
        :param retry_at: the unix time that the upstream named.
        :param first_seconds: of the cooldown, if it differs for this failure.
        """
        self._settle()
        ended_a_cooldown = attempt is not None and attempt.forgave > 0
        if attempt is not None and ended_a_cooldown:
            self._strikes = max(self._strikes, attempt.forgave)
            attempt.forgave = 0
        if self.closed:
            self.failures += 1
            if ended_a_cooldown or self.failures >= self._threshold or retry_at is not None:
                self._trip(retry_at, first_seconds)
        elif attempt is not None and attempt is self._probe:
            self._trip(retry_at, first_seconds)
        elif self._state is BreakerState.HALF_OPEN:
            self._strikes -= 1
            self._trip(retry_at, first_seconds)
        elif retry_at is not None:
            self._lengthen(retry_at)

    def dropped(self, attempt: BreakerAttempt) -> None:
        """The attempt ended without a result; another probe may begin."""
        if attempt is self._probe:
            self._probe = None
            self._move(BreakerEvent.WITHDREW)

    def shorten(self, seconds: float) -> bool:
        """Shorten a cooldown, unless the upstream named its end; False if it is not longer."""
        if self._state is not BreakerState.OPEN or self.named is not None:
            return False
        before, self.until = self.until, min(self.until, self.since + seconds)
        return self.until < before

    def close(self) -> None:
        """Close the breaker, because an attempt succeeded or the operator cleared it."""
        self._move(BreakerEvent.CLOSED)
        self._probe = None
        self._strikes = self.failures = 0
        self.since = self._now()
        self.until, self.named = 0.0, None

    def snapshot(self) -> BreakerSnapshot:
        """What another process must know."""
        state = self._state if self._state in _SHARED_STATES else BreakerState.OPEN
        return BreakerSnapshot(state, self.since, self.until, self.named, self._strikes)

    def restore(self, told: BreakerSnapshot) -> None:
        """Take over what another process knows.

        Attempts that began here before count less, as if it had tripped here.  A probe of the
        other process is waited for a few seconds only, because that process may die.
        """
        if told.state is BreakerState.CLOSED:
            if not self.closed:
                self.close()
                self.since = told.since
            return
        if self.closed or told.since != self.since:
            self.trips += 1
        self._probe = None
        self._strikes = told.strikes
        self.failures = 0
        self.since, self.until, self.named = told.since, told.until, told.named
        if told.state is BreakerState.PROBING:
            self._move(BreakerEvent.PROBED_ELSEWHERE)
            self._probed_at, self._probe_seconds = self._now(), _OTHERS_PROBE_SECONDS
        else:
            self._move(BreakerEvent.OPEN_ELSEWHERE)

    def _trip(self, retry_at: float | None, first_seconds: float | None) -> None:
        now = self._now()
        self._move(BreakerEvent.TRIPPED)
        self._probe = None
        doubled = 2 ** min(self._strikes, _MAX_DOUBLINGS)
        if retry_at is None:
            seconds = doubled * (self._first_seconds if first_seconds is None else first_seconds)
        else:
            seconds = max(retry_at - now, doubled * min(self._first_seconds, _SHORTEST_SECONDS))
        self._strikes += 1
        self.trips += 1
        self.since = now
        self.until = now + self._spread(seconds)
        self.named = retry_at

    def _lengthen(self, retry_at: float) -> None:
        """Another failure names a time: it counts if it is the later one."""
        now = self._now()
        until = now + self._spread(retry_at - now)
        if until > max(self.until, now):
            self._move(BreakerEvent.LENGTHENED)
            self.until = until
            self.named = max(self.named or 0.0, retry_at)

    def _spread(self, seconds: float) -> float:
        """Add jitter (at the bound subtract it), so that cooldowns do not all end at once."""
        most = self.max_seconds
        jitter = self._jitter() * min(
            seconds * _SPREAD_SHARE, most * _SPREAD_SHARE, _SPREAD_SECONDS
        )
        return min(seconds + jitter, most) if seconds < most else most - jitter

    def _settle(self) -> None:
        """Update the state by the clock; if that has jumped, cooldowns keep their bound."""
        now = self._now()
        probing = self._state is BreakerState.PROBING
        longest = self.max_seconds
        if self._probe_seconds is not None:
            longest = min(longest, self._probe_seconds)
        if probing and not 0 <= now - self._probed_at < longest:
            self._probe = None
            self._move(BreakerEvent.WITHDREW)
        if self._state is BreakerState.OPEN:
            self.until = min(self.until, now + self.max_seconds)
            if now >= self.until:
                self._move(BreakerEvent.ELAPSED)

    def _move(self, event: BreakerEvent) -> None:
        self._state = TRANSITIONS[self._state, event]
