"""A deadline that is cheap to move: moving it reads the clock, nothing more."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How many times its time a deadline is moved by signs of life alone.
PATIENCE = 2


class Deadline:
    """Calls ``expired`` when nothing happened for a while.

    A sign of life is less than what is waited for: it gives the whole time anew, but only so
    often that not more than :data:`PATIENCE` times the time passes without anything else.

    :param clock: where time comes from.
    :param expired: called once; the deadline is stopped then.
    """

    def __init__(self, clock: IReactorTime, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._seconds = 0.0
        self._alive = 0.0
        self._latest = 0.0
        self._call: IDelayedCall | None = None

    def start(self, seconds: float) -> None:
        """(Re)start with a new length, in seconds."""
        self.stop()
        self._seconds = seconds
        self.touch()
        self._call = self._clock.callLater(seconds, self._look)

    def touch(self) -> None:
        """What was waited for happened: the whole time runs anew."""
        self._alive = now = self._clock.seconds()
        self._latest = now + PATIENCE * self._seconds

    def sign_of_life(self) -> None:
        """Something happened, though not what is waited for."""
        self._alive = self._clock.seconds()

    def stop(self) -> None:
        """No longer wait."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _look(self) -> None:
        left = min(self._alive + self._seconds, self._latest) - self._clock.seconds()
        if left > 0:
            self._call = self._clock.callLater(left, self._look)
        else:
            self._call = None
            self._expired()
