"""The admin side under load: 2,000 connections, 100 accounts, ten pages open.

    python bench/admin.py [--quick] [--json FILE]

Measures how long ``/status`` (as a page, drawn anew, and as JSON) and ``/metrics`` take, and what
share of a core ten pages cost: idle ones, which listen to ``/events``, and ones that also fetch
their parts anew, as the page's script does while turns end. The gateway runs on core 0, the source
of its answers and this client on core 1.
"""

from __future__ import annotations

import argparse
import heapq
import http.client
import itertools
import json
import os
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import load
import measure
import wire

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

CONNECTIONS, ACCOUNTS, PAGES = 2000, 100, 10

#: Turns a second that go on while pages are open, and what the page's script fetches how often.
RATE = 20
REFRESHES = {"turns": 2.0, "conversations": 5.0, "accounts": 5.0, "keys": 5.0, "memory": 10.0}

#: How long the gateway shows a page as it drew it, in seconds, and a little more.
ANEW = 1.05

#: What must hold.
MAX_ANSWER_MS, MAX_SHARE = 200.0, 0.03


class Scale(NamedTuple):
    """How much of everything."""

    answers: int = 15
    seconds: float = 20.0
    waves: int = 5


QUICK = Scale(4, 5.0, 2)


class Line(NamedTuple):
    """One line of the table.

    ``bound`` is what the values must stay under but for one in ten, which the machine may have
    held up; or None.
    """

    title: str
    unit: str
    values: Sequence[float]
    bound: float | None = None

    def text(self) -> str:
        verdict = ""
        if self.bound is not None:
            verdict = f"must be under {self.bound:g}: " + ("yes" if self.holds else "NO")
        median, most = statistics.median(self.values), max(self.values)
        return f"{self.title:<60}{median:>9.2f}{most:>9.2f} {self.unit:<4}  {verdict}"

    @property
    def holds(self) -> bool:
        most = sorted(self.values)[: max(1, len(self.values) * 9 // 10)][-1]
        return self.bound is None or most < self.bound


def config(port: int, admin_port: int, source_port: int, state: Path) -> str:
    accounts = "".join(
        f'  - {{name: account-{n:03}, base_url: "http://127.0.0.1:{source_port}/v1", key: k{n}}}\n'
        for n in range(ACCOUNTS)
    )
    return (
        f'listen: "tcp:{port}:interface=127.0.0.1:backlog=1024"\n'
        f'admin: {{listen: "tcp:{admin_port}:interface=127.0.0.1"}}\n'
        f'state: {{directory: "{state}"}}\n'
        f"accounts:\n{accounts}"
    )


class Stage:
    """A source and a gateway, with clients that have made turns."""

    def __init__(self, directory: Path) -> None:
        cores = os.cpu_count() or 1
        self.core = 0
        if cores > 1:
            measure.pin(os.getpid(), 1)
        source_port, port = measure.free_port(), measure.free_port()
        self.admin_port = measure.free_port()
        command = [sys.executable, str(HERE / "source.py"), str(source_port)]
        second = 1 if cores > 1 else None
        self.source = measure.Process("source", command, source_port, second, ROOT)
        path = directory / "gateway.yaml"
        path.write_text(config(port, self.admin_port, source_port, directory / "state"))
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = [twistd, "-n", "--pidfile=", "responses-gateway", "--config", str(path)]
        first = self.core if cores > 1 else None
        try:
            self.gateway = measure.Process("gateway", command, port, first, ROOT)
        except BaseException:
            self.source.stop()
            raise
        self.links: list[load.Link] = []

    def fill(self, waves: int) -> None:
        """Open the connections; a tenth of them make turns."""
        self.links = load.connect(self.gateway.port, True, CONNECTIONS)
        busy = self.links[:: CONNECTIONS // 200]
        requests = [link.encode(wire.request_body(wire.model_name(20))) for link in busy]
        for _ in range(waves):
            load.wave(busy, requests)

    def stop(self) -> None:
        load.close(self.links)
        self.gateway.stop()
        self.source.stop()


def answers(port: int, path: str, accept: str, times: int) -> tuple[list[float], int]:
    """How long each of so many requests took, in milliseconds, and the size of the last answer."""
    taken, size = [], 0
    for _ in range(times):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=load.TIMEOUT)
        started = time.perf_counter()
        connection.request("GET", path, headers={"accept": accept})
        answer = connection.getresponse()
        size = len(answer.read())
        taken.append((time.perf_counter() - started) * 1e3)
        connection.close()
        if answer.status != 200:
            raise load.BenchError(f"GET {path} was answered {answer.status}")
        time.sleep(ANEW)
    return taken, size


def _next(gap: float) -> float:
    """The page's script keeps to multiples of its gaps; on the monotonic clock."""
    return time.monotonic() + gap - time.time() % gap


class Pages:
    """Listeners of ``/events`` that read what comes.

    :param refreshes: seconds between two fetches of a part of the page, by each of them.
    """

    def __init__(self, port: int, count: int, refreshes: Mapping[str, float]) -> None:
        self.events = self.bytes = 0
        self._stopped = threading.Event()
        self._port = port
        self._due = [
            (_next(gap), part, gap) for part, gap in refreshes.items() for _ in range(count)
        ]
        heapq.heapify(self._due)
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port), load.TIMEOUT)
            sock.sendall(b"GET /events HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            self._selector.register(sock, selectors.EVENT_READ)
        self._threads = [threading.Thread(target=each) for each in (self._read, self._refresh)]
        for thread in self._threads:
            thread.start()

    def _refresh(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=load.TIMEOUT)
        while self._due:
            at, part, gap = self._due[0]
            if self._stopped.wait(max(0.0, at - time.monotonic())):
                break
            heapq.heapreplace(self._due, (at + gap, part, gap))
            connection.request("GET", f"/status?part={part}", headers={"accept": "text/html"})
            connection.getresponse().read()
        connection.close()

    def _read(self) -> None:
        while not self._stopped.is_set():
            for key, _ in self._selector.select(0.2):
                sock: socket.socket = key.fileobj  # type: ignore[assignment]
                data = sock.recv(1 << 18)
                if not data:
                    self._selector.unregister(sock)
                self.events += data.count(b"event: status")
                self.bytes += len(data)

    def close(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]


def share_of_a_core(stage: Stage, seconds: float, rate: int) -> float:
    """The share that the gateway takes while its clients make so many turns a second."""
    links = itertools.cycle(stage.links[:200])
    with measure.spending(stage.gateway, stage.core) as spent:
        started = time.monotonic()
        for turn in range(round(seconds * rate)):
            time.sleep(max(0.0, started + turn / rate - time.monotonic()))
            link = next(links)
            load.wave([link], [link.encode(wire.request_body(wire.model_name(20)))])
        time.sleep(max(0.0, started + seconds - time.monotonic()))
    return spent.cpu / spent.wall


def cost_of_pages(
    stage: Stage, seconds: float, rate: int, refreshes: Mapping[str, float]
) -> tuple[float, float]:
    """The share of a core without any page, and what all pages take besides."""
    alone = share_of_a_core(stage, seconds, rate)
    pages = Pages(stage.admin_port, PAGES, refreshes)
    try:
        time.sleep(2)
        before = pages.events
        with_pages = share_of_a_core(stage, seconds, rate)
        events = pages.events - before
    finally:
        pages.close()
    expected = PAGES * seconds
    if events < expected * 0.7:
        raise load.BenchError(f"{PAGES} pages got {events} status events, expected {expected:.0f}")
    return alone, max(0.0, with_pages - alone)


def measured(stage: Stage, scale: Scale) -> list[Line]:
    lines = []
    for path, accept, bound in (
        ("/status", "text/html", MAX_ANSWER_MS),
        ("/status", "application/json", MAX_ANSWER_MS),
        ("/metrics", "text/plain", None),
    ):
        answers(stage.admin_port, path, accept, 2)
        taken, size = answers(stage.admin_port, path, accept, scale.answers)
        title = f"GET {path} as {accept}, {size / 1024:.0f} KiB"
        lines.append(Line(title, "ms", taken, bound))
    for what, rate, refreshes in (
        ("idle", 0, {}),
        (f"{RATE} turns a second", RATE, REFRESHES),
    ):
        alone, cost = (
            100 * share for share in cost_of_pages(stage, scale.seconds, rate, refreshes)
        )
        lines.append(Line(f"{what}, no page open: share of a core", "%", [alone]))
        title = f"{what}, {PAGES} pages open: share of a core besides"
        lines.append(Line(title, "%", [cost], 100 * MAX_SHARE))
    return lines


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer answers, shorter spans")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    return parser.parse_args()


def show(lines: Sequence[Line]) -> None:
    print(f"\nadmin side: {CONNECTIONS:,} connections, {ACCOUNTS} accounts")
    print(f"{'':<60}{'median':>9}{'most':>9}")
    for line in lines:
        print(line.text())


def main() -> int:
    if not Path("/proc/self/stat").exists():
        print("bench: needs /proc to measure CPU time (Linux)", file=sys.stderr)
        return 2
    measure.raise_file_limit()
    options = arguments()
    scale = QUICK if options.quick else Scale()
    with tempfile.TemporaryDirectory(prefix="bench-admin-") as directory:
        try:
            stage = Stage(Path(directory))
            try:
                stage.fill(scale.waves)
                lines = measured(stage, scale)
            finally:
                stage.stop()
        except load.BenchError as error:
            print(f"\nbench: {error}", file=sys.stderr)
            return 1
    show(lines)
    if options.json:
        options.json.write_text(json.dumps([line._asdict() for line in lines], indent=1) + "\n")
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
