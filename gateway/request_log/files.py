"""The files of request logs: one for each turn, JSON lines, bounded, readable by their owner only.

Everything here waits for the disk, so it runs in threads.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import BinaryIO, NamedTuple

#: Names of files, and nothing else is ever opened, listed or removed.
_NAME = re.compile(r"v1-responses-[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[A-Za-z0-9._-]{1,100}\.log")
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]")

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC

#: The part of all files that one may have.
FILE_SHARE = 8

#: How long the sizes of other processes' files are taken for granted, in seconds.
_RESCAN_SECONDS = 10.0

#: How much of a long line is shown, and how far its end is looked for, in bytes.
_SHOWN_BYTES = 65_536
_FURTHEST = 256 * 1024 * 1024
_READ_BYTES = 1024 * 1024


def file_name(turn: str, at: float) -> str:
    """The name of the file of a turn.

    :param at: when it was accepted, unix seconds; names sort by it.
    """
    moment = datetime.fromtimestamp(at, timezone.utc)
    stamp = f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"
    return f"v1-responses-{stamp}-{_UNUSUAL.sub('-', turn)[:100]}.log"


def is_file_name(name: str) -> bool:
    """Whether a file of request logs may have this name."""
    return _NAME.fullmatch(name) is not None


class DirectoryNotPrivate(Exception):
    """Others may read the directory; its text says what to do."""


def private_directory(path: str) -> None:
    """Make a directory that only its owner can enter, or check that it is one.

    :raises OSError: when it cannot be made.
    :raises DirectoryNotPrivate: when others can enter it.
    """
    with suppress(FileExistsError):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        os.mkdir(path, 0o700)
    found = os.stat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "not a directory", path)
    if stat.S_IMODE(found.st_mode) & 0o077:
        mode = f"{stat.S_IMODE(found.st_mode):04o}"
        raise DirectoryNotPrivate(f"others may enter it (mode {mode}): chmod 0700 it")


class FileSize(NamedTuple):
    """A file and its size in bytes."""

    name: str
    size: int


class RequestLogFiles:
    """Writes files in one directory and keeps them within their bounds; one thread at a time.

    :param directory: its path.
    :param max_bytes: of all files together; one has at most an eighth of it.
    :param max_files: how many there may be.
    """

    def __init__(self, directory: str, max_bytes: int, max_files: int) -> None:
        self.directory = directory
        self.max_file_bytes = max(max_bytes // FILE_SHARE, 1)
        self._max_bytes = max_bytes
        self._max_files = max_files
        #: Name to size, the oldest first, as far as it is known.
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self._scanned_at: float | None = None

    def append(self, name: str, data: bytes, is_new: bool) -> None:
        """Write to a file, and remove the oldest ones that exceed the bounds.

        :param is_new: whether the file does not exist yet.
        :raises OSError: when it cannot be written: the disk is full, the file was removed.
        :raises DirectoryNotPrivate: when others can enter the directory.
        """
        self._look_around()
        path = os.path.join(self.directory, name)
        if is_new and not os.path.isdir(self.directory):
            private_directory(self.directory)  # it was removed meanwhile
        file = os.open(path, _APPEND | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
        finally:
            os.close(file)
        self._sizes[name] = self._sizes.get(name, 0) + len(data)
        self._bytes += len(data)
        self._make_room(name)

    def _look_around(self) -> None:
        """Learn what else is in the directory: other processes and earlier starts write there."""
        now = time.monotonic()
        if self._scanned_at is not None and now - self._scanned_at < _RESCAN_SECONDS:
            return
        private_directory(self.directory)
        self._sizes = {each.name: each.size for each in sizes_in(self.directory)}
        self._bytes = sum(self._sizes.values())
        self._scanned_at = now

    def _make_room(self, kept: str) -> None:
        while len(self._sizes) > self._max_files or self._bytes > self._max_bytes:
            oldest = min((name for name in self._sizes if name != kept), default=None)
            if oldest is None:
                return
            self._bytes -= self._sizes.pop(oldest)
            with suppress(OSError):
                os.unlink(os.path.join(self.directory, oldest))


def sizes_in(directory: str) -> list[FileSize]:
    """The files in a directory, the oldest first; nothing when there is no such directory."""
    try:
        with os.scandir(directory) as entries:
            found = [entry for entry in entries if is_file_name(entry.name)]
    except OSError:
        return []
    return sorted(FileSize(entry.name, size) for entry in found for size in _size_of(entry))


def _size_of(entry: os.DirEntry[str]) -> Iterator[int]:
    with suppress(OSError):  # removed meanwhile
        if entry.is_file(follow_symlinks=False):
            yield entry.stat(follow_symlinks=False).st_size


# --- reading -------------------------------------------------------------------------------


class LogLine(NamedTuple):
    """One line as it is shown.

    :ivar data: its first bytes.
    :ivar size: how long it is, in bytes, its end left out.
    :ivar is_whole: false for a last line that was not written to its end.
    """

    data: bytes
    size: int
    is_whole: bool = True


class LogPage(NamedTuple):
    """Some lines of a file.

    :ivar start: where the first line begins, in bytes.
    :ivar end: where the line after the last one begins.
    :ivar size: of the file.
    """

    lines: Sequence[LogLine]
    start: int
    end: int
    size: int


def read_page(directory: str, name: str, start: int, max_lines: int) -> LogPage | None:
    """Read some lines of a file; None when there is no such file any more.

    :param name: of the file.
    :param start: where a line begins, in bytes: the ``end`` of another page, or 0.
    """
    if not is_file_name(name):
        return None
    try:
        descriptor = os.open(
            os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except (OSError, ValueError):
        return None
    with open(descriptor, "rb") as file:
        size = os.fstat(descriptor).st_size
        file.seek(min(start, size))
        lines: list[LogLine] = []
        shown = 0
        while len(lines) < max_lines and shown < _READ_BYTES:
            line = _read_line(file)
            if line is None:
                break
            lines.append(line)
            shown += len(line.data)
        return LogPage(lines, min(start, size), file.tell(), size)


def _read_line(file: BinaryIO) -> LogLine | None:
    data = file.readline(_SHOWN_BYTES)
    if not data:
        return None
    size, last = len(data), data
    while not last.endswith(b"\n") and size < _FURTHEST:
        last = file.readline(_READ_BYTES)
        if not last:
            return LogLine(data, size, False)
        size += len(last)
    return LogLine(data.removesuffix(b"\n"), size - 1)
