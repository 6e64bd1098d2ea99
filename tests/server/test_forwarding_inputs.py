"""Compactions and token counts: the whole conversation reaches the account, however it can."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import RoutingSettings
from gateway.protocol.errors import ApiError
from gateway.protocol.response_body import read_compaction
from tests.server.handlers import DESK, LAPTOP, Hall
from tests.support.events import Json, text_item, user

COMPACT = "/responses/compact"
COUNT = "/responses/input_tokens"
SEALED: Json = {"id": "cmp_1", "type": "compaction", "encrypted_content": "sealed-by-a"}
COMPACTED: Json = {
    "id": "resp_c",
    "object": "response.compaction",
    "output": [user("hi"), SEALED],
    "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
}
PATHS = pytest.mark.parametrize("path", [COMPACT, COUNT])


def ask(hall: Hall, path: str = COMPACT, **members: Any) -> Any:
    headers = members.pop("headers", {"session_id": "s-1"})
    tenant = members.pop("tenant", "laptop")
    return hall.asks("POST", path, {"model": "gpt-5.5", **members}, tenant=tenant, **headers)


def conversation(hall: Hall, account: str = "a", **about: Any) -> None:
    first = hall.remembers("resp_0", account=account, input=[user("one")], output=[text_item("1")])
    hall.remembers(
        "resp_1",
        account=account,
        parent=first,
        input=[user("two")],
        output=[text_item("2")],
        **about,
    )


def texts(items: list[Json]) -> list[str]:
    return [item["content"][0]["text"] for item in items if "content" in item]


@PATHS
def test_a_request_passes_with_the_clients_own_members(path: str) -> None:
    hall = Hall()
    body = b'{"model": "gpt-5.5", "input":[ {"role":"user","content":"\\u00e9"} ], "x":1.0}'
    asked = hall.asks("POST", path, body)
    (call,) = hall.calls()
    assert (call.call.method, call.call.path) == ("POST", path)
    assert call.body == json.loads(body)
    assert b'[ {"role":"user","content":"\\u00e9"} ]' in (call.call.body or b"")
    answer = json.dumps(COMPACTED, indent=3).encode()
    call.answers(answer)
    assert asked.wire.body == answer, "expected the upstream's bytes"
    hall.check_rest()


@PATHS
@pytest.mark.parametrize("known", ["configured", "shown"])
def test_a_previous_response_is_named_to_an_account_that_continues_it(
    path: str, known: str
) -> None:
    hall = Hall(3, settings={"b": {"continuity": "chain" if known == "configured" else "auto"}})
    if known == "shown":
        hall.world.accounts["b"].learned.continued(True)
    conversation(hall, "b")
    ask(hall, path, previous_response_id="resp_1", input=[user("three")])
    (call,) = hall.calls("b")
    assert call.body["previous_response_id"] == "resp_1"
    assert texts(call.body["input"]) == ["three"]
    call.answers(COMPACTED)
    hall.check_rest()


@PATHS
def test_it_is_sent_along_where_nobody_knows_that_it_would_be_continued(path: str) -> None:
    """The answer would not show that half of the conversation is missing."""
    hall = Hall()
    conversation(hall)
    ask(hall, path, previous_response_id="resp_1", input=[user("three")])
    (call,) = hall.calls()
    assert "previous_response_id" not in call.body
    assert texts(call.body["input"]) == ["one", "1", "two", "2", "three"]
    call.answers(COMPACTED)
    record = hall.world.turn_log.latest()[-1]
    assert record.previous_response_id == "resp_1"
    assert record.chained_to is None
    assert record.reason == "it is not known that the account continues responses"
    hall.check_rest()


def test_a_conversation_alone_can_be_compacted() -> None:
    hall = Hall()
    conversation(hall)
    ask(hall, previous_response_id="resp_1")
    (call,) = hall.calls()
    assert texts(call.body["input"]) == ["one", "1", "two", "2"]
    call.answers(COMPACTED)
    hall.check_rest()


@PATHS
def test_a_chain_that_is_refused_is_sent_along_to_the_same_account(path: str) -> None:
    hall = Hall(2, settings={"a": {"continuity": "chain"}})
    conversation(hall)
    asked = ask(hall, path, previous_response_id="resp_1", input=[user("three")])
    hall.calls("a")[0].refuses(400, "previous_response_not_found")
    second = hall.calls("a")[1]
    assert texts(second.body["input"]) == ["one", "1", "two", "2", "three"]
    second.answers(COMPACTED)
    assert asked.wire.status == 200
    assert not hall.calls("b")
    hall.check_rest()


@PATHS
def test_it_moves_with_the_whole_conversation(path: str) -> None:
    hall = Hall(2, settings={"a": {"continuity": "chain"}})
    conversation(hall)
    asked = ask(hall, path, previous_response_id="resp_1")
    hall.calls("a")[0].refuses(503)
    call = hall.calls("b")[0]
    assert texts(call.body["input"]) == ["one", "1", "two", "2"]
    call.answers(COMPACTED)
    assert asked.wire.headers["x-gateway-account"] == "b"
    hall.check_rest()


@PATHS
def test_a_service_without_the_path_is_not_to_blame(path: str) -> None:
    hall = Hall(2)
    asked = ask(hall, path, input="hi")
    hall.calls("a")[0].refuses(404, None, "Invalid URL")
    hall.calls("b")[0].answers(COMPACTED)
    assert asked.wire.status == 200
    assert hall.world.accounts["a"].unavailable("gpt-5.5") is None
    hall.check_rest()


def test_an_answer_that_breaks_off_moves() -> None:
    hall = Hall(2)
    asked = ask(hall, input="hi")
    call = hall.calls("a")[0]
    call.begins()
    call.sends(b'{"output":')
    call.ends(ApiError.bad_gateway("reset"))
    hall.calls("b")[0].answers(COMPACTED)
    assert asked.wire.json == COMPACTED
    hall.check_rest()


@PATHS
def test_another_tenants_conversation_cannot_be_looked_at(path: str) -> None:
    hall = Hall(keys=(LAPTOP, DESK))
    conversation(hall)
    asked = ask(hall, path, previous_response_id="resp_1", tenant="desk")
    assert asked.wire.status == 400
    assert asked.wire.error["code"] == "previous_response_not_found"
    assert asked.wire.error["param"] == "previous_response_id"
    assert not hall.world.all_calls
    hall.check_rest()


def test_the_only_tenant_may_name_what_an_upstream_knows() -> None:
    hall = Hall(2)
    asked = ask(hall, previous_response_id="resp_far", input=[user("more")])
    (call,) = hall.world.all_calls
    assert call.body["previous_response_id"] == "resp_far"
    call.refuses(404, None, "no response 'resp_far'")
    other = hall.world.all_calls[-1]
    assert other.body["previous_response_id"] == "resp_far"
    other.refuses(400, "previous_response_not_found", "no such response")
    assert asked.wire.error["code"] == "previous_response_not_found"
    assert len(hall.world.all_calls) == 2
    for account in hall.world.accounts.values():
        assert (account.unavailable("gpt-5.5"), account.failures) == (None, 0)
    hall.check_rest()


def test_a_compaction_goes_to_the_conversations_account() -> None:
    hall = Hall(3)
    ask(hall, COUNT, input="hi")
    (count,) = hall.world.all_calls
    count.answers({"input_tokens": 1})
    asked = ask(hall, input="hi")
    hall.world.all_calls[-1].answers(COMPACTED)
    assert asked.wire.headers["x-gateway-account"] == "a"
    assert len(hall.calls("a")) == 2
    hall.check_rest()


def test_the_new_chain_is_bound_to_who_sealed_it() -> None:
    hall = Hall(3, routing=RoutingSettings(queue_seconds=0.0))
    hall.asks("POST", "/chat/completions", {"model": "m"})
    hall.calls("a")[0].answers({})
    ask(hall, input="hi")
    hall.calls("b")[0].answers(COMPACTED)
    assert hall.services.issuers.issuer_of(json.dumps(SEALED).encode()) == "b"
    ask(hall, COUNT, input=COMPACTED["output"], headers={"session_id": "another"})
    assert len(hall.calls("b")) == 2, "expected the account that can read it"
    hall.calls("b")[1].answers({"input_tokens": 2})
    hall.check_rest()


def test_what_a_compaction_took_is_counted() -> None:
    hall = Hall()
    ask(hall, input="hi")
    hall.calls()[0].answers(COMPACTED)
    record = hall.world.turn_log.latest()[-1]
    assert (record.input_tokens, record.output_tokens) == (7, 3)
    assert hall.world.accounts["a"].turns == 1
    hall.check_rest()


def test_a_count_costs_nothing_and_shows_nothing() -> None:
    hall = Hall()
    ask(hall, COUNT, input="hi")
    hall.calls()[0].answers({"object": "response.input_tokens", "input_tokens": 5})
    assert hall.world.accounts["a"].turns == 0
    assert hall.world.turn_log.latest()[-1].input_tokens == 0
    hall.check_rest()


def test_an_account_gets_its_own_words() -> None:
    about = {
        "aliases": {"gpt-5.5": "own-5.5"},
        "strip": ("truncation",),
        "derive_cache_key": True,
        "headers": {"X-Org": "o"},
    }
    hall = Hall(settings={"a": about})
    ask(hall, input="hi", truncation="auto")
    ask(hall, COUNT, input="hi", truncation="auto")
    compaction, count = hall.calls()
    assert compaction.body["model"] == "own-5.5"
    assert "truncation" not in compaction.body
    assert compaction.body["prompt_cache_key"]
    assert "prompt_cache_key" not in count.body
    assert compaction.call.headers["x-org"] == "o"
    for call in hall.calls():
        call.answers(COMPACTED)
    hall.check_rest()


@PATHS
@pytest.mark.parametrize("body", [b"[]", b'{"input":5}', b'{"model":1}', b'{"generate":false}'])
def test_what_cannot_be_read_is_answered(path: str, body: bytes) -> None:
    hall = Hall()
    assert hall.asks("POST", path, body).wire.status == 400
    assert not hall.world.all_calls
    hall.check_rest()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"output":5}', b'{"output":[1,"x",null]}'])
def test_odd_answers_hold_nothing(body: bytes) -> None:
    assert read_compaction(body).usage is None
    hall = Hall()
    asked = ask(hall, input="hi")
    hall.calls()[0].answers(body)
    assert asked.wire.body == body
    hall.check_rest()


@PATHS
def test_what_an_account_refuses_and_nobody_misses_is_left_out_and_learned(path: str) -> None:
    hall = Hall()
    asked = ask(hall, path, input="hi", user="u-1")
    hall.calls()[0].refuses(400, None, "Unsupported parameter: user")
    hall.calls()[1].refuses(400, None, "Input must be a list")
    hall.calls()[2].answers(COMPACTED)
    assert asked.wire.status == 200
    ask(hall, path, input="hi", user="u-1")
    listed = [{"type": "message", "role": "user", "content": "hi"}]
    assert [call.body.get("user") for call in hall.calls()] == ["u-1", None, None, None]
    assert [call.body["input"] for call in hall.calls()] == ["hi", "hi", listed, listed]
    hall.calls()[3].answers(COMPACTED)
    assert hall.world.accounts["a"].failures == 0
    hall.check_rest()


@PATHS
def test_reasoning_that_nothing_keeps_is_left_out(path: str) -> None:
    hall = Hall()
    thought = {"type": "reasoning", "id": "rs_1", "summary": []}
    asked = ask(hall, path, input=[user("hi"), thought])
    hall.calls()[0].refuses(404, None, "Item with id 'rs_1' not found.")
    hall.calls()[1].answers(COMPACTED)
    assert asked.wire.status == 200
    assert [len(call.body["input"]) for call in hall.calls()] == [2, 1]
    hall.check_rest()
