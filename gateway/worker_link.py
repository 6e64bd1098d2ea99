"""Calls between a worker and its supervisor: requests, answers and one-way messages, both ways.

Both sides have the two ends of a socket pair.  What they say to each other is a method's name and
a payload of bytes that only caller and handler understand.  A message travels in pieces of at most
:data:`_PIECE_BYTES`, each behind its length, so that a record of many megabytes costs no more
than its bytes.  The pieces of a message follow each other.

Everything is bounded: the size of a message, the calls without an answer, how long each waits, and
the bytes that wait for a peer that does not read.  The end of the connection fails every call; it
is never made again, because only the other process has the other end.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import msgspec
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

_log = Logger(namespace="gateway.workers")

#: Answers a call: with the payload of the answer, None for an empty one, or a Deferred of either.
#: What it raises is logged here, and its text is what the caller gets.
Handler = Callable[[bytes], "bytes | Deferred[Any] | None"]

#: How long a call waits for its answer unless the caller says otherwise, in seconds.
CALL_SECONDS = 5.0

#: Bound on one message, in bytes; the longest message of a client has half of it.
MAX_MESSAGE_BYTES = 134_217_728

#: Bound on the calls of one side that wait for their answers.
MAX_CALLS = 4096

#: Bound on the bytes that wait because the peer does not read; later messages are refused.
MAX_WAITING_BYTES = 134_217_728

#: Bytes of a message that travel together.
_PIECE_BYTES = 131_072

_LAST, _MORE = b"\x00", b"\x01"


class LinkError(Exception):
    """A call has no answer; the text says why."""


class LinkClosed(LinkError):
    """The other process is gone, or the link was closed."""


class LinkTimeout(LinkError):
    """The answer did not come in time.  The call may have had its effect."""


class LinkBusy(LinkError):
    """Too many calls or bytes are under way, or the message is too long; nothing was sent."""


class CallFailed(LinkError):
    """The handler of the other side failed; the text is that of its error."""


class _Call(msgspec.Struct, array_like=True, tag=1):
    number: int
    method: str
    payload: bytes


class _Answer(msgspec.Struct, array_like=True, tag=2):
    number: int
    payload: bytes


class _Refusal(msgspec.Struct, array_like=True, tag=3):
    number: int
    error: str


class _Tell(msgspec.Struct, array_like=True, tag=4):
    method: str
    payload: bytes


_Message = _Call | _Answer | _Refusal | _Tell

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Message).decode


class _Waiting:
    """A call without an answer yet."""

    __slots__ = ("answer", "timeout")

    def __init__(self, answer: Deferred[bytes], timeout: IDelayedCall) -> None:
        self.answer = answer
        self.timeout = timeout


@implementer(IPushProducer)
class Link(Int32StringReceiver):
    """One end of the connection between a worker and its supervisor.

    :param clock: for the deadlines of calls.
    :ivar closed: fires once, with this link, when the connection has ended.
    """

    MAX_LENGTH = _PIECE_BYTES + 1

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._handlers: dict[str, Handler] = {}
        self._calls: dict[int, _Waiting] = {}
        self._number = 0
        self._received: list[bytes] = []
        self._received_bytes = 0
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._paused = False
        self._open = False
        self.closed: Deferred[Link] = Deferred()

    # ---- for both sides

    @property
    def is_open(self) -> bool:
        """Whether the peer can be called."""
        return self._open

    @property
    def calls_waiting(self) -> int:
        """How many calls wait for their answers."""
        return len(self._calls)

    @property
    def waiting_bytes(self) -> int:
        """The bytes that wait for the peer to read."""
        return self._unsent_bytes

    def handle(self, method: str, handler: Handler) -> None:
        """Answer the peer's calls and messages of this name from now on."""
        self._handlers[method] = handler

    def call(
        self, method: str, payload: bytes = b"", seconds: float = CALL_SECONDS
    ) -> Deferred[bytes]:
        """Call the peer.

        :param seconds: how long the answer may take.
        :return: the answer's payload.  It fails with a :class:`LinkError`, also at once.  A
            caller that cancels it waits no longer; the peer does what it was asked all the same.
        """
        if not self._open:
            return fail(LinkClosed(f"{method}: the other process is gone"))
        if len(self._calls) >= MAX_CALLS:
            return fail(LinkBusy(f"{method}: {MAX_CALLS} calls wait for their answers"))
        self._number = number = self._number + 1
        if not self._send(_Call(number, method, payload)):
            return fail(LinkBusy(f"{method}: too many bytes wait for the other process"))
        answer: Deferred[bytes] = Deferred(lambda _: self._give_up(number))
        timeout = self._clock.callLater(seconds, self._timed_out, number, method, seconds)
        self._calls[number] = _Waiting(answer, timeout)
        return answer

    def tell(self, method: str, payload: bytes = b"") -> bool:
        """Send the peer a message that has no answer.

        :return: whether it was taken: not if the peer is gone, or does not read.
        """
        return self._open and self._send(_Tell(method, payload))

    def close(self) -> None:
        """End the connection once what was said is sent."""
        if self._open:
            cast(Any, self.transport).loseConnection()

    # ---- the connection

    def connectionMade(self) -> None:
        """The peer can be called."""
        self._open = True
        cast(Any, self.transport).registerProducer(self, True)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Every call fails."""
        self._open = False
        self._unsent.clear()
        self._received.clear()
        self._unsent_bytes = self._received_bytes = 0
        for number in list(self._calls):
            waiting = self._forget(number)
            if waiting is not None:
                waiting.answer.errback(LinkClosed("the other process is gone"))
        self.closed.callback(self)

    def stringReceived(self, string: bytes) -> None:
        """A piece of a message."""
        self._received.append(string[1:])
        self._received_bytes += len(string) - 1
        if self._received_bytes > MAX_MESSAGE_BYTES:
            self.lengthLimitExceeded(self._received_bytes)
            return
        if string[:1] == _MORE:
            return
        message, self._received = b"".join(self._received), []
        self._received_bytes = 0
        try:
            decoded = _decode(message)
        except msgspec.DecodeError as error:
            _log.error("the other process sent what is no message: {error}", error=str(error))
            self._abort()
            return
        self._take(decoded)

    def lengthLimitExceeded(self, length: int) -> None:
        """The peer does not keep to the bounds: it is no peer."""
        _log.error("the other process sent a message of {length} bytes", length=length)
        self._abort()

    def _abort(self) -> None:
        cast(Any, self.transport).abortConnection()

    # ---- its back-pressure

    def pauseProducing(self) -> None:
        """The peer does not read: what is said now waits here."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The peer reads again."""
        self._paused = False
        while self._unsent and not self._paused:
            piece = self._unsent.popleft()
            self._unsent_bytes -= len(piece)
            self.sendString(piece)

    def stopProducing(self) -> None:
        """The connection has ended."""

    # ---- messages

    def _send(self, message: _Message) -> bool:
        encoded = _encode(message)
        size = len(encoded)
        if size > MAX_MESSAGE_BYTES or self._unsent_bytes + size > MAX_WAITING_BYTES:
            return False
        for start in range(0, size, _PIECE_BYTES):
            rest = start + _PIECE_BYTES < size
            piece = (_MORE if rest else _LAST) + encoded[start : start + _PIECE_BYTES]
            if self._paused:
                self._unsent.append(piece)
                self._unsent_bytes += len(piece)
            else:
                self.sendString(piece)
        return True

    def _take(self, message: _Message) -> None:
        if isinstance(message, _Call):
            self._answer(message)
        elif isinstance(message, _Tell):
            told: Deferred[Any] = maybeDeferred(self._handler(message.method), message.payload)
            told.addErrback(self._failed, message.method)
        else:
            waiting = self._forget(message.number)
            if waiting is None:
                return  # it came too late
            if isinstance(message, _Answer):
                waiting.answer.callback(message.payload)
            else:
                waiting.answer.errback(CallFailed(message.error))

    def _answer(self, call: _Call) -> None:
        number = call.number

        def done(payload: bytes | None) -> None:
            self._reply(number, _Answer(number, payload or b""))

        def failed(failure: Failure) -> None:
            error = self._failed(failure, call.method)
            self._reply(number, _Refusal(number, error))

        answered: Deferred[Any] = maybeDeferred(self._handler(call.method), call.payload)
        answered.addCallback(done)
        answered.addErrback(failed)

    def _reply(self, number: int, message: _Answer | _Refusal) -> None:
        if self._open and not self._send(message):
            self._send(_Refusal(number, "the answer is too long, or too many bytes wait"))

    def _handler(self, method: str) -> Handler:
        try:
            return self._handlers[method]
        except KeyError:
            return _unknown(method)

    def _failed(self, failure: Failure, method: str) -> str:
        """Log what a handler raised, unless it is another link's error; its text."""
        if not failure.check(LinkError):
            _log.failure("{method} failed", failure, method=method)
        return f"{method}: {failure.getErrorMessage()}"

    def _forget(self, number: int) -> _Waiting | None:
        waiting = self._calls.pop(number, None)
        if waiting is not None and waiting.timeout.active():
            waiting.timeout.cancel()
        return waiting

    def _give_up(self, number: int) -> None:
        self._forget(number)

    def _timed_out(self, number: int, method: str, seconds: float) -> None:
        waiting = self._calls.pop(number, None)
        if waiting is not None:
            waiting.answer.errback(LinkTimeout(f"{method}: no answer within {seconds:g} seconds"))


def _unknown(method: str) -> Handler:
    """The handler of what nobody handles."""

    def refuse(_: bytes) -> bytes:
        raise LinkError(f"there is no {method}")

    return refuse


class _OneLink:
    """The factory that gives an adopted socket its link."""

    noisy = False

    def __init__(self, link: Link) -> None:
        self._link = link

    def doStart(self) -> None:
        """Nothing to start."""

    def doStop(self) -> None:
        """Nothing to stop."""

    def buildProtocol(self, _: object) -> Link:
        """The link."""
        return self._link


def connect_link(reactor: Any, descriptor: int, link: Link) -> None:
    """Run a link on one end of a socket pair; the descriptor itself is closed.

    :param descriptor: of the end.
    """
    end = socket.socket(fileno=descriptor)
    try:
        end.setblocking(False)
        reactor.adoptStreamConnection(end.fileno(), socket.AF_UNIX, _OneLink(link))
    finally:
        end.close()
