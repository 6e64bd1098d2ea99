"""A lane: turns of one ``stream_id`` run one after the other (protocol.md §6.1)."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from gateway.protocol.errors import ApiError, error_event
from gateway.protocol.events import with_stream_id
from gateway.protocol.request import TurnRequest
from gateway.turn.turn import Turn

#: Of no known type, so that it needs no place in the response's ``sequence_number``s: a
#: repeated ``response.in_progress`` would (§4.7, §10.47).
KEEP_ALIVE = b'{"type":"keepalive"}'


class LaneState(enum.Enum):
    """What a lane does; its :class:`~gateway.server.lanes.Lanes` says so."""

    IDLE = "nothing"
    WAITING = "its next turn waits for room"
    RUNNING = "a turn"


class Lane:
    """One lane of a session; the :class:`~gateway.turn.context.EventSink` of its turns.

    :param name: the ``stream_id``, or None for the default lane.
    :param send: sends events to the client.
    :param ended: hears of every turn that ended.
    :ivar queue: its turns that have not started, and when each was accepted.
    :ivar running: the turn in progress, or None.
    :ivar latest: id of the last response that can be continued, or None.
    """

    def __init__(
        self,
        name: str | None,
        send: Callable[[Sequence[bytes]], None],
        ended: Callable[[Lane, Turn], None],
    ) -> None:
        self.name = name
        self.state = LaneState.IDLE
        self.queue: deque[tuple[TurnRequest, float]] = deque()
        self.running: Turn | None = None
        self.latest: str | None = None
        self._send = send
        self._ended = ended
        self._stream_id = None if name is None else msgspec.json.encode(name)

    def relay(self, payloads: Sequence[bytes]) -> None:
        """See ``Door``; a named lane's events carry its name (§10.46)."""
        if self._stream_id is not None:
            stream_id = self._stream_id
            payloads = [with_stream_id(payload, stream_id) for payload in payloads]
        self._send(payloads)

    def refuse(self, error: ApiError) -> None:
        """See ``Door``."""
        self.relay([error_event(error)])

    def keep_alive(self) -> None:
        """See ``Door``; clients ignore unknown types, but not silence (§4.7)."""
        self.relay([KEEP_ALIVE])

    def turn_ended(self) -> None:
        """See ``Door``."""
        turn, self.running = self.running, None
        if turn is not None:
            self._ended(self, turn)
