"""The upstream's request: the client's members, minus what is not meant for it (§3.2, §8.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.headers import forwardable
from gateway.protocol.request import TurnRequest, read_chat, read_create, read_members, read_post
from gateway.protocol.response_body import read_compaction
from gateway.protocol.upstream_request import (
    PLAIN,
    Dialect,
    build_body,
    build_chat_body,
    build_headers,
    build_input_body,
    hoist_tools,
)
from gateway.protocol.usage import Usage, usage_in_tail
from tests.support.events import Json, user

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


# --- dialect --------------------------------------------------------------------------


def tool(name: str, **members: Any) -> Json:
    return {"type": "function", "name": name, **members}


def brings(*tools: Any) -> Json:
    return {"type": "additional_tools", "tools": list(tools)}


def hoisted(items: list[Any], tools: Any = None) -> tuple[list[Any], Any]:
    kept, merged = hoist_tools([json.dumps(item).encode() for item in items], dump(tools))
    return [json.loads(raw) for raw in kept], json.loads(merged)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def sent(dialect: Dialect, *items: Json, **members: Any) -> Json:
    message = {"type": "response.create", "model": "gpt-5.5", "input": list(items), **members}
    payload = dump(message)
    request = read_create(read_members(payload), len(payload))
    return dict(json.loads(build_body(request, None, None, dialect)))


# --- tools ---------------------------------------------------------------------------


def test_tools_that_items_bring_become_the_requests_own() -> None:
    items, tools = hoisted([user("hi"), brings(tool("a")), user("go"), brings(tool("b"))])
    assert items == [user("hi"), user("go")]
    assert tools == [tool("a"), tool("b")]


def test_the_last_definition_of_a_name_counts_at_the_place_of_the_first() -> None:
    new = tool("a", description="new")
    _, tools = hoisted([brings(new, tool("c"))], [tool("a"), tool("b")])
    assert tools == [new, tool("b"), tool("c")]


def test_tools_of_different_kinds_may_share_a_name() -> None:
    custom = {"type": "custom", "name": "a"}
    assert hoisted([brings(custom)], [tool("a")])[1] == [tool("a"), custom]


def test_servers_are_told_apart_by_their_labels() -> None:
    servers = [
        {"type": "mcp", "server_label": label, "server_url": "http://x"} for label in ("one", "two")
    ]
    assert hoisted([brings(servers[1])], servers[:1])[1] == servers
    search = {"type": "web_search"}
    assert hoisted([brings(search)], [search, servers[0]])[1] == [search, servers[0]]


@pytest.mark.parametrize("tools", [None, [], [tool("a")]])
def test_without_such_items_nothing_is_touched(tools: Any) -> None:
    said = [user("an item of type additional_tools"), {"type": "x", "y": '"additional_tools"'}]
    raws = [dump(item) for item in said]
    assert hoist_tools(raws, dump(tools)) == (raws, dump(tools))


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "additional_tools", "tools": None},
        {"type": "additional_tools", "tools": "x"},
        {"type": 5, "note": "additional_tools"},
    ],
)
def test_items_of_another_shape_are_left_to_the_upstream(odd: Json) -> None:
    assert hoisted([odd], [tool("a")]) == ([odd], [tool("a")])


def test_tools_that_cannot_be_read_pass_as_they_are() -> None:
    strange = [5, "x", {"type": 1}, {"type": "function", "name": ["a"]}]
    assert hoisted([brings(*strange)], strange)[1] == [*strange, *strange]


def test_an_item_that_brings_none_disappears_all_the_same() -> None:
    items, tools = hoisted([brings(), user("hi")], [tool("a")])
    assert items == [user("hi")]
    assert tools == [tool("a")]


TOOLS = st.builds(tool, st.sampled_from("abcd"), description=st.integers(0, 3))


@given(st.lists(TOOLS, max_size=4), st.lists(st.lists(TOOLS, max_size=3), max_size=4))
def test_every_name_is_offered_once_in_its_last_form(
    own: list[Json], brought: list[list[Json]]
) -> None:
    items = [item for tools in brought for item in (user("x"), brings(*tools))]
    kept, tools = hoisted(items, own or None)
    everything = [*own, *(each for tools in brought for each in tools)]
    assert kept == [user("x")] * len(brought), "of the input nothing else is lost"
    if any(brought):
        assert {each["name"]: each for each in tools} == {each["name"]: each for each in everything}
        assert len(tools) == len({each["name"] for each in everything})


# --- whole bodies --------------------------------------------------------------------


def test_the_platforms_own_dialect_changes_nothing() -> None:
    said = sent(PLAIN, user("hi"), brings(tool("a")), store=True, metadata={"a": "b"})
    assert (said["model"], said["store"]) == ("gpt-5.5", True)
    assert said["input"][1] == brings(tool("a"))
    assert "tools" not in said
    assert "prompt_cache_key" not in said


def test_an_account_gets_its_own_name_of_the_model_and_no_members_that_it_refuses() -> None:
    dialect = Dialect("gpt-5.5-2026", frozenset({"metadata", "truncation"}))
    said = sent(dialect, user("hi"), metadata={"a": "b"}, truncation="auto", top_p=1)
    assert said["model"] == "gpt-5.5-2026"
    assert said["top_p"] == 1
    assert not {"metadata", "truncation"} & set(said)


@pytest.mark.parametrize("store", [True, False, None])
def test_an_account_that_may_not_store_is_told_so(store: bool | None) -> None:
    members = {} if store is None else {"store": store}
    assert sent(Dialect(stores=False), user("hi"), **members)["store"] is False


def test_a_cache_key_is_added_where_there_is_none() -> None:
    dialect = Dialect(cache_key="derived")
    assert sent(dialect, user("hi"))["prompt_cache_key"] == "derived"
    assert sent(dialect, user("hi"), prompt_cache_key="own")["prompt_cache_key"] == "own"


def test_hoisted_tools_stand_beside_the_rest() -> None:
    said = sent(Dialect(hoists_tools=True), brings(tool("b")), user("hi"), tools=[tool("a")])
    assert said["tools"] == [tool("a"), tool("b")]
    assert said["input"] == [user("hi")]


# --- compactions -----------------------------------------------------------------------


def posted(body: bytes) -> TurnRequest:
    return read_post(read_members(body), len(body))


def test_members_keep_the_clients_bytes() -> None:
    body = b'{"model":"m","input":[ {"role":"user","content":"\\u00e9"} ],"n": 1.0}'
    built = build_input_body(posted(body), None, None, PLAIN)
    assert json.loads(built) == json.loads(body)
    assert b'[ {"role":"user","content":"\\u00e9"} ]' in built
    assert b'"n":1.0' in built


def test_the_clients_previous_response_never_goes_along_by_itself() -> None:
    body = b'{"model":"m","previous_response_id":"resp_1"}'
    assert json.loads(build_input_body(posted(body), None, None, PLAIN)) == {"model": "m"}
    chained = json.loads(build_input_body(posted(body), None, "resp_1", PLAIN))
    assert chained == {"model": "m", "previous_response_id": "resp_1"}
    sent_along = json.loads(build_input_body(posted(body), [b"1", b"2"], None, PLAIN))
    assert sent_along == {"model": "m", "input": [1, 2]}


def test_an_account_gets_its_own_words() -> None:
    dialect = Dialect("own", frozenset({"truncation"}), cache_key="k")
    body = b'{"model":"m","truncation":"auto","input":"hi"}'
    built = json.loads(build_input_body(posted(body), None, None, dialect))
    assert built == {"model": "own", "input": "hi", "prompt_cache_key": "k"}
    body = b'{"model":"m","prompt_cache_key":"mine"}'
    assert (
        json.loads(build_input_body(posted(body), None, None, dialect))["prompt_cache_key"]
        == "mine"
    )


def test_a_compaction_is_read_without_touching_its_items() -> None:
    raw = b'{"output":[ {"type":"compaction" ,"encrypted_content":"x"}],"usage":{"input_tokens":1}}'
    compacted = read_compaction(raw)
    assert compacted.items == (b'{"type":"compaction" ,"encrypted_content":"x"}',)
    assert compacted.usage == Usage(1, 0, 0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"output":5}', b'{"usage":5}', b"\xff"])
def test_an_answer_of_another_shape_holds_nothing(body: bytes) -> None:
    assert read_compaction(body) == ((), None)


# --- chat -----------------------------------------------------------------------------


ANSWER = b'{"id":"c-1","usage": {"prompt_tokens":4,"completion_tokens":2} ,"x":null}'
READ = frozenset({"model", "stream", "store", "prompt_cache_key"})


@given(
    text=st.text(max_size=40),
    usage=st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99)}),
)
def test_what_a_model_says_is_never_taken_for_usage(text: str, usage: dict[str, Any]) -> None:
    said = f'"usage": {{"prompt_tokens": 1}} {text}'
    answer = json.dumps({"choices": [said], "usage": usage, "more": [said]}).encode()
    assert usage_in_tail(answer) == Usage(usage["prompt_tokens"], 0, 0)
    assert usage_in_tail(json.dumps({"choices": [said]}).encode()) is None


@given(tail=st.binary(max_size=80), cut=st.integers(0, 60))
def test_any_tail_can_be_searched(tail: bytes, cut: int) -> None:
    usage_in_tail(tail)
    usage_in_tail(b'{"usage":{"prompt_tokens":[[[' + tail)
    usage_in_tail(ANSWER[cut:])
    usage_in_tail(b'"usage":' + b'{"a":' * 20_000)


@given(
    members=st.dictionaries(
        st.text(max_size=5).filter(lambda name: name.lower() != "model"),
        st.integers() | st.text(max_size=5).filter(lambda text: text != "model"),
        max_size=5,
    )
)
def test_a_changed_body_keeps_every_other_member(members: dict[str, Any]) -> None:
    members = {
        "model": "m",
        **{
            k: v
            for k, v in members.items()
            if k not in ("model", "stream", "store", "prompt_cache_key")
        },
    }
    request = read_chat(json.dumps(members).encode())
    assert json.loads(build_chat_body(request, "other", True)) == {**members, "model": "other"}
    assert build_chat_body(request, None, True) == request.body


@pytest.mark.parametrize("second", [b'"model"', b'"mod\\u0065l"'])
def test_a_model_that_is_named_twice_is_sent_once(second: bytes) -> None:
    """The key's models were compared with the last one; some services read the first."""
    chat = read_chat(b'{"model":"forbidden",%b:"allowed"}' % second)
    assert chat.model == "allowed"
    assert build_chat_body(chat, None, True) == b'{"model":"allowed"}'
