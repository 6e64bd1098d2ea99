"""The worker's side: its start, what its supervisor asks, and the end of the supervisor."""

from __future__ import annotations

from typing import Any

import pytest
import txaio
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs

from gateway.config import Settings
from gateway.inheritance import Inheritance
from gateway.listening import CannotListen
from gateway.log import LogThreshold
from gateway.service import GatewayService
from gateway.worker_link import Link
from gateway.workers import orders, worker
from gateway.workers.orders import LogOrder, StopOrder, WorkerOrder, decode, encode
from gateway.workers.worker import Worker
from tests.support.whole import settings


class FakePorts(MemoryReactorClock):
    """Its ports can be told to accept or not."""

    def __init__(self) -> None:
        super().__init__()
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


class Stage:
    """A worker and the other end of its link."""

    def __init__(self, reactor: FakePorts, make: Any = GatewayService) -> None:
        self.reactor = reactor
        self.logs: list[tuple[LogOrder, int]] = []
        self.accepted: list[Any] = []
        self.told: list[Any] = []
        self.transports = StringTransport(), StringTransport()
        self.link, self.supervisor = Link(reactor), Link(reactor)
        self.supervisor.handle(orders.ORDER, lambda _: encode(self.order()))
        self.supervisor.handle(orders.READY, lambda _: self.told.append("ready"))
        self.supervisor.handle(orders.FAILED, lambda line: self.told.append(decode(line, str)))
        self.worker = Worker(reactor, Inheritance({}, self.link, 2), self._log, make)
        self.link.makeConnection(self.transports[0])
        self.supervisor.makeConnection(self.transports[1])

    def _log(self, order: WorkerOrder, threshold: LogThreshold, number: int) -> None:
        self.logs.append((order.log, number))

    def order(self) -> WorkerOrder:
        return WorkerOrder(settings(), LogOrder("/var/log/gateway.log"))

    def pump(self) -> None:
        for _ in range(4):
            for transport, peer in zip(self.transports, (self.supervisor, self.link), strict=True):
                data = transport.value()
                transport.clear()
                peer.dataReceived(data)

    def start(self) -> None:
        self.worker.start()
        self.pump()
        if self.worker.gateway is not None:
            listener = self.worker.gateway.listeners["listen"]
            listener.accept_from = self.accepted.append  # type: ignore[method-assign]


@pytest.fixture
def reactor(monkeypatch: pytest.MonkeyPatch) -> FakePorts:
    made = FakePorts()
    monkeypatch.setattr(txaio.config, "loop", made)
    monkeypatch.setattr(worker, "collect_rarely", lambda: None)
    monkeypatch.setattr("gateway.listening.ListenerService.accept_from", lambda *_: None)
    return made


@pytest.fixture
def stage(reactor: FakePorts) -> Stage:
    return Stage(reactor)


def test_it_starts_as_it_is_told_without_an_admin_listener(stage: Stage) -> None:
    stage.start()
    assert stage.told == ["ready"]
    assert stage.logs == [(LogOrder("/var/log/gateway.log"), 2)]
    assert stage.worker.gateway is not None
    assert list(stage.worker.gateway.listeners) == ["listen"]


def test_a_worker_that_cannot_start_says_why_and_ends(reactor: FakePorts) -> None:
    def make(settings: Settings, reactor: Any, inheritance: Inheritance) -> GatewayService:
        raise CannotListen("listen: 'tcp:1': cannot listen there: no such thing")

    stage = Stage(reactor, make)
    stage.start()
    assert stage.told == ["listen: 'tcp:1': cannot listen there: no such thing"]
    assert reactor.stops == 1


def test_it_accepts_from_the_sockets_that_it_is_told(stage: Stage) -> None:
    stage.start()
    stage.supervisor.tell(orders.ACCEPT, encode([0, 2]))
    stage.pump()
    assert stage.accepted == [[0, 2]]


def test_it_takes_new_settings(stage: Stage) -> None:
    stage.start()
    before = settings()
    new = settings(workers=2)
    answer: list[Any] = []
    call = stage.supervisor.call(orders.RECONFIGURE, encode(orders.Reconfiguration(new, before)))
    call.addBoth(answer.append)
    stage.pump()
    assert answer == [b""]


@pytest.mark.parametrize("handed_over", [False, True])
def test_it_stops_once(stage: Stage, handed_over: bool) -> None:
    stage.start()
    for _ in range(2):
        stage.supervisor.tell(orders.STOP, encode(StopOrder(handed_over)))
    stage.pump()
    assert stage.reactor.stops == 1
    assert stage.worker.gateway is not None
    drain = stage.worker.gateway.drain
    assert (drain.handed_over, drain.has_successor) == (handed_over, handed_over)


def test_a_stop_during_the_start_is_no_failure(stage: Stage) -> None:
    stage.worker.start()
    stage.link.dataReceived(b"")
    with capturedLogs() as events:
        stage.supervisor.tell(orders.STOP, encode(StopOrder()))
        stage.link.dataReceived(stage.transports[1].value())
        stage.link.connectionLost()
    assert (stage.reactor.stops, events) == (1, [])


def test_a_signal_during_a_stop_is_for_the_supervisor_as_long_as_there_is_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start()
    assert stage.worker.gateway is not None
    ended: list[bool] = []
    monkeypatch.setattr(stage.worker.gateway.drain, "abandon", lambda: ended.append(True))
    stage.supervisor.tell(orders.STOP, encode(StopOrder()))
    stage.pump()
    stage.worker.second_signal()
    assert ended == [], "a signal to the whole group reaches workers after the supervisor's order"
    stage.supervisor.tell(orders.ABANDON)
    stage.pump()
    assert ended == [True]
    stage.link.connectionLost()
    stage.worker.second_signal()
    assert ended == [True, True]


def test_without_a_supervisor_it_leaves_the_port_to_the_next_one(stage: Stage) -> None:
    stage.start()
    assert stage.worker.gateway is not None
    stage.link.connectionLost()
    drain = stage.worker.gateway.drain
    assert (drain.handed_over, drain.has_successor) == (True, False)


def test_it_ends_when_the_supervisor_is_gone(stage: Stage) -> None:
    stage.start()
    stage.link.connectionLost()
    assert stage.reactor.stops == 1
