"""The session of one WebSocket connection: its messages, its turns and what it may continue.

A session does not depend on frames or sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import msgspec
from twisted.internet.defer import Deferred

from gateway.config import LimitSettings, SessionSettings
from gateway.conversations.store import Transcript
from gateway.protocol.controls import Control, ControlMessage
from gateway.protocol.error_classification import is_clients_fault
from gateway.protocol.errors import ApiError, error_event
from gateway.protocol.events import with_stream_id
from gateway.protocol.request import (
    Members,
    TurnRequest,
    json_text,
    member,
    read_create,
    read_members,
    read_stream_id,
    read_type,
)
from gateway.protocol.synthetic_events import (
    NOT_ACTIVE,
    NOT_SUPPORTED,
    inject_failed,
    interrupt_accepted,
    interrupt_failed,
    steer_failed,
)
from gateway.protocol.turn_state import TURN_STATE
from gateway.routing.affinity import affinity_keys, connection_key
from gateway.server.history import ConnectionHistory
from gateway.server.lanes import Lane, Lanes, connection_ends
from gateway.server.rollover import Rollover
from gateway.turn.context import MetadataFields, Resolution, TurnContext, TurnServices
from gateway.turn.recording import recorded_turn
from gateway.turn.successor_wait import Following, SuccessorWait
from gateway.turn.turn import Turn

#: WebSocket close codes (RFC 6455 and its registry).  SDKs that reconnect by themselves do so after
#: 1001 and 1012, not after 1000.
_CLOSE_NORMAL = 1000
_CLOSE_GOING_AWAY = 1001
_CLOSE_POLICY = 1008
_CLOSE_RESTART = 1012

#: Bound on answers to messages without a turn, while the client reads nothing.
_MAX_UNREAD_ANSWERS = 100

#: How much of a response's id and of refused input is echoed, in characters.
_MAX_ECHO = 4096


class Channel(Protocol):
    """The connection a session talks through."""

    def send(self, payloads: Sequence[bytes]) -> None:
        """Send each payload as one text message."""

    def close(self, code: int, reason: str) -> None:
        """Close the connection after what was sent."""


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The client at the other end of a connection.

    :ivar tenant: name of the authenticated key.
    :ivar connection: the connection's own id.
    :ivar headers: the handshake's headers that are forwarded; names in lower case.
    :ivar metadata: what it gets in ``response.metadata`` events.
    """

    tenant: str
    connection: str
    headers: Mapping[str, str]
    metadata: MetadataFields = MetadataFields.NONE


