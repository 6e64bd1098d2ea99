"""One WebSocket to an account: its handshake, its messages, and how it ends (RFC 6455).

The socket is read all its life, so that pings are answered while nothing runs.  Control frames go
out between the fragments of a large message.  A refused upgrade keeps its status, headers and
body, because each calls for another reaction.
"""

from __future__ import annotations

import base64
import enum
import os
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from autobahn.twisted.websocket import WebSocketClientFactory
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.compat import (
    ExtensibleWebSocketClient,
    is_between_frames,
    websocket_data_received,
    write_at_once,
)
from gateway.protocol.http_head import HeadUnreadable, HttpHead, body_of, read_head
from gateway.upstream.websocket_frames import (
    FRAGMENT_BYTES,
    cut_text_messages,
    masked_fragments,
    masked_text,
    may_complete,
    readable_messages,
)
from gateway.upstream.websocket_upgrade import (
    UPGRADE_SECONDS,
    Handshake,
    UpgradeFailed,
    UpgradeRefused,
    UpgradeTimedOut,
    upgrade_request,
)

#: How long the body of a refused upgrade may take, in seconds, and how much of it is read.
_REFUSAL_SECONDS = 5.0
_MAX_REFUSAL_BYTES = 65_536

#: The largest head of an answer, in bytes.
_MAX_HEAD_BYTES = 65_536

#: The largest message that is read, in bytes: as the largest event over HTTP.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

#: How many fragments a message may have: each takes memory, also an empty one.
MAX_FRAGMENTS = 65_536

#: The longest message of which an incomplete frame is kept here, in bytes; longer ones are put
#: together by Autobahn, so that they are not scanned again with every read.
_MAX_TAIL_BYTES = 16_384

#: How many pings are answered until the peer answers one: one that does not read gets no more.
_MAX_PINGS = 1000

#: How long a closed connection may take to go away, in seconds.
_CLOSE_SECONDS = 2.0

#: Close codes (RFC 6455 §7.4.1).
NORMAL = 1000
NO_STATUS = 1005
POLICY_VIOLATION = 1008
ABNORMAL = 1006

_log = Logger(namespace="gateway.upstream")


class ClosedSocket(NamedTuple):
    """How a socket ended.

    :ivar code: of the Close frame; 1006 without one.
    :ivar reason: of the Close frame, or what happened.
    """

    code: int
    reason: str

    def __str__(self) -> str:
        return f"{self.code} {self.reason}".strip()


class SocketListener(Protocol):
    """Gets what comes from a socket that is open."""

    def socket_messages(self, payloads: list[bytes]) -> None:
        """Whole text messages, in order."""

    def socket_closed(self, closed: ClosedSocket) -> None:
        """The socket cannot be used any more; nothing follows."""

    def socket_is_silent(self) -> None:
        """A ping was not answered until the next one was due; it may come again."""


class SocketPhase(enum.Enum):
    """What a socket does."""

    OPENING = "opening"
    REFUSED = "reading the body of a refusal"
    OPEN = "open"
    CLOSED = "closed"


TRANSITIONS = {
    SocketPhase.OPENING: {SocketPhase.REFUSED, SocketPhase.OPEN, SocketPhase.CLOSED},
    SocketPhase.REFUSED: {SocketPhase.CLOSED},
    SocketPhase.OPEN: {SocketPhase.CLOSED},
    SocketPhase.CLOSED: set(),
}


def dial(
    reactor: Any,
    endpoint: IStreamClientEndpoint,
    handshake: Handshake,
    ping_seconds: float,
) -> Deferred[UpstreamSocket]:
    """Open a WebSocket.

    :param endpoint: connects, through the account's proxy and TLS.
    :param ping_seconds: how often the peer is pinged.
    :return: fails with :class:`UpgradeRefused`, :class:`UpgradeFailed`, or what the endpoint
        fails with.  Cancelling it drops the connection.
    """
    opened: Deferred[UpstreamSocket] = Deferred(lambda _: socket_or_connecting[0].cancel())
    factory = _SocketFactory(reactor, handshake, ping_seconds, opened)
    connecting: Deferred[Any] = endpoint.connect(factory)
    socket_or_connecting: list[Any] = [connecting]

    def connected(socket: Any) -> None:
        socket_or_connecting[0] = socket

    def failed(failure: Failure) -> None:
        if not opened.called:
            opened.errback(failure)

    connecting.addCallback(connected)
    connecting.addErrback(failed)
    return opened


