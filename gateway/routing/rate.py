"""Requests per minute of an account: never more than so many in any 60 seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

_WINDOW_SECONDS = 60.0

#: Requests within such a slice of time count as one moment, its end: bounds the memory.
_SLICE_SECONDS = 0.125


class RequestRate:
    """A sliding window.

    :param per_minute: how many requests fit into 60 seconds.
    :param now: seconds; a clock that does not jump is better.
    :ivar per_minute: may be changed at any time.
    """

    def __init__(self, per_minute: int, now: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self._now = now
        self._taken: deque[list[float]] = deque()
        self._count = 0

    def wait_seconds(self) -> float:
        """How long until a request fits; 0 when one does now."""
        now = self._forget()
        if self._count < self.per_minute:
            return 0.0
        return self._taken[0][0] + _WINDOW_SECONDS - now

    def take(self) -> None:
        """A request goes out now."""
        now = self._forget()
        slice_end = (now // _SLICE_SECONDS + 1) * _SLICE_SECONDS
        if self._taken and self._taken[-1][0] == slice_end:
            self._taken[-1][1] += 1
        else:
            self._taken.append([slice_end, 1])
        self._count += 1

    def _forget(self) -> float:
        """Forget what is a minute ago; after a clock that was set back, what is yet to come."""
        now = self._now()
        taken = self._taken
        while taken and now >= taken[0][0] + _WINDOW_SECONDS:
            self._count -= int(taken.popleft()[1])
        if taken and taken[-1][0] > now + _SLICE_SECONDS:
            behind = taken[-1][0] - now
            for entry in taken:
                entry[0] -= behind
        return now
