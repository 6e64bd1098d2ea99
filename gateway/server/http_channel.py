"""The HTTP/1.1 server: twisted.web's, with the deadlines and bounds that a public server needs.

It serves clients and operators; an :class:`HttpSite` has what differs.  It bounds what twisted.web
does not: heads and bodies that never end, bodies that are buffered before the client is
authenticated, and clients that send requests without reading the answers.  Errors get a body.
"""

from __future__ import annotations

import enum
import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from zope.interface import implementer

from gateway.compat import ExtensibleHTTPChannel
from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.server.connections import (
    ConnectionLimiter,
    HalfClosedSocket,
    WriteStallTimer,
    configure_socket,
    too_many_open_files,
    transfer_seconds,
)
from gateway.server.http_request import ClientRequest, WireRequest, refusal

#: Bound on a request's line and headers together, also where they ask for a WebSocket.
MAX_HEAD_BYTES = 256 * 1024

#: How long a refused request is still read, in seconds, so that its client can read the answer.
_LINGER_SECONDS = 2.0

#: How long a connection may wait for its next request, in seconds.
IDLE_SECONDS = 75.0

_log = Logger(namespace="gateway.http")


class HttpSite(Factory):
    """What the connections of one listener share: its limits, its times, and its routes.

    :param limiter: counts the connections.
    :param head_seconds: how long a head may take.
    :param stall_seconds: how long a transfer in either direction may take, besides the time that
        its size allows.
    :param max_body_bytes: bound on a body, before and after it is decoded.
    :ivar headers: sent with every answer; names in lower case.
    :ivar unfinished_make_way: whether a connection may be closed to make room for another one
        until its request is complete, and not only between two requests.
    :ivar websockets: the factory of the protocols that connections are upgraded to; or None.
    """

    noisy = False
    max_head_bytes = MAX_HEAD_BYTES
    max_headers = 500
    idle_seconds = IDLE_SECONDS
    headers: Mapping[str, str] = {}
    unfinished_make_way = False
    websockets: Factory | None = None

    def __init__(
        self,
        reactor: Any,
        limiter: ConnectionLimiter,
        head_seconds: float,
        stall_seconds: float,
        max_body_bytes: int,
    ) -> None:
        self.reactor = reactor
        self.limiter = limiter
        self.head_seconds = head_seconds
        self.stall_seconds = stall_seconds
        self.max_body_bytes = max_body_bytes
        self._numbers = itertools.count(1)
        self._start = secrets.token_hex(3)

    @property
    def body_seconds(self) -> float:
        """How long a body may take, besides the time that its size allows."""
        return self.stall_seconds

    def accept(self, request: WireRequest) -> Callable[[ClientRequest], None]:
        """Decide on a request when its head is complete.

        :return: the handler to call when the body is complete; it may raise an ``ApiError``, too.
        :raises ApiError: the refusal; with 429 and 503 the connection is closed after it.
        """
        raise NotImplementedError

    def next_connection(self) -> str:
        """The name of the next request in logs, where each HTTP request counts as a connection."""
        return f"http-{self._start}-{next(self._numbers)}"

    def buildProtocol(self, addr: Any) -> HttpChannel:
        """A protocol for a client at ``addr``."""
        return HttpChannel(self)


class ChannelPhase(enum.Enum):
    """What a connection waits for."""

    IDLE = "the next request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    ANSWER = "our answer"
    CLOSING = "the end"


#: The phases that may follow each phase.
TRANSITIONS = {
    ChannelPhase.IDLE: {ChannelPhase.HEAD, ChannelPhase.CLOSING},
    ChannelPhase.HEAD: {ChannelPhase.BODY, ChannelPhase.ANSWER, ChannelPhase.CLOSING},
    ChannelPhase.BODY: {ChannelPhase.ANSWER, ChannelPhase.CLOSING},
    ChannelPhase.ANSWER: {ChannelPhase.IDLE, ChannelPhase.CLOSING},
    ChannelPhase.CLOSING: {ChannelPhase.CLOSING},
}


