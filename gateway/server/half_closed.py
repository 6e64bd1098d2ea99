"""A client that sends no more: it may wait for its answer (RFC 9293 §3.6), or be gone.

TCP tells one from the other only where something is sent: what nobody will read is answered by
a reset.  So something is sent now and then that means nothing to a client that reads, and the
socket is asked for a reset, which Twisted does not see while it neither reads nor writes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How often the socket is asked, in seconds.
_LOOK_SECONDS = 0.2

#: When something is sent, in seconds after the client's end.  It is at most so much: HTTP has
#: no more bytes than these to send ahead of an answer's head.
_PROBES = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class HalfClosedSocket:
    """Watches one connection whose client sends no more, until it is stopped.

    :param transport: of a socket.
    :param probe: sends something that means nothing.
    :param gone: called once, when the client has gone.
    """

    def __init__(
        self,
        clock: IReactorTime,
        transport: Any,
        probe: Callable[[], None],
        gone: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._probe = probe
        self._gone = gone
        self._began = clock.seconds()
        self._probes = iter(_PROBES)
        self._next_probe: float | None = next(self._probes)
        self._looking: IDelayedCall | None = None
        self._look()

    def stop(self) -> None:
        """The connection ends."""
        looking, self._looking = self._looking, None
        if looking is not None and looking.active():
            looking.cancel()

    def _look(self) -> None:
        if self._was_reset():
            self._looking = None
            self._gone()
            return
        self._looking = self._clock.callLater(_LOOK_SECONDS, self._look)
        due = self._next_probe
        if due is not None and self._clock.seconds() - self._began >= due:
            self._next_probe = next(self._probes, None)
            self._probe()

    def _was_reset(self) -> bool:
        with suppress(OSError):
            return bool(self._transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return True
