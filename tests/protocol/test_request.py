"""Client messages: split once, read as far as needed, each mistake naming its member (§3)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol import request as request_module
from gateway.protocol.errors import ApiError
from gateway.protocol.request import (
    MAX_MEMBERS,
    Members,
    TurnRequest,
    member,
    read_create,
    read_members,
    read_stream_id,
    read_type,
    split_object,
)

DEEP = b"[" * 100_000 + b"]" * 100_000

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


def create(**members: Any) -> TurnRequest:
    payload = json.dumps({"type": "response.create", **members}).encode()
    return read_create(read_members(payload), len(payload))


def read(payload: bytes) -> TurnRequest | ApiError:
    """The request, or how it is refused."""
    try:
        members = read_members(payload)
        read_type(members)
        return read_create(members, len(payload))
    except ApiError as error:
        return error


def mistake(payload: bytes) -> ApiError:
    error = read(payload)
    assert isinstance(error, ApiError), f"{payload[:80]!r} has a mistake"
    assert error.status == 400, "a mistake of the client is a 400"
    return error


def test_an_absent_member_means_its_default() -> None:
    request = create()
    assert request.items == ()
    assert request.model is None
    assert request.previous_response_id is None
    assert request.store is True
    assert request.prewarm is False
    assert request.stream_id is None
    assert request.in_conversation is False


@pytest.mark.parametrize(
    "name", ["model", "previous_response_id", "store", "generate", "stream_id", "background"]
)
def test_null_means_the_same_as_absent(name: str) -> None:
    request, plain = create(**{name: None}), create()
    assert (request.model, request.previous_response_id, request.store) == (None, None, True)
    assert (request.prewarm, request.stream_id) == (plain.prewarm, plain.stream_id)


def test_what_is_there_is_read() -> None:
    request = create(
        model="gpt-5",
        previous_response_id="resp_1",
        store=False,
        generate=False,
        stream_id="lane.A_1-",
        conversation="conv_1",
        prompt_cache_key="k",
        background=False,
        stream=True,
    )
    assert (request.model, request.previous_response_id) == ("gpt-5", "resp_1")
    assert (request.store, request.prewarm, request.prompt_cache_key) == (False, True, "k")
    assert (request.stream_id, request.in_conversation) == ("lane.A_1-", True)


def test_an_empty_previous_response_id_names_no_response() -> None:
    assert create(previous_response_id="").previous_response_id is None


@pytest.mark.parametrize(
    ("options", "prewarm"),
    [({"prewarm": True}, True), ({"prewarm": False}, False), ({}, False), ("x", False)],
)
def test_prewarming_the_cache_generates_nothing(options: object, prewarm: bool) -> None:
    assert create(prompt_cache_options=options).prewarm is prewarm


def test_a_string_input_is_one_user_message() -> None:
    (item,) = create(input='say "hi" ✓').items
    assert json.loads(item.raw) == {"type": "message", "role": "user", "content": 'say "hi" ✓'}
    assert (item.type, item.role) == ("message", "user")


@pytest.mark.parametrize("empty", [[], None])
def test_an_empty_input_has_no_items(empty: object) -> None:
    assert create(input=empty).items == ()


def test_items_keep_the_clients_bytes() -> None:
    first, second = b'{ "type":"x_new" , "n":1.50e2 }', b'{"role":"user","content":"\\u00e9"}'
    payload = b'{"type":"response.create", "input": [ ' + first + b" ,\n" + second + b" ] }"
    request = read_create(read_members(payload), len(payload))
    assert [item.raw for item in request.items] == [first, second]
    assert request.size == len(payload)


@given(st.dictionaries(st.text(min_size=1, max_size=5), JSON_VALUES, max_size=5))
def test_members_are_split_without_a_change(message: dict[str, Any]) -> None:
    members = read_members(json.dumps(message, ensure_ascii=False).encode())
    assert {name: json.loads(bytes(raw)) for name, raw in members.items()} == message


@given(st.lists(JSON_VALUES, max_size=5))
def test_any_items_pass_whatever_they_are(items: list[Any]) -> None:
    assert [json.loads(item.raw) for item in create(input=items).items] == items


# --- mistakes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5),
        ("model", ["gpt-5"]),
        ("previous_response_id", 7),
        ("previous_response_id", {"id": "resp_1"}),
        ("prompt_cache_key", 7),
        ("store", "false"),
        ("store", 0),
        ("generate", "no"),
        ("background", "yes"),
        ("background", True),
        ("input", 5),
        ("input", {"role": "user"}),
        ("input", True),
        ("stream_id", 5),
        ("stream_id", ""),
        ("stream_id", "a b"),
        ("stream_id", "x" * 257),
        ("stream_id", "line\n"),
        ("stream_id", "é"),
        ("type", 5),
    ],
)
def test_a_mistake_names_its_member(name: str, value: object) -> None:
    error = mistake(json.dumps({"type": "response.create", name: value}).encode())
    assert error.param == name
    assert f"'{name}'" in error.message


def test_a_mistake_shows_only_the_head_of_a_long_value() -> None:
    assert len(mistake(json.dumps({"type": "x", "model": [1] * 10_000}).encode()).message) < 200


def test_a_bad_lane_name_has_its_own_code() -> None:
    assert mistake(b'{"type":"response.create","stream_id":"a b"}').code == "invalid_stream_id"
    assert create(stream_id="x" * 256).stream_id == "x" * 256


def test_background_is_refused_as_unsupported() -> None:
    error = mistake(b'{"type":"response.create","background":true}')
    assert error.code == "unsupported_parameter"


@pytest.mark.parametrize("missing", [b"{}", b'{"type":""}', b'{"type":null}'])
def test_a_message_without_a_type_is_refused(missing: bytes) -> None:
    assert mistake(missing).param == "type"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello",
        b"[]",
        b'"text"',
        b"null",
        b"{",
        b'{"type":"response.create"',
        b'{"type":"response.create"}}',
        b'{"type":"response.create","input":[1,]}',
        b'{"type":"response.create","x":"\\ud800"}',
        b'{"type":"response.create","x":"\x01"}',
        b'{"type":"response.create","x":"\xff"}',
        b'{"type":"response.create","input":' + DEEP + b"}",
    ],
    ids=lambda payload: repr(payload[:50]),
)
def test_what_is_no_json_object_is_refused(payload: bytes) -> None:
    assert "JSON" in mistake(payload).message


@pytest.mark.parametrize(
    "payload",
    [b'{"stream_id":1e999}', b'{"stream_id":' + b"[" * 900 + b"]" * 900 + b"}"],
    ids=["out of range", "deep"],
)
def test_a_lane_name_that_cannot_be_read_is_refused(payload: bytes) -> None:
    with pytest.raises(ApiError, match="stream_id"):
        read_stream_id(read_members(payload))


def test_numbers_out_of_range_pass_unread() -> None:
    payload = b'{"type":"response.create","prompt_cache_options":{"x":1e999},"temperature":1e999}'
    assert not read_create(read_members(payload), len(payload)).prewarm


@given(st.binary(max_size=40) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_message_is_read_or_refused(payload: bytes) -> None:
    answer = read(payload)
    assert isinstance(answer, TurnRequest) or answer.status == 400


READ_MEMBERS = (
    *("model", "store", "generate", "input", "stream_id", "background"),
    *("previous_response_id", "conversation", "prompt_cache_options", "prompt_cache_key"),
)


@given(st.dictionaries(st.sampled_from(READ_MEMBERS), JSON_VALUES))
def test_any_members_are_read_or_refused_by_name(members: dict[str, Any]) -> None:
    answer = read(json.dumps({"type": "response.create", **members}).encode())
    if isinstance(answer, ApiError):
        assert answer.param in members, "the member at fault is one that was sent"


# --- small members -------------------------------------------------------------------


def test_a_member_is_decoded_when_it_is_there() -> None:
    members = read_members(b'{"a":"x","b":true,"c":null,"d":{"e":1}}')
    assert member(members, "a", str) == "x"
    assert member(members, "b", bool) is True
    assert member(members, "c", str) is None
    assert member(members, "none", str) is None
    assert member(members, "d", dict) == {"e": 1}


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b'{"client_metadata":{"a":"x","b":1,"c":null,"d":["y"]}}', {"a": "x"}),
        (b'{"client_metadata":"text"}', {}),
        (b'{"client_metadata":null}', {}),
        (b'{"client_metadata":{"a":1e999}}', {}),
        (b'{"client_metadata":{"a":"x","long":"%b"}}' % (b"y" * 300_000), {}),
        (b"{}", {}),
    ],
)
def test_only_texts_of_the_client_metadata_count(raw: bytes, read: dict[str, str]) -> None:
    assert read_create(read_members(raw), len(raw)).client_metadata == read


@pytest.mark.parametrize("name", ["Model", "MODEL", "modeL"])
def test_a_model_has_one_name(name: str) -> None:
    """Services in Go read names in any case, the last one wins."""
    with pytest.raises(ApiError, match=f"Unknown parameter: '{name}'"):
        read_members(json.dumps({"model": "allowed", name: "another"}).encode())


# --- what would keep the gateway busy ------------------------------------------------------


def many(count: int, item: bytes = b"{}") -> bytes:
    """A message whose input has ``count`` items."""
    return b'{"type":"response.create","input":[' + b",".join([item] * count) + b"]}"


def test_an_input_has_only_so_many_items() -> None:
    request = read(many(100_000))
    assert isinstance(request, TurnRequest)
    assert len(request.items) == 100_000
    error = mistake(many(100_001))
    assert error.param == "input"
    assert "100000 items" in error.message


def test_text_may_have_more_commas_than_an_input_has_items() -> None:
    text = json.dumps({"role": "user", "content": "1,2," * 200_000}).encode()
    request = read(many(2, text))
    assert isinstance(request, TurnRequest)
    assert len(request.items) == 2


@pytest.mark.parametrize(
    "payload",
    [
        many(3_000_000, b"1"),
        b'{"type":"response.create","client_metadata":[' + b"0," * 2_000_001 + b"0]}",
        b"{" + b",".join(b'"%d":0' % number for number in range(2_000_002)) + b"}",
    ],
    ids=["items", "a member", "members"],
)
def test_a_message_of_millions_of_values_is_not_taken_apart(payload: bytes) -> None:
    assert "commas" in mistake(payload).message


# --- splitting ------------------------------------------------------------------------


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
    patch.setattr(request_module, "_SMALL", 0)
    patch.setattr(request_module, "_LARGE", 8)


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


def numbered(count: int) -> str:
    return ",".join(f'"a{number}":1' for number in range(count))


@pytest.mark.parametrize(
    "payload",
    [
        "{" + numbered(MAX_MEMBERS + 1) + "}",
        "{" + numbered(100_000) + "}",
        '{"model":"m","input":"x",' + numbered(100_000) + "}",
        "{" + numbered(100_000) + f',"input":{BIG}}}',
        "{" + '"a":1,' * 100_000 + '"b":1}',
        f'{{"metadata":{{"input":{BIG}}},"input":{BIG},' + numbered(30_000) + "}",
    ],
    ids=["just too many", "only members", "behind", "before", "the same", "hidden input"],
)
def test_too_many_members_are_refused_before_they_are_kept(payload: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_members(payload.encode())
    assert caught.value.status == 400
    assert "members" in caught.value.message


def test_so_many_members_are_read() -> None:
    assert len(read_members(("{" + numbered(MAX_MEMBERS) + "}").encode())) == MAX_MEMBERS


@pytest.mark.parametrize("name", ["input", "metadata", "anything"])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_refused_in_our_words(name: str, opening: str) -> None:
    closing = "]" if opening == "[" else "}"
    payload = f'{{"{name}":{opening * 100_000}1{closing * 100_000}}}'
    with pytest.raises(ApiError, match="nested too deeply"):
        read_members(payload.encode())
