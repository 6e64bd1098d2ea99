"""Messages to and from an upstream over WebSocket, and what opens a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.headers import forwardable
from gateway.protocol.request import TurnRequest, read_create, read_members
from gateway.protocol.turn_state import TURN_STATE
from gateway.protocol.upstream_request import Dialect, UpstreamTurn
from gateway.protocol.websocket_messages import (
    MAX_REQUEST_BYTES,
    SESSION_HEADERS,
    UpgradeRefusal,
    create_message,
    ends_response,
    handshake_authorization,
    handshake_headers,
    is_out_of_band,
    names_a_session,
    read_message,
    read_until_end,
    refusal_of_upgrade,
    response_id,
)


def request(**members: Any) -> TurnRequest:
    body = {"type": "response.create", "model": "m", "input": "hi", **members}
    raw = json.dumps(body).encode()
    return read_create(read_members(raw), len(raw))


def message(turn: UpstreamTurn) -> Any:
    return json.loads(create_message(turn))


# --- requests ------------------------------------------------------------------------------


def test_a_turn_is_one_create_without_what_only_http_or_the_client_has() -> None:
    turn = UpstreamTurn(request(stream=True, stream_id="lane", store=False, temperature=0.5))
    assert message(turn) == {
        "type": "response.create",
        "model": "m",
        "store": False,
        "temperature": 0.5,
        "include": ["reasoning.encrypted_content"],
        "input": "hi",
    }
    assert create_message(turn).startswith(b'{"type":"response.create",'), "read without a parser"


def test_members_that_need_no_change_keep_their_bytes() -> None:
    raw = b'{"type":"response.create","input":"hi","metadata":{"a" : 1.0, "b":"\\u00e4"}}'
    sent = create_message(UpstreamTurn(read_create(read_members(raw), len(raw))))
    assert b'{"a" : 1.0, "b":"\\u00e4"}' in sent


def test_a_chained_turn_has_the_new_items_only() -> None:
    turn = UpstreamTurn(request(), [b'{"a":1}'], "resp_1")
    assert message(turn)["previous_response_id"] == "resp_1"
    assert message(turn)["input"] == [{"a": 1}]


@pytest.mark.parametrize("generate", [False, True, None])
def test_a_prewarm_is_sent_as_one(generate: bool | None) -> None:
    members = {} if generate is None else {"generate": generate}
    sent = message(UpstreamTurn(request(**members)))
    assert sent.get("generate") == (False if generate is False else None)


def test_the_dialect_holds_over_websocket_too() -> None:
    dialect = Dialect(model="other", strip=frozenset({"temperature"}), stores=False)
    sent = message(UpstreamTurn(request(temperature=1, store=True), dialect=dialect))
    assert sent["model"] == "other"
    assert sent["store"] is False
    assert "temperature" not in sent


METADATA = {"x-codex-turn-metadata": "m", "ws_request_header_traceparent": "t"}


@pytest.mark.parametrize(
    ("given_state", "own", "sent"),
    [
        (None, None, None),
        (None, "up", "up"),
        ("gateway's", None, None),
        ("gateway's", "up", "up"),
        ("gateway's", "b\r\nad", None),
    ],
)
def test_all_metadata_is_sent_with_the_upstreams_own_turn_state(
    given_state: str | None, own: str | None, sent: str | None
) -> None:
    metadata = dict(METADATA)
    if given_state is not None:
        metadata[TURN_STATE] = given_state
    turn = UpstreamTurn(request(client_metadata=metadata), turn_state=own)
    expected = {**METADATA, TURN_STATE: sent} if sent is not None else METADATA
    assert message(turn)["client_metadata"] == expected


def test_metadata_is_made_for_a_turn_state_alone() -> None:
    assert message(UpstreamTurn(request(), turn_state="s"))["client_metadata"] == {TURN_STATE: "s"}
    assert "client_metadata" not in message(UpstreamTurn(request()))


def test_the_bound_leaves_room_below_what_services_read() -> None:
    assert MAX_REQUEST_BYTES == 16_777_216 - 65_536


# --- the handshake -------------------------------------------------------------------------


def test_a_handshake_has_the_clients_headers_and_the_accounts_win() -> None:
    turn = UpstreamTurn(request(), client_headers={"user-agent": "codex", "originator": "cli"})
    assert handshake_headers(turn, [("User-Agent", "ours")]) == {
        "user-agent": "ours",
        "originator": "cli",
    }


def test_no_header_of_the_clients_own_handshake_is_passed_on() -> None:
    client = {
        "host": "gateway",
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-key": "x",
        "sec-websocket-version": "13",
        "sec-websocket-protocol": "p",
        "sec-websocket-extensions": "permessage-deflate",
        "content-length": "0",
        "transfer-encoding": "chunked",
        "accept": "*/*",
        "accept-encoding": "br",
        "origin": "http://evil",
        "authorization": "Bearer client",
        "cookie": "a=b",
    }
    turn = UpstreamTurn(request(), client_headers=forwardable(client))
    assert handshake_headers(turn, []) == {}


def test_a_spare_socket_names_no_client() -> None:
    assert handshake_headers(None, [("X-Own", "a")], "b=1") == {"x-own": "a", "openai-beta": "b=1"}


@pytest.mark.parametrize(
    ("client", "account", "beta", "sent"),
    [
        (None, None, None, None),
        (None, None, "ws=1", "ws=1"),
        ("responses=experimental", None, None, None),
        ("responses=experimental", None, "ws=1", "ws=1"),
        ("a, responses=experimental ,,b", None, "ws=1", "a, b, ws=1"),
        ("a, ws=1", None, "ws=1", "a, ws=1"),
        ("a", "b", "ws=1", "b, ws=1"),
    ],
)
def test_the_beta_header_has_the_accounts_value_and_none_of_http(
    client: str | None, account: str | None, beta: str | None, sent: str | None
) -> None:
    headers = {} if client is None else {"openai-beta": client}
    own = [] if account is None else [("OpenAI-Beta", account)]
    turn = UpstreamTurn(request(), client_headers=headers)
    assert handshake_headers(turn, own, beta).get("openai-beta") == sent


def test_turn_state_is_no_header_of_a_handshake() -> None:
    """It belongs to one turn, and the socket has many."""
    assert TURN_STATE not in handshake_headers(UpstreamTurn(request(), turn_state="s"), [])


@pytest.mark.parametrize(
    ("over_http", "sent"),
    [
        ({"authorization": "Bearer t"}, {"authorization": "Bearer t"}),
        ({"api-key": "k"}, {"authorization": "Bearer k"}),
        ({"x-goog-api-key": "k"}, {"x-goog-api-key": "k"}),
        ({}, {}),
    ],
)
def test_api_keys_are_bearer_tokens(over_http: dict[str, str], sent: dict[str, str]) -> None:
    before = dict(over_http)
    assert handshake_authorization(over_http) == sent
    assert over_http == before


def test_some_headers_name_a_session() -> None:
    assert all(names_a_session({name: "x"}) for name in SESSION_HEADERS)
    assert not names_a_session({"user-agent": "x", "originator": "y"})
    turn = UpstreamTurn(request(), client_headers={"thread-id": "t"})
    assert names_a_session(handshake_headers(turn, []))


def test_every_refusal_is_about_something() -> None:
    about_account, lasting = (401, 429), (400, 404, 405, 410, 426, 501)
    for status in range(100, 600):
        expected = UpgradeRefusal.TRANSIENT
        if status in about_account:
            expected = UpgradeRefusal.ACCOUNT
        elif status in lasting:
            expected = UpgradeRefusal.NO_WEBSOCKET
        assert refusal_of_upgrade(status) is expected


# --- events --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        (b'{"type":"response.created"}', (b"response.created", b'{"type":"response.created"}')),
        (b'{"a":1,"type":"x"}', (b"x", b'{"a":1,"type":"x"}')),
        (b'{\r\n"type":\n"x"\r}', (b"x", b'{  "type": "x" }')),
        (b'{"error":{"message":"no"}}', (b"error", b'{"error":{"message":"no"}}')),
        (b'{"type":""}', None),
        (b'{"type":1}', None),
        (b"{}", None),
        (b"[]", None),
        (b"", None),
        (b"[DONE]", None),
        (b"ping", None),
    ],
)
def test_a_message_is_an_event_under_its_type(
    payload: bytes, event: tuple[bytes, bytes] | None
) -> None:
    assert read_message(payload) == event


@given(st.one_of(st.text().map(str.encode), st.binary()))
def test_no_message_raises(payload: bytes) -> None:
    for each in (payload, b'{"type":' + payload, b'{"type":"x","a":"' + payload + b'"}'):
        event = read_message(each)
        assert event is None or event[0]


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner)))
def test_no_type_of_any_kind_raises(kind: Any) -> None:
    event = read_message(json.dumps({"a": 1, "type": kind}).encode())
    assert (event is not None) == (isinstance(kind, str) and bool(kind))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"codex.rate_limits", True),
        (b"codex.anything", True),
        (b"responsesapi.websocket_timing", True),
        (b"keepalive", True),
        (b"response.metadata", True),
        (b"response.metadata.more", False),
        (b"response.created", False),
        (b"response.completed", False),
        (b"error", False),
        (b"x", False),
    ],
)
def test_some_messages_may_come_at_any_time(name: bytes, expected: bool) -> None:
    assert is_out_of_band(name) is expected


def test_which_events_end_a_response() -> None:
    ends = [b"completed", b"failed", b"incomplete", b"done", b"cancelled", b"error"]
    assert all(ends_response(b"response." + name) for name in ends)
    assert ends_response(b"error")
    assert not any(map(ends_response, [b"response.created", b"response.in_progress", b"codex.x"]))


# --- messages in batches ------------------------------------------------------------------

DELTA = "response.output_text.delta"


def event(kind: str, **members: Any) -> bytes:
    return json.dumps({"type": kind, **members}, separators=(",", ":")).encode()


def deltas(*texts: str) -> list[bytes]:
    return [event(DELTA, delta=text) for text in texts]


def test_a_batch_is_read_as_each_of_its_messages() -> None:
    batch = [
        event("response.created"),
        *deltas("a", "b"),
        event("codex.rate_limits"),
        *deltas("c"),
        event("response.output_text.done"),
        b'{"delta":"d","type":"response.output_text.delta"}',
        b'{ "type" : "response.output_text.delta" }',
        *deltas("e"),
        b'{"type":"response.output_text.deltas"}',
    ]
    assert read_until_end(batch) == ([read_message(each) for each in batch], [])


def test_what_follows_an_end_is_left() -> None:
    batch = [
        *deltas("a"),
        event("response.completed"),
        event("codex.rate_limits"),
        *deltas("b"),
    ]
    events, rest = read_until_end(batch)
    assert [name for name, _ in events] == [DELTA.encode(), b"response.completed"]
    assert rest == batch[2:]


def test_an_error_is_the_last_that_is_read() -> None:
    batch = [event("error"), event("response.failed")]
    assert read_until_end(batch) == ([(b"error", batch[0])], batch[1:])


def test_events_become_one_line_each_wherever_line_ends_stand() -> None:
    lines = [b'{"type":"%b",\r\n"delta":"%d"}' % (DELTA.encode(), number) for number in range(3)]
    events, _ = read_until_end([*deltas("a"), *lines, *deltas("b")])
    assert [payload for _, payload in events] == [
        *deltas("a"),
        *(line.replace(b"\r\n", b"  ") for line in lines),
        *deltas("b"),
    ]


def test_what_is_no_event_is_left_out() -> None:
    batch = [*deltas("a"), b"[]", b"nonsense", *deltas("b")]
    events, rest = read_until_end(batch)
    assert [payload for _, payload in events] == deltas("a", "b")
    assert rest == []


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (event("response.created", sequence_number=0, response={"id": "resp_1"}), b"resp_1"),
        (b'{"type": "response.created", "response": {"object": "x", "id": "r"}}', b"r"),
        (event("response.created", response={"object": "response"}), b""),
        (event("response.created", response={"id": 7}), b""),
        (event("response.created"), b""),
        (event(DELTA, delta='"response":{"id":"resp_2"'), b""),
        (b"nonsense", b""),
    ],
)
def test_the_id_of_a_response_is_found_where_it_stands(payload: bytes, expected: bytes) -> None:
    assert response_id(payload) == expected
