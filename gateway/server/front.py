"""The listener's protocol: reads a connection's first head, and gives it to who speaks that.

WebSocket upgrades go to Autobahn's protocol, everything else to twisted.web's.  A front is
gone once it has decided: an idle WebSocket costs what it costs alone.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.python.failure import Failure

from gateway.protocol.errors import ApiError
from gateway.server.connections import MAX_SILENT, ConnectionLimiter, no_room_for_files
from gateway.server.handover import hand_over, head_asks_for_websocket
from gateway.server.refusal import headers_too_long, refusal
from gateway.sockets import set_up

#: Bound on what a client may send before its first head is complete.
_MAX_HEAD_BYTES = 256 * 1024

_END = b"\r\n\r\n"


class Builder(Protocol):
    """Makes protocols."""

    def buildProtocol(self, addr: Any) -> Any:
        """A protocol for a client at ``addr``."""


class Front(TwistedProtocol):
    """One connection before its first head is complete.

    As a :class:`~gateway.server.ingress.IngressSource` it is nobody's yet, like all others: who
    has a key is not kept out by those who only begin.
    """

    tenant = ""

    factory: FrontFactory
    transport: Any

    def __init__(self) -> None:
        self._head = bytearray()
        self._is_welcome = True
        self._is_refused = False
        self._deadline: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """Wait for the head, but not for ever."""
        set_up(self.transport)
        self._deadline = self.factory.reactor.callLater(
            self.factory.head_seconds, self.transport.abortConnection
        )
        self._is_welcome = self.factory.makes_room(self)

    def dataReceived(self, data: bytes) -> None:
        """Decide when the head is complete."""
        if self._is_refused:
            return
        searched = max(0, len(self._head) - len(_END))
        self._head += data
        end = self._head.find(_END, searched)
        if end >= 0 and not self._is_welcome:
            self.give_up(no_room_for_files())  # not before: a reset would eat the answer
        elif end >= 0:
            self._decide(end + len(_END))
        elif len(self._head) > _MAX_HEAD_BYTES:
            self.give_up(headers_too_long())
        else:
            self.factory.incoming.keep(self, len(data))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The client left without a word."""
        self._stop_waiting()

    def give_up(self, error: ApiError) -> None:
        """See ``Sender``."""
        self._is_refused = True
        self._head.clear()
        self.factory.left(self)
        self.transport.write(refusal(error))
        self.transport.loseConnection()

    def _decide(self, end: int) -> None:
        self._stop_waiting()
        data = bytes(self._head)
        transport, self.transport = self.transport, None
        builder = self.factory.builder_for(data[:end])
        hand_over(transport, builder.buildProtocol(transport.getPeer()), data)

    def _stop_waiting(self) -> None:
        self.factory.left(self)
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()


class FrontFactory(Factory):
    """What the clients' listener serves.

    :param websockets: makes the protocols of WebSocket connections.
    :param http: makes those of all others.
    :param head_seconds: how long a client may take for its first head.
    :param limiter: counts the heads that are not whole, and knows who rests.
    """

    protocol: Any = Front
    noisy = False

    def __init__(
        self,
        reactor: Any,
        websockets: Builder,
        http: Builder,
        head_seconds: float,
        limiter: ConnectionLimiter,
    ) -> None:
        self.reactor = reactor
        self.head_seconds = head_seconds
        self.incoming = limiter.incoming
        self._limiter = limiter
        self._websockets = websockets
        self._http = http

    def makes_room(self, front: Front) -> bool:
        """Whether there is room for what a new connection will ask for.

        Where there are too many, the one goes that has owed us its head for the longest; or, if
        it is for want of files, one that rests between two requests.
        """
        few_files = not self._limiter.files.suffice(front.transport)
        oldest = next(iter(self._limiter.silent), None)
        if oldest is not None and (few_files or len(self._limiter.silent) >= MAX_SILENT):
            self.left(oldest)
            oldest.transport.abortConnection()
            few_files = False
        self._limiter.silent[front] = None
        return not few_files or self._limiter.make_room()

    def left(self, front: Front) -> None:
        """A connection has said what it wants, or is over.  May be called again."""
        self._limiter.silent.pop(front, None)
        self.incoming.leave(front)

    def builder_for(self, head: bytes) -> Builder:
        """Who speaks what a client begins with."""
        return self._websockets if head_asks_for_websocket(head) else self._http
