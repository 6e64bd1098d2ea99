"""The body of an answer: its first bytes tell what it is, its end completes it (§4.1)."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import response_body
from gateway.protocol.events import PASSED_UNREAD, event_type
from gateway.protocol.response_body import (
    NotAResponse,
    ResponseBody,
    read_named_events,
    with_one_type,
)
from gateway.protocol.response_stream import FinishedResponse, RefusedResponse, ResponseStream
from gateway.protocol.sse import Event, EventTooLarge, read_events
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


# --- event types ---------------------------------------------------------------------------


DELTA = b"response.output_text.delta"
COMPLETED = b"response.completed"
DEEP = b'{"a":' + b"[" * 99_999 + b"]" * 99_999 + b"}"


def data_of(kind: Any = ..., **members: Any) -> bytes:
    event = members if kind is ... else {"type": kind, **members}
    return json.dumps(event).encode()


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"response.output_text.delta","delta":"x"}',
        b'{"type": "response.output_text.delta", "delta": "\\ud83d"}',
        b'{"delta":"x","type":"response.output_text.delta"}',
        b'{\n"type": "response.output_text.delta"}',
        b'{"type":"response.output_text\\u002edelta"}',
        b'{"top_p":NaN,"type":"response.output_text.delta"}',
    ],
)
@pytest.mark.parametrize("name", [DELTA, b"", b"message"])
def test_an_event_that_says_its_type_keeps_its_bytes(name: bytes, data: bytes) -> None:
    assert with_one_type((name, data)) == (DELTA, data)


@pytest.mark.parametrize(
    "data",
    [
        b'{"sequence_number":4,"type":"response.output_text.delta","delta":"x"}',
        b'{"sequence_number": 4, "type": "response.output_text.delta", "delta": "x"}',
        b'{"type": "response.output_text.delta", "delta": "x"}',
    ],
)
def test_a_streamed_event_is_named_without_reading_its_json(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_body, "event_type", pytest.fail)
    assert with_one_type((DELTA, data)) == (DELTA, data)


@pytest.mark.parametrize("said", [..., None, 7, "", [], {"a": 1}])
@pytest.mark.parametrize("name", [DELTA, COMPLETED, b"response.created", b"x.news"])
def test_a_missing_type_is_taken_from_the_event_line(name: bytes, said: Any) -> None:
    named = with_one_type((name, data_of(said, n=1.5, response={"type": "other"})))
    assert named is not None
    assert named[0] == name
    expected = {"type": name.decode(), "n": 1.5, "response": {"type": "other"}}
    assert json.loads(named[1]) == expected
    assert event_type(named[1]) == name


@pytest.mark.parametrize(
    ("name", "kind", "one"),
    [
        (COMPLETED, "response.done", COMPLETED),
        (b"response.done", "response.completed", COMPLETED),
        (b"response.incomplete", "response.cancelled", b"response.incomplete"),
        (COMPLETED, "completed", COMPLETED),
        (b"completed", "response.completed", COMPLETED),
        (DELTA, "response.output_text.done", b"response.output_text.done"),
        (b"x.old", "x.new", b"x.new"),
        (b"response.done", "response.cancelled", b"response.cancelled"),
    ],
)
def test_of_two_names_clients_get_one_that_they_know(name: bytes, kind: str, one: bytes) -> None:
    named = with_one_type((name, data_of(kind, n=1)))
    assert named is not None
    assert (named[0], event_type(named[1])) == (one, one)
    assert json.loads(named[1])["n"] == 1


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"invalid_request_error","message":"No."}',
        b'{"error":{"message":"No."}}',
        b"overloaded",
        b"",
    ],
)
def test_what_an_error_says_stays_as_it_is(data: bytes) -> None:
    assert with_one_type((b"error", data)) == (b"error", data)


@pytest.mark.parametrize("name", [b"", b"message"])
def test_an_error_without_any_name_is_one(name: bytes) -> None:
    data = b'{"error":{"message":"No.","weight":NaN}}'
    assert with_one_type((name, data)) == (b"error", data)


@pytest.mark.parametrize(
    "event",
    [
        (b"", b"[DONE]"),
        (b"done", b"[DONE]"),
        (b"", b"{}"),
        (b"", b'{"error":null}'),
        (b"", b'{"message":"hello"}'),
        (b"message", b'{"a":1}'),
        (b"ping", b"ping"),
        (b"", b"nonsense"),
        (b"", b""),
        (DELTA, b"nonsense"),
        (b"", DEEP),
    ],
    ids=lambda event: f"{event[0]}-{event[1][:10]}",
)
def test_what_nobody_could_tell_is_left_out(event: tuple[bytes, bytes]) -> None:
    assert with_one_type(event) is None


@pytest.mark.parametrize("name", [COMPLETED, b"response.created", b"response.output_item.done"])
def test_what_must_be_read_and_cannot_be_is_not_passed_over(name: bytes) -> None:
    assert with_one_type((name, b"nonsense")) == (name, b"nonsense")


KINDS = st.sampled_from(sorted(PASSED_UNREAD)) | st.sampled_from([COMPLETED, b"x.news", b"error"])
SAID = st.sampled_from(
    [b'{"type":"%b","n":1}', b'{"type": "%b"}', b'{"n":1,"type":"%b"}', b'{"type":null,"n":"%b"}']
)
FRAMES = st.sampled_from(
    [b"event: %b\ndata: %b\n\n", b"event:%b\ndata:%b\n\n", b": note\nevent: %b\ndata: %b\n\n"]
)
BLOCKS = st.builds(lambda frame, said, kind: frame % (kind, said % kind), FRAMES, SAID, KINDS)


@given(st.lists(BLOCKS, max_size=8).map(b"".join))
def test_the_quick_way_and_the_slow_way_read_the_same(stream: bytes) -> None:
    slowly = [event for event in map(with_one_type, read_events(stream)) if event is not None]
    assert read_named_events(stream) == slowly


@given(st.binary(max_size=40), st.binary(max_size=60))
def test_whatever_comes_has_the_name_that_its_data_says(name: bytes, data: bytes) -> None:
    named = with_one_type((name, data))
    if named is not None and named[0] != b"error" and named != (name, data):
        assert event_type(named[1]) == named[0]


@pytest.mark.parametrize("read", [read_events, read_named_events])
@pytest.mark.parametrize("line", [b"event: " * 30_000, b"event: a\ndata: " * 30_000])
def test_no_bytes_take_long_to_read(read: Callable[[bytes], list[Event]], line: bytes) -> None:
    began = time.process_time()
    read(line + b"\nid: 1\n\n")
    assert time.process_time() - began < 1
