"""Replay and pool: protocol.md §8, §10.68-76; trials (§10.73-74) are in test_trial.py."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.conformance.helpers import LIMITED, failing, sealed_in
from tests.support.checks import (
    assert_error,
    assert_failed,
    assert_one_terminal,
    completed,
    output_text,
    types,
)
from tests.support.events import (
    Json,
    call_item,
    call_output,
    compaction_item,
    custom_call_item,
    reasoning_item,
    response_object,
    text_item,
    user,
)
from tests.support.gateway import account
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.conformance

ENCRYPTED = "reasoning.encrypted_content"


@pytest.mark.parametrize("include", [None, "null", [], ["other.thing"], [ENCRYPTED]], ids=str)
def test_10_68_encrypted_reasoning_is_requested_without_store(any_rig: Rig, include: Any) -> None:
    fields: Json = {} if include is None else {"include": include}
    if include == "null":
        fields = {"include": None}
    client = any_rig.connect()
    first = completed(client.turn(store=False, **fields))
    completed(client.turn(store=False, previous_response_id=first["id"], **fields))
    for request in any_rig.upstream.requests:
        asked = request.body["include"]
        assert asked.count(ENCRYPTED) == 1, f"the upstream expected {ENCRYPTED} in {asked}"
        if isinstance(include, list):
            assert set(include) <= set(asked), "what the client asked for stays"


def test_10_69_reasoning_without_secret_is_not_replayed(replay_rig: Rig) -> None:
    bare, empty = reasoning_item(None, "thought"), reasoning_item("")
    kept, say = reasoning_item("sealed"), text_item("a")
    replay_rig.upstream.queue(lambda exchange: exchange.answer([bare, empty, kept, say]))
    client = replay_rig.connect()
    first = completed(client.turn(input=[user("x")], store=False))
    completed(client.turn(input=[user("y")], previous_response_id=first["id"], store=False))
    assert replay_rig.upstream.requests[1].input == [user("x"), kept, say, user("y")]


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("store", [False, True])
def test_10_70_no_secret_reaches_another_account(stage: Stage, mode: Mode, store: bool) -> None:
    a, b = stage.strict("a", mode), stage.strict("b", mode)
    client = stage.serve(a, b).connect()
    first = completed(client.turn(input=[user("recall one")], store=store))
    second = completed(
        client.turn(input=[user("recall two")], previous_response_id=first["id"], store=store)
    )
    home, other = (a, b) if a.requests else (b, a)
    assert other.requests == [], "a conversation sticks to its account"
    home.before_answer = failing(429, LIMITED)
    events = client.turn(
        input=[user("recall three")], previous_response_id=second["id"], store=store
    )
    assert output_text(events) == "recall one | recall two | recall three"
    assert sealed_in(other.requests) <= {other.name}
    assert home.name in sealed_in([home.requests[-1]]) or home.requests[-1].previous_response_id
    # Coming back must not carry the other account's secrets home either.
    home.before_answer, other.before_answer = None, failing(429, LIMITED)
    last = events[-1]["response"]["id"]
    events = client.turn(input=[user("recall four")], previous_response_id=last, store=store)
    if events[-1]["type"] == "response.completed":  # unless its cooldown still holds
        assert output_text(events).endswith("three | recall four")
    assert sealed_in(home.requests) <= {home.name}


def test_10_70_a_conversation_with_compaction_stays_where_it_is(stage: Stage) -> None:
    """A compaction item cannot be converted: no other account, no dropped item."""

    def brain(transcript: list[Json], strict: Strict) -> list[Json]:
        if transcript[-1]["type"] == "compaction_trigger":
            return [compaction_item(strict.seal())]
        return [text_item("ok")]

    a, b = stage.strict("a", brain=brain), stage.strict("b", brain=brain)
    client = stage.serve(a, b).connect()
    first = completed(client.turn(input=[user("x")], store=False))
    trigger = [{"type": "compaction_trigger"}]
    events = client.turn(input=trigger, previous_response_id=first["id"], store=False)
    compaction = completed(events)["output"][0]
    home, other = (a, b) if a.requests else (b, a)
    completed(client.turn(input=[user("short"), compaction], store=False))
    assert other.requests == [], "the account that made the compaction item gets it back"
    home.before_answer = failing(429, LIMITED)
    events = client.turn(input=[user("short"), compaction, user("y")], store=False)
    assert sealed_in(other.requests) == set()
    assert_one_terminal(events)
    assert events[-1]["type"] in ("error", "response.failed"), "a clear failure instead"


def test_10_71_never_both_chained_and_replayed(any_rig: Rig) -> None:
    client = any_rig.connect()
    previous: str | None = None
    transcript: list[Json] = []
    for number in range(4):
        fields: Json = {"previous_response_id": previous} if previous else {}
        new = [user(f"turn {number}")]
        final = completed(client.turn(input=new, store=False, **fields))
        request = any_rig.upstream.requests[-1]
        if request.previous_response_id is None:
            assert request.input == [*transcript, *new], "without an id: the whole transcript"
        else:
            assert request.previous_response_id == previous
            assert request.input == new, "with an id: only what is new"
        previous = final["id"]
        transcript += [*new, *final["output"]]


def test_10_72_parallel_calls_and_outputs_stay_paired_in_order(replay_rig: Rig) -> None:
    thought = reasoning_item("sealed")
    calls = [call_item("call_1"), custom_call_item("call_2"), call_item("call_3")]
    replay_rig.upstream.queue(lambda exchange: exchange.answer([thought, *calls]))
    client = replay_rig.connect()
    first = completed(client.turn(input=[user("go")], store=False))
    outputs = [
        call_output("call_3", "3"),
        call_output(
            "call_2", [{"type": "input_text", "text": "2"}], type="custom_tool_call_output"
        ),
        call_output("call_1", "1"),
    ]
    completed(client.turn(input=outputs, previous_response_id=first["id"], store=False))
    assert replay_rig.upstream.requests[1].input == [user("go"), thought, *calls, *outputs]


def test_10_72_exact_repeats_are_sent_once(replay_rig: Rig) -> None:
    """A client that names the parent and resends its items (SDK histories do)."""
    call = call_item("call_1")
    replay_rig.upstream.queue(lambda exchange: exchange.answer([reasoning_item("s"), call]))
    client = replay_rig.connect()
    asked = user("go", id="msg_asked")
    first = completed(client.turn(input=[asked], store=False))
    again = [asked, *first["output"], call_output("call_1", id="fco_1")]
    completed(client.turn(input=again, previous_response_id=first["id"], store=False))
    assert replay_rig.upstream.requests[1].input == again


def test_10_72_equal_items_without_ids_are_no_repeats(replay_rig: Rig) -> None:
    client = replay_rig.connect()
    previous: Json = {}
    outputs: list[Json] = []
    for _ in range(3):
        final = completed(client.turn(input=[user("continue")], store=False, **previous))
        previous = {"previous_response_id": final["id"]}
        outputs += final["output"]
    sent = replay_rig.upstream.requests[2].input
    assert sent.count(user("continue")) == 3, "saying the same thing twice is no repeat"
    assert len(sent) == 5


def test_item_references_are_expanded_in_a_replay(replay_rig: Rig) -> None:
    """protocol.md §8.3.4."""
    client = replay_rig.connect()
    first = completed(client.turn(input=[user("a")], store=False))
    item = first["output"][0]
    reference = {"type": "item_reference", "id": item["id"]}
    fields: Json = {"input": [reference, user("b")], "previous_response_id": first["id"]}
    completed(client.turn(store=False, **fields))
    assert replay_rig.upstream.requests[1].input == [user("a"), item, user("b")]


def test_ids_that_are_used_again_lose_no_item(replay_rig: Rig) -> None:
    """protocol.md §8.3.5: services number their calls anew in every round."""
    poll = {**call_item("functions.poll:0"), "id": None}
    pending = call_output("functions.poll:0", "pending")
    for _ in range(4):
        replay_rig.upstream.queue(lambda exchange: exchange.answer([poll]))
    client = replay_rig.connect()
    expected: list[Json] = [user("wait for it")]
    fields: Json = {"input": expected[:]}
    for _ in range(4):
        made = completed(client.turn(store=False, **fields))
        fields = {"input": [pending], "previous_response_id": made["id"]}
        expected += [poll, pending]
    completed(client.turn(store=False, **fields))
    assert replay_rig.upstream.requests[-1].input == expected


def test_a_history_that_is_sent_again_is_replayed_once(replay_rig: Rig) -> None:
    """protocol.md §8.3.5: told by its place, whatever its ids and states."""
    start, call = user("start"), call_item("call_1")
    replay_rig.upstream.queue(lambda exchange: exchange.answer([reasoning_item("s"), call]))
    client = replay_rig.connect()
    first = completed(client.turn(input=[start], store=False))
    again = [start, {**call, "id": None, "status": None}, call_output("call_1")]
    second = completed(client.turn(input=again, store=False, previous_response_id=first["id"]))
    completed(client.turn(input=[user("go")], store=False, previous_response_id=second["id"]))
    for request in replay_rig.upstream.requests[1:]:
        kinds = [item.get("type") for item in request.input]
        assert kinds.count("function_call") == kinds.count("function_call_output") == 1
        assert request.input[:3] == replay_rig.upstream.requests[1].input[:3]


@pytest.mark.parametrize("how", ["end", "close", "failed", "flat"])
@pytest.mark.parametrize("sent", ["delta", "item done"])
def test_10_75_no_restart_once_output_was_relayed(stage: Stage, how: str, sent: str) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn([call_item("call_x"), text_item("b")])
        wanted = {"delta": "response.function_call_arguments.delta"}
        kind = wanted.get(sent, "response.output_item.done")
        exchange.sse(*events[: types(events).index(kind) + 1])
        error = {"code": "server_error", "message": "broken"}
        if how == "close":
            exchange.close()
        if how == "flat":
            exchange.sse({"type": "error", **error})
        if how == "failed":
            response = response_object(
                str(exchange.request.response_id), status="failed", error=error
            )
            exchange.sse({"type": "response.failed", "sequence_number": 99, "response": response})
        exchange.end()

    ups = [stage.upstream(script), stage.upstream(script)]
    client = stage.serve(ups[0], ups[1]).connect()
    events = client.turn(store=False)
    assert_one_terminal(events)
    assert_failed(events[-1])
    assert types(events).count("response.created") == 1
    time.sleep(0.3)
    assert sum(len(up.requests) for up in ups) == 1, "never sent again after output"


@pytest.mark.parametrize("store", [False, True])
def test_10_76_failed_responses_are_not_chainable(any_rig: Rig, store: bool) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        error = {"code": "invalid_prompt", "message": "no"}
        response = response_object(str(exchange.request.response_id), status="failed", error=error)
        failed = {"type": "response.failed", "sequence_number": 99, "response": response}
        exchange.sse(*events[:-1], failed)
        exchange.end()

    any_rig.upstream.queue(script)
    client = any_rig.connect()
    events = client.turn(store=store)
    failed = assert_failed(events[-1], "invalid_prompt")
    events = client.turn(previous_response_id=failed["id"], store=store)
    assert_error(events[-1], 400, "previous_response_not_found", "previous_response_id")
    completed(client.turn(store=store))


def test_an_incomplete_response_is_chainable(any_rig: Rig) -> None:
    """protocol.md §8.2: incomplete by max_output_tokens is remembered, finished items only."""

    def script(exchange: Exchange) -> None:
        details = {"reason": "max_output_tokens"}
        exchange.answer([text_item("part")], status="incomplete", incomplete_details=details)

    any_rig.upstream.queue(script)
    client = any_rig.connect()
    last = client.turn(input=[user("a")], store=False)[-1]
    assert last["type"] == "response.incomplete"
    parent = last["response"]["id"]
    completed(client.turn(input=[user("b")], previous_response_id=parent, store=False))
    request = any_rig.upstream.requests[1]
    if request.previous_response_id is None:
        assert request.input == [user("a"), *last["response"]["output"], user("b")]


def test_new_conversations_rotate_and_stay(stage: Stage) -> None:
    stricts = [stage.strict(name) for name in "abc"]
    gateway = stage.gateway(*(account(strict.name, strict.server) for strict in stricts))
    clients = [gateway.connect() for _ in range(6)]
    previous = {
        client: completed(client.turn(input=[user("a")], store=False))["id"] for client in clients
    }
    assert [len(strict.requests) for strict in stricts] == [2, 2, 2], "round-robin over accounts"
    for client in reversed(clients):
        fields: Json = {"previous_response_id": previous[client], "store": False}
        completed(client.turn(input=[user("b")], **fields))
    for strict in stricts:
        assert [r.refused for r in strict.requests] == [False] * 4
        for request in strict.requests[2:]:
            assert f"_{strict.name}_" in str(request.previous_response_id)


def test_accounts_on_the_same_base_url_are_told_apart_by_key(stage: Stage) -> None:
    upstream: Upstream = stage.upstream()
    gateway = stage.gateway(account("a", upstream), account("b", upstream))
    for _ in range(4):
        completed(gateway.connect().turn())
    keys = [request.header("authorization") for request in upstream.requests]
    assert sorted(map(str, keys)) == [
        *["Bearer upstream-secret-a"] * 2,
        *["Bearer upstream-secret-b"] * 2,
    ]


def test_account_headers_are_sent(stage: Stage) -> None:
    upstream = stage.upstream()
    headers = {"OpenAI-Organization": "org-1", "X-Custom": "yes"}
    gateway = stage.gateway(account("a", upstream, headers=headers))
    completed(gateway.connect().turn())
    request = upstream.requests[0]
    assert (request.header("openai-organization"), request.header("x-custom")) == ("org-1", "yes")
    assert request.method == "POST"
    assert request.target == "/v1/responses"
    assert "application/json" in str(request.header("content-type"))
    assert json.loads(request.raw)["stream"] is True
