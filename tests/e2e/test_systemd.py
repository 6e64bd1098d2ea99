"""The gateway as a service of systemd: its unit, and a manager that is played with real sockets."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from tests.support.checks import completed
from tests.support.gateway import BASE, ROOT, account
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.e2e

UNITS = ROOT / "config"
TWISTD = Path(sys.executable).parent / "twistd"
SECONDS = 30.0

#: ``systemd-analyze security`` goes from 0 to 10; below 2 is "OK" in its words.
MOST_EXPOSED = 2.0

needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


@needs_analyze
def test_the_units_are_accepted(tmp_path: Path) -> None:
    for name in ("responses-gateway.service", "responses-gateway.socket"):
        text = (UNITS / name).read_text()
        # What is not installed here would be an error of the machine, not of the unit.
        text = text.replace("/opt/responses-gateway/venv/bin/twistd", str(TWISTD))
        (tmp_path / name).write_text(text)
    units = [str(unit) for unit in tmp_path.iterdir()]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    said = [line for line in done.stderr.splitlines() if "responses-gateway" in line]
    assert (said, done.returncode) == ([], 0), done.stderr


@needs_analyze
def test_the_service_is_little_exposed() -> None:
    unit = UNITS / "responses-gateway.service"
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LANG": "C"})
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline")
    found = re.search(r"Overall exposure level for \S+ ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) < MOST_EXPOSED, done.stdout


class Manager:
    """Starts the gateway as systemd does, with an inherited socket, and hears what it says."""

    def __init__(self, folder: Path, upstream: Upstream, watchdog: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.messages: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.config = folder / "gateway.yaml"
        settings = {
            **BASE,
            "listen": "systemd:domain=INET:index=0",
            "admin": {"listen": None},
            "accounts": [account("solo", upstream)],
        }
        self.config.write_text(yaml.safe_dump(settings))
        self.log = folder / "gateway.log"
        self._notify, self._watchdog = folder / "notify", watchdog
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        # LISTEN_PID is the process itself, so it is set by a program that becomes the gateway.
        become = (
            "import os, sys; os.environ.update(LISTEN_PID=str(os.getpid()),"
            " WATCHDOG_PID=str(os.getpid())); os.dup2(int(sys.argv[1]), 3);"
            " os.execv(sys.argv[2], sys.argv[2:])"
        )
        number = self.listener.fileno()
        command = [str(TWISTD), "-n", "--pidfile=", "responses-gateway", "--config"]
        command.append(str(self.config))
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", become, str(number), *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                pass_fds=(number,),
                env={
                    **os.environ,
                    "NOTIFY_SOCKET": str(self._notify),
                    "WATCHDOG_USEC": str(round(self._watchdog * 1e6)),
                    "LISTEN_FDS": "1",
                    "LISTEN_FDNAMES": "clients",
                },
            )
        self.processes.append(process)
        return process

    def hears(self, word: str, seconds: float = SECONDS) -> str:
        """The next message with this word; what came before it is kept, too."""
        deadline = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                message = self.socket.recv(4096).decode()
            except TimeoutError:
                raise AssertionError(
                    f"no {word} in {self.messages}\n{self.log.read_text()}"
                ) from None
            self.messages.append(message)
            if word in message:
                return message

    def stop(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
        self.listener.close()
        self.socket.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


def play(folder: Path, upstream: Upstream, watchdog: float = 30.0) -> Manager:
    return Manager(folder, upstream, watchdog)


def test_the_manager_hears_of_start_reload_life_and_stop(
    tmp_path: Path, upstream: Upstream
) -> None:
    manager = play(tmp_path, upstream, watchdog=0.5)
    try:
        process = manager.start()
        ready = manager.hears("READY=1")
        assert "STATUS=1 account, 2 client keys, listen on systemd:domain=INET:index=0" in ready
        assert manager.messages == [ready], "it says nothing before it is ready"
        client = WsClient(manager.port)
        completed(client.turn(input="over the socket that systemd made"))
        manager.hears("WATCHDOG=1")
        manager.hears("WATCHDOG=1")

        process.send_signal(signal.SIGHUP)
        assert re.search(r"MONOTONIC_USEC=\d+$", manager.hears("RELOADING=1"))
        assert "STATUS=configuration 2 is in force" in manager.hears("READY=1")
        manager.config.write_text("listen: 7\n")
        process.send_signal(signal.SIGHUP)
        manager.hears("RELOADING=1")
        assert "STATUS=the configuration in force stays: " in manager.hears("READY=1")
        completed(client.turn(input="still here"))

        process.send_signal(signal.SIGTERM)
        stopping = manager.hears("STOPPING=1")
        assert "EXTEND_TIMEOUT_USEC=13000000" in stopping
        assert process.wait(SECONDS) in (0, -signal.SIGTERM)
        assert "Traceback" not in manager.log.read_text()
    finally:
        manager.stop()


def test_a_loop_that_hangs_says_nothing_to_the_watchdog(tmp_path: Path, upstream: Upstream) -> None:
    manager = play(tmp_path, upstream, watchdog=0.4)
    try:
        process = manager.start()
        manager.hears("WATCHDOG=1")
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.3)  # what was on its way
        manager.socket.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                manager.socket.recv(4096)
        time.sleep(1)
        with pytest.raises(BlockingIOError):
            manager.socket.recv(4096)
        process.send_signal(signal.SIGCONT)
        manager.hears("WATCHDOG=1")
    finally:
        manager.stop()


def test_nobody_is_refused_while_the_gateway_restarts(tmp_path: Path) -> None:
    """The manager keeps the socket: who comes in between waits for the next process."""

    def slowly(exchange: Exchange) -> None:
        time.sleep(1)
        exchange.answer()

    upstream = Upstream(slowly)
    manager = play(tmp_path, upstream)
    try:
        first = manager.start()
        manager.hears("READY=1")
        busy = WsClient(manager.port)
        busy.create()
        upstream.wait_for(1)
        first.send_signal(signal.SIGTERM)
        manager.hears("STOPPING=1")
        waiting = socket.create_connection(("127.0.0.1", manager.port), timeout=SECONDS)
        waiting.sendall(b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\n\r\n")
        completed(busy.until_terminal())
        assert busy.wait_closed() == 1012
        assert first.wait(SECONDS) in (0, -signal.SIGTERM)
        assert "1 turns completed, 1 connections moved, 0 turns cut" in manager.log.read_text()
        manager.start()
        manager.hears("READY=1")
        assert waiting.recv(4096).startswith(b"HTTP/1.1 401 "), "the next process answers it"
        waiting.close()
        completed(WsClient(manager.port).turn(input="again"))
    finally:
        manager.stop()
        upstream.stop()


def test_a_socket_that_was_not_passed_is_one_line(tmp_path: Path, upstream: Upstream) -> None:
    manager = play(tmp_path, upstream)
    try:
        text = manager.config.read_text().replace("index=0", "name=operators")
        manager.config.write_text(text)
        assert manager.start().wait(SECONDS) == 1
        (line,) = [each for each in manager.log.read_text().splitlines() if "listen: " in each]
        assert line.endswith(
            "listen: 'systemd:domain=INET:name=operators': cannot listen there: the service manager"
            " passed no such socket (LISTEN_FDS, LISTEN_FDNAMES)"
        )
    finally:
        manager.stop()
