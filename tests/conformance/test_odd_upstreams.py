"""Upstreams that write events their own way: protocol.md §10.93-97, through every door."""

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
    error_body,
    new_id,
    numbered,
    response_object,
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


# --- §10.96 --------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [b"\n", b""])
@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_10_96_the_last_event_needs_no_blank_line(
    rig: Rig, door: Door, framing: str, ending: bytes
) -> None:
    def script(exchange: Exchange) -> None:
        body = body_of(exchange).rstrip(b"\n") + ending
        if framing == "chunked":
            exchange.chunks(body)
            exchange.end()
        elif framing == "length":
            exchange.reply(200, body, {"Content-Type": "text/event-stream"})
        else:
            exchange.raw(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + body)
            exchange.close()

    rig.upstream.queue(script)
    assert door.turn()["output"]


def test_10_96_an_event_that_was_cut_is_none(rig: Rig) -> None:
    def script(exchange: Exchange) -> None:
        exchange.chunks(body_of(exchange)[:-30])
        exchange.end()

    rig.upstream.queue(script)
    *_, last = rig.connect().turn()
    assert last["type"] == "response.failed"


# --- §10.97 --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 203])
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/octet-stream", "application/json", "Text/Event-Stream", ""]
)
def test_10_97_an_event_stream_is_one_under_any_head(
    rig: Rig, door: Door, kind: str, status: int
) -> None:
    message = text_item("hello")

    def script(exchange: Exchange) -> None:
        headers = {"Content-Type": kind} if kind else None
        exchange.reply(status, body_of(exchange, [message]), headers)

    rig.upstream.queue(script)
    assert door.turn()["output"] == [message]


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "text/event-stream"])
def test_10_97_one_object_is_read_as_the_answer_it_is(rig: Rig, door: Door, kind: str) -> None:
    items = [text_item("hello"), call_item()]

    def script(exchange: Exchange) -> None:
        whole = response_object(
            new_id("resp"),
            status="completed",
            output=items,
            previous_response_id=exchange.request.previous_response_id,
        )
        exchange.reply(200, json.dumps(whole).encode(), {"Content-Type": kind})

    rig.upstream.queue(script)
    first = door.turn()
    assert first["output"] == items
    if door.events:
        assert types(door.events)[0] == "response.created"
        done = [e["item"] for e in door.events if e["type"] == "response.output_item.done"]
        assert done == items
    output = [call_output(items[1]["call_id"])]
    door.turn(input=output, previous_response_id=first["id"])
    assert rig.upstream.requests[-1].previous_response_id == first["id"], "it is chained to"


def test_10_97_an_error_with_status_200_is_a_refusal(rig: Rig) -> None:
    refusal = error_body("context_length_exceeded", "Too long.")
    rig.upstream.queue(lambda exchange: exchange.json(200, refusal))
    (last,) = rig.connect().turn()
    assert (last["type"], last["status"]) == ("error", 400)
    assert last["error"]["message"] == "Too long."
