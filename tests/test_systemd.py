"""What the service manager is told, and by which rules."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from gateway.systemd import ServiceManager


class Receiver:
    """The manager's end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Receiver]]:
    if request.param == "path":
        name = address = str(tmp_path / "notify")
    else:
        name = f"@responses-gateway-test-{os.getpid()}"
        address = "\0" + name[1:]
    receiver = Receiver(address)
    yield name, receiver
    receiver.socket.close()


def test_it_hears_of_the_start_reloads_and_the_stop(manager: tuple[str, Receiver]) -> None:
    name, receiver = manager
    clock = Clock()
    told = ServiceManager(clock, {"NOTIFY_SOCKET": name})
    told.startService()
    told.ready("2 accounts,\n listen on tcp:8080")
    told.reloading()
    told.status("draining")
    told.stopping(30, "stopping")
    ready, reloading, status, stopping = receiver.heard()
    assert ready == "READY=1\nSTATUS=2 accounts, listen on tcp:8080"
    word, _, at = reloading.partition("\nMONOTONIC_USEC=")
    assert (word, at.isdigit()) == ("RELOADING=1", True)
    assert status == "STATUS=draining"
    assert stopping == "STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000\nSTATUS=stopping"
    told.stopService()
    told.status("gone")
    assert receiver.heard() == []
    assert clock.getDelayedCalls() == []


def test_the_watchdog_hears_of_a_living_loop_twice_in_its_time(
    manager: tuple[str, Receiver],
) -> None:
    name, receiver = manager
    clock = Clock()
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    told = ServiceManager(clock, environ)
    told.startService()
    clock.pump([1] * 60)
    assert receiver.heard() == ["WATCHDOG=1"] * 4
    told.stopService()
    clock.pump([1] * 60)
    assert receiver.heard() == []


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
    ],
)
def test_without_a_watchdog_there_is_no_timer(environ: dict[str, str]) -> None:
    clock = Clock()
    told = ServiceManager(clock, {"NOTIFY_SOCKET": "/nowhere", **environ})
    told.startService()
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("name", ["", "@", "vsock:2:1", "relative"])
def test_without_a_manager_nothing_happens(name: str) -> None:
    clock = Clock()
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000"}
    told = ServiceManager(clock, environ)
    told.startService()
    with capturedLogs() as logged:
        told.ready("ready")
    assert (clock.getDelayedCalls(), logged) == ([], [])


def test_a_manager_that_is_gone_is_told_of_once_in_the_log(tmp_path: Path) -> None:
    told = ServiceManager(Clock(), {"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    with capturedLogs() as logged:
        told.ready("one")
        told.status("two")
    assert len(logged) == 1
