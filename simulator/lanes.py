"""The lanes of a WebSocket: order, bounds, and what each remembers (protocol.md §6.1, §6.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from simulator.engine import Record
from simulator.items import Item
from simulator.validation import Refusal, bad_request

MAX_RUNNING = 16
MAX_NAMED = 32
#: So many requests may wait on a socket.
MAX_WAITING = 1000

Turn = TypeVar("Turn")


@dataclass(eq=False)
class Lane(Generic[Turn]):
    """One lane.

    :ivar name: None: the default lane.
    :ivar running: its turn that runs.
    :ivar latest: its latest response that can be continued, whether stored or not.
    :ivar steered: the response that waits for outputs of tools, and what steered it meanwhile.
    """

    name: str | None
    running: Turn | None = None
    latest: Record | None = None
    steered: tuple[str, list[Item]] | None = field(default=None, repr=False)

    def evict(self, response_id: object) -> None:
        """Forget a response; other lanes that have it keep it."""
        if self.latest is not None and self.latest.response_id == response_id:
            self.latest = None

    def take_steered(self, response_id: object) -> list[Item]:
        """What steered this response, for the request that continues it."""
        if self.steered is None or self.steered[0] != response_id:
            return []
        items, self.steered = self.steered[1], None
        return items


class Lanes(Generic[Turn]):
    """The lanes of one socket. Turns of a lane run in order, those of several side by side."""

    def __init__(self) -> None:
        self._lanes: dict[str | None, Lane[Turn]] = {None: Lane(None)}
        self._waiting: deque[tuple[Lane[Turn], Turn]] = deque()
        self._running = 0

    def lane(self, name: str | None) -> Lane[Turn]:
        """The lane of a name.

        :raises Refusal: when it would be one too many.
        """
        if name not in self._lanes:
            if len(self._lanes) > MAX_NAMED:
                message = f"This connection has {MAX_NAMED} streams already."
                raise bad_request(message, "stream_id", "websocket_stream_limit_reached")
            self._lanes[name] = Lane(name)
        return self._lanes[name]

    def is_busy(self, lane: Lane[Turn]) -> bool:
        """Whether a turn runs or waits on the lane."""
        return lane.running is not None or any(each is lane for each, _turn in self._waiting)

    def add(self, lane: Lane[Turn], turn: Turn) -> None:
        """Let a turn wait for the others of its lane.

        :raises Refusal: when too many wait.
        """
        if len(self._waiting) >= MAX_WAITING:
            message = "Too many requests wait on this connection."
            raise Refusal(429, message, kind="requests", code="rate_limit_exceeded")
        self._waiting.append((lane, turn))

    def add_first(self, lane: Lane[Turn], turn: Turn) -> None:
        """Let a turn run as the next one of its lane."""
        self._waiting.appendleft((lane, turn))

    def take(self) -> Turn | None:
        """The next turn that may run; it counts as running from now on."""
        if self._running >= MAX_RUNNING:
            return None
        for index, (lane, turn) in enumerate(self._waiting):
            if lane.running is None:
                del self._waiting[index]
                lane.running = turn
                self._running += 1
                return turn
        return None

    def release(self, lane: Lane[Turn]) -> None:
        """The turn of a lane is over."""
        lane.running = None
        self._running -= 1

    @property
    def is_quiet(self) -> bool:
        """Whether no turn runs or waits."""
        return not self._running and not self._waiting

    def running(self) -> Iterable[Turn]:
        """The turns that run."""
        return [lane.running for lane in self._lanes.values() if lane.running is not None]

    def waiting(self) -> Iterable[Turn]:
        """The turns that wait."""
        return [turn for _lane, turn in self._waiting]

    def clear(self) -> None:
        """Forget the turns that wait: the socket is closed."""
        self._waiting.clear()

    def find(self, response_id: str) -> Record | None:
        """The latest response of a lane, by its id."""
        for lane in self._lanes.values():
            if lane.latest is not None and lane.latest.response_id == response_id:
                return lane.latest
        return None
