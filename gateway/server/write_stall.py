"""How long a client may take for what is on its way, either way over the network."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from gateway.deadline import Deadline

#: A client that sends or reads slower than this for ``timeouts.stall_seconds`` is dropped.
SLOWEST_BYTES_PER_SECOND = 10_000


def time_for(size: int, stall_seconds: float) -> float:
    """How many seconds ``size`` bytes may take."""
    return stall_seconds + size / SLOWEST_BYTES_PER_SECOND


class WriteStallTimer:
    """Waits for a client whose buffers are full, and not for ever.

    What fills them is the write under way: a large one may take its time.

    :ivar last_write: bytes of the last write.
    :ivar is_tried: whether the buffers are full.
    """

    __slots__ = ("_clock", "_deadline", "is_tried", "last_write")

    def __init__(self, clock: IReactorTime) -> None:
        self.last_write = 0
        self.is_tried = False
        self._clock = clock
        self._deadline: Deadline | None = None  # few clients of ten thousand ever need one

    def begin(self, stall_seconds: float, lost: Callable[[], None]) -> None:
        """The buffers are full: ``lost`` is called unless the client takes them in time."""
        self.is_tried = True
        self._deadline = Deadline(self._clock, lost)
        self._deadline.start(time_for(self.last_write, stall_seconds))

    def end(self) -> None:
        """The client took everything."""
        self.is_tried = False
        self.stop()

    def stop(self) -> None:
        """Wait no longer: the connection ends."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.stop()
