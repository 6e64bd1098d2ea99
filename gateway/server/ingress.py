"""What clients are sending: how much of it is kept before it is whole, over all connections.

Each head, body and message has its own bound; thousands of large ones that trickle in together
would still fill the memory.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from gateway.protocol.errors import ApiError


class IngressSource(Protocol):
    """A connection that is sending something."""

    @property
    def tenant(self) -> str:
        """Whose it is."""

    def give_up(self, error: ApiError) -> None:
        """Keep nothing of it; its client is told this."""


class IngressBuffer:
    """The heads, bodies and messages of which a part has come.

    Where they are too much together, the largest of the tenant that sends most is given up:
    nobody can keep others out by sending much and slowly.

    :param max_bytes: how much is kept at the same time.
    :ivar bytes: how much is kept now.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[IngressSource, int] = {}

    def keep(self, sender: IngressSource, size: int) -> None:
        """So many more bytes of what ``sender`` sends; it may be given up before this returns."""
        self._kept[sender] = self._kept.get(sender, 0) + size
        self.bytes += size
        while self.bytes > self.max_bytes:
            self._give_up_one()

    def leave(self, sender: IngressSource) -> None:
        """What it sent is whole, or not wanted.  May be called again."""
        self.bytes -= self._kept.pop(sender, 0)

    def _give_up_one(self) -> None:
        sent: Counter[str] = Counter()
        for sender, size in self._kept.items():
            sent[sender.tenant] += size
        ((most, _),) = sent.most_common(1)
        theirs = (sender for sender in self._kept if sender.tenant == most)
        largest = max(theirs, key=self._kept.__getitem__)
        self.leave(largest)
        largest.give_up(_no_room())


def _no_room() -> ApiError:
    return ApiError(
        503,
        "server_error",
        "The gateway is receiving as much as it may; please try again.",
        "unavailable",
        headers={"retry-after": "5"},
    )
