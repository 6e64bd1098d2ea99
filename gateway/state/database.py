"""The SQLite database of the state: schema, migrations, reading, writing, trimming.

Everything here blocks, and belongs on a thread of its own (:mod:`gateway.state.sqlite`).  The
database is in WAL mode: what was written survives the end of the process at any moment.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from gateway.state.backend import RECORDS, RESPONSES, Recall, Recalled, Row, StateError

#: The name of the database in the state directory.
DATABASE = "state.db"

#: How long another process may hold the database's own lock, in seconds; an inspection is short.
_BUSY_SECONDS = 5.0

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

_READ_CONVERSATION = """
    WITH RECURSIVE path (depth, key, parent, value) AS (
        SELECT 0, key, parent, value FROM records WHERE key = ?
        UNION ALL
        SELECT depth + 1, records.key, records.parent, records.value
        FROM path JOIN records ON records.key = path.parent WHERE depth < ?
    )
    SELECT key, value FROM path ORDER BY depth
"""


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
        self._bytes = 0
        #: Conversations that were read, and when; written with the next rows.
        self._touched: dict[str, float] = {}
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
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            migrate(connection)
            found = connection.execute("SELECT coalesce(sum(bytes), 0) FROM conversations")
            self._bytes = found.fetchone()[0]
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
        size = 0
        for suffix in ("", "-wal"):
            with suppress(OSError):
                size += os.stat(f"{self._path}{suffix}").st_size
        return DatabaseFigures(responses, conversations, self._bytes, size)

    # --- writing -----------------------------------------------------------------------

    def write(self, rows: Sequence[Row]) -> None:
        """Write rows in one transaction."""
        before = self._bytes
        with self._use() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                for row in rows:
                    self._write_row(connection, row)
                self._touch(connection)
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
                "INSERT OR REPLACE INTO responses VALUES (?, ?, ?)",
                (row.key, row.value, row.conversation),
            )
        elif row.table == RESPONSES:
            connection.execute("DELETE FROM responses WHERE key = ?", (row.key,))
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
        inserted = connection.execute(
            "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)",
            (row.key, row.parent, row.conversation, row.value),
        )
        if inserted.rowcount == 1:
            self._bytes += row.size
            connection.execute(
                "INSERT INTO conversations VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id) DO UPDATE"
                " SET bytes = bytes + ?3, used_at = ?4",
                (row.conversation, row.tenant, row.size, self._now()),
            )

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
            connection.execute("BEGIN IMMEDIATE")
            try:
                expired = connection.execute(
                    "DELETE FROM entries WHERE (name, key) IN"
                    " (SELECT name, key FROM entries WHERE expires_at <= ? LIMIT ?)",
                    (now, _TRIM_AT_ONCE),
                ).rowcount
                old = connection.execute(
                    "SELECT id FROM conversations WHERE used_at <= ? LIMIT ?",
                    (now - self._max_age_seconds, _TRIM_AT_ONCE),
                ).fetchall()
                self._delete(connection, [each for (each,) in old])
                over = self._trim_bytes(connection)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
            connection.execute(f"PRAGMA incremental_vacuum({_TRIM_AT_ONCE})").fetchall()
        return over or expired == _TRIM_AT_ONCE or len(old) == _TRIM_AT_ONCE

    def _trim_bytes(self, connection: sqlite3.Connection) -> bool:
        """Delete old conversations of the tenant with the most bytes; whether more must go."""
        if self._bytes <= self._max_bytes:
            return False
        target = self._max_bytes * _TRIM_SHARE
        (tenant,) = connection.execute(
            "SELECT tenant FROM conversations GROUP BY tenant ORDER BY sum(bytes) DESC LIMIT 1"
        ).fetchone()
        gone, freed = [], 0
        for name, size in connection.execute(
            "SELECT id, bytes FROM conversations WHERE tenant = ? ORDER BY used_at LIMIT ?",
            (tenant, _TRIM_AT_ONCE),
        ):
            if self._bytes - freed <= target:
                break
            gone.append(name)
            freed += size
        self._delete(connection, gone)
        return self._bytes > target

    def _delete(self, connection: sqlite3.Connection, conversations: Sequence[str]) -> None:
        for each in conversations:
            found = connection.execute("SELECT bytes FROM conversations WHERE id = ?", (each,))
            row = found.fetchone()
            self._bytes -= row[0] if row is not None else 0
            for statement in (
                "DELETE FROM records WHERE conversation = ?",
                "DELETE FROM responses WHERE conversation = ?",
                "DELETE FROM conversations WHERE id = ?",
            ):
                connection.execute(statement, (each,))

    # --- for the command line ----------------------------------------------------------

    def delete_tenant(self, tenant: str) -> int:
        """Delete everything of a client key.

        :return: how many conversations were deleted.
        """
        with self._use() as connection:
            found = connection.execute("SELECT id FROM conversations WHERE tenant = ?", (tenant,))
            names = [name for (name,) in found]
            connection.execute("BEGIN IMMEDIATE")
            self._delete(connection, names)
            connection.execute("DELETE FROM entries WHERE tenant = ?", (tenant,))
            connection.execute("COMMIT")
        return len(names)

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
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise StateError(
            f"the schema of the state is version {version}, and this gateway knows {len(steps)}: "
            "it was written by a newer gateway; start that one, or name another state.directory"
        )
    for number in range(version, len(steps)):
        script = f"BEGIN IMMEDIATE; {steps[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
        connection.executescript(script)


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
