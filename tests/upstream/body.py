"""A protocol for response bodies, shared by the tests of chunks and of connections."""

from __future__ import annotations

from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure


class Body(Protocol):
    """Keeps what a response delivers, and how it ended."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.end: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.end = reason
