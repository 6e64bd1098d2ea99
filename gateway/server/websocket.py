"""Clients' WebSocket connections, by Autobahn (protocol.md §2 to §4).

``GET /v1/responses`` or ``/backend-api/codex/responses`` with an upgrade opens one.  Refusals of
the upgrade are HTTP answers in the API's error shape.  Each text message of a client is one JSON
object; each event goes out as one text message.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import (
    PERMESSAGE_COMPRESSION_EXTENSION,
    PerMessageDeflateOffer,
    PerMessageDeflateOfferAccept,
)
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.api_keys.keys import KeyRing
from gateway.compat import is_between_frames, websocket_data_received, write_at_once
from gateway.config import Settings
from gateway.protocol.errors import ApiError
from gateway.protocol.headers import forwardable
from gateway.server.connections import ConnectionLimiter, HalfClosedSocket, WriteStallTimer
from gateway.server.http_request import headers_of, refusal
from gateway.server.routes import PREFIXES, nothing_served, parts_of
from gateway.server.session import ClientIdentity, ResponsesSession
from gateway.server.websocket_frames import small_message, text_frames
from gateway.turn.context import MetadataFields, TurnServices

PATHS = tuple(f"{prefix}/responses" for prefix in PREFIXES)

_PARTS = frozenset(map(parts_of, PATHS))

#: A client that sends this header gets the account and the route of each turn.
EXPLAIN = "x-gateway-explain"

#: Codex clients that send this header echo turn states.
_CODEX = "x-codex-turn-metadata"

#: Interval of pings, in seconds.  They keep connections open in network devices; clients need
#: not answer them.
_PING_SECONDS = 30

#: How long the last bytes may take to reach the client after the close, in seconds.
_CLOSE_SECONDS = 2.0

_PONG = 10

#: Translates a head to what Autobahn gets; see :meth:`ResponsesProtocol.processHandshake`.
_ASCII = bytes(
    code if code < 0x80 and code not in b"\v\f\x1c\x1d\x1e" else 0x3F for code in range(256)
)

_log = Logger(namespace="gateway.websocket")


@implementer(IPushProducer, IHalfCloseableProtocol)
class ResponsesProtocol(WebSocketServerProtocol):
    """One client connection; a ``Channel``, an ``IngressSource`` and a ``Drainable``."""

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
        """Begin the handshake; after it, a silent client is not disconnected."""
        super().connectionMade()
        self._stall = WriteStallTimer(self.factory.reactor)

    def processHandshake(self) -> None:
        """Read the headers from the raw bytes, and give Autobahn only ASCII.

        Autobahn decodes the head, and treats letters with a byte 0x85 or 0xA0 in UTF-8 as line
        ends or spaces.
        """
        end = self.data.find(b"\r\n\r\n")
        if end >= 0:
            head = self.data[:end]
            self._headers = headers_of(head)
            self.data = head.translate(_ASCII) + self.data[end:]
        super().processHandshake()

    def onConnect(self, request: ConnectionRequest) -> None:
        """Admit the client, or answer with an error.

        Offers of extensions that cannot be used are declined, never a reason to refuse.
        """
        if not self.factory.compresses:
            self.websocket_extensions = []
        self.websocket_extensions = [e for e in self.websocket_extensions if _is_readable(*e)]
        try:
            self.session = self.factory.admit(self, request, self._headers)
        except ApiError as error:
            self._refusal = error
            raise ConnectionDeny(error.status, "refused") from None

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        """Refuse the upgrade with an HTTP answer in the API's error shape."""
        error = self._refusal
        if any(name.lower() == "sec-websocket-version" for name, _ in responseHeaders or ()):
            code = HTTPStatus.UPGRADE_REQUIRED
        if error is None:
            error = ApiError(code, "invalid_request_error", reason)
        headers = {}
        if error.status == HTTPStatus.UPGRADE_REQUIRED:
            headers = {"upgrade": "websocket", "sec-websocket-version": "13"}
        self.sendData(refusal(error, headers))
        self.wasClean = True  # or Autobahn logs a warning for each, without the reason
        self.dropConnection(abort=False)

    def onOpen(self) -> None:
        """Drop the handshake's strings, which would cost memory for every connection."""
        self.http_request_data = b""
        self.http_response_data = ""
        self.http_headers = self._headers = {}
        self._is_producer = True
        self.registerProducer(self, True)
        if self.session is not None:
            self.session.grow_old()

    # --- messages in -----------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Read a small message that came whole, the usual one; Autobahn gets everything else."""
        if self.state == self.STATE_OPEN and is_between_frames(self):
            message = small_message(data)
            if message is not None and len(data) <= self.factory.max_message_bytes:
                self._read(message)
                return
        websocket_data_received(self, data)

    def onMessageFrameBegin(self, length: int) -> None:
        """Count the message's length; above the bound it is read but not kept."""
        self.frame_length = length
        self.frame_data = []
        self.message_data_total_length += length
        if self.message_data_total_length > self.factory.max_message_bytes:
            self._refuse_length()

    def onMessageFrameData(self, payload: bytes) -> None:
        """Keep a piece; a compressed one may be longer than its frame."""
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
        """The name of the client's key."""
        return "" if self.session is None else self.session.client.tenant

    def give_up(self, error: ApiError) -> None:
        """Discard the message; the error is sent when it ends."""
        self._unwanted = error
        self.frame_data, self.message_data = [], []
        self.factory.incoming.leave(self)

    def onMessageEnd(self) -> None:
        """A whole message: text goes to the session, anything else is answered."""
        pieces, self.message_data = self.message_data, []
        unwanted, self._unwanted = self._unwanted, None
        self._kept_bytes = 0
        self.factory.incoming.leave(self)
        if unwanted is None and self.message_is_binary:
            unwanted = ApiError.invalid_request("Send text messages; binary ones are not read.")
        self._read(b"".join(pieces) if unwanted is None else unwanted)

    def _read(self, message: bytes | ApiError) -> None:
        """Give the session a message, or why there is none."""
        session = self.session
        if self.failedByMe or session is None:
            return
        try:
            if isinstance(message, ApiError):
                session.refuse(message)
            else:
                session.message(message)
        except Exception:
            _log.failure("a message of {peer} broke the session", peer=self.peer)
            session.refuse(ApiError.gateway_failed())

    def processControlFrame(self) -> bool:
        """Skip unsolicited pongs (RFC 6455 §5.5.3), because Autobahn logs each of them."""
        payload = b"".join(self.control_frame_data)
        if self.current_frame.opcode == _PONG and payload != self.autoPingPending:
            self.control_frame_data = []
            return True
        return bool(super().processControlFrame())

    def onPing(self, payload: bytes) -> None:
        """Answer; while the client does not read, only the last ping is kept (RFC 6455 §5.5.3)."""
        if self._stall.is_stalled:
            self._last_ping = payload
        else:
            super().onPing(payload)

    # --- events out ------------------------------------------------------------------

    def send(self, payloads: Sequence[bytes]) -> None:
        """Write all events at once.

        Frames are made here, because ``sendMessage`` costs eight times as much.  They are never
        compressed; permessage-deflate allows that for each message.
        """
        if self.state == self.STATE_OPEN:
            frames = text_frames(payloads)
            self._stall.last_write = len(frames)
            write_at_once(self.transport, frames)

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Autobahn's own frames and answers, without its debug line."""
        self.transport.write(data)

    def close(self, code: int, reason: str) -> None:
        """Close after what was written.

        ``sendClose`` does not accept the codes that are meant for servers.
        """
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code=code, reasonUtf8=reason.encode(), isReply=False)
            if self._half_closed is not None:  # no Close frame will answer this one
                self.wasClean = True
                self.dropConnection()

    # --- back-pressure ---------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The write buffer is full.  Called again with every write until it is not."""
        if not self._stall.is_stalled and self.session is not None:
            self._stall.begin(self.factory.stall_seconds, self._client_stalled)
            self.session.pause()

    def resumeProducing(self) -> None:
        """The write buffer is empty."""
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

    # --- half-closed connections -----------------------------------------------------

    def readConnectionLost(self) -> None:
        """The client closed its sending side.  Its turns are answered, unless it disconnects."""
        if self.session is None or self.state != self.STATE_OPEN:
            self.transport.loseConnection()
        elif self._half_closed is None:
            self._half_closed = HalfClosedSocket(
                self.factory.reactor, self.transport, self.sendPing, self.transport.abortConnection
            )
            self.session.close_after_turns()

    def writeConnectionLost(self) -> None:
        """The gateway never ends its side alone."""

    # --- the end ---------------------------------------------------------------------

    def roll_over(self, patience_seconds: float) -> None:
        """Close in the next quiet moment, see :meth:`ResponsesSession.roll_over`."""
        if self.session is not None:
            self.session.roll_over(patience_seconds)

    def end_with_turn(self) -> None:
        """Close with the end of a turn, see :meth:`ResponsesSession.end_with_turn`."""
        if self.session is not None:
            self.session.end_with_turn()

    def stay(self) -> None:
        """Stay open after all, unless the end has begun."""
        if self.session is not None:
            self.session.stay()

    def drain(self) -> None:
        """Close when no turn runs any more."""
        if self.session is not None:
            self.session.drain()

    def abandon(self) -> None:
        """End the turns that still run, and close."""
        if self.session is not None:
            self.session.abandon()

    def dropConnection(self, abort: bool = False) -> None:
        """Close, and abort if the client does not read the last bytes in time."""
        self._leave()
        super().dropConnection(abort)
        if self._abort is None:
            self._abort = self.factory.reactor.callLater(
                _CLOSE_SECONDS, self.transport.abortConnection
            )

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The socket is gone."""
        abort, self._abort = self._abort, None
        if abort is not None and abort.active():
            abort.cancel()
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """The connection is over, however it ended."""
        self._leave()

    def _leave(self) -> None:
        """End the session, so that no turn runs on after the socket closes.

        The transport does not close while a producer is registered.
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
            self.factory.moved += session.moved
            self.factory.left(self)


