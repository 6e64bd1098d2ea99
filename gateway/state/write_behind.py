"""The write-behind buffer: turns never wait for a write, and rows are written in batches.

What is not written yet is read from here.  While the backend cannot be reached, rows are kept up to
a bound, and written when it is back.  A backend counts as back once it has taken a write, because a
full disk can be opened, too.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, TimeoutError, fail, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.state.backend import (
    REPLICATED,
    Feed,
    Recall,
    Recalled,
    Row,
    StateBackend,
    StateError,
)
from gateway.state.pending_rows import MAX_PENDING_BYTES, MakeRow, PendingRows

#: Deadlines in seconds: of a turn's read, of a write, of a whole table, of the last write.
READ_SECONDS = 1.0
_WRITE_SECONDS = 10.0
_OPEN_SECONDS = 30.0
_LAST_WRITE_SECONDS = 5.0

#: How often a backend that others change is asked whether it still answers, in seconds.
_WATCH_SECONDS = 1.0

#: Pauses between attempts to reach a backend, in seconds: they double.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0

_log = Logger(namespace="gateway.state")


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
    :ivar writes: batches that were written, and the seconds that they took.
    :ivar written_at: unix seconds of the last one.
    :ivar why: why the backend cannot be used; None if it can.
    :ivar since: unix seconds since when it cannot; None if it can.
    """

    rows: int
    bytes: int
    max_bytes: int
    written: int
    dropped: int
    writes: int
    write_seconds: float
    written_at: float | None
    why: str | None
    since: float | None


