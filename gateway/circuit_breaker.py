"""Rests what failed, and lets one probe find out whether it works again.

Knows nothing of accounts: what fails may be an account's quota, a model, a service or a
proxy.  Time alone leads from open to half-open; it is looked at when somebody asks.

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

#: Longest share of a rest, and longest time in seconds, by which it is spread.
_SPREAD_SHARE = 0.25
_SPREAD_SECONDS = 5.0

#: Shortest rest, in seconds, that an upstream's own word can lead to.
_SHORTEST_SECONDS = 1.0

_MAX_DOUBLINGS = 20


class BreakerState(enum.Enum):
    """See the drawing above."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"
    PROBING = "probing"


class BreakerEvent(enum.Enum):
    """What moves a breaker."""

    TRIPPED = "tripped"
    LENGTHENED = "lengthened"
    ELAPSED = "elapsed"
    PROBED = "probed"
    WITHDREW = "withdrew"
    CLOSED = "closed"


_S, _H = BreakerState, BreakerEvent

#: Every allowed transition.
TRANSITIONS = {
    (_S.CLOSED, _H.TRIPPED): _S.OPEN,
    (_S.CLOSED, _H.CLOSED): _S.CLOSED,
    (_S.OPEN, _H.LENGTHENED): _S.OPEN,
    (_S.OPEN, _H.ELAPSED): _S.HALF_OPEN,
    (_S.OPEN, _H.CLOSED): _S.CLOSED,
    (_S.HALF_OPEN, _H.TRIPPED): _S.OPEN,
    (_S.HALF_OPEN, _H.PROBED): _S.PROBING,
    (_S.HALF_OPEN, _H.CLOSED): _S.CLOSED,
    (_S.PROBING, _H.TRIPPED): _S.OPEN,
    (_S.PROBING, _H.LENGTHENED): _S.PROBING,
    (_S.PROBING, _H.WITHDREW): _S.OPEN,
    (_S.PROBING, _H.CLOSED): _S.CLOSED,
}


class BreakerAttempt:
    """One use of what a breaker guards; told to the breaker when it ended.

    :ivar trips: how often the breaker had tripped when it began.
    :ivar forgave: rests in a row that were forgiven because it began well, until it ends.
    """

    __slots__ = ("forgave", "trips")

    def __init__(self, trips: int) -> None:
        self.trips = trips
        self.forgave = 0


class CircuitBreaker:
    """One thing that may fail.

    Attempts that began before it tripped tell little: their success does not close it, and
    their failures do not double the rest.  They lengthen it if the upstream names a later
    time, and repeat it if it was just over.

    An attempt that begins well closes it: others need not wait for its end.  If it fails all
    the same, that is the failure of a probe.

    :param now: unix seconds; it may jump.
    :param threshold: failures in a row that trip it; a failure with a named time always does.
    :param first_seconds: the first rest; every further one, without a success between, is
        twice as long.
    :param jitter: from 0 to 1; spreads the ends of rests.
    :ivar max_seconds: bound on a rest, named or not, and on the wait for a probe; may change.
    :ivar failures: in a row, while closed.
    :ivar trips: ever.
    :ivar since: when it last closed or tripped.
    :ivar until: when the rest ends; 0.0 while closed.
    :ivar named: the end of the rest by the upstream's own word, unbounded, or None.
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
        self.failures = 0
        self.trips = 0
        self.since = now()
        self.until = 0.0
        self.named: float | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing is known against it."""
        return self._state is BreakerState.CLOSED

    @property
    def state(self) -> BreakerState:
        """Where it stands now."""
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
            self._probe, self._probed_at = attempt, now
            self.until = min(self.until, now)
        return attempt

    def began(self, attempt: BreakerAttempt) -> None:
        """It works so far: a rest is over, but failures in a row are still counted."""
        if not self.closed and attempt.trips == self.trips:
            attempt.forgave = self._strikes
            self.close()

    def succeeded(self, attempt: BreakerAttempt) -> None:
        """It worked."""
        self.began(attempt)
        attempt.forgave = 0
        self.ended_well()

    def ended_well(self) -> None:
        """An attempt that had begun well ended so: the next failure is the first in a row."""
        if self.closed:
            self.failures = 0

    def failed(
        self,
        attempt: BreakerAttempt | None = None,
        retry_at: float | None = None,
        first_seconds: float | None = None,
    ) -> None:
        """It did not.

        :param attempt: None for one that began before the breaker existed.
        :param retry_at: the unix time that the upstream named.
        :param first_seconds: of the rest, if it differs for this failure.
        """
        self._settle()
        ended_a_rest = attempt is not None and attempt.forgave > 0
        if attempt is not None and ended_a_rest:
            self._strikes = max(self._strikes, attempt.forgave)
            attempt.forgave = 0
        if self.closed:
            self.failures += 1
            if ended_a_rest or self.failures >= self._threshold or retry_at is not None:
                self._trip(retry_at, first_seconds)
        elif attempt is not None and attempt is self._probe:
            self._trip(retry_at, first_seconds)
        elif self._state is BreakerState.HALF_OPEN:
            self._strikes -= 1
            self._trip(retry_at, first_seconds)
        elif retry_at is not None:
            self._lengthen(retry_at)

    def dropped(self, attempt: BreakerAttempt) -> None:
        """It ended without telling anything; a probe may be made again."""
        if attempt is self._probe:
            self._probe = None
            self._move(BreakerEvent.WITHDREW)

    def hurry(self, seconds: float) -> bool:
        """Let a rest whose end nobody named last no longer than this; False when it would not."""
        if self._state is not BreakerState.OPEN or self.named is not None:
            return False
        before, self.until = self.until, min(self.until, self.since + seconds)
        return self.until < before

    def close(self) -> None:
        """Nothing is held against it any more: it worked, or the operator says so."""
        self._move(BreakerEvent.CLOSED)
        self._probe = None
        self._strikes = self.failures = 0
        self.since = self._now()
        self.until, self.named = 0.0, None

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
        """Later by a little, or, at the bound, earlier: not all come back in one instant."""
        most = self.max_seconds
        jitter = self._jitter() * min(
            seconds * _SPREAD_SHARE, most * _SPREAD_SHARE, _SPREAD_SECONDS
        )
        return min(seconds + jitter, most) if seconds < most else most - jitter

    def _settle(self) -> None:
        """Look at the clock, which may have jumped: no rest lasts longer than its bound."""
        now = self._now()
        probing = self._state is BreakerState.PROBING
        if probing and not 0 <= now - self._probed_at < self.max_seconds:
            self._probe = None
            self._move(BreakerEvent.WITHDREW)
        if self._state is BreakerState.OPEN:
            self.until = min(self.until, now + self.max_seconds)
            if now >= self.until:
                self._move(BreakerEvent.ELAPSED)

    def _move(self, happening: BreakerEvent) -> None:
        self._state = TRANSITIONS[self._state, happening]
