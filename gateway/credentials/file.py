"""A key in a file that other programs may replace, and cheap detection of file changes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from gateway.credentials.static import AUTHORIZATION, can_be_sent, key_header, worth_hiding
from gateway.protocol.errors import ApiError

_log = Logger(namespace="gateway.credentials")

#: Bound on a file of credentials, in bytes; a device would never end.
_MAX_FILE_BYTES = 65_536

#: How often the file is checked while requests go out, in seconds.
_CHECK_SECONDS = 1.0

#: How long the last good key serves while the file is missing or broken, in seconds: tools
#: that replace a file often remove it first, or write it in pieces.
_GRACE_SECONDS = 60.0


class FileStamp(NamedTuple):
    """The identity of a file's content, from one ``stat``: it changes with each write."""

    device: int
    inode: int
    size: int
    modified_ns: int


def stamp_of(status: os.stat_result) -> FileStamp:
    """The stamp in the result of a ``stat``."""
    return FileStamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def stamp_at(path: str) -> FileStamp | None:
    """The stamp of a file, None when there is none to be seen."""
    try:
        return stamp_of(os.stat(path))
    except OSError:
        return None


def read_small(path: str) -> bytes:
    """The content of a file of credentials.  It blocks for as long as a page cache takes.

    :raises OSError: it is not there, may not be read, or is no regular file.
    """
    # A pipe would wait for its writer; only files are opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "Not a file")
    with open(path, "rb") as file:
        return file.read(_MAX_FILE_BYTES)


class FileCredentials:
    """A key that is read from a file.

    :param path: of the file: one key and nothing else.
    :param now: seconds of any clock.
    :param auth_header: see :func:`~gateway.credentials.static.key_header`.
    """

    def __init__(
        self, path: str, now: Callable[[], float], auth_header: str = AUTHORIZATION
    ) -> None:
        self._path = path
        self._now = now
        self._auth_header = auth_header
        self._key: str | None = None
        self._headers: Mapping[str, str] = {}
        self._stamp: FileStamp | None = None
        self._problem: str | None = None
        self._good_until = 0.0
        self._read()
        self._next_check = now() + _CHECK_SECONDS

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The header with the key; fails while there is none."""
        now = self._now()
        if not self._next_check - _CHECK_SECONDS <= now < self._next_check:  # it may be set back
            self._next_check = now + _CHECK_SECONDS
            if self._problem is not None or stamp_at(self._path) != self._stamp:
                self._read()
        if self._problem is not None and (self._key is None or now >= self._good_until):
            return fail(
                ApiError.bad_gateway(
                    f"The gateway's key file for this account {self._problem}.",
                    "upstream_unauthorized",
                )
            )
        return self._headers

    def refused(self, used: Mapping[str, str]) -> bool:
        """Read the file now: a new key makes the old one invalid at once."""
        self._read()
        return self._headers != used

    def secrets(self) -> Sequence[str]:
        """The key as it was last read."""
        return worth_hiding(self._key)

    def close(self) -> None:
        """Nothing runs."""

    def _read(self) -> None:
        stamp = stamp_at(self._path)  # before reading: what changes meanwhile is read again
        try:
            key = read_small(self._path).decode("latin-1").strip()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            self._set_problem("is missing" if missing else f"cannot be read: {error.strerror}")
            return
        if not key:
            self._set_problem("is empty")
        elif not can_be_sent(key):
            self._set_problem("holds something else than one key")
        else:
            self._set_key(key, stamp)

    def _set_key(self, key: str, stamp: FileStamp | None) -> None:
        if self._key is not None and (key != self._key or self._problem is not None):
            _log.info("the key file {path} was read again", path=self._path)
        self._stamp = stamp
        self._problem = None
        self._key = key
        self._headers = key_header(key, self._auth_header)

    def _set_problem(self, problem: str) -> None:
        if self._problem is None:
            self._good_until = self._now() + _GRACE_SECONDS
            _log.error("the key file {path} {problem}", path=self._path, problem=problem)
        self._problem = problem
