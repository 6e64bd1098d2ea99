"""response.create: protocol.md §10.18-29; other client messages: test_client_messages.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.conformance.helpers import as_items
from tests.support.checks import (
    assert_strictly_increasing,
    completed,
    output_text,
    response_of,
    types,
)
from tests.support.events import (
    Json,
    call_item,
    call_output,
    compaction_item,
    developer,
    reasoning_item,
    text_item,
    user,
)
from tests.support.strict import Mode
from tests.support.upstream import Exchange

pytestmark = pytest.mark.conformance

LITE = "ws_request_header_x_openai_internal_codex_responses_lite"


@pytest.mark.parametrize("stream", [True, False])
def test_10_18_stream_is_accepted_and_ignored(rig: Rig, stream: bool) -> None:
    client = rig.connect()
    completed(client.turn(stream=stream))
    assert rig.upstream.requests[0].body["stream"] is True, "the upstream is always streamed from"


ODD_ITEM = (
    '{"type":"agent_message","z":1.50,"a":1e3,"big":12345678901234567890,'
    '"text":"\\u00e9\\ud83d\\ude00 \\/ \\u2028","nested":{"b":[],"a":{}},"null":null}'
)
ODD_FIELD = '{"one": 1.0, "two":[ 1,2 ],"t":"\\u0041"}'


def test_10_19_unknown_fields_and_items_pass_unaltered(any_rig: Rig) -> None:
    frame = (
        f'{{"type":"response.create","model":"gpt-5.5","unheard_of":{ODD_FIELD},'
        f'"input":[{{"type":"message","role":"user","content":"hi"}},{ODD_ITEM}],"store":false}}'
    )
    client = any_rig.connect()
    client.send(frame)
    completed(client.until_terminal())
    request = any_rig.upstream.requests[0]
    sent = json.loads(frame)
    assert request.body["unheard_of"] == sent["unheard_of"]
    assert request.body["input"][1] == sent["input"][1]
    raw = request.raw.decode()
    assert ODD_ITEM in raw, "law 1: input items are never re-encoded"
    assert ODD_FIELD in raw, "law 1: unknown members are never re-encoded"


def test_10_19_unknown_items_stay_unaltered_in_a_replay(replay_rig: Rig) -> None:
    client = replay_rig.connect()
    client.send(f'{{"type":"response.create","model":"m","input":[{ODD_ITEM}],"store":false}}')
    first = completed(client.until_terminal())
    completed(client.turn(previous_response_id=first["id"], input="next", store=False))
    assert ODD_ITEM in replay_rig.upstream.requests[1].raw.decode()


@pytest.mark.parametrize("given", ["hello", [user("hello")], []], ids=["string", "list", "empty"])
@pytest.mark.parametrize("chained", [False, True], ids=["root", "continued"])
def test_10_20_input_as_string_list_and_empty(any_rig: Rig, given: Any, chained: bool) -> None:
    client = any_rig.connect()
    fields: Json = {}
    if chained:
        fields["previous_response_id"] = completed(client.turn(input="first"))["id"]
    completed(client.turn(input=given, **fields))
    request = any_rig.upstream.requests[-1]
    expected = as_items(given)
    if chained and request.previous_response_id is None:
        assert as_items(request.input)[0] == user("first")
        assert as_items(request.input)[2:] == expected
    else:
        assert as_items(request.input) == expected


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("how", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}])
def test_10_21_prewarm_is_answered_and_chainable(any_rig: Rig, store: bool, how: Json) -> None:
    base = developer("be terse", id="msg_base")
    client = any_rig.connect()
    events = client.turn(input=[base], store=store, instructions="I", **how)
    prewarm = completed(events)
    assert prewarm["output"] == []
    assert prewarm["object"] == "response"
    assert prewarm["status"] == "completed"
    for name in ("created_at", "model", "parallel_tool_calls", "tool_choice", "tools"):
        assert name in prewarm, f"typed clients need {name} in a response object"
    assert any_rig.upstream.requests == [], "the gateway answers the warm-up itself"
    warm_id = prewarm["id"]
    completed(client.turn(input=[user("go")], previous_response_id=warm_id, store=store))
    request = any_rig.upstream.requests[0]
    assert request.input == [base, user("go")], "the warm-up's input belongs to the conversation"
    assert request.previous_response_id is None, "the upstream cannot know the warm-up's id"


def test_10_21_prewarm_in_the_middle_of_a_conversation(any_rig: Rig) -> None:
    client = any_rig.connect()
    first = completed(client.turn(input=[user("one")], store=False))
    warm = completed(
        client.turn(
            generate=False,
            input=[developer("two")],
            previous_response_id=first["id"],
            store=False,
        )
    )
    completed(client.turn(input=[user("three")], previous_response_id=warm["id"], store=False))
    assert len(any_rig.upstream.requests) == 2
    request = any_rig.upstream.requests[1]
    new = [developer("two"), user("three")]
    if request.previous_response_id is None:
        assert request.input == [user("one"), *first["output"], *new]
    else:
        assert request.previous_response_id == first["id"]
        assert request.input == new


def test_10_22_socket_only_fields_are_not_forwarded(any_rig: Rig) -> None:
    client = any_rig.connect()
    fields: Json = {"generate": True, "stream_id": "lane", "store": False}
    first = completed(client.turn(**fields))
    completed(client.turn(previous_response_id=first["id"], **fields))
    for request in any_rig.upstream.requests:
        for name in ("type", "generate", "stream_id"):
            assert name not in request.body, f"an HTTP upstream refuses {name}"


def test_10_23_prewarm_has_no_items(rig: Rig) -> None:
    events = rig.connect().turn(generate=False, input=[user("x")])
    assert [kind for kind in types(events) if "output_item" in kind or "delta" in kind] == []
    assert_strictly_increasing(events)
    if events[0]["type"] == "response.created":
        assert events[0]["response"]["id"] == response_of(events)["id"]


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("store", [False, True])
def test_10_24_the_latest_response_of_a_lane_resolves(
    stage: Stage, mode: Mode, store: bool
) -> None:
    strict = stage.strict("s", mode)
    client = stage.serve(strict).connect()
    previous: str | None = None
    for word in ("apple", "pear", "plum"):
        fields: Json = {"previous_response_id": previous} if previous else {}
        events = client.turn(input=[user(f"recall {word}")], store=store, **fields)
        previous = completed(events)["id"]
    assert output_text(events) == "recall apple | recall pear | recall plum"


def test_10_25_replay_holds_everything_from_the_root_in_order(replay_rig: Rig) -> None:
    thought, say = reasoning_item("sealed"), text_item("on it")
    one, two = call_item("call_1"), call_item("call_2")

    def shuffled(exchange: Exchange) -> None:
        # Two parallel calls finish in the other order: output_index decides.
        events = exchange.turn([thought, say, one, two])
        done = [at for at, e in enumerate(events) if e["type"] == "response.output_item.done"]
        a, b = done[-2], done[-1]
        swapped = [{**events[b], "sequence_number": a}, {**events[a], "sequence_number": b}]
        events[a], events[b] = swapped
        exchange.sse(*events)
        exchange.end()

    replay_rig.upstream.queue(shuffled)
    client = replay_rig.connect()
    base = developer("base")
    warm = completed(client.turn(generate=False, input=[base], store=False))
    outputs = [call_output("call_1", "1"), call_output("call_2", "2")]
    first = completed(client.turn(input=[user("go")], previous_response_id=warm["id"], store=False))
    second = completed(client.turn(input=outputs, previous_response_id=first["id"], store=False))
    completed(client.turn(input="end", previous_response_id=second["id"], store=False))
    so_far = [base, user("go"), thought, say, one, two, *outputs]
    assert replay_rig.upstream.requests[1].input == so_far
    assert as_items(replay_rig.upstream.requests[2].input) == [
        *so_far,
        *second["output"],
        user("end"),
    ]


def test_10_26_parameters_are_not_inherited(any_rig: Rig) -> None:
    client = any_rig.connect()
    parameters: Json = {
        "instructions": "be brief",
        "tools": [{"type": "function", "name": "shell", "parameters": {}}],
        "text": {"verbosity": "low"},
        "reasoning": {"effort": "high"},
        "temperature": 0.5,
        "tool_choice": "required",
        "metadata": {"a": "b"},
    }
    first = completed(client.turn(**parameters))
    completed(client.turn(previous_response_id=first["id"], instructions="other"))
    before, after = (request.body for request in any_rig.upstream.requests)
    assert {name: before[name] for name in parameters} == parameters
    assert after["instructions"] == "other"
    inherited = set(parameters) & set(after) - {"instructions"}
    assert inherited == set(), "only items carry over from a parent"


def test_10_27_a_full_input_starts_an_independent_chain(any_rig: Rig) -> None:
    client = any_rig.connect()
    first = completed(client.turn(input=[user("old")], store=False))
    completed(client.turn(input=[user("o2")], previous_response_id=first["id"], store=False))
    full = [user("new"), text_item("earlier answer"), user("go on")]
    fresh = completed(client.turn(input=full, store=False))
    request = any_rig.upstream.requests[2]
    assert request.input == full, "nothing remembered is merged into a full input"
    assert (
        "previous_response_id" not in request.body or request.body["previous_response_id"] is None
    )
    completed(client.turn(input=[user("n2")], previous_response_id=fresh["id"], store=False))
    request = any_rig.upstream.requests[3]
    if request.previous_response_id is None:
        assert request.input == [*full, *fresh["output"], user("n2")]
    else:
        assert (request.previous_response_id, request.input) == (fresh["id"], [user("n2")])


def test_10_27_a_full_input_with_tool_history_is_a_root(any_rig: Rig) -> None:
    """It holds the call and its output itself: not a continuation, though a call is known."""
    call = call_item("call_7")
    any_rig.upstream.queue(lambda exchange: exchange.answer([call]))
    client = any_rig.connect()
    completed(client.turn(input=[user("go")], store=False))
    full = [user("go"), call, call_output("call_7")]
    completed(client.turn(input=full, store=False))
    request = any_rig.upstream.requests[1]
    assert request.input == full
    assert request.previous_response_id is None


def test_10_28_compaction_trigger_gives_one_compaction_item(any_rig: Rig) -> None:
    compaction = compaction_item()
    any_rig.upstream.queue(Exchange.answer, lambda exchange: exchange.answer([compaction]))
    client = any_rig.connect()
    first = completed(client.turn(input=[user("long story")], store=False))
    trigger = {"type": "compaction_trigger"}
    parent = first["id"]
    events = client.turn(input=[user("x"), trigger], previous_response_id=parent, store=False)
    completed(events)
    assert any_rig.upstream.requests[1].input[-1] == trigger
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == [compaction]
    after = [user("short story"), compaction]
    completed(client.turn(input=after, store=False))
    assert any_rig.upstream.requests[2].input == after


def test_10_29_additional_tools_and_the_lite_header(any_rig: Rig) -> None:
    tools = {"type": "additional_tools", "id": "at_1", "tools": [{"type": "custom", "name": "x"}]}
    metadata = {LITE: "true", "turn_id": "t1", "x-codex-turn-state": "ts-1"}
    metadata["ws_request_header_traceparent"] = "00-aa-bb-01"
    client = any_rig.connect()
    completed(client.turn(input=[tools, user("x")], client_metadata=metadata, store=False))
    completed(client.turn(client_metadata={"turn_id": "t2"}, store=False))
    lite, plain = any_rig.upstream.requests
    assert lite.input == [tools, user("x")]
    assert lite.header("x-openai-internal-codex-responses-lite") == "true"
    assert lite.header("traceparent") == "00-aa-bb-01"
    assert lite.header("x-codex-turn-state") is None, "no account gave this turn state"
    assert lite.body["client_metadata"]["turn_id"] == "t1"
    assert "tools" not in lite.body
    assert plain.header("x-openai-internal-codex-responses-lite") is None
    assert plain.header("x-codex-turn-state") is None


def test_upgrade_headers_that_belong_on_the_upstream_request(rig: Rig) -> None:
    """protocol.md §3.2: Codex sends these on its own HTTP requests as well."""
    passed = {
        "x-codex-turn-metadata": '{"turn_id":""}',
        "x-codex-window-id": "0199:0",
        "session-id": "0199",
        "thread-id": "0199",
        "x-client-request-id": "0199",
        "x-codex-beta-features": "remote_compaction_v2",
    }
    client = rig.connect(headers=[*passed.items(), ("Cookie", "secret=1")])
    completed(client.turn())
    request = rig.upstream.requests[0]
    assert {name: request.header(name) for name in passed} == passed
    assert request.header("cookie") is None
    assert request.header("authorization") == "Bearer upstream-secret-solo"
    assert request.header("openai-beta") is None, "this header is about the WebSocket upgrade"
    names = [name for name, _ in request.headers if name.startswith("sec-websocket")]
    assert names == []
    assert b"key-laptop" not in request.raw
