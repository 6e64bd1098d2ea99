"""The state on a real redis-server, with what may happen to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from gateway.config import StateSettings
from gateway.state.backend import BINDINGS, RECORDS, Recall, Row, StateError
from gateway.state.redis import RedisBackend, RedisScript
from gateway.state.write_behind import BackendState, WriteBehind
from tests.state.backend_contract import (
    HOUR,
    SharedContract,
    conversation,
    digest_of,
    expected,
    key_of,
    pause,
    records,
    until,
)
from tests.support.certificates import self_signed
from tests.support.ports import free_port
from tests.support.redis import RedisServer, SlowLine, need_program

SECRET = "passw0rd/@ü"
QUOTED = "passw0rd%2F%40%C3%BC"

Start = Callable[..., RedisServer]


@pytest.fixture
def start(tmp_path: Path, require_e2e: bool) -> Iterator[Start]:
    """Starts redis-servers."""
    need_program("redis-server", require_e2e)
    running = []

    def begin(*options: str, **more: Any) -> RedisServer:
        running.append(RedisServer(tmp_path, *options, **more))
        return running[-1]

    yield begin
    for each in running:
        each.kill()


def backend(url: str, **settings: Any) -> RedisBackend:
    return RedisBackend(reactor, StateSettings(store=url, **settings))


class TestRedis(SharedContract):
    @pytest.fixture
    def make(self, start: Start) -> Callable[[], RedisBackend]:
        server = start()
        return lambda: backend(server.url)


# --- what only Redis has -------------------------------------------------------------------


@pytest_twisted.async_yield_fixture
async def opened(start: Start) -> Any:
    """A server and an open backend."""
    server = start()
    kept = backend(server.url)
    await kept.open(lambda rows: None)
    yield server, kept
    await kept.close()


@pytest_twisted.ensureDeferred
async def test_everything_expires_by_itself(opened: Any) -> None:
    server, kept = opened
    rows = [*conversation(1, 2), Row(BINDINGS, b"a", b"1", time.time() + HOUR)]
    await kept.write(rows)
    indexes = {b"rg1:index:bindings"}
    for key in server.ask("KEYS", "*"):
        left = server.ask("TTL", key.decode("latin-1")) if key.isascii() else HOUR
        assert 0 < left <= HOUR or key in indexes, key
        assert key.startswith(b"rg1:")


@pytest_twisted.ensureDeferred
async def test_the_index_of_a_table_loses_what_has_expired(opened: Any) -> None:
    server, kept = opened
    await kept.write([Row(BINDINGS, b"old %d" % n, b"1", time.time() + 0.2) for n in range(50)])
    await pause(0.5)
    await kept.write([Row(BINDINGS, b"new", b"1", time.time() + HOUR)])
    assert server.ask("ZRANGE", "rg1:index:bindings", "0", "-1") == [b"new"]


@pytest_twisted.ensureDeferred
async def test_a_conversation_lives_on_when_it_is_used(opened: Any) -> None:
    server, kept = opened
    await kept.write(conversation(1, 2))
    assert await records(kept, 2) == expected(2, 1)
    place = f"rg1:conversation:{key_of(1).hex()}"
    assert server.ask("TTL", place) > 29 * 24 * HOUR


@pytest_twisted.ensureDeferred
async def test_a_conversation_is_read_from_a_record_on(opened: Any) -> None:
    _, kept = opened
    await kept.write(conversation(1, 2, 3))
    found = await kept.read(Recall((), None, key_of(2), key_of(1).hex()))
    assert found.records == expected(2, 1)


@pytest_twisted.ensureDeferred
async def test_scripts_run_also_after_redis_forgot_them(opened: Any) -> None:
    server, kept = opened
    script = RedisScript("return {redis.call('INCRBY', KEYS[1], ARGV[1]), KEYS[1]}")
    assert await kept.evaluate(script, ["limits:a"], [5]) == [5, b"rg1:limits:a"]
    server.ask("SCRIPT", "FLUSH")
    assert await kept.evaluate(script, [b"limits:a"], ["2"]) == [7, b"rg1:limits:a"]
    with pytest.raises(StateError):
        await kept.evaluate(RedisScript("return redis.call('NO')"), [], [])


@pytest_twisted.ensureDeferred
async def test_databases_of_one_server_do_not_hear_each_other(start: Start) -> None:
    server = start()
    heard: list[Row] = []
    one, other = backend(server.url[:-1] + "1"), backend(server.url[:-1] + "2")
    await one.open(heard.extend)
    await other.open(lambda rows: None)
    await other.write([Row(BINDINGS, b"a", b"1", time.time() + HOUR)])
    await pause(0.2)
    assert heard == []
    assert await one.scan(BINDINGS) == []
    for each in (one, other):
        await each.close()


# --- login, TLS, refusals ------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_it_logs_in(start: Start) -> None:
    server = start(
        *("--requirepass", SECRET),
        *("--user", "gateway", "on", f">{SECRET}", "~rg1:*", "&rg1:*", "+@all", "-role"),
    )
    for user in ("", "gateway"):
        kept = backend(f"redis://{user}:{QUOTED}@127.0.0.1:{server.port}/3")
        await kept.open(lambda rows: None)
        await kept.write(conversation(1))
        assert await records(kept, 1) == expected(1)
        await kept.close()


@pytest.mark.parametrize(
    ("login", "path", "words"),
    [
        (":wrong-secret@", "0", "refuses the user name or the password"),
        ("nobody:wrong-secret@", "0", "refuses the user name or the password"),
        ("", "0", "NOAUTH"),
        (f":{QUOTED}@", "99", "DB index is out of range"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_refusals_are_told_without_secrets(
    start: Start, login: str, path: str, words: str
) -> None:
    server = start("--requirepass", SECRET)
    kept = backend(f"redis://{login}127.0.0.1:{server.port}/{path}")
    with pytest.raises(StateError, match=words) as caught:
        await kept.open(lambda rows: None)
    for text in (str(caught.value), kept.name):
        assert "secret" not in text
        assert SECRET not in text
        assert QUOTED not in text
    with pytest.raises(StateError):
        await kept.scan(BINDINGS)


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_no_redis_is_told(tmp_path: Path) -> None:
    nobody = backend(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StateError, match="refuses connections"):
        await nobody.open(lambda rows: None)
    nowhere = backend("redis://no-such-host.invalid:1/0")
    with pytest.raises(StateError, match="looked up"):
        await nowhere.open(lambda rows: None)


@pytest_twisted.ensureDeferred
async def test_tls_is_verified(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = self_signed(tmp_path)
    port = free_port()
    server = start(
        *("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-cert-file"),
        *(str(certificate), "--tls-key-file", str(key)),
    )
    kept = backend(f"rediss://localhost:{port}/0")
    with pytest.raises(StateError, match="certificate"):
        await kept.open(lambda rows: None)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    trusting = backend(f"rediss://localhost:{port}/0")
    await trusting.open(lambda rows: None)
    await trusting.write(conversation(1))
    assert await records(trusting, 1) == expected(1)
    await trusting.close()
    plain = backend(f"rediss://localhost:{server.port}/0")
    with pytest.raises(StateError, match=r"TLS failed|did not answer"):
        await plain.open(lambda rows: None)


# --- a server that fails -------------------------------------------------------------------


class Kept:
    """A write-behind buffer on a Redis server.

    :ivar loads: tables that were read.
    :ivar heard: rows that others wrote.
    """

    def __init__(self, url: str) -> None:
        self.loads: list[tuple[str, Sequence[Row]]] = []
        self.heard: list[Row] = []
        self.backend = backend(url)
        self.writes = WriteBehind(
            self.backend,
            reactor,
            0.0,
            lambda table, rows: self.loads.append((table, rows)),
            self.heard.extend,
        )
        self.writes.start()

    async def ready(self) -> None:
        await until(lambda: self.writes.state is BackendState.READY)

    async def lost(self) -> str:
        await until(lambda: self.writes.figures().why is not None)
        return self.writes.figures().why or ""


@pytest_twisted.async_yield_fixture
async def keep() -> Any:
    running: list[Kept] = []

    def begin(url: str) -> Kept:
        running.append(Kept(url))
        return running[-1]

    yield begin
    for each in running:
        await each.writes.stop()


async def fails_soon(kept: Kept) -> float:
    began = time.monotonic()
    with pytest.raises(StateError):
        await kept.writes.read(Recall((), digest_of(99)))
    return time.monotonic() - began


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_costs_a_turn_a_second(start: Start, keep: Any) -> None:
    server = start()
    kept = keep(server.url)
    await kept.ready()
    with server.hanging():
        for row in conversation(1, 2):
            kept.writes.put(row)
        kept.writes.put(Row(BINDINGS, b"a", b"1", time.time() + HOUR))
        assert await fails_soon(kept) < 5
        assert "did not answer" in await kept.lost()
        assert await fails_soon(kept) < 0.5, "only the first turn waits"
        for row in conversation(3, root=1, parent=2):
            kept.writes.put(row)
    await until(lambda: kept.writes.figures().why is None)
    await kept.writes.flush()
    assert await records(kept.backend, 3) == expected(3, 2, 1)


@pytest_twisted.ensureDeferred
async def test_a_server_that_begins_anew_gets_what_was_written_meanwhile(
    start: Start, keep: Any
) -> None:
    server = start()
    one, other = keep(server.url), keep(server.url)
    await one.ready()
    await other.ready()
    server.kill()
    assert "Redis closed the connection" in await one.lost()
    for row in conversation(1, 2):
        one.writes.put(row)
    loads = len(one.loads)
    server.start()
    await until(lambda: one.writes.figures().why is None)
    assert len(one.loads) > loads, "the tables were not read again"
    await one.writes.flush()
    await other.ready()
    assert await records(other.backend, 2) == expected(2, 1)
    one.writes.put(Row(BINDINGS, b"a", b"1", time.time() + HOUR))
    await until(lambda: other.heard)


@pytest_twisted.ensureDeferred
async def test_a_slow_line_is_slow_and_no_more(start: Start, keep: Any) -> None:
    line = SlowLine(start().port, 0.1)
    kept = keep(f"redis://127.0.0.1:{line.port}/0")
    await kept.ready()
    for row in conversation(1, 2):
        kept.writes.put(row)
    await kept.writes.flush()
    assert await records(kept.backend, 2) == expected(2, 1)
    assert kept.writes.figures().why is None
    line.seconds = 3.0
    await kept.lost()
    line.seconds = 0.0
    await until(lambda: kept.writes.figures().why is None)
    line.stop()


@pytest_twisted.ensureDeferred
async def test_a_full_server_is_told_and_still_read(start: Start, keep: Any) -> None:
    server = start("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    kept = keep(server.url)
    await kept.ready()
    for row in conversation(1):
        kept.writes.put(row)
    await kept.writes.flush()
    late = time.time() + HOUR
    big = [Row(RECORDS, key_of(n), b"x" * 500_000, late, "", "big") for n in range(20)]
    for row in big:
        kept.writes.put(row)
    assert "OOM" in await kept.lost()
    found = await kept.writes.read(Recall((), digest_of(1)))
    assert found.records == expected(1)
    await pause(1.5)
    assert "OOM" in (kept.writes.figures().why or ""), "the banner came and went"
    server.ask("CONFIG", "SET", "maxmemory", "100mb")
    await until(lambda: kept.writes.figures().why is None)
    await until(lambda: server.ask("HLEN", "rg1:conversation:big") == 20)


# --- Sentinel ------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_the_master_is_followed_over_a_failover(
    start: Start, keep: Any, tmp_path: Path
) -> None:
    login = ("--masterauth", "x", "--repl-diskless-sync-delay", "0")
    master = start(*login, password="x")
    replica = start(*login, "--replicaof", "127.0.0.1", str(master.port), password="x")
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"sentinel monitor main 127.0.0.1 {master.port} 1\n"
        "sentinel auth-pass main x\n"
        "sentinel down-after-milliseconds main 500\n"
        "sentinel failover-timeout main 5000\n"
    )
    port = start(sentinel=config).port
    nobody = free_port()
    kept = keep(f"redis+sentinel://:x@127.0.0.1:{nobody},127.0.0.1:{port}/main/0")
    await kept.ready()
    for row in conversation(1):
        kept.writes.put(row)
    await kept.writes.flush()

    def replicated() -> bool:
        return bool(replica.ask("EXISTS", f"rg1:conversation:{key_of(1).hex()}"))

    await until(replicated)
    master.kill()
    await kept.lost()
    for row in conversation(2, root=1, parent=1):
        kept.writes.put(row)
    await until(lambda: kept.writes.figures().why is None, 60)
    await kept.writes.flush()
    assert await records(kept.backend, 2) == expected(2, 1)
    assert replica.ask("ROLE")[0] == b"master"


@pytest_twisted.ensureDeferred
async def test_a_master_that_becomes_a_replica_is_left(start: Start, keep: Any) -> None:
    server, other = start(), start()
    kept = keep(server.url)
    await kept.ready()
    server.ask("REPLICAOF", "127.0.0.1", str(other.port))
    for row in conversation(1):
        kept.writes.put(row)
    await kept.lost()
    await until(lambda: "replica" in (kept.writes.figures().why or ""))
    server.ask("REPLICAOF", "NO", "ONE")
    await until(lambda: kept.writes.figures().why is None)
    await kept.writes.flush()
    assert await records(kept.backend, 1) == expected(1)
