"""The session: what one client connection asked for, remembers and may continue.

A session reads messages and starts turns; it knows nothing of frames or sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
from twisted.logger import Logger

from ..accounts.affinity import AffinityKey, affinity_keys, connection_key
from ..config import LimitSettings, SessionSettings
from ..ledger.records import Record
from ..protocol.errors import ApiError, error_event
from ..protocol.events import with_stream_id
from ..protocol.made import interrupt_accepted, interrupt_failed, steer_failed
from ..protocol.refusals import is_clients_fault
from ..protocol.request import (
    Members,
    TurnRequest,
    client_metadata,
    member,
    read_create,
    read_members,
    read_stream_id,
    read_type,
)
from ..protocol.turn_state import TURN_STATE
from ..turn.environment import Told, TurnContext, TurnEnvironment
from ..turn.turn import Turn
from .lane import Lane
from .lineage import Lineage

_log = Logger(namespace="gateway.session")

#: Turns of one connection that run at the same time, and lanes it may name (§6.1).
MAX_RUNNING = 16
MAX_NAMED_LANES = 32

#: WebSocket close codes (RFC 6455 §7.4.1, RFC 6455 registry).
_CLOSE_NORMAL = 1000
_CLOSE_GOING_AWAY = 1001
_CLOSE_POLICY = 1008
_CLOSE_RESTART = 1012

#: Answers beside its turns that a client which reads nothing may pile up.
_MAX_UNREAD_ANSWERS = 100

#: How much of a response's id is echoed; no real one is longer.
_MAX_ECHO = 4096


class Channel(Protocol):
    """The connection a session talks through."""

    def send(self, payloads: Sequence[bytes]) -> None:
        """Send each payload as one text message."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection after what was sent."""


