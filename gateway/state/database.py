"""The SQLite database of the state: schema, migrations, reading, writing, trimming.

Everything here blocks, and belongs on a thread of its own (:mod:`gateway.state.sqlite`).  The
database is in WAL mode: what was written survives the end of the process at any moment.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from twisted.logger import Logger

from gateway.state.backend import RECORDS, RESPONSES, Recall, Recalled, Row, StateError

#: The name of the database in the state directory.
DATABASE = "state.db"

#: How long another process may hold the database's own lock, in seconds; an inspection is short.
_BUSY_SECONDS = 0.5

#: Bound on the file of the write-ahead log, in bytes.
_LOG_BYTES = 64 * 1024 * 1024

#: Rows or conversations that are deleted at once, so that no read waits long.
_TRIM_AT_ONCE = 500

#: After trimming so much room is left, so that not every write trims.
_TRIM_SHARE = 0.95

#: A conversation's last use is written at most so often, in seconds.
_TOUCH_SECONDS = 600.0

#: Records of one conversation that are read at most; longer ones are incomplete.
_MOST_RECORDS = 100_000

#: A conversation that is used so much later than now was used when the clock was wrong, in seconds.
_CLOCK_SECONDS = 3_600.0

#: What only the row itself is to blame for: too large, or text that is no Unicode.
_BAD_ROW = (sqlite3.DataError, OverflowError, UnicodeError)

_READ_CONVERSATION = """
    WITH RECURSIVE path (depth, key, parent, value) AS (
        SELECT 0, key, parent, value FROM records WHERE key = ?
        UNION ALL
        SELECT depth + 1, records.key, records.parent, records.value
        FROM path JOIN records ON records.key = path.parent WHERE depth < ?
    )
    SELECT key, value FROM path ORDER BY depth
