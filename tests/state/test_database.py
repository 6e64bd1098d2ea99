"""The SQLite database: schema, damage, what is refused, and what goes first."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from gateway.state import database
from gateway.state.backend import BINDINGS, OWNERS, RECORDS, RESPONSES, Recall, Row, StateError
from gateway.state.database import Database, migrate, migrations

DAY = 86_400.0
NOW = 1_000_000_000.0
LATE = 10.0**10

#: A database of each earlier version, as SQL; `dump` below makes one.
STORED = Path(__file__).parent / "schemas"

Make = Callable[..., Database]


class At:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> At:
    return At()


@pytest.fixture
def make(tmp_path: Path, clock: At) -> Make:
    def begin(max_bytes: int = 2**30) -> Database:
        made = Database(tmp_path / "state.db", max_bytes, 30 * DAY, clock)
        made.open()
        return made

    return begin


def key_of(number: int) -> bytes:
    return number.to_bytes(12, "big")


def record(number: int, parent: int | None = None, root: int | None = None, **about: object) -> Row:
    name = key_of(number if root is None else root).hex()
    before = b"" if parent is None else key_of(parent)
    row = Row(RECORDS, key_of(number), b"record %d" % number, LATE, "laptop", name, before)
    return row._replace(**about)


def response(number: int, root: int | None = None) -> Row:
    name = key_of(number if root is None else root).hex()
    return Row(RESPONSES, b"digest %d" % number, key_of(number), LATE, "laptop", name)


def known(made: Database, number: int) -> list[bytes]:
    return [value for _, value in made.read(Recall((), b"digest %d" % number)).records]


# --- the schema ----------------------------------------------------------------------------


def dump(version: int) -> str:
    """A database of a version with a row in each table, as SQL."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        migrate(connection, version)
        for statement in (
            "INSERT INTO entries VALUES ('owners', x'01', x'0061', 'laptop', 9e9)",
            "INSERT INTO conversations VALUES ('000000000000000000000001', 'laptop', 500, 1e9)",
            "INSERT INTO records VALUES (x'000000000000000000000001', x'',"
            " '000000000000000000000001', x'0072')",
            "INSERT INTO responses VALUES (x'02', x'000000000000000000000001',"
            " '000000000000000000000001')",
        ):
            connection.execute(statement)
        return "\n".join([*connection.iterdump(), f"PRAGMA user_version = {version};"]) + "\n"


def test_each_version_has_its_stored_database() -> None:
    names = sorted(path.name for path in STORED.glob("*.sql"))
    assert names == [f"{number:04}.sql" for number in range(1, len(migrations()) + 1)]
    assert (STORED / names[-1]).read_text() == dump(len(migrations())), "a migration was changed"


@pytest.mark.parametrize("version", range(1, len(migrations()) + 1))
def test_a_database_of_an_earlier_version_is_brought_up_to_date(
    tmp_path: Path, make: Make, version: int
) -> None:
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.executescript((STORED / f"{version:04}.sql").read_text())
    made = make()
    assert made.read(Recall([(OWNERS, b"\1")])).rows == {(OWNERS, b"\1"): b"\0a"}
    assert made.read(Recall((), b"\2")).records == [(key_of(1), b"\0r")]
    assert made.figures()[:3] == (1, 1, 500)
    made.close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(migrations()),)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make().close()
    steps = [*migrations(), "CREATE TABLE more (key); INSERT INTO nowhere VALUES (1);"]
    monkeypatch.setattr(database, "migrations", lambda: steps)
    with pytest.raises(StateError, match="nowhere"):
        make()
    monkeypatch.undo()
    make().write([record(1)])


