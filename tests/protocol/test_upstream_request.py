"""The upstream's request: the client's members, minus what is not meant for it (§3.2, §8.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.headers import forwardable
from gateway.protocol.request import TurnRequest, read_create, read_members
from gateway.protocol.upstream_request import Dialect, build_body, build_headers

STRIPPED = {"type", "generate", "stream_id", "background", "stream", "previous_response_id"}
SEALED = "reasoning.encrypted_content"

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
OPAQUE = st.sampled_from(["tools", "instructions", "temperature", "text", "x_new", 'a"b', "é"])


def request_of(payload: bytes) -> TurnRequest:
    return read_create(read_members(payload), len(payload))


def request(**members: Any) -> TurnRequest:
    return request_of(json.dumps({"type": "response.create", **members}).encode())


def body(
    one: TurnRequest, items: list[bytes] | None = None, previous: str | None = None
) -> dict[str, Any]:
    decoded = json.loads(build_body(one, items, previous))
    assert isinstance(decoded, dict)
    return decoded


@given(
    st.dictionaries(OPAQUE, JSON_VALUES),
    st.none() | st.lists(JSON_VALUES, max_size=3),
    st.none() | st.text(min_size=1, max_size=5),
    st.sampled_from([{}, {"input": "hi"}, {"input": []}, {"input": [{"role": "user"}]}]),
)
def test_a_body_is_the_clients_members_and_the_gateways_few(
    members: dict[str, Any], items: list[Any] | None, previous: str | None, own: dict[str, Any]
) -> None:
    sent = {"generate": None, "stream_id": "a", "background": False, "stream": False}
    one = request(**members, **own, **sent, previous_response_id="theirs")
    raw = None if items is None else [json.dumps(item).encode() for item in items]
    expected = {"stream": True, **members, **own}
    if previous is not None:
        expected["previous_response_id"] = previous
    if items is not None:
        expected["input"] = items
    assert body(one, raw, previous) == expected


def test_big_members_keep_their_bytes() -> None:
    tools, items = b'[ {"n":1.50e2} ,\n{} ]', b'[ {"role":"user" } ]'
    payload = b'{"type":"response.create","tools":' + tools + b',"input":' + items + b"}"
    built = build_body(request_of(payload), None, None)
    assert b'"tools":' + tools in built
    assert b'"input":' + items in built


def test_replayed_items_keep_their_bytes() -> None:
    built = build_body(request(input="ignored"), [b'{ "a":1 }', b'{"b" :2}'], None)
    assert b'"input":[{ "a":1 },{"b" :2}]' in built
    assert b"ignored" not in built


def test_services_that_never_store_get_text_as_a_list() -> None:
    plain = request(model="m", input="hi")
    assert json.loads(build_body(plain, None, None))["input"] == "hi"
    listed = json.loads(build_body(plain, None, None, Dialect(stores=False)))["input"]
    assert listed == [{"type": "message", "role": "user", "content": "hi"}]


def test_nothing_of_the_gateways_own_goes_upstream() -> None:
    one = request(
        generate=False, stream_id="a", background=False, stream=False, previous_response_id="r"
    )
    assert body(one) == {"stream": True}


def test_a_replay_of_nothing_is_an_empty_input() -> None:
    assert body(request(), []) == {"stream": True, "input": []}


@pytest.mark.parametrize(
    ("include", "sent"),
    [
        (None, [SEALED]),
        ([], [SEALED]),
        ([SEALED], [SEALED]),
        (["message.input_image.image_url"], ["message.input_image.image_url", SEALED]),
        ("text", "text"),
        ({}, {}),
    ],
)
def test_without_storage_sealed_reasoning_is_asked_for(include: object, sent: object) -> None:
    assert body(request(store=False, include=include))["include"] == sent


def test_without_storage_and_include_sealed_reasoning_is_asked_for() -> None:
    assert body(request(store=False))["include"] == [SEALED]


@pytest.mark.parametrize("store", [True, None])
def test_with_storage_the_client_says_what_it_wants(store: object) -> None:
    assert "include" not in body(request(store=store))
    assert body(request(store=store, include=["a"]))["include"] == ["a"]


def test_an_include_that_cannot_be_read_is_the_upstreams_to_refuse() -> None:
    one = request_of(b'{"store":false,"include":[1e999]}')
    assert b'"include":[1e999]' in build_body(one, None, None)


@pytest.mark.parametrize(
    ("metadata", "sent"),
    [
        (
            {
                "turn_id": "t",
                "ws_request_header_traceparent": "00-1",
                "x-codex-ws-stream-request-start-ms": "17",
            },
            {"turn_id": "t"},
        ),
        ({"turn_id": "t"}, {"turn_id": "t"}),
        ("ws_request_header_x", "ws_request_header_x"),
        (None, None),
    ],
)
def test_client_metadata_loses_what_stands_for_headers(metadata: object, sent: object) -> None:
    assert body(request(client_metadata=metadata))["client_metadata"] == sent


# --- headers -------------------------------------------------------------------------


def test_known_headers_of_the_client_travel_and_others_do_not() -> None:
    client_headers = forwardable(
        {
            "session-id": "s",
            "session_id": "s",
            "originator": "codex",
            "user-agent": "codex/1",
            "authorization": "Bearer client",
            "cookie": "c",
            "host": "gateway",
            "openai-beta": "responses_websockets=2026-02-06",
            "x-codex-window-id": "",
            "x-codex-turn-state": "of another turn",
            "x-codex-of-a-later-version": "1",
            "x-openai-of-a-later-version": "2",
        }
    )
    assert build_headers(request(), client_headers, []) == {
        "content-type": "application/json",
        "accept": "text/event-stream",
        "session-id": "s",
        "session_id": "s",
        "originator": "codex",
        "user-agent": "codex/1",
        "x-codex-of-a-later-version": "1",
        "x-openai-of-a-later-version": "2",
    }


def test_metadata_of_the_turn_becomes_headers() -> None:
    one = request(
        client_metadata={
            "ws_request_header_traceparent": "00-1",
            "ws_request_header_tracestate": "a=b",
            "ws_request_header_x_openai_internal_codex_responses_lite": "true",
            "x-codex-turn-state": "another account's",
            "x-codex-window-id": "new",
            "thread_id": "t",
        }
    )
    headers = build_headers(one, {"x-codex-window-id": "old"}, [], "this account's")
    assert headers["traceparent"] == "00-1"
    assert headers["tracestate"] == "a=b"
    assert headers["x-openai-internal-codex-responses-lite"] == "true"
    assert headers["x-codex-turn-state"] == "this account's"
    assert headers["x-codex-window-id"] == "new", "the turn knows better than the handshake"
    assert "thread_id" not in headers


@pytest.mark.parametrize("value", ["a\r\nx-evil: 1", "a\nb", "\0", ""])
def test_metadata_cannot_smuggle_headers(value: str) -> None:
    metadata = {"x-codex-turn-metadata": value}
    headers = build_headers(request(client_metadata=metadata), {}, [], value)
    assert "x-codex-turn-metadata" not in headers
    assert "x-codex-turn-state" not in headers


def test_the_accounts_headers_win() -> None:
    headers = build_headers(
        request(),
        {"user-agent": "codex/1"},
        [("Authorization", "Bearer k"), ("User-Agent", "g"), ("Accept", "*/*")],
    )
    assert headers["authorization"] == "Bearer k"
    assert (headers["user-agent"], headers["accept"]) == ("g", "*/*")
