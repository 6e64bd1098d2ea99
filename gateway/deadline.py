"""A deadline that is cheap to move: moving it only reads the clock."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Signs of life without progress extend a deadline to at most so many times its length.
SIGN_OF_LIFE_FACTOR = 2


class Deadline:
    """Calls ``expired`` when nothing has happened for a given time.

    Progress restarts the time.  A sign of life does, too, but after :data:`SIGN_OF_LIFE_FACTOR`
    times the length without progress the deadline expires.

    :param clock: the clock.
    :param expired: called once; the deadline is stopped by then.
    """

    def __init__(self, clock: IReactorTime, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._seconds = 0.0
        self._alive = 0.0
        self._latest = 0.0
        self._call: IDelayedCall | None = None

    def start(self, seconds: float) -> None:
        """Start, or start anew, with a length in seconds."""
        self._seconds = seconds
        self._alive = now = self._clock.seconds()
        self._latest = now + SIGN_OF_LIFE_FACTOR * seconds
        call = self._call
        if call is not None:
            if call.active() and call.getTime() <= now + seconds:
                return  # the timer that runs will see how much is left
            self.stop()
        self._call = self._clock.callLater(seconds, self._check)

    def touch(self) -> None:
        """Progress: restart the time."""
        self._alive = now = self._clock.seconds()
        self._latest = now + SIGN_OF_LIFE_FACTOR * self._seconds

    def sign_of_life(self) -> None:
        """Something happened, but no progress."""
        self._alive = self._clock.seconds()

    def stop(self) -> None:
        """Stop waiting."""
        call, self._call = self._call, None
        if call is not None and call.active():
            call.cancel()

    def _check(self) -> None:
        left = min(self._alive + self._seconds, self._latest) - self._clock.seconds()
        if left > 0:
            self._call = self._clock.callLater(left, self._check)
        else:
            self._call = None
            self._expired()