class ResponsesSession:
    """One connection's state.

    :ivar moved: whether the gateway closed it between turns, so that its client goes elsewhere.
    """

    def __init__(
        self,
        services: TurnServices,
        settings: SessionSettings,
        limits: LimitSettings,
        channel: Channel,
        client: ClientIdentity,
    ) -> None:
        self._services = services
        self._settings = settings
        self._channel = channel
        self.client = client
        self._opened_at = services.clock.seconds()
        self._lanes = Lanes(
            limits.max_queued_turns,
            2 * settings.max_message_bytes,
            channel.send,
            self._start_turn,
            self._turn_ended,
        )
        self._history = ConnectionHistory(services, client.tenant, settings.chaining == "always")
        self._close_code = _CLOSE_GOING_AWAY
        self._unread_answers = 0
        self._closes_when_idle = False
        self.moved = False
        self._was_cut = False
        self._takes_last_turn = False
        self._rollover = Rollover(services.clock, self._is_idle, self._roll_over)

    # --- the connection's side -------------------------------------------------------

    @property
    def turns_running(self) -> int:
        """Turns in progress."""
        return self._lanes.running

    @property
    def lanes(self) -> int:
        """Lanes that were named so far, the default one among them once it was used."""
        return len(self._lanes)

    @property
    def turns_queued(self) -> int:
        """Turns that wait for their lane."""
        return self._lanes.queued

    def message(self, payload: bytes) -> None:
        """Handle a text message; an invalid one is answered with an error."""
        stream_id: str | None = None
        try:
            members = read_members(json_text(payload))
            stream_id = read_stream_id(members)
            kind = read_type(members)
            handle = _HANDLERS.get(kind)
            if handle is None:
                raise ApiError.invalid_request(
                    f"Unknown message type '{kind[:100]}'; this gateway understands"
                    f" {', '.join(sorted(_HANDLERS))}.",
                    "type",
                )
            handle(self, members, payload)
        except ApiError as error:
            self.refuse(error, stream_id)

    def refuse(self, error: ApiError, stream_id: str | None = None) -> None:
        """Answer a message that started no turn."""
        self._answer(error_event(error), stream_id)

    def pause(self) -> None:
        """The client reads too slowly: stop reading its upstreams."""
        self._lanes.pause()

    def resume(self) -> None:
        """The client caught up."""
        self._unread_answers = 0
        self._lanes.resume()

    def closed(self) -> None:
        """The connection is gone: cancel running turns, drop queued ones."""
        self._rollover.stop()
        self._lanes.forget()
        for turn in self._lanes.turns():
            turn.cancel()
        self._history.close()
        key = connection_key(self.client.tenant, self.client.connection)
        self._services.pool.bindings.release(key)

    def close_after_turns(self) -> None:
        """The client closed its sending side: close when all its turns have ended."""
        self._closes_when_idle = True
        self._close_if_idle()

    def grow_old(self) -> None:
        """The connection is open: towards its greatest age it closes in a quiet moment."""
        self._rollover.at_age(self._opened_at, self._settings.max_age_minutes * 60)

    def roll_over(self, patience_seconds: float) -> None:
        """The gateway is emptied: close in the next quiet moment.

        :param patience_seconds: how long turns may still begin, so that the client of a tool call
            can bring its output.
        """
        if not self._lanes.is_ending:
            self._close_code = _CLOSE_RESTART
            self._rollover.plan(0.0, patience_seconds)

    def end_with_turn(self) -> None:
        """The gateway is emptied, and there is no time for a quiet moment: close with a turn's end.

        A client sees the close together with the answer then, before it sends its next request.
        """
        self._takes_last_turn = self._is_idle() and not self._rollover.is_quiet
        if not self._takes_last_turn:
            self.drain()

    def stay(self) -> None:
        """The gateway is not emptied any more: stay open, unless the end has begun."""
        if not self._lanes.is_ending:
            self._takes_last_turn = False
            self._close_code = _CLOSE_GOING_AWAY
            self.grow_old()

    def drain(self) -> None:
        """Finish running turns, start no others."""
        self._start_no_more(_CLOSE_RESTART)
        self._close_between_turns()

    def abandon(self) -> None:
        """End the running turns, because the time for shutdown is over."""
        self._start_no_more(_CLOSE_RESTART)
        error = ApiError.gateway_restarts()
        for turn in self._lanes.turns():
            self._was_cut = True
            turn.abandon(error)
        self._close_between_turns()

    # --- messages --------------------------------------------------------------------

    def _create(self, members: Members, payload: bytes) -> None:
        if self._lanes.is_ending or self._too_old():
            self._turn_away(read_stream_id(members))
            return
        request = read_create(members, len(payload))
        self._lanes.add(request, self._services.clock.seconds())
        if self._takes_last_turn:
            self.drain()

    def _interrupt(self, members: Members, payload: bytes) -> None:
        response_id = member(members, "response_id", str)
        if not response_id:
            self._cancel_on_lane(members, None)
            return
        turn = self._running(response_id)
        if turn is not None:
            turn.interrupt(interrupt_accepted, ControlMessage(Control.INTERRUPT, members, payload))
        else:
            self._answer(interrupt_failed(response_id[:_MAX_ECHO]))

    def _cancel(self, members: Members, payload: bytes) -> None:
        """``response.cancel``: end the lane's turn, unless another response is named."""
        self._cancel_on_lane(members, ControlMessage(Control.CANCEL, members, payload))

    def _cancel_on_lane(self, members: Members, message: ControlMessage | None) -> None:
        running = self._lanes.turn_on(read_stream_id(members))
        named = member(members, "response_id", str)
        if running is not None and (not named or named == running.response_id):
            running.interrupt(None, message)

    def _steer(self, members: Members, payload: bytes) -> None:
        self._give_input(ControlMessage(Control.STEER, members, payload), steer_failed)

    def _inject(self, members: Members, payload: bytes) -> None:
        self._give_input(ControlMessage(Control.INJECT, members, payload), inject_failed)

    def _give_input(
        self, message: ControlMessage, failed: Callable[[str | None, bytes, str], bytes]
    ) -> None:
        """Steer a response, or inject input: by the response it names, on whichever lane."""
        named = member(message.members, message.control.id_member, str)
        turn = self._running(named)
        if turn is not None:
            code = turn.give_input(message)
        elif any(message.control.value in each for each in self._controls_of_accounts()):
            code = NOT_ACTIVE
        else:
            code = NOT_SUPPORTED[message.control.value]
        if code is not None:
            small = len(message.input) <= _MAX_ECHO or not self._lanes.is_paused
            given = message.input if small else b""
            event = failed(named and named[:_MAX_ECHO], given, code)
            self._answer(
                event, read_stream_id(message.members) if turn is None else turn.request.stream_id
            )

    def _running(self, response_id: str | None) -> Turn | None:
        """The turn whose response has this id."""
        if not response_id:
            return None
        turns = (each for each in self._lanes.turns() if isinstance(each, Turn))
        return next((each for each in turns if each.response_id == response_id), None)

    def _controls_of_accounts(self) -> Iterator[Sequence[str]]:
        return (each.settings.websocket.controls for each in self._services.pool.accounts)

    def _ignore(self, members: Members, payload: bytes) -> None:
        """``response.processed`` asks for nothing."""

    def _answer(self, event: bytes, stream_id: str | None = None) -> None:
        """Answer a message that runs no turn.

        A client that keeps sending without reading is disconnected: the answers would fill the
        memory.
        """
        if stream_id is not None:
            event = with_stream_id(event, msgspec.json.encode(stream_id))
        if self._lanes.is_paused:
            self._unread_answers += 1
            if self._unread_answers > _MAX_UNREAD_ANSWERS:
                self._channel.close(_CLOSE_POLICY, "too many answers were not read")
                return
        self._channel.send([event])

    # --- turns -----------------------------------------------------------------------

    def _start_turn(
        self,
        lane: Lane,
        request: TurnRequest,
        accepted_at: float,
        follows: Following | None = None,
    ) -> None:
        client, metadata = self.client, request.client_metadata
        context = TurnContext(
            tenant=client.tenant,
            connection=client.connection,
            client_headers=client.headers,
            affinity=affinity_keys(
                client.tenant,
                client.headers,
                metadata,
                request.prompt_cache_key,
                client.connection,
            ),
            accepted_at=accepted_at,
            turn_state=metadata.get(TURN_STATE),
            metadata=client.metadata,
        )
        resolve = partial(self._resolve, lane)
        make = recorded_turn if self._services.request_log.rules else Turn
        lane.running = turn = make(self._services, context, request, lane, resolve, follows=follows)
        if self._lanes.is_paused:  # a response that follows another begins when it will
            turn.pause()
        turn.start()

    def _resolve(self, lane: Lane, request: TurnRequest) -> Resolution | Deferred[Resolution]:
        found = self._history.resolve(request, latest=lane.latest)
        if lane.steered is None or lane.steered[0] != request.previous_response_id:
            return found
        steered = lane.steered[1]
        if isinstance(found, Deferred):
            return found.addCallback(lambda later: later._replace(steered=steered))
        return found._replace(steered=steered)

    def _turn_ended(self, lane: Lane, turn: Turn) -> None:
        if turn.recorded is not None:
            lane.latest = turn.recorded.record.id
            self._history.remember(turn.recorded.record, lane.name)
        elif turn.record.response_id is not None:
            self._history.cannot_continue(turn.record.response_id)
        strict = self._settings.eviction == "strict"
        if strict and turn.error is not None and is_clients_fault(turn.error):
            self._history.evict(turn.request.previous_response_id, lane.name)
        continued = (
            lane.steered is not None and lane.steered[0] == turn.request.previous_response_id
        )
        if continued and turn.recorded is not None:
            lane.steered = None
        if turn.successor_wait is not None:
            self._await_successor(lane, turn, turn.successor_wait)
        else:
            self._leave(lane, turn)

    def _await_successor(self, lane: Lane, turn: Turn, wait: SuccessorWait) -> None:
        """The lane stays busy until the response that follows has ended, or none will follow."""

        def begin(request: TurnRequest, follows: Following | None) -> None:
            self._start_turn(lane, request, self._services.clock.seconds(), follows)

        def none_follows() -> None:
            if wait.pending and wait.parent_id is not None:
                lane.steered = wait.parent_id, wait.pending
            lane.running = None
            self._leave(lane, turn)

        lane.running = wait
        if self._lanes.is_paused:
            wait.pause()
        wait.start(begin, none_follows)

    def _leave(self, lane: Lane, turn: Turn) -> None:
        """The lane is free."""
        self._lanes.release(lane)
        if self._lanes.is_ending:
            self._close_between_turns()
        else:
            self._rollover.turn_ended(turn.recorded is not None and _has_calls(turn.recorded))
        self._close_if_idle()

    def _is_idle(self) -> bool:
        return not self._lanes.running and not self._lanes.queued

    def _close_if_idle(self) -> None:
        if self._closes_when_idle and self._is_idle():
            self._channel.close(_CLOSE_NORMAL, "all turns have ended")

    def _close_between_turns(self) -> None:
        if self._lanes.running == 0:
            self.moved = not self._was_cut
            self._channel.close(self._close_code, "the connection ends between turns")

    def _start_no_more(self, close_code: int) -> None:
        """Start no more turns; the connection closes when the running ones have ended."""
        self._close_code = close_code
        self._rollover.stop()
        self._lanes.end()

    def _roll_over(self) -> None:
        """Close: the moment is right."""
        self._start_no_more(self._close_code)
        self._close_between_turns()

    # --- age -------------------------------------------------------------------------

    def _too_old(self) -> bool:
        age = self._services.clock.seconds() - self._opened_at
        return age >= self._settings.max_age_minutes * 60

    def _turn_away(self, stream_id: str | None) -> None:
        """Refuse a turn so that the client sends it over a new connection.

        The first close code stays.
        """
        self._start_no_more(self._close_code)
        self.refuse(connection_ends(), stream_id)
        self._close_between_turns()


def _has_calls(transcript: Transcript) -> bool:
    """Whether a response made calls that its client answers."""
    return any(item.call_id and not item.is_call_output for item in transcript.record.output)


_HANDLERS: dict[str, Callable[[ResponsesSession, Members, bytes], None]] = {
    "response.create": ResponsesSession._create,
    "response.interrupt": ResponsesSession._interrupt,
    "response.cancel": ResponsesSession._cancel,
    "response.steer": ResponsesSession._steer,
    "response.inject": ResponsesSession._inject,
    "response.processed": ResponsesSession._ignore,
}
