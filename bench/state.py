"""What it costs to remember a turn, and whether a store delays the first event.

    python bench/state.py [--turns N]

Two tables: bytes in memory and on disk for one remembered turn, by its size; and the time from a
request to its first event, beside ``store: memory`` in the same run: the gateways take turns, one
request each.  The stores that hang are a database under the exclusive lock of another process, and
a Redis that is stopped, which the gateways could use before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import measure

from gateway.conversations.store import MemoryStore, ResponseRecord, Transcript
from gateway.protocol.items import Item
from gateway.state.backend import RECORDS, RESPONSES, Row
from gateway.state.database import DATABASE, Database
from gateway.state.encryption import Cipher, row_place
from gateway.state.serialization import AccountIds, encode_record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SIZES = (300, 10_000, 100_000)
#: Between two turns of a conversation, as of a client that does something with an answer: what is
#: measured is a turn, not what the one before still has to write.
PAUSE_SECONDS = 0.02
KEY = b"0123456789abcdef0123456789abcdef"

# --- bytes of a turn -----------------------------------------------------------------------


def turns(size: int, count: int) -> list[Transcript]:
    """Conversations of ten turns; half of each turn is input, half output."""
    made: list[Transcript] = []
    for number in range(count):
        parent = made[-1] if number % 10 else None
        half = b'{"type":"message","id":"msg_%08d","x":"%s"}' % (number, b"x" * (size // 2 - 44))
        items = (Item(half, id=f"msg_{number:08}"),)
        record = ResponseRecord(
            "laptop",
            f"resp_{number:048}",
            None if parent is None else parent.record.key,
            items,
            (Item(half + b" ", id=f"out_{number:08}"),),
            account="a",
        )
        made.append(Transcript(record, parent))
    return made


def in_memory(size: int, count: int) -> float:
    """Bytes that a turn takes in memory."""
    tracemalloc.start()
    store = MemoryStore(2**40, 3600.0, time.time)
    for each in turns(size, count):
        store.add(each)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / count


def on_disk(size: int, count: int, key: bytes) -> float:
    """Bytes that a turn takes in the database."""
    cipher, ids = Cipher(key), AccountIds([("a", "http://a.test/v1")])
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / DATABASE
        database = Database(file, 2**40, 10.0**9)
        database.open()
        for each in turns(size, count):
            record = each.record
            place = bytes.fromhex(record.key)
            value = cipher.encrypt(encode_record(record, ids), row_place(RECORDS, place))
            parent = bytes.fromhex(record.parent or "")
            digest = place + b"\0\0\0\0"
            database.write(
                [
                    Row(RECORDS, place, value, 1e12, "laptop", each.root, parent),
                    Row(RESPONSES, digest, place, 1e12, "laptop", each.root),
                ]
            )
        database.close()
        return file.stat().st_size / count


def bytes_table(count: int) -> None:
    print("bytes of one remembered turn   memory   sqlite   sqlite, encrypted")
    for size in SIZES:
        some = max(100, min(count, 30_000_000 // size))
        found = in_memory(size, some), on_disk(size, some, b""), on_disk(size, some, KEY)
        print(f"  a turn of {size:>7,} bytes    " + "  ".join(f"{each:>9,.0f}" for each in found))


# --- the first event -----------------------------------------------------------------------


class Subject:
    """A gateway with one kind of store."""

    def __init__(self, name: str, store: dict[str, Any], stack: ExitStack, source: int) -> None:
        self.name, self.port = name, measure.free_port()
        self.times: dict[str, list[float]] = {"new": [], "known": []}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.directory = folder / "kept"
        if store["store"] == "sqlite":
            store = {**store, "directory": str(self.directory)}
        account = {"name": "source", "base_url": f"http://127.0.0.1:{source}/v1", "key": "bench"}
        config = {
            "listen": f"tcp:{self.port}:interface=127.0.0.1",
            "admin": {"listen": None},
            "accounts": [account],
            "state": store,
        }
        path = folder / "pool.yaml"
        path.write_text(json.dumps(config))
        twistd = str(Path(sys.executable).with_name("twistd"))
        command = [twistd, "-n", "--pidfile=", "responses-gateway", "--config", str(path)]
        process = measure.Process(name, command, self.port, None, ROOT)
        stack.callback(process.stop)
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def turn(self, previous: str | None) -> tuple[float, str]:
        """The milliseconds to the first event, and the response's id."""
        body: dict[str, Any] = {"model": "bench-10-0", "input": "hello", "stream": True}
        if previous is not None:
            body["previous_response_id"] = previous
        headers = {"content-type": "application/json"}
        began = time.perf_counter()
        self._connection.request("POST", "/v1/responses", json.dumps(body), headers)
        answer = self._connection.getresponse()
        head = answer.readline()
        took = (time.perf_counter() - began) * 1000
        text = (head + answer.read()).decode()
        if answer.status != 200:
            raise SystemExit(f"{self.name} answered {answer.status}: {text[:300]}")
        found = text.partition('"response":{"id":"')[2] or text.partition('"id":"')[2]
        return took, found.partition('"')[0]

    def measure(self) -> None:
        """A new conversation, and a turn that continues it."""
        took, known = self.turn(None)
        self.times["new"].append(took)
        time.sleep(PAUSE_SECONDS)
        took, _ = self.turn(known)
        self.times["known"].append(took)


def redis_server(stack: ExitStack, port: int) -> measure.Process | None:
    """A Redis that keeps nothing on disk; None if it is not installed."""
    program = shutil.which("redis-server")
    if program is None:
        print("redis-server is not installed: its rows are missing")
        return None
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    process = measure.Process("redis", command, port, None, folder)
    stack.callback(process.stop)
    stack.callback(os.kill, process.pid, signal.SIGCONT)
    return process


def first_event_table(count: int) -> None:
    with ExitStack() as stack:
        port = measure.free_port()
        command = [sys.executable, str(HERE / "source.py"), str(port)]
        stack.callback(measure.Process("source", command, port, None, ROOT).stop)
        subjects = [
            Subject("memory", {"store": "memory"}, stack, port),
            Subject("sqlite", {"store": "sqlite"}, stack, port),
            Subject("sqlite, hanging", {"store": "sqlite"}, stack, port),
        ]
        locked = subjects[-1].directory / DATABASE
        stopped: measure.Process | None = None
        for name in ("redis", "redis, hanging"):
            redis_port = measure.free_port()
            stopped = redis_server(stack, redis_port)
            if stopped is not None:
                url = f"redis://127.0.0.1:{redis_port}/0"
                subjects.append(Subject(name, {"store": url}, stack, port))
        for each in subjects:
            for _ in range(20):
                each.measure()
            each.times = {"new": [], "known": []}
        time.sleep(1.0)
        held = sqlite3.connect(locked, isolation_level=None)
        with closing(held):
            held.execute("BEGIN EXCLUSIVE")
            if stopped is not None:
                os.kill(stopped.pid, signal.SIGSTOP)
            for number in range(count):
                first = number % len(subjects)
                for each in subjects[first:] + subjects[:first]:
                    each.measure()
        print("\nmilliseconds to the first event, median (and to memory)")
        base = {kind: statistics.median(of) for kind, of in subjects[0].times.items()}
        for each in subjects:
            found = [
                f"{kind}: {statistics.median(of):.2f} ({statistics.median(of) / base[kind]:.0%})"
                for kind, of in each.times.items()
            ]
            print(f"  {each.name:<18} {'   '.join(found)}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=1000)
    options = parser.parse_args(arguments)
    bytes_table(options.turns)
    first_event_table(options.turns)


if __name__ == "__main__":
    main()
