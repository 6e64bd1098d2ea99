"""The admin side of a supervisor: its listener, who may enter, its own numbers."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock

from gateway.admin.site import AdminSite
from gateway.config import AdminSettings
from gateway.inheritance import NOTHING, Inheritance, listener_name
from gateway.log import LogThreshold
from gateway.state.keeper import StateFigures
from gateway.state.write_behind import WriteFigures
from gateway.workers.admin import WorkersAdmin, _own
from tests.admin.stage import Answer, Client
from tests.support.whole import settings

ENDPOINT = "tcp:8081:interface=127.0.0.1"
KEPT = StateFigures("here", WriteFigures(0, 0, 9, 3, 0, 1, 0.5, None, None, None), 4096, 0)


class FakePort:
    """A port that was adopted."""

    def __init__(self) -> None:
        self.reads = True

    def startReading(self) -> None:
        self.reads = True

    def stopReading(self) -> None:
        self.reads = False

    def fileno(self) -> int:
        return 99

    def stopListening(self) -> None:
        self.reads = False


class Reactor(MemoryReactorClock):
    """Adopts sockets."""

    def __init__(self) -> None:
        super().__init__()
        self.adopted: list[FakePort] = []

    def adoptStreamPort(self, *_: Any) -> Any:
        self.adopted.append(FakePort())
        return self.adopted[-1]


def administer(reactor: Reactor, inherited: Inheritance = NOTHING) -> WorkersAdmin:
    asked = settings(admin=AdminSettings(listen=ENDPOINT, token="first"))
    admin = WorkersAdmin(asked, ENDPOINT, reactor, list, LogThreshold("info"), inherited)
    admin.startService()
    return admin


def ask(site: Any, path: str, token: str) -> Answer:
    client = Client(site)
    lines = [f"GET {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {token}", "", ""]
    client.sends("\r\n".join(lines).encode())
    answer = client.answer
    client.leaves()
    return answer


def test_it_listens_and_lets_in_whom_the_settings_let_in() -> None:
    reactor = Reactor()
    admin = administer(reactor)
    port, site, *_ = reactor.tcpServers[0]
    assert port == 8081
    assert isinstance(site, AdminSite)
    assert ask(site, "/status", "first").status == 200
    assert ask(site, "/status", "second").status == 401
    admin.reconfigure(settings(admin=AdminSettings(listen=ENDPOINT, token="second")))
    assert ask(site, "/status", "second").status == 200
    assert ask(site, "/status", "first").status != 200
    assert ask(site, "/readyz", "").json == {"status": "no worker answers"}
    admin.stopService()
    assert reactor.getDelayedCalls() == []


def test_a_successor_answers_when_its_workers_are_ready() -> None:
    """Until then the process before answers, from the same socket."""
    reactor = Reactor()
    with socket.socket() as listening:
        files = {listener_name("admin.listen", ENDPOINT): [listening.detach()]}
    admin = administer(reactor, Inheritance(files))
    assert reactor.tcpServers == []
    assert [port.reads for port in reactor.adopted] == [False]
    admin.accept()
    assert [port.reads for port in reactor.adopted] == [True]
    assert admin.descriptors == {listener_name("admin.listen", ENDPOINT): [99]}


@pytest.mark.parametrize(("kept", "there"), [(None, False), (KEPT, True)])
def test_its_own_metrics_are_of_its_process_and_of_the_state(
    kept: StateFigures | None, there: bool
) -> None:
    found = {family.name for family in _own(1 << 30, kept)}
    assert {"process_resident_memory_bytes", "process_cpu_seconds"} <= found
    assert ("gateway_state_file_bytes" in found) is there
    assert "gateway_connections" not in found
