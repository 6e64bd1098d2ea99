"""The benchmark's rows: what is done to a subject, and what is read off it."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import load
import measure
import wire

#: Asks the source for its counts.
STATS_REQUEST = b"GET /stats HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    unit: str
    more_is_better: bool = False
    over_direct: bool = False  # the same client straight at the source is taken off


@dataclass
class Subject:
    """Something that stands between the client and the source; ``direct`` is nothing at all."""

    name: str
    websocket: bool
    start: Callable[[], measure.Process]  # a fresh process
    process: measure.Process
    replaying: measure.Process | None = None  # the same, set to replay every turn


@dataclass(frozen=True)
class Scale:
    """How much of everything: the full run or the quick one."""

    burst_deltas: int = 4000
    paced_seconds: float = 3.0
    waves: tuple[tuple[int, int], ...] = ((1, 100), (50, 8), (500, 2))  # connections, waves
    delta_turns: int = 40
    turns: tuple[tuple[str, int, int], ...] = (
        ("300 B", 300, 200),
        ("100 KB", 100_000, 60),
        ("1 MB", 1_000_000, 16),
    )  # name, bytes, turns
    transcripts: tuple[int, ...] = (50, 200)
    replayed_turns: int = 30
    idle: int = 2000
    idle_rounds: int = 3


QUICK = Scale(
    burst_deltas=1500,
    paced_seconds=1.0,
    waves=((1, 30), (50, 2), (500, 1)),
    delta_turns=15,
    turns=(("300 B", 300, 40), ("100 KB", 100_000, 15), ("1 MB", 1_000_000, 5)),
    replayed_turns=8,
    idle_rounds=1,
)

BURST_STREAMS, PACED_STREAMS, PACED_RATE = 50, 200, 50
DELTA_WAYS = (("websocket", True), ("events", False))  # how the client of a stream listens
DELTA_MODEL = wire.model_name(8, 5)
REPLAYED_INPUT = 600  # bytes of request per turn of the transcript
REPLAYED_DELTAS = 60  # answered with some 300 bytes of text


@dataclass
class Measurement:
    """A group of rows that are measured together, for ``--only``."""

    key: str
    rows: list[Row]
    run: Callable[[Subject, int], Iterator[tuple[str, float]]]
    with_direct: bool = False
    gateway_first: bool = False  # what it sends upstream is what the references are given
    rounds: int | None = None


class Measurements:
    """All measurements of one run."""

    def __init__(self, scale: Scale, core: int, source_port: int) -> None:
        self.scale, self.core, self.source_port = scale, core, source_port
        self.mistakes: set[str] = set()  # a subject that did something else than asked
        self.foreign: defaultdict[str, list[float]] = defaultdict(list)  # load by others, by group
        self._replayed_bytes: dict[int, int] = {}
        connections = [count for count, _ in scale.waves]
        self.all = [
            Measurement(
                "burst",
                [
                    Row("burst.rate", "burst, 50 streams: events per second", "ev/s", True),
                    Row("burst.cpu", "burst, 50 streams: CPU per event", "us"),
                ],
                self.burst,
            ),
            Measurement(
                "paced",
                [
                    Row("paced.rate", "paced, 200 x 50 ev/s: events per second", "ev/s", True),
                    Row("paced.cpu", "paced, 200 x 50 ev/s: CPU per event", "us"),
                ],
                self.paced,
            ),
            Measurement(
                "first",
                [
                    Row(f"first.{n}", f"added time to first event, {n} at once", "ms", False, True)
                    for n in connections
                ],
                self.first_event,
                with_direct=True,
            ),
            Measurement(
                "delta",
                [
                    Row(
                        f"delta.{way}",
                        f"added time to first delta, 5 ms pace, {way}",
                        "ms",
                        False,
                        True,
                    )
                    for way, _ in DELTA_WAYS
                ],
                self.first_delta,
                with_direct=True,
            ),
            Measurement(
                "turns",
                [
                    Row(f"turns.{name}", f"CPU per turn, chained, {name} body", "us")
                    for name, _, _ in scale.turns
                ],
                self.chained_turns,
            ),
            Measurement(
                "replay",
                [
                    Row(f"replay.{n}", f"CPU per turn, replaying {n} turns", "us")
                    for n in scale.transcripts
                ],
                self.replayed_turns,
                gateway_first=True,
            ),
            Measurement(
                "idle",
                [Row("idle", f"memory per idle connection, {scale.idle:,} open", "KiB")],
                self.idle_connections,
                rounds=scale.idle_rounds,
            ),
            Measurement(
                "choose",
                [
                    *(
                        Row(f"choose.{n}", f"CPU per choice among {n:,} accounts", "us")
                        for n in (2, 100, 1000)
                    ),
                    Row("choose.resting", "CPU per choice, 999 of 1,000 accounts resting", "us"),
                ],
                self.choosing,
            ),
        ]

    def note(self, subject: Subject, what: str, spent: measure.Spent) -> None:
        """Keep how much of the core others used meanwhile."""
        self.foreign[f"{what}, {subject.name}"].append(spent.foreign)

    def source_stats(self) -> dict[str, int]:
        (link,) = load.connect(self.source_port, False, 1)
        link.sock.sendall(STATS_REQUEST)
        received = link.sock.recv(4096)
        link.close()
        stats: dict[str, int] = json.loads(received.partition(b"\r\n\r\n")[2])
        return stats

    def _streams(
        self, subject: Subject, what: str, streams: int, model: str, deltas: int
    ) -> Iterator[tuple[str, float]]:
        links = load.connect(subject.process.port, subject.websocket, streams)
        try:
            # One small turn first: upstream connections are open when the clock starts.
            small = [link.encode(wire.request_body(wire.model_name(1))) for link in links]
            load.wave(links, small)
            requests = [link.encode(wire.request_body(model)) for link in links]
            with measure.spending(subject.process, self.core) as spent:
                answers = load.wave(links, requests, keep=1)
        finally:
            load.close(links)
        load.check(links[0], answers[0], deltas)
        self.note(subject, what, spent)
        events = streams * wire.event_count(deltas)
        yield f"{what}.rate", events / spent.wall
        yield f"{what}.cpu", spent.cpu / events * 1e6

    def burst(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        deltas = self.scale.burst_deltas
        return self._streams(subject, "burst", BURST_STREAMS, wire.model_name(deltas), deltas)

    def paced(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        deltas = round(self.scale.paced_seconds * PACED_RATE)
        model = wire.model_name(deltas, 1000 // PACED_RATE)
        return self._streams(subject, "paced", PACED_STREAMS, model, deltas)

    def first_event(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        for count, waves in self.scale.waves:
            links = load.connect(subject.process.port, subject.websocket, count)
            try:
                requests = [link.encode(wire.request_body(wire.model_name(20))) for link in links]
                load.wave(links, requests)
                seconds = [
                    answer.first - answer.sent
                    for _ in range(waves)
                    for answer in load.wave(links, requests)
                ]
            finally:
                load.close(links)
            yield f"first.{count}", statistics.median(seconds) * 1e3

    def first_delta(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        """A delta right after the events before it: a client is late to acknowledge those."""
        speaks_both = subject.name == "gateway"
        for way, websocket in DELTA_WAYS:
            if subject.name == "direct":
                websocket = False
            elif websocket != subject.websocket and not speaks_both:
                continue
            (link,) = load.connect(subject.process.port, websocket, 1)
            try:
                request = link.encode(wire.request_body(DELTA_MODEL))
                load.first_delta(link, request)
                seconds = [load.first_delta(link, request) for _ in range(self.scale.delta_turns)]
            finally:
                link.close()
            yield f"delta.{way}", statistics.median(seconds) * 1e3

    def chained_turns(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        for name, size, turns in self.scale.turns:
            (link,) = load.connect(subject.process.port, subject.websocket, 1)
            try:
                talk = load.conversation(link, wire.model_name(1), size, None)
                for _ in range(3):
                    next(talk)
                before = self.source_stats()
                with measure.spending(subject.process, self.core) as spent:
                    for _ in range(turns):
                        next(talk)
            finally:
                link.close()
            after = self.source_stats()
            if after["chained"] - before["chained"] != turns:
                self.mistakes.add(f"{subject.name} did not chain every turn of {name}")
            self.note(subject, f"turns of {name}", spent)
            yield f"turns.{name}", spent.cpu / turns * 1e6

    def replayed_turns(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        process = subject.replaying or subject.process
        model = wire.model_name(REPLAYED_DELTAS)
        for transcript in self.scale.transcripts:
            (link,) = load.connect(process.port, subject.websocket, 1)
            try:
                if subject.replaying:
                    talk = load.conversation(link, model, REPLAYED_INPUT, None)
                    for _ in range(transcript):
                        next(talk)
                else:  # a client that sends the transcript itself
                    size = self._replayed_bytes.get(transcript, transcript * 1000)
                    talk = load.conversation(link, model, size, None)
                    next(talk)
                before = self.source_stats()
                with measure.spending(process, self.core) as spent:
                    for _ in range(self.scale.replayed_turns):
                        next(talk)
            finally:
                link.close()
            after = self.source_stats()
            if subject.replaying:
                self._replayed_bytes[transcript] = (
                    before["last_body_bytes"] + after["last_body_bytes"]
                ) // 2
                if after["chained"] != before["chained"]:
                    self.mistakes.add(f"{subject.name} chained while set to replay")
            self.note(subject, "replay", spent)
            yield f"replay.{transcript}", spent.cpu / self.scale.replayed_turns * 1e6

    def choosing(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        """Only the gateway chooses; what that costs is measured without a network."""
        if subject.name != "gateway":
            return
        command = [sys.executable, str(Path(__file__).with_name("choosing.py"))]
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            raise load.BenchError(f"choosing.py failed:\n{found.stderr[-2000:]}")
        yield from json.loads(found.stdout).items()

    def idle_connections(self, subject: Subject, round_: int) -> Iterator[tuple[str, float]]:
        process = subject.start()
        try:
            links = load.connect(process.port, subject.websocket, 1)
            load.wave(links, [links[0].encode(wire.request_body(wire.model_name(1)))])
            before = process.memory_kib()
            links += load.connect(process.port, subject.websocket, self.scale.idle)
            time.sleep(0.5)  # whatever a server does after the last handshake
            used = process.memory_kib() - before
            load.close(links)
        finally:
            process.stop()
        yield "idle", used / self.scale.idle
