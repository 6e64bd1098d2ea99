"""A client's object is split into what it is, whatever it is made of, or refused at once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import request as splitting
from gateway.protocol.errors import ApiError
from gateway.protocol.request import MAX_MEMBERS, Members, read_members, split_object

LARGE = ("input", "tools", "messages", "instructions")
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["x" * 30, '"input":1']),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LARGE, "a"]), inner)
    ),
    max_leaves=12,
)
PAIRS = st.lists(st.tuples(st.sampled_from([*LARGE, "model", "a", "b"]), VALUES), max_size=8)


def written(pairs: list[tuple[str, Any]], space: str) -> bytes:
    """An object with these members, some of them maybe twice."""
    members = (f"{space}{json.dumps(name)}{space}:{space}{json.dumps(v)}" for name, v in pairs)
    return ("{" + ",".join(members) + "}").encode()


def small_bounds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(splitting, "_SMALL", 0)
    patch.setattr(splitting, "_LARGE", 8)


@given(PAIRS, st.sampled_from(["", " ", "\n\t"]))
def test_what_is_cut_out_is_put_back(pairs: list[tuple[str, Any]], space: str) -> None:
    payload = written(pairs, space)
    with pytest.MonkeyPatch.context() as patch:
        small_bounds(patch)
        members = split_object(payload)
    expected = msgspec.json.Decoder(Members).decode(payload)
    assert {name: bytes(raw) for name, raw in members.items()} == {
        name: bytes(raw) for name, raw in expected.items()
    }
    assert list(members) == list(expected)


BIG = json.dumps(["text: more, of it"] * 5000)


@pytest.mark.parametrize("name", LARGE)
def test_what_honest_requests_are_made_of_may_be_as_large_as_they_are(name: str) -> None:
    payload = f'{{"model": "m", "{name}": {BIG}, "store": false}}'.encode()
    members = read_members(payload)
    assert bytes(members[name]) == BIG.encode()
    assert list(members) == ["model", name, "store"]


def many(count: int) -> str:
    return ",".join(f'"a{number}":1' for number in range(count))


@pytest.mark.parametrize(
    "payload",
    [
        "{" + many(MAX_MEMBERS + 1) + "}",
        "{" + many(100_000) + "}",
        '{"model":"m","input":"x",' + many(100_000) + "}",
        "{" + many(100_000) + f',"input":{BIG}}}',
        "{" + '"a":1,' * 100_000 + '"b":1}',
        f'{{"metadata":{{"input":{BIG}}},"input":{BIG},' + many(30_000) + "}",
    ],
    ids=["just too many", "only members", "behind", "before", "the same", "hidden input"],
)
def test_too_many_members_are_refused_before_they_are_kept(payload: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_members(payload.encode())
    assert caught.value.status == 400
    assert "members" in caught.value.message


def test_so_many_members_are_read() -> None:
    assert len(read_members(("{" + many(MAX_MEMBERS) + "}").encode())) == MAX_MEMBERS


@pytest.mark.parametrize("name", ["input", "metadata", "anything"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_refused_in_our_words(name: str, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    payload = f'{{"{name}":{opening * 100_000}1{closing * 100_000}}}'
    with pytest.raises(ApiError, match="nested too deeply"):
        read_members(payload.encode())
