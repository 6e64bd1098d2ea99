"""What every backend of the state must do: each has these tests, by a class of its own.

A subclass makes backends in ``make``; all that it returns in one test share what they keep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import deferLater

from gateway.state.backend import (
    BINDINGS,
    ISSUERS,
    OPERATOR,
    OWNERS,
    QUOTAS,
    RECORDS,
    RESPONSES,
    Recall,
    Row,
    StateBackend,
)

HOUR = 3600.0


def key_of(number: int) -> bytes:
    """The key of a record."""
    return number.to_bytes(16, "big")


def digest_of(number: int) -> bytes:
    """The digest of a response's id; any byte may occur."""
    return bytes([number % 256, 0, 13, 10, 255]) * 4


def conversation(
    *numbers: int, root: int | None = None, parent: int | None = None, tenant: str = "t"
) -> list[Row]:
    """The rows of records that continue each other."""
    name = key_of(numbers[0] if root is None else root).hex()
    until = time.time() + HOUR
    rows = []
    before = b"" if parent is None else key_of(parent)
    for number in numbers:
        key, value = key_of(number), b"record %d" % number
        rows.append(Row(RECORDS, key, value, until, tenant, name, before))
        rows.append(Row(RESPONSES, digest_of(number), key, until, tenant, name))
        before = key
    return rows


def expected(*numbers: int) -> list[tuple[bytes, bytes]]:
    return [(key_of(number), b"record %d" % number) for number in numbers]


async def records(backend: StateBackend, number: int) -> list[tuple[bytes, bytes]]:
    found = await backend.read(Recall((), digest_of(number)))
    return [(key, value) for key, value in found.records]


async def pause(seconds: float) -> None:
    await deferLater(reactor, seconds)  # type: ignore[arg-type]


