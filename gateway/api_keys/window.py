"""How much was used in the last minute or day: a sliding window of a few counters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

#: Counters a window is made of.  Use is forgotten a counter at a time, never too early.
_COUNTERS = 60


class RateWindow:
    """Counts what was used in the last ``seconds``.

    :param limit: what may be used in any such time.
    :param now: a clock, in seconds.
    """

    def __init__(self, limit: int, seconds: float, now: Callable[[], float]) -> None:
        self.limit = limit
        self.seconds = seconds
        self._now = now
        self._counter_seconds = seconds / _COUNTERS
        self._counters: deque[tuple[float, int]] = deque()
        self._total = 0

    @property
    def used(self) -> int:
        """What was used in the last ``seconds``."""
        self._forget()
        return self._total

    def take(self, amount: int) -> None:
        """Count ``amount``."""
        self._forget()
        now = self._now()
        if self._counters and now < self._counters[-1][0] + self._counter_seconds:
            began, count = self._counters[-1]
            self._counters[-1] = (began, count + amount)
        else:
            self._counters.append((now, amount))
        self._total += amount

    def wait_seconds(self) -> float:
        """How long until something may be used again; 0 for now."""
        self._forget()
        over = self._total - self.limit
        if over < 0:
            return 0.0
        now = self._now()
        for began, count in self._counters:
            over -= count
            if over < 0:
                return max(0.0, self._gone_at(began) - now)
        return self.seconds  # a limit of nothing

    def _gone_at(self, began: float) -> float:
        return began + self._counter_seconds + self.seconds

    def _forget(self) -> None:
        now = self._now()
        if self._counters and self._counters[-1][0] > now + self._counter_seconds:
            self._counters.clear()  # the clock was set back; better free than locked for long
            self._total = 0
        while self._counters and self._gone_at(self._counters[0][0]) <= now:
            self._total -= self._counters.popleft()[1]
