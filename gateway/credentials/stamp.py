"""Whether a file is still the one that was read, for the price of a ``stat``."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

#: No file of credentials is larger, in bytes; a device would never end.
_MOST_BYTES = 65_536


class FileStamp(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp in what ``stat`` says."""
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def look_at(path: str) -> FileStamp | None:
    """The stamp of the file there, None when there is none to be seen."""
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return None


def read_small(path: str) -> bytes:
    """What a file of credentials holds.  It blocks for as long as a page cache takes.

    :raises OSError: it is not there, may not be read, or is no file.
    """
    # A pipe would wait for its writer; only files are opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "Not a file")
    with open(path, "rb") as file:
        return file.read(_MOST_BYTES)
