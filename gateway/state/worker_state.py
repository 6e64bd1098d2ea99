"""The state of several workers: their supervisor keeps it, and tells each what the others change.

A worker's :class:`LinkBackend` gives every change to the :class:`StateServer` of the supervisor at
once, so that the next worker finds it there.  The supervisor writes it to disk behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from gateway.state.backend import (
    REPLICATED,
    VOLATILE,
    Feed,
    Recall,
    Recalled,
    Row,
    StateBackend,
    StateError,
)
from gateway.state.write_behind import WriteBehind
from gateway.worker_link import Link, LinkError

#: The methods of the link.
_WRITE, _READ, _SCAN, _FEED = "state.write", "state.read", "state.scan", "state.feed"

#: Bound on the rows of the replicated tables that the supervisor has in memory.
MAX_ROWS = 500_000

#: How often rows that have expired are dropped, in seconds.
_EXPIRE_SECONDS = 60.0

_Value = TypeVar("_Value")

_encode = msgspec.msgpack.Encoder().encode


class _FoundRows(msgspec.Struct, array_like=True, frozen=True):
    """:class:`Recalled` as it travels: a mapping with pairs as keys cannot."""

    rows: list[tuple[str, bytes, bytes]]
    records: list[tuple[bytes, bytes]]


class LinkBackend:
    """A worker's side: the state that its supervisor keeps.

    :param link: to the supervisor.
    """

    name = "the supervisor"
    shared = True

    def __init__(self, link: Link) -> None:
        self.link = link

    def open(self, feed: Feed) -> Deferred[None]:
        """Follow what other workers change."""
        self.link.handle(_FEED, lambda payload: feed(_decode(payload, list[Row])))
        return succeed(None)

    def scan(self, table: str) -> Deferred[list[Row]]:
        """All rows of a table that have not expired."""
        return self._call(_SCAN, table, list[Row])

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read some rows, and one conversation."""
        return self._call(_READ, wanted, _FoundRows).addCallback(
            lambda found: Recalled(
                {(table, key): value for table, key, value in found.rows}, found.records
            )
        )

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows, in this order."""
        return self._call(_WRITE, rows, type(None))

    def close(self) -> Deferred[None]:
        """The link has an owner of its own."""
        return succeed(None)

    def _call(
        self, method: str, value: Any, kind: Callable[..., _Value] | type[_Value]
    ) -> Deferred[_Value]:
        answer = self.link.call(method, _encode(value))
        return answer.addCallbacks(lambda payload: _decode(payload, kind), _failed)


def _failed(failure: Failure) -> Any:
    failure.trap(LinkError)
    raise StateError(failure.getErrorMessage())


def _decode(payload: bytes, kind: Callable[..., _Value] | type[_Value]) -> _Value:
    value: _Value = msgspec.msgpack.decode(payload, type=kind)
    return value


class StateServer(Service):
    """The supervisor's side: keeps the state of all workers.

    The replicated tables are in memory, so that a worker that starts gets them although the disk
    fails, or is behind.

    :param clock: the reactor.
    :param backend: keeps what is not volatile.
    :param flush_seconds: how long changes are collected before they are written.
    :ivar writes: the buffer of what is not written yet.
    """

    def __init__(self, clock: Any, backend: StateBackend, flush_seconds: float) -> None:
        self._clock = clock
        self._links: list[Link] = []
        self._rows: dict[str, dict[bytes, Row]] = {table: {} for table in REPLICATED}
        self._expiry = LoopingCall(self._expire)
        self._expiry.clock = clock
        self.writes = WriteBehind(backend, clock, flush_seconds, self._loaded, _ignore)

    def startService(self) -> None:
        """Load the state."""
        super().startService()
        self._expiry.start(_EXPIRE_SECONDS, now=False)
        self.writes.start()

    def stopService(self) -> Deferred[Any]:
        """Write what is not written yet; the workers have ended."""
        super().stopService()
        self._expiry.stop()
        return maybeDeferred(self.writes.stop)

    @property
    def rows_kept(self) -> int:
        """Rows in memory; at most :data:`MAX_ROWS`."""
        return sum(len(rows) for rows in self._rows.values())

    def row(self, table: str, key: bytes) -> Row | None:
        """A row of a replicated table, if it is known."""
        found = self._rows[table].get(key)
        return None if found is None or found.expires_at <= self._clock.seconds() else found

    def serve(self, link: Link) -> None:
        """Serve a worker until its link ends."""
        self._links.append(link)
        link.closed.addCallback(self._gone)
        link.handle(_WRITE, lambda payload: self._write(link, payload))
        link.handle(_READ, self._read)
        link.handle(_SCAN, self._scan)

    def _gone(self, link: Link) -> Link:
        self._links.remove(link)
        return link

    def _write(self, link: Link, payload: bytes) -> bytes:
        rows = _decode(payload, list[Row])
        for row in rows:
            if row.table in self._rows:
                self._keep(row)
            if row.table not in VOLATILE:
                self.writes.put(row)
        followed = [row for row in rows if row.table in self._rows]
        if followed:
            told = _encode(followed)
            for each in self._links:
                if each is not link:
                    each.tell(_FEED, told)
        return _encode(None)

    def _read(self, payload: bytes) -> Deferred[bytes]:
        return self.writes.read(_decode(payload, Recall)).addCallback(_found)

    def _scan(self, payload: bytes) -> bytes:
        now = self._clock.seconds()
        rows = self._rows.get(_decode(payload, str), {}).values()
        return _encode([row for row in rows if row.expires_at > now])

    # --- the rows in memory ------------------------------------------------------------

    def _loaded(self, table: str, rows: Sequence[Row]) -> None:
        """Rows from disk; what workers wrote meanwhile is newer.

        A database that began anew gets what is known here.
        """
        known = self._rows[table]
        missing = known.keys() - {row.key for row in rows}
        for row in rows:
            if not self.writes.waits(table, row.key):
                known.setdefault(row.key, row)
        if table in VOLATILE:
            return
        for key in missing:
            if not self.writes.waits(table, key):
                self.writes.put(known[key])

    def _keep(self, row: Row) -> None:
        rows = self._rows[row.table]
        rows.pop(row.key, None)
        if row.value is not None:
            rows[row.key] = row
        if self.rows_kept > MAX_ROWS:
            largest = max(self._rows.values(), key=len)
            del largest[next(iter(largest))]

    def _expire(self) -> None:
        now = self._clock.seconds()
        for table, rows in self._rows.items():
            self._rows[table] = {key: row for key, row in rows.items() if row.expires_at > now}


def _found(found: Recalled) -> bytes:
    rows = [(table, key, value) for (table, key), value in found.rows.items()]
    return _encode(_FoundRows(rows, list(found.records)))


def _ignore(rows: Sequence[Row]) -> None:
    """Nobody but the workers changes the rows."""
