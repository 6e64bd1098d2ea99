"""The admin side's connections: few, and each request bounded in size and time."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Request as SiteRequest
from twisted.web.server import Site

from gateway.admin.api import Api
from gateway.admin.resource import AdminResource
from gateway.admin.responses import set_security_headers
from gateway.compat import ExtensibleHTTPChannel
from gateway.deadline import Deadline
from gateway.sockets import set_up

#: Bounds on what a request may bring, in bytes.
MAX_HEAD_BYTES = 16 * 1024
MAX_BODY_BYTES = 64 * 1024
_MAX_HEADERS = 100

#: How long a request may take to arrive, and a connection may be idle, in seconds.
REQUEST_SECONDS = 10.0
_IDLE_SECONDS = 60.0

#: How long the last bytes may take to a client that was refused, in seconds.
_LEAVE_SECONDS = 2.0

#: Connections at the same time; each open page takes one or two.
MAX_CONNECTIONS = 100

#: The part of the files that may be open which connections of the admin side leave, as one in so
#: many: a small part of what clients leave to them.
_RESERVED_FILES = 16

#: Bodies are read by :mod:`~gateway.admin.requests`; Twisted would read multipart ones, too.
_FORMS: Any = {"parsePOSTFormSubmission": False}


class AdminRequest(SiteRequest):
    """A request whose body is bounded, and whose answers make browsers strict."""

    channel: Any
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """Refuse what announces too much."""
        super().gotLength(None if length is None else min(length, MAX_BODY_BYTES))
        if length is not None and length > MAX_BODY_BYTES:
            self.channel.refuse(413)

    def handleContentChunk(self, data: bytes) -> None:
        """Refuse what turns out to be too much."""
        self._received += len(data)
        if self._received > MAX_BODY_BYTES:
            self.channel.refuse(413)
        else:
            super().handleContentChunk(data)

    def process(self) -> None:
        """Answer, unless the connection was given up meanwhile."""
        if self.channel is None or self.channel.refused:
            return
        set_security_headers(self)
        super().process()

    def render(self, resrc: Resource) -> None:
        """The server's name is nobody's business."""
        self.responseHeaders.removeHeader(b"server")
        super().render(resrc)


class AdminChannel(ExtensibleHTTPChannel):
    """One connection.

    :ivar refused: whether it was given up.
    """

    totalHeadersSize = MAX_HEAD_BYTES
    maxHeaders = _MAX_HEADERS
    requestFactory: Any = AdminRequest
    refused = False
    site: AdminSite
    transport: Any
    _arrival: Deadline
    _leaving: Deadline
    _arriving = False

    def connectionMade(self) -> None:
        """Count it, and see that its first request comes soon.

        Where there are too many, one goes that waits for a request: those who say nothing must
        not keep out who asks, probes and metrics first of all.
        """
        super().connectionMade()
        set_up(self.transport)
        self._arrival = Deadline(self.site.reactor, self._too_slow)
        self._leaving = Deadline(self.site.reactor, self._abort)
        if not self.site.makes_room(self.transport):
            self.refuse(503)
            return
        self.site.connections[self] = None
        self._expect()

    def dataReceived(self, data: bytes) -> None:
        """The first byte of a request starts its time."""
        if self.refused:
            return
        if not self.is_handling_request and not self._arriving:
            self._expect()
        super().dataReceived(data)

    def _expect(self) -> None:
        self._arriving = True
        self._arrival.start(REQUEST_SECONDS)

    def headerReceived(self, line: bytes) -> bool:
        """A header is complete; ``int`` reads no more than a few thousand digits."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self.refuse(400)
            return False

    def allContentReceived(self) -> None:
        """It arrived in time."""
        self._arriving = False
        self._arrival.stop()
        if not self.refused:
            super().allContentReceived()

    def refuse(self, status: int) -> None:
        """Answer with a bare status and let go."""
        if self.refused:
            return
        self.refused = True
        self._arrival.stop()
        self.transport.write(
            b"HTTP/1.1 %d Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status
        )
        self.loseConnection()
        self._leaving.start(_LEAVE_SECONDS)

    def timeoutConnection(self) -> None:
        """Idle for too long; that is nothing to log."""
        self.setTimeout(None)
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It is gone."""
        self._arrival.stop()
        self._leaving.stop()
        self.site.connections.pop(self, None)
        super().connectionLost(reason)

    def _too_slow(self) -> None:
        self.refuse(408)

    def make_way(self) -> None:
        """Leave at once, for another connection."""
        self.site.connections.pop(self, None)
        self._abort()

    def _abort(self) -> None:
        """It does not take the last bytes either."""
        self.transport.abortConnection()


class AdminSite(Site):
    """Serves the admin side; no access log.

    :ivar connections: the open ones, the oldest first.
    """

    noisy = False
    protocol: Any = AdminChannel
    requestFactory: Any = AdminRequest

    def __init__(self, api: Api, reactor: Any) -> None:
        super().__init__(AdminResource(api), reactor=reactor, timeout=_IDLE_SECONDS, **_FORMS)
        self.api = api
        self.connections: dict[AdminChannel, None] = {}
        self.displayTracebacks = False

    def makes_room(self, transport: Any) -> bool:
        """Whether there is room for one more, now; the oldest that waits for a request goes.

        The last files are for those who do ask.
        """
        files = self.api.running.limiter.files
        if len(self.connections) < MAX_CONNECTIONS and files.suffice(transport, _RESERVED_FILES):
            return True
        for connection in self.connections:
            if not connection.is_handling_request:
                connection.make_way()
                return True
        return False

    def log(self, request: Request) -> None:
        """Say nothing."""

    def stopFactory(self) -> None:
        """Nobody listens any more."""
        self.api.live.close()
        super().stopFactory()
