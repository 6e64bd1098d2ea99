"""Client messages beside a plain response.create: protocol.md §10.31-36."""

from __future__ import annotations

import json
import threading

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import (
    assert_error,
    assert_one_terminal,
    assert_strictly_increasing,
    completed,
    output_text,
    real,
    types,
)
from tests.support.events import Json, text_item, user
from tests.support.gateway import account
from tests.support.strict import Mode
from tests.support.upstream import Exchange

pytestmark = pytest.mark.conformance


def test_10_31_a_second_create_is_queued_in_order(rig: Rig) -> None:
    release = threading.Event()
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    client = rig.connect()
    for number in range(4):
        client.create(input=f"turn {number}", store=False)
    rig.upstream.wait_for(1)
    client.assert_silent(0.3)
    assert len(rig.upstream.requests) == 1, "one running response per lane"
    release.set()
    ids = [completed(client.until_terminal())["id"] for _ in range(4)]
    assert ids == [request.response_id for request in rig.upstream.requests]
    texts = [json.dumps(request.input) for request in rig.upstream.requests]
    assert [f"turn {n}" in text for n, text in enumerate(texts)] == [True] * 4


def test_10_31_a_queued_create_may_name_the_running_response(rig: Rig) -> None:
    """FIFO: by the time the second turn starts its parent is complete."""
    release = threading.Event()

    def first(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:5])
        exchange.hold(release)
        exchange.sse(*events[5:])
        exchange.end()

    rig.upstream.queue(first)
    client = rig.connect()
    client.create(input="one")
    created = client.until("response.created")[-1]["response"]["id"]
    client.create(input="two", previous_response_id=created)
    release.set()
    completed(client.until_terminal())
    completed(client.until_terminal())
    assert rig.upstream.requests[1].previous_response_id == created


def test_10_32_processed_is_ignored(rig: Rig) -> None:
    client = rig.connect()
    first = completed(client.turn())
    client.send({"type": "response.processed", "response_id": first["id"]})
    client.assert_silent(0.3)
    completed(client.turn(previous_response_id=first["id"]))


def partial(exchange: Exchange, items: list[Json], last_piece: int) -> None:
    """All of the items but the last, and of that one the first `last_piece` events."""
    events = exchange.turn(items)
    at = [n for n, e in enumerate(events) if e["type"] == "response.output_item.added"][-1]
    exchange.sse(*events[: at + last_piece])
    exchange.hold()


@pytest.mark.parametrize("message", ["cancel", "bare cancel"])
def test_10_32_cancel_ends_the_running_response(rig: Rig, message: str) -> None:
    rig.upstream.queue(lambda exchange: partial(exchange, [text_item("long text")], 3))
    client = rig.connect()
    client.create()
    response_id = client.until("response.output_text.delta")[0]["response"]["id"]
    cancel: Json = {"type": "response.cancel"}
    if message == "cancel":
        cancel["response_id"] = response_id
    client.send(cancel)
    events = client.until_terminal()
    assert events[-1]["type"] == "response.incomplete", "§3: treated as an interrupt"
    assert events[-1]["response"]["id"] == response_id
    assert rig.upstream.requests[0].wait_gone(5), "the upstream expected to be cancelled"
    completed(client.turn())


def test_10_32_cancel_without_a_running_response_breaks_nothing(rig: Rig) -> None:
    client = rig.connect()
    client.send({"type": "response.cancel"})
    completed(client.turn())


def interrupt(response_id: str) -> Json:
    return {
        "type": "response.interrupt",
        "response_id": response_id,
        "mode": "discard_partial_items",
    }


@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.STATELESS, Mode.FORGETFUL])
@pytest.mark.parametrize("store", [False, True])
def test_10_33_interrupted_response_is_incomplete_and_chainable(
    stage: Stage, mode: Mode, store: bool
) -> None:
    strict = stage.strict("s", mode)
    finished, cut = text_item("finished part"), text_item("cut in the middle")
    client = stage.serve(strict).connect()
    first = completed(client.turn(input=[user("recall a")], store=store))

    def long_answer(exchange: Exchange) -> bool:
        if exchange.request.previous_response_id and mode is not Mode.STATEFUL:
            return False  # the trial of this mode goes its usual way
        strict.before_answer = None
        partial(exchange, [finished, cut], 3)
        return True

    strict.before_answer = long_answer
    client.create(input=[user("b")], previous_response_id=first["id"], store=store)
    events = client.until("response.output_item.done")
    events += client.until("response.output_text.delta")
    response_id = next(e["response"]["id"] for e in events if e["type"] == "response.created")
    client.send(interrupt(response_id))
    events += client.until_terminal()
    last = events[-1]
    assert last["type"] == "response.incomplete", "an interrupted response ends as incomplete"
    assert last["response"]["id"] == response_id
    assert last["response"]["status"] == "incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "interrupted"}
    assert last["response"]["output"] in ([], [finished]), "only finished items"
    for event in events:
        if event["type"] in ("response.interrupt.accepted", "response.output_item.interrupted"):
            assert event["response_id"] == response_id
    assert_one_terminal(real(events))
    assert_strictly_increasing(events)
    abandoned = next(r for r in strict.requests if r.gone.is_set() or not r.finished.is_set())
    assert abandoned.wait_gone(5), "the upstream expected to be cancelled"
    answer = client.turn(input=[user("recall c")], previous_response_id=response_id, store=store)
    assert output_text(answer) == "recall a | b | recall c"
    whole = strict.accepted[-1]
    texts = json.dumps(whole.input)
    if whole.previous_response_id is None:
        assert "finished part" in texts, "finished items stay part of the conversation"
    assert "cut in the middle" not in texts


