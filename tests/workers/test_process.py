"""A worker as its supervisor sees it: every state, every event, and when it is started again."""

from __future__ import annotations

import signal

import pytest
from twisted.internet.defer import fail
from twisted.logger import capturedLogs, formatEvent

from gateway.worker_link import LinkBusy
from gateway.workers import orders, process
from gateway.workers.orders import StopOrder
from gateway.workers.process import TRANSITIONS, WorkerEvent, WorkerProcess, WorkerState
from tests.workers.fake_processes import FakeReactor, LinkPairs

S, E = WorkerState, WorkerEvent


class Stage:
    """One worker."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.links = LinkPairs(self.reactor)
        self.states: list[WorkerState] = []
        self.worker = WorkerProcess(
            self.reactor,
            2,
            ["python", "-m", "worker"],
            lambda: {"listen=tcp:1": [0]},
            lambda worker: None,
            lambda worker: self.states.append(worker.state),
        )

    @property
    def process(self):  # type: ignore[no-untyped-def]
        return self.reactor.processes[-1]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage()
    monkeypatch.setattr(process, "connect_link", stage.links.connect)
    return stage


def test_every_state_is_left_somehow_but_the_last() -> None:
    assert {before for before, _ in TRANSITIONS} == set(S)
    reached = {after for (before, _), after in TRANSITIONS.items() if before is not after}
    assert reached == set(S)
    assert not [1 for (before, _), after in TRANSITIONS.items() if before is S.GONE is not after]


def test_a_process_that_cannot_be_made_is_tried_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = stage.reactor.spawnProcess

    def full(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(stage.reactor, "spawnProcess", full)
    with capturedLogs() as events:
        stage.worker.start()
        stage.reactor.advance(process._FIRST_PAUSE)
    lines = [formatEvent(event) for event in events]
    assert lines == [
        f"worker 2 cannot be started: Resource temporarily unavailable; tried again in {pause:g} s"
        for pause in (process._FIRST_PAUSE, 2 * process._FIRST_PAUSE)
    ]
    assert (stage.worker.state, stage.worker.pid, stage.states) == (S.RESTING, None, [])
    monkeypatch.setattr(stage.reactor, "spawnProcess", spawn)
    stage.reactor.advance(2 * process._FIRST_PAUSE)
    assert stage.worker.state is S.STARTING


def test_a_worker_that_could_not_be_made_can_be_stopped(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(stage.reactor, "spawnProcess", missing)
    stage.worker.start()
    stage.worker.stop(StopOrder())
    assert stage.worker.state is S.GONE
    assert not stage.reactor.getDelayedCalls()


def test_it_inherits_the_link_and_the_sockets_and_nothing_of_systemd(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LISTEN_FDS", "NOTIFY_SOCKET", "WATCHDOG_USEC"):
        monkeypatch.setenv(name, "1")
    stage.worker.start()
    asked = stage.process.asked
    assert set(asked["childFDs"]) == {0, 1, 2, 3, 4}
    assert asked["env"]["RESPONSES_GATEWAY_DESCRIPTORS"] == '{"link": [3], "listen=tcp:1": [4]}'
    assert not [name for name in asked["env"] if name.startswith(("LISTEN", "NOTIFY", "WATCH"))]


def test_a_worker_that_ends_is_started_again_ever_later(stage: Stage) -> None:
    stage.worker.start()
    pauses = []
    with capturedLogs() as events:
        for _ in range(9):
            stage.process.crash()
            (call,) = stage.reactor.getDelayedCalls()
            pauses.append(call.getTime() - stage.reactor.seconds())
            stage.reactor.advance(pauses[-1])
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert stage.worker.restarts == 9
    lines = [formatEvent(event) for event in events]
    assert len(lines) == 9
    assert lines[0] == (
        "worker 2 (process 1000) ended after 0.0 s: signal SIGSEGV; it is started again in 0.5 s"
    )


def test_a_worker_that_was_ready_for_long_begins_with_the_first_pause(stage: Stage) -> None:
    stage.worker.start()
    for _ in range(3):
        stage.process.crash()
        stage.reactor.advance(10)
    stage.worker.became_ready()
    for _ in range(7):
        stage.reactor.advance(10)
        stage.links.worker().handle(orders.PING, lambda _: b"")
        stage.links.pump()
    stage.process.crash()
    (call,) = stage.reactor.getDelayedCalls()
    assert call.getTime() - stage.reactor.seconds() == 0.5


def test_a_worker_that_is_never_ready_is_killed(stage: Stage) -> None:
    stage.worker.start()
    stage.reactor.advance(process._START_SECONDS)
    assert stage.process.signals == [signal.SIGKILL]
    with capturedLogs() as events:
        stage.process.end(signal.SIGKILL)
    assert "it was not ready within" in formatEvent(events[0])
    assert stage.worker.state is S.RESTING


def test_a_worker_whose_reactor_hangs_is_killed(stage: Stage) -> None:
    stage.worker.start()
    stage.worker.became_ready()
    stage.reactor.advance(process._PING_SECONDS)
    assert stage.process.signals == []
    stage.reactor.advance(process._STUCK_SECONDS)
    assert stage.process.signals == [signal.SIGKILL]


def test_a_worker_that_is_stopped_is_not_started_again(stage: Stage) -> None:
    told: list[bytes] = []
    stage.worker.start()
    stage.links.worker().handle(orders.STOP, told.append)
    stage.worker.became_ready()
    stage.worker.stop(StopOrder(handed_over=True))
    stage.links.pump()
    assert [orders.decode(each, StopOrder) for each in told] == [StopOrder(handed_over=True)]
    stage.process.end(status=0)
    assert stage.states == [S.STARTING, S.READY, S.STOPPING, S.GONE]
    assert not stage.reactor.getDelayedCalls()


def test_a_worker_that_rests_is_gone_when_it_is_stopped(stage: Stage) -> None:
    stage.worker.start()
    stage.process.crash()
    stage.worker.stop(StopOrder())
    assert stage.worker.state is S.GONE
    assert not stage.reactor.getDelayedCalls()


def test_a_worker_that_cannot_be_told_is_killed(stage: Stage) -> None:
    stage.worker.start()
    stage.worker.link.connectionLost()
    stage.worker.stop(StopOrder())
    assert stage.process.signals == [signal.SIGKILL]


def test_the_last_words_of_a_process_start_nothing(stage: Stage) -> None:
    stage.worker.start()
    stage.process.crash()
    stage.worker.became_ready()
    assert stage.worker.state is S.RESTING


def test_a_worker_with_much_to_read_is_killed_only_when_it_stays_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.worker.start()
    stage.worker.became_ready()
    monkeypatch.setattr(stage.worker.link, "call", lambda *_, **__: fail(LinkBusy("full")))
    for _ in range(5):
        stage.reactor.advance(process._PING_SECONDS)
    assert stage.process.signals == []
    stage.reactor.advance(process._PING_SECONDS)
    assert stage.process.signals == [signal.SIGKILL]
