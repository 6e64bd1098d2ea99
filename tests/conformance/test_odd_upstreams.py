"""Upstreams that write events their own way: protocol.md §10.93-95, through every door."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.conftest import Rig
from tests.support.checks import assert_strictly_increasing, completed, types
from tests.support.events import (
    Json,
    call_item,
    call_output,
    numbered,
    text_item,
)
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange, sse_bytes
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.conformance

Change = Callable[[Json], Json]


class Door:
    """One client by one door; ``events`` are those of its last turn, if the door shows any."""

    def __init__(self, kind: str, rig: Rig) -> None:
        self.kind = kind
        self.events: list[Json] = []
        self._ws: WsClient | None = rig.connect() if kind == "websocket" else None
        self._http = HttpClient(rig.gateway.port)

    def turn(self, **members: object) -> Json:
        """A turn that has to end well; its response."""
        if self._ws is not None:
            self.events = self._ws.turn(**members)
            return completed(self.events)
        answer = self._http.create(stream=self.kind == "events", **members)
        assert answer.status == 200, answer.body
        if self.kind == "events":
            self.events = answer.events
            return completed(self.events)
        response: Json = answer.json
        assert response["status"] == "completed"
        return response

    def drop(self) -> None:
        self._http.drop()


@pytest.fixture(params=["websocket", "events", "object"])
def door(request: pytest.FixtureRequest, rig: Rig) -> Iterator[Door]:
    door = Door(request.param, rig)
    yield door
    door.drop()


def body_of(exchange: Exchange, items: list[Json] | None = None) -> bytes:
    return b"".join(map(sse_bytes, exchange.turn(items)))


# --- §10.93 --------------------------------------------------------------------------------


def without_type(event: Json) -> Json:
    return {name: value for name, value in event.items() if name != "type"}


def block(name: str | None, event: Json) -> bytes:
    line = "" if name is None else f"event: {name}\n"
    return f"{line}data: {json.dumps(event)}\n\n".encode()


NAMES: dict[str, Callable[[Json], bytes]] = {
    "no type": lambda event: block(event["type"], without_type(event)),
    "type null": lambda event: block(event["type"], {**event, "type": None}),
    "type last": lambda event: block(None, {**without_type(event), "type": event["type"]}),
    "no event line": lambda event: block(None, event),
    "event: message": lambda event: block("message", event),
    "another name": lambda event: block(event["type"].upper(), event),
    "another type": lambda event: block(
        event["type"], {**event, "type": event["type"].replace("completed", "done")}
    ),
}


@pytest.mark.parametrize("spelling", NAMES.values(), ids=NAMES.keys())
def test_10_93_either_name_of_an_event_will_do(
    rig: Rig, door: Door, spelling: Callable[[Json], bytes]
) -> None:
    call = call_item()

    def script(exchange: Exchange) -> None:
        extras = [b"event: ping\ndata: ping\n\n", b"data: {}\n\n", b": note\n\n"]
        exchange.chunks(*map(spelling, exchange.turn([call])), *extras, b"data: [DONE]\n\n")
        exchange.end()

    rig.upstream.queue(script)
    response = door.turn()
    assert response["output"] == [call]
    assert all(event["type"] for event in door.events)
    output = [call_output(call["call_id"])]
    following = door.turn(input=output, previous_response_id=response["id"])
    assert following["id"] != response["id"], "what came too much would have ended this turn"
    assert rig.upstream.requests[-1].previous_response_id == response["id"]


# --- §10.94 --------------------------------------------------------------------------------


def odd(kind: str, **members: object) -> Change:
    def change(event: Json) -> Json:
        if event["type"] != kind:
            return event
        inner = {"response": {**event["response"], **members}} if "response" in event else members
        return {**event, **inner}

    return change


ODD = {
    "id null": odd("response.created", id=None),
    "id a number": odd("response.created", id=12345),
    "status a number": odd("response.created", status=0),
    "previous a number": odd("response.created", previous_response_id=0),
    "not a number": odd("response.created", top_p=float("nan"), x=float("-inf")),
    "no response": lambda event: (
        {**event, "response": None} if event["type"] == "response.created" else event
    ),
    "index a text": odd("response.output_item.done", output_index="0"),
    "index a fraction": odd("response.output_item.done", output_index=0.0),
    "details a text": odd("response.completed", incomplete_details=""),
    "details a list": odd("response.completed", incomplete_details=[]),
    "usage a text": odd("response.completed", usage="none"),
    "output a text": odd("response.completed", output="none"),
    "last status a number": odd("response.completed", status=3),
    "last id null": odd("response.completed", id=None),
    "sequence number a text": lambda event: {
        **event,
        "sequence_number": str(event["sequence_number"]),
    },
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD.keys())
def test_10_94_an_odd_member_ends_no_turn(rig: Rig, door: Door, change: Change) -> None:
    message = text_item("fine")

    def script(exchange: Exchange) -> None:
        exchange.sse(*map(change, exchange.turn([message])))
        exchange.end()

    rig.upstream.queue(script)
    response = door.turn()
    assert response["output"] == [message]
    assert isinstance(response["id"], str)
    assert door.turn(previous_response_id=response["id"])["id"] != response["id"]


@pytest.mark.parametrize("escape", ["\\ud83d", "\\ude00", "\\ud83d\\ud83d"])
@pytest.mark.parametrize("event_lines", [True, False])
def test_10_94_half_a_character_ends_no_turn(
    replay_rig: Rig, escape: str, event_lines: bool
) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item("hi @@")])
        pieces = (sse_bytes(event, event_lines) for event in events)
        exchange.chunks(*(piece.replace(b"@@", escape.encode()) for piece in pieces))
        exchange.end()

    replay_rig.upstream.queue(script)
    client = replay_rig.connect()
    events = client.turn(store=False)
    response = completed(events)
    (done,) = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    text = done["content"][0]["text"]
    assert set(text) == set("hi \ufffd"), "what cannot be known is replaced, the rest stays"
    assert response["output"] == [done]
    completed(client.turn(previous_response_id=response["id"], store=False))
    assert done in replay_rig.upstream.requests[-1].input, "what is replayed is what was seen"


# --- §10.95 --------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [1, 2])
def test_10_95_an_answer_without_a_beginning_gets_one(replay_rig: Rig, left_out: int) -> None:
    def script(exchange: Exchange) -> None:
        exchange.sse(*numbered(exchange.turn()[left_out:]))
        exchange.end()

    for kind in ("websocket", "events"):
        replay_rig.upstream.queue(script)
        door = Door(kind, replay_rig)
        response = door.turn()
        assert types(door.events)[0] == "response.created"
        assert {e["response"]["id"] for e in door.events if "response" in e} == {response["id"]}
        assert_strictly_increasing(door.events)
        door.turn(previous_response_id=response["id"])
        assert len(replay_rig.upstream.requests[-1].input) == 3
        door.drop()
