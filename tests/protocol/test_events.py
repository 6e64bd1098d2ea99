"""Reading events: as little as possible, in whatever spelling they come (§4)."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.events import (
    MalformedEvent,
    event_type,
    read_item_done,
    read_response,
    read_turn_state,
    response_members,
    sequence_number,
    with_stream_id,
)

DEEP = b"[" * 99_999


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"type":"response.created","response":{}}', b"response.created"),
        (b'{"type": "response.created"}', b"response.created"),
        (b'{"sequence_number":1,"type":"error"}', b"error"),
        (b' {"type":"error"}', b"error"),
        (b'{\n"type"\n:"error"}', b"error"),
        (b"{}", b""),
        (b'{"type":7}', b""),
        (b"[DONE]", b""),
        (b"nonsense", b""),
        (b"", b""),
        (DEEP, b""),
    ],
    ids=lambda value: value[:30].decode(),
)
def test_the_type_is_found_wherever_it_stands(data: bytes, kind: bytes) -> None:
    assert event_type(data) == kind


def test_the_head_of_a_response_is_read_and_the_rest_left() -> None:
    head = read_response(
        b'{"type":"response.created","response":{"id":"resp_1","status":"in_progress",'
        b'"previous_response_id":"resp_0","error":null,"new":{"a":[1]}}}'
    )
    assert (head.id, head.previous_response_id) == ("resp_1", "resp_0")
    assert (head.status, head.error, head.incomplete_details) == ("in_progress", None, None)


@pytest.mark.parametrize("data", [b"{}", b'{"response":null}', b'{"response":7}', b"x", DEEP])
def test_a_lifecycle_event_without_a_response_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEvent):
        read_response(data)
    assert response_members(data) == {}


def test_a_finished_item_keeps_its_bytes() -> None:
    raw = b'{ "type":"message" , "n":1.50 }'
    data = b'{"type":"response.output_item.done","output_index":3,"item":' + raw + b"}"
    assert read_item_done(data) == (3, raw)
    assert read_item_done(b'{"item":' + raw + b"}") == (None, raw)


@pytest.mark.parametrize("data", [b"{}", b'{"item":{},"output_index":"0"}', b"x", DEEP])
def test_an_item_event_that_cannot_be_read_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEvent):
        read_item_done(data)


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({"x-codex-turn-state": "opaque"}, "opaque"),
        ({"X-Codex-Turn-State": "opaque", "openai-model": "m"}, "opaque"),
        ({"x-codex-turn-state": ["opaque", "later"]}, "opaque"),
        ({"x-codex-turn-state": []}, None),
        ({"x-codex-turn-state": 7}, None),
        ({}, None),
        (None, None),
        ("text", None),
    ],
)
def test_the_turn_state_is_a_header_in_any_spelling(headers: object, state: str | None) -> None:
    data = json.dumps({"type": "response.metadata", "headers": headers}).encode()
    assert read_turn_state(data) == state


def test_metadata_without_headers_has_no_turn_state() -> None:
    assert read_turn_state(b'{"type":"response.metadata"}') is None
    assert read_turn_state(b"nonsense") is None


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b'{"sequence_number":7}', 7),
        (b'{"sequence_number":null}', -1),
        (b"{}", -1),
        (b'{"sequence_number":"7"}', -1),
        (b"nonsense", -1),
    ],
)
def test_an_event_without_a_number_has_minus_one(data: bytes, number: int) -> None:
    assert sequence_number(data) == number


@given(
    st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), max_size=3),
    st.sampled_from([None, 1]),
    st.sampled_from(["", " ", "\n "]),
)
def test_naming_the_lane_changes_nothing_else(
    event: dict[str, object], indent: int | None, margin: str
) -> None:
    data = (margin + json.dumps(event, indent=indent)).encode()
    named = json.loads(with_stream_id(data, b'"lane-1"'))
    assert named == {"stream_id": "lane-1", **event}


def test_naming_the_lane_keeps_the_bytes() -> None:
    data = b'{"type":"x", "n":1.50}'
    assert with_stream_id(data, b'"a"') == b'{"stream_id":"a","type":"x", "n":1.50}'