def test_10_33_interrupt_before_any_output(stage: Stage) -> None:
    def created_only(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:2])
        exchange.hold()

    upstream = stage.upstream()
    upstream.queue(created_only)
    gateway = stage.gateway(account("solo", upstream), session={"hold_seconds": 0.2})
    client = gateway.connect()
    client.create(input=[user("a")])
    response_id = client.until("response.in_progress")[-1]["response"]["id"]
    client.send(interrupt(response_id))
    last = client.until_terminal()[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["id"] == response_id
    completed(client.turn(input=[user("b")], previous_response_id=response_id))
    assert upstream.requests[1].input == [user("a"), user("b")]


def test_10_33_queued_turns_go_on_after_an_interrupt(rig: Rig) -> None:
    rig.upstream.queue(lambda exchange: partial(exchange, [text_item("cut text")], 3))
    client = rig.connect()
    client.create()
    response_id = client.until("response.output_text.delta")[0]["response"]["id"]
    client.create(input="queued")
    client.send(interrupt(response_id))
    assert client.until_terminal()[-1]["type"] == "response.incomplete"
    completed(client.until_terminal())


def test_10_34_interrupt_of_a_finished_response_is_no_error(rig: Rig) -> None:
    release = threading.Event()
    client = rig.connect()
    first = completed(client.turn())
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    client.create(previous_response_id=first["id"])
    rig.upstream.wait_for(2)
    client.send(interrupt(first["id"]))
    client.send(interrupt("resp_never_heard_of"))
    client.ping()
    client.wait_pong()
    release.set()
    events = client.until_terminal()
    assert "error" not in types(events)
    assert output_text(events) == "hello", "the running response goes on"
    for event in events:
        if event["type"] == "response.interrupt.failed":
            assert event["response_id"] in (first["id"], "resp_never_heard_of")


def test_10_35_steer_is_refused_honestly(rig: Rig) -> None:
    release = threading.Event()
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    client = rig.connect()
    client.create()
    rig.upstream.wait_for(1)
    client.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "left"})
    event = client.until("response.steer.failed")[-1]
    assert event["error"]["code"] == "steering_not_supported"
    assert isinstance(event["error"]["message"], str)
    assert event["steer"]["previous_response_id"] == "resp_1"
    release.set()
    completed(client.until_terminal())


MALFORMED = [
    "{",
    "",
    "not json",
    "[]",
    '"response.create"',
    "null",
    "{}",
    '{"type":null}',
    '{"type":5}',
    '{"type":"response.append"}',
    '{"type":"response.unheard_of"}',
    '{"type":"response.create","model":"m","input":[}',
    '{"type":"response.create","model":"m","input":7}',
    '{"type":"response.create","model":"m","input":"x","previous_response_id":7}',
    '{"type":"response.create","model":"m","input":"x","stream_id":7}',
    '{"type":"response.create","model":"m","input":"x"} trailing',
]


@pytest.mark.parametrize("text", MALFORMED)
def test_10_36_malformed_input_is_an_error_and_no_more(rig: Rig, text: str) -> None:
    release = threading.Event()
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    client = rig.connect()
    client.create()
    rig.upstream.wait_for(1)
    client.send(text)
    error = assert_error(client.until("error", lane="*")[-1], 400)
    assert error["type"] == "invalid_request_error"
    release.set()
    assert output_text(client.until_terminal()) == "hello", "the running response is not disturbed"
    completed(client.turn())
    assert len(rig.upstream.requests) == 2


@pytest.mark.parametrize("kind", ["binary", "invalid utf-8"])
def test_10_36_wrong_encodings_leave_the_socket_alone(rig: Rig, kind: str) -> None:
    release = threading.Event()
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    client = rig.connect()
    client.create()
    rig.upstream.wait_for(1)
    if kind == "binary":
        client.send_binary(json.dumps({"type": "response.create", "model": "m"}).encode())
    else:
        client.send_frame(0x1, b'{"type":"response.create","input":"\xff\xfe"}')
    assert_error(client.event(), 400)
    release.set()
    assert output_text(client.until_terminal()) == "hello", "the running response is not disturbed"
    completed(client.turn())


@pytest.mark.parametrize("fragments", [1, 3])
def test_10_36_an_over_long_message_leaves_the_socket_alone(stage: Stage, fragments: int) -> None:
    release = threading.Event()
    upstream = stage.upstream(lambda exchange: exchange.hold(release) and exchange.answer())
    gateway = stage.gateway(account("solo", upstream), session={"max_message_bytes": 20000})
    client = gateway.connect()
    client.create()
    upstream.wait_for(1)
    text = json.dumps({"type": "response.create", "model": "m", "input": "x" * 60000})
    size = -(-len(text) // fragments)
    client.send_fragments(*(text[at : at + size] for at in range(0, len(text), size)))
    assert_error(client.event(), (400, 413))
    release.set()
    completed(client.until_terminal())
    completed(client.turn(input="y" * 15000))
    assert len(upstream.requests) == 2, "the over-long message went nowhere"


def test_fragmented_messages_are_put_together(rig: Rig) -> None:
    client = rig.connect()
    text = json.dumps({"type": "response.create", "model": "m", "input": "é" * 50})
    client.send_fragments(text[:10], text[10:60], "", text[60:])
    completed(client.until_terminal())
    assert "é" * 50 in json.dumps(rig.upstream.requests[0].input, ensure_ascii=False)
