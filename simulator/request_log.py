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
    "upgrade",
]
#: upgrade: of ``GET /responses`` to a WebSocket; each ``response.create`` on it is a create.
Outcome = Literal[
    "running", "completed", "failed", "incomplete", "refused", "ended", "dropped", "cancelled"
]


_CONTROLS = 100


@dataclass(eq=False)
class SocketRecord:
    """What one WebSocket received, and how it ended.

    :ivar number: sockets are counted from 1.
    :ivar headers: those of the upgrade.
    :ivar opened_at: in seconds of the simulator's clock, as all times here.
    :ivar close_code: the code of the first Close frame; None without one.
    :ivar closed_by_service: whether the simulator sent it, or ended the connection.
    :ivar received_bytes: the bytes of all messages.
    :ivar requests: the messages that were a ``response.create``.
    :ivar prewarms: those of them with ``generate: false``.
    :ivar chained: those of them that named a previous response and were accepted.
    :ivar completed: the responses that completed.
    :ivar pings: the pings that it answered.
    :ivar controls: the latest other messages: interrupts, steers and the like.
    """

    number: int
    account: str
    headers: Mapping[str, str] = field(repr=False)
    opened_at: float
    closed_at: float | None = None
    close_code: int | None = None
    closed_by_service: bool = False
    messages: int = 0
    received_bytes: int = 0
    requests: int = 0
    prewarms: int = 0
    chained: int = 0
    completed: int = 0
    pings: int = 0
    controls: deque[Mapping[str, Any]] = field(
        default_factory=lambda: deque(maxlen=_CONTROLS), repr=False
    )

    @property
    def is_open(self) -> bool:
        """Whether it is still connected."""
        return self.closed_at is None


@dataclass(eq=False)
class LoggedRequest:
    """One request.

    :ivar body: decoded; None without one.
    :ivar context: all items that the model was given.
    :ivar outcome: ``ended`` and ``dropped`` come from faults, ``cancelled`` from the client.
    :ivar path: without the query.
    :ivar socket: the WebSocket on which it came; the body is then the message.
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
    socket: SocketRecord | None = field(default=None, repr=False)

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
