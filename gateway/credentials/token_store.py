"""The tokens of one account, in a file that survives crashes at any time.

The file is JSON: ``refresh_token``, and once there was one, ``access_token`` with its
``expires_at`` in unix seconds.  It is replaced, never written to: a new file is written beside
it, synced and renamed.  Other programs may replace it, too.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from gateway.credentials.file import FileStamp, read_small, stamp_at, stamp_of
from gateway.credentials.static import can_be_sent

#: A file that was being written this long ago was left behind by a crash, in seconds.
_STALE_SECONDS = 60.0

#: Later times are mistakes; in unix seconds (the year 2286).
_END_OF_TIME = 10_000_000_000


class TokenFileError(Exception):
    """The file cannot be used; the text continues "the token file …" and holds no secret."""


class OAuthTokens(NamedTuple):
    """The tokens of an account.

    :ivar expires_at: when the access token ends, unix seconds; None when that is unknown.
    """

    refresh_token: str
    access_token: str | None = None
    expires_at: float | None = None

    def __repr__(self) -> str:
        return f"OAuthTokens(<hidden>, expires_at={self.expires_at})"


class TokenStore:
    """The token file of one account.

    :param path: of the file; its directory must exist and be writable.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._stamp: FileStamp | None = None

    def changed(self) -> bool:
        """Whether the file was replaced since it was last read or written."""
        return stamp_at(self.path) != self._stamp

    def read(self) -> OAuthTokens | None:
        """What the file holds; None when it is missing or empty.

        :raises TokenFileError: it holds something else.
        """
        self._stamp = stamp_at(self.path)  # before reading: what changes meanwhile is seen
        try:
            content = read_small(self.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TokenFileError(f"cannot be read: {error.strerror}") from None
        return _decode(content) if content.strip() else None

    def write(self, tokens: OAuthTokens) -> None:
        """Replace the file.  This waits for the disk: call it in a thread.

        :raises TokenFileError: the file is as it was before.
        """
        # A link stays one; what it points to is replaced.
        path = os.path.realpath(self.path)
        folder, name = os.path.split(path)
        temporary = os.path.join(folder, f"{_prefix(name)}{secrets.token_hex(8)}")
        try:
            _remove_stale(folder, _prefix(name))
            stamp = _write_synced(temporary, msgspec.json.encode(tokens._asdict()))
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise TokenFileError(f"cannot be written: {error.strerror}") from None
        self._stamp = stamp
        with suppress(OSError):  # some file systems cannot sync directories
            _sync_folder(folder)


def _prefix(name: str) -> str:
    return f".{name}.new-"


def _write_synced(path: str, content: bytes) -> FileStamp:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        while content:
            content = content[os.write(file, content) :]
        os.fsync(file)
        return stamp_of(os.fstat(file))
    finally:
        os.close(file)


def _sync_folder(folder: str) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _remove_stale(folder: str, prefix: str) -> None:
    """Remove what crashes left; younger files may be written by another process now."""
    oldest = time.time() - _STALE_SECONDS
    for entry in os.scandir(folder):
        if entry.name.startswith(prefix):
            with suppress(OSError):  # it may be gone already
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


def _decode(content: bytes) -> OAuthTokens:
    try:
        members: Any = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TokenFileError("is not JSON") from None
    if not isinstance(members, dict):
        raise TokenFileError("is no JSON object")
    refresh_token, access_token = members.get("refresh_token"), members.get("access_token")
    if not isinstance(refresh_token, str) or not refresh_token:
        raise TokenFileError("has no refresh_token")
    sendable = isinstance(access_token, str) and can_be_sent(access_token)
    if access_token is not None and not sendable:
        raise TokenFileError("has an access_token that cannot be sent")
    expires_at = members.get("expires_at")
    if expires_at is not None and (
        isinstance(expires_at, bool)
        or not isinstance(expires_at, (int, float))
        or not 0 <= expires_at <= _END_OF_TIME
    ):
        raise TokenFileError("has an expires_at that is no time in unix seconds")
    return OAuthTokens(refresh_token, access_token, expires_at)
