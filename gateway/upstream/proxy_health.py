"""Whether a proxy can be used now: a breaker that all accounts behind it share."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from gateway.circuit_breaker import BreakerAttempt, BreakerState, CircuitBreaker

#: Failures in a row that make the proxy rest.
_FAILURES = 3

#: How long its first rest is, in seconds.
_FIRST_REST = 1.0

#: How soon somebody who found it being probed may ask again, in seconds.
_PROBE_TAKES = 1.0


class UnavailableProxy(NamedTuple):
    """Why, and until when (unix seconds), the proxy is not used."""

    why: str
    until: float


class ProxyHealth:
    """How one proxy has been of late; knows no Twisted.

    :param now: unix seconds.
    :param cooldown_max_seconds: the longest that the proxy is left alone.
    :param jitter: from 0 to 1.
    """

    def __init__(
        self,
        now: Callable[[], float],
        cooldown_max_seconds: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._breaker = CircuitBreaker(now, _FAILURES, _FIRST_REST, cooldown_max_seconds, jitter)
        self._why = ""

    def unavailable(self) -> UnavailableProxy | None:
        """Why it cannot be used now; None when it can, be it for a probe."""
        if self._breaker.usable:
            return None
        if self._breaker.state is BreakerState.PROBING:
            return UnavailableProxy(f"{self._why}; it is being probed", self._now() + _PROBE_TAKES)
        return UnavailableProxy(self._why, self._breaker.until)

    def attempt(self) -> BreakerAttempt | None:
        """A connection attempt begins; None when none may.  It ends in one of the following."""
        return self._breaker.attempt() if self._breaker.usable else None

    def succeeded(self, attempt: BreakerAttempt) -> None:
        """The proxy did its part."""
        self._breaker.succeeded(attempt)

    def failed(self, attempt: BreakerAttempt, why: str) -> float | None:
        """The proxy is at fault.

        :return: for how long it rests, in seconds, when this is what makes it rest.
        """
        trips = self._breaker.trips
        self._why = why
        self._breaker.failed(attempt)
        return None if self._breaker.trips == trips else self._breaker.until - self._now()

    def dropped(self, attempt: BreakerAttempt) -> None:
        """Nobody wanted to know any more."""
        self._breaker.dropped(attempt)

    def cap_rests(self, cooldown_max_seconds: float) -> None:
        """Another bound on how long the proxy is left alone."""
        self._breaker.max_seconds = cooldown_max_seconds

    def clear(self) -> None:
        """By word of the operator nothing is held against it."""
        self._breaker.close()
