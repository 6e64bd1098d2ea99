"""One worker against several: events per second in bursts, and small turns per second.

    python bench/workers.py [--workers N] [--rounds N] [--share PERCENT] [--json FILE]

Both gateways run in the same rounds and take turns.  The load client and the source of the events
need cores of their own; where there are only two, they compete with the workers.  So the table also
has what does not depend on that: the CPU time of each worker, and the rate at which the busiest one
would fill a core.  That is what the gateway can carry where each worker has a core.

With ``--share`` each worker gets only that part of a core (a Linux control group, which root may
make), and load and source have the rest: then the clock shows it, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import load
import measure
import wire

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

STREAMS, DELTAS = 512, 200
CLIENTS, WAVES = 256, 6
SETTLE_SECONDS = 120.0


def config(port: int, source_port: int, workers: int, state: Path) -> str:
    return f"""\
listen: "tcp:{port}:interface=127.0.0.1"
admin: {{listen: null}}
accounts:
  - {{name: source, base_url: "http://127.0.0.1:{source_port}/v1", key: bench}}
state: {{directory: "{state}"}}
workers: {workers}
log: {{level: warn}}
"""


#: Where the control groups of CPU time are: version 1, version 2.
GROUPS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))
PERIOD_US = 10_000


def limit(pid: int, percent: int, stack: ExitStack) -> None:
    """Give a process only a part of a core.

    :param stack: removes the limit.
    """
    base = next(each for each in GROUPS if each.is_dir())
    group = base / f"bench-workers-{pid}"
    group.mkdir()
    stack.callback(group.rmdir)
    quota = PERIOD_US * percent // 100
    if (group / "cpu.cfs_quota_us").exists():
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(str(quota))
    else:
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    (group / "cgroup.procs").write_text(str(pid))
    stack.callback((base / "cgroup.procs").write_text, str(pid))


class Fleet:
    """A gateway of some workers."""

    def __init__(self, folder: Path, source_port: int, workers: int) -> None:
        self.workers = workers
        port = measure.free_port()
        path = folder / f"workers-{workers}.yaml"
        path.write_text(config(port, source_port, workers, folder / f"state-{workers}"))
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = [twistd, "-n", "--pidfile=", "responses-gateway", "--config", str(path)]
        self.process = measure.Process(f"{workers} workers", command, port, None, ROOT)
        self._wait()

    def _wait(self) -> None:
        """Wait until every worker has taken its clients."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            if len(self.pids) == self.workers:
                links = load.connect(self.process.port, True, 8 * self.workers)
                load.close(links)
                if all(cpu_seconds(pid) > 0.2 for pid in self.pids):
                    return
            time.sleep(0.5)
        raise load.BenchError(f"not all workers started:\n{self.process.log_tail()}")

    @property
    def pids(self) -> list[int]:
        """The processes that serve clients."""
        if self.workers == 1:
            return [self.process.pid]
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return sorted(map(int, found.split()))


def cpu_seconds(pid: int) -> float:
    """The CPU time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_bytes().split()[0]) for task in tasks) / 1e9


def spent(fleet: Fleet, count: int, run: Callable[[], object]) -> dict[str, float]:
    """Run something that makes so many events or turns, and read off what it cost."""
    supervisor = cpu_seconds(fleet.process.pid)
    before = [cpu_seconds(pid) for pid in fleet.pids]
    began = time.perf_counter()
    run()
    wall = time.perf_counter() - began
    used = [cpu_seconds(pid) - earlier for pid, earlier in zip(fleet.pids, before, strict=True)]
    supervised = cpu_seconds(fleet.process.pid) - supervisor if fleet.workers > 1 else 0.0
    return {
        "per second": count / wall,
        "CPU us each": sum(used) / count * 1e6,
        "CPU us each, of the supervisor": supervised / count * 1e6,
        "busiest worker's share": max(used) / sum(used),
        "per second with a core for each worker": count / max(used),
    }


def burst(fleet: Fleet) -> dict[str, float]:
    links = load.connect(fleet.process.port, True, STREAMS)
    small = [link.encode(wire.request_body(wire.model_name(1))) for link in links]
    load.wave(links, small)
    requests = [link.encode(wire.request_body(wire.model_name(DELTAS))) for link in links]
    try:
        return spent(fleet, STREAMS * wire.event_count(DELTAS), lambda: load.wave(links, requests))
    finally:
        load.close(links)


def turns(fleet: Fleet) -> dict[str, float]:
    links = load.connect(fleet.process.port, True, CLIENTS)
    requests = [link.encode(wire.request_body(wire.model_name(1))) for link in links]
    load.wave(links, requests)

    def run() -> None:
        for _ in range(WAVES):
            load.wave(links, requests)

    try:
        return spent(fleet, CLIENTS * WAVES, run)
    finally:
        load.close(links)


def rounds(fleets: list[Fleet], count: int) -> Iterator[tuple[str, int, dict[str, float]]]:
    for number in range(count):
        for fleet in fleets if number % 2 == 0 else reversed(fleets):
            yield "burst, events", fleet.workers, burst(fleet)
            yield "small turns", fleet.workers, turns(fleet)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--share", type=int, help="percent of a core for each worker")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    measure.raise_file_limit()
    results: dict[str, dict[str, dict[int, list[float]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        port = measure.free_port()
        source = measure.Process(
            "source", [sys.executable, str(HERE / "source.py"), str(port)], port, None, ROOT
        )
        fleets: list[Fleet] = []
        limits = ExitStack()
        try:
            for workers in (1, options.workers):
                fleets.append(Fleet(Path(name), port, workers))
                for pid in fleets[-1].pids if options.share else ():
                    limit(pid, options.share, limits)
            for what, workers, figures in rounds(fleets, options.rounds):
                for figure, value in figures.items():
                    of = results.setdefault(what, {}).setdefault(figure, {})
                    of.setdefault(workers, []).append(value)
        finally:
            limits.close()
            for fleet in fleets:
                fleet.process.stop()
            source.stop()
    many = options.workers
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {options.rounds}")
    print(f"\n| row | 1 worker | {many} workers | ratio |\n|---|---|---|---|")
    for what, table in results.items():
        for figure, of in table.items():
            one, other = (statistics.median(of[workers]) for workers in (1, many))
            ratio = f"{other / one:.2f}" if one else ""
            print(f"| {what}: {figure} | {one:,.2f} | {other:,.2f} | {ratio} |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
