"""A deadline that is cheap to move: moving it reads the clock, nothing more."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Deadline:
    """Calls ``expired`` when nothing happened for a while.

    :param clock: where time comes from.
    :param expired: called once; the deadline is stopped then.
    """

    def __init__(self, clock: IReactorTime, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._seconds = 0.0
        self._touched = 0.0
        self._call: IDelayedCall | None = None

    def start(self, seconds: float) -> None:
        """(Re)start with a new length, in seconds."""
        self.stop()
        self._seconds = seconds
        self._touched = self._clock.seconds()
        self._call = self._clock.callLater(seconds, self._look)

    def touch(self) -> None:
        """Something happened: the whole time runs anew."""
        self._touched = self._clock.seconds()

    def stop(self) -> None:
        """No longer wait."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _look(self) -> None:
        left = self._touched + self._seconds - self._clock.seconds()
        if left > 0:
            self._call = self._clock.callLater(left, self._look)
        else:
            self._call = None
            self._expired()