"""

_log = Logger(namespace="gateway.state")


class DatabaseFigures(NamedTuple):
    """How much the database holds.

    :ivar file_bytes: of the database and its log.
    """

    responses: int
    conversations: int
    bytes: int
    file_bytes: int


class Database:
    """The state in a SQLite file.  Every method raises :class:`StateError`.

    :param path: of the file; its directory exists.  None keeps it in memory.
    :param max_bytes: bound on the records.
    :param max_age_seconds: how long a conversation is kept after its last use.
    :param now: unix seconds.
    :ivar moved_aside: where a file that could not be read was moved, or None.
    :ivar file_bytes: of the database and its log, after the last write.
    :ivar refused: rows that could not be written as they are.
    """

    def __init__(
        self,
        path: Path | None,
        max_bytes: int,
        max_age_seconds: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._now = now
        #: Of the records, by tenant.
        self._bytes: Counter[str] = Counter()
        self.file_bytes = 0
        self.refused = 0
        #: Conversations that were read, and when; written with the next rows.
        self._touched: dict[str, float] = {}
        #: Conversations of which the rows that are being written delete a response.
        self._shrunk: set[str] = set()
        self._connection: sqlite3.Connection | None = None
        self.moved_aside: Path | None = None

    # --- opening -----------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, make it if there is none, and bring its schema up to date.

        A file that is no database, or is damaged, is moved aside, and a new one is begun.
        """
        self.close()
        with _reported(f"{self._path} cannot be used"):
            try:
                self._open()
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._move_aside()
                self._open()

    def _open(self) -> None:
        if self._path is not None:
            _make_private(self._path)
        connection = sqlite3.connect(
            self._path or ":memory:",
            timeout=_BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            _version(connection)  # before anything is changed
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            migrate(connection)
            self._bytes = _bytes_by_tenant(connection)
            # A file that can be read but not written to shows itself here, not at the first turn.
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def _move_aside(self) -> None:
        """Keep a damaged file for its owner; only the latest one is kept."""
        self.close()
        assert self._path is not None  # memory is not damaged
        self.moved_aside = self._path.with_suffix(".damaged")
        os.replace(self._path, self.moved_aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.unlink(f"{self._path}{suffix}")

    def close(self) -> None:
        """Close the file.  May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    # --- reading -----------------------------------------------------------------------

    def scan(self, table: str) -> list[Row]:
        """All rows of a table that have not expired."""
        with self._use() as connection:
            found = connection.execute(
                "SELECT key, value, expires_at, tenant FROM entries"
                " WHERE name = ? AND expires_at > ?",
                (table, self._now()),
            )
            return [Row(table, key, value, until, tenant) for key, value, until, tenant in found]

    def read(self, wanted: Recall) -> Recalled:
        """Read some rows, and one conversation, each by one index."""
        rows: dict[tuple[str, bytes], bytes] = {}
        with self._use() as connection:
            for table, key in wanted.rows:
                found = connection.execute(
                    "SELECT value FROM entries WHERE name = ? AND key = ? AND expires_at > ?",
                    (table, key, self._now()),
                ).fetchone()
                if found is not None:
                    rows[table, key] = found[0]
            return Recalled(rows, self._records(connection, wanted))

    def _records(self, connection: sqlite3.Connection, wanted: Recall) -> list[tuple[bytes, bytes]]:
        record = wanted.record
        if wanted.response is not None:
            found = connection.execute(
                "SELECT record, conversation FROM responses WHERE key = ?", (wanted.response,)
            ).fetchone()
            if found is not None:
                record = found[0]
                self._touched[found[1]] = self._now()
        if record is None:
            return []
        return connection.execute(_READ_CONVERSATION, (record, _MOST_RECORDS)).fetchall()

    def figures(self) -> DatabaseFigures:
        """How much it holds."""
        with self._use() as connection:
            (responses,) = connection.execute("SELECT count(*) FROM responses").fetchone()
            (conversations,) = connection.execute("SELECT count(*) FROM conversations").fetchone()
        self._measure()
        return DatabaseFigures(responses, conversations, self._bytes.total(), self.file_bytes)

    def _measure(self) -> None:
        size = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                size += os.stat(f"{self._path}{suffix}").st_size
        self.file_bytes = size

    # --- writing -----------------------------------------------------------------------

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows in one transaction.

        A record is refused without the one that it continued, and a response without its record.
        """
        with self._use() as connection, self._transaction(connection):
            for row in rows:
                try:
                    self._write_row(connection, row)
                except _BAD_ROW as error:
                    if not self.refused:
                        _log.error("a row of the state cannot be written: {error}", error=error)
                    self.refused += 1
            self._delete_shrunk(connection)
            self._touch(connection)
        self._measure()

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Write all of it, or nothing."""
        before = self._bytes.copy()
        self._shrunk = set()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            self._bytes = before
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            raise

    def _write_row(self, connection: sqlite3.Connection, row: Row) -> None:
        if row.table == RECORDS:
            self._write_record(connection, row)
        elif row.table == RESPONSES and row.value is not None:
            connection.execute(
                "INSERT OR REPLACE INTO responses SELECT ?1, ?2, ?3"
                " WHERE EXISTS (SELECT 1 FROM records WHERE key = ?2)",
                (row.key, row.value, row.conversation),
            )
        elif row.table == RESPONSES:
            self._delete_response(connection, row.key)
        elif row.value is None:
            connection.execute(
                "DELETE FROM entries WHERE name = ? AND key = ?", (row.table, row.key)
            )
        else:
            connection.execute(
                "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)",
                (row.table, row.key, row.value, row.tenant, row.expires_at),
            )

    def _write_record(self, connection: sqlite3.Connection, row: Row) -> None:
        if row.value is None:
            self._delete(connection, [row.conversation])
            return
        known = connection.execute(
            "SELECT length(value) FROM records WHERE key = ?", (row.key,)
        ).fetchone()
        if known is None:
            inserted = connection.execute(
                "INSERT INTO records SELECT ?1, ?2, ?3, ?4"
                " WHERE ?2 = x'' OR EXISTS (SELECT 1 FROM records WHERE key = ?2)",
                (row.key, row.parent, row.conversation, row.value),
            )
            if inserted.rowcount != 1:
                return
            grown = row.size
        else:
            connection.execute("UPDATE records SET value = ? WHERE key = ?", (row.value, row.key))
            grown = len(row.value) - known[0]
        connection.execute(
            "INSERT INTO conversations VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE"
            " SET bytes = bytes + ?3, used_at = ?4",
            (row.conversation, row.tenant, grown, self._now()),
        )
        self._bytes[row.tenant] += grown

    def _delete_response(self, connection: sqlite3.Connection, key: bytes) -> None:
        found = connection.execute(
            "SELECT conversation FROM responses WHERE key = ?", (key,)
        ).fetchone()
        if found is not None:
            connection.execute("DELETE FROM responses WHERE key = ?", (key,))
            self._shrunk.add(found[0])

    def _delete_shrunk(self, connection: sqlite3.Connection) -> None:
        """Delete conversations of which nothing can be continued any more.

        Not before all rows are written: a later one may continue what was evicted.
        """
        shrunk, self._shrunk = self._shrunk, set()
        for each in shrunk:
            others = "SELECT 1 FROM responses WHERE conversation = ? LIMIT 1"
            if connection.execute(others, (each,)).fetchone() is None:
                self._delete(connection, [each])

    def _touch(self, connection: sqlite3.Connection) -> None:
        touched, self._touched = self._touched, {}
        for conversation, at in touched.items():
            connection.execute(
                "UPDATE conversations SET used_at = ? WHERE id = ? AND used_at < ?",
                (at, conversation, at - _TOUCH_SECONDS),
            )

    # --- trimming ----------------------------------------------------------------------

    def trim(self) -> bool:
        """Delete a part of what is too old or too much.

        :return: whether there is more to delete.
        """
        now = self._now()
        with self._use() as connection:
            with self._transaction(connection):
                expired = connection.execute(
                    "DELETE FROM entries WHERE (name, key) IN"
                    " (SELECT name, key FROM entries WHERE expires_at <= ? LIMIT ?)",
                    (now, _TRIM_AT_ONCE),
                ).rowcount
                # The clock was set back: what seems to be used in the future is used now.
                connection.execute(
                    "UPDATE conversations SET used_at = ?1 WHERE used_at > ?1 + ?2",
                    (now, _CLOCK_SECONDS),
                )
                old = connection.execute(
                    "SELECT id FROM conversations WHERE used_at <= ? LIMIT ?",
                    (now - self._max_age_seconds, _TRIM_AT_ONCE),
                ).fetchall()
                self._delete(connection, [each for (each,) in old])
                over = self._trim_bytes(connection)
            connection.execute(f"PRAGMA incremental_vacuum({_TRIM_AT_ONCE})").fetchall()
        self._measure()
        return over or expired == _TRIM_AT_ONCE or len(old) == _TRIM_AT_ONCE

    def _trim_bytes(self, connection: sqlite3.Connection) -> bool:
        """Delete old conversations of the tenant with the most bytes; whether more must go."""
        total = self._bytes.total()
        if total <= self._max_bytes:
            return False
        target = self._max_bytes * _TRIM_SHARE
        (tenant, size), *others = self._bytes.most_common(2)
        second = others[0][1] if others else 0
        gone: list[str] = []
        freed = 0
        for name, bytes_of_it in connection.execute(
            "SELECT id, bytes FROM conversations WHERE tenant = ? ORDER BY used_at LIMIT ?",
            (tenant, _TRIM_AT_ONCE),
        ):
            if total - freed <= target or (gone and size - freed < second):
                break
            gone.append(name)
            freed += bytes_of_it
        self._delete(connection, gone)
        if not gone:
            self._bytes = _bytes_by_tenant(connection)
            return False
        return self._bytes.total() > target

    def _delete(self, connection: sqlite3.Connection, conversations: Sequence[str]) -> None:
        for each in conversations:
            for tenant, size in connection.execute(
                "SELECT tenant, bytes FROM conversations WHERE id = ?", (each,)
            ):
                self._bytes[tenant] -= size
            connection.execute("DELETE FROM conversations WHERE id = ?", (each,))
            connection.execute("DELETE FROM records WHERE conversation = ?", (each,))
            connection.execute("DELETE FROM responses WHERE conversation = ?", (each,))

    # --- for the command line ----------------------------------------------------------

    def delete_tenant(self, tenant: str) -> int:
        """Delete everything of a client key.

        :return: how many conversations were deleted.
        """
        with self._use() as connection, self._transaction(connection):
            found = connection.execute("SELECT id FROM conversations WHERE tenant = ?", (tenant,))
            names = [name for (name,) in found]
            self._delete(connection, names)
            connection.execute("DELETE FROM entries WHERE tenant = ?", (tenant,))
        return len(names)

    def vacuum(self) -> None:
        """Give back the room of what was deleted, and leave none of it in the file."""
        with self._use() as connection:
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._measure()

    # --- inside ------------------------------------------------------------------------

    @contextmanager
    def _use(self) -> Iterator[sqlite3.Connection]:
        """The open connection; its errors become :class:`StateError`.

        A file that turns out to be damaged is closed; the next :meth:`open` moves it aside.
        """
        if self._connection is None:
            raise StateError(f"{self._path} is not open")
        with _reported(f"{self._path} cannot be used"):
            try:
                yield self._connection
            except sqlite3.DatabaseError as error:
                if _is_damage(error):
                    self._move_aside()
                raise


# --- the schema ----------------------------------------------------------------------------


def migrations() -> list[str]:
    """The statements of each version of the schema, the first version first."""
    folder = files("gateway.state") / "migrations"
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(".sql"))
    return [(folder / name).read_text("utf-8") for name in names]


def migrate(connection: sqlite3.Connection, to: int | None = None) -> None:
    """Bring a database to the newest version of the schema, one version at a time.

    :param to: the version to stop at, for tests.
    :raises StateError: when the database has a newer version.
    """
    steps = migrations()[:to]
    version = _version(connection)
    for number in range(version, len(steps)):
        script = f"BEGIN IMMEDIATE; {steps[number]}\n; PRAGMA user_version = {number + 1}; COMMIT;"
        connection.executescript(script)


def _version(connection: sqlite3.Connection) -> int:
    """The version of a database's schema, if it is one that this gateway knows."""
    version, known = connection.execute("PRAGMA user_version").fetchone()[0], len(migrations())
    if version > known:
        raise StateError(
            f"the schema of the state is version {version}, and this gateway knows {known}: "
            "it was written by a newer gateway; start that one, or name another state.directory"
        )
    return int(version)


def _bytes_by_tenant(connection: sqlite3.Connection) -> Counter[str]:
    found = connection.execute("SELECT tenant, sum(bytes) FROM conversations GROUP BY tenant")
    return Counter(dict(found.fetchall()))


# --- files and errors ----------------------------------------------------------------------


def _make_private(path: Path) -> None:
    """Create the file so that only its owner can read it, as SQLite does not."""
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, stat.S_IRUSR | stat.S_IWUSR))


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file itself is at fault, not its use."""
    text = str(error)
    return "malformed" in text or "not a database" in text or "unsupported file format" in text


@contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn the errors of files and of SQLite into :class:`StateError`."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise StateError(f"{what}: {getattr(error, 'strerror', None) or error}") from error
