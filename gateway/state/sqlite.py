"""The state in a SQLite database, on a thread of its own.

One process at a time owns a state directory: it holds a lock on a file in it.  A successor
process inherits the lock (:mod:`gateway.tap`), because both run for a while.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, execute
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from gateway.config import StateSettings
from gateway.state.backend import VOLATILE, Feed, Recall, Recalled, Row, StateError
from gateway.state.database import DATABASE, Database

#: The file whose lock shows that the directory is in use.
LOCK = "state.lock"

_DAY = 86_400.0

#: How often old rows are trimmed, in seconds.
_TRIM_SECONDS = 30.0

_Result = TypeVar("_Result")

_log = Logger(namespace="gateway.state")


def state_directory(settings: StateSettings, environ: Mapping[str, str]) -> Path:
    """The directory of the state: the configured one, the service manager's, or the user's own.

    :param environ: ``STATE_DIRECTORY`` (systemd.exec(5)) may name several; the first one counts.
    """
    if settings.directory is not None:
        return Path(settings.directory)
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    home = environ.get("XDG_STATE_HOME") or os.path.join(
        environ.get("HOME") or os.path.expanduser("~"), ".local", "state"
    )
    return Path(home) / "responses-gateway"


class SqliteBackend:
    """The state in a SQLite database; volatile tables are not kept.

    :param reactor: clock and threads.
    :param directory: made if it does not exist; None keeps the database in memory.
    :param lock: the descriptor of the locked file, inherited from a predecessor; or None.
    """

    shared = False

    def __init__(
        self,
        reactor: Any,
        directory: Path | None,
        settings: StateSettings,
        lock: int | None = None,
    ) -> None:
        self._reactor = reactor
        self._directory = directory
        self.name = "memory" if directory is None else f"sqlite {directory}"
        self._database = Database(
            None if directory is None else directory / DATABASE,
            settings.max_bytes,
            settings.max_age_days * _DAY,
            reactor.seconds,
        )
        self.lock = lock
        self._threads: ThreadPool | None = None
        self._tried = False
        self._trimming = LoopingCall(self._trim)
        self._trimming.clock = reactor

    def open(self, feed: Feed) -> Deferred[None]:
        """Lock the directory and open the database."""
        if self._tried:
            self._use_thread()
        self._tried = True
        return self._run(self._open).addCallback(self._report_damage)

    def scan(self, table: str) -> Deferred[list[Row]]:
        """All rows of a table that have not expired."""
        return self._run(self._database.scan, table)

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read some rows, and one conversation."""
        self._use_thread()
        return self._run(self._database.read, wanted)

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows, in this order."""
        self._use_thread()
        return self._run(self._database.write, [row for row in rows if row.table not in VOLATILE])

    def close(self) -> Deferred[None]:
        """Close the database after what was begun."""
        if self._trimming.running:
            self._trimming.stop()
        # A disk that hangs must not keep the process from ending: its thread is not waited for,
        # and the lock stays until then.
        return self._run(self._database.close).addCallback(lambda _: self._closed())

    @property
    def file_bytes(self) -> int:
        """Of the database and its log, after the last write."""
        return self._database.file_bytes

    def _closed(self) -> None:
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.stop()
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def _report_damage(self, _: None) -> None:
        moved, self._database.moved_aside = self._database.moved_aside, None
        if moved is not None:
            _log.error(
                "the state in {directory} was damaged; it was moved to {moved}, and begun anew",
                directory=self._directory,
                moved=moved,
            )

    def _open(self) -> None:
        if self._directory is not None:
            _make_directory(self._directory)
            if self.lock is None:
                self.lock = lock_directory(self._directory)
        self._database.open()

    def _trim(self) -> Deferred[Any]:
        trimmed: Deferred[Any] = self._run(self._database.trim)
        trimmed.addCallback(lambda more: self._trim() if more else None)
        return trimmed.addErrback(_not_trimmed)

    def _use_thread(self) -> None:
        """From now on nothing is done on the reactor's thread: it serves clients."""
        if self._threads is None:
            threads: Any = ThreadPool(0, 1, "state")
            # A disk that hangs must not keep the process from ending.
            threads.threadFactory = _DaemonThread
            threads.start()
            self._threads = threads
            self._trimming.start(_TRIM_SECONDS, now=False)

    def _run(self, call: Callable[..., _Result], *args: Any) -> Deferred[_Result]:
        """Call it on the thread; at once while the gateway starts."""
        if self._threads is None:
            return execute(call, *args)
        return deferToThreadPool(self._reactor, self._threads, call, *args)


def _not_trimmed(failure: Failure) -> None:
    """The next write finds and reports what is wrong with the disk."""
    if failure.check(StateError, CancelledError) is None:
        _log.failure("the state could not be trimmed", failure)


class _DaemonThread(Thread):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, daemon=True)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(f"{path} cannot be made: {error.strerror}") from error


def lock_directory(directory: Path) -> int:
    """The descriptor of the directory's locked file, which has the process id in it.

    :raises StateError: when another process has it.
    """
    try:
        lock = os.open(
            directory / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR
        )
    except OSError as error:
        raise StateError(f"{directory} cannot be written to: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(lock, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(lock)
        raise StateError(
            f"{directory} is used by another process ({holder}); give each gateway its own"
            " state.directory"
        ) from None
    # A full disk says so when the database is opened; who holds the lock is only a help.
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
    return lock
