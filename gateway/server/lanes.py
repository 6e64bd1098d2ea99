"""The lanes of one connection: which turn is next, and how many may wait (protocol.md §6.1).

A lane is a ``stream_id``, or the default.  It is ``IDLE -> WAITING -> RUNNING`` and then either
of the first two: turns of one lane run one after the other, and so many lanes run at once.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
from twisted.logger import Logger

from gateway.protocol.errors import ApiError, error_event
from gateway.protocol.events import with_stream_id
from gateway.protocol.items import Item
from gateway.protocol.request import TurnRequest
from gateway.turn.successor_wait import SuccessorWait
from gateway.turn.turn import Turn

_log = Logger(namespace="gateway.websocket")

#: Turns of one connection that run at the same time, and lanes it may name.
MAX_RUNNING = 16
MAX_NAMED_LANES = 32

#: Of no known type, so that it needs no place in the response's ``sequence_number``s: a
#: repeated ``response.in_progress`` would.  Clients ignore unknown types, but not silence.
KEEP_ALIVE = b'{"type":"keepalive"}'

#: What a lane is busy with: a turn, or the wait for one that follows it by itself.
Occupant = Turn | SuccessorWait

Send = Callable[[Sequence[bytes]], None]


class LaneState(enum.Enum):
    """The states of a lane."""

    IDLE = "nothing"
    WAITING = "its next turn waits for room"
    RUNNING = "a turn"


class Lane:
    """One lane; the :class:`~gateway.turn.context.EventSink` of its turns.

    :param name: the ``stream_id``, or None for the default lane.
    :param send: sends events to the client.
    :param ended: called with every turn that ended.
    :ivar queue: its turns that have not started, and when each was accepted, unix seconds.
    :ivar running: the turn in progress, or the wait for it; or None.
    :ivar latest: id of the last response that can be continued, or None.
    :ivar steered: the id of a response, and the steering input which its account puts before that
        of the turn that continues it on this lane; or None.
    """

    def __init__(self, name: str | None, send: Send, ended: Callable[[Lane, Turn], None]) -> None:
        self.name = name
        self.state = LaneState.IDLE
        self.queue: deque[tuple[TurnRequest, float]] = deque()
        self.running: Occupant | None = None
        self.latest: str | None = None
        self.steered: tuple[str, tuple[Item, ...]] | None = None
        self._send = send
        self._ended = ended
        self._stream_id = None if name is None else msgspec.json.encode(name)

    def relay(self, payloads: Sequence[bytes]) -> None:
        """Send events; a named lane's events carry its name."""
        if self._stream_id is not None:
            stream_id = self._stream_id
            payloads = [with_stream_id(payload, stream_id) for payload in payloads]
        self._send(payloads)

    def refuse(self, error: ApiError) -> None:
        """Send ``error`` as an event."""
        self.relay([error_event(error)])

    def keep_alive(self) -> None:
        """Send an event that means nothing."""
        self.relay([KEEP_ALIVE])

    def turn_ended(self) -> None:
        """The lane is free for its next turn."""
        turn, self.running = self.running, None
        if turn is not None and not isinstance(turn, SuccessorWait):
            self._ended(self, turn)


