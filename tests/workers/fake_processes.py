"""A reactor in memory that spawns processes in memory, and what a worker would say."""

from __future__ import annotations

import os
import signal
from typing import Any

from twisted.internet.error import ProcessTerminated
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from gateway.worker_link import Link


class FakeProcess:
    """What ``spawnProcess`` returns."""

    def __init__(self, protocol: Any, pid: int, **asked: Any) -> None:
        self.protocol = protocol
        self.pid: int | None = pid
        self.asked = asked
        self.signals: list[int] = []
        self.ended = False

    def signalProcess(self, number: int) -> None:
        self.signals.append(number)

    def end(self, number: int | None = None, status: int | None = None) -> None:
        self.ended = True
        self.pid = None
        self.protocol.processExited(Failure(ProcessTerminated(status, number)))

    def crash(self) -> None:
        self.end(signal.SIGSEGV)


class FakeReactor(MemoryReactorClock):
    """Each link of a supervisor is connected to one that the test has."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[FakeProcess] = []

    def spawnProcess(self, protocol: Any, executable: str, args: Any, **asked: Any) -> Any:
        process = FakeProcess(protocol, 1000 + len(self.processes), args=args, **asked)
        protocol.makeConnection(process)
        self.processes.append(process)
        return process

    @property
    def alive(self) -> list[FakeProcess]:
        return [each for each in self.processes if not each.ended]


class LinkPairs:
    """Takes the place of ``connect_link``: the worker's ends of the supervisor's links."""

    def __init__(self, reactor: FakeReactor) -> None:
        self.reactor = reactor
        self.ends: list[tuple[Link, Link, StringTransport, StringTransport]] = []

    def connect(self, reactor: Any, descriptor: int, link: Link) -> None:
        os.close(descriptor)
        worker = Link(reactor)
        ours, theirs = StringTransport(), StringTransport()
        link.makeConnection(ours)
        worker.makeConnection(theirs)
        self.ends.append((link, worker, ours, theirs))

    def worker(self, number: int = -1) -> Link:
        return self.ends[number][1]

    def pump(self) -> None:
        moved = True
        while moved:
            moved = False
            for link, worker, ours, theirs in self.ends:
                for transport, peer in ((ours, worker), (theirs, link)):
                    data = transport.value()
                    transport.clear()
                    if data:
                        moved = True
                        peer.dataReceived(data)
