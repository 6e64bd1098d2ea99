"""Several workers and upgrades with real processes: what kills, stops and successors cost whom."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wsproto.utilities import LocalProtocolError

from tests.support.gateway import BAD_WORDS, BASE, ROOT, account, merged
from tests.support.httpclient import HttpClient
from tests.support.ports import free_port
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import SocketClosed, WsClient

pytestmark = pytest.mark.e2e

#: Generous: a loaded machine takes its time to start three interpreters.
SECONDS = 120.0
READY = re.compile(r"worker (\d+) \(process (\d+)\) is ready")
STARTED = re.compile(r"responses-gateway \S+ started")


def waited(what: str, found: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The first true result."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds:g} s for {what}")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Running:
    """A gateway with a pidfile and a log file, in the foreground or as a daemon."""

    def __init__(self, folder: Path, config: dict[str, Any], daemon: bool = False) -> None:
        self.port, self.admin_port = free_port(), free_port()
        self.config_path = folder / "gateway.yaml"
        self.log_path = folder / "gateway.log"
        self.pidfile = folder / "gateway.pid"
        config = {
            "listen": f"tcp:{self.port}:interface=127.0.0.1",
            "admin": {"listen": f"tcp:{self.admin_port}:interface=127.0.0.1"},
            "state": {"directory": str(folder / "state")},
            **config,
        }
        self.config = merged(merged(BASE, {"timeouts": {"shutdown_seconds": 60}}), config)
        self.write()
        twistd = [str(Path(sys.executable).parent / "twistd"), "--pidfile", str(self.pidfile)]
        options = ["--logfile", str(self.log_path)]
        where = [] if daemon else ["-n"]
        plugin = ["responses-gateway", "--config", str(self.config_path)]
        self.process = subprocess.Popen(
            [*twistd, *options, *where, *plugin],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.seen: set[int] = set()

    def write(self) -> None:
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False))

    @property
    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    @property
    def pid(self) -> int:
        self.seen.add(pid := int(self.pidfile.read_text()))
        return pid

    def workers(self) -> dict[int, int]:
        """The process of each worker that became ready last."""
        found = {int(number): int(pid) for number, pid in READY.findall(self.log)}
        self.seen.update(int(pid) for _, pid in READY.findall(self.log))
        return found

    def started(self) -> Running:
        def look() -> bool:
            code = self.process.poll()
            assert not code, f"it ended with {code}: {self.process.communicate()[0]}{self.log}"
            return bool(STARTED.search(self.log))

        waited("the start", look)
        return self

    def upgraded(self) -> int:
        """Ask for a successor and wait for it; its pid."""
        before = self.pid
        os.kill(before, signal.SIGUSR2)
        waited("the successor", lambda: self.pid != before)
        return self.pid

    def stop(self) -> None:
        if self.pidfile.exists():
            os.kill(self.pid, signal.SIGTERM)
        self.workers()
        try:
            waited("the end of all processes", lambda: not any(map(is_alive, self.seen)))
        finally:
            for pid in filter(is_alive, self.seen):
                os.kill(pid, signal.SIGKILL)
            self.process.communicate(timeout=SECONDS)
        assert not self.pidfile.exists()
        for word in BAD_WORDS:
            assert word not in self.log, self.log[-5000:]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.stop()


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, upstream: Upstream) -> Iterator[Start]:
    running: list[Running] = []

    def begin(daemon: bool = False, **config: Any) -> Running:
        config.setdefault("accounts", [account("solo", upstream)])
        running.append(Running(tmp_path, config, daemon))
        return running[-1].started()

    yield begin
    for each in running:
        each.stop()


class Load(threading.Thread):
    """A client that has one turn after the other, and counts what became of them."""

    def __init__(self, port: int, websocket: bool) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.websocket = websocket
        self.counts: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.errors: list[str] = []

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                if self.websocket:
                    self._converse()
                else:
                    answer = HttpClient(self.port, timeout=SECONDS).create(stream=True)
                    whole = answer.status == 200 and b"response.completed" in answer.body
                    self.counts["completed" if whole else "cut"] += 1
            except Exception as error:
                self.counts["cut"] += 1
                self.errors.append(repr(error))

    def _converse(self) -> None:
        """Turns on one connection, until the gateway closes it between two of them."""
        client = WsClient(self.port, timeout=SECONDS)
        try:
            while not self.stopping.is_set():
                before = len(client.texts)
                try:
                    last = client.turn()[-1]
                except (SocketClosed, LocalProtocolError, OSError):
                    if len(client.texts) > before:
                        raise  # within an answer
                    self.counts["moved"] += 1
                    return
                self.counts["completed" if last["type"] == "response.completed" else "cut"] += 1
        finally:
            client.drop()


def under_load(port: int, during: Callable[[], object]) -> tuple[Counter[str], list[str]]:
    clients = [Load(port, number % 2 == 0) for number in range(8)]
    for client in clients:
        client.start()
    try:
        waited("turns", lambda: all(client.counts["completed"] for client in clients))
        during()
        before = [client.counts["completed"] for client in clients]
        waited(
            "turns afterwards",
            lambda: all(
                client.counts["completed"] > count + 1
                for client, count in zip(clients, before, strict=True)
            ),
        )
    finally:
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(SECONDS)
    counts: Counter[str] = Counter()
    for client in clients:
        counts += client.counts
    return counts, [error for client in clients for error in client.errors]


def slow(exchange: Exchange) -> None:
    """An answer that takes a moment."""
    events = exchange.turn()
    exchange.sse(*events[:4])
    time.sleep(0.1)
    exchange.sse(*events[4:])
    exchange.end()


# --- workers -------------------------------------------------------------------------------


def test_workers_serve_one_port_and_share_conversations(start: Start, upstream: Upstream) -> None:
    running = start(workers=2)
    clients = [WsClient(running.port, timeout=SECONDS) for _ in range(24)]
    previous = [client.turn()[-1]["response"]["id"] for client in clients]
    served = Counter(re.findall(r"\[worker (\d), gateway.turn\]", running.log))
    assert set(served) == {"1", "2"}
    # Each conversation goes on at the next connection, whichever worker has it.
    for client, before in zip(reversed(clients), previous, strict=True):
        last = client.turn(previous_response_id=before, input="go on")[-1]
        assert last["type"] == "response.completed"
    for client in clients:
        client.drop()


def test_a_killed_worker_costs_its_own_running_turns_only(start: Start, upstream: Upstream) -> None:
    running = start(workers=2)
    release = threading.Event()

    def held(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:4])
        if exchange.hold(release, SECONDS):
            exchange.sse(*events[4:])
            exchange.end()

    upstream.script = held
    clients = [WsClient(running.port, timeout=SECONDS) for _ in range(16)]
    for client in clients:
        client.create()
        client.until("response.output_item.added")
    first = running.workers()
    os.kill(first[1], signal.SIGKILL)
    # New clients are served at once, also those that the kernel queues for the dead worker.
    upstream.script = upstream.default
    for _ in range(8):
        assert HttpClient(running.port, timeout=SECONDS).create(stream=True).status == 200
    release.set()
    outcomes: Counter[str] = Counter()
    for client in clients:
        try:
            outcomes[client.until_terminal()[-1]["type"]] += 1
        except SocketClosed as closed:
            outcomes[str(closed.code)] += 1
        client.drop()
    assert set(outcomes) == {"response.completed", "1006"}, outcomes
    waited("the worker", lambda: running.workers()[1] != first[1])
    assert running.workers()[2] == first[2]
    (line,) = [each for each in running.log.splitlines() if "is started again" in each]
    assert f"worker 1 (process {first[1]}) ended after" in line
    assert "signal SIGKILL" in line


def test_connections_that_wait_for_a_worker_outlive_it(start: Start) -> None:
    running = start(workers=2)
    worker = running.workers()[1]
    os.kill(worker, signal.SIGSTOP)
    clients = [HttpClient(running.port, timeout=SECONDS) for _ in range(32)]
    for client in clients:
        client.post(stream=True)
    os.kill(worker, signal.SIGKILL)
    assert [client.answer().status for client in clients] == [200] * 32


def test_the_load_goes_on_while_workers_are_killed(start: Start, upstream: Upstream) -> None:
    running = start(workers=2)

    def kill() -> None:
        os.kill(running.workers()[2], signal.SIGKILL)
        waited("the worker", lambda: len(READY.findall(running.log)) == 3)

    counts, errors = under_load(running.port, kill)
    assert counts["completed"] > 16
    # A turn of each client at most: those that ran on the worker.
    assert counts["cut"] + counts["moved"] <= 8, (counts, errors)


def test_a_reload_is_for_all_workers_or_none(start: Start) -> None:
    running = start(workers=2)
    running.config["log"]["level"] = "nonsense"
    running.write()
    os.kill(running.pid, signal.SIGHUP)
    waited("the refusal", lambda: "the configuration in force stays" in running.log)
    running.config["keys"] = [{"name": "new", "key": "key-new"}]
    running.config["log"]["level"] = "info"
    running.write()
    os.kill(running.pid, signal.SIGHUP)
    waited("the reload", lambda: "is in force, changed: keys" in running.log)
    for _ in range(12):
        last = WsClient(running.port, key="key-new", timeout=SECONDS).turn()[-1]
        assert last["type"] == "response.completed"


def test_the_log_is_opened_again_by_all(start: Start, tmp_path: Path) -> None:
    running = start(workers=2)
    running.workers()
    old = tmp_path / "gateway.log.old"
    running.log_path.rename(old)
    os.kill(running.pid, signal.SIGUSR1)
    waited("the new file", running.log_path.exists)
    served: set[str] = set()

    def both() -> bool:
        HttpClient(running.port, timeout=SECONDS).create()
        served.update(re.findall(r"\[worker (\d), gateway.turn\]", running.log))
        return served == {"1", "2"}

    waited("lines of both workers", both)
    assert "gateway.turn" not in old.read_text()


def test_workers_end_when_their_supervisor_is_gone(start: Start) -> None:
    running = start(workers=2)
    workers = running.workers()
    os.kill(running.pid, signal.SIGKILL)
    waited("the end of the workers", lambda: not any(map(is_alive, workers.values())))
    assert running.log.count("the supervisor is gone") == 2
    running.pidfile.unlink()


@pytest.mark.parametrize("daemon", [False, True], ids=["foreground", "daemon"])
def test_a_stop_lets_turns_end_and_leaves_nothing(
    daemon: bool, start: Start, upstream: Upstream
) -> None:
    running = start(daemon, workers=2)
    upstream.script = slow
    clients = [WsClient(running.port, timeout=SECONDS) for _ in range(6)]
    for client in clients:
        client.create()
        client.until("response.output_item.added")
    running.stop()
    assert [client.until_terminal()[-1]["type"] for client in clients] == (
        ["response.completed"] * 6
    )
    assert [client.wait_closed() for client in clients] == [1012] * 6


@pytest.mark.parametrize("daemon", [False, True], ids=["foreground", "daemon"])
def test_a_port_that_is_taken_is_one_line(
    daemon: bool, start: Start, tmp_path: Path, upstream: Upstream
) -> None:
    first = start(workers=2)
    folder = tmp_path / "second"
    folder.mkdir()
    config = {"workers": 2, "accounts": [account("solo", upstream)]}
    second = Running(folder, {**config, "listen": first.config["listen"]}, daemon)
    out, _ = second.process.communicate(timeout=SECONDS)
    assert second.process.returncode == 1
    assert f"listen: '{first.config['listen']}': cannot listen there: Address already" in out
    assert not second.pidfile.exists()


# --- upgrades ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "daemon"),
    [(1, False), (2, True)],
    ids=["one", "two-daemon"],
)
def test_an_upgrade_cuts_no_turn(
    workers: int, daemon: bool, start: Start, upstream: Upstream
) -> None:
    upstream.script = slow
    running = start(daemon, workers=workers)
    before = running.pid

    def upgrade() -> None:
        running.upgraded()
        waited("the end of the process before", lambda: not is_alive(before))

    counts, errors = under_load(running.port, upgrade)
    assert counts["cut"] == 0, (counts, errors)
    assert counts["completed"] > 16
    assert running.pid != before
    assert "has taken over" in running.log
    assert HttpClient(running.admin_port, timeout=SECONDS).ask("GET", "/readyz").status == 200


def test_an_upgrade_that_fails_changes_nothing(start: Start) -> None:
    running = start()
    before = running.pid
    running.config["log"]["level"] = "nonsense"
    running.write()
    os.kill(before, signal.SIGUSR2)
    waited("the refusal", lambda: "no upgrade: the successor ended before" in running.log)
    assert running.pid == before
    assert HttpClient(running.port, timeout=SECONDS).create(stream=True).status == 200
