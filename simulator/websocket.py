"""Serves the WebSocket mode of the Responses API: upgrades, frames, pings, closes (protocol.md §2).

A simulator's HTTP connection becomes a WebSocket, by Autobahn, once its upgrade was admitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionRequest
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET, Request
from zope.interface import implementer

from simulator.accounts import SimulatedAccount
from simulator.faults import WireManner
from simulator.request_log import Outcome, SocketRecord
from simulator.simulator import Exchange, Simulator
from simulator.stream import AnswerStream, Reset
from simulator.validation import Refusal, bad_request
from simulator.websocket_dialects import offered_subprotocols, upgrade_headers
from simulator.websocket_session import SocketSession, SocketUpgrade

#: The headers that Autobahn gets; the log has all of them.
_OF_HANDSHAKE = ("host", "upgrade", "connection")
#: A client may take so many seconds to answer a Close frame.
_CLOSE_SECONDS = 10
_TEXT, _CONTINUATION = 0x1, 0x0
_KEEPALIVE_LOST = 1011, b"keepalive ping timeout"


def is_upgrade(request: Request) -> bool:
    """Whether a request asks for a WebSocket."""
    wanted = request.getHeader(b"upgrade") or b""
    return bool(request.method == b"GET" and wanted.lower() == b"websocket")


@implementer(IPushProducer)
class SimulatorSocket(WebSocketServerProtocol):
    """One WebSocket of a client; a ``SocketWire``.

    :ivar upgrade: set before it is connected.
    """

    factory: SocketFactory
    transport: Any
    upgrade: SocketUpgrade
    headers: dict[str, str]
    session: SocketSession | None = None
    _steps: Iterator[Any] = iter(())
    _manner = WireManner()
    _is_deaf = False
    _reads_again: IDelayedCall | None = None
    _ping: IDelayedCall | None = None
    _pong: IDelayedCall | None = None

    # --- the handshake ---------------------------------------------------------------

    def take_over(self, request: Request, steps: Iterator[Any]) -> None:
        """Take the connection of an HTTP request.

        :param steps: what is done on the open socket before its first message.
        """
        self._steps = steps
        channel: Any = request.channel
        transport, channel.transport = channel.transport, None
        channel.setTimeout(None)
        transport.unregisterProducer()
        transport.protocol = self
        channel.site.channels.discard(channel)
        self.makeConnection(transport)
        transport.resumeProducing()
        lines = [request.method + b" " + request.uri + b" HTTP/1.1"]
        for name, values in request.requestHeaders.getAllRawHeaders():
            known = name.lower().decode("latin-1")
            if known in _OF_HANDSHAKE or known.startswith("sec-websocket-"):
                lines.append(name + b": " + b",".join(values))
        self.dataReceived(b"\r\n".join([*lines, b"", b""]))

    def onConnect(self, _request: ConnectionRequest) -> tuple[str | None, dict[str, str]]:
        """Answer the handshake with the account's headers and subprotocol."""
        wanted = self.upgrade.engine.account.websocket.subprotocol
        offered = offered_subprotocols(self.upgrade.entry.headers)
        return wanted if wanted in offered else None, self.headers

    def onOpen(self) -> None:
        """Begin the session."""
        self.registerProducer(self, True)
        session = self.session = SocketSession(self.upgrade, self)
        self.factory.simulator.sockets.append(session.record)
        self._ping_later()
        session.play(self._steps)

    # --- messages in -----------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._is_deaf:
            return
        rate = self._manner.read_bytes_per_second
        if rate and self._reads_again is None:
            self.transport.pauseProducing()
            later = self.factory.simulator.clock.callLater
            self._reads_again = later(len(data) / rate, self._read_again)
        self._dataReceived(data)

    def _read_again(self) -> None:
        self._reads_again = None
        self.transport.resumeProducing()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message arrived."""
        if self.session is None:
            return
        if isBinary:
            self.session.refuse(bad_request("Send text messages.", None))
        else:
            self.session.message(payload)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping, whatever else goes on."""
        self.upgrade.record.pings += 1
        if not self._is_deaf:
            super().onPing(payload)

    # --- pings out -------------------------------------------------------------------

    def _ping_later(self) -> None:
        seconds = self.upgrade.engine.account.websocket.ping_seconds
        if seconds is not None:
            self._ping = self.factory.simulator.clock.callLater(seconds, self._send_ping)

    def _send_ping(self) -> None:
        self._ping_later()
        if self._is_deaf:
            return
        self.sendPing(b"keepalive")
        if self._pong is None:
            seconds = self.upgrade.engine.account.websocket.pong_seconds
            self._pong = self.factory.simulator.clock.callLater(seconds, self._pong_missing)

    def onPong(self, _payload: bytes) -> None:
        """The client is alive."""
        _cancel(self._pong)
        self._pong = None

    def _pong_missing(self) -> None:
        self._pong = None
        code, reason = _KEEPALIVE_LOST
        self.close(code, reason.decode())

    # --- what is sent ----------------------------------------------------------------

    def send(self, payload: bytes) -> None:
        """Send one text message.

        Not by ``sendMessage``: that has the bound of what is received for what is sent, too.
        """
        if self.state != self.STATE_OPEN or self._is_deaf:
            return
        size = self._manner.fragment_bytes or len(payload) or 1
        for start in range(0, len(payload) or 1, size):
            opcode = _CONTINUATION if start else _TEXT
            piece = payload[start : start + size]
            self.sendFrame(opcode, piece, fin=start + size >= len(payload))

    def send_raw(self, data: bytes) -> None:
        """Send bytes in no frame."""
        if self.state == self.STATE_OPEN and not self._is_deaf:
            self.transport.write(data)

    def set_manner(self, manner: WireManner) -> None:
        """Read and write like this from now on."""
        self._manner = manner

    def close(self, code: int | None, reason: str = "") -> None:
        """Send a Close frame; the client has to answer it."""
        if self.state == self.STATE_OPEN and not self._is_deaf:
            self._ended_by_service(code)
            # Not sendClose: that does not accept the codes of services.
            self.sendCloseFrame(code, reason.encode() if code is not None else None)
            self._end_session()

    def lose(self) -> None:
        """Close without a Close frame once everything is sent."""
        self._ended_by_service(None)
        self._end_session()
        self.unregisterProducer()
        self.transport.loseConnection()

    def reset(self) -> None:
        """Reset the connection."""
        self._ended_by_service(None)
        self._end_session()
        Reset(cast(Connection, self.transport))

    def go_deaf(self) -> None:
        """Neither read nor write any more."""
        self._is_deaf = True
        self._end_session()
        _cancel(self._reads_again)
        self._reads_again = None
        self.transport.pauseProducing()

    def _ended_by_service(self, code: int | None) -> None:
        record = self.upgrade.record
        if not record.closed_by_service:
            record.closed_by_service, record.close_code = True, code

    def pauseProducing(self) -> None:
        """The write buffer is full."""
        if self.session is not None:
            self.session.pause()

    def resumeProducing(self) -> None:
        """The write buffer is empty."""
        if self.session is not None:
            self.session.resume()

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""

    # --- the end ---------------------------------------------------------------------

    def onCloseFrame(self, code: int, reasonRaw: bytes) -> bool | None:
        """The client closes, or answers a Close frame."""
        record = self.upgrade.record
        if not record.closed_by_service and record.close_code is None:
            record.close_code = code
        self._end_session()
        return super().onCloseFrame(code, reasonRaw)

    def onMessageFrameBegin(self, length: int) -> None:
        """A frame begins; one that makes its message too long ends the socket."""
        super().onMessageFrameBegin(length)
        if self.wasMaxMessagePayloadSizeExceeded:
            self._ended_by_service(self.CLOSE_STATUS_CODE_MESSAGE_TOO_BIG)
            self._end_session()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The socket is gone."""
        for call in (self._ping, self._pong, self._reads_again):
            _cancel(call)
        self._ping = self._pong = self._reads_again = None
        self.factory.open.discard(self)
        self.upgrade.record.closed_at = self.factory.simulator.clock.seconds()
        self._end_session()
        super().connectionLost(reason)

    def _end_session(self) -> None:
        """Stop what runs: nothing is sent any more, and no message is read."""
        session, self.session = self.session, None
        if session is not None:
            session.closed()


def _cancel(call: IDelayedCall | None) -> None:
    if call is not None and call.active():
        call.cancel()


class SocketFactory(WebSocketServerFactory):
    """Makes the WebSockets of a simulator.

    :ivar open: those that are connected.
    """

    protocol: Any = SimulatorSocket

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(server="simulator")
        self.simulator = simulator
        self.open: set[SimulatorSocket] = set()
        self._count = 0
        self.setProtocolOptions(
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=_CLOSE_SECONDS,
            tcpNoDelay=True,
        )

    def check_room(self, account: SimulatedAccount) -> None:
        """Check that an account may have one more socket.

        :raises Refusal: when it has as many as it may.
        """
        held = sum(each.upgrade.engine.account is account for each in self.open)
        most = account.websocket.max_sockets
        if most is not None and held >= most:
            raise Refusal(403, "Forbidden")

    def upgrade(self, exchange: Exchange, request: Request) -> int:
        """Answer an admitted upgrade; its fault may delay or prevent the 101."""
        entry, account = exchange.entry, exchange.engine.account
        socket: Any = self.buildProtocol(request.getClientAddress())
        self._count += 1
        clock = self.simulator.clock
        record = SocketRecord(self._count, account.name, entry.headers, clock.seconds())
        socket.upgrade = SocketUpgrade(self.simulator, exchange.engine, entry, record)
        socket.headers = upgrade_headers(account, exchange.fault)
        socket.maxMessagePayloadSize = account.websocket.max_message_bytes

        def accept(steps: Iterator[Any]) -> None:
            record.opened_at = clock.seconds()
            entry.status, entry.outcome, entry.socket = 101, "completed", record
            self.open.add(socket)
            socket.take_over(request, steps)

        def ended(outcome: Outcome | None) -> None:
            self.simulator.streams.discard(stream)
            if entry.outcome == "running":
                entry.outcome = outcome or "ended"

        steps = exchange.fault.rewrite(iter([{"type": "upgrade"}]))
        stream = _UpgradeStream(request, steps, clock, ended, accept)
        self.simulator.streams.add(stream)
        stream.start()
        return NOT_DONE_YET

    def abort(self) -> None:
        """Reset all sockets: the server stops."""
        for socket in list(self.open):
            socket.transport.abortConnection()


class _UpgradeStream(AnswerStream):
    """What happens before the 101.

    :param accept: called for the 101, with the steps that follow it.
    """

    def __init__(
        self,
        request: Request,
        steps: Iterator[Any],
        clock: Any,
        ended: Callable[[Outcome | None], None],
        accept: Callable[[Iterator[Any]], None],
    ) -> None:
        super().__init__(request, steps, clock, 0.0, ended)
        self._accept = accept

    def _write(self, step: Any) -> None:
        if isinstance(step, dict):
            self._close("completed")
            self._accept(self._steps)
        else:
            super()._write(step)


def check_path(exchange_path: str, simulator: Simulator, path: str) -> None:
    """Check that an upgrade goes to the path of an account's WebSocket mode.

    :raises Refusal: 404 when it does not.
    """
    if not any(exchange_path == prefix + path for prefix in simulator.prefixes):
        raise Refusal(404, f"Invalid URL (GET {exchange_path})")