def test_a_newer_schema_is_left_alone(tmp_path: Path, make: Make) -> None:
    make().close()
    with closing(sqlite3.connect(tmp_path / "state.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = (tmp_path / "state.db").read_bytes()
    with pytest.raises(StateError, match="written by a newer gateway"):
        make()
    assert (tmp_path / "state.db").read_bytes() == before


# --- damage --------------------------------------------------------------------------------


def filled(make: Make) -> Database:
    made = make()
    for number in range(1, 200):
        made.write([record(number, value=random.Random(number).randbytes(3000)), response(number)])
    return made


def read_and_written(made: Database) -> None:
    for number in range(1, 200):
        known(made, number)
        made.write([record(1000 + number)])


@pytest.mark.parametrize("damage", ["random bytes", "no database", "truncated"])
def test_a_damaged_file_is_moved_aside_and_begun_anew(
    tmp_path: Path, make: Make, damage: str
) -> None:
    filled(make).close()
    file = tmp_path / "state.db"
    data = file.read_bytes()
    if damage == "random bytes":
        data = random.Random(1).randbytes(len(data))
    elif damage == "no database":
        data = b"this is a text\n" * 100
    else:
        data = data[: len(data) // 2]
    file.write_bytes(data)
    made = make()
    if made.moved_aside is None:  # found when it is read or written
        with pytest.raises(StateError):
            read_and_written(made)
        made.open()
    assert made.moved_aside == tmp_path / "state.damaged"
    assert made.moved_aside.exists()
    made.write([record(1), response(1)])
    assert known(made, 1) == [b"record 1"]


def test_a_page_that_flips_while_it_runs_is_found(tmp_path: Path, make: Make) -> None:
    filled(make).close()
    made = make()
    file = tmp_path / "state.db"
    with file.open("r+b") as open_file:
        for offset in range(8192, file.stat().st_size, 4096):
            open_file.seek(offset)
            open_file.write(b"\xff" * 4096)
    with pytest.raises(StateError, match="malformed"):
        read_and_written(made)
    assert made.moved_aside is not None
    with pytest.raises(StateError, match="not open"):
        made.write([record(1)])
    made.open()
    made.write([record(1), response(1)])
    assert known(made, 1) == [b"record 1"]


def test_a_full_disk_keeps_what_was_written(make: Make) -> None:
    made = filled(make)
    assert made._connection is not None
    (pages,) = made._connection.execute("PRAGMA page_count").fetchone()
    made._connection.execute(f"PRAGMA max_page_count = {pages}")
    size = made.figures().bytes
    with pytest.raises(StateError, match="full"):
        made.write([record(999, value=b"x" * 100_000), response(999)])
    assert made.figures().bytes == size
    assert len(known(made, 7)) == 1
    made._connection.execute(f"PRAGMA max_page_count = {pages + 1000}")
    made.write([record(999, value=b"x" * 100_000), response(999)])
    assert len(known(made, 999)) == 1


def test_a_lock_of_another_process_is_one_error(tmp_path: Path, make: Make) -> None:
    made = filled(make)
    with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="locked"):
            made.write([record(999)])
        assert len(known(made, 7)) == 1, "it can be read"
        other.execute("ROLLBACK")
    made.write([record(999), response(999)])
    assert len(known(made, 999)) == 1


# --- what is refused -----------------------------------------------------------------------


def test_a_record_is_not_written_without_the_one_that_it_continued(make: Make) -> None:
    made = make()
    made.write([record(2, parent=1, root=1), response(2, root=1)])
    assert made.figures()[:3] == (0, 0, 0)
    made.write([record(1), record(2, parent=1, root=1), response(2, root=1)])
    assert known(made, 2) == [b"record 2", b"record 1"]


def test_one_bad_row_keeps_no_other_from_being_written(make: Make) -> None:
    made = make()
    made.write([record(1, tenant="\ud800"), Row(OWNERS, b"o", b"a", LATE), record(2), response(2)])
    assert known(made, 2) == [b"record 2"]
    assert made.refused == 1


def test_the_same_rows_again_change_nothing(make: Make) -> None:
    made = make()
    rows = [record(1), response(1), Row(BINDINGS, b"b", b"v", LATE)]
    made.write(rows)
    before = made.figures()[:3]
    made.write(rows)
    assert made.figures()[:3] == before


def test_a_conversation_goes_with_its_last_response(make: Make) -> None:
    made = make()
    made.write([record(1), response(1), record(2, parent=1, root=1), response(2, root=1)])
    made.write([response(1)._replace(value=None)])
    assert known(made, 2) == [b"record 2", b"record 1"]
    made.write([response(2)._replace(value=None)])
    assert made.figures()[:3] == (0, 0, 0)


# --- what goes first -----------------------------------------------------------------------


def trimmed(made: Database) -> None:
    while made.trim():
        pass


def test_the_oldest_of_the_tenant_with_the_most_goes_first(make: Make, clock: At) -> None:
    made = make(200_000)
    made.write([record(1, tenant="desk"), response(1)])
    for number in range(2, 300):
        clock.now += 1
        made.write([record(number, value=b"x" * 1000), response(number)])
    trimmed(made)
    assert 150_000 < made.figures().bytes <= 200_000
    assert known(made, 1), "the oldest of all is another tenant's"
    assert not known(made, 2)
    assert known(made, 299)


def test_what_is_too_old_is_forgotten(make: Make, clock: At) -> None:
    made = make()
    made.write([record(1), response(1), Row(BINDINGS, b"b", b"v", NOW + DAY)])
    clock.now += 2 * DAY
    assert made.scan(BINDINGS) == []
    made.write([record(2), response(2)])
    clock.now += 29 * DAY
    assert known(made, 1), "it is used"
    made.write([record(3), response(3)])
    trimmed(made)
    assert known(made, 1)
    assert known(made, 2)
    clock.now += 2 * DAY
    trimmed(made)
    assert not known(made, 2)


def test_a_clock_that_was_wrong_keeps_nothing_for_ever(make: Make, clock: At) -> None:
    made = make()
    clock.now += 3650 * DAY
    made.write([record(1), response(1)])
    clock.now = NOW
    trimmed(made)
    clock.now += 31 * DAY
    trimmed(made)
    assert not known(made, 1)


def test_a_copy_of_a_running_database_can_be_put_back(tmp_path: Path, make: Make) -> None:
    """As docs/operations.md tells operators to do it."""
    running = make()
    running.write([record(1), response(1)])
    copy = tmp_path / "copy.db"
    with (
        closing(sqlite3.connect(tmp_path / "state.db")) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
    running.write([record(2), response(2)])
    running.close()
    copy.replace(tmp_path / "state.db")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"state.db{suffix}").unlink(missing_ok=True)
    restored = make()
    assert (known(restored, 1), known(restored, 2)) == ([b"record 1"], [])
    restored.write([record(3), response(3)])
    assert known(restored, 3) == [b"record 3"]


def test_a_file_is_its_owners_alone(tmp_path: Path, make: Make) -> None:
    made = filled(make)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("state.db*")} == {0o600}
    made.close()


def test_a_deleted_tenant_leaves_nothing(make: Make) -> None:
    made = make()
    made.write([record(1), response(1), record(2, tenant="desk"), response(2)])
    made.write([Row(OWNERS, b"1", b"a", LATE, "laptop"), Row(OWNERS, b"2", b"a", LATE, "desk")])
    assert made.delete_tenant("laptop") == 1
    assert not known(made, 1)
    assert known(made, 2)
    assert list(made.read(Recall([(OWNERS, b"1"), (OWNERS, b"2")])).rows) == [(OWNERS, b"2")]
