"""Workers continue each other's conversations: their supervisor has what each of them writes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from gateway.state.backend import (
    BINDINGS,
    COOLDOWNS,
    OWNERS,
    Feed,
    Recall,
    Recalled,
    Row,
    StateError,
)
from gateway.state.database import Database
from gateway.state.worker_state import LinkBackend, StateServer
from gateway.worker_link import Link

LATER = 10**10


class Wire:
    """Two ends of a link; :meth:`pump` brings what each wrote to the other."""

    def __init__(self, clock: Clock) -> None:
        self.ends = [Link(clock), Link(clock)]
        self.transports = [_Transport(), _Transport()]
        for link, transport in zip(self.ends, self.transports, strict=True):
            link.makeConnection(transport)

    def pump(self) -> None:
        for here, there in ((0, 1), (1, 0)):
            data = self.transports[here].value()
            self.transports[here].clear()
            if data:
                self.ends[there].dataReceived(data)


class _Transport(StringTransport):
    def registerProducer(self, producer: object, streaming: bool) -> None:
        """Nothing slows it down."""


class MemoryBackend:
    """A backend on a database in memory, without a thread.

    :ivar begins_anew: whether it is empty when it is opened again.
    """

    name, shared = "memory", False

    def __init__(self) -> None:
        self.database = Database(None, 2**30, 86_400.0)
        self.database.open()
        self.fails = self.begins_anew = False

    def open(self, feed: Feed) -> Deferred[None]:
        if self.begins_anew:
            self.database.open()
        return succeed(None)

    def scan(self, table: str) -> Deferred[list[Row]]:
        return succeed(self.database.scan(table))

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        return succeed(self.database.read(wanted))

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        if self.fails:
            return fail(StateError("the disk is full"))
        self.database.write(rows)
        return succeed(None)

    def close(self) -> Deferred[None]:
        self.database.close()
        return succeed(None)


class Whole:
    """A supervisor and two workers."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1_000_000.0)
        self.backend = MemoryBackend()
        self.server = StateServer(self.clock, self.backend, 0.2)
        self.server.startService()
        self.wires = [Wire(self.clock) for _ in range(2)]
        self.workers = []
        self.fed: list[list[Row]] = [[], []]
        for wire, fed in zip(self.wires, self.fed, strict=True):
            self.server.serve(wire.ends[1])
            worker = LinkBackend(wire.ends[0])
            worker.open(fed.extend)
            self.workers.append(worker)

    def settle(self, answer: Deferred[object]) -> object:
        results: list[object] = []
        answer.addBoth(results.append)
        for _ in range(4):
            for wire in self.wires:
                wire.pump()
        assert results, "the supervisor answers at once"
        return results[0]


@pytest.fixture
def whole() -> Whole:
    return Whole()


def test_what_one_worker_writes_another_reads_at_once(whole: Whole) -> None:
    one, two = whole.workers
    whole.settle(one.write([Row(OWNERS, b"k", b"account", LATER, "desk")]))
    found = whole.settle(two.read(Recall([(OWNERS, b"k"), (OWNERS, b"unknown")])))
    assert found == Recalled({(OWNERS, b"k"): b"account"}, [])


def test_other_workers_follow_the_replicated_tables(whole: Whole) -> None:
    one, two = whole.workers
    rows = [Row(BINDINGS, b"k", b"v", LATER, "desk"), Row(COOLDOWNS, b"a", b"w", LATER)]
    whole.settle(one.write([*rows, Row(OWNERS, b"k", b"account", LATER)]))
    assert whole.fed == [[], rows], "expected the rows at the other worker only"
    assert whole.settle(two.scan(BINDINGS)) == rows[:1]
    assert whole.settle(two.scan(COOLDOWNS)) == rows[1:], "a worker that starts knows cooldowns"


def test_volatile_rows_are_not_written_to_disk(whole: Whole) -> None:
    whole.settle(whole.workers[0].write([Row(COOLDOWNS, b"a", b"w", LATER)]))
    whole.clock.advance(1)
    assert whole.backend.database.scan(COOLDOWNS) == []


def test_a_full_disk_does_not_part_the_workers(whole: Whole) -> None:
    whole.backend.fails = True
    one, two = whole.workers
    row = Row(OWNERS, b"k", b"account", LATER)
    whole.settle(one.write([row, Row(BINDINGS, b"b", b"v", LATER)]))
    whole.clock.advance(1)
    assert whole.server.writes.figures().why == "the disk is full"
    assert whole.settle(two.read(Recall([(OWNERS, b"k")]))).rows, "it is still in the buffer"
    assert len(whole.settle(two.scan(BINDINGS))) == 1
    whole.backend.fails = False
    whole.clock.pump([1.0] * 20)
    assert whole.backend.database.read(Recall([(OWNERS, b"k")])).rows


def test_what_is_deleted_while_the_disk_is_gone_does_not_come_back(whole: Whole) -> None:
    one, two = whole.workers
    whole.settle(one.write([Row(BINDINGS, b"b", b"v", LATER)]))
    whole.clock.advance(1)
    whole.backend.fails = True
    whole.settle(one.write([Row(BINDINGS, b"b", None, 0.0)]))
    whole.clock.pump([1.0] * 5)  # it is opened again, and takes no writes
    assert whole.settle(two.scan(BINDINGS)) == []
    whole.backend.fails = False
    whole.clock.pump([1.0] * 20)
    assert whole.backend.database.scan(BINDINGS) == []


def test_a_database_that_began_anew_gets_what_the_supervisor_knows(whole: Whole) -> None:
    row = Row(BINDINGS, b"b", b"v", float(LATER))
    whole.settle(whole.workers[0].write([row, Row(COOLDOWNS, b"c", b"v", LATER)]))
    whole.clock.advance(1)
    whole.backend.fails = True
    whole.settle(whole.workers[0].write([Row(OWNERS, b"k", b"account", LATER)]))
    whole.clock.advance(1)
    whole.backend.fails, whole.backend.begins_anew = False, True
    whole.clock.pump([1.0] * 20)
    assert whole.backend.database.scan(BINDINGS) == [row]
    assert whole.backend.database.scan(COOLDOWNS) == []


def test_rows_expire(whole: Whole) -> None:
    one, two = whole.workers
    whole.settle(one.write([Row(BINDINGS, b"k", b"v", whole.clock.seconds() + 100)]))
    assert whole.server.rows_kept == 1
    whole.clock.pump([60.0] * 3)
    assert whole.settle(two.scan(BINDINGS)) == []
    assert whole.server.rows_kept == 0


def test_a_worker_that_is_gone_is_told_nothing(whole: Whole) -> None:
    whole.wires[1].ends[1].connectionLost()
    whole.settle(whole.workers[0].write([Row(BINDINGS, b"k", b"v", LATER)]))
    assert whole.fed == [[], []]


def test_without_its_supervisor_a_worker_has_no_state(whole: Whole) -> None:
    whole.wires[0].ends[0].connectionLost()
    failed = whole.settle(whole.workers[0].read(Recall([(OWNERS, b"k")])))
    assert failed.check(StateError)
