"""What the connections of a listener share: limits, buffers for requests, slow and silent clients.

:class:`ConnectionLimiter` bounds the number of connections, :class:`IngressBuffer` the bytes of
incomplete requests, and :class:`WriteStallTimer` the time in which a client must read what it is
sent.  :class:`HalfClosedSocket` detects whether a client that closed its sending side still reads.
"""

from __future__ import annotations

import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError

#: Connections without a complete first head.  Beyond this number the oldest one is aborted.
MAX_SILENT = 1000

#: One in so many file descriptors is reserved for upstreams, operators and the log.
_RESERVED_FILES = 4

#: How long a shortage of files is reported after its last sign, in seconds.
_SHORTAGE_SECONDS = 60.0

#: A client that sends or reads slower than this for ``timeouts.stall_seconds`` is dropped.
MIN_BYTES_PER_SECOND = 10_000

#: How often a half-closed socket is asked for a reset, in seconds.
_RESET_CHECK_SECONDS = 0.2

#: When a probe is sent to a half-closed client, in seconds after it ended its side.  There are
#: at most eight: HTTP has no more bytes than that to send ahead of a response's head.
_PROBES = (0.0, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0)

_Kind = TypeVar("_Kind")

_log = Logger(namespace="gateway.sockets")


# --- accepted sockets ----------------------------------------------------------------------


def configure_socket(transport: Any) -> None:
    """Set TCP_NODELAY and keep-alive on an accepted socket.

    Without TCP_NODELAY the kernel holds back a small segment until the one before it was
    acknowledged, which clients delay by up to 40 ms: the first delta of a steady stream would
    come that late.

    :param transport: of the socket, or what TLS or the PROXY protocol wraps around it.
    """
    with suppress(AttributeError, OSError):  # a UNIX socket has neither
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(1)


