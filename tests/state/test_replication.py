"""What is known of bindings, accounts and keys outlives the process, and follows reloads."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.task import Clock

from gateway.api_keys.keys import KeyRing
from gateway.config import KeySettings
from gateway.protocol.concessions import Concession, ConcessionKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, MemoryBindings
from gateway.routing.capabilities import CapabilityScope
from gateway.routing.cooldown import AdminState
from gateway.state.backend import BINDINGS, KEY_USE, OPERATOR, Row
from gateway.state.replication import (
    ReplicatedBindings,
    ReplicatedKeyUse,
    ReplicatedLessons,
    ReplicatedOperatorStates,
    ReplicatedQuotas,
    Replication,
)
from gateway.state.serialization import AccountIds
from tests.routing.pools import Basin

URL = "http://127.0.0.1:1"
TTL = 3600.0
KEY = AffinityKey("thread", "laptop", "t1")


class Disk:
    """Takes rows at once; :attr:`held` keeps them waiting."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, bytes], Row] = {}
        self.puts = 0
        self.waiting: set[tuple[str, bytes]] = set()
        self._later: dict[tuple[str, bytes], Any] = {}

    def put(self, row: Row) -> None:
        self.puts += 1
        if row.value is None:
            self.rows.pop((row.table, row.key), None)
        else:
            self.rows[row.table, row.key] = row

    def put_later(self, table: str, key: bytes, make: Any) -> None:
        self._later[table, key] = make

    def waits(self, table: str, key: bytes) -> bool:
        return (table, key) in self.waiting

    def flush(self) -> None:
        later, self._later = self._later, {}
        for make in later.values():
            row = make()
            if row is not None:
                self.put(row)

    def of(self, table: str) -> list[Row]:
        self.flush()
        return [row for row in self.rows.values() if row.table == table]


class Process:
    """The memory of a process with two accounts and one key."""

    def __init__(self, disk: Disk, clock: Clock) -> None:
        writes: Any = disk
        self.clock = clock
        self.accounts = [self.account("a"), self.account("b")]
        self.ids = AccountIds([("a", URL), ("b", URL)])
        self.bindings = MemoryBindings(1000, TTL, clock.seconds)
        limits = KeySettings(name="laptop", key="sk-1", requests_per_day=10)
        self.keys = KeyRing([limits], clock.seconds)
        of_accounts = (lambda: self.accounts, writes, self.ids, clock.seconds)
        self.of_accounts = [
            ReplicatedOperatorStates(*of_accounts),
            ReplicatedLessons(*of_accounts),
            ReplicatedQuotas(*of_accounts),
        ]
        self.replication = Replication()
        self.replication.add(
            ReplicatedBindings(self.bindings, writes, self.ids),
            ReplicatedKeyUse(self.keys, writes, clock.seconds),
            *self.of_accounts,
        )
        self.watch()
        for table in (BINDINGS, KEY_USE, *(each.table for each in self.of_accounts)):
            self.replication.load(table, disk.of(table))

    def account(self, name: str, **changed: Any) -> Account:
        made = Basin(accounts={}).account(name, **changed)
        return Account(made.settings, made.upstream, self.clock.seconds)

    def watch(self) -> None:
        for each in self.of_accounts:
            each.watch()


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.advance(1_800_000_000)
    return clock


@pytest.fixture
def disk() -> Disk:
    return Disk()


def bound(process: Process) -> str | None:
    found = process.bindings.peek(KEY)
    return None if found is None else found.account


def test_what_is_known_of_accounts_outlives_the_process(disk: Disk, clock: Clock) -> None:
    before = Process(disk, clock)
    one, two = before.accounts
    window = QuotaWindow("requests", 40.0, 60, 100, clock.seconds() + 500.0, 3600.0)
    one.health.drain()
    two.health.observe([window])
    scope, concession = CapabilityScope(), Concession(ConcessionKind.MEMBER, "top_p")
    two.learned.learn(scope, concession, "it said so")
    one, two = Process(disk, clock).accounts
    assert (one.health.admin_state, two.health.admin_state) == (AdminState.DRAIN, AdminState.SERVE)
    assert two.health.quotas.windows() == [window]
    assert two.learned.concessions(scope) == {concession}
    assert not one.learned.lessons()