class UpstreamSocket(ExtensibleWebSocketClient):
    """One socket.

    :param opened: fires with the socket, or fails.
    :ivar head: the answer to the upgrade.
    :ivar listener: gets what comes in; None drops it.
    """

    transport: Any = None

    def __init__(
        self,
        reactor: Any,
        handshake: Handshake,
        ping_seconds: float,
        opened: Deferred[UpstreamSocket],
    ) -> None:
        super().__init__()
        self._reactor = reactor
        self._handshake = handshake
        self._ping_seconds = ping_seconds
        self._opened: Deferred[UpstreamSocket] | None = opened
        self._phase = SocketPhase.OPENING
        self._tail = b""
        self._fragments: Iterator[bytes] | None = None
        self._waiting_messages: list[bytes] = []
        self._fragments_read = 0
        self._pings_read = 0
        self._timer: IDelayedCall | None = None
        self._pinged = False
        self.head = HttpHead(0, {})
        self.listener: SocketListener | None = None

    # --- commands --------------------------------------------------------------------

    def send_message(self, payload: bytes) -> None:
        """Send a text message; a large one in fragments, each when the one before has left."""
        if self._fragments is not None:
            self._waiting_messages.append(payload)
            return
        if len(payload) <= FRAGMENT_BYTES:
            write_at_once(self.transport, masked_text(payload))
            return
        self._fragments = fragments = masked_fragments(payload)
        write_at_once(self.transport, next(fragments))
        self.transport.write(next(fragments))
        # A streaming producer would be paused at the transport's own high-water mark, so that a
        # pong had to wait for much more than a fragment.
        self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        """The fragment before has left; write the next."""
        fragment = None if self._fragments is None else next(self._fragments, None)
        if fragment is not None:
            self.transport.write(fragment)
            return
        self._fragments = None
        self.transport.unregisterProducer()
        waiting, self._waiting_messages = self._waiting_messages, []
        for payload in waiting:
            self.send_message(payload)

    def stopProducing(self) -> None:
        """The transport is gone; ``connectionLost`` follows."""
        self._fragments = None

    def pause(self) -> None:
        """Stop reading."""
        if self._phase is SocketPhase.OPEN:
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on."""
        if self._phase is SocketPhase.OPEN:
            self.transport.resumeProducing()

    def close(self) -> None:
        """Say goodbye and close; the listener is not called any more."""
        self.listener = None
        if self._phase is not SocketPhase.OPEN or self._fragments is not None:
            self.drop()
            return
        self.sendCloseFrame(code=NORMAL)
        self._end(ClosedSocket(NORMAL, ""))

    def drop(self) -> None:
        """Close the connection at once; the listener is not called any more."""
        self.listener = None
        self._end(ClosedSocket(ABNORMAL, "dropped by the gateway"), abort=True)

    def cancel(self) -> None:
        """Give up the handshake."""
        self._opened = None
        self.drop()

    # --- the handshake ---------------------------------------------------------------

    def startHandshake(self) -> None:
        """Send the upgrade request; Autobahn's own would encode header values as UTF-8."""
        self._timer = self._reactor.callLater(UPGRADE_SECONDS, self._refused_or_failed)
        self.websocket_key = base64.b64encode(os.urandom(16))
        self.transport.write(upgrade_request(self._handshake, self.websocket_key))

    def processHandshake(self) -> None:
        """Read the answer; Autobahn checks one of 101."""
        if self._phase is SocketPhase.REFUSED:
            self._read_refusal()
            return
        while True:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                if len(self.data) > _MAX_HEAD_BYTES:
                    self._fail("the head of its answer is too long")
                return
            try:
                self.head = read_head(self.data[:end])
            except HeadUnreadable as problem:
                self._fail(str(problem))
                return
            if self.head.status == 101 or self.head.status >= 200:
                break
            self.data = self.data[end + 4 :]  # an interim answer (RFC 9110 §15.2)
        if self.head.status == 101:
            readable = self.data[:end].decode("latin-1").encode("ascii", "replace")
            self.data = readable + self.data[end:]  # Autobahn reads UTF-8 only
            super().processHandshake()
            return
        self.data = self.data[end + 4 :]
        self._enter(SocketPhase.REFUSED)
        self._stop_timer()
        self._timer = self._reactor.callLater(_REFUSAL_SECONDS, self._refused_or_failed)
        self._read_refusal()

    def failHandshake(self, reason: str) -> None:
        """Autobahn does not accept the answer."""
        self._fail(reason)

    def onOpen(self) -> None:
        """The upgrade is accepted."""
        self.http_request_data = b""
        self.http_response_data = b""
        self.http_headers = {}
        self._stop_timer()
        self._enter(SocketPhase.OPEN)
        self._schedule_ping()
        opened = self._take_opened()
        if opened is None:  # the endpoint has failed meanwhile
            self.drop()
        else:
            opened.callback(self)

    def _read_refusal(self) -> None:
        if body_of(self.head, self.data) is not None or len(self.data) > _MAX_REFUSAL_BYTES:
            self._refused_or_failed()

    def _refused_or_failed(self) -> None:
        """The handshake is over without a socket."""
        opened = self._take_opened()
        refused = self._phase is SocketPhase.REFUSED
        body = bytes(self.data[:_MAX_REFUSAL_BYTES])
        self._end(ClosedSocket(ABNORMAL, "the upgrade was refused"), abort=True)
        if opened is None:
            return
        if refused:
            whole = body_of(self.head, body)
            opened.errback(UpgradeRefused(self.head, body if whole is None else whole))
        else:
            opened.errback(
                UpgradeTimedOut(f"did not answer the upgrade within {UPGRADE_SECONDS:g} seconds")
            )

    def _take_opened(self) -> Deferred[UpstreamSocket] | None:
        """What waits for the socket; None once it knows, from the endpoint or from here."""
        opened, self._opened = self._opened, None
        return None if opened is None or opened.called else opened

    def _fail(self, reason: str, code: int = ABNORMAL) -> None:
        opened = self._take_opened()
        self._end(ClosedSocket(code, reason), abort=True)
        if opened is not None:
            opened.errback(UpgradeFailed(f"did not accept the upgrade: {reason}"))

    # --- messages in -----------------------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Cut what is whole out of a read; Autobahn gets the rest."""
        if self._phase is SocketPhase.CLOSED:
            return
        if self._phase is not SocketPhase.OPEN or not is_between_frames(self):
            self._feed(data)
            return
        if self._tail:
            data = self._tail + data
            self._tail = b""
        payloads: list[bytes] = []
        at = cut_text_messages(data, payloads)
        if payloads:
            self._deliver(payloads)
        if at == len(data) or self._phase is not SocketPhase.OPEN:
            return
        rest = data[at:]
        if may_complete(rest, _MAX_TAIL_BYTES):
            self._tail = rest
        else:
            self._feed(rest)

    _feed = websocket_data_received

    def onMessageBegin(self, isBinary: bool) -> None:
        """Count its fragments from here."""
        super().onMessageBegin(isBinary)
        self._fragments_read = 0

    def onMessageFrameBegin(self, length: int) -> None:
        """Count the message's length."""
        self.frame_length = length
        self.frame_data = []
        self.message_data_total_length += length
        self._fragments_read += 1
        if self.message_data_total_length > MAX_MESSAGE_BYTES:
            self._break(1009, f"the upstream sent a message of more than {MAX_MESSAGE_BYTES} bytes")
        elif self._fragments_read > MAX_FRAGMENTS:
            self._break(1009, f"the upstream sent a message of more than {MAX_FRAGMENTS} fragments")

    def onMessageEnd(self) -> None:
        """A message that was not whole in one read, fragmented, or binary."""
        pieces, self.message_data = self.message_data, []
        if self._phase is not SocketPhase.OPEN:
            return
        if self.message_is_binary:
            self._break(1003, "the upstream sent a binary message")
        else:
            self._deliver([b"".join(pieces)])

    def _deliver(self, payloads: list[bytes]) -> None:
        self._pinged = False
        readable = readable_messages(payloads)
        listener = self.listener
        if listener is not None and readable:
            try:
                listener.socket_messages(readable)
            except Exception:
                _log.failure("messages of an upstream could not be read")
                self._break(1011, "the gateway failed")
        if len(readable) < len(payloads):
            self._break(1007, "the upstream sent a text message that is no UTF-8")

    # --- pings -----------------------------------------------------------------------

    def _schedule_ping(self) -> None:
        self._timer = self._reactor.callLater(self._ping_seconds, self._ping)

    def _ping(self) -> None:
        self._schedule_ping()
        if self._pinged and self.listener is not None:
            self.listener.socket_is_silent()
        if self._phase is SocketPhase.OPEN:
            self._pinged = True
            self.sendPing(b"gateway")

    def onPing(self, payload: bytes) -> None:
        """Answer, if the peer reads."""
        self._pings_read += 1
        if self._pings_read > _MAX_PINGS:
            self.violated(1002, "the upstream sent too many pings, and answered none")
        else:
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:
        """The peer is alive."""
        self._pinged = False
        self._pings_read = 0

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        """Autobahn's own frames, without its debug line; they may go between two fragments."""
        self.transport.write(data)

    # --- the end ---------------------------------------------------------------------

    def onCloseFrame(self, code: int | None, reasonRaw: bytes | None) -> bool:
        """The peer closes: answer, and close the connection."""
        reason = (reasonRaw or b"").decode(errors="replace")
        if self._fragments is None:
            self.sendCloseFrame(code=code if code not in (None, 1005, 1006, 1015) else NORMAL)
        self._end(ClosedSocket(NO_STATUS if code is None else code, reason))
        return True

    def _break(self, code: int, problem: str) -> None:
        """What the peer sent cannot be read."""
        if self._phase is SocketPhase.OPEN:
            if self._fragments is None:
                self.sendCloseFrame(code=code)
            self._end(ClosedSocket(code, problem))

    def violated(self, code: int, reason: str) -> None:
        """Autobahn found a violation of the protocol."""
        self._fail(reason, code)

    def _end(self, closed: ClosedSocket, abort: bool = False) -> None:
        if self._phase is SocketPhase.CLOSED:
            return
        self._enter(SocketPhase.CLOSED)
        self._stop_timer()
        self._tail = b""
        self.wasClean = True  # or Autobahn logs a warning, without a reason
        self.state = self.STATE_CLOSED
        if self._fragments is not None:
            self._fragments = None
            self.transport.unregisterProducer()
            abort = True
        if abort:
            self.transport.abortConnection()
        else:
            self.transport.loseConnection()
            self._timer = self._reactor.callLater(_CLOSE_SECONDS, self._abort)
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.socket_closed(closed)

    def _abort(self) -> None:
        self._timer = None
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._stop_timer()
        if self._phase is SocketPhase.REFUSED:
            self._refused_or_failed()
        elif self._phase is SocketPhase.OPENING:
            opened = self._take_opened()
            self._end(ClosedSocket(ABNORMAL, "the connection was lost"), abort=True)
            if opened is not None:
                opened.errback(reason)
        else:
            self._end(ClosedSocket(ABNORMAL, "the connection was lost"), abort=True)
        self._stop_timer()
        super().connectionLost(reason)

    def onClose(self, wasClean: bool, code: int | None, reason: str | None) -> None:
        """Autobahn's own end; this class has reported it."""

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _enter(self, phase: SocketPhase) -> None:
        if phase not in TRANSITIONS[self._phase]:
            raise AssertionError(f"a socket cannot go from {self._phase} to {phase}")
        self._phase = phase


class _SocketFactory(WebSocketClientFactory):
    """Makes one socket.  All of Autobahn's timers are off: the socket has its own."""

    noisy = False

    def __init__(
        self,
        reactor: Any,
        handshake: Handshake,
        ping_seconds: float,
        opened: Deferred[UpstreamSocket],
    ) -> None:
        super().__init__(reactor=reactor, protocols=list(handshake.subprotocols))
        self._made = (reactor, handshake, ping_seconds, opened)
        self.setProtocolOptions(
            version=13,
            utf8validateIncoming=False,
            maxMessagePayloadSize=0,
            autoFragmentSize=0,
            failByDrop=True,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            serverConnectionDropTimeout=0,
            autoPingInterval=0,
            perMessageCompressionOffers=[],
            tcpNoDelay=True,
        )

    def buildProtocol(self, addr: Any) -> UpstreamSocket:
        """The socket."""
        socket = UpstreamSocket(*self._made)
        socket.factory = self
        return socket
