"""One response on a WebSocket, from its place on a lane to its terminal event."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from twisted.internet.interfaces import IReactorTime

from simulator.engine import Answer, Record
from simulator.events import Event, has_number, usage_object, with_number
from simulator.faults import Fault, Steps
from simulator.items import Item, estimated_tokens
from simulator.lanes import Lane
from simulator.request_log import LoggedRequest, Outcome
from simulator.websocket_messages import CreateMessage, required_outputs
from simulator.websocket_stream import SocketStream, SocketWire, send_event

_OUTCOMES: dict[str, Outcome] = {
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
}
#: Incomplete responses with these reasons can be continued from their finished items.
_CONTINUABLE = ("interrupted", "steered")
#: After these a response can end because it was steered.
_BOUNDARIES = ("response.in_progress", "response.output_item.done")


class TurnState(enum.Enum):
    """Where a turn is; it goes from each state to the next, or from the first to the last."""

    WAITING = "waiting"
    RUNNING = "running"
    OVER = "over"


class SocketTurn:
    """One ``response.create``.

    :param entry: its entry in the log.
    :param fault: the fault to apply to its answer.
    :param over: called once when the lane is free for the next turn.
    :ivar kept: the response as it ended, if it can be continued.
    :ivar has_failed: whether it ended with an error.
    :ivar steers: the ids and items of what steers it.
    """

    def __init__(
        self,
        lane: Lane[SocketTurn],
        create: CreateMessage,
        entry: LoggedRequest,
        fault: Fault,
        wire: SocketWire,
        over: Callable[[SocketTurn], None],
    ) -> None:
        self.lane = lane
        self.create = create
        self.entry = entry
        self.fault = fault
        self.state = TurnState.WAITING
        self.answer: Answer | None = None
        self.kept: Record | None = None
        self.has_failed = False
        self.steers: list[tuple[str, list[Item]]] = []
        self.stream: SocketStream | None = None
        self._wire = wire
        self._over = over
        self._number = 0
        self._has_begun = False
        self._open: dict[int, Any] = {}
        self._finished: list[Item] = []

    @property
    def active_id(self) -> str | None:
        """The id of its response while the client may name it: from its beginning to its end."""
        known = self.state is TurnState.RUNNING and self._has_begun
        return self.answer.response_id if known and self.answer else None

    # --- running ---------------------------------------------------------------------

    def refuse(self, status: int, frame: Event) -> None:
        """Answer with an error event instead of a response."""
        self.entry.status = status
        self.entry.error = frame.get("error")
        self.send(frame)
        self.has_failed = True
        self._end("refused")

    def begin(
        self,
        answer: Answer,
        steps: Callable[[Steps], Steps],
        clock: IReactorTime,
        delay: float,
        gone: Callable[[SocketStream], None],
    ) -> SocketStream:
        """Prepare the stream of an accepted request.

        :param steps: adds what the service and a fault change.
        :param delay: seconds between two events.
        :param gone: called with the stream when it ends, which may be after the turn.
        """
        self.state = TurnState.RUNNING
        self.answer = answer
        self.entry.status = 200
        self.entry.response_id = answer.response_id
        self.entry.context = answer.context

        def ended(outcome: Outcome | None) -> None:
            if self.state is TurnState.RUNNING:
                self._end(outcome or "ended")
            gone(stream)

        stream = self.stream = SocketStream(
            self._wire,
            steps(self._until_steered(answer.events())),
            clock,
            delay,
            ended,
            write=self.send,
            inserted=self._note_inserted,
        )
        return stream

    def send(self, event: Event) -> None:
        """Send an event of this turn, with its number and lane."""
        if has_number(event):
            event = with_number(event, self._number)
            self._number += 1
        if self.lane.name is not None:
            event = {**event, "stream_id": self.lane.name}
        self.entry.events_sent += 1
        self._note(event)
        send_event(self._wire, event)
        if event.get("type") in _OUTCOMES and self.state is TurnState.RUNNING:
            self._end_with(event)

    def _note(self, event: Event) -> None:
        kind = event.get("type")
        if kind == "response.created":
            self._has_begun = True
        elif kind == "response.output_item.added":
            self._open[event["output_index"]] = event["item"].get("id")
        elif kind == "response.output_item.done":
            self._open.pop(event["output_index"], None)
            self._finished.append(event["item"])

    def _note_inserted(self, event: Event) -> None:
        self.entry.events_sent += 1
        self.has_failed = self.has_failed or event.get("type") == "error"

    def _end_with(self, event: Event) -> None:
        assert self.answer is not None
        kind, response = event["type"], event["response"]
        reason = (response.get("incomplete_details") or {}).get("reason")
        if kind == "response.completed":
            self.kept = self.answer.record
        elif kind == "response.incomplete" and reason in _CONTINUABLE:
            self.kept = replace(self.answer.record, output=list(self._finished), response=response)
        if self.kept is not None:
            self.answer.store(self.kept)
        self.has_failed = kind == "response.failed"
        self._end(_OUTCOMES[kind])

    def _end(self, outcome: Outcome) -> None:
        self.state = TurnState.OVER
        self.entry.outcome = outcome
        self._over(self)

    # --- interrupt and steer ---------------------------------------------------------

    def interrupt(self, *, acknowledges: bool = True) -> None:
        """End the response with its finished items, so that it can be continued."""
        assert self.stream is not None
        self.stream.go_on_with(self._interrupted(acknowledges))

    def _interrupted(self, acknowledges: bool) -> Iterator[Event]:
        about = {"response_id": self.entry.response_id}
        if acknowledges:
            yield {"type": "response.interrupt.accepted", **about}
        for index, item_id in list(self._open.items()):
            kind = "response.output_item.interrupted"
            yield {"type": kind, **about, "item_id": item_id, "output_index": index}
        yield self._incomplete("interrupted")

    def steer(self, steer_id: str, items: list[Item]) -> None:
        """Accept more input of the user for this response."""
        assert self.answer is not None
        self.steers.append((steer_id, items))
        steer = {"id": steer_id, "previous_response_id": self.answer.response_id}
        self.send({"type": "response.steer.accepted", "steer": steer})

    def _until_steered(self, steps: Steps) -> Steps:
        """The events, cut behind an item once the response is steered and awaits no tool."""
        for step in steps:
            yield step
            is_boundary = isinstance(step, dict) and step["type"] in _BOUNDARIES
            if is_boundary and self.steers and not required_outputs(self._finished):
                yield self._incomplete("steered")
                return

    def _incomplete(self, reason: str) -> Event:
        assert self.answer is not None
        usage = self.answer.final["usage"]
        cached = usage["input_tokens_details"]["cached_tokens"]
        response = {
            **self.answer.response,
            "status": "incomplete",
            "incomplete_details": {"reason": reason},
            "output": list(self._finished),
            "usage": usage_object(usage["input_tokens"], cached, estimated_tokens(self._finished)),
        }
        return {"type": "response.incomplete", "response": response}
