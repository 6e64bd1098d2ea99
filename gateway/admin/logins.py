"""Who is logged in: random session ids in cookies, of which only hashes are kept."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256

#: Sessions at the same time; the least recently used ends first.
MAX_LOGINS = 64

#: How long a session lasts at most, and how long without any use, in seconds.
_LONGEST_SECONDS = 12 * 3_600.0
_IDLE_SECONDS = 3_600.0

#: For how long, in seconds, a page tells what came of an action, and how much of it.
_SAID_SECONDS = 15.0
_LONGEST_SAID = 1000

_ID_BYTES = 32

#: Longest cookie value that is looked at.
_MAX_ID = 100


class AdminSession:
    """A session.

    :ivar name: what logs call it; its id cannot be told from that.
    """

    __slots__ = ("_said", "_said_at", "began_at", "name", "used_at")

    def __init__(self, name: str, now: float) -> None:
        self.name = name
        self.began_at = now
        self.used_at = now
        self._said: str | None = None
        self._said_at = now

    def tell(self, what: str, now: float) -> None:
        """Keep what came of an action, for the page that its browser is sent to."""
        self._said, self._said_at = what[:_LONGEST_SAID], now

    def said(self, now: float) -> str | None:
        """What came of an action just now; a page may be asked for more than once."""
        return self._said if 0 <= now - self._said_at < _SAID_SECONDS else None


class AdminSessions:
    """All sessions, bounded in count and age.

    :param now: seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._logins: OrderedDict[bytes, AdminSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._logins)

    def begin(self) -> tuple[str, AdminSession]:
        """A new session and its id, which is never one that a client brought along."""
        session_id = secrets.token_urlsafe(_ID_BYTES)
        digest = _digest(session_id)
        login = self._logins[digest] = AdminSession(f"login {digest.hex()[:8]}", self._now())
        while len(self._logins) > MAX_LOGINS:
            self._logins.popitem(last=False)
        return session_id, login

    def find(self, session_id: str) -> AdminSession | None:
        """The session of that id, used now; None when there is none (any more)."""
        if len(session_id) > _MAX_ID:
            return None
        digest = _digest(session_id)
        login = self._logins.get(digest)
        if login is None:
            return None
        now = self._now()
        if now - login.began_at >= _LONGEST_SECONDS or now - login.used_at >= _IDLE_SECONDS:
            del self._logins[digest]
            return None
        login.used_at = now
        self._logins.move_to_end(digest)
        return login

    def lasts(self, login: AdminSession) -> bool:
        """Whether a session goes on; to ask is no use of it."""
        return login in self._logins.values() and self._now() - login.began_at < _LONGEST_SECONDS

    def end(self, session_id: str) -> None:
        """The session of that id is over, if there is one."""
        if len(session_id) <= _MAX_ID:
            self._logins.pop(_digest(session_id), None)

    def end_all(self) -> None:
        """The token is another one now."""
        self._logins.clear()


def _digest(session_id: str) -> bytes:
    return sha256(session_id.encode(errors="surrogatepass")).digest()