class OpenFiles:
    """Checks whether the process has enough file descriptors left for one more client.

    The kernel gives each new file the lowest free number.  A high number therefore means that all
    numbers below it are in use, which makes the check cheap.

    :param now: in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._short_at: float | None = None

    @property
    def are_short(self) -> bool:
        """Whether descriptors were short within the last minute."""
        return self._short_at is not None and self._now() - self._short_at < _SHORTAGE_SECONDS

    def suffice(self, transport: Any, reserved: int = _RESERVED_FILES) -> bool:
        """Whether enough descriptors are left with the client behind ``transport`` connected.

        :param reserved: one in so many descriptors must stay free.
        """
        try:
            number: int = transport.fileno()
        except AttributeError:
            return True
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY or number < limit - limit // reserved:
            return True
        self.report_shortage(limit)
        return False

    def report_shortage(self, limit: int) -> None:
        """Descriptors are short: log it once per shortage."""
        if not self.are_short:
            _log.error(
                "clients are turned away: nearly all of the {limit} files that this process may"
                " open are open; raise LimitNOFILE (ulimit -n)",
                limit=limit,
            )
        self._short_at = self._now()


# --- connection limits ---------------------------------------------------------------------


class Drainable(Protocol):
    """A connection, or a background turn that outlives its connection."""

    def drain(self) -> None:
        """The gateway stops: finish what runs, begin nothing more, and close."""

    def abandon(self) -> None:
        """The gateway can wait no longer: end what runs, and close."""


class ConnectionLimiter:
    """Admits connections until there are too many, of all keys or of one, or the gateway stops.

    Where there are too many, the one that is idle for the longest is closed first.

    :param max_connections: how many may be open at the same time, besides the silent ones.
    :param max_incoming_bytes: bound on the buffered bytes of incomplete requests.
    :param max_silent: how many connections may be open without a complete first head.
    :param files: checks the file descriptors; shared by all listeners.
    :param reserved_files: one in so many descriptors must stay free.
    :ivar silent: connections without a complete first head, the oldest first.
    """

    def __init__(
        self,
        max_connections: int,
        max_incoming_bytes: int = sys.maxsize,
        max_silent: int = MAX_SILENT,
        files: OpenFiles | None = None,
        reserved_files: int = _RESERVED_FILES,
    ) -> None:
        self.max_connections = max_connections
        self.max_silent = max_silent
        self.incoming = IngressBuffer(max_incoming_bytes)
        self.files = files or OpenFiles(time.monotonic)
        self.silent: dict[Any, None] = {}
        self._reserved_files = reserved_files
        self._connections: set[Drainable] = set()
        self._key_of: dict[Drainable, str] = {}
        self._of_key: Counter[str] = Counter()
        self._idle: dict[Drainable, None] = {}
        self._draining = False
        self._refuses = False
        self._when_empty: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def draining(self) -> bool:
        """Whether the gateway is emptied of clients."""
        return self._draining

    def of_kind(self, kind: type[_Kind]) -> list[_Kind]:
        """The connections of one kind."""
        return [each for each in self._connections if isinstance(each, kind)]

    def connected(self, connection: Any) -> bool:
        """Count a new connection as silent until its first head is complete.

        If there are too many silent connections, or too few file descriptors, the oldest silent
        one is aborted.  If descriptors are short and there is none, an idle one is closed.

        :return: whether there are enough descriptors to serve the connection.
        """
        few_files = not self.files.suffice(connection.transport, self._reserved_files)
        oldest = next(iter(self.silent), None)
        if oldest is not None and (few_files or len(self.silent) >= self.max_silent):
            oldest.abort()
            few_files = False
        self.silent[connection] = None
        return not few_files or self.close_idle()

    def enter(self, connection: Drainable) -> None:
        """Admit a connection, or a further request of one that is admitted.

        :raises ApiError: 503, with the time after which another try may help.
        """
        if self._refuses:
            raise _unavailable("The gateway is stopping.", 5)
        full = (
            connection not in self._connections and len(self._connections) >= self.max_connections
        )
        if full and not self.close_idle():
            raise _unavailable("The gateway has as many connections as it may.", 30)
        self._connections.add(connection)

    def claim(self, connection: Drainable, key: str, most: int) -> None:
        """Count an admitted connection for a client key, or remove it if the key has too many.

        :param most: how many connections the key may have.
        :raises ApiError: 429, with the time after which another try may help.
        """
        if self._key_of.get(connection) == key:
            return
        if self._of_key[key] >= most and not self.close_idle(key):
            self.leave(connection)
            raise _too_many(key, most)
        self._disclaim(connection)
        self._key_of[connection] = key
        self._of_key[key] += 1

    def mark_idle(self, connection: Drainable) -> None:
        """A connection waits for a request, and may be closed to admit another."""
        self._idle[connection] = None

    def mark_busy(self, connection: Drainable) -> None:
        """A request of it is under way, or it is closed."""
        self._idle.pop(connection, None)

    def close_idle(self, key: str | None = None) -> bool:
        """Close the connection that is idle for the longest, of this key or of any.

        :return: whether there was one.
        """
        for connection in self._idle:
            if key is None or self._key_of.get(connection) == key:
                connection.drain()
                self.leave(connection)
                return True
        return False

    def keep(self, turn: Drainable) -> None:
        """Count a turn that may outlast its connection; it may exceed the limit."""
        self._connections.add(turn)

    def leave(self, connection: Drainable) -> None:
        """A connection is gone.  May be called again."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        self._disclaim(connection)
        if not self._connections:
            waiting, self._when_empty = self._when_empty, []
            for call in waiting:
                call()

    def _disclaim(self, connection: Drainable) -> None:
        key = self._key_of.pop(connection, None)
        if key is not None:
            self._of_key[key] -= 1
            if not self._of_key[key]:
                del self._of_key[key]

    def close_doors(self, refuse: bool = True) -> None:
        """The gateway is emptied of clients.

        :param refuse: whether requests are refused from now on; not where another process listens
            for new clients, because this one then only gets those that were connected already.
        """
        self._draining = True
        self._refuses = refuse

    def open_doors(self) -> None:
        """Admit clients again."""
        self._draining = self._refuses = False
        self._when_empty.clear()

    def drain(self, later: Container[Drainable] = (), refuse: bool = True) -> None:
        """Admit no more, and let each connection close when its work is done.

        :param later: the connections that are told later, by the caller.
        :param refuse: see :meth:`close_doors`.
        """
        self.close_doors(refuse)
        for connection in list(self._connections):
            if connection not in later:
                connection.drain()

    def call_when_empty(self, call: Callable[[], None]) -> None:
        """Call once, when no connection is left."""
        if self._connections:
            self._when_empty.append(call)
        else:
            call()

    def abandon(self) -> None:
        """End whatever still runs, and close all."""
        for connection in list(self._connections):
            connection.abandon()


# --- incomplete requests -------------------------------------------------------------------


class IngressSource(Protocol):
    """A connection that receives a request."""

    @property
    def tenant(self) -> str:
        """The name of its client key; empty while that is unknown."""

    def give_up(self, error: ApiError) -> None:
        """Discard what was received of the request, and answer with ``error``."""


