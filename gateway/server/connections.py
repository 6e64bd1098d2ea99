"""Who is in: one count, one limit and one stop for the clients of every door."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from gateway.protocol.errors import ApiError
from gateway.server.ingress import IngressBuffer
from gateway.sockets import OpenFiles

#: Connections whose first head is not whole; beyond that the oldest of them goes.
MAX_SILENT = 1000

_Kind = TypeVar("_Kind")


class Drainable(Protocol):
    """A connection, or work that goes on without one."""

    def drain(self) -> None:
        """The gateway stops: finish what runs, begin nothing more, and leave."""

    def abandon(self) -> None:
        """The gateway can wait no longer: end what runs, and leave."""


class ConnectionLimiter:
    """Lets guests in until there are too many, of all keys or of one, or the gateway stops.

    Where there are too many, the one that has rested longest between two requests goes first.

    :param max_connections: how many may be in at the same time.
    :param max_incoming_bytes: how much of what they send is kept before it is whole.
    :ivar silent: connections that owe us their first head, the oldest first; no guests yet.
    :ivar files: whether the process may open enough of them.
    """

    def __init__(self, max_connections: int, max_incoming_bytes: int = sys.maxsize) -> None:
        self.max_connections = max_connections
        self.incoming = IngressBuffer(max_incoming_bytes)
        self.files = OpenFiles(time.monotonic)
        self.silent: dict[Any, None] = {}
        self._guests: set[Drainable] = set()
        self._key_of: dict[Drainable, str] = {}
        self._of_key: Counter[str] = Counter()
        self._resting: dict[Drainable, None] = {}
        self._draining = False
        self._when_empty: list[Callable[[], None]] = []

    def __len__(self) -> int:
        return len(self._guests)

    @property
    def draining(self) -> bool:
        """Whether the gateway is stopping."""
        return self._draining

    def of_kind(self, kind: type[_Kind]) -> list[_Kind]:
        """The guests of one kind; nobody else needs to keep a list of them."""
        return [guest for guest in self._guests if isinstance(guest, kind)]

    def connected(self, connection: Any) -> bool:
        """Count a new connection, whose first head is awaited.

        Where there are too many of these, the one is aborted that is awaited for the longest.
        If files are short, that one goes, or else one that rests between two requests.

        :return: whether there are files enough for what the connection will ask for.
        """
        few_files = not self.files.suffice(connection.transport)
        oldest = next(iter(self.silent), None)
        if oldest is not None and (few_files or len(self.silent) >= MAX_SILENT):
            oldest.abort()
            few_files = False
        self.silent[connection] = None
        return not few_files or self.make_room()

    def enter(self, guest: Drainable) -> None:
        """Let a client in, or let one that is in do something more.

        :raises ApiError: 503, with the time after which another try may help.
        """
        if self._draining:
            raise _unavailable("The gateway is stopping.", 5)
        full = guest not in self._guests and len(self._guests) >= self.max_connections
        if full and not self.make_room():
            raise _unavailable("The gateway has as many connections as it may.", 30)
        self._guests.add(guest)

    def claim(self, guest: Drainable, key: str, most: int) -> None:
        """Count a guest that is in among those of a key; one that is too much is out again.

        :param most: how many the key may have.
        :raises ApiError: 429, with the time after which another try may help.
        """
        if self._key_of.get(guest) == key:
            return
        if self._of_key[key] >= most and not self.make_room(key):
            self.leave(guest)
            raise _too_many(key, most)
        self._disclaim(guest)
        self._key_of[guest] = key
        self._of_key[key] += 1

    def rests(self, guest: Drainable) -> None:
        """A guest waits for its client's next request; it may be asked to leave meanwhile."""
        self._resting[guest] = None

    def wakes(self, guest: Drainable) -> None:
        """Its next request begins."""
        self._resting.pop(guest, None)

    def make_room(self, key: str | None = None) -> bool:
        """Whether a guest could go that rests, of this key or of any: the longest first."""
        for guest in self._resting:
            if key is None or self._key_of.get(guest) == key:
                guest.drain()
                self.leave(guest)
                return True
        return False

    def keep(self, guest: Drainable) -> None:
        """Count what a client that is in left behind; it may exceed the limit."""
        self._guests.add(guest)

    def leave(self, guest: Drainable) -> None:
        """A guest is gone.  May be called again."""
        self._guests.discard(guest)
        self._resting.pop(guest, None)
        self._disclaim(guest)
        if not self._guests:
            waiting, self._when_empty = self._when_empty, []
            for call in waiting:
                call()

    def _disclaim(self, guest: Drainable) -> None:
        key = self._key_of.pop(guest, None)
        if key is not None:
            self._of_key[key] -= 1
            if not self._of_key[key]:
                del self._of_key[key]

    def drain(self, when_empty: Callable[[], None]) -> None:
        """Let nobody in any more, and everybody out who can go.

        :param when_empty: called once, when the last guest is gone.
        """
        self._draining = True
        for guest in list(self._guests):
            guest.drain()
        if self._guests:
            self._when_empty.append(when_empty)
        else:
            when_empty()

    def abandon(self) -> None:
        """Put everybody out now."""
        for guest in list(self._guests):
            guest.abandon()


def _too_many(key: str, most: int) -> ApiError:
    return ApiError(
        429,
        "rate_limit_error",
        f"The key '{key}' has as many connections as it may, which is {most}.",
        "too_many_connections",
        headers={"retry-after": "5"},
    )


def no_room_for_files() -> ApiError:
    """503: the process may open no more files for clients."""
    return _unavailable("The gateway has as many files open as it may.", 30)


def _unavailable(message: str, retry_after: int) -> ApiError:
    return ApiError(
        503, "server_error", message, "unavailable", headers={"retry-after": str(retry_after)}
    )
