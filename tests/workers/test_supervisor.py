"""What a supervisor tells its workers: at a start, a reload, a stop, and when one is away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from gateway.config import Settings, load
from gateway.worker_link import Link
from gateway.workers import orders, process
from gateway.workers.orders import Reconfiguration, WorkerOrder, decode, encode
from gateway.workers.process import WorkerState
from gateway.workers.supervisor import _GRACE_SECONDS, CannotStart, Supervisor
from tests.support.whole import settings
from tests.workers.fake_processes import FakeReactor, LinkPairs

ROOT = Path(__file__).parents[2]


class FakeWorker:
    """What a worker does with its link."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.told: list[Any] = []
        self.fails: str | None = None
        self.settings: Settings | None = None
        link.handle(orders.ACCEPT, lambda places: self.told.append(decode(places, list[int])))
        link.handle(orders.STOP, lambda _: self.told.append("stop"))
        link.handle(orders.ABANDON, lambda _: self.told.append("abandon"))
        link.handle(orders.REOPEN, lambda _: self.told.append("reopen"))
        link.handle(orders.RECONFIGURE, self._reconfigure)
        link.handle(orders.PING, lambda _: b"")

    def _reconfigure(self, payload: bytes) -> None:
        if self.fails is not None:
            raise ValueError(self.fails)
        self.settings = decode(payload, Reconfiguration).settings


class Stage:
    """A supervisor of three workers."""

    def __init__(self, reactor: FakeReactor, links: LinkPairs) -> None:
        self.reactor = reactor
        self.links = links
        self.supervisor = Supervisor(settings(listen="tcp:0:interface=127.0.0.1"), 3, reactor)
        self.ready = results(self.supervisor.ready)
        self.supervisor.startService()
        self.workers = [FakeWorker(links.worker(number)) for number in range(3)]

    def all_ready(self) -> None:
        for worker in self.workers:
            worker.link.tell(orders.READY)
        self.links.pump()

    def told(self) -> list[list[Any]]:
        told = [worker.told[-1:] for worker in self.workers]
        for worker in self.workers:
            worker.told.clear()
        return told


def results(deferred: Deferred[Any]) -> list[Any]:
    got: list[Any] = []
    deferred.addCallbacks(got.append, lambda failure: got.append(failure.value))
    return got


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    reactor = FakeReactor()
    links = LinkPairs(reactor)
    monkeypatch.setattr(process, "connect_link", links.connect)
    stage = Stage(reactor, links)
    yield stage
    stage.supervisor.listener.leave()


def test_it_is_ready_when_all_workers_are(stage: Stage) -> None:
    for number, worker in enumerate(stage.workers):
        assert stage.ready == [], f"{number} of 3 are ready"
        worker.link.tell(orders.READY)
        stage.links.pump()
    assert stage.ready == [None]
    assert stage.told() == [[[0]], [[1]], [[2]]]


def test_a_worker_gets_the_settings_in_force(stage: Stage) -> None:
    order = results(stage.workers[0].link.call(orders.ORDER))
    stage.links.pump()
    assert decode(order[0], WorkerOrder).settings == stage.supervisor.settings


@pytest.mark.parametrize("name", ["minimal", "team", "pool", "presets", "simulator"])
def test_settings_arrive_as_they_were(name: str) -> None:
    text = (ROOT / "config" / f"{name}.yaml").read_text()
    environ = {each: f"x-{len(each)}" for each in re.findall(r"\$\{(\w+)\}", text)}
    made = load(text, environ, name).settings
    assert decode(encode(Reconfiguration(made, Settings())), Reconfiguration).settings == made


def test_simulated_accounts_are_those_of_the_supervisor(monkeypatch: pytest.MonkeyPatch) -> None:
    reactor = FakeReactor()
    monkeypatch.setattr(process, "connect_link", LinkPairs(reactor).connect)
    supervisor = Supervisor(Settings(listen="tcp:0:interface=127.0.0.1"), 2, reactor)
    supervisor.startService()
    given = supervisor.order().settings
    supervisor.listener.leave()
    assert given.simulator is None
    assert [each.name for each in given.accounts] == ["simulated-1", "simulated-2"]
    assert given.accounts[0].base_url.startswith("http://127.0.0.1:")


def test_the_queue_of_a_worker_that_is_away_is_served_by_another(stage: Stage) -> None:
    stage.all_ready()
    stage.told()
    stage.reactor.processes[1].crash()
    stage.links.pump()
    assert stage.told() == [[[0]], [], [[1, 2]]]
    stage.reactor.advance(1)
    assert len(stage.reactor.processes) == 4
    again = FakeWorker(stage.links.worker())
    again.link.tell(orders.READY)
    stage.links.pump()
    assert (again.told, stage.told()) == ([[1]], [[[0]], [], [[2]]])


