"""The benchmark: one table, every figure beside two references measured in the same run.

    python bench/run.py [--quick] [--rounds N] [--only GROUP] [--json FILE]

The subjects take turns within each round: a bare TCP relay, the naive gateway that calls
``sendMessage`` once per event (both in ``reference.py``), and the real service under ``twistd``.
Each is a process of its own on core 0; the source of the events and this process, which is the
load client, share core 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
from load import BenchError
from rows import QUICK, Measurement, Measurements, Row, Scale, Subject

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
REFERENCES = ("relay", "sendmessage")
CORE = 0
DISTRIBUTIONS = ("Twisted", "autobahn", "treq", "msgspec")

Results = dict[str, dict[str, list[float]]]  # row key -> subject -> one value per round


def gateway_config(
    port: int,
    admin_port: int,
    source_port: int,
    continuity: str,
    state: Path,
    transport: str = "http",
) -> str:
    return f"""\
listen: "tcp:{port}:interface=127.0.0.1"
admin: {{listen: "tcp:{admin_port}:interface=127.0.0.1"}}
accounts:
  - name: source
    base_url: "http://127.0.0.1:{source_port}/v1"
    key: bench
    continuity: {continuity}
    transport: {transport}
    websocket: {{max_sockets: 10000}}
    models: ["*"]
