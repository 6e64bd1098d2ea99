"""Hands the lines of request logs to a thread, so that no turn waits for a disk.

What waits for the thread is bounded: a turn that says more than the disk takes loses its next
lines, which its file then counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.request_log.files import DirectoryNotPrivate, RequestLogFiles
from gateway.request_log.redaction import Redactor

T = TypeVar("T")

#: Runs a function in a thread.
InThread = Callable[[Callable[[], T]], "Deferred[T]"]

#: Bytes that may wait for the thread.
MAX_QUEUED_BYTES = 64 * 1024 * 1024

#: A longer body is not written: reading it would stop everything for too long.
MAX_BODY_BYTES = 16 * 1024 * 1024

#: What a line takes besides its bodies, about, in bytes.
_LINE_BYTES = 400

#: What is left at the end of a file that has its largest size, for its last line.
_RESERVE_BYTES = 16_384

_log = Logger(namespace="gateway.request_log")


class RecordedFile:
    """One file while it is written; used by the writer's thread, but for its first members.

    :ivar name: of the file.
    :ivar redactor: removes the secrets of its turn.
    :ivar is_gone: the file was removed, or its recording was stopped.
    """

    __slots__ = ("dropped", "files", "is_gone", "name", "redactor", "size")

    def __init__(self, files: RequestLogFiles, name: str, redactor: Redactor) -> None:
        self.files = files
        self.name = name
        self.redactor = redactor
        self.is_gone = False
        self.size = 0
        self.dropped = 0


class LogEntry(NamedTuple):
    """Lines of one kind that happened at the same time.

    :ivar ms: milliseconds since the turn was accepted.
    :ivar fields: the members of each line besides its body.
    :ivar bodies: one line is written for each, or one without a body for none.
    """

    file: RecordedFile
    ms: float
    kind: str
    fields: Mapping[str, Any]
    bodies: Sequence[bytes]

    @property
    def size(self) -> int:
        """About how much memory it takes, in bytes."""
        return _LINE_BYTES * (1 + len(self.bodies)) + sum(map(len, self.bodies))


class LogWriter:
    """Writes entries in a thread, one batch after the other.

    :param in_thread: runs a function in a thread.
    :param failed: called with the reason when nothing can be written any more.
    :ivar queued_bytes: what waits, in bytes.
    :ivar written: bytes that were written so far.
    """

    def __init__(self, in_thread: InThread[Any], failed: Callable[[str], None]) -> None:
        self._in_thread = in_thread
        self._failed = failed
        self._queue: deque[LogEntry] = deque()
        self._is_running = False
        self._waiting: list[Deferred[None]] = []
        self.queued_bytes = 0
        self.written = 0

    def put(self, entry: LogEntry, is_last: bool = False) -> bool:
        """Write this soon; False when too much waits already.

        :param is_last: it is small, and taken nevertheless.
        """
        size = entry.size
        if self.queued_bytes + size > MAX_QUEUED_BYTES and not is_last:
            return False
        self._queue.append(entry)
        self.queued_bytes += size
        if not self._is_running:
            self._start()
        return True

    def flushed(self) -> Deferred[None]:
        """Fires when all that waits now is written, or failed."""
        if not self._is_running:
            return succeed(None)
        done: Deferred[None] = Deferred()
        self._waiting.append(done)
        return done

    def _start(self) -> None:
        batch, self._queue = list(self._queue), deque()
        size = sum(entry.size for entry in batch)
        self._is_running = True
        wrote: Deferred[Any] = self._in_thread(lambda: write_entries(batch))
        wrote.addBoth(self._wrote, size)

    def _wrote(self, result: Any, size: int) -> None:
        self._is_running = False
        self.queued_bytes -= size
        if isinstance(result, Failure):
            _log.failure("request logs could not be written", result)
            self._failed("the gateway failed; the log says why")
        else:
            self.written += result.bytes
            if result.failure is not None:
                self._failed(result.failure)
        if self._queue:
            self._start()
        else:
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done.callback(None)


# --- in the thread -------------------------------------------------------------------------


class WrittenBatch(NamedTuple):
    """What became of a batch.

    :ivar bytes: how much was written.
    :ivar failure: why the rest was not, or None.
    """

    bytes: int
    failure: str | None


def write_entries(batch: Sequence[LogEntry]) -> WrittenBatch:
    """Write a batch, each file once."""
    by_file: dict[RecordedFile, list[LogEntry]] = {}
    for entry in batch:
        by_file.setdefault(entry.file, []).append(entry)
    written = 0
    for file, entries in by_file.items():
        if file.is_gone:
            continue
        data = b"".join(line for entry in entries for line in _lines(entry))
        is_new = file.size == 0
        try:
            file.files.append(file.name, data, is_new)
        except FileNotFoundError as error:
            file.is_gone = True
            if is_new:
                return WrittenBatch(written, _reason(error))
        except (OSError, DirectoryNotPrivate) as error:
            return WrittenBatch(written, _reason(error))
        else:
            file.size += len(data)
            written += len(data)
    return WrittenBatch(written, None)


def _reason(error: OSError | DirectoryNotPrivate) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _lines(entry: LogEntry) -> list[bytes]:
    """The lines of an entry, as far as they fit into the file."""
    file = entry.file
    lines = []
    room = file.files.max_file_bytes - file.size - _RESERVE_BYTES
    bodies: Sequence[bytes | None] = entry.bodies or (None,)
    for body in bodies:
        line = _line(entry, body)
        if len(line) > room and body is not None:
            line = _line(entry, None, cut=len(body))
        if len(line) > room and entry.kind != "end":
            file.dropped += 1
            continue
        room -= len(line)
        lines.append(line)
    return lines


def _line(entry: LogEntry, body: bytes | None, cut: int | None = None) -> bytes:
    """One line; its time and kind come first, so that the beginning of a long one says them."""
    redactor = entry.file.redactor
    line: dict[str, Any] = {"ms": entry.ms, "kind": entry.kind}
    line.update((name, redactor.field(name, value)) for name, value in entry.fields.items())
    if entry.kind == "end" and entry.file.dropped:
        line["dropped"] = entry.file.dropped
    if body is not None and len(body) > MAX_BODY_BYTES:
        cut = len(body)
    if cut is not None:
        line["cut_bytes"] = cut
    elif body is not None:
        line["body"] = msgspec.Raw(redactor.body(body))
    return msgspec.json.encode(line) + b"\n"
