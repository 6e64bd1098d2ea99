"""What a process does with a backend that others change, too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from gateway.protocol.turn_state import TurnStateSigner
from gateway.state.backend import BINDINGS, SECRETS, Feed, Recall, Recalled, Row, StateError
from gateway.state.replication import ReplicatedSecret, Replication
from gateway.state.write_behind import BackendState, WriteBehind

LATE = 10.0**10


class Server:
    """Rows in memory, and the processes that share them."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], Row] = {}
        self.processes: list[Process] = []
        self.fails = False


class Process:
    """A process's backend; what others wrote waits until ``hear`` is called.

    :ivar reads: how often it was read.
    """

    name = "memory"
    shared = True

    def __init__(self, server: Server) -> None:
        self._server = server
        self._unheard: list[Sequence[Row]] = []
        self._feed: Feed = lambda rows: None
        self.opening: Deferred[None] = succeed(None)
        self.reads = 0
        server.processes.append(self)

    def open(self, feed: Feed) -> Deferred[None]:
        self._feed = feed
        return self._answer(None).addCallback(lambda _: self.opening)

    def scan(self, table: str) -> Deferred[list[Row]]:
        return self._answer([row for row in self._server.rows.values() if row.table == table])

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        self.reads += 1
        return self._answer(Recalled({}))

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        for row in rows:
            self._server.rows[row.table, row.key] = row
        for each in self._server.processes:
            if each is not self:
                each._unheard.append(rows)
        return self._answer(None)

    def close(self) -> Deferred[None]:
        return succeed(None)

    def hear(self) -> bool:
        """Hear of the oldest change of others."""
        if self._unheard:
            self._feed(self._unheard.pop(0))
            return True
        return False

    def _answer(self, value: object) -> Deferred:  # type: ignore[type-arg]
        return fail(StateError("it is gone")) if self._server.fails else succeed(value)


# --- the secret ----------------------------------------------------------------------------


class Gateway:
    """As much of a gateway as has a secret."""

    def __init__(self, server: Server, clock: Clock, secret: bytes) -> None:
        self.backend = Process(server)
        self.signer = TurnStateSigner(secret)
        replication = Replication()
        self.writes = WriteBehind(self.backend, clock, 0.0, replication.load, replication.feed)
        replication.add(ReplicatedSecret(self.signer, self.writes, clock.seconds))
        self.writes.start()


@pytest.mark.parametrize("order", list(itertools.permutations((b"1", b"2", b"3"))))
@pytest.mark.parametrize("heard_first", [0, 1, 2])
def test_gateways_that_start_at_once_end_with_one_secret(
    order: Sequence[bytes], heard_first: int
) -> None:
    clock, server = Clock(), Server()
    gateways = [Gateway(server, clock, secret) for secret in order]
    clock.advance(0)  # all write
    while any(each.backend.hear() for each in gateways[heard_first:] + gateways[:heard_first]):
        clock.advance(0)
    used = {each.signer.secret for each in gateways}
    assert used == {server.rows[SECRETS, b"turn_state"].value}
    late = Gateway(server, clock, b"0")
    assert {late.signer.secret} == used, "who starts later takes it"


def test_a_backend_that_lost_everything_gets_the_secret_again() -> None:
    clock, server = Clock(), Server()
    gateway = Gateway(server, clock, b"1")
    clock.advance(0)
    server.fails = True
    clock.advance(1)
    server.rows.clear()
    server.fails = False
    clock.advance(1)
    clock.advance(1)
    assert server.rows[SECRETS, b"turn_state"].value == gateway.signer.secret == b"1"


# --- hearing of others ---------------------------------------------------------------------


def test_a_change_by_others_counts_more_than_the_table_that_was_read_meanwhile() -> None:
    clock, server, seen = Clock(), Server(), list[Sequence[Row]]()
    backend = Process(server)
    backend.opening = Deferred()
    writes = WriteBehind(backend, clock, 0.0, lambda table, rows: seen.append(rows), seen.append)
    writes.start()
    newer = [Row(BINDINGS, b"a", b"2", LATE)]
    Process(server).write(newer)
    backend.hear()
    assert seen == []
    backend.opening.callback(None)
    assert seen[-1] == newer
    assert len(seen) > 1, "the tables were not read"


def test_a_backend_that_is_gone_is_noticed_while_no_turn_asks() -> None:
    clock, server = Clock(), Server()
    backend = Process(server)
    writes = WriteBehind(backend, clock, 0.0, lambda table, rows: None, lambda rows: None)
    writes.start()
    for _ in range(5):
        clock.advance(1)
    assert backend.reads == 5
    assert writes.figures().why is None
    server.fails = True
    clock.advance(1)
    assert writes.figures().why == "it is gone"
    server.fails = False
    clock.advance(1)
    assert writes.state is BackendState.READY
    assert writes.figures().why is None
    writes.stop()
    assert clock.getDelayedCalls() == []


def test_turns_read_while_large_tables_are_loaded() -> None:
    clock, server = Clock(), Server()
    backend = Process(server)
    writes = WriteBehind(backend, clock, 0.0, lambda table, rows: None, lambda rows: None)
    table: Deferred[list[Row]] = Deferred()
    backend.scan = lambda name: table  # type: ignore[method-assign]
    backend.opening = Deferred()
    writes.start()
    found: list[Recalled] = []
    writes.read(Recall((), b"a")).addCallback(found.append)
    assert found == []
    backend.opening.callback(None)
    assert len(found) == 1
    assert writes.state is BackendState.OPENING
    table.errback(StateError("it went away"))
    failed: list[object] = []
    writes.read(Recall((), b"a")).addErrback(failed.append)
    assert len(failed) == 1
    assert backend.reads == 1