def test_what_a_key_has_used_outlives_the_process_and_counts_once(disk: Disk, clock: Clock) -> None:
    before = Process(disk, clock)
    for _ in range(3):
        lease: Any = before.keys.acquire("laptop", "m")
        lease.used(Usage(10, 0, 5))
        lease.release()
    after = Process(disk, clock)
    after.replication.load(KEY_USE, disk.of(KEY_USE))  # as the backend is opened again
    (key,) = after.keys.snapshot()
    assert (key["turns"], key["tokens"]) == (3, 45)
    assert key["limits"]["requests_per_day"]["used"] == 3


def test_a_binding_outlives_the_process(disk: Disk, clock: Clock) -> None:
    before = Process(disk, clock)
    before.bindings.bind(KEY, "b", "it was free")
    before.bindings.bind(AffinityKey("connection", "laptop", "c1"), "a")
    assert len(disk.of(BINDINGS)) == 1, "a connection's ends with it"
    after = Process(disk, clock)
    assert (bound(after), len(after.bindings)) == ("b", 1)
    after.bindings.release(KEY)
    assert disk.of(BINDINGS) == []


def test_a_binding_in_use_is_kept_as_long_as_it_is_used(disk: Disk, clock: Clock) -> None:
    process = Process(disk, clock)
    process.bindings.bind(KEY, "a")
    puts = disk.puts
    for _ in range(180):
        clock.advance(60.0)
        process.bindings.settle(KEY, "a")
        disk.flush()
    (row,) = disk.of(BINDINGS)
    assert row.expires_at > clock.seconds() + 0.8 * TTL
    assert disk.puts - puts < 40, "not every use is written"


def test_what_waits_is_newer_than_what_is_loaded(disk: Disk, clock: Clock) -> None:
    Process(disk, clock).bindings.bind(KEY, "a")
    rows = disk.of(BINDINGS)
    process = Process(disk, clock)
    process.bindings.release(KEY)
    disk.waiting.add((BINDINGS, rows[0].key))
    process.replication.load(BINDINGS, rows)
    assert bound(process) is None


def test_a_backend_that_began_anew_gets_everything_again(disk: Disk, clock: Clock) -> None:
    process = Process(disk, clock)
    process.bindings.bind(KEY, "a")
    process.accounts[0].health.drain()
    disk.flush()
    disk.rows.clear()
    for table in (BINDINGS, OPERATOR):
        process.replication.load(table, [])
    after = Process(disk, clock)
    assert bound(after) == "a"
    assert after.accounts[0].health.admin_state is AdminState.DRAIN


def test_an_account_that_is_made_anew_has_nothing_of_the_one_before(
    disk: Disk, clock: Clock
) -> None:
    process = Process(disk, clock)
    former = process.accounts[0]
    former.health.disable()
    former.health.observe([QuotaWindow("requests", 99.0)])
    disk.flush()
    process.accounts[0] = process.account("a")
    process.watch()
    former.health.observe([QuotaWindow("requests", 100.0)])  # by a turn that ran on
    after = Process(disk, clock).accounts[0]
    assert after.health.admin_state is AdminState.SERVE
    assert after.health.quotas.windows() == []


def test_an_account_that_the_configuration_disabled_serves_when_it_is_enabled(
    disk: Disk, clock: Clock
) -> None:
    process = Process(disk, clock)
    disabled = process.account("a", enabled=False)
    disabled.inherit(process.accounts[0])
    assert disabled.health.admin_state is AdminState.DISABLE
    process.accounts[0] = disabled
    process.watch()
    disk.flush()
    assert Process(disk, clock).accounts[0].health.admin_state is AdminState.SERVE


def test_rows_of_unknown_tables_and_values_change_nothing(disk: Disk, clock: Clock) -> None:
    process = Process(disk, clock)
    written = f"{process.ids.id_of('a')}".encode()
    for table in (BINDINGS, KEY_USE, OPERATOR, "lessons", "quotas", "of a newer version"):
        for key in (written, b"\xff", b"gone#000000000000"):
            row = Row(table, key, b"\xc1 no value", clock.seconds() + 1, "laptop")
            process.replication.load(table, [row])
            process.replication.feed([row, row._replace(value=None)])
    assert process.accounts[0].health.admin_state is AdminState.SERVE
    assert (len(process.bindings), process.keys.snapshot()[0]["turns"]) == (0, 0)
