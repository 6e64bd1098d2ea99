"""The supervisor counts for its workers; free places are told to those that wait."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.limit_ledger import LimitAnswer, LimitAsk, LimitWindow
from gateway.api_keys.limit_permits import SharedLimits
from gateway.config import KeySettings, StateSettings
from gateway.state.backend import LIMITS, Feed, Row
from gateway.state.encryption import Cipher, EncryptedBackend
from gateway.state.redis import RedisBackend
from gateway.state.shared_limits import (
    FreePlaces,
    LimitServer,
    LinkLimits,
    OnceOpen,
    RedisLimits,
    authority_of,
)
from gateway.state.worker_state import LinkBackend, StateServer
from gateway.worker_link import LinkError
from tests.state.test_worker_state import MemoryBackend, Wire

START = 1_800_000_000.0
MINUTE = LimitWindow("requests_per_minute", 60.0, 10, False)


class Disk(MemoryBackend):
    """Still has what it had when it is opened again."""

    opened = False

    def open(self, feed: Feed) -> Deferred[None]:
        if self.opened:
            return succeed(None)
        self.opened = True
        return super().open(feed)


class Supervisor:
    """A supervisor with two workers.

    :param backend: keeps the state.
    """

    def __init__(self, backend: MemoryBackend, now: float = START) -> None:
        self.clock = Clock()
        self.clock.advance(now)
        self.state = StateServer(self.clock, backend, 0.2)
        self.state.startService()
        server = LimitServer(self.state, self.clock.seconds)
        self.wires = [Wire(self.clock), Wire(self.clock)]
        for wire in self.wires:
            server.serve(wire.ends[1])
        self.numbers = [0, 0]

    def ask(self, worker: int, wanted: int, **parts: Any) -> LimitAnswer:
        wire = self.wires[worker]
        self.numbers[worker] += 1
        asked: dict[str, Any] = {
            "held": 0,
            "spare": 0,
            "most": -1,
            "windows": [MINUTE],
            "uses": [],
            **parts,
        }
        ask = LimitAsk(
            process=f"worker {worker}",
            number=self.numbers[worker],
            wanted=wanted,
            tenant="laptop",
            **asked,
        )
        answers: list[LimitAnswer] = []
        LinkLimits(wire.ends[0]).exchange(ask).addCallback(answers.append)
        wire.pump()
        wire.pump()
        return answers[0]


def test_workers_together_have_the_limit() -> None:
    supervisor = Supervisor(MemoryBackend())
    assert [supervisor.ask(each, 6).granted for each in (0, 1)] == [6, 4]


def test_the_places_of_a_worker_that_died_are_free_at_once() -> None:
    supervisor = Supervisor(MemoryBackend())
    assert supervisor.ask(0, 2, most=2, windows=[]).granted == 2
    assert supervisor.ask(1, 1, most=2, windows=[]).granted == 0
    supervisor.wires[0].ends[1].connectionLost()
    assert supervisor.ask(1, 2, most=2, windows=[]).granted == 2


def test_what_was_used_outlives_the_supervisor() -> None:
    backend = Disk()
    before = Supervisor(backend)
    before.ask(0, 7)
    before.clock.advance(0.3)
    answer = Supervisor(backend, START + 20).ask(0, 9)
    assert (answer.granted, answer.turns) == (3, 10)


def test_a_supervisor_that_is_gone_is_no_authority() -> None:
    supervisor = Supervisor(MemoryBackend())
    supervisor.wires[0].ends[0].connectionLost()
    answer: Deferred[LimitAnswer] = LinkLimits(supervisor.wires[0].ends[0]).exchange(
        LimitAsk("a", 1, 0, 1, 0, -1, [], [], "laptop")
    )
    failures: list[Any] = []
    answer.addErrback(failures.append)
    assert failures[0].check(LinkError)


class Writes:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def put(self, row: Row) -> None:
        self.rows.append(row)


def test_a_free_place_wakes_the_processes_that_wait_for_one() -> None:
    clock = Clock()
    clock.advance(START)
    written: Any = Writes()
    FreePlaces(written, clock.seconds).tell("laptop")
    (row,) = written.rows
    assert row.table == LIMITS
    assert row.expires_at > START

    woken: list[str] = []
    there = FreePlaces(written, clock.seconds)
    there.apply(row)  # nobody waits yet
    ring = KeyRing([KeySettings(name="laptop", key="k", max_concurrent_turns=1)], clock.seconds)
    authority: Any = None
    there.limits = SharedLimits(clock, authority, "b", lambda _: None, lambda: woken.append("b"))
    key = there.limits.key("laptop", lambda: 0, list)
    there.load([row])
    there.apply(row)
    assert not woken, "it waits for none"
    key.reached = ring.acquire("laptop", "m")  # type: ignore[assignment]
    there.apply(row)
    assert woken == ["b"]


@pytest.mark.parametrize("wrapped", [True, False])
def test_who_counts_depends_on_what_processes_share(wrapped: bool) -> None:
    def found(backend: Any) -> Any:
        cipher = Cipher(b"")
        return authority_of(EncryptedBackend(backend, cipher) if wrapped else backend)

    clock = Clock()
    settings = StateSettings(store="redis://127.0.0.1:1/0")
    assert isinstance(found(RedisBackend(clock, settings)), RedisLimits)
    assert isinstance(found(LinkBackend(Wire(clock).ends[0])), LinkLimits)
    assert found(MemoryBackend()) is None


def test_the_first_ask_waits_until_the_state_is_open() -> None:
    opened: Deferred[None] = Deferred()
    asked: list[LimitAsk] = []

    class Counts:
        def exchange(self, ask: LimitAsk) -> Any:
            asked.append(ask)
            return succeed(None)

    class Opens:
        def when_open(self) -> Deferred[None]:
            return opened

    writes: Any = Opens()
    OnceOpen(Counts(), writes).exchange(LimitAsk("a", 1, 0, 1, 0, -1, [], [], "laptop"))
    assert not asked
    opened.callback(None)
    assert len(asked) == 1
