"""A supervisor's admin side in memory: workers are gateways of this process, with links to it."""

from __future__ import annotations

import enum
import json
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from gateway.admin.api import Api
from gateway.admin.auth import AccessControl
from gateway.admin.managed_workers import ManagedWorkers
from gateway.admin.prometheus import Metrics
from gateway.admin.site import AdminSite
from gateway.admin.worker_answers import WorkerAnswers
from gateway.log import LogThreshold
from gateway.server.connections import OpenFiles
from gateway.worker_link import Link
from tests.admin.stage import BEARER, TOKEN, Admin, Answer, Client


class State(enum.Enum):
    READY = "ready"
    RESTING = "resting"


class Wire(StringTransport):
    """One end of a connection in memory; ``pump`` carries what was written to the other end."""

    peer: Link
    stuck = False

    def pump(self) -> bool:
        data = self.value()
        if self.stuck or not data:
            return False
        self.clear()
        self.peer.dataReceived(data)
        return True


class PumpedClient(Client):
    """What it sends has its answers, unless a worker hangs."""

    def __init__(self, workers: Workers) -> None:
        super().__init__(workers.site)
        self._workers = workers

    def sends(self, data: bytes) -> None:
        super().sends(data)
        self._workers.pump()


class Worker:
    """A worker as its supervisor knows it; its gateway is in this process."""

    def __init__(self, number: int, clock: MemoryReactorClock, accounts: int) -> None:
        self.number = number
        self.restarts = -1
        self.accounts = accounts
        self.clock = clock
        self.started_at = 0.0
        self.state: enum.Enum = State.RESTING
        self.pid: int | None = None
        self.link = Link(clock)
        self.start()

    def start(self) -> None:
        self.restarts += 1
        self.pid = 1000 * self.number + self.restarts
        self.started_at = self.clock.seconds()
        self.state = State.READY
        self.admin = Admin(accounts=self.accounts)
        self.link, self.inner = Link(self.clock), Link(self.clock)
        self.wires: list[Wire] = [Wire(), Wire()]
        self.wires[0].peer, self.wires[1].peer = self.inner, self.link
        WorkerAnswers(self.admin.managed, Metrics(self.admin.running), self.inner)
        for link, wire in zip((self.link, self.inner), self.wires, strict=True):
            link.makeConnection(wire)

    def hang(self) -> None:
        """It reads nothing any more."""
        self.wires[0].stuck = True

    def die(self) -> None:
        self.pid = None
        self.wires = []
        self.state = State.RESTING
        for link in (self.link, self.inner):
            link.connectionLost(Failure(ConnectionDone()))


class Workers:
    """The admin side of a supervisor."""

    def __init__(self, count: int = 2, accounts: int = 2) -> None:
        self.reactor = MemoryReactorClock()
        self.reactor.advance(1_800_000_000)
        self.workers = [Worker(number, self.reactor, accounts) for number in range(1, count + 1)]
        self.threshold = LogThreshold("info")
        self.managed = ManagedWorkers(
            self.reactor,
            lambda: self.workers,
            self.threshold,
            OpenFiles(self.reactor.seconds),
        )
        for worker in self.workers:
            self.managed.attach(worker)
        self.access = AccessControl(TOKEN, True, (), self.reactor.seconds)
        self.api = Api(self.managed, self.access)
        self.site = AdminSite(self.api, self.reactor)
        self.site.startFactory()

    def pump(self) -> None:
        """Carry what was said until nothing is said any more."""
        while sum(wire.pump() for worker in self.workers for wire in worker.wires):
            pass

    def advance(self, seconds: float) -> None:
        self.pump()
        self.reactor.advance(seconds)
        self.pump()

    def restart(self, worker: Worker) -> None:
        worker.start()
        self.managed.attach(worker)
        self.managed.became_ready(worker)
        self.pump()

    def client(self) -> Client:
        return PumpedClient(self)

    def listen(self) -> Client:
        client = self.client()
        lines = ["GET /events HTTP/1.1", "host: localhost", "content-length: 0", BEARER, "", ""]
        client.sends("\r\n".join(lines).encode())
        return client

    def post(self, path: str, body: Any) -> Answer:
        client = self.client()
        raw = json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(raw)}", BEARER]
        lines += ["content-type: application/json", "", ""]
        client.sends("\r\n".join(lines).encode() + raw)
        answer = client.answer
        client.leaves()
        return answer

    def ask(self, path: str, *headers: str, method: str = "GET", wait: float = 0.0) -> Answer:
        client = self.client()
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: localhost",
            "content-length: 0",
            BEARER,
            *headers,
        ]
        client.sends("\r\n".join([*lines, "", ""]).encode())
        if wait:
            self.advance(wait)
        answer = client.answer
        client.leaves()
        return answer

    def json(self, path: str, **more: Any) -> Any:
        answer = self.ask(path, **more)
        assert answer.status == 200, f"{path} answered {answer.status}: {answer.body!r}"
        return answer.json