async def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for something that must come soon."""
    late = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < late, "it did not come"
        await pause(0.01)


class BackendContract:
    """The tests.  A subclass has a fixture ``make`` of type ``() -> StateBackend``."""

    @pytest_twisted.async_yield_fixture
    async def opened(self, make: Callable[[], StateBackend]) -> Any:
        """Makes and opens backends, each with the list of what its feed brings."""
        running: list[StateBackend] = []

        async def begin() -> tuple[StateBackend, list[Row]]:
            backend, fed = make(), list[Row]()
            await backend.open(fed.extend)
            running.append(backend)
            return backend, fed

        yield begin
        for each in running:
            await each.close()

    @pytest_twisted.ensureDeferred
    async def test_rows_are_read_as_they_were_written(self, opened: Any) -> None:
        backend, _ = await opened()
        value = bytes(range(256))
        late = time.time() + HOUR
        await backend.write(
            [Row(OWNERS, digest_of(1), value, late, "kunde ü"), Row(ISSUERS, b"\0", b"", late)]
        )
        wanted = [(OWNERS, digest_of(1)), (ISSUERS, b"\0"), (OWNERS, b"unknown")]
        found = await backend.read(Recall(wanted))
        assert found.rows == {wanted[0]: value, wanted[1]: b""}

    @pytest_twisted.ensureDeferred
    async def test_nothing_wanted_is_an_answer(self, opened: Any) -> None:
        backend, _ = await opened()
        found = await backend.read(Recall())
        assert (dict(found.rows), list(found.records)) == ({}, [])

    @pytest_twisted.ensureDeferred
    async def test_a_table_is_read_as_a_whole(self, opened: Any) -> None:
        backend, _ = await opened()
        late = float(int(time.time() + HOUR))
        rows = {
            Row(
                BINDINGS,
                b"key %d" % number,
                b"value %d" % number,
                late + number,
                f"tenant {number}",
            )
            for number in range(1500)
        }
        await backend.write(sorted(rows))
        await backend.write([Row(QUOTAS, b"other", b"table", late)])
        assert set(await backend.scan(BINDINGS)) == rows
        assert await backend.scan(OPERATOR) == []

    @pytest_twisted.ensureDeferred
    async def test_the_latest_value_counts_and_none_deletes(self, opened: Any) -> None:
        backend, _ = await opened()
        late = time.time() + HOUR
        await backend.write([Row(BINDINGS, b"a", b"1", late), Row(BINDINGS, b"a", b"2", late)])
        await backend.write([Row(BINDINGS, b"b", b"3", late), Row(OWNERS, b"c", b"4", late)])
        await backend.write([Row(BINDINGS, b"b", None, 0.0), Row(OWNERS, b"c", None, 0.0)])
        await backend.write([Row(BINDINGS, b"unknown", None, 0.0)])
        assert [(row.key, row.value) for row in await backend.scan(BINDINGS)] == [(b"a", b"2")]
        assert (await backend.read(Recall([(OWNERS, b"c")]))).rows == {}

    @pytest_twisted.ensureDeferred
    async def test_what_has_expired_is_not_found(self, opened: Any) -> None:
        backend, _ = await opened()
        soon = time.time() + 0.3
        await backend.write(
            [
                Row(BINDINGS, b"a", b"1", soon),
                Row(BINDINGS, b"b", b"2", time.time() - 1),
                Row(OWNERS, b"c", b"3", soon),
            ]
        )
        await pause(0.5)
        assert await backend.scan(BINDINGS) == []
        assert (await backend.read(Recall([(OWNERS, b"c")]))).rows == {}

    @pytest_twisted.ensureDeferred
    async def test_a_conversation_is_read_back_to_its_root(self, opened: Any) -> None:
        backend, _ = await opened()
        await backend.write(conversation(1, 2, 3))
        await backend.write(conversation(4, root=1, parent=2))  # a fork
        await backend.write(conversation(9))
        assert await records(backend, 3) == expected(3, 2, 1)
        assert await records(backend, 4) == expected(4, 2, 1)
        assert await records(backend, 1) == expected(1)
        assert await records(backend, 77) == []

    @pytest_twisted.ensureDeferred
    async def test_rows_and_a_conversation_are_read_together(self, opened: Any) -> None:
        backend, _ = await opened()
        await backend.write(
            [*conversation(1, 2), Row(OWNERS, b"a", b"account", time.time() + HOUR)]
        )
        found = await backend.read(Recall([(OWNERS, b"a"), (OWNERS, b"b")], digest_of(2)))
        assert found.rows == {(OWNERS, b"a"): b"account"}
        assert [tuple(each) for each in found.records] == expected(2, 1)

    @pytest_twisted.ensureDeferred
    async def test_writing_again_changes_nothing(self, opened: Any) -> None:
        backend, _ = await opened()
        for _ in range(3):
            await backend.write(conversation(1, 2))
        assert await records(backend, 2) == expected(2, 1)

    @pytest_twisted.ensureDeferred
    async def test_a_response_is_evicted_alone(self, opened: Any) -> None:
        backend, _ = await opened()
        await backend.write(conversation(1, 2))
        await backend.write([Row(RESPONSES, digest_of(1), None, 0.0, "t")])
        assert await records(backend, 1) == []
        assert await records(backend, 2) == expected(2, 1)

    @pytest_twisted.ensureDeferred
    async def test_a_conversation_is_deleted_as_a_whole(self, opened: Any) -> None:
        backend, _ = await opened()
        await backend.write([*conversation(1, 2), *conversation(8, 9)])
        gone = Row(RECORDS, b"", None, 0.0, "t", key_of(1).hex())
        await backend.write([*conversation(3, root=1, parent=2), gone])
        for number in (1, 2, 3):
            assert await records(backend, number) == []
        assert await records(backend, 9) == expected(9, 8)

    @pytest_twisted.ensureDeferred
    async def test_a_long_conversation_is_complete(self, opened: Any) -> None:
        backend, _ = await opened()
        await backend.write(conversation(*range(1, 1001)))
        assert await records(backend, 1000) == expected(*range(1000, 0, -1))

    @pytest_twisted.ensureDeferred
    async def test_it_is_closed_and_opened_again(self, opened: Any) -> None:
        backend, _ = await opened()
        await backend.write(conversation(1))
        await backend.close()
        again, _ = await opened()
        assert await records(again, 1) == expected(1)


class SharedContract(BackendContract):
    """More tests, for backends that several processes share."""

    @pytest_twisted.ensureDeferred
    async def test_others_hear_of_changes_of_replicated_tables(self, opened: Any) -> None:
        one, heard_by_one = await opened()
        other, heard = await opened()
        late = float(int(time.time() + HOUR))
        rows = [
            Row(BINDINGS, b"\xff\0", bytes(range(256)), late, "kunde ü"),
            Row(OPERATOR, b"b", None, 0.0),
        ]
        unheard = [Row(OWNERS, b"c", b"4", late), *conversation(1)]
        await one.write([*unheard, *rows])
        await until(lambda: len(heard) == 2)
        assert heard == rows
        assert await records(other, 1) == expected(1)
        await other.write([Row(QUOTAS, b"x", b"y", late)])
        await until(lambda: heard_by_one)
        assert [row.key for row in heard_by_one] == [b"x"], "its own changes came back"
