"""The backend that the settings name, and what a process keeps in it over a restart."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from gateway.api_keys.keys import KeyRing
from gateway.config import StateSettings
from gateway.conversations.owners import MemoryIssuers, MemoryOwners
from gateway.conversations.store import MemoryStore, ResponseRecord, Transcript
from gateway.protocol.turn_state import TurnStateSigner
from gateway.routing.account import Account
from gateway.routing.affinity import MemoryBindings
from gateway.state.encryption import EncryptedBackend
from gateway.state.keeper import StateKeeper, backend_for, lock_of, server_for
from gateway.state.redis import RedisBackend
from gateway.state.sqlite import SqliteBackend, lock_directory
from gateway.state.worker_state import LinkBackend
from gateway.worker_link import Link
from tests.routing.pools import Basin

REDIS = "redis://127.0.0.1:1/0"


def inner_of(backend: Any) -> Any:
    assert isinstance(backend, EncryptedBackend)
    return backend.inner


def test_the_settings_name_the_backend(tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": str(tmp_path)}
    link = Link(Clock())
    assert backend_for(StateSettings(store="memory"), environ, reactor) is None
    on_disk = inner_of(backend_for(StateSettings(), environ, reactor))
    assert isinstance(on_disk, SqliteBackend)
    assert on_disk.name == f"sqlite {tmp_path}"
    assert isinstance(
        inner_of(backend_for(StateSettings(store=REDIS), environ, reactor)), RedisBackend
    )
    for store, kind in (("sqlite", LinkBackend), ("memory", LinkBackend), (REDIS, None)):
        backend = backend_for(StateSettings(store=store), environ, reactor, link=link)
        assert isinstance(backend, kind or EncryptedBackend), f"a worker's {store}"
    assert list(tmp_path.iterdir()) == [], "nothing is made before the start"


def test_a_supervisor_keeps_what_no_server_keeps(tmp_path: Path) -> None:
    environ = {"STATE_DIRECTORY": str(tmp_path)}
    assert server_for(StateSettings(store=REDIS), environ, reactor) is None
    for store, name in (("sqlite", f"sqlite {tmp_path}"), ("memory", "memory")):
        server = server_for(StateSettings(store=store), environ, reactor)
        assert server is not None
        assert server.writes.backend.name == name


class Process:
    """A process that keeps its state in a directory."""

    def __init__(self, directory: Path, key: str) -> None:
        settings = StateSettings(directory=str(directory), encryption_key=key)
        backend = backend_for(settings, {}, reactor)
        assert backend is not None
        clock: Any = reactor
        made = Basin(accounts={}).account("a")
        accounts = [Account(made.settings, made.upstream, clock.seconds)]
        self.backend = backend
        self.keeper = StateKeeper(reactor, settings, backend, lambda: accounts)
        self.signer = TurnStateSigner(os.urandom(32))
        keys = KeyRing([], clock.seconds)
        self.keeper.replicate(self.signer, MemoryBindings(10, 60.0, clock.seconds), keys)
        memory = MemoryStore(2**20, 60.0, clock.seconds)
        owners, issuers = MemoryOwners(clock.seconds), MemoryIssuers()
        self.conversations = self.keeper.conversations(memory)
        self.recall = self.keeper.recall(memory, owners, issuers, keys)
        self.keeper.startService()


@pytest.mark.parametrize("second_key", ["a long passphrase", "another passphrase"])
@pytest_twisted.inlineCallbacks
def test_a_stop_writes_what_the_next_start_reads(tmp_path: Path, second_key: str) -> Any:
    before = Process(tmp_path, "a long passphrase")
    before.conversations.add(Transcript(ResponseRecord("laptop", "resp_1", account="a")))
    assert len(lock_of(before.backend)) == 1
    yield before.keeper.stopService()
    assert lock_of(before.backend) == []
    os.close(lock_directory(tmp_path))
    after = Process(tmp_path, second_key)
    yield after.recall.recall("laptop", "resp_1", ())
    found = after.conversations.get("laptop", "resp_1")
    is_same = second_key == "a long passphrase"
    assert (found is not None) is is_same
    assert (after.signer.secret == before.signer.secret) is is_same
    assert bool(after.keeper.figures().unreadable) is not is_same
    yield after.keeper.stopService()
