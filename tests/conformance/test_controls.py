"""What is said about a running response, over WebSockets to accounts: protocol.md §3.5, §3.6."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import assert_one_terminal, assert_strictly_increasing, completed, types
from tests.support.events import Json, response_object, text_item, user
from tests.support.gateway import account
from tests.support.upstream import Exchange
from tests.support.websocket_upstream import WebSocketUpstream, over
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.conformance

KINDS = ["interrupt", "cancel", "steer", "inject"]


@pytest.fixture(scope="module")
def shared(module_stage: Stage) -> Rig:
    upstream = WebSocketUpstream()
    module_stage.on_close(upstream.stop)
    knows = account("knows", upstream, transport="websocket", websocket={"controls": KINDS})
    return Rig(upstream, module_stage.gateway(knows))


@pytest.fixture
def rig(shared: Rig) -> Iterator[Rig]:
    with shared.borrowed() as rig:
        yield rig


def websockets(rig: Rig) -> WebSocketUpstream:
    assert isinstance(rig.upstream, WebSocketUpstream)
    return rig.upstream


class Answering:
    """A response that streams until the client said something, then goes on as the test wants."""

    def __init__(self, then: Callable[[Exchange, Json, list[Json]], None]) -> None:
        self._then = then

    def __call__(self, exchange: Exchange) -> None:
        events = exchange.turn([text_item("whole"), text_item("cut")])
        socket = over(exchange).socket
        before = len(socket.messages)
        exchange.sse(*events[:-2])
        exchange.upstream.wait(lambda: len(socket.messages) > before, "a message")  # type: ignore[attr-defined]
        self._then(exchange, socket.messages[before], events)
        exchange.complete = True


def started(client: WsClient, **members: object) -> str:
    client.create(**members)
    events = client.until("response.output_text.delta", lane="*")
    return str(events[0]["response"]["id"])


def incomplete(exchange: Exchange, reason: str, number: int, items: list[Json]) -> Json:
    response = response_object(
        str(exchange.request.response_id),
        status="incomplete",
        incomplete_details={"reason": reason},
        output=items,
        store=exchange.request.body.get("store", True),
    )
    return {"type": "response.incomplete", "sequence_number": number, "response": response}


@pytest.mark.parametrize("lane", [None, "left"])
def test_10_33_an_interrupt_reaches_a_service_that_knows_it(rig: Rig, lane: str | None) -> None:
    def interrupted(exchange: Exchange, message: Json, events: list[Json]) -> None:
        number = events[-1]["sequence_number"]
        response_id = exchange.request.response_id
        accepted = {"type": "response.interrupt.accepted", "response_id": response_id}
        exchange.sse(
            {**accepted, "sequence_number": number},
            incomplete(exchange, "interrupted", number + 1, [events[-1]["response"]["output"][0]]),
        )

    rig.upstream.queue(Answering(interrupted))
    client = rig.connect()
    on_lane = {} if lane is None else {"stream_id": lane}
    response_id = started(client, input="one", store=False, **on_lane)
    message = {"type": "response.interrupt", "response_id": response_id}
    client.send({**message, "mode": "discard_partial_items", **on_lane})
    events = client.until_terminal(lane="*")
    assert types(events)[-2:] == ["response.interrupt.accepted", "response.incomplete"]
    assert {event.get("stream_id") for event in events} == {lane}
    assert_strictly_increasing(events)
    (socket,) = websockets(rig).sockets
    assert socket.messages == [{**message, "mode": "discard_partial_items"}]
    client.create(input="two", store=False, previous_response_id=response_id, **on_lane)
    completed(client.until_terminal(lane="*"))
    sent = rig.upstream.requests[-1]
    assert sent.previous_response_id == response_id, "continued on the same socket"
    assert len(websockets(rig).sockets) == 1


def test_10_33_an_interrupt_without_an_answer_is_carried_out_here(rig: Rig) -> None:
    rig.upstream.queue(Answering(lambda exchange, message, events: exchange.hold()))
    client = rig.connect()
    response_id = started(client, input=[user("one")], store=False)
    client.send({"type": "response.interrupt", "response_id": response_id})
    events = client.until_terminal(timeout=12)
    assert types(events)[-2:] == ["response.interrupt.accepted", "response.incomplete"]
    client.create(input=[user("two")], store=False, previous_response_id=response_id)
    completed(client.until_terminal())
    sent = rig.upstream.requests[-1]
    assert sent.previous_response_id is None, "that socket is gone: all of it was sent"
    assert "one" in json.dumps(sent.input)
    assert "whole" in json.dumps(sent.input)
    assert "cut" not in json.dumps(sent.input)


def test_10_33_a_service_that_refuses_the_message_breaks_nothing(rig: Rig) -> None:
    error = {"type": "invalid_request_error", "code": None, "message": "Unknown type."}
    rig.upstream.queue(
        Answering(
            lambda exchange, message, events: exchange.sse(
                {"type": "error", "status": 400, "error": error}
            )
        )
    )
    client = rig.connect()
    response_id = started(client, input="one")
    client.send({"type": "response.interrupt", "response_id": response_id})
    events = client.until_terminal()
    assert types(events)[-2:] == ["response.interrupt.accepted", "response.incomplete"]
    assert_one_terminal(events)
    completed(client.turn(input="two"))


def test_10_34_an_answer_that_comes_too_late_disturbs_nobody(rig: Rig) -> None:
    def too_late(exchange: Exchange, message: Json, events: list[Json]) -> None:
        exchange.sse(*events[-2:])
        failed = {"type": "response.interrupt.failed", "response_id": message["response_id"]}
        over(exchange).socket.text(failed)

    rig.upstream.queue(Answering(too_late))
    client = rig.connect()
    response_id = started(client, input="one", store=False)
    client.send({"type": "response.interrupt", "response_id": response_id})
    completed(client.until_terminal())
    assert client.event()["type"] == "response.interrupt.failed"
    events = client.turn(input="two", store=False, previous_response_id=response_id)
    completed(events)
    assert "response.interrupt.failed" not in types(events)
    assert len(websockets(rig).sockets) == 1, "the socket is as good as before"


def test_10_32_a_cancel_reaches_a_service_that_knows_it(rig: Rig) -> None:
    def cancelled(exchange: Exchange, message: Json, events: list[Json]) -> None:
        assert message == {"type": "response.cancel"}
        ending = incomplete(exchange, "interrupted", events[-1]["sequence_number"], [])
        exchange.sse({**ending, "type": "response.cancelled"})

    rig.upstream.queue(Answering(cancelled))
    client = rig.connect()
    started(client, input="one")
    client.send({"type": "response.cancel"})
    assert client.until_terminal()[-1]["type"] == "response.incomplete"
    completed(client.turn(input="two"))
    rig.upstream.wait_for(2)
    assert len(websockets(rig).sockets) == 1


@pytest.mark.parametrize("kind", ["steer", "inject"])
def test_10_35_input_reaches_the_response_that_it_names(rig: Rig, kind: str) -> None:
    named = "previous_response_id" if kind == "steer" else "response_id"
    seen: list[Json] = []

    def refused(exchange: Exchange, message: Json, events: list[Json]) -> None:
        seen.append(message)
        about = {named: message[named], "input": message["input"]}
        failed = {"type": f"response.{kind}.failed", "sequence_number": 90, "error": {"code": "x"}}
        exchange.sse({**failed, **({"steer": about} if kind == "steer" else about)})
        exchange.sse(*({**event, "sequence_number": 91} for event in events[-1:]))

    release = threading.Event()
    rig.upstream.queue(Answering(refused), lambda e: e.hold(release) and e.answer())
    client = rig.connect()
    response_id = started(client, input="one", stream_id="left")
    client.create(input="other")
    message = {"type": f"response.{kind}", named: response_id, "input": [user("left")]}
    client.send(message)
    events = client.until_terminal(lane="left")
    assert seen == [message]
    failed = next(event for event in events if event["type"] == f"response.{kind}.failed")
    assert (failed["error"], failed["stream_id"]) == ({"code": "x"}, "left")
    completed(events)
    release.set()
    completed(client.until_terminal())


@pytest.mark.parametrize(
    ("kind", "code"),
    [("steer", "steering_not_supported"), ("inject", "injection_not_supported")],
)
def test_10_35_input_is_refused_by_who_cannot_take_it(stage: Stage, kind: str, code: str) -> None:
    release = threading.Event()
    client = stage.serve(
        lambda exchange: (
            exchange.sse(*(events := exchange.turn())[:4]),
            exchange.hold(release),
            exchange.sse(*events[4:]),
            exchange.end(),
        )
    ).connect()
    client.create(stream_id="left")
    response_id = client.until("response.created", lane="*")[-1]["response"]["id"]
    client.send({"type": f"response.{kind}", "input": "x", "response_id": response_id,
                 "previous_response_id": response_id})  # fmt: skip
    failed = client.until(f"response.{kind}.failed", lane="*")[-1]
    assert failed["error"]["code"] == code
    assert failed["stream_id"] == "left"
    assert (failed["steer"] if kind == "steer" else failed)["input"] == "x"
    release.set()
    completed(client.until_terminal(lane="*"))


def test_10_35_there_must_be_a_response_to_steer(rig: Rig) -> None:
    client = rig.connect()
    response_id = completed(client.turn(input="one"))["id"]
    for kind in ("steer", "inject"):
        named = "previous_response_id" if kind == "steer" else "response_id"
        client.send({"type": f"response.{kind}", named: response_id, "input": []})
        failed = client.event()
        assert failed["type"] == f"response.{kind}.failed"
        assert failed["error"]["code"] == "response_not_active"
    completed(client.turn(input="two"))
