"""How late the event loop is: what every stream waits for while something takes long."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gateway.metrics.histogram import Histogram, Recent

#: Between two looks, in seconds.
SAMPLE_SECONDS = 0.25


class LoopLag:
    """Asks to be called and looks how much later than that it was.

    :param reactor: calls.
    :param now: seconds that never jump.
    :ivar lag: in milliseconds.
    """

    def __init__(
        self, reactor: IReactorTime, marks: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.lag = Histogram()
        self.recent = Recent(self.lag, marks)
        self._reactor = reactor
        self._now = now
        self._due = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to look."""
        if self._call is None:
            self._ask()

    def stop(self) -> None:
        """Look no more."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _ask(self) -> None:
        self._due = self._now() + SAMPLE_SECONDS
        self._call = self._reactor.callLater(SAMPLE_SECONDS, self._look)

    def _look(self) -> None:
        self.lag.add(max(0.0, self._now() - self._due) * 1000)
        self._ask()
