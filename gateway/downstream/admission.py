"""Who is in: one count, one limit and one stop for the clients of every door."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, TypeVar

from ..protocol.errors import ApiError
from .incoming import Incoming

_Kind = TypeVar("_Kind")


class Guest(Protocol):
    """A connection, or work that goes on without one."""

    def drain(self) -> None:
        """The gateway stops: finish what runs, begin nothing more, and leave."""

    def abandon(self) -> None:
        """The gateway can wait no longer: end what runs, and leave."""


class Admission:
    """Lets guests in until there are too many, or the gateway stops.

    :param max_connections: how many may be in at the same time.
    :param max_incoming_bytes: how much of what they send is kept before it is whole.
    """

    def __init__(self, max_connections: int, max_incoming_bytes: int = sys.maxsize) -> None:
        self.max_connections = max_connections
        self.incoming = Incoming(max_incoming_bytes)
        self._guests: set[Guest] = set()
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

    def enter(self, guest: Guest) -> None:
        """Let a client in, or let one that is in do something more.

        :raises ApiError: 503, with the time after which another try may help.
        """
        if self._draining:
            raise _unavailable("The gateway is stopping.", 5)
        if guest not in self._guests and len(self._guests) >= self.max_connections:
            raise _unavailable("The gateway has as many connections as it may.", 30)
        self._guests.add(guest)

    def keep(self, guest: Guest) -> None:
        """Count what a client that is in left behind; it may exceed the limit."""
        self._guests.add(guest)

    def leave(self, guest: Guest) -> None:
        """A guest is gone.  May be called again."""
        self._guests.discard(guest)
        if not self._guests:
            waiting, self._when_empty = self._when_empty, []
            for call in waiting:
                call()

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


def _unavailable(message: str, retry_after: int) -> ApiError:
    return ApiError(
        503, "server_error", message, "unavailable", headers={"retry-after": str(retry_after)}
    )
