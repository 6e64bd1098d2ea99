"""One connection to a Redis server: commands in order, their replies, and a deadline (RESP2).

Commands are pipelined: nothing waits for the reply to an earlier command.  A server that says
nothing for too long while it owes a reply has failed: the connection is given up, and with it
every command that waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
from OpenSSL import SSL
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from gateway.deadline import Deadline
from gateway.state.backend import StateError
from gateway.upstream.tls import WrongCertificate

#: A command and its arguments.
Command = Sequence["bytes | str | int | float"]

#: Bound on the commands that wait for a reply.
_MAX_WAITING = 100_000

#: Bound on one reply, in bytes; a conversation is one.
_MAX_REPLY_BYTES = 512 * 1024 * 1024

#: From here on Redis quotes the arguments of a command, which may be secrets.
_QUOTED = ", with args beginning with"

#: What Redis says before a message, an array of the channel and its content.
_MESSAGE = b"message"


class RedisRefusal(StateError):
    """Redis refused a command.

    :ivar code: the first word of its error: ``OOM``, ``READONLY``, ``NOSCRIPT``.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.partition(_QUOTED)[0].removeprefix("ERR "))
        self.code = text.partition(" ")[0]


class _Pipeline:
    """Commands that were sent together, and their replies so far."""

    __slots__ = ("answer", "count", "replies")

    def __init__(self, count: int) -> None:
        self.count = count
        self.replies: list[Any] = []
        self.answer: Deferred[list[Any]] = Deferred()


class RedisConnection(Protocol):
    """A connection to a Redis server.

    :param clock: the reactor.
    :param seconds: how long the server may say nothing while it owes a reply.
    :ivar lost: called once with the reason when the connection has ended, in any way.
    :ivar received: called with the content of each message of the channel that is subscribed to;
        None on a connection without one.
    """

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        self._seconds = seconds
        self._deadline = Deadline(clock, self._silent)
        self._reader = hiredis.Reader(protocolError=StateError, replyError=RedisRefusal)
        self._waiting: deque[_Pipeline] = deque()
        self._count = 0
        self._bytes = 0
        self._why: StateError | None = None
        self.lost: Callable[[StateError], None] = lambda error: None
        self.received: Callable[[bytes], None] | None = None

    def command(self, *parts: bytes | str | int | float) -> Deferred[Any]:
        """Send a command.

        :return: its reply; fails with :class:`RedisRefusal` when Redis refuses it, and with
            :class:`StateError` when the connection ends before.
        """
        return self.commands([parts]).addCallback(_only)

    def commands(self, commands: Sequence[Command]) -> Deferred[list[Any]]:
        """Send several commands at once.

        :return: their replies; a :class:`RedisRefusal` is in the place of a refused one.
        """
        if self._why is not None or self.transport is None:
            return fail(self._why or StateError("the connection to Redis is not open"))
        if self._count + len(commands) > _MAX_WAITING:
            return fail(StateError("too many commands wait for Redis"))
        waiting = _Pipeline(len(commands))
        if not self._waiting:
            self._deadline.start(self._seconds)
        self._waiting.append(waiting)
        self._count += len(commands)
        self.transport.write(b"".join(map(_packed, commands)))
        return waiting.answer

    def close(self, why: StateError | None = None) -> None:
        """End the connection; commands without a reply fail for this reason."""
        self._end(why or StateError("the connection to Redis was closed"), quietly=True)

    # --- what comes from the server ----------------------------------------------------

    def dataReceived(self, data: bytes) -> None:
        """Take replies, whole or in parts."""
        self._deadline.touch()
        self._bytes += len(data)
        try:
            self._reader.feed(data)
            reply = self._reader.gets()
            while reply is not False:
                self._bytes = 0
                self._reply(reply)
                reply = self._reader.gets()
        except StateError as error:
            self._end(StateError(f"it does not speak Redis' protocol: {error}"))
            return
        if self._bytes > _MAX_REPLY_BYTES:
            self._end(StateError("a reply of Redis is too long"))

    def _reply(self, reply: Any) -> None:
        if self._why is not None:
            return
        if self.received is not None and isinstance(reply, list) and reply[0] == _MESSAGE:
            self.received(reply[2])
            return
        if not self._waiting:
            raise StateError("a reply to no command")
        waiting = self._waiting[0]
        waiting.replies.append(reply)
        self._count -= 1
        if len(waiting.replies) == waiting.count:
            self._waiting.popleft()
            waiting.answer.callback(waiting.replies)

    # --- its end -----------------------------------------------------------------------

    def _silent(self) -> None:
        if self._waiting:
            self._end(StateError(f"Redis did not answer within {self._seconds:g} s"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection ended."""
        cause = reason.value
        if isinstance(cause, WrongCertificate):
            self._end(StateError(f"its certificate {cause}"))
        elif isinstance(cause, SSL.Error):
            self._end(StateError("TLS failed: Redis may not speak it on this port"))
        else:
            self._end(StateError("Redis closed the connection"))

    def _end(self, why: StateError, quietly: bool = False) -> None:
        if self._why is not None:
            return
        self._why = why
        self._deadline.stop()
        if self.transport is not None:
            self.transport.abortConnection()  # type: ignore[attr-defined]
        waiting, self._waiting = self._waiting, deque()
        if not quietly:
            self.lost(why)
        for each in waiting:
            each.answer.errback(why)


def _packed(command: Command) -> bytes:
    parts: Any = tuple(command)  # its type hint allows one part only
    data: bytes = hiredis.pack_command(parts)
    return data


def _only(replies: list[Any]) -> Any:
    """The reply of a single command."""
    if isinstance(replies[0], RedisRefusal):
        raise replies[0]
    return replies[0]


def checked(replies: list[Any]) -> list[Any]:
    """The replies, when Redis refused none of the commands.

    :raises RedisRefusal: the first refusal.
    """
    for each in replies:
        if isinstance(each, RedisRefusal):
            raise each
    return replies