@implementer(IHalfCloseableProtocol)
class HttpChannel(ExtensibleHTTPChannel):
    """One connection that speaks HTTP, or begins with it; an ``IngressSource`` and ``Drainable``.

    :ivar is_last: whether the request under way is the connection's last one.
    """

    requestFactory: Any = WireRequest
    transport: Any
    requests: list[WireRequest]

    def __init__(self, site: HttpSite) -> None:
        super().__init__()
        self.totalHeadersSize = self.MAX_LENGTH = site.max_head_bytes
        self.maxHeaders = site.max_headers
        self.site = site
        self.stall = WriteStallTimer(site.reactor)
        self.is_last = False
        self._phase = ChannelPhase.HEAD
        self._is_first = True
        self._has_room = True
        self._head_bytes = 0
        self._body_began = 0.0
        self._deadline = Deadline(site.reactor, self._too_slow)
        self._abort: IDelayedCall | None = None
        self._unread: WireRequest | None = None
        self._half_closed: HalfClosedSocket | None = None
        self._sent_ahead = 0

    # --- requests in -----------------------------------------------------------------

    def connectionMade(self) -> None:
        """Wait for the first request's head."""
        configure_socket(self.transport)
        super().connectionMade()
        self._deadline.start(self.site.head_seconds)
        self._has_room = self.site.limiter.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived; the next request may begin with them."""
        self._may_begin()
        if self._phase is not ChannelPhase.CLOSING:
            super().dataReceived(data)
        if self._phase is ChannelPhase.HEAD and not self.is_parsing:
            self._count_head()

    def _count_head(self) -> None:
        """Count the bytes of an incomplete head towards the bound of all clients."""
        size = self.unfinished_head_bytes
        more, self._head_bytes = size - self._head_bytes, size
        if more > 0:
            self.site.limiter.incoming.keep(self, more)

    def lineReceived(self, line: bytes) -> None:
        """A line arrived; it may begin a request that waited for the last answer."""
        self._may_begin()
        if self._phase is not ChannelPhase.CLOSING:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """A piece of a body arrived, or of requests that follow the one being answered.

        twisted.web bounds how much it reads ahead, but not while the client does not read its
        answer.
        """
        super().rawDataReceived(data)
        if self.stall.is_stalled and self.has_read_enough_ahead:
            self.stop_reading()

    def _may_begin(self) -> None:
        if self._phase is ChannelPhase.IDLE:
            self._enter(ChannelPhase.HEAD)
            self._deadline.start(self.site.head_seconds)

    def headerReceived(self, line: bytes) -> bool:
        """A header is complete; ``int`` reads no more than a few thousand digits."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self.refuse_malformed()
            return False

    def allHeadersReceived(self) -> None:
        """A head is complete: accept or refuse the request before its body is sent."""
        request = self.requests[-1]
        method, target, version = self.request_line
        self.persistent = self.checkPersistence(request, version)
        if self.length != 0:
            self._enter(ChannelPhase.BODY)
            self._body_began = self.site.reactor.seconds()
            self._deadline.start(self.site.body_seconds)
        request.begin(method, target, version, self.length)
        if self.length != 0 and request.expects_continue:
            self.send_continue()

    def checkPersistence(self, request: Request, version: bytes) -> bool:
        """Whether another request may follow (RFC 9112 §9.3)."""
        values = request.requestHeaders.getRawHeaders(b"connection", [])
        options = {option.strip().lower() for option in b",".join(values).split(b",")}
        return version == b"HTTP/1.1" and b"close" not in options and not self.is_last

    def allContentReceived(self) -> None:
        """A request is complete."""
        self._deadline.stop()
        self._enter(ChannelPhase.ANSWER)
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        """An answer is complete; the next request waits until the client has read it."""
        if self.persistent and not self.is_last and self._phase is not ChannelPhase.CLOSING:
            if self.stall.is_stalled:
                self._unread = self.requests[0]
                return
            self._enter(ChannelPhase.IDLE)
            self._deadline.start(self.site.idle_seconds)
        else:
            self.persistent = False
        super().requestDone(request)

    @property
    def may_upgrade(self) -> bool:
        """Whether the connection may become a WebSocket, if it asks for it."""
        return self._has_room and self.site.websockets is not None

    def upgrade(self, head: bytes) -> None:
        """Become a WebSocket.

        TLS and the PROXY protocol sit between socket and protocol as a ``ProtocolWrapper``,
        which then is the transport.

        :param head: of the request that asks for it.
        """
        transport, data = self.transport, head + self.clearLineBuffer()
        self.release_transport()
        self._leave()
        self.requests.clear()
        self.transport = None
        assert self.site.websockets is not None
        protocol: Any = self.site.websockets.buildProtocol(transport.getPeer())
        if isinstance(transport, ProtocolWrapper):
            transport.wrappedProtocol = protocol
        else:
            transport.protocol = protocol
        protocol.makeConnection(transport)
        protocol.dataReceived(data)

    # --- requests that are refused ---------------------------------------------------

    @property
    def tenant(self) -> str:
        """The client key of the current request; empty before its head is complete."""
        return self.requests[-1].tenant if self.requests else ""

    def give_up(self, error: ApiError) -> None:
        """Discard what was received of the current request, and refuse it."""
        if self._phase is ChannelPhase.HEAD:
            self._refuse_connection(error)
        else:
            self.requests[-1].answer_early(error)

    def linger(self) -> None:
        """The request was refused before it was read: read on for a short time, then close."""
        self.is_last = True
        self.persistent = False
        if self._phase is ChannelPhase.BODY:
            self._deadline.start(_LINGER_SECONDS)

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line of the head is too long."""
        self._refuse_connection(_headers_too_long())

    def refuse_malformed(self) -> None:
        """twisted.web could not parse the request."""
        if self.head_exceeds_bounds:
            self._refuse_connection(_headers_too_long())
        else:
            self._refuse_connection(
                ApiError.invalid_request("This is not a well-formed HTTP request.")
            )

    def _refuse_connection(self, error: ApiError) -> None:
        if not any(request.is_answered for request in self.requests):
            self.transport.write(refusal(error, self.site.headers))
        if self._is_first:
            self._close(_LINGER_SECONDS)
        else:
            self.loseConnection()

    def _too_slow(self) -> None:
        """The deadline of the current phase expired."""
        if self._phase is ChannelPhase.BODY:
            self._check_body_pace(self.requests[-1])
        elif self._phase is ChannelPhase.IDLE and self.stall.is_stalled:
            self._deadline.start(self.site.idle_seconds)  # it reads the last answer, and slowly
        elif self._phase is ChannelPhase.HEAD and self._head_bytes:
            self._refuse_connection(_timeout("The head came too slowly."))
        elif self._is_first:
            self.abort()  # nothing was sent that a reset could destroy
        else:
            self.loseConnection()

    def _check_body_pace(self, request: WireRequest) -> None:
        if request.is_answered:
            self.loseConnection()
            return
        taken = self.site.reactor.seconds() - self._body_began
        left = transfer_seconds(request.received, self.site.body_seconds) - taken
        if left > 0:
            self._deadline.start(left)
        else:
            request.answer_early(_timeout("The body came too slowly."))

    # --- answers out -----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The write buffer is full.  Called again with every write until it is not."""
        if not self.stall.is_stalled:
            self.stall.begin(self.site.stall_seconds, self._stalled)
        super().pauseProducing()
        self._hold_back()

    def resumeProducing(self) -> None:
        """The write buffer is empty."""
        self.stall.end()
        super().resumeProducing()
        self._hold_back()
        unread, self._unread = self._unread, None
        if unread is not None:
            self.requestDone(unread)

    def _hold_back(self) -> None:
        if self.requests and self.requests[0].client_request is not None:
            self.requests[0].client_request.hold_back(self.stall.is_stalled)

    def _stalled(self) -> None:
        _log.warn("{peer} reads too slowly and is dropped", peer=self.transport.getPeer())
        self.abort()

    # --- half-closed connections -----------------------------------------------------

    def readConnectionLost(self) -> None:
        """The client closed its sending side.  Its request is answered, unless it disconnects.

        Called again whenever twisted.web reads on.
        """
        if self._phase is not ChannelPhase.ANSWER:
            self.loseConnection()
        elif self._half_closed is None:
            self._half_closed = HalfClosedSocket(
                self.site.reactor, self.transport, self._probe, self.transport.abortConnection
            )

    def writeConnectionLost(self) -> None:
        """The gateway never ends its side alone."""

    def _probe(self) -> None:
        """Send a byte ahead that every answer has.

        That is the next byte of ``HTTP/1.1``, or a zero before the size of the next chunk
        (RFC 9112 §7.1).
        """
        request = self.requests[0] if self.requests else None
        if request is None:
            return
        if request.startedWriting:
            if request.chunked:
                self.transport.write(b"0")
        else:
            ahead = request.clientproto[self._sent_ahead : self._sent_ahead + 1]
            self._sent_ahead += len(ahead)
            self.transport.write(ahead)

    def writeHeaders(self, version: bytes, code: bytes, reason: bytes, headers: Headers) -> None:
        """Begin an answer, without the bytes that probes have sent already."""
        ahead, self._sent_ahead = self._sent_ahead, 0
        super().writeHeaders(version[ahead:], code, reason, headers)

    # --- the end ---------------------------------------------------------------------

    def enter(self) -> None:
        """Admit the connection for a request.

        :raises ApiError: 503.
        """
        if not self._has_room:
            raise too_many_open_files()
        self.site.limiter.enter(self)
        if self.site.limiter.draining:
            self.is_last = True  # it was connected before, and another process listens now
        if self._makes_way:
            self.site.limiter.mark_idle(self)

    @property
    def _makes_way(self) -> bool:
        """Whether the connection may be closed to make room for another one."""
        waits = self._phase in (ChannelPhase.HEAD, ChannelPhase.BODY)
        return self._phase is ChannelPhase.IDLE or (waits and self.site.unfinished_make_way)

    def drain(self) -> None:
        """Close when idle; a client's request that is being received still gets an answer."""
        self.is_last = True
        if self._phase is ChannelPhase.IDLE:
            self.loseConnection()
        elif self._makes_way:
            self.abort()

    def abandon(self) -> None:
        """Refuse the requests that still run, and close."""
        error = ApiError(
            503,
            "server_error",
            "The gateway is restarting.",
            "gateway_restart",
            headers={"retry-after": "5"},
        )
        self.drain()
        for request in list(self.requests):
            if request.client_request is not None:
                request.client_request.abandon(error)
        if self._phase is not ChannelPhase.CLOSING:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close after what was written, within a bounded time."""
        self._close(transfer_seconds(self.stall.last_write, self.site.stall_seconds))

    def _close(self, seconds: float) -> None:
        """Close after what was written, which may take so many seconds."""
        self._enter(ChannelPhase.CLOSING)
        self._deadline.stop()
        self.stall.stop()
        super().loseConnection()
        if self._abort is None:
            self._abort = self.site.reactor.callLater(seconds, self.transport.abortConnection)

    def abort(self) -> None:
        """Close now."""
        self._enter(ChannelPhase.CLOSING)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        if self._phase is not ChannelPhase.CLOSING:
            self._enter(ChannelPhase.CLOSING)
        super().connectionLost(reason)
        self._leave()

    def _leave(self) -> None:
        self._deadline.stop()
        self.stall.stop()
        half_closed, self._half_closed = self._half_closed, None
        if half_closed is not None:
            half_closed.stop()
        abort, self._abort = self._abort, None
        if abort is not None and abort.active():
            abort.cancel()
        self.site.limiter.leave(self)

    def _enter(self, phase: ChannelPhase) -> None:
        if phase not in TRANSITIONS[self._phase]:
            raise AssertionError(f"a connection cannot go from {self._phase} to {phase}")
        limiter = self.site.limiter
        if self._phase in (ChannelPhase.HEAD, ChannelPhase.BODY):
            limiter.incoming.leave(self)
            self._head_bytes = 0
        if self._is_first:
            self._is_first = False
            limiter.silent.pop(self, None)
        self._phase = phase
        if phase is ChannelPhase.IDLE:
            limiter.mark_idle(self)
        elif not self._makes_way:
            limiter.mark_busy(self)


def _headers_too_long() -> ApiError:
    """431 (RFC 6585 §5)."""
    return ApiError(
        431, "invalid_request_error", "The request's headers are too long.", "headers_too_long"
    )


def _timeout(message: str) -> ApiError:
    return ApiError(408, "invalid_request_error", message, "timeout")
