"""JSON that strict parsers refuse, made JSON that they take."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.events import is_whole, mended, text_of, value_of
from gateway.protocol.usage import whole_number


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
    assert mended(data) == strict


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
    assert msgspec.json.decode(mended(json.dumps(value).encode())) == as_it_should_be(value)


@given(st.binary(max_size=60))
def test_any_bytes_are_taken(data: bytes) -> None:
    assert mended(mended(data)) == mended(data)


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