class IngressBuffer:
    """Counts the buffered bytes of incomplete heads, bodies and messages of all connections.

    Each has its own bound, but thousands of large ones that arrive slowly would still fill the
    memory.  When the sum exceeds ``max_bytes``, the largest request of the key that has the most
    bytes is refused.  So no key can lock others out by sending much data slowly.

    :param max_bytes: bound on the sum.
    :ivar bytes: the sum now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[IngressSource, int] = {}

    def keep(self, source: IngressSource, size: int) -> None:
        """Count so many more bytes; ``source`` may be given up before this returns."""
        self._kept[source] = self._kept.get(source, 0) + size
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._give_up_one()

    def leave(self, source: IngressSource) -> None:
        """The request of ``source`` is complete or discarded.  May be called again."""
        self.bytes -= self._kept.pop(source, 0)

    def _give_up_one(self) -> None:
        of_key: Counter[str] = Counter()
        for source, size in self._kept.items():
            of_key[source.tenant] += size
        ((most, _),) = of_key.most_common(1)
        candidates = (source for source in self._kept if source.tenant == most)
        largest = max(candidates, key=self._kept.__getitem__)
        self.leave(largest)
        largest.give_up(
            _unavailable("The gateway is receiving as much as it may; please try again.", 5)
        )


def _too_many(key: str, most: int) -> ApiError:
    return ApiError(
        429,
        "rate_limit_error",
        f"The key '{key}' has as many connections as it may, which is {most}.",
        "too_many_connections",
        headers={"retry-after": "5"},
    )


def too_many_open_files() -> ApiError:
    """503: the process may open no more files for clients."""
    return _unavailable("The gateway has as many files open as it may.", 30)


def _unavailable(message: str, retry_after: int) -> ApiError:
    return ApiError(
        503, "server_error", message, "unavailable", headers={"retry-after": str(retry_after)}
    )


# --- slow and disconnected clients ---------------------------------------------------------


def transfer_seconds(size: int, stall_seconds: float) -> float:
    """How many seconds the transfer of ``size`` bytes may take, in either direction."""
    return stall_seconds + size / MIN_BYTES_PER_SECOND


class WriteStallTimer:
    """Bounds how long a client may leave its write buffer full.

    The time depends on the size of the last write.

    :ivar last_write: bytes of the last write.
    :ivar is_stalled: whether the write buffer is full.
    """

    __slots__ = ("_clock", "_deadline", "is_stalled", "last_write")

    def __init__(self, clock: IReactorTime) -> None:
        self.last_write = 0
        self.is_stalled = False
        self._clock = clock
        self._deadline: Deadline | None = None  # few clients of ten thousand ever need one

    def begin(self, stall_seconds: float, lost: Callable[[], None]) -> None:
        """The write buffer is full: call ``lost`` unless the client reads it in time."""
        self.is_stalled = True
        self._deadline = Deadline(self._clock, lost)
        self._deadline.start(transfer_seconds(self.last_write, stall_seconds))

    def end(self) -> None:
        """The write buffer is empty."""
        self.is_stalled = False
        self.stop()

    def stop(self) -> None:
        """Wait no longer: the connection ends."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None:
            deadline.stop()


class HalfClosedSocket:
    """Watches a connection after the client closed its sending side.

    The client may still wait for its response (RFC 9293 §3.6), or be disconnected.  TCP shows the
    difference only when something is sent: a disconnected client answers with a reset.  So a
    probe that readers ignore is sent now and then, and the socket is polled for a reset, because
    Twisted does not notice one while it neither reads nor writes.

    :param transport: of a socket.
    :param probe: sends bytes that a reader ignores.
    :param gone: called once, when the client has disconnected.
    """

    def __init__(
        self,
        clock: IReactorTime,
        transport: Any,
        probe: Callable[[], None],
        gone: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._transport = transport
        self._probe = probe
        self._gone = gone
        self._began = clock.seconds()
        self._probes = iter(_PROBES)
        self._next_probe: float | None = next(self._probes)
        self._check: IDelayedCall | None = None
        self._poll()

    def stop(self) -> None:
        """The connection ends."""
        check, self._check = self._check, None
        if check is not None and check.active():
            check.cancel()

    def _poll(self) -> None:
        if self._was_reset():
            self._check = None
            self._gone()
            return
        self._check = self._clock.callLater(_RESET_CHECK_SECONDS, self._poll)
        due = self._next_probe
        if due is not None and self._clock.seconds() - self._began >= due:
            self._next_probe = next(self._probes, None)
            self._probe()

    def _was_reset(self) -> bool:
        with suppress(OSError):
            return bool(self._transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return True
