"""A key in a file that somebody else replaces now and then."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger

from gateway.credentials.stamp import FileStamp, look_at, read_small
from gateway.credentials.static import AUTHORIZATION, can_be_sent, key_header, worth_hiding
from gateway.protocol.errors import ApiError

_log = Logger(namespace="gateway.credentials")

#: How often the file is looked at while requests go out, in seconds.
_LOOK_SECONDS = 1.0

#: How long the last good key serves while the file is missing or broken, in seconds: tools
#: that replace a file often remove it first, or write it in pieces.
_GRACE_SECONDS = 60.0


class FileCredentials:
    """The key that a file holds; see :class:`~gateway.credentials.interface.Credentials`.

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
        self._look()
        self._next_look = now() + _LOOK_SECONDS

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        """The key's; fails while there is none."""
        now = self._now()
        if not self._next_look - _LOOK_SECONDS <= now < self._next_look:  # it may be set back
            self._next_look = now + _LOOK_SECONDS
            if self._problem is not None or look_at(self._path) != self._stamp:
                self._look()
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
        self._look()
        return self._headers != used

    def secrets(self) -> Sequence[str]:
        """The key as it was last read."""
        return worth_hiding(self._key)

    def close(self) -> None:
        """Nothing runs."""

    def _look(self) -> None:
        stamp = look_at(self._path)  # before reading: what changes meanwhile is read again
        try:
            key = read_small(self._path).decode("latin-1").strip()
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            self._broken("is missing" if missing else f"cannot be read: {error.strerror}")
            return
        if not key:
            self._broken("is empty")
        elif not can_be_sent(key):
            self._broken("holds something else than one key")
        else:
            self._take(key, stamp)

    def _take(self, key: str, stamp: FileStamp | None) -> None:
        if self._key is not None and (key != self._key or self._problem is not None):
            _log.info("the key file {path} was read again", path=self._path)
        self._stamp = stamp
        self._problem = None
        self._key = key
        self._headers = key_header(key, self._auth_header)

    def _broken(self, problem: str) -> None:
        if self._problem is None:
            self._good_until = self._now() + _GRACE_SECONDS
            _log.error("the key file {path} {problem}", path=self._path, problem=problem)
        self._problem = problem
