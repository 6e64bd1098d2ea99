"""twisted.web's HTTP/1.1 protocol, with the deadlines and bounds of a door to the world.

What twisted.web leaves open and this closes: a head or a body that never ends, a body that is
kept before anybody asked who sends it, a client that reads nothing and goes on asking, errors
without a body.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from twisted.internet.interfaces import IDelayedCall, IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.http_headers import Headers
from zope.interface import implementer

from gateway.compat import ExtensibleHTTPChannel
from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.server.connections import no_room_for_files
from gateway.server.half_closed import HalfClosedSocket
from gateway.server.handover import hand_over
from gateway.server.http_wire import WireRequest
from gateway.server.refusal import headers_too_long, refusal
from gateway.server.write_stall import WriteStallTimer, time_for
from gateway.sockets import set_up

if TYPE_CHECKING:
    from gateway.server.http_site import HttpSite

#: Bound on a request's line and headers together, also where they ask for a WebSocket.
MAX_HEAD_BYTES = 256 * 1024

#: How long the rest of a refused body is read, so that its client comes to read the answer.
_LINGER_SECONDS = 2.0

#: How long a connection may wait for its next request.
IDLE_SECONDS = 75.0

_log = Logger(namespace="gateway.http")


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
class ClientChannel(ExtensibleHTTPChannel):
    """One connection that speaks HTTP; a :class:`~gateway.server.connections.Drainable`."""

    requestFactory: Any = WireRequest
    totalHeadersSize = MAX_HEAD_BYTES
    MAX_LENGTH = MAX_HEAD_BYTES
    transport: Any
    requests: list[WireRequest]

    def __init__(self, site: HttpSite) -> None:
        super().__init__()
        self.site = site
        self.patience = WriteStallTimer(site.reactor)
        self._phase = ChannelPhase.HEAD
        self._awaits_first_head = True
        self._head_bytes = 0
        self._has_room = True
        self.is_last = False
        self._body_began = 0.0
        self._deadline = Deadline(site.reactor, self._too_slow)
        self._abort: IDelayedCall | None = None
        self._unread: WireRequest | None = None
        self._half_closed: HalfClosedSocket | None = None
        self._sent_ahead = 0

    # --- requests in -----------------------------------------------------------------

    def connectionMade(self) -> None:
        """Wait for the first request's head."""
        set_up(self.transport)
        super().connectionMade()
        self._deadline.start(self.site.head_seconds)
        self._has_room = self.site.limiter.connected(self)

    def dataReceived(self, data: bytes) -> None:
        """The next request may begin with it."""
        self._may_begin()
        if self._phase is not ChannelPhase.CLOSING:
            super().dataReceived(data)
        if self._phase is ChannelPhase.HEAD and not self.is_parsing:
            self._count_head()

    def _count_head(self) -> None:
        """Count what has come of a head towards what all clients may have on its way here."""
        size = self.unfinished_head_bytes
        more, self._head_bytes = size - self._head_bytes, size
        if more > 0:
            self.site.limiter.incoming.keep(self, more)

    def lineReceived(self, line: bytes) -> None:
        """The next request may have waited for the last answer."""
        self._may_begin()
        if self._phase is not ChannelPhase.CLOSING:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        """A piece of a body, or what follows a request that is being answered.

        Of the latter only so much is read ahead.  twisted.web forgets that bound while the
        client does not read its answer.
        """
        super().rawDataReceived(data)
        if self.patience.is_tried and self.has_read_enough_ahead:
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
        """A head is complete: say whether the body is wanted before it is sent."""
        request = self.requests[-1]
        method, target, version = self.request_line
        self.persistent = self.checkPersistence(request, version)
        self._head_is_over()
        if self.length != 0:
            self._enter(ChannelPhase.BODY)
            self._body_began = self.site.reactor.seconds()
            self._deadline.start(self.site.stall_seconds)
        request.begin(method, target, version, self.length)
        if self.length != 0 and request.is_welcome and request.waits_for_a_word:
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
        """An answer is complete; the next one must wait until it was read."""
        if self.persistent and not self.is_last and self._phase is not ChannelPhase.CLOSING:
            if self.patience.is_tried:
                self._unread = self.requests[0]
                return
            self._enter(ChannelPhase.IDLE)
            self._deadline.start(IDLE_SECONDS)
        else:
            self.persistent = False
        super().requestDone(request)

    def upgrade(self, head: bytes) -> None:
        """Become a WebSocket."""
        transport, data = self.transport, head + self.clearLineBuffer()
        self.release_transport()
        self._leave()
        self.requests.clear()
        self.transport = None
        hand_over(transport, self.site.websockets.buildProtocol(transport.getPeer()), data)

    # --- what is wrong with them -----------------------------------------------------

    @property
    def has_room(self) -> bool:
        """Whether there are files enough for what the connection asks for."""
        return self._has_room

    @property
    def tenant(self) -> str:
        """The key of the request that is on its way; empty before its head is whole."""
        return self.requests[-1].tenant if self.requests else ""

    def give_up(self, error: ApiError) -> None:
        """Keep nothing of the request that is on its way, and refuse it."""
        if self._phase is ChannelPhase.HEAD:
            self._refuse_connection(error)
        else:
            self.requests[-1].answer_early(error)

    def linger(self) -> None:
        """This request was refused before it was read: close, but not into its face."""
        self.is_last = True
        self.persistent = False
        if self._phase is ChannelPhase.BODY:
            self._deadline.start(_LINGER_SECONDS)

    def lineLengthExceeded(self, line: bytes) -> None:
        """A line of the head is too long."""
        self._refuse_connection(headers_too_long())

    def refuse_malformed(self) -> None:
        """twisted.web found no HTTP in what came."""
        if self.head_exceeds_bounds:
            self._refuse_connection(headers_too_long())
        else:
            self._refuse_connection(
                ApiError.invalid_request("This is not a well-formed HTTP request.")
            )

    def _refuse_connection(self, error: ApiError) -> None:
        if not any(request.is_answered for request in self.requests):
            self.transport.write(refusal(error))
        if self._awaits_first_head:
            self._close(_LINGER_SECONDS)
        else:
            self.loseConnection()

    def _too_slow(self) -> None:
        """Whatever this connection waits for did not come."""
        if self._phase is ChannelPhase.BODY:
            self._look_at_body(self.requests[-1])
        elif self._phase is ChannelPhase.IDLE and self.patience.is_tried:
            self._deadline.start(IDLE_SECONDS)  # it reads the last answer, and slowly
        elif self._phase is ChannelPhase.HEAD and self._head_bytes:
            self._refuse_connection(
                ApiError(408, "invalid_request_error", "The head came too slowly.", "timeout")
            )
        elif self._awaits_first_head:
            self.abort()  # nothing was sent that a reset could destroy
        else:
            self.loseConnection()

    def _look_at_body(self, request: WireRequest) -> None:
        if request.is_answered:
            self.loseConnection()
            return
        taken = self.site.reactor.seconds() - self._body_began
        left = time_for(request.received, self.site.stall_seconds) - taken
        if left > 0:
            self._deadline.start(left)
        else:
            request.answer_early(
                ApiError(408, "invalid_request_error", "The body came too slowly.", "timeout")
            )

    # --- answers out -----------------------------------------------------------------

    def pauseProducing(self) -> None:
        """The client's buffers are full.  Comes again with every write until they are not."""
        if not self.patience.is_tried:
            self.patience.begin(self.site.stall_seconds, self._reads_nothing)
        super().pauseProducing()
        self._hold_back()

    def resumeProducing(self) -> None:
        """The client took everything."""
        self.patience.end()
        super().resumeProducing()
        self._hold_back()
        read, self._unread = self._unread, None
        if read is not None:
            self.requestDone(read)

    def _hold_back(self) -> None:
        if self.requests and self.requests[0].face is not None:
            self.requests[0].face.hold_back(self.patience.is_tried)

    def _reads_nothing(self) -> None:
        _log.warn("{peer} reads too slowly and is dropped", peer=self.transport.getPeer())
        self.abort()

    # --- a client that sends no more -------------------------------------------------

    def readConnectionLost(self) -> None:
        """The client has ended its side.  What it asked for is answered, unless it is gone.

        Comes again whenever twisted.web reads on.
        """
        if self._phase is not ChannelPhase.ANSWER:
            self.loseConnection()
        elif self._half_closed is None:
            self._half_closed = HalfClosedSocket(
                self.site.reactor, self.transport, self._probe, self.transport.abortConnection
            )

    def writeConnectionLost(self) -> None:
        """We never end our side alone."""

    def _probe(self) -> None:
        """Send a piece of the answer ahead that it must have, whatever it will be.

        That is the next byte of the head's first word, or a zero before the size of the next
        chunk (RFC 9112 §7.1).
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
        """Begin an answer, without what was sent of it already."""
        ahead, self._sent_ahead = self._sent_ahead, 0
        super().writeHeaders(version[ahead:], code, reason, headers)

    # --- the end ---------------------------------------------------------------------

    def enter(self) -> None:
        """A request wants to be served.

        :raises ApiError: 503.
        """
        with self._last_if_refused():
            if not self._has_room:
                raise no_room_for_files()
            self.site.limiter.enter(self)

    def claim(self, tenant: str) -> None:
        """The request is this tenant's.

        :raises ApiError: 429.
        """
        limiter = self.site.limiter
        most = self.site.tenants.max_connections(tenant, limiter.max_connections)
        with self._last_if_refused():
            limiter.claim(self, tenant, most)

    @contextmanager
    def _last_if_refused(self) -> Iterator[None]:
        try:
            yield
        except ApiError:
            self.is_last = True
            self.persistent = False
            raise

    def drain(self) -> None:
        """See ``Guest``; a request whose head is on its way gets an answer yet."""
        self.is_last = True
        if self._phase is ChannelPhase.IDLE:
            self.loseConnection()

    def abandon(self) -> None:
        """See ``Guest``."""
        error = ApiError(
            503,
            "server_error",
            "The gateway is restarting.",
            "gateway_restart",
            headers={"retry-after": "5"},
        )
        self.drain()
        for request in list(self.requests):
            if request.face is not None:
                request.face.abandon(error)
        if self._phase is not ChannelPhase.CLOSING:
            self.loseConnection()

    def loseConnection(self) -> None:
        """Close after what was written; a client that does not take it is not waited for."""
        self._close(time_for(self.patience.last_write, self.site.stall_seconds))

    def _close(self, seconds: float) -> None:
        """Close after what was written, which may take so many seconds."""
        self._enter(ChannelPhase.CLOSING)
        self._deadline.stop()
        self.patience.stop()
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
        self.patience.stop()
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
        if self._phase is ChannelPhase.HEAD:
            self._head_is_over()
        elif self._phase is ChannelPhase.BODY:
            self.site.limiter.incoming.leave(self)
        if phase is ChannelPhase.IDLE:
            self.site.limiter.rests(self)
        elif self._phase is ChannelPhase.IDLE:
            self.site.limiter.wakes(self)
        self._phase = phase

    def _head_is_over(self) -> None:
        """A head is whole, or not waited for any more.  May be called again."""
        self._head_bytes = 0
        self.site.limiter.incoming.leave(self)
        if self._awaits_first_head:
            self._awaits_first_head = False
            self.site.limiter.silent.pop(self, None)
