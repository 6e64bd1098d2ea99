"""A backend without a disk and without a thread, which fails and hangs as a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, fail, maybeDeferred, succeed
from twisted.internet.task import Clock

from gateway.state.backend import Feed, Recall, Recalled, Row, StateError
from gateway.state.database import Database
from gateway.state.write_behind import WriteBehind

DAY = 86_400.0
FLUSH = 0.2

#: Longer than any pause between attempts.
LATER = 20.0


class FakeBackend:
    """A database in memory.

    :ivar trouble: what every call fails with.
    :ivar write_trouble: what every write fails with.
    :ivar hangs: whether calls wait for :meth:`go_on`.
    :ivar written: all rows that were written, in order.
    """

    name, shared = "sqlite /somewhere", False

    def __init__(self, now: Callable[[], float]) -> None:
        self.database = Database(None, 2**30, 30 * DAY, now)
        self.database.open()
        self.trouble: Exception | None = None
        self.write_trouble: Exception | None = None
        self.hangs = False
        self.written: list[Row] = []
        self.batches = 0
        self.calls = 0
        self.closed = False
        self._waiting: list[Callable[[], None]] = []

    def open(self, feed: Feed) -> Deferred[None]:
        return self._call(lambda: None)

    def scan(self, table: str) -> Deferred[list[Row]]:
        return self._call(lambda: self.database.scan(table))

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        return self._call(lambda: self.database.read(wanted))

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        if self.write_trouble is not None and self.trouble is None:
            return fail(self.write_trouble)
        return self._call(lambda: self._write(rows))

    def _write(self, rows: Sequence[Row]) -> None:
        self.batches += 1
        self.written += rows
        self.database.write(rows)

    def close(self) -> Deferred[None]:
        self.closed = True
        return self._call(lambda: None)

    def begin_anew(self) -> None:
        """Lose everything."""
        self.database.close()
        self.database.open()

    def go_on(self) -> None:
        """Answer what hung, in order."""
        self.hangs = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each()

    def forget_what_hung(self) -> None:
        """Answer again, but nothing of what hung was done."""
        self.hangs = False
        self._waiting = []

    def _call(self, call: Callable[[], Any]) -> Deferred[Any]:
        self.calls += 1
        if self.trouble is not None:
            return fail(self.trouble)
        if not self.hangs:
            return maybeDeferred(call)
        answer: Deferred[Any] = Deferred()
        self._waiting.append(lambda: self._answer(answer, call))
        return answer

    def _answer(self, answer: Deferred[Any], call: Callable[[], Any]) -> None:
        result = call()  # done also if nobody waits any longer
        if not answer.called:
            answer.callback(result)


class Behind:
    """A write-behind buffer on such a backend."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.backend = FakeBackend(self.clock.seconds)
        self.loaded: dict[str, list[Row]] = {}
        self.writes = self.again()

    def again(self) -> WriteBehind:
        """A new process on the same backend, which was not stopped: as after a crash."""
        self.writes = WriteBehind(
            self.backend,
            self.clock,
            FLUSH,
            lambda table, rows: self.loaded.__setitem__(table, list(rows)),
            lambda rows: None,
        )
        return self.writes

    def started(self) -> Behind:
        self.writes.start()
        return self

    def pass_time(self, seconds: float) -> None:
        """In small steps, as timers follow each other."""
        steps = max(1, round(seconds / 0.1))
        for _ in range(steps):
            self.clock.advance(seconds / steps)

    def read(self, wanted: Recall) -> Any:
        """What a read gave at once, or its failure."""
        got: list[Any] = []
        self.writes.read(wanted).addBoth(got.append)
        return got[0] if got else None


def disk_full() -> StateError:
    return StateError("/somewhere/state.db cannot be used: database or disk is full")


def value_of(answer: Deferred[Any]) -> Any:
    """The result of a Deferred that has fired."""
    got: list[Any] = []
    answer.addBoth(got.append)
    return got[0] if got else None


def done() -> Deferred[None]:
    return succeed(None)
