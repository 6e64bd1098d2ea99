"""The one name of an event: from its ``event:`` line, its data, or both (§4.2)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import response_body as naming
from gateway.protocol.events import PASSED_UNREAD, event_type
from gateway.protocol.response_body import read_named_events, with_one_type
from gateway.protocol.sse import Event, read_events

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
    monkeypatch.setattr(naming, "event_type", pytest.fail)
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
