"""The socket of a steered response, until the one begins that its service lets follow by itself.

Nothing else may run on the socket meanwhile.  What comes first for the new response is kept for its
exchange (protocol.md §3.6).
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from gateway.deadline import Deadline
from gateway.protocol.controls import is_answer
from gateway.protocol.errors import SOCKET_LOST, ApiError
from gateway.protocol.events import ERRORS
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.websocket_messages import is_out_of_band, read_message
from gateway.upstream.interface import EventReceiver, SuccessorWatcher, UpstreamExchange
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_client import ClosedSocket
from gateway.upstream.websocket_counts import SocketEnd
from gateway.upstream.websocket_pool import PooledSocket, SocketReceiver

#: What is kept before the socket is not read any more, in bytes.
_MAX_KEPT_BYTES = 1_048_576

MakeExchange = Callable[
    [WebSocketAccess, UpstreamTurn, EventReceiver, "SocketSuccessor"], UpstreamExchange
]


class SuccessorState(enum.Enum):
    """The states of the wait."""

    READY = "to be started"
    WAITING = "the first event"
    BEGUN = "its exchange"
    OVER = "nothing"


_State = SuccessorState

TRANSITIONS = {
    _State.READY: {_State.WAITING, _State.OVER},
    _State.WAITING: {_State.BEGUN, _State.OVER},
    _State.BEGUN: {_State.OVER},
    _State.OVER: set(),
}


class SocketSuccessor(SocketReceiver):
    """The wait on one socket, which stays in use.

    :param payloads: what came behind the end of the response before.
    :param holds_latest: whether only this socket can continue that response.
    :param make: makes the exchange of the next response, from its turn.
    """

    follows = True

    def __init__(
        self,
        access: WebSocketAccess,
        socket: PooledSocket,
        payloads: list[bytes],
        holds_latest: bool,
        make: MakeExchange,
    ) -> None:
        self._access = access
        self._make = make
        self._socket: PooledSocket | None = socket
        self._holds_latest = holds_latest
        self._watcher: SuccessorWatcher | None = None
        self._state = _State.READY
        self._paused = False
        self._is_full = False
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self._lost: ClosedSocket | None = None
        self._deadline = Deadline(access.reactor, self._timed_out)
        socket.receiver = self
        self._keep(payloads)

    # --- commands --------------------------------------------------------------------

    def start(self, watcher: SuccessorWatcher) -> None:
        """Tell the watcher what comes; it may be called before this returns."""
        self._watcher = watcher
        self._enter(_State.WAITING)
        self._deadline.start(self._access.http.timeouts.first_byte)
        self._flush()

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> UpstreamExchange:
        """The exchange of the response that has begun; it takes what was kept when it starts."""
        return self._make(self._access, turn, receiver, self)

    def take(self) -> tuple[PooledSocket | None, list[bytes]]:
        """Hand the socket over, if it is still there, and what came for the response."""
        socket, kept = self._socket, self._kept
        self._stop()
        if socket is not None and self._is_full:
            socket.socket.resume()
        return socket, kept

    def finish(self) -> None:
        """No response follows: the socket is free."""
        socket, kept = self._socket, self._kept
        if self._state is _State.OVER:
            return
        self._stop()
        if socket is not None:
            socket.finish(self._holds_latest)
            if kept:
                socket.messages_behind(kept)

    def cancel(self) -> None:
        """Give it up, and with it the socket."""
        self._drop(SocketEnd.CANCELLED)

    def pause(self) -> None:
        """Keep what comes."""
        self._paused = True

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._state is _State.WAITING:
            self._flush()

    # --- what comes ------------------------------------------------------------------

    def socket_messages(self, payloads: list[bytes]) -> list[bytes]:
        """Take messages."""
        self._keep(payloads)
        if self._state is _State.WAITING and not self._paused:
            self._flush()
        return []

    def socket_closed(self, closed: ClosedSocket) -> None:
        """The socket is lost; what was kept of a response that has begun is still of use."""
        self._socket = None
        self._lost = closed
        if self._state is _State.WAITING:
            self._flush()

    def _keep(self, payloads: list[bytes]) -> None:
        self._kept += payloads
        self._kept_bytes += sum(map(len, payloads))
        if self._kept_bytes > _MAX_KEPT_BYTES and not self._is_full and self._socket is not None:
            self._is_full = True
            self._socket.socket.pause()

    def _flush(self) -> None:
        """Read what was kept, up to the first event of the next response."""
        watcher = self._watcher
        assert watcher is not None
        passed: list[bytes] = []
        while self._kept and self._state is _State.WAITING and not self._paused:
            event = read_message(self._kept[0])
            if event is None:
                self._kept.pop(0)
            elif is_answer(event[0]):
                self._kept.pop(0)
                watcher.successor_answered(*event)
            elif is_out_of_band(event[0]):
                passed.append(self._kept.pop(0))  # limits and metadata come before the beginning
            elif event[0] in ERRORS:
                self._fail("The upstream refused the response that was to follow.")
            else:
                self._enter(_State.BEGUN)
                self._deadline.stop()
                self._kept[:0] = passed
                watcher.successor_begins()
                return
        if self._state is not _State.WAITING:
            return
        if self._paused:
            self._kept[:0] = passed
        else:
            self._kept_bytes = 0
            if self._is_full and self._socket is not None:
                self._is_full = False
                self._socket.socket.resume()
        if self._lost is not None:
            self._fail("The upstream's WebSocket closed before the next response had begun.")

    # --- the end ---------------------------------------------------------------------

    def _timed_out(self) -> None:
        waited = self._access.http.timeouts.first_byte
        self._fail(f"The upstream began no response within {waited:g} seconds.")

    def _fail(self, message: str) -> None:
        watcher = self._watcher
        self._drop(SocketEnd.FAILED)
        if watcher is not None:
            watcher.successor_lost(ApiError.bad_gateway(message, SOCKET_LOST))

    def _drop(self, why: SocketEnd) -> None:
        socket = self._socket
        if self._state is not _State.OVER:
            self._stop()
            if socket is not None:
                socket.drop(why)

    def _stop(self) -> None:
        self._enter(_State.OVER)
        self._deadline.stop()
        self._socket = self._watcher = None
        self._kept = []

    def _enter(self, state: SuccessorState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"a wait cannot go from {self._state} to {state}")
        self._state = state
