"""The state directory and its lock, and a thread that ends."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from gateway.config import StateSettings
from gateway.state.backend import COOLDOWNS, OWNERS, Recall, Row, StateError
from gateway.state.sqlite import LOCK, SqliteBackend, lock_directory, state_directory


@pytest.mark.parametrize(
    ("configured", "environ", "expected"),
    [
        ("/given", {"STATE_DIRECTORY": "/var/lib/x", "XDG_STATE_HOME": "/xdg"}, "/given"),
        (None, {"STATE_DIRECTORY": "/var/lib/x:/other", "XDG_STATE_HOME": "/xdg"}, "/var/lib/x"),
        (None, {"STATE_DIRECTORY": "", "XDG_STATE_HOME": "/xdg"}, "/xdg/responses-gateway"),
        (
            None,
            {"XDG_STATE_HOME": "", "HOME": "/home/me"},
            "/home/me/.local/state/responses-gateway",
        ),
    ],
)
def test_the_directory_is_the_nearest_that_is_named(
    configured: str | None, environ: dict[str, str], expected: str
) -> None:
    assert state_directory(StateSettings(directory=configured), environ) == Path(expected)


def test_one_process_at_a_time_has_a_directory(tmp_path: Path) -> None:
    lock = lock_directory(tmp_path)
    assert (tmp_path / LOCK).read_text() == f"{os.getpid()}\n"
    with pytest.raises(StateError, match=rf"used by another process \({os.getpid()}\)"):
        lock_directory(tmp_path)
    os.close(lock)
    os.close(lock_directory(tmp_path))


def test_a_full_disk_does_not_lock_the_directory_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        lock = lock_directory(tmp_path)  # who holds it is a help, and no more
    os.close(lock)
    os.close(lock_directory(tmp_path))


def test_a_directory_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    backend = SqliteBackend(reactor, tmp_path / "file" / "state", StateSettings())
    failed = []
    backend.open(lambda rows: None).addErrback(failed.append)
    assert failed[0].check(StateError)
    assert "cannot be made: Not a directory" in failed[0].getErrorMessage()


@pytest_twisted.inlineCallbacks
def test_it_works_on_a_thread_that_ends(tmp_path: Path) -> Any:
    before = threading.active_count()
    backend = SqliteBackend(reactor, tmp_path / "state", StateSettings())
    opened = backend.open(lambda rows: None)
    assert opened.called, "a gateway that starts has its state before its first client"
    assert threading.active_count() == before
    rows = [Row(OWNERS, b"k", b"a", time.time() + 60), Row(COOLDOWNS, b"c", b"a", 10.0**10)]
    yield backend.write(rows)
    assert threading.active_count() == before + 1
    found = yield backend.read(Recall([(OWNERS, b"k"), (COOLDOWNS, b"c")]))
    assert found.rows == {(OWNERS, b"k"): b"a"}
    yield backend.close()
    assert threading.active_count() == before
    os.close(lock_directory(tmp_path / "state"))


@pytest_twisted.inlineCallbacks
def test_a_successor_goes_on_with_the_lock(tmp_path: Path) -> Any:
    before = SqliteBackend(reactor, tmp_path, StateSettings())
    yield before.open(lambda rows: None)
    assert before.lock is not None
    after = SqliteBackend(reactor, tmp_path, StateSettings(), os.dup(before.lock))
    yield after.open(lambda rows: None)
    yield before.close()
    with pytest.raises(StateError):
        lock_directory(tmp_path)
    yield after.close()
    os.close(lock_directory(tmp_path))
