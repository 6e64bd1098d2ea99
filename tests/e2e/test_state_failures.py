"""Disks that fail a running gateway: one clear line, turns go on, and what waited is written."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import random
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.checks import completed
from tests.support.events import user
from tests.support.gateway import Gateway, account
from tests.support.strict import Strict

pytestmark = pytest.mark.e2e

ONE_LINE = "cannot be kept in sqlite"


class Stage:
    """A gateway on a directory that a test spoils."""

    def __init__(self, folder: Path, kept: Path) -> None:
        self.kept = kept
        self.strict = Strict("a")
        accounts = [account("a", self.strict.server)]
        config = {"accounts": accounts, "state": {"directory": str(kept)}}
        self.gateway = Gateway(folder, config)

    def turn(self) -> str:
        """A turn goes on, whatever the disk does."""
        answer = completed(self.gateway.connect().turn(input=[user("one")], store=True))
        return str(answer["id"])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.admin_port, timeout=10)
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()

    @property
    def store(self) -> Any:
        return json.loads(self.get("/status")[1])["store"]

    @property
    def alarms(self) -> list[str]:
        return [each["what"] for each in json.loads(self.get("/status")[1])["alarms"]]

    def until(self, condition: Callable[[], Any], seconds: float = 40.0) -> None:
        late = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < late, f"it did not come; the log:\n{self.gateway.log()}"
            time.sleep(0.1)

    def in_trouble(self, why: str) -> None:
        """It says so on every channel, once, and serves all the same."""
        self.until(lambda: not self.store["reachable"])
        for _ in range(3):
            self.turn()
        said = [line for line in self.gateway.log().splitlines() if ONE_LINE in line]
        assert len(said) == 1, said
        assert why in said[0]
        assert "Traceback" not in self.gateway.log()
        store = self.store
        assert why in store["why"]
        assert store["pending_rows"] > 0
        assert self.get("/readyz")[0] == 200
        assert b"gateway_state_reachable 0.0" in self.get("/metrics")[1]
        self.until(lambda: any("cannot be kept" in each for each in self.alarms))

    def well_again(self) -> None:
        """It writes again, and what waited is there."""
        self.until(lambda: self.store["reachable"] and not self.store["pending_rows"])
        assert "the state is kept again" in self.gateway.log()
        last = self.turn()
        self.until(lambda: not self.store["pending_rows"])
        with contextlib.closing(sqlite3.connect(self.kept / "state.db")) as connection:
            (count,) = connection.execute("SELECT count(*) FROM responses").fetchone()
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert count == len(self.strict.order), f"all are there, up to {last}"

    def stop(self) -> None:
        try:
            self.gateway.stop()
        finally:
            self.strict.server.stop()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    running: list[Stage] = []

    def begin(kept: Path | None = None) -> Stage:
        running.append(Stage(tmp_path, kept or tmp_path / "kept"))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """A file system of its own; the test is skipped where none can be mounted."""
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    place = tmp_path / "small"
    with mounted(place, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        it = stage(place)
        it.turn()
        it.until(lambda: it.store["rows_written"] and not it.store["pending_rows"])
        filler = place / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        # What is left in the log's last page may take some turns.
        late = time.monotonic() + 30
        while it.store["reachable"] and time.monotonic() < late:
            it.turn()
        it.in_trouble("full")
        filler.unlink()
        it.well_again()
        it.gateway.stop()


def test_a_read_only_directory(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    place = tmp_path / "mounted"
    with mounted(place, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        it = stage(place)
        it.turn()
        it.in_trouble("Read-only")
        subprocess.run(["mount", "-o", "remount,rw", str(place)], check=True)
        it.well_again()
        it.gateway.stop()


def test_a_file_in_place_of_the_directory(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    (tmp_path / "kept").write_text("no directory")
    it = stage()
    it.turn()
    it.in_trouble("File exists")
    (tmp_path / "kept").unlink()
    it.well_again()


def test_a_lock_of_another_gateway(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with (kept / "state.lock").open("w+") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        it = stage()
        it.turn()
        it.in_trouble("used by another process (4711)")
    it.well_again()


def test_a_lock_on_the_database(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    it = stage()
    it.turn()
    it.until(lambda: it.store["rows_written"])
    with contextlib.closing(
        sqlite3.connect(it.kept / "state.db", isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        it.turn()
        it.in_trouble("locked")
        connection.execute("ROLLBACK")
    it.well_again()


def test_a_newer_schema(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with contextlib.closing(sqlite3.connect(kept / "state.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    it = stage()
    it.turn()
    it.in_trouble("written by a newer gateway")
    os.unlink(kept / "state.db")
    it.well_again()


def test_a_corrupt_file(tmp_path: Path, stage: Callable[..., Stage]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "state.db").write_bytes(random.Random(1).randbytes(100_000))
    it = stage()
    it.turn()
    said = [line for line in it.gateway.log().splitlines() if "was damaged" in line]
    assert len(said) == 1
    assert "state.damaged" in said[0]
    it.until(lambda: it.store["rows_written"] and not it.store["pending_rows"])
    assert it.get("/readyz")[0] == 200
