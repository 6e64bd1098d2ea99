"""The write-behind buffer: turns never wait for a write, and rows are written in batches.

What is not written yet is read from here.  While the backend cannot be reached, rows are kept up to
a bound, and written when it is back.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, TimeoutError, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.state.backend import (
    RECORDS,
    REPLICATED,
    RESPONSES,
    Feed,
    Recall,
    Recalled,
    Row,
    StateBackend,
    StateError,
)

#: Bounds on what waits to be written, and on one batch.
_MAX_PENDING_BYTES = 64 * 1024 * 1024
_MAX_PENDING_ROWS = 200_000
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_ROWS = 2_000

#: Deadlines in seconds: of a turn's read, of a write, of a whole table, of the last write.
READ_SECONDS = 1.0
_WRITE_SECONDS = 10.0
_OPEN_SECONDS = 10.0
_LAST_WRITE_SECONDS = 5.0

#: Pauses between attempts to reach a backend, in seconds: they double.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0

_log = Logger(namespace="gateway.state")

#: Makes a row when it is written: only then a value that changes often is encoded.
MakeRow = Callable[[], "Row | None"]


class BackendState(enum.Enum):
    """Whether the backend can be used."""

    CLOSED = "closed"
    OPENING = "opening"
    READY = "ready"
    UNREACHABLE = "unreachable"
    STOPPED = "stopped"


TRANSITIONS = {
    BackendState.CLOSED: {BackendState.OPENING, BackendState.STOPPED},
    BackendState.OPENING: {BackendState.READY, BackendState.UNREACHABLE, BackendState.STOPPED},
    BackendState.READY: {BackendState.UNREACHABLE, BackendState.STOPPED},
    BackendState.UNREACHABLE: {BackendState.OPENING, BackendState.STOPPED},
    BackendState.STOPPED: set(),
}


class WriteFigures(NamedTuple):
    """The buffer against its bound, for the admin side.

    :ivar written: rows that were written since the start.
    :ivar dropped: rows that were dropped at the bound.
    :ivar why: why the backend cannot be used; None if it can.
    :ivar since: unix seconds since when it cannot; None if it can.
    """

    rows: int
    bytes: int
    max_bytes: int
    written: int
    dropped: int
    why: str | None
    since: float | None


class WriteBehind:
    """Writes rows behind, and reads what memory does not have.

    :param clock: the reactor.
    :param flush_seconds: how long rows are collected; 0: until the reactor's next turn.
    :param loaded: called with each replicated table and its rows, whenever the backend was opened.
    :param feed: called with rows that other processes have changed.
    :ivar state: whether the backend can be used.
    """

    def __init__(
        self,
        backend: StateBackend,
        clock: Any,
        flush_seconds: float,
        loaded: Callable[[str, Sequence[Row]], None],
        feed: Feed,
    ) -> None:
        self.backend = backend
        self._clock = clock
        self._flush_seconds = flush_seconds
        self._loaded = loaded
        self._feed = feed
        self.state = BackendState.CLOSED
        self._pending: dict[tuple[str, bytes], Row | MakeRow] = {}
        self._pending_bytes = 0
        #: The rows of the batch that is on its way; they are read from here, too.
        self._sent: dict[tuple[str, bytes], Row] = {}
        self._flush_call: IDelayedCall | None = None
        self._retry_call: IDelayedCall | None = None
        self._pause = _FIRST_PAUSE
        self._why: str | None = None
        self._since: float | None = None
        self._written = 0
        self._dropped = 0
        self._when_open: list[Deferred[None]] = []
        self._when_flushed: list[Deferred[None]] = []

    # --- start and stop ----------------------------------------------------------------

    def start(self) -> None:
        """Open the backend, and load the replicated tables."""
        self._open()

    def stop(self) -> Deferred[None]:
        """Write what is pending, if that is possible in a few seconds, and close."""
        if self._retry_call is not None:
            self._retry_call.cancel()
            self._retry_call = None
        flushed = self.flush() if self.state is BackendState.READY else succeed(None)
        flushed.addTimeout(_LAST_WRITE_SECONDS, self._clock)
        flushed.addErrback(self._unwritten)
        return flushed.addCallback(lambda _: self._stopped())

    def _unwritten(self, failure: Failure) -> None:
        _log.error("the last changes of the state could not be written")

    def _stopped(self) -> Deferred[None]:
        self._enter(BackendState.STOPPED)
        if self._flush_call is not None:
            self._flush_call.cancel()
            self._flush_call = None
        self._opened()
        closed = self.backend.close()
        closed.addTimeout(_LAST_WRITE_SECONDS, self._clock)
        return closed.addErrback(lambda _: None)

    @property
    def why_unreachable(self) -> str | None:
        """Why the backend cannot be used, for the operator; None if it can."""
        return self._why

    def figures(self) -> WriteFigures:
        """How much waits to be written."""
        rows = len(self._pending) + len(self._sent)
        return WriteFigures(
            rows,
            self._pending_bytes,
            _MAX_PENDING_BYTES,
            self._written,
            self._dropped,
            self._why,
            self._since,
        )

    # --- writing -----------------------------------------------------------------------

    def put(self, row: Row) -> None:
        """Write a row soon; it replaces one of the same key that is not written yet."""
        place = (row.table, row.key or row.conversation.encode())
        self._forget_pending(place)
        self._pending[place] = row
        self._pending_bytes += row.size
        self._schedule()
        if self._pending_bytes > _MAX_PENDING_BYTES or len(self._pending) > _MAX_PENDING_ROWS:
            self._drop()

    def put_later(self, table: str, key: bytes, make: MakeRow) -> None:
        """Write the row that ``make`` returns at that time; for values that change often."""
        place = (table, key)
        if self._pending.get(place) is not make:
            self._forget_pending(place)
            self._pending[place] = make
            self._schedule()

    def flush(self) -> Deferred[None]:
        """Write what is pending now.

        :return: fires when it is written; fails when the backend cannot be used.
        """
        if self.state is not BackendState.READY:
            return fail(StateError(self._why or "the state is not open"))
        if not self._pending and not self._sent:
            return succeed(None)
        flushed: Deferred[None] = Deferred()
        self._when_flushed.append(flushed)
        self._flush()
        return flushed

    def _forget_pending(self, place: tuple[str, bytes]) -> None:
        before = self._pending.pop(place, None)
        if isinstance(before, Row):
            self._pending_bytes -= before.size

    def _schedule(self) -> None:
        if self._flush_call is None and not self._sent and self.state is BackendState.READY:
            self._flush_call = self._clock.callLater(self._flush_seconds, self._flush)

    def _flush(self) -> None:
        if self._flush_call is not None and self._flush_call.active():
            self._flush_call.cancel()
        self._flush_call = None
        if self._sent or self.state is not BackendState.READY:
            return
        self._sent = self._next_batch()
        if not self._sent:
            self._flushed()
            return
        try:
            written = self.backend.write(list(self._sent.values()))
        except Exception:
            written = fail(Failure())
        written.addTimeout(_WRITE_SECONDS, self._clock)
        written.addCallbacks(self._batch_written, self._batch_failed)
        written.addErrback(lambda failure: _log.failure("the state cannot be written", failure))

    def _next_batch(self) -> dict[tuple[str, bytes], Row]:
        batch: dict[tuple[str, bytes], Row] = {}
        size = 0
        while self._pending and len(batch) < _BATCH_ROWS and size < _BATCH_BYTES:
            place = next(iter(self._pending))
            waiting = self._pending.pop(place)
            if isinstance(waiting, Row):
                self._pending_bytes -= waiting.size
                row: Row | None = waiting
            else:
                row = waiting()
            if row is not None:
                batch[place] = row
                size += row.size
        return batch

    def _batch_written(self, _: None) -> None:
        self._written += len(self._sent)
        self._sent = {}
        if self._when_flushed:
            self._flush()
        elif self._pending:
            self._schedule()

    def _batch_failed(self, failure: Failure) -> None:
        """Keep the rows for the next attempt, before newer ones; newer values win."""
        sent, self._sent = self._sent, {}
        later = self._pending
        self._pending = {place: row for place, row in sent.items() if place not in later}
        self._pending_bytes += sum(
            row.size for row in self._pending.values() if isinstance(row, Row)
        )
        self._pending.update(later)
        self._lost(failure)

    def _flushed(self) -> None:
        waiting, self._when_flushed = self._when_flushed, []
        for each in waiting:
            each.callback(None)

    def _drop(self) -> None:
        """Drop the oldest content first; the small rows say more per byte."""
        if not self._dropped:
            _log.error("the state is written too slowly: conversations are no longer written")
        contents = [place for place in self._pending if place[0] in (RECORDS, RESPONSES)]
        for place in contents[: max(1, len(contents) // 2)] or list(self._pending)[:1]:
            self._forget_pending(place)
            self._dropped += 1

    # --- reading -----------------------------------------------------------------------

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read rows and a conversation; what is not written yet is read from the buffer.

        :return: fails with :class:`StateError` when the backend cannot be used.
        """
        rows: dict[tuple[str, bytes], bytes] = {}
        missing = []
        for place in wanted.rows:
            found = self._buffered(place)
            if found is None:
                missing.append(place)
            elif found.value is not None:
                rows[place] = found.value
        records, response, record = self._buffered_records(wanted.response)
        if not missing and response is None and record is None:
            return succeed(Recalled(rows, records))
        if self.state is BackendState.OPENING:
            opened: Deferred[None] = Deferred()
            self._when_open.append(opened)
            return opened.addCallback(lambda _: self.read(wanted))
        if self.state is not BackendState.READY:
            return fail(StateError(self._why or "the state is not open"))
        answer = self.backend.read(Recall(missing, response, record))
        answer.addTimeout(READ_SECONDS, self._clock)
        answer.addCallback(
            lambda found: Recalled({**rows, **found.rows}, [*records, *found.records])
        )
        return answer.addErrback(self._read_failed)

    def _buffered(self, place: tuple[str, bytes]) -> Row | None:
        found = self._pending.get(place) or self._sent.get(place)
        return found() if callable(found) else found

    def _buffered_records(
        self, response: bytes | None
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None, bytes | None]:
        """The records in the buffer, and what the backend must be asked for.

        A record is written after its parent, so those in the buffer are the latest ones.

        :return: the records, the digest of a response that is not in the buffer, and the key of
            the record that continues what was found.
        """
        index = None if response is None else self._buffered((RESPONSES, response))
        if index is None:
            return [], response, None
        records = []
        key = index.value or b""
        while key:
            row = self._buffered((RECORDS, key))
            if row is None or row.value is None:
                break
            records.append((row.key, row.value))
            key = row.parent
        return records, None, key or None

    def _read_failed(self, failure: Failure) -> Recalled:
        self._lost(failure)
        raise StateError(self._why or "") from None

    # --- the backend's availability ----------------------------------------------------

    def _open(self) -> None:
        self._retry_call = None
        self._enter(BackendState.OPENING)
        opened = self._opened_and_loaded()
        opened.addTimeout(_OPEN_SECONDS, self._clock)
        opened.addCallbacks(lambda _: self._is_ready(), self._lost)
        opened.addErrback(lambda failure: _log.failure("the state cannot be opened", failure))

    def _opened_and_loaded(self) -> Deferred[Any]:
        opened: Deferred[Any] = self.backend.open(self._feed)
        for table in REPLICATED:
            opened.addCallback(self._load, table)
        return opened

    def _load(self, _: None, table: str) -> Deferred[None]:
        return self.backend.scan(table).addCallback(partial(self._loaded, table))

    def _is_ready(self) -> None:
        if self.state is not BackendState.OPENING:
            return
        self._enter(BackendState.READY)
        if self._why is not None:
            _log.info("the state is kept again in {where}", where=self.backend.name)
        self._why = self._since = None
        self._pause = _FIRST_PAUSE
        self._opened()
        if self._pending:
            self._schedule()

    def _opened(self) -> None:
        waiting, self._when_open = self._when_open, []
        for each in waiting:
            each.callback(None)

    def _lost(self, failure: Failure) -> None:
        """The backend failed: go on without it, and try it again later."""
        if self.state in (BackendState.UNREACHABLE, BackendState.STOPPED):
            return
        error = failure.value
        why = "it does not answer in time" if isinstance(error, TimeoutError) else str(error)
        if not isinstance(error, (StateError, TimeoutError)):
            _log.failure("the state failed", failure)
        if self._why is None:
            self._since = self._clock.seconds()
            _log.error(
                "the state cannot be kept in {where}: {why}; turns go on from memory",
                where=self.backend.name,
                why=why,
            )
        self._why = why
        self._enter(BackendState.UNREACHABLE)
        waiting, self._when_flushed = self._when_flushed, []
        for each in waiting:
            each.errback(StateError(why))
        self._opened()
        self._retry_call = self._clock.callLater(self._pause, self._open)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _enter(self, state: BackendState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"a backend cannot go from {self.state} to {state}")
        self.state = state
