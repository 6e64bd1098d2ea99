"""Autobahn's protocol: one client connection, and what is sent and read on it.

Refusals of the upgrade are HTTP answers in the API's error shape (protocol.md §2).  Each text
message is one JSON object; each event goes out as one text message (§3, §4).
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.compat import websocket_data_received
from gateway.protocol.errors import ApiError
from gateway.server.connections import HalfClosedSocket, WriteStallTimer
from gateway.server.deflate import is_readable
from gateway.server.http_request import headers_of, refusal
from gateway.server.session import ResponsesSession
from gateway.server.websocket_frames import text_frames

if TYPE_CHECKING:
    from gateway.server.websocket_site import ResponsesFactory

#: How long the last bytes may take to reach a client whose connection is closed.
CLOSE_SECONDS = 2.0

_PONG = 10

#: What of a head Autobahn is shown; see :meth:`ResponsesProtocol.processHandshake`.
_ASCII = bytes(
    code if code < 0x80 and code not in b"\v\f\x1c\x1d\x1e" else 0x3F for code in range(256)
)

_log = Logger(namespace="gateway.websocket")


@implementer(IPushProducer, IHalfCloseableProtocol)
class ResponsesProtocol(WebSocketServerProtocol):
    """One client connection; the ``Channel`` of its session."""

    factory: ResponsesFactory
    transport: Any
    session: ResponsesSession | None = None
    _stall: WriteStallTimer
    _headers: dict[str, str]
    _refusal: ApiError | None = None
    _unwanted: ApiError | None = None
    _kept_bytes = 0
    _is_producer = False
    _abort: IDelayedCall | None = None
    _last_ping: bytes | None = None
    _half_closed: HalfClosedSocket | None = None

    # --- handshake -------------------------------------------------------------------

    def connectionMade(self) -> None:
        """A client that says nothing may stay (§10.9)."""
        super().connectionMade()
        self._stall = WriteStallTimer(self.factory.reactor)

    def processHandshake(self) -> None:
        """Read the headers from the bytes, and show Autobahn nothing but ASCII.

        It decodes them, and takes letters for ends of lines or spaces of which UTF-8 has a
        byte 0x85 or 0xA0.
        """
        end = self.data.find(b"\r\n\r\n")
        if end >= 0:
            head = self.data[:end]
            self._headers = headers_of(head)
            self.data = head.translate(_ASCII) + self.data[end:]
        super().processHandshake()

    def onConnect(self, request: ConnectionRequest) -> None:
        """Let the client in, or answer with an error.

        Offers of extensions that cannot be used are declined, never a reason to refuse.
        """
        if not self.factory.compresses:
            self.websocket_extensions = []
        self.websocket_extensions = [e for e in self.websocket_extensions if is_readable(*e)]
        try:
            self.session = self.factory.admit(self, request, self._headers)
        except ApiError as error:
            self._refusal = error
            raise ConnectionDeny(error.status, "refused") from None

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Refuse the upgrade by an HTTP answer that says why."""
        error = self._refusal
        if any(name.lower() == "sec-websocket-version" for name, _ in responseHeaders or ()):
            code = HTTPStatus.UPGRADE_REQUIRED
        if error is None:
            error = ApiError(code, "invalid_request_error", reason)
        headers = {}
        if error.status == HTTPStatus.UPGRADE_REQUIRED:
            headers = {"upgrade": "websocket", "sec-websocket-version": "13"}
        self.sendData(refusal(error, headers))
        self.wasClean = True  # or Autobahn warns of every stranger, without saying why
        self.dropConnection(abort=False)

    def onOpen(self) -> None:
        """The handshake's strings are not needed any more; ten thousand of them are."""
        self.http_request_data = b""
        self.http_response_data = ""
        self.http_headers = self._headers = {}
        self._is_producer = True
        self.registerProducer(self, True)

    # --- messages in -----------------------------------------------------------------

    dataReceived = websocket_data_received

    def onMessageFrameBegin(self, length: int) -> None:
        """Count the message; above the bound it is read on but not kept."""
        self.frame_length = length
        self.frame_data = []
        self.message_data_total_length += length
        if self.message_data_total_length > self.factory.max_message_bytes:
            self._refuse_length()

    def onMessageFrameData(self, payload: bytes) -> None:
        """Keep a piece; compressed ones may be longer than their frame said."""
        if self._unwanted is None:
            self._kept_bytes += len(payload)
            if self._kept_bytes > self.factory.max_message_bytes:
                self._refuse_length()
                return
            self.frame_data.append(payload)
            self.factory.incoming.keep(self, len(payload))

    def _refuse_length(self) -> None:
        self.give_up(
            ApiError.invalid_request(
                f"The message is longer than {self.factory.max_message_bytes} bytes.",
                None,
                "message_too_long",
            )
        )

    @property
    def tenant(self) -> str:
        """See ``Sender``."""
        return "" if self.session is None else self.session.client.tenant

    def give_up(self, error: ApiError) -> None:
        """See ``Sender``; the message is answered when it ends."""
        self._unwanted = error
        self.frame_data, self.message_data = [], []
        self.factory.incoming.leave(self)

    def onMessageEnd(self) -> None:
        """A whole message: text goes to the session, anything else is answered (§10.13)."""
        pieces, self.message_data = self.message_data, []
        unwanted, self._unwanted = self._unwanted, None
        self._kept_bytes = 0
        self.factory.incoming.leave(self)
        session = self.session
        if self.failedByMe or session is None:
            return
        try:
            if unwanted is not None:
                session.refuse(unwanted)
            elif self.message_is_binary:
                session.refuse(
                    ApiError.invalid_request("Send text messages; binary ones are not read.")
                )
            else:
                session.message(b"".join(pieces))
        except Exception:
            _log.failure("a message of {peer} broke the session", peer=self.peer)
            session.refuse(ApiError.gateway_failed())

    def processControlFrame(self) -> bool:
        """Pass over pongs that nobody asked for (RFC 6455 §5.5.3); Autobahn logs each of them."""
        payload = b"".join(self.control_frame_data)
        if self.current_frame.opcode == _PONG and payload != self.autoPingPending:
            self.control_frame_data = []
            return True
        return bool(super().processControlFrame())

    def onPing(self, payload: bytes) -> None:
        """Answer; to a client that reads nothing only the last one, later (RFC 6455 §5.5.3)."""
        if self._stall.is_stalled:
            self._last_ping = payload
        else:
            super().onPing(payload)

    # --- events out ------------------------------------------------------------------

    def send(self, payloads: Sequence[bytes]) -> None:
        """Write all events at once.

        Frames are made here and not by ``sendMessage``, which costs eight times as much;
        they are never compressed, which permessage-deflate leaves to each message.
        """
        if self.state == self.STATE_OPEN:
            frames = text_frames(payloads)
            self._stall.last_write = len(frames)
            self.transport.write(frames)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Autobahn's own frames and answers, without its debug line."""
        self.transport.write(data)

    def close(self, code: int, reason: str) -> None:
        """Close after what was written.

        ``sendClose`` refuses the codes that servers are meant to use.
        """
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode(), isReply=False)
            if self._half_closed is not None:  # no Close frame will answer this one
                self.wasClean = True
                self.dropConnection()

    # --- back-pressure ---------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client's buffers are full.  Comes again with every write until they are not."""
        if not self._stall.is_stalled and self.session is not None:
            self._stall.begin(self.factory.stall_seconds, self._client_stalled)
            self.session.pause()

    def resumeProducing(self) -> None:
        """The client took everything."""
        if self._stall.is_stalled:
            self._stall.end()
            ping, self._last_ping = self._last_ping, None
            if ping is not None:
                super().onPing(ping)
            if self.session is not None:
                self.session.resume()

    def stopProducing(self) -> None:
        """The transport is gone; ``onClose`` follows."""

    def _client_stalled(self) -> None:
        _log.warn("{peer} reads too slowly and is dropped", peer=self.peer)
        self._leave()
        self.transport.abortConnection()

    # --- a client that sends no more -------------------------------------------------

    def readConnectionLost(self) -> None:
        """The client has ended its side.  Its turns are answered, unless it is gone."""
        if self.session is None or self.state != self.STATE_OPEN:
            self.transport.loseConnection()
        elif self._half_closed is None:
            self._half_closed = HalfClosedSocket(
                self.factory.reactor, self.transport, self.sendPing, self.transport.abortConnection
            )
            self.session.hears_no_more()

    def writeConnectionLost(self) -> None:
        """We never end our side alone."""

    # --- the end ---------------------------------------------------------------------

    def drain(self) -> None:
        """See ``Guest``."""
        if self.session is not None:
            self.session.drain()

    def abandon(self) -> None:
        """See ``Guest``."""
        if self.session is not None:
            self.session.abandon()

    def dropConnection(self, abort: bool = False) -> None:
        """Close, and do not wait for ever for a client that takes no more bytes."""
        self._leave()
        super().dropConnection(abort)
        if self._abort is None:
            self._abort = self.factory.reactor.callLater(
                CLOSE_SECONDS, self.transport.abortConnection
            )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The socket is gone."""
        abort, self._abort = self._abort, None
        if abort is not None and abort.active():
            abort.cancel()
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is over, however it ended (§10.15)."""
        self._leave()

    def _leave(self) -> None:
        """The session ends here: nothing of it may run on behind a closing socket.

        The transport would not close with a producer.
        """
        self.factory.incoming.leave(self)
        self._stall.stop()
        if self._half_closed is not None:
            self._half_closed.stop()
        session, self.session = self.session, None
        if session is not None:
            if self._is_producer:
                self.unregisterProducer()
            session.closed()
            self.factory.left(self)
