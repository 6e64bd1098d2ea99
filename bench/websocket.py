"""The same work over an account that is reached by HTTP and over one that is reached by WebSocket.

    python bench/websocket.py [--quick] [--rounds N] [--only GROUP] [--json FILE]

Each account has a gateway of its own on core 0; the two take turns within each round.  Figures are
the least of all rounds (of rates: the most), which is what the work costs while nothing else runs;
medians stand behind them.  A time to the first event is less that of the same client straight at
the source, over the same transport as the account.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import load
import measure
import wire
from rows import QUICK, STATS_REQUEST, Measurement, Measurements, Row, Scale, Subject
from run import CORE, Results, Stage, facts, number, warnings

TRANSPORTS = ("http", "websocket")

#: What WebSocket may be at most: by HTTP, and of memory in KiB.
TARGETS = {
    "chained.first": 0.5,
    "chained.cpu": 0.6,
    "burst.cpu": 1.0,
    "paced.cpu": 1.0,
}
MOST_KIB = 60.0

SMALL = 300  # bytes of a small turn
LATER_END = wire.model_name(1, 1)  # its first events come alone, as those of a model do
SMALL_TURNS, SMALL_REPEATS = 25, 20  # short pieces in turn: others disturb few of them
TOOL_ROUNDS, TOOL_BYTES, ANSWER_DELTAS = 30, 4_000, 60
WARM_CONVERSATIONS = 100

Figures = Iterator[tuple[str, float]]


class TransportMeasurements(Measurements):
    """What is measured of both transports.

    :param direct: the source itself, by the transport of each subject.
    """

    def __init__(self, quick: bool, source_port: int, direct: dict[str, Subject]) -> None:
        scale = QUICK if quick else Scale()
        large = tuple(turns for turns in scale.turns if turns[1] > SMALL)
        super().__init__(dataclasses.replace(scale, turns=large), CORE, source_port)
        self._direct = direct
        self._conversations = 200 if quick else 500
        small, tools = f"{SMALL} B", f"{TOOL_ROUNDS} tool rounds"
        of_turns = [group for group in self.all if group.key in ("burst", "paced", "turns")]
        self.all = [
            Measurement(
                "chained",
                [
                    Row("chained.first", f"added time to first event, chained {small}", "ms"),
                    Row("chained.cpu", f"CPU per turn, chained {small}", "us"),
                ],
                self.chained,
            ),
            Measurement(
                "first",
                [
                    Row(f"first.{n}", f"added time to first event, {n} at once", "ms")
                    for n in (1, 50)
                ],
                self.first,
            ),
            *of_turns,
            Measurement(
                "bytes",
                [
                    Row("bytes.1", f"bytes upstream, {tools}, the first", "B"),
                    Row("bytes.10", f"bytes upstream, {tools}, the 10th", "B"),
                    Row("bytes.30", f"bytes upstream, {tools}, the 30th", "B"),
                    Row("bytes.all", f"bytes upstream, {tools}, together", "B"),
                ],
                self.bytes_upstream,
                rounds=1,
            ),
            Measurement(
                "memory",
                [
                    Row("memory.client", "memory per client that had no turn", "KiB"),
                    Row(
                        "memory.conversation",
                        "memory per idle conversation, client included",
                        "KiB",
                    ),
                    Row("memory.upstream", "memory per idle conversation, less the client", "KiB"),
                ],
                self.memory,
                rounds=self.scale.idle_rounds,
            ),
        ]

    def chained(self, subject: Subject, round_: int) -> Figures:
        """Small turns, each naming the response before it."""
        before = self.source_stats()
        first, _ = self._small_turns(subject, LATER_END)
        _, cpu = self._small_turns(subject, wire.model_name(1))
        after = self.source_stats()
        if after["chained"] - before["chained"] != 2 * (SMALL_TURNS + 2):
            self.mistakes.add(f"{subject.name} did not chain every small turn")
        direct, _ = self._small_turns(self._direct[subject.name], LATER_END)
        yield "chained.first", first * 1e3
        yield "chained.first.direct", direct * 1e3
        yield "chained.cpu", cpu * 1e6

    def _small_turns(self, subject: Subject, model: str) -> tuple[float, float]:
        """The median time to the first event and the CPU of a turn, both in seconds."""
        (link,) = load.connect(subject.process.port, subject.websocket, 1)
        times: list[float] = []
        try:
            talk = load.conversation(link, model, SMALL, None, times)
            for _ in range(3):
                next(talk)
            times.clear()
            with measure.spending(subject.process, self.core) as spent:
                for _ in range(SMALL_TURNS):
                    next(talk)
        finally:
            link.close()
        self.note(subject, "small turns", spent)
        return statistics.median(times), spent.cpu / SMALL_TURNS

    def first(self, subject: Subject, round_: int) -> Figures:
        """Turns that continue nothing, on sockets that are warm."""
        yield from self.first_event(subject, round_)
        for key, value in self.first_event(self._direct[subject.name], round_):
            yield f"{key}.direct", value

    def bytes_upstream(self, subject: Subject, round_: int) -> Figures:
        """A conversation with ``store: false``: what HTTP has to replay, a socket chains."""
        (link,) = load.connect((subject.replaying or subject.process).port, True, 1)
        sent: list[int] = []
        try:
            talk = load.conversation(link, wire.model_name(ANSWER_DELTAS), TOOL_BYTES, None)
            for _ in range(TOOL_ROUNDS):
                before = self.source_stats()
                next(talk)
                after = self.source_stats()
                sent.append(after["bytes"] - before["bytes"] - len(STATS_REQUEST))
        finally:
            link.close()
        for round_ in (1, 10, TOOL_ROUNDS):
            yield f"bytes.{round_}", sent[round_ - 1]
        yield "bytes.all", sum(sent)

    def memory(self, subject: Subject, round_: int) -> Figures:
        """A fresh process: clients without a turn, then as many more that had one."""
        process = subject.start()
        count = self._conversations
        request = wire.masked_text_frame(wire.request_body(wire.model_name(1), SMALL))
        links: list[load.Link] = []

        def more(number: int, turns: bool) -> float:
            """KiB that each of so many connections takes."""
            before = process.memory_kib()
            new = load.connect(process.port, True, number)
            links.extend(new)
            if turns:
                for start in range(0, number, WARM_CONVERSATIONS):
                    some = new[start : start + WARM_CONVERSATIONS]
                    load.wave(some, [request] * len(some))
            time.sleep(0.5)  # whatever a server does afterwards
            return (process.memory_kib() - before) / number

        try:
            more(WARM_CONVERSATIONS, turns=True)  # what the first ones need stays allocated
            conversation = more(count, turns=True)
            client = more(count, turns=False)
        finally:
            load.close(links)
            process.stop()
        yield "memory.client", client
        yield "memory.conversation", conversation
        yield "memory.upstream", conversation - client


def best(row: Row, values: list[float]) -> float:
    """What was measured while the machine disturbed least."""
    return max(values) if row.more_is_better else min(values)


def added(row: Row, results: Results, subject: str) -> tuple[float, float]:
    """The best and the median of a row, less what the client alone needs."""
    values = results[row.key][subject]
    found = best(row, values), statistics.median(values)
    direct = results.get(f"{row.key}.direct")
    if direct is None:
        return found
    return found[0] - min(direct[subject]), found[1] - statistics.median(direct[subject])


def table(rows: list[Row], results: Results) -> str:
    lines = ["| | unit | http | websocket | ws : http | target |", "|---|---|---:|---:|---:|---|"]
    for row in rows:
        if not results[row.key]["websocket"]:
            continue
        of = {name: added(row, results, name) for name in TRANSPORTS}
        cells = [f"{number(found)} ({number(middle)})" for found, middle in of.values()]
        found = of["websocket"][0]
        by_http = found / of["http"][0] if of["http"][0] > 0 else None
        shown = "-" if by_http is None else f"{by_http:.2f}"
        target = TARGETS.get(row.key)
        if row.key == "memory.conversation":
            by_http, target = found, MOST_KIB
        verdict = ""
        if target is not None and by_http is not None:
            verdict = f"{'ok' if by_http <= target else 'MISSED'}: at most {target:g}"
        lines.append(f"| {row.title} | {row.unit} | {' | '.join(cells)} | {shown} | {verdict} |")
    return "\n".join(lines)


def measured(options: argparse.Namespace) -> None:
    rounds = options.rounds or (1 if options.quick else 5)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        stage = Stage(Path(directory))
        try:
            subjects, direct = [], {}
            for name in TRANSPORTS:
                start = stage.gateway(transport=name)
                subjects.append(Subject(name, True, start, start()))
                direct[name] = Subject(
                    f"direct, {name}", name == "websocket", lambda: stage.source, stage.source
                )
            subjects[0].replaying = stage.gateway("replay")()
            measurements = TransportMeasurements(options.quick, stage.source.port, direct)
            groups = [
                group for group in measurements.all if not options.only or group.key in options.only
            ]
            if not groups:
                known = ", ".join(group.key for group in measurements.all)
                raise load.BenchError(f"--only: no such group; there are {known}")
            rows = [row for group in groups for row in group.rows]
            results: Results = defaultdict(lambda: {name: [] for name in TRANSPORTS})
            for round_ in range(rounds):
                for group in groups:
                    if group.rounds is not None and round_ >= group.rounds:
                        continue
                    print(
                        f"round {round_ + 1} of {rounds}: {group.key} ", end="\r", file=sys.stderr
                    )
                    for repeat in range(SMALL_REPEATS if group.key == "chained" else 1):
                        for subject in subjects[:: -1 if (round_ + repeat) % 2 else 1]:
                            for key, value in group.run(subject, round_):
                                results[key][subject.name].append(value)
            pinned = all(subject.process.pinned for subject in subjects)
        finally:
            stage.stop()
    print(" " * 60, end="\r", file=sys.stderr)
    known_facts = facts()
    print("\n".join(f"{name}: {value}" for name, value in known_facts.items()))
    print(f"{rounds} rounds: best (median)\n")
    print(table(rows, results))
    for warning in warnings(measurements, pinned):
        print(f"warning: {warning}")
    if options.json:
        document = {"facts": known_facts, "rounds": rounds, "results": results}
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="rounds to take medians over (default 5)")
    parser.add_argument("--only", action="append", metavar="GROUP", help="measure this group only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value there too")
    if not Path("/proc/self/stat").exists():
        print("bench: needs /proc to measure CPU time and memory (Linux)", file=sys.stderr)
        return 2
    measure.raise_file_limit()
    try:
        measured(parser.parse_args())
    except load.BenchError as error:
        print(f"\nbench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