class ResponsesFactory(WebSocketServerFactory):
    """Admits clients and has their sessions.

    :param services: the parts that their turns use.
    :param keys: the client keys.
    :param limiter: counts the connections of both kinds of clients.
    :ivar moved: connections that were closed between turns, so that their clients go elsewhere.
    """

    protocol: Any = ResponsesProtocol

    def __init__(
        self,
        reactor: Any,
        services: TurnServices,
        settings: Settings,
        keys: KeyRing,
        limiter: ConnectionLimiter,
    ) -> None:
        super().__init__(reactor=reactor, server="responses-gateway")
        self.reactor = reactor
        self.max_message_bytes = settings.session.max_message_bytes
        self.compresses = settings.session.compression
        self.stall_seconds = settings.timeouts.stall_seconds
        self._services = services
        self._settings = settings
        self._keys = keys
        self._numbers = itertools.count(1)
        self._start = secrets.token_hex(3)
        self._limiter = limiter
        self.incoming = limiter.incoming
        self.moved = 0
        self.setProtocolOptions(
            versions=[13],
            allowNullOrigin=True,
            webStatus=False,
            utf8validateIncoming=False,
            maxMessagePayloadSize=settings.session.max_message_bytes,
            autoFragmentSize=0,
            failByDrop=False,
            openHandshakeTimeout=settings.timeouts.handshake_seconds,
            closeHandshakeTimeout=_CLOSE_SECONDS,
            autoPingInterval=_PING_SECONDS,
            autoPingTimeout=0,
            perMessageCompressionAccept=_accept_deflate,
        )

    def admit(
        self, protocol: ResponsesProtocol, request: ConnectionRequest, headers: Mapping[str, str]
    ) -> ResponsesSession:
        """Accept or refuse an upgrade.

        :param headers: see :func:`~gateway.server.http_request.header_texts`.
        :raises ApiError: with the status and headers of the refusal.
        """
        if parts_of(request.path) not in _PARTS:
            raise nothing_served(request.path)
        tenant = self._keys.tenant_of(headers, _host(request.peer))
        if not self._settings.session.websocket or not self._keys.allows_websocket(tenant):
            raise ApiError(
                426,  # Codex then continues over HTTP
                "invalid_request_error",
                "WebSocket is switched off here; send POST requests to the same URL.",
                "websocket_disabled",
            )
        limiter = self._limiter
        limiter.enter(protocol)
        most = self._keys.max_connections(tenant, limiter.max_connections)
        limiter.claim(protocol, tenant, most)
        return ResponsesSession(
            self._services,
            self._settings.session,
            self._settings.limits,
            protocol,
            ClientIdentity(
                tenant,
                f"{self._start}-{next(self._numbers)}",
                forwardable(headers),
                _metadata_fields(headers),
            ),
        )

    def reconfigure(self, settings: Settings) -> None:
        """Use these settings for new connections.

        The connections of a key that was removed or changed are closed after their running turns.
        """
        changed = set(self._settings.keys) - set(settings.keys)
        self._settings = settings
        self.stall_seconds = settings.timeouts.stall_seconds
        gone = {key.name for key in changed if not self._keys.accepts(key)}
        for session in self.sessions():
            tenant = session.client.tenant
            if tenant in gone or not self._keys.knows(tenant):
                session.drain()

    @property
    def max_queued_turns(self) -> int:
        """Turns that may wait on one lane."""
        return self._settings.limits.max_queued_turns

    def left(self, protocol: ResponsesProtocol) -> None:
        """A connection ended."""
        self._limiter.leave(protocol)

    @property
    def connections(self) -> list[ResponsesProtocol]:
        """The open ones."""
        return self._limiter.of_kind(ResponsesProtocol)

    def sessions(self) -> list[ResponsesSession]:
        """The sessions of all connections."""
        return [c.session for c in self.connections if c.session is not None]


def _host(peer: str) -> str:
    """The address in Autobahn's ``tcp4:192.0.2.7:40022``."""
    return peer.partition(":")[2].rpartition(":")[0] or peer


def _metadata_fields(headers: Mapping[str, str]) -> MetadataFields:
    """Turn states for Codex; the route for clients that ask for it."""
    fields = MetadataFields.TURN_STATE if _CODEX in headers else MetadataFields.NONE
    return fields | MetadataFields.ROUTE if EXPLAIN in headers else fields


def _accept_deflate(offers: list[Any]) -> Any:
    """The accepted offer of permessage-deflate (RFC 7692), or None."""
    for offer in offers:
        if isinstance(offer, PerMessageDeflateOffer):
            return PerMessageDeflateOfferAccept(offer)
    return None


def _is_readable(extension: str, parameters: dict[str, Any]) -> bool:
    """Whether an extension offer can be understood (RFC 7692 §5: decline it otherwise)."""
    if extension not in PERMESSAGE_COMPRESSION_EXTENSION:
        return False
    try:
        offer: Any = PERMESSAGE_COMPRESSION_EXTENSION[extension]["Offer"]
        offer.parse(parameters)
    except Exception:
        return False
    return True
