"""The session of one WebSocket: its messages, its memory, its age (protocol.md §3 and §6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from simulator.engine import AccountEngine
from simulator.events import Event
from simulator.faults import Fault, Refuse, Steps
from simulator.items import Item, input_items, new_id
from simulator.lanes import Lane, Lanes
from simulator.request_log import LoggedRequest, SocketRecord
from simulator.simulator import Simulator
from simulator.validation import Refusal, bad_request, invalid_type, missing_parameter
from simulator.websocket_dialects import (
    check_message,
    error_frame,
    no_lanes,
    refusal_frame,
    speak_on_socket,
)
from simulator.websocket_messages import (
    CreateMessage,
    create_message,
    lane_of,
    parsed_message,
    required_outputs,
    steer_input,
)
from simulator.websocket_stream import SocketStream, SocketWire, send_event
from simulator.websocket_turn import SocketTurn

_log = Logger()

#: So many steers may wait for one response.
_MAX_STEERS = 8
_PREVIOUS = "previous_response_id"


@dataclass(frozen=True)
class SocketUpgrade:
    """An accepted upgrade.

    :ivar entry: its entry in the log.
    """

    simulator: Simulator
    engine: AccountEngine
    entry: LoggedRequest
    record: SocketRecord


class SocketSession:
    """Answers the messages of one socket of an account.

    It keeps what the service keeps: the latest response of each lane.
    """

    def __init__(self, upgrade: SocketUpgrade, wire: SocketWire) -> None:
        self.record = upgrade.record
        self._upgrade = upgrade
        self._simulator = upgrade.simulator
        self._engine = upgrade.engine
        self._account = upgrade.engine.account
        self._options = self._account.websocket
        self._wire = wire
        self._lanes: Lanes[SocketTurn] = Lanes()
        self._streams: set[SocketStream] = set()
        self._is_pumping = False
        self._is_paused = False
        self._common_id: str | None = None
        self._is_to_close = self._is_over = False
        self._age: IDelayedCall | None = None
        if self._options.close_at_age is not None:
            self._age = self._simulator.clock.callLater(self._age_seconds, self._grown_old)

    # --- messages --------------------------------------------------------------------

    def message(self, payload: bytes) -> None:
        """A text message arrived."""
        self.record.messages += 1
        self.record.received_bytes += len(payload)
        try:
            message = parsed_message(payload)
            kind = message["type"]
            if kind == "response.create":
                self._create(message, len(payload))
                return
            self.record.controls.append(message)
            if kind == "response.interrupt":
                self._interrupt(message)
            elif kind == "response.cancel":
                self._cancel(message)
            elif kind == "response.steer":
                self._steer(message)
        except Refusal as refusal:
            self.refuse(refusal)

    def refuse(self, refusal: Refusal, lane: str | None = None) -> None:
        """Answer a message, or a request that gets no place on a lane, with an error."""
        frame = refusal_frame(self._account, refusal)
        send_event(self._wire, frame if lane is None else {**frame, "stream_id": lane})

    def _create(self, message: dict[str, Any], size: int) -> None:
        self.record.requests += 1
        entry = LoggedRequest(
            self._account.name,
            dict(self.record.headers),
            message,
            size,
            method="GET",
            path=self._upgrade.entry.path,
            endpoint="create",
            at=self._simulator.clock.seconds(),
            socket=self.record,
        )
        self._simulator.requests.add(entry)
        named = message.get("stream_id")
        try:
            create = create_message(message)
            self.record.prewarms += create.prewarms
            self._check_age()
            if create.lane is not None and not self._options.has_lanes:
                named = None
                raise no_lanes(self._account)
            lane = self._lanes.lane(create.lane)
            if not self._options.queues and self._lanes.is_busy(lane):
                text = "Another response is in progress on this connection."
                raise bad_request(text, None, "response_already_in_flight")
            fault = self._simulator.faults.take(self._account.name, "create")
            self._lanes.add(lane, self._turn(lane, create, entry, fault))
        except Refusal as refusal:
            entry.status, entry.error, entry.outcome = refusal.status, refusal.error, "refused"
            is_name = isinstance(named, str) and refusal.error["code"] != "invalid_stream_id"
            self.refuse(refusal, named if is_name else None)
            return
        self._pump()

    def _check_age(self) -> None:
        age = self._simulator.clock.seconds() - self.record.opened_at
        if age >= self._age_seconds:
            text = (
                f"This connection has reached its limit of {self._age_seconds / 60:g} minutes."
                " Create a new WebSocket connection to continue."
            )
            raise bad_request(text, None, "websocket_connection_limit_reached")

    @property
    def _age_seconds(self) -> float:
        assert self._options.age_seconds is not None
        return self._options.age_seconds

    def _grown_old(self) -> None:
        self._age = None
        self._is_to_close = True
        self._pump()

    # --- turns -----------------------------------------------------------------------

    def _turn(
        self, lane: Lane[SocketTurn], create: CreateMessage, entry: LoggedRequest, fault: Fault
    ) -> SocketTurn:
        return SocketTurn(lane, create, entry, fault, self._wire, self._turn_over)

    def _pump(self) -> None:
        """Begin all turns that may run. A turn may end at once, so this never calls itself."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while not self._is_over and (turn := self._lanes.take()) is not None:
                self._begin(turn)
        finally:
            self._is_pumping = False
        if self._is_to_close and self._lanes.is_quiet:
            self._wire.close(self._options.close_at_age, "the connection is too old")

    def _begin(self, turn: SocketTurn) -> None:
        fault, create = turn.fault, turn.create
        if isinstance(fault, Refuse):
            frame = error_frame(self._account, fault.status, fault.body, fault.headers)
            turn.refuse(fault.status, frame)
            return
        request = create.request
        try:
            check_message(self._account, request)
            steered = turn.lane.take_steered(create.previous_response_id)
            if steered:
                request = {**request, "input": [*steered, *input_items(request.get("input"))]}
            answer = self._engine.answer(
                request,
                turn.entry.size,
                remembered=self._lanes.find,
                prewarms=create.prewarms,
                response_id=self._id_for(request),
            )
        except Refusal as refusal:
            named = create.previous_response_id
            turn.refuse(refusal.status, refusal_frame(self._account, refusal, named))
            return
        except Exception:
            _log.failure("The simulated model failed")
            error = {"type": "server_error", "code": "server_error", "message": "It failed."}
            turn.refuse(500, error_frame(self._account, 500, {"error": error}))
            return
        self.record.chained += answer.record.parent is not None

        def changed(steps: Steps) -> Steps:
            return fault.rewrite(speak_on_socket(self._account, steps, fault))

        clock, delay = self._simulator.clock, self._simulator.event_delay
        stream = turn.begin(answer, changed, clock, delay, self._streams.discard)
        self._start(stream)

    def _start(self, stream: SocketStream) -> None:
        self._streams.add(stream)
        if self._is_paused:
            stream.pauseProducing()
        stream.start()

    def play(self, steps: Steps) -> None:
        """Write steps that belong to no turn."""
        stream = SocketStream(
            self._wire,
            steps,
            self._simulator.clock,
            0.0,
            lambda _outcome: self._streams.discard(stream),
        )
        self._start(stream)

    def _id_for(self, request: dict[str, Any]) -> str | None:
        """The id of a response, if the service does not make a new one each time."""
        if self._account.dialect != "xai" or request.get("store") is False:
            return None
        if self._common_id is None:
            self._common_id = new_id("resp")
        return self._common_id

    def _turn_over(self, turn: SocketTurn) -> None:
        lane, kept = turn.lane, turn.kept
        if kept is not None and (self._options.continues_unstored or kept.response["store"]):
            lane.latest = kept
        elif turn.has_failed:
            lane.evict(turn.create.previous_response_id)
        self.record.completed += turn.entry.outcome == "completed"
        self._lanes.release(lane)
        if turn.steers and not self._is_over:
            self._succeed(turn)
        self._pump()

    # --- interrupt and cancel --------------------------------------------------------

    def _interrupt(self, message: dict[str, Any]) -> None:
        response_id = message.get("response_id")
        if response_id is None:
            raise missing_parameter("response_id")
        if not isinstance(response_id, str):
            raise invalid_type("response_id", "a string", response_id)
        if not self._options.interrupts:
            return
        turn = self._running(response_id)
        if turn is not None:
            turn.interrupt()
            return
        error = {
            "type": "invalid_request_error",
            "code": "response_not_active",
            "message": f"Response '{response_id}' is not active.",
        }
        failed = {"type": "response.interrupt.failed", "response_id": response_id, "error": error}
        send_event(self._wire, failed)

    def _cancel(self, message: dict[str, Any]) -> None:
        if not self._options.cancels:
            return
        lane = lane_of(message)
        for turn in self._lanes.running():
            if turn.lane.name == lane and turn.active_id is not None:
                turn.interrupt(acknowledges=False)

    def _running(self, response_id: object) -> SocketTurn | None:
        running = (turn for turn in self._lanes.running() if turn.active_id == response_id)
        return next(running, None)

    # --- steer -----------------------------------------------------------------------

    def _steer(self, message: dict[str, Any]) -> None:
        named = message.get(_PREVIOUS)
        if not isinstance(named, str):
            raise missing_parameter(_PREVIOUS)
        turn = self._running(named)
        try:
            items = steer_input(message)
        except Refusal as refusal:
            self._steer_failed(message, "invalid_input", str(refusal), turn)
            return
        if not self._options.steers:
            self._steer_failed(message, "steering_not_supported", "Not supported here.", turn)
        elif turn is None and self._lanes.find(named) is not None:
            self._steer_failed(message, "response_already_completed", "It is completed.")
        elif turn is None:
            self._steer_failed(message, "response_not_found", "There is no such response here.")
        elif turn.create.request.get("context_management"):
            self._steer_failed(message, "steering_not_supported", "It is compacted.", turn)
        elif len(turn.steers) >= _MAX_STEERS:
            self._steer_failed(message, "too_many_pending_steers", "Too many wait.", turn)
        else:
            turn.steer(new_id("steer"), items)

    def _steer_failed(
        self,
        steer: dict[str, Any],
        code: str,
        text: str,
        turn: SocketTurn | None = None,
    ) -> None:
        """Give back what cannot steer; with the number and the lane of a turn, if it has one."""
        failed: Event = {
            "type": "response.steer.failed",
            "error": {"type": "invalid_request_error", "code": code, "message": text},
            "steer": {key: value for key, value in steer.items() if key != "type"},
        }
        if turn is not None:
            turn.send(failed)
        else:
            send_event(self._wire, {**failed, "sequence_number": 0})

    def _succeed(self, turn: SocketTurn) -> None:
        """Begin the successor of a steered response, or let it wait for outputs of tools."""
        assert turn.answer is not None
        parent = turn.answer.response_id
        items: list[Item] = [item for _id, given in turn.steers for item in given]
        if turn.kept is None:
            for steer_id, given in turn.steers:
                steer = {"id": steer_id, _PREVIOUS: parent, "input": given}
                self._steer_failed(steer, "successor_creation_failed", "It failed.", turn)
            return
        required = required_outputs(list(turn.kept.output))
        if required:
            turn.lane.steered = (parent, items)
            for steer_id, _items in turn.steers:
                pending = {
                    "type": "response.steer.pending",
                    "steer": {"id": steer_id, _PREVIOUS: parent},
                    "reason": "waiting_for_required_input",
                    "required_input": required,
                }
                turn.send(pending)
            return
        request = {**turn.create.request, _PREVIOUS: parent, "input": items}
        create = CreateMessage(turn.lane.name, request)
        # The service made this request itself: the log does not have it.
        entry = LoggedRequest(self._account.name, {}, request, endpoint="create")
        self._lanes.add_first(turn.lane, self._turn(turn.lane, create, entry, Fault()))

    # --- the client ------------------------------------------------------------------

    def pause(self) -> None:
        """The client reads too slowly."""
        self._is_paused = True
        for stream in list(self._streams):
            stream.pauseProducing()

    def resume(self) -> None:
        """The client has read."""
        self._is_paused = False
        for stream in list(self._streams):
            stream.resumeProducing()

    def closed(self) -> None:
        """The socket is gone: nothing goes on."""
        if self._age is not None:
            self._age.cancel()
            self._age = None
        self._is_to_close = False
        self._is_over = True
        for waiting in self._lanes.waiting():
            waiting.entry.outcome = "cancelled"
        self._lanes.clear()
        for stream in list(self._streams):
            stream.stopProducing()