limits: {{max_upstream_sockets: 10000}}
state: {{directory: "{state}"}}
"""


class Stage:
    """Starts the processes, all of them stopped at the end."""

    def __init__(self, directory: Path) -> None:
        cores = os.cpu_count() or 1
        self.core = CORE if cores > 1 else None
        self._directory = directory
        self._started: list[measure.Process] = []
        if cores > 1:
            measure.pin(os.getpid(), 1)
        port = measure.free_port()
        command = [sys.executable, str(HERE / "source.py"), str(port)]
        core = 1 if cores > 1 else None
        self.source = measure.Process("source", command, port, core, ROOT)
        self._started.append(self.source)

    def reference(self, kind: str) -> Callable[[], measure.Process]:
        def start() -> measure.Process:
            port = measure.free_port()
            command = [sys.executable, str(HERE / "reference.py"), kind, str(port)]
            command.append(str(self.source.port))
            return self._start(kind, command, port)

        return start

    def gateway(
        self, continuity: str = "auto", transport: str = "http"
    ) -> Callable[[], measure.Process]:
        def start() -> measure.Process:
            port, admin_port = measure.free_port(), measure.free_port()
            config = self._directory / f"{continuity}-{port}.yaml"
            state = self._directory / f"state-{port}"
            text = gateway_config(port, admin_port, self.source.port, continuity, state, transport)
            config.write_text(text)
            twistd = str(Path(sys.executable).with_name("twistd"))
            command = [twistd, "-n", "--pidfile=", "responses-gateway", "--config", str(config)]
            return self._start("gateway", command, port)

        return start

    def _start(self, name: str, command: list[str], port: int) -> measure.Process:
        process = measure.Process(name, command, port, self.core, ROOT)
        self._started.append(process)
        return process

    def subjects(self, names: list[str]) -> list[Subject]:
        subjects = []
        for name in names:
            start = self.gateway() if name == "gateway" else self.reference(name)
            subject = Subject(name, name != "relay", start, start())
            if name == "gateway":
                subject.replaying = self.gateway("replay")()
            subjects.append(subject)
        return subjects

    def stop(self) -> None:
        for process in reversed(self._started):
            process.stop()


def take(group: Measurement, subjects: list[Subject], direct: Subject, round_: int) -> Results:
    """One round of one group over all subjects, which take turns in going first."""
    order = subjects[round_ % len(subjects) :] + subjects[: round_ % len(subjects)]
    if group.gateway_first:
        order.sort(key=lambda subject: subject.name != "gateway")
    values: dict[str, dict[str, float]] = {row.key: {} for row in group.rows}
    for subject in [*([direct] if group.with_direct else []), *order]:
        for key, value in group.run(subject, round_):
            values[key][subject.name] = value
    over = {row.key for row in group.rows if row.over_direct}
    return {
        key: {
            name: [value - of["direct"] if key in over else value]
            for name, value in of.items()
            if name != "direct"
        }
        for key, of in values.items()
    }


def number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def cell(values: list[float]) -> str:
    if not values:
        return "-"
    middle = number(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))}..{number(max(values))})"


def ratio(row: Row, of: dict[str, list[float]]) -> str:
    """How many times better the gateway is than one ``sendMessage`` per event."""
    if not of.get("gateway") or not of.get("sendmessage"):
        return "-"
    ours, theirs = statistics.median(of["gateway"]), statistics.median(of["sendmessage"])
    if ours <= 0 or theirs <= 0:
        return "-"
    return f"x {ours / theirs if row.more_is_better else theirs / ours:.2f}"


def table(rows: list[Row], results: Results, names: list[str]) -> str:
    lines = [["", "unit", *names, "gateway : sendmessage"]]
    for row in rows:
        of = results[row.key]
        cells = [cell(of.get(name, [])) for name in names]
        lines.append([row.title, row.unit, *cells, ratio(row, of)])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def facts() -> dict[str, str]:
    """What the figures depend on: the machine and the versions."""
    from autobahn import websocket

    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = cpuinfo.read_text().partition("model name")[2].partition(": ")[2].split("\n")[0]
    versions = {}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "machine": f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
        "USES_NVX": str(getattr(websocket, "USES_NVX", False)),
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, under a minute")
    parser.add_argument("--rounds", type=int, help="rounds to take medians over (default 5)")
    parser.add_argument("--only", action="append", metavar="GROUP", help="measure this group only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    parser.add_argument(
        "--subject", action="append", choices=[*REFERENCES, "gateway"], help="measure this one only"
    )
    return parser.parse_args()


def measured(options: argparse.Namespace) -> None:
    scale = QUICK if options.quick else Scale()
    rounds = options.rounds or (1 if options.quick else 5)
    names = options.subject or [*REFERENCES, "gateway"]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        stage = Stage(Path(directory))
        try:
            subjects = stage.subjects(names)
            direct = Subject("direct", False, lambda: stage.source, stage.source)
            measurements = Measurements(scale, CORE, stage.source.port)
            groups = measurements.all
            if options.only:
                groups = [group for group in groups if group.key in options.only]
                if not groups:
                    known = ", ".join(group.key for group in measurements.all)
                    raise BenchError(f"--only: no such group; there are {known}")
            rows = [row for group in groups for row in group.rows]
            results: Results = {row.key: {name: [] for name in names} for row in rows}
            for round_ in range(rounds):
                for group in groups:
                    if group.rounds is not None and round_ >= group.rounds:
                        continue
                    print(
                        f"round {round_ + 1} of {rounds}: {group.key} ", end="\r", file=sys.stderr
                    )
                    for key, of in take(group, subjects, direct, round_).items():
                        for name, values in of.items():
                            results[key][name] += values
            pinned = all(subject.process.pinned for subject in subjects)
        finally:
            stage.stop()
    known_facts = facts()
    print(" " * 60, end="\r", file=sys.stderr)
    print("\n".join(f"{name}: {value}" for name, value in known_facts.items()))
    print(f"medians of {rounds} rounds (least..most), {time.monotonic() - started:.0f} s in all;")
    print("gateway : sendmessage says how many times better the gateway is\n")
    print(table(rows, results, names))
    for warning in warnings(measurements, pinned):
        print(f"warning: {warning}")
    if options.json:
        document = {"facts": known_facts, "rounds": rounds, "results": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def warnings(measurements: Measurements, pinned: bool) -> list[str]:
    found = sorted(measurements.mistakes)
    if not pinned:
        found.append("processes could not be pinned to cores: figures are less steady")
    for what, shares in measurements.foreign.items():
        heavy = [share for share in shares if share > 0.1]
        if heavy:
            found.append(
                f"{what}: others used up to {max(heavy):.0%} of the core under test"
                f" in {len(heavy)} of {len(shares)} measurements"
            )
    return found


def main() -> int:
    if not Path("/proc/self/stat").exists():
        print("bench: needs /proc to measure CPU time and memory (Linux)", file=sys.stderr)
        return 2
    measure.raise_file_limit()
    try:
        measured(arguments())
    except BenchError as error:
        print(f"\nbench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