class Lanes:
    """Starts the turns of one connection, each when its lane and the limit allow.

    :param max_queued_turns: how many may wait on one lane.
    :param max_queued_bytes: how long all of them together may be.
    :param send: sends events to the client.
    :param start: runs a turn on a lane; it may end before this returns.
    :param ended: called with every turn that ended; it calls :meth:`release`.
    :ivar running: turns in progress.
    :ivar is_paused: the client reads too slowly, so no turn starts.
    :ivar is_ending: nothing starts any more.
    """

    def __init__(
        self,
        max_queued_turns: int,
        max_queued_bytes: int,
        send: Send,
        start: Callable[[Lane, TurnRequest, float], None],
        ended: Callable[[Lane, Turn], None],
    ) -> None:
        self.running = 0
        self.is_paused = False
        self.is_ending = False
        self._max_queued_turns = max_queued_turns
        self._max_queued_bytes = max_queued_bytes
        self._send = send
        self._start = start
        self._ended = ended
        self._lanes: dict[str | None, Lane] = {}
        self._waiting: list[Lane] = []
        self._queued_bytes = 0
        self._starting = False

    def __len__(self) -> int:
        return len(self._lanes)

    @property
    def queued(self) -> int:
        """Turns that wait for their lane."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def turns(self) -> list[Occupant]:
        """The turns in progress."""
        return [lane.running for lane in self._lanes.values() if lane.running is not None]

    def turn_on(self, name: str | None) -> Occupant | None:
        """The turn in progress on one lane."""
        lane = self._lanes.get(name)
        return lane.running if lane is not None else None

    # --- queued turns ----------------------------------------------------------------

    def add(self, request: TurnRequest, now: float) -> None:
        """Run a turn, at once or after those before it on its lane.

        :param now: unix seconds.
        :raises ApiError: when too many lanes are named, or too many turns wait.
        """
        lane = self._lanes.get(request.stream_id) or self._new_lane(request.stream_id)
        if (
            len(lane.queue) >= self._max_queued_turns
            or self._queued_bytes + request.size > self._max_queued_bytes
        ):
            raise ApiError(
                429,
                "rate_limit_error",
                f"{self.queued} turns wait on this connection already; no more are accepted.",
                "too_many_queued_turns",
            )
        lane.queue.append((request, now))
        self._queued_bytes += request.size
        if lane.state is LaneState.IDLE:
            lane.state = LaneState.WAITING
            self._waiting.append(lane)
            self._start_waiting()

    def release(self, lane: Lane) -> None:
        """The turn on ``lane`` ended: the next one of all lanes may start."""
        self.running -= 1
        lane.state = LaneState.IDLE
        if self.is_ending:
            self._reject_queued(lane)
        elif lane.queue:
            lane.state = LaneState.WAITING
            self._waiting.append(lane)
        self._start_waiting()

    def pause(self) -> None:
        """The client reads too slowly: stop reading its upstreams."""
        self.is_paused = True
        for turn in self.turns():
            turn.pause()

    def resume(self) -> None:
        """The client caught up: read on; that may fill its write buffer again."""
        self.is_paused = False
        for turn in self.turns():
            turn.resume()
        self._start_waiting()

    def end(self) -> None:
        """Start nothing more: refuse queued turns, on busy lanes after the running turn."""
        self.is_ending = True
        waiting, self._waiting = self._waiting, []
        for lane in waiting:
            lane.state = LaneState.IDLE
            self._reject_queued(lane)

    def forget(self) -> None:
        """The client is gone: drop queued turns without an answer."""
        for lane in self._lanes.values():
            lane.queue.clear()
        self.end()

    def _new_lane(self, name: str | None) -> Lane:
        named = len(self._lanes) - (None in self._lanes)
        if name is not None and named >= MAX_NAMED_LANES:
            raise ApiError.invalid_request(
                f"This connection named {MAX_NAMED_LANES} lanes already; reuse one.",
                "stream_id",
                "websocket_stream_limit_reached",
            )
        lane = self._lanes[name] = Lane(name, self._send, self._ended)
        return lane

    def _start_waiting(self) -> None:
        """Start the next turn of every lane that waits, as far as the limit allows.

        A turn may end before its start returns; the loop here then takes the next.
        """
        if self._starting:
            return
        self._starting = True
        while self._waiting and self.running < MAX_RUNNING and not self.is_paused:
            lane = self._waiting.pop(0)
            lane.state = LaneState.RUNNING
            self.running += 1
            request, accepted_at = lane.queue.popleft()
            self._queued_bytes -= request.size
            try:
                self._start(lane, request, accepted_at)
            except Exception:  # one turn is lost, but not its lane and all the others
                _log.failure("a turn could not be made")
                if lane.running is None:
                    lane.refuse(ApiError.gateway_failed())
                    self.release(lane)
        self._starting = False

    def _reject_queued(self, lane: Lane) -> None:
        """Refuse the queued turns of ``lane``: the client can send them over another connection."""
        while lane.queue:
            request, _ = lane.queue.popleft()
            self._queued_bytes -= request.size
            lane.refuse(connection_ends())


def connection_ends() -> ApiError:
    """The error by which clients send their turn over another connection."""
    return ApiError.connection_limit_reached(
        "This connection has reached its end; open a new one and send the full input."
    )
