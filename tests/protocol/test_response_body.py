"""The body of an answer: its first bytes tell what it is, its end completes it (§4.1)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.response_body import NotAResponse, ResponseBody
from gateway.protocol.response_stream import FinishedResponse, RefusedResponse, ResponseStream
from gateway.protocol.sse import Event, EventTooLarge
from tests.support.events import (
    Json,
    call_item,
    custom_call_item,
    reasoning_item,
    response_object,
    text_item,
    turn_events,
)
from tests.support.upstream import sse_bytes

TURN = turn_events([reasoning_item(summary="Hm."), text_item(), call_item()], "resp_1")
STREAM = b"".join(sse_bytes(event) for event in TURN)


def read(*pieces: bytes, limit: int = 1 << 20) -> list[Event]:
    body = ResponseBody(limit)
    events = [event for piece in pieces for event in body.feed(piece)]
    return events + body.finish()


def told(events: Iterable[Event]) -> list[Json]:
    read_events = [(name, json.loads(data)) for name, data in events]
    assert [name.decode() for name, _ in read_events] == [event["type"] for _, event in read_events]
    return [event for _, event in read_events]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


# --- a stream of events --------------------------------------------------------------


@pytest.mark.parametrize(
    "begin",
    [b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b": hello\n\n", b"retry: 3\n\n", b"\n" * 2000],
)
def test_a_stream_is_known_by_its_first_bytes(begin: bytes) -> None:
    assert told(read(begin + STREAM)) == TURN


@given(st.lists(st.integers(0), max_size=8), st.sampled_from([b"", b"\n", b"\xef\xbb\xbf"]))
def test_a_stream_may_come_in_any_pieces(places: list[int], begin: bytes) -> None:
    assert told(read(*cut(begin + STREAM, places))) == TURN


@pytest.mark.parametrize("ends", [b"\n\n", b"\n", b"", b"\r\n", b"\r"])
def test_the_last_event_needs_no_blank_line(ends: bytes) -> None:
    assert told(read(STREAM.rstrip(b"\n") + ends)) == TURN


@given(st.integers(1, len(STREAM)))
def test_an_event_whose_data_was_cut_is_none(size: int) -> None:
    events = told(read(STREAM[:-size]))
    assert events == TURN[: len(events)]
    assert len(events) < len(TURN) or size <= 2


def test_an_empty_body_has_no_events() -> None:
    assert read() == read(b"") == read(b"\n\n") == []


# --- one response object --------------------------------------------------------------


def whole(items: list[Json], **members: Any) -> bytes:
    return json.dumps(
        response_object("resp_1", status="completed", output=items, **members)
    ).encode()


@given(st.lists(st.integers(0), max_size=8))
def test_one_object_may_come_in_any_pieces(places: list[int]) -> None:
    body = whole([text_item(item_id="msg_1")])
    assert read(*cut(body, places)) == read(body)


ITEMS = [
    reasoning_item(summary="Hm."),
    {**reasoning_item(), "content": [{"type": "reasoning_text", "text": "So."}]},
    text_item("hello"),
    {**text_item(), "content": [{"type": "refusal", "refusal": "No."}]},
    {**text_item(), "content": []},
    {**text_item(), "content": None},
    call_item(arguments='{"a":1}'),
    custom_call_item(),
    {"type": "web_search_call", "id": "ws_1", "status": "completed"},
    {"type": "from_the_future"},
]


@pytest.mark.parametrize("body", [whole(ITEMS), b"\xef\xbb\xbf\n" + whole(ITEMS) + b"\n"])
def test_one_object_becomes_the_events_that_a_client_puts_together(body: bytes) -> None:
    events = told(read(body))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    first, last = events[0], events[-1]
    assert (first["type"], last["type"]) == ("response.created", "response.completed")
    assert (first["response"]["status"], first["response"]["output"]) == ("in_progress", [])
    assert last["response"]["output"] == ITEMS
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [(event["output_index"], event["item"]) for event in done] == list(enumerate(ITEMS))
    added = [event["item"] for event in events if event["type"] == "response.output_item.added"]
    assert len(added) == len(ITEMS)
    assert [item.get("id") for item in added] == [item.get("id") for item in ITEMS]
    deltas = {event["type"]: event["delta"] for event in events if event["type"].endswith(".delta")}
    assert deltas == {
        "response.reasoning_summary_text.delta": "Hm.",
        "response.reasoning_text.delta": "So.",
        "response.output_text.delta": "hello",
        "response.refusal.delta": "No.",
        "response.function_call_arguments.delta": '{"a":1}',
        "response.custom_tool_call_input.delta": "1",
    }


def test_the_items_of_an_object_keep_their_bytes() -> None:
    body = whole([]).replace(b'"output": []', b'"output": [{ "type":"x", "n":1.50 }]')
    assert b'"item":{ "type":"x", "n":1.50 }' in read(body)[2][1]


@pytest.mark.parametrize(
    ("members", "end"),
    [
        ({"status": "completed"}, FinishedResponse("completed", None, None)),
        ({"status": None}, FinishedResponse("completed", None, None)),
        ({}, FinishedResponse("completed", None, None)),
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            FinishedResponse("incomplete", "max_output_tokens", None),
        ),
        ({"status": "cancelled"}, FinishedResponse("incomplete", "interrupted", None)),
    ],
    ids=str,
)
def test_one_object_ends_as_it_says(members: Json, end: FinishedResponse) -> None:
    relay = ResponseStream()
    relay.feed(read(json.dumps({"id": "resp_1", "output": [text_item()], **members}).encode()))
    assert relay.outcome == end
    assert relay.response_id == "resp_1"


@pytest.mark.parametrize("status", ["failed", None])
def test_one_object_that_failed_is_a_refusal_that_nobody_saw(status: str | None) -> None:
    error = {"code": "rate_limit_exceeded", "message": "Slow down."}
    failed = {"object": "response", "id": "resp_1", "status": status, "error": error}
    relay = ResponseStream()
    assert relay.feed(read(json.dumps({**failed, "output": [text_item()]}).encode())) == []
    assert isinstance(relay.outcome, RefusedResponse)
    assert relay.outcome.error.code == "rate_limit_exceeded"


def test_one_object_with_odd_members_is_read_all_the_same() -> None:
    body = whole([text_item("\ud83d")], top_p=float("nan"))
    first, *_, last = told(read(body))
    assert first["response"]["top_p"] is None
    assert last["response"]["output"][0]["content"][0]["text"] == "\ufffd"


def test_one_event_as_the_whole_body_is_that_event() -> None:
    body = json.dumps(TURN[-1]).encode()
    assert read(body) == [(b"response.completed", body)]


# --- neither -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"No."}}',
        b'{"detail":"No."}',
        b'{"object":"chat.completion","choices":[]}',
        b"{}",
        b'{"id":"resp_1","output":[]',
        b'{"output":"text"}',
        b"<!DOCTYPE html><html></html>",
        b"\n<html>",
        b"Internal error",
        b"data centre on fire",
    ],
)
def test_anything_else_is_no_answer(body: bytes) -> None:
    with pytest.raises(NotAResponse) as other:
        read(body)
    assert other.value.body.strip() == body.strip()


def test_an_answer_in_one_piece_has_a_bound() -> None:
    with pytest.raises(EventTooLarge, match="more than 100 bytes"):
        read(b'{"a":"', b"x" * 99, limit=100)
