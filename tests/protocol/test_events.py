"""Reading events: as little as possible, in whatever spelling they come (§4)."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.events import (
    MalformedEvent,
    event_type,
    is_whole,
    read_item_done,
    read_response,
    read_turn_state,
    response_members,
    sequence_number,
    strict_json,
    text_of,
    value_of,
    with_response,
    with_stream_id,
    with_turn_state,
    without_limit_headers,
)
from gateway.protocol.usage import whole_number

DEEP = b"[" * 99_999


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"type":"response.created","response":{}}', b"response.created"),
        (b'{"type": "response.created"}', b"response.created"),
        (b'{"sequence_number":1,"type":"error"}', b"error"),
        (b' {"type":"error"}', b"error"),
        (b'{\n"type"\n:"error"}', b"error"),
        (b'{"type":"err\\u006fr"}', b"error"),
        (b'{"top_p":NaN,"type":"error"}', b"error"),
        (b'{"delta":"\\ud83d","type":"error"}', b"error"),
        (b'{"type":null}', b""),
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
    assert head is not None
    assert (head.id, head.previous_response_id) == ("resp_1", "resp_0")
    assert (head.status, head.error, head.incomplete_reason) == ("in_progress", None, None)


@pytest.mark.parametrize("data", [b"{}", b'{"response":null}', b'{"response":7}'])
def test_a_lifecycle_event_may_lack_its_response(data: bytes) -> None:
    assert read_response(data) is None
    assert response_members(data) == {}


def test_what_a_lifecycle_event_says_in_place_of_a_response_counts() -> None:
    data = b'{"type":"response.failed","sequence_number":3,"response":null,"error":{"code":"x"}}'
    known = {"id": msgspec.Raw(b'"resp_1"'), "error": msgspec.Raw(b"null")}
    assert json.loads(with_response(data, known)) == {
        "type": "response.failed",
        "sequence_number": 3,
        "response": {"id": "resp_1", "error": {"code": "x"}},
    }


@pytest.mark.parametrize("data", [b"x", b"[]", DEEP])
def test_a_lifecycle_event_that_is_no_object_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEvent):
        read_response(data)
    with pytest.raises(MalformedEvent):
        with_response(data, {})
    assert response_members(data) == {}


@pytest.mark.parametrize("odd", [0, 1.5, False, [], {}, [1], {"reason": 7}])
def test_an_odd_member_of_a_response_counts_as_unsaid(odd: object) -> None:
    names = ("id", "previous_response_id", "status", "incomplete_details")
    data = json.dumps({"response": dict.fromkeys(names, odd)}).encode()
    head = read_response(data)
    assert head is not None
    assert (head.id, head.previous_response_id, head.status) == ("", None, None)
    assert head.incomplete_reason is None
    assert head.previous_is_odd


def test_a_number_out_of_all_range_is_no_usage() -> None:
    head = read_response(b'{"response":{"id":"resp_1","usage":{"input_tokens":1e999}}}')
    assert head is not None
    assert (head.id, head.usage) == ("resp_1", None)


def test_a_finished_item_keeps_its_bytes() -> None:
    raw = b'{ "type":"message" , "n":1.50 }'
    data = b'{"type":"response.output_item.done","output_index":3,"item":' + raw + b"}"
    assert read_item_done(data) == (3, raw)
    assert read_item_done(b'{"item":' + raw + b"}") == (None, raw)


@pytest.mark.parametrize(
    ("index", "read"),
    [(2, 2), ("2", 2), (2.0, 2), (None, None), ("two", None), (-1, None), (2.5, None)],
)
def test_an_index_may_be_written_in_other_ways(index: object, read: int | None) -> None:
    data = json.dumps({"output_index": index, "item": {}}).encode()
    assert read_item_done(data) == (read, b"{}")


@pytest.mark.parametrize("data", [b"{}", b'{"item":null}', b'{"item":"text"}'])
def test_an_event_of_no_item_tells_of_none(data: bytes) -> None:
    assert read_item_done(data) == (None, None)


@pytest.mark.parametrize("data", [b"x", b"[]", DEEP])
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


def test_metadata_is_mended_beside_numbers_that_cannot_be_read() -> None:
    data = b'{"n":1e999,"headers":{"x-codex-turn-state":"a","x-codex-used":1e999}}'
    assert read_turn_state(data) == "a"
    without = without_limit_headers(data)
    assert without == b'{"n":1e999,"headers":{"x-codex-turn-state":"a"}}'
    assert with_turn_state(without, "b") == without.replace(b'"a"', b'"b"')


def test_metadata_without_headers_has_no_turn_state() -> None:
    assert read_turn_state(b'{"type":"response.metadata"}') is None
    assert read_turn_state(b"nonsense") is None


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b'{"sequence_number":7}', 7),
        (b'{"sequence_number":null}', -1),
        (b"{}", -1),
        (b'{"sequence_number":"7"}', 7),
        (b'{"sequence_number":7.0}', 7),
        (b'{"sequence_number":"x"}', -1),
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


# --- tolerant json --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "strict"),
    [
        (b'{"a":NaN}', b'{"a":null}'),
        (b"[Infinity,-Infinity, NaN]", b"[null,null, null]"),
        (b'{"a":"NaN, \\"NaN\\" and Infinity"}', b'{"a":"NaN, \\"NaN\\" and Infinity"}'),
        (b'{"a\\\\":NaN}', b'{"a\\\\":null}'),
        (b'"\\ud83d"', b'"\\ufffd"'),
        (b'"\\uD83D x \\uDE00"', b'"\\ufffd x \\ufffd"'),
        (b'"\\ude00\\ud83d"', b'"\\ufffd\\ufffd"'),
        (b'"\\ud83d\\ude00"', b'"\\ud83d\\ude00"'),
        (b'"\\ud83d\\ud83d\\ude00"', b'"\\ufffd\\ud83d\\ude00"'),
        (b'"\\\\ud83d"', b'"\\\\ud83d"'),
        (b'"\\\\\\ud83d"', b'"\\\\\\ufffd"'),
        (b'{"a":1.50}', b'{"a":1.50}'),
        (b"nonsense", b"nonsense"),
    ],
)
def test_only_what_is_refused_is_changed(data: bytes, strict: bytes) -> None:
    assert strict_json(data) == strict


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=6)
    | st.sampled_from(["NaN", "\ud83d", "\\ud83d", '"', "\\", "-Infinity"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "NaN", "\udc00", '"']), inner, max_size=3)
    ),
    max_leaves=8,
)


def as_it_should_be(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return "".join("\ufffd" if 0xD800 <= ord(each) < 0xE000 else each for each in value)
    if isinstance(value, list):
        return [as_it_should_be(each) for each in value]
    if isinstance(value, dict):
        return {as_it_should_be(name): as_it_should_be(each) for name, each in value.items()}
    return value


@given(VALUES)
def test_what_a_lax_writer_wrote_is_read_by_a_strict_reader(value: Any) -> None:
    assert msgspec.json.decode(strict_json(json.dumps(value).encode())) == as_it_should_be(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_taken(data: bytes) -> None:
    assert strict_json(strict_json(data)) == strict_json(data)


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b'{"a":1}', True),
        (b'{"a":NaN}', True),
        (b'{"a":"\\ud83d"}', True),
        (b'{"a":1', False),
        (b'{"a":"', False),
        (b"", False),
        (b"{} {}", False),
    ],
)
def test_a_text_that_was_cut_is_not_whole(data: bytes, whole: bool) -> None:
    assert is_whole(data) is whole


def test_a_member_is_read_as_what_it_should_be_or_not_at_all() -> None:
    assert [text_of(raw) for raw in (b'"a"', b"7", b"null", b"{", None)] == ["a", *[None] * 4]
    assert value_of(b"1e999") is None
    numbers = [
        b"3",
        b'"3"',
        b"3.0",
        b"true",
        b"3.5",
        b"-3",
        b'"x"',
        b"1e300",
        b'"' + b"9" * 99 + b'"',
    ]
    assert [whole_number(value_of(raw)) for raw in numbers] == [3, 3, 3, *[None] * 6]