class Session:
    """One connection's state.

    :param tenant: name of the authenticated key.
    :param connection: the connection's own id.
    :param client_headers: those of the handshake that matter to upstreams, in lower case.
    :param told: what the client is told beside its answers.
    """

    def __init__(
        self,
        environment: TurnEnvironment,
        settings: SessionSettings,
        limits: LimitSettings,
        channel: Channel,
        tenant: str,
        connection: str,
        client_headers: Mapping[str, str],
        told: Told = Told.NOTHING,
    ) -> None:
        self._environment = environment
        self._settings = settings
        self._limits = limits
        self._channel = channel
        self.tenant = tenant
        self.connection = connection
        self._client_headers = client_headers
        self._told = told
        self._opened_at = environment.clock.seconds()
        self._lanes: dict[str | None, Lane] = {}
        self._running = 0
        self._waiting: list[Lane] = []
        self._lineage = Lineage(
            environment.ledger,
            tenant,
            settings.chaining == "always",
            environment.limits,
        )
        self._starting = False
        self._closing = False
        self._close_code = _CLOSE_GOING_AWAY
        self._paused = False
        self._unread_answers = 0
        self._queued_bytes = 0

    # --- the connection's side -------------------------------------------------------

    @property
    def turns_running(self) -> int:
        """Turns in progress."""
        return self._running

    @property
    def lanes(self) -> int:
        """Lanes that were named so far, the default one among them once it was used."""
        return len(self._lanes)

    @property
    def turns_queued(self) -> int:
        """Turns that wait for their lane."""
        return sum(len(lane.queue) for lane in self._lanes.values())

    def message(self, payload: bytes) -> None:
        """A text message arrived; whatever is wrong with it is answered (§10.36)."""
        stream_id: str | None = None
        try:
            members = read_members(payload)
            stream_id = read_stream_id(members)
            kind = read_type(members)
            handle = _HANDLERS.get(kind)
            if handle is None:
                raise ApiError.invalid_request(
                    f"Unknown message type '{kind[:100]}'; this gateway understands"
                    f" {', '.join(sorted(_HANDLERS))}.",
                    "type",
                )
            handle(self, members, len(payload))
        except ApiError as error:
            self.refuse(error, stream_id)

    def refuse(self, error: ApiError, stream_id: str | None = None) -> None:
        """Answer a message that started no turn."""
        event = error_event(error)
        if stream_id is not None:
            event = with_stream_id(event, msgspec.json.encode(stream_id))
        self._answer(event)

    def pause(self) -> None:
        """The client does not keep up: stop its upstreams, nobody else's (law 12)."""
        self._paused = True
        for turn in self._turns():
            turn.pause()

    def resume(self) -> None:
        """The client caught up."""
        self._paused = False
        self._unread_answers = 0
        for turn in self._turns():
            turn.resume()
        self._start_waiting()

    def closed(self) -> None:
        """The connection is gone: cancel what runs, forget what waits (§10.15)."""
        self._closing = True
        self._waiting.clear()
        for lane in self._lanes.values():
            lane.queue.clear()
        for turn in self._turns():
            turn.cancel()
        self._lineage.close()
        self._environment.pool.bindings.release(connection_key(self.tenant, self.connection))

    def drain(self) -> None:
        """The gateway stops: finish what runs, start nothing more."""
        self._start_no_more(_CLOSE_GOING_AWAY)
        self._close_between_turns()

    def abandon(self) -> None:
        """The gateway can wait no longer."""
        self._start_no_more(_CLOSE_RESTART)
        error = ApiError.gateway_restarts()
        for turn in self._turns():
            turn.abandon(error)
        self._close_between_turns()

    # --- messages --------------------------------------------------------------------

    def _create(self, members: Members, size: int) -> None:
        if self._closing or self._too_old():
            self._turn_away(read_stream_id(members))
            return
        request = read_create(members, size, self._environment.seals.issuer_of)
        lane = self._lane(request.stream_id)
        self._queued_bytes += size
        if (
            len(lane.queue) >= self._limits.max_queued_turns
            or self._queued_bytes > 2 * self._settings.max_message_bytes
        ):
            self._queued_bytes -= size
            raise ApiError(
                429,
                "rate_limit_error",
                f"{self.turns_queued} turns wait on this connection already; no more are accepted.",
                "too_many_queued_turns",
            )
        lane.queue.append((request, self._environment.clock.seconds()))
        if lane.running is None and lane not in self._waiting:
            self._waiting.append(lane)
            self._start_waiting()

    def _interrupt(self, members: Members, size: int) -> None:
        response_id = member(members, "response_id", str)
        if not response_id:
            self._cancel(members, size)
            return
        turn = next((t for t in self._turns() if t.response_id == response_id), None)
        if turn is not None:
            turn.interrupt(interrupt_accepted)
        else:
            self._answer(interrupt_failed(response_id[:_MAX_ECHO]))

    def _cancel(self, members: Members, size: int) -> None:
        """``response.cancel``: end what runs, unless it names a response that does not."""
        lane = self._lanes.get(read_stream_id(members))
        running = lane.running if lane is not None else None
        named = member(members, "response_id", str)
        if running is not None and (not named or named == running.response_id):
            running.interrupt(None)

    def _steer(self, members: Members, size: int) -> None:
        named = member(members, "previous_response_id", str)
        self._answer(steer_failed(named and named[:_MAX_ECHO]))

    def _ignore(self, members: Members, size: int) -> None:
        """``response.processed`` asks for nothing (§10.32)."""

    def _answer(self, event: bytes) -> None:
        """Answer what runs no turn.

        A client that goes on asking and does not read the answers is let go: they would fill
        the memory.
        """
        if self._paused:
            self._unread_answers += 1
            if self._unread_answers > _MAX_UNREAD_ANSWERS:
                self._channel.close(_CLOSE_POLICY, "too many answers were not read")
                return
        self._channel.send([event])

    # --- lanes and turns -------------------------------------------------------------

    def _lane(self, name: str | None) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            named = len(self._lanes) - (None in self._lanes)
            if name is not None and named >= MAX_NAMED_LANES:
                raise ApiError.invalid_request(
                    f"This connection named {MAX_NAMED_LANES} lanes already; reuse one.",
                    "stream_id",
                    "websocket_stream_limit_reached",
                )
            lane = self._lanes[name] = Lane(name, self._channel.send, self._turn_ended)
        return lane

    def _start_waiting(self) -> None:
        """Start the next turn of every lane that waits, as far as the limit allows.

        A turn may end before ``start`` returns; the loop here then takes the next.
        """
        if self._starting:
            return
        self._starting = True
        while self._waiting and self._running < MAX_RUNNING and not self._paused:
            lane = self._waiting.pop(0)
            self._start(lane, *self._take_from(lane))
        self._starting = False

    def _take_from(self, lane: Lane) -> tuple[TurnRequest, float]:
        request, accepted_at = lane.queue.popleft()
        self._queued_bytes -= request.size
        return request, accepted_at

    def _start(self, lane: Lane, request: TurnRequest, accepted_at: float) -> None:
        refusal: ApiError | None = None
        parent: Record | None = None
        continuation: str | None = None
        try:
            parent, continuation = self._lineage.parent_of(request, lane.latest)
        except ApiError as error:
            refusal = error
        context = TurnContext(
            tenant=self.tenant,
            connection=self.connection,
            client_headers=self._client_headers,
            affinity=self._affinity(request),
            parent=parent,
            continuation=continuation,
            accepted_at=accepted_at,
            turn_state=client_metadata(request.members).get(TURN_STATE),
            told=self._told,
        )
        turn = lane.running = Turn(self._environment, context, request, lane)
        self._running += 1
        if refusal is not None:
            turn.abandon(refusal)
            return
        try:
            turn.start()
        except Exception:
            _log.failure("turn {turn} could not start", turn=turn.record.turn)
            turn.abandon(ApiError.gateway_failed())

    def _turn_ended(self, lane: Lane, turn: Turn) -> None:
        self._running -= 1
        if turn.recorded is not None:
            lane.latest = turn.recorded.id
            self._lineage.remember(turn.recorded, lane.name)
        elif turn.record.response_id is not None:
            self._lineage.cannot_continue(turn.record.response_id)
        if turn.error is not None and is_clients_fault(turn.error):
            self._lineage.evict(turn.request.previous_response_id, lane.name)
        self._next_on(lane)
        if self._closing:
            self._close_between_turns()
        else:
            self._start_waiting()

    def _close_between_turns(self) -> None:
        if self._running == 0:
            self._channel.close(self._close_code, "the connection ends between turns")

    def _next_on(self, lane: Lane) -> None:
        if self._closing:
            self._give_back(lane)
        elif lane.queue:
            self._waiting.append(lane)

    def _start_no_more(self, close_code: int) -> None:
        """The connection ends when the running turns have; lanes hear of it after theirs."""
        self._closing = True
        self._close_code = close_code
        waiting, self._waiting = self._waiting, []
        for lane in waiting:
            self._give_back(lane)

    def _give_back(self, lane: Lane) -> None:
        """What waits on ``lane`` will not start: let the client send it elsewhere (law 5)."""
        while lane.queue:
            self._take_from(lane)
            lane.refuse(_connection_ends())

    def _turns(self) -> list[Turn]:
        return [lane.running for lane in self._lanes.values() if lane.running is not None]

    def _affinity(self, request: TurnRequest) -> list[AffinityKey]:
        return affinity_keys(
            self.tenant,
            self._client_headers,
            client_metadata(request.members),
            request.prompt_cache_key,
            self.connection,
        )

    # --- age -------------------------------------------------------------------------

    def _too_old(self) -> bool:
        age = self._environment.clock.seconds() - self._opened_at
        return age >= self._settings.max_age_minutes * 60

    def _turn_away(self, stream_id: str | None) -> None:
        """Make the client come back on a new connection (§6.3).

        The code stays the one of whatever ends it first: SDKs reconnect by themselves after
        that of a stop, not after a normal one.
        """
        self._start_no_more(self._close_code if self._closing else _CLOSE_NORMAL)
        self.refuse(_connection_ends(), stream_id)
        self._close_between_turns()


_HANDLERS: dict[str, Callable[[Session, Members, int], None]] = {
    "response.create": Session._create,
    "response.interrupt": Session._interrupt,
    "response.cancel": Session._cancel,
    "response.steer": Session._steer,
    "response.processed": Session._ignore,
}


def _connection_ends() -> ApiError:
    return ApiError.connection_limit_reached(
        "This connection has reached its end; open a new one and send the full input."
    )
