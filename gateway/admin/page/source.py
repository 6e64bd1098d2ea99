"""What the page needs from the gateway, and what a browser asked to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

Json = dict[str, Any]

#: Turns on the page unless the browser asks for others.
TURNS = 50
_MOST_TURNS = 500
_LONGEST = 300


class Viewer(NamedTuple):
    """Who looks.

    :ivar why_not: why nothing can be done here; None where buttons are offered.
    :ivar signed_in: whether there is a login to end.
    :ivar can_sign_in: whether a token is configured to sign in with.
    :ivar said: what came of an action just now, for who has no scripts.
    """

    why_not: str | None = None
    signed_in: bool = False
    can_sign_in: bool = False
    said: str | None = None

    @property
    def may_act(self) -> bool:
        """Whether buttons are offered."""
        return self.why_not is None


class PageQuery(NamedTuple):
    """The query of the page's address: searches, filters, and one response to explain."""

    q: str = ""
    why: str = ""
    account: str = ""
    key: str = ""
    status: str = ""
    limit: int = TURNS

    @classmethod
    def of(cls, arguments: Mapping[bytes, Sequence[bytes]]) -> PageQuery:
        """Read a request's ``args``; what makes no sense is left out."""

        def first(name: bytes) -> str:
            values = arguments.get(name) or [b""]
            return values[0].decode("utf-8", "replace").strip()[:_LONGEST]

        limit = first(b"limit")
        turns = int(limit) if limit.isascii() and limit.isdigit() and len(limit) < 5 else TURNS
        return cls(
            first(b"q"),
            first(b"why"),
            first(b"account"),
            first(b"key"),
            first(b"status"),
            min(max(turns, 1), _MOST_TURNS),
        )

    def filters(self) -> dict[str, str]:
        """Those of the turns, for an address."""
        wanted = {"account": self.account, "key": self.key, "status": self.status}
        chosen = {name: value for name, value in wanted.items() if value}
        if self.limit != TURNS:
            chosen["limit"] = str(self.limit)
        return chosen

    def address(self, path: str, **more: str) -> str:
        """``path`` with the filters and ``more``."""
        query = urlencode({**self.filters(), **more}, errors="replace")
        return f"{path}?{query}" if query else path


class PageSource(Protocol):
    """Gives what the API answers, ready for JSON; each is asked for only where it is shown."""

    def status(self) -> Json:
        """``GET /status``, with accounts, keys and history."""

    def conversations(self, query: str, limit: int) -> Json:
        """``GET /status/conversations``."""

    def why(self, name: str) -> Json | None:
        """``GET /status/conversations/<name>/why``; None when nothing is known of ``name``."""

    def turns(self, account: str, key: str, status: str, limit: int) -> Json:
        """``GET /status/turns``, the newest last; empty strings ask for any."""

    def memory(self) -> Json:
        """``GET /status/memory``."""

    def configuration(self) -> Json:
        """``GET /status/config``."""
