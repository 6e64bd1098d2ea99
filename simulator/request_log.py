"""The simulator's bounded log of requests and their outcomes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.items import Item, input_items

Endpoint = Literal[
    "create",
    "retrieve",
    "delete",
    "cancel",
    "input_items",
    "compact",
    "input_tokens",
    "models",
    "model",
    "chat",
]
Outcome = Literal[
    "running", "completed", "failed", "incomplete", "refused", "ended", "dropped", "cancelled"
]


@dataclass(eq=False)
class LoggedRequest:
    """One request.

    :ivar body: decoded; None without one.
    :ivar context: all items that the model was given.
    :ivar outcome: ``ended`` and ``dropped`` come from faults, ``cancelled`` from the client.
    :ivar path: without the query.
    :ivar at: when it arrived, in seconds of the simulator's clock.
    """

    account: str | None
    headers: dict[str, str] = field(repr=False)
    body: Any
    size: int = 0
    context: Sequence[Item] = field(default=(), repr=False)
    response_id: str | None = None
    status: int | None = None
    error: dict[str, Any] | None = None
    outcome: Outcome = "running"
    events_sent: int = 0
    method: str = "POST"
    path: str = ""
    query: Mapping[str, Sequence[str]] = field(default_factory=dict)
    content_encoding: str | None = None
    endpoint: Endpoint | None = None
    at: float = 0.0

    @property
    def previous_response_id(self) -> str | None:
        """The previous response that the request names."""
        return self.body.get("previous_response_id") if isinstance(self.body, dict) else None

    @property
    def input(self) -> list[Item]:
        """The input of the request as a list of items."""
        return input_items(self.body.get("input")) if isinstance(self.body, dict) else []


class RequestLog(Sequence[LoggedRequest]):
    """The latest requests, the oldest first; bounded by count and by the bytes of bodies."""

    def __init__(self, max_count: int = 1000, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._entries: deque[LoggedRequest] = deque()
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._bytes = 0

    def add(self, entry: LoggedRequest) -> None:
        """Add a request; the oldest ones make room."""
        self._entries.append(entry)
        self._bytes += entry.size
        while len(self._entries) > self._max_count or (
            self._bytes > self._max_bytes and len(self._entries) > 1
        ):
            self._bytes -= self._entries.popleft().size

    def clear(self) -> None:
        """Forget all requests."""
        self._entries.clear()
        self._bytes = 0

    def of(self, account: str, path_ending: str = "") -> list[LoggedRequest]:
        """The requests of one account, or those of them with a path that ends so."""
        return [
            entry
            for entry in self._entries
            if entry.account == account and entry.path.endswith(path_ending)
        ]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[LoggedRequest]:
        return iter(self._entries)

    def __getitem__(self, index: Any) -> Any:
        return list(self._entries)[index]