class WriteBehind:
    """Writes rows behind, and reads what memory does not have.

    :param clock: the reactor.
    :param flush_seconds: how long rows are collected; 0: until the reactor's next turn.
    :param loaded: called with each replicated table and its rows, whenever the backend was opened.
    :param feed: called with rows that other processes have changed.
    :ivar state: whether the backend can be used.
    :ivar losses: counts the times after which the backend may lack earlier rows: some were
        dropped, or it began anew.
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
        self.losses = 0
        self._pending = PendingRows()
        self._flush_call: IDelayedCall | None = None
        self._retry_call: IDelayedCall | None = None
        self._watch_call: IDelayedCall | None = None
        #: What others changed while the tables were being read.
        self._fed: list[Sequence[Row]] = []
        self._pause = _FIRST_PAUSE
        self._why: str | None = None
        self._since: float | None = None
        #: Whether a backend that takes no writes still answers reads, as a full disk does.
        self._readable = False
        self._written = 0
        self._writes = 0
        self._write_seconds = 0.0
        self._written_at: float | None = None
        self._began_write = 0.0
        self._drop_is_known = False
        self._when_open: list[Deferred[None]] = []
        self._when_flushed: list[Deferred[None]] = []

    # --- start and stop ----------------------------------------------------------------

    def start(self) -> None:
        """Open the backend, and load the replicated tables."""
        self._open()

    def stop(self) -> Deferred[None]:
        """Write what is pending, if that is possible in a few seconds, and close."""
        if self.state is BackendState.STOPPED:
            return succeed(None)
        flushed = self.flush() if len(self._pending) else succeed(None)
        flushed.addTimeout(_LAST_WRITE_SECONDS, self._clock)
        flushed.addErrback(self._unwritten)
        return flushed.addCallback(lambda _: self._stopped())

    def _unwritten(self, failure: Failure) -> None:
        rows = len(self._pending)
        _log.error("the last {rows} changes of the state could not be written", rows=rows)

    def _stopped(self) -> Deferred[None]:
        self._enter(BackendState.STOPPED)
        self._stop_calls()
        self._opened()
        closed = self.backend.close()
        closed.addTimeout(_LAST_WRITE_SECONDS, self._clock)
        return closed.addErrback(lambda _: None)

    def _stop_calls(self) -> None:
        for each in (self._flush_call, self._watch_call, self._retry_call):
            if each is not None:
                each.cancel()
        self._flush_call = self._watch_call = self._retry_call = None

    def figures(self) -> WriteFigures:
        """How much waits to be written."""
        pending = self._pending
        return WriteFigures(
            len(pending),
            pending.bytes,
            MAX_PENDING_BYTES,
            self._written,
            pending.dropped,
            self._writes,
            self._write_seconds,
            self._written_at,
            self._why,
            self._since,
        )

    # --- writing -----------------------------------------------------------------------

    def put(self, row: Row) -> None:
        """Write a row soon; it replaces one of the same key that is not written yet."""
        self._added(self._pending.put(row))

    def put_later(self, table: str, key: bytes, make: MakeRow) -> None:
        """Write the row that ``make`` returns at that time; for values that change often."""
        self._added(self._pending.put_later(table, key, make))

    def waits(self, table: str, key: bytes) -> bool:
        """Whether a row is not written yet, so that what the backend has of it is old."""
        return self._pending.has(table, key)

    def began_anew(self) -> None:
        """The backend has lost what it had."""
        self.losses += 1

    def _added(self, complete: bool) -> None:
        self._note_drops(complete)
        self._schedule()

    def _note_drops(self, complete: bool) -> None:
        if not complete and not self._drop_is_known:
            self._drop_is_known = True
            _log.error("the state is written too slowly: some conversations are not written")

    def flush(self) -> Deferred[None]:
        """Write what is pending now.

        :return: fires when it is written; fails when the backend cannot be used.
        """
        if self.state is not BackendState.READY:
            return fail(StateError(self._why or "the state is not open"))
        if not len(self._pending):
            return succeed(None)
        flushed: Deferred[None] = Deferred()
        self._when_flushed.append(flushed)
        self._flush()
        return flushed

    def _schedule(self) -> None:
        if self._flush_call is None and not self._pending.sent and self.state is BackendState.READY:
            self._flush_call = self._clock.callLater(self._flush_seconds, self._flush)

    def _flush(self) -> None:
        if self._flush_call is not None and self._flush_call.active():
            self._flush_call.cancel()
        self._flush_call = None
        if self._pending.sent or self.state is not BackendState.READY:
            return
        batch = self._pending.next_batch()
        if not batch:
            self._flushed()
            return
        self._began_write = self._clock.seconds()
        written = maybeDeferred(self.backend.write, batch)
        written.addTimeout(_WRITE_SECONDS, self._clock)
        written.addCallbacks(self._batch_written, self._batch_failed)
        written.addErrback(lambda failure: _log.failure("the state cannot be written", failure))

    def _batch_written(self, _: None) -> None:
        self._written += self._pending.sent
        self._pending.batch_written()
        self._writes += 1
        self._written_at = self._clock.seconds()
        self._write_seconds += max(0.0, self._written_at - self._began_write)
        self._recovered()
        if self._when_flushed:
            self._flush()
        elif self._pending.waiting:
            self._schedule()

    def _batch_failed(self, failure: Failure) -> None:
        complete = self._pending.batch_failed()
        self._lost(failure)
        self._note_drops(complete)
        # A disk that takes no writes may be read; one that hangs is not asked again.
        self._readable = failure.check(StateError) is not None

    def _flushed(self) -> None:
        waiting, self._when_flushed = self._when_flushed, []
        for each in waiting:
            each.callback(None)

    # --- reading -----------------------------------------------------------------------

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read rows and a conversation; what is not written yet is read from the buffer.

        :return: fails with :class:`StateError` when the backend cannot be used.
        """
        rows: dict[tuple[str, bytes], bytes] = {}
        missing = []
        for place in wanted.rows:
            found = self._pending.find(place)
            if found is None:
                missing.append(place)
            elif found.value is not None:
                rows[place] = found.value
        records, rest = self._pending.records(wanted.response)
        if not missing and rest.response is None and rest.record is None:
            return succeed(Recalled(rows, records))
        if self._opens_first:
            return self.when_open().addCallback(lambda _: self.read(wanted))
        if self.state is not BackendState.READY and not self._readable:
            return fail(StateError(self._why or "the state is not open"))
        answer = maybeDeferred(self.backend.read, rest._replace(rows=missing))
        answer.addTimeout(READ_SECONDS, self._clock)
        answer.addCallback(self._merged, rows, records)
        return answer.addErrback(self._read_failed)

    def _merged(
        self,
        found: Recalled,
        rows: dict[tuple[str, bytes], bytes],
        records: list[tuple[bytes, bytes]],
    ) -> Recalled:
        """What was found here and there, without conversations that are about to be deleted."""
        older = found.records
        if older and self._pending.deletes(older[-1][0]):
            older = ()
        return Recalled({**rows, **found.rows}, [*records, *older])

    def _read_failed(self, failure: Failure) -> Recalled:
        self._read_lost(failure)
        raise StateError(self._why or _text_of(failure)) from None

    # --- the backend's availability ----------------------------------------------------

    def _open(self) -> None:
        self._retry_call = None
        self._enter(BackendState.OPENING)
        opened = self._opened_and_loaded()
        opened.addTimeout(_OPEN_SECONDS, self._clock)
        opened.addCallbacks(lambda _: self._is_ready(), self._read_lost)
        opened.addErrback(lambda failure: _log.failure("the state cannot be opened", failure))

    def _opened_and_loaded(self) -> Deferred[Any]:
        self._fed = []
        opened: Deferred[Any] = maybeDeferred(self.backend.open, self._take)
        opened.addCallback(self._can_read)
        for table in REPLICATED:
            opened.addCallback(self._load, table)
        return opened

    def _can_read(self, _: None) -> None:
        """Turns need not wait until large tables are loaded."""
        if self.state is BackendState.OPENING:
            self._readable = True
            self._opened()

    def _load(self, _: None, table: str) -> Deferred[None]:
        return self.backend.scan(table).addCallback(partial(self._loaded, table))

    def _take(self, rows: Sequence[Row]) -> None:
        """Rows that others have changed: newer than the tables that are being read."""
        if self.state is BackendState.OPENING:
            self._fed.append(rows)
        else:
            self._feed(rows)

    def _is_ready(self) -> None:
        if self.state is not BackendState.OPENING:
            return
        self._enter(BackendState.READY)
        self._readable = False
        fed, self._fed = self._fed, []
        for rows in fed:
            self._feed(rows)
        if self.backend.shared:
            self._watch_call = self._clock.callLater(_WATCH_SECONDS, self._watch)
        self._opened()
        if self._pending.waiting:
            self._schedule()  # the write shows whether it is back
        else:
            self._recovered()

    def _watch(self) -> None:
        """Whether it still answers, also while no turn asks it: others must be heard."""
        self._watch_call = None
        answer = maybeDeferred(self.backend.read, Recall())
        answer.addTimeout(READ_SECONDS, self._clock)
        answer.addCallbacks(lambda _: self._watch_on(), self._read_lost)

    def _watch_on(self) -> None:
        if self.state is BackendState.READY and self._watch_call is None:
            self._watch_call = self._clock.callLater(_WATCH_SECONDS, self._watch)

    def _read_lost(self, failure: Failure) -> None:
        self._readable = False
        self._lost(failure)

    def _recovered(self) -> None:
        """The backend can be used."""
        if self._why is not None:
            _log.info("the state is kept again in {where}", where=self.backend.name)
        self._why = self._since = None
        self._pause = _FIRST_PAUSE
        if self._drop_is_known and not self._pending.waiting:
            self._drop_is_known = False
            self.losses += 1

    @property
    def _opens_first(self) -> bool:
        return self.state is BackendState.OPENING and self._why is None and not self._readable

    def when_open(self) -> Deferred[None]:
        """Fires when the backend is open, or cannot be opened; at once but for the first time."""
        if not self._opens_first:
            return succeed(None)
        opened: Deferred[None] = Deferred()
        self._when_open.append(opened)
        return opened

    def _opened(self) -> None:
        waiting, self._when_open = self._when_open, []
        for each in waiting:
            each.callback(None)

    def _lost(self, failure: Failure) -> None:
        """The backend failed: go on without it, and try it again later."""
        if self.state in (BackendState.UNREACHABLE, BackendState.STOPPED):
            return
        why = _text_of(failure)
        if failure.check(StateError, TimeoutError) is None:
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
        self._stop_calls()
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


def _text_of(failure: Failure) -> str:
    error = failure.value
    return "it does not answer in time" if isinstance(error, TimeoutError) else str(error)
