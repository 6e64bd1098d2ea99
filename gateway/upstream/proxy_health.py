"""Whether a proxy can be used now: a breaker that all accounts behind it share."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import NamedTuple

#: Failures in a row that make the proxy rest.
_FAILURES = 3

#: How long the first rest is, in seconds; each further one is twice as long.
_FIRST_REST = 1.0

#: A rest is between this share of its length and all of it, so that gateways part.
_LEAST_SHARE = 0.5

#: 2 ** this times a second is beyond every bound that can be configured.
_MOST_DOUBLINGS = 30


class _State(enum.Enum):
    """USABLE → RESTING (failures) → PROBED (an attempt after the rest) → either of them.

    A probe that is dropped leads back to RESTING, whose time is over.
    """

    USABLE = "usable"
    RESTING = "resting"
    PROBED = "probed"


class Barred(NamedTuple):
    """Why, and until when (unix seconds), the proxy is not used."""

    why: str
    until: float


class ProxyHealth:
    """One proxy's breaker.  No Twisted here.

    :param now: unix seconds.
    :param rest_max_seconds: the longest that the proxy is left alone.
    :param probe_seconds: how long a connection attempt can take.
    :param jitter: in [0, 1).
    :ivar failures: those in a row.
    """

    def __init__(
        self,
        now: Callable[[], float],
        rest_max_seconds: float,
        probe_seconds: float = 10.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._rest_max_seconds = rest_max_seconds
        self._probe_seconds = probe_seconds
        self._jitter = jitter
        self._state = _State.USABLE
        self._why = ""
        self._until = 0.0
        self._rests = 0
        self.failures = 0

    def unavailable(self) -> Barred | None:
        """Why it cannot be used now, or None; once a rest is over the next one may try."""
        if self._state is _State.USABLE:
            return None
        if self._state is _State.RESTING and self._now() >= self._until:
            return None
        return Barred(self._why, self._until)

    def attempt(self) -> Attempt | None:
        """Begin a connection attempt; None when none may be made now."""
        if self.unavailable() is not None:
            return None
        probe = self._state is _State.RESTING
        if probe:
            self._state = _State.PROBED
            self._until = self._now() + self._probe_seconds
        return Attempt(self, probe)

    def clear(self) -> None:
        """Forget all failures: by word of the operator, or since it works."""
        self._state = _State.USABLE
        self._why = ""
        self._until = 0.0
        self._rests = self.failures = 0

    def _failed(self, why: str, probe: bool) -> None:
        self.failures += 1
        if self._state is _State.PROBED:
            broken = probe
        else:
            broken = self._state is _State.USABLE and self.failures >= _FAILURES
        if broken:
            self._rest(why)

    def _dropped(self, probe: bool) -> None:
        if self._state is _State.PROBED and probe:
            self._state = _State.RESTING
            self._until = self._now()

    def _rest(self, why: str) -> None:
        longest = _FIRST_REST * 2.0 ** min(self._rests, _MOST_DOUBLINGS)
        share = _LEAST_SHARE + (1 - _LEAST_SHARE) * self._jitter()
        self._rests += 1
        self._state = _State.RESTING
        self._why = why
        self._until = self._now() + min(longest, self._rest_max_seconds) * share


class Attempt:
    """One connection attempt; the first of its ends counts, later ones are ignored."""

    __slots__ = ("_health", "_probe")

    def __init__(self, health: ProxyHealth, probe: bool) -> None:
        self._health: ProxyHealth | None = health
        self._probe = probe

    def succeeded(self) -> None:
        """The proxy did its part."""
        if (health := self._end()) is not None:
            health.clear()

    def failed(self, why: str) -> None:
        """The proxy is at fault."""
        if (health := self._end()) is not None:
            health._failed(why, self._probe)

    def dropped(self) -> None:
        """Nobody wanted to know any more."""
        if (health := self._end()) is not None:
            health._dropped(self._probe)

    def _end(self) -> ProxyHealth | None:
        health, self._health = self._health, None
        return health