def test_a_worker_that_cannot_start_ends_the_start(stage: Stage) -> None:
    stage.workers[1].link.call(orders.FAILED, encode("no such file"))
    stage.links.pump()
    assert [type(each) for each in stage.ready] == [CannotStart]
    assert str(stage.ready[0]) == "no such file"


def changed(before: Settings) -> Settings:
    return msgspec.structs.replace(
        before, log=msgspec.structs.replace(before.log, level="warn"), listen="tcp:1"
    )


def test_a_reload_is_for_all(stage: Stage) -> None:
    stage.all_ready()
    new = changed(stage.supervisor.settings)
    done = results(stage.supervisor.reconfigure(new))
    stage.links.pump()
    assert done == [None]
    levels = [worker.settings.log.level for worker in stage.workers if worker.settings]
    assert levels == ["warn"] * 3
    assert stage.supervisor.settings.listen != "tcp:1", "the sockets stay until a restart"


def test_a_reload_that_one_worker_cannot_apply_is_for_none(stage: Stage) -> None:
    stage.all_ready()
    before = stage.supervisor.settings
    stage.workers[1].fails = "the key file is gone"
    done = results(stage.supervisor.reconfigure(changed(before)))
    stage.links.pump()
    assert [str(each) for each in done] == ["worker.reconfigure: the key file is gone"]
    assert [worker.settings for worker in stage.workers] == [before, None, before]
    assert stage.supervisor.settings == before


def test_a_reload_waits_for_no_worker_that_is_gone(stage: Stage) -> None:
    stage.all_ready()
    stage.reactor.processes[1].crash()
    stage.workers[1].link.connectionLost()
    done = results(stage.supervisor.reconfigure(changed(stage.supervisor.settings)))
    stage.links.ends[1][0].connectionLost()
    stage.links.pump()
    assert done == [None]


def test_a_stop_waits_for_all_workers(stage: Stage) -> None:
    stage.all_ready()
    stage.told()
    stopped = results(stage.supervisor.stopService())
    stage.links.pump()
    assert stage.told() == [["stop"]] * 3
    for worker in stage.reactor.processes:
        assert stopped == []
        worker.end(status=0)
    assert len(stopped) == 1
    assert {worker.state for worker in stage.supervisor.workers} == {WorkerState.GONE}


def test_a_worker_that_does_not_end_is_killed(stage: Stage) -> None:
    stage.all_ready()
    stage.supervisor.stopService()
    seconds = stage.supervisor.settings.timeouts.shutdown_seconds + _GRACE_SECONDS
    stage.reactor.advance(seconds - 1)
    stage.links.pump()
    assert [each.signals for each in stage.reactor.processes] == [[], [], []]
    stage.reactor.processes[0].end(status=0)
    stage.reactor.advance(1)
    assert [each.signals for each in stage.reactor.processes] == [[], [9], [9]]


def test_after_a_hand_over_workers_have_longer(stage: Stage) -> None:
    stage.all_ready()
    stage.supervisor.handed_over = True
    stage.supervisor.stopService()
    timeouts = stage.supervisor.settings.timeouts
    assert timeouts.handover_seconds == stage.supervisor.stop_seconds == 900.0
    stage.reactor.advance(timeouts.handover_seconds + _GRACE_SECONDS - 1)
    assert [each.signals for each in stage.reactor.processes] == [[], [], []]
    stage.reactor.advance(1)
    assert [each.signals for each in stage.reactor.processes] == [[9], [9], [9]]


def test_a_second_signal_leaves_a_worker_that_hangs_little_time(stage: Stage) -> None:
    stage.all_ready()
    stage.supervisor.handed_over = True
    stage.supervisor.stopService()
    stage.reactor.advance(1)
    for _ in range(2):
        stage.supervisor.abandon()
        stage.reactor.advance(_GRACE_SECONDS / 2)
    assert [each.signals for each in stage.reactor.processes] == [[9], [9], [9]]


def test_logs_are_opened_again_and_turns_are_ended_in_all(stage: Stage) -> None:
    stage.all_ready()
    stage.supervisor.reopen_logs()
    stage.links.pump()
    assert stage.told() == [["reopen"]] * 3
    stage.supervisor.abandon()
    stage.links.pump()
    assert stage.told() == [["abandon"]] * 3
