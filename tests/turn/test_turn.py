"""How a turn gets its answer: chained, replayed, moved, held back, and what is learned."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import RoutingSettings
from gateway.conversations.store import Transcript
from gateway.protocol.errors import ApiError
from tests.support.events import (
    Json,
    call_item,
    call_output,
    opening,
    reasoning_item,
    response_object,
    text_item,
    turn_events,
    user,
)
from tests.turn.fakes import World

NOT_FOUND = ApiError.previous_response_not_found("resp_1")
UNSUPPORTED = ApiError(
    400, "invalid_request_error", "Unsupported parameter: previous_response_id", None
)
ORPHAN = ApiError.invalid_request(
    "No tool call found for function call output with call_id call_1.", "input"
)
LIMIT = ApiError(429, "rate_limit_error", "Slow down.", "rate_limit_exceeded")
DOWN = ApiError.bad_gateway("The upstream refused the connection.")


def with_call(world: World, holder: str | None = None, **members: Any) -> Transcript:
    """A first turn that ended with a call of a tool.

    :param holder: the connection that has it.
    """
    turn = world.turn([user("list files")], **members)
    turn.start()
    world.exchanges()[-1].holder = holder
    world.exchanges()[-1].sends(*turn_events([call_item("call_1")], "resp_1"))
    assert turn.recorded is not None, f"expected a completed turn, got {world.sink.types}"
    return turn.recorded


def test_a_root_goes_out_with_the_clients_own_input() -> None:
    world = World()
    turn = world.turn([user("hi")], generate=True, stream=True)
    turn.start()
    (sent,) = world.exchanges()
    assert sent.body == {"stream": True, "model": "gpt-5.5", "input": [user("hi")]}
    assert "authorization" not in sent.headers, "credentials are the upstream's own business"
    assert world.accounts["a"].in_flight == 1
    events = turn_events([text_item("hello")], "resp_1")
    sent.sends(*events)
    assert world.sink.raw == [json.dumps(event).encode() for event in events], (
        "expected every event verbatim"
    )
    assert (sent.state, turn.record.status, turn.record.route) == ("finished", "completed", "root")
    assert world.conversations.get("laptop", "resp_1") is turn.recorded
    assert world.conversations.get("somebody else", "resp_1") is None
    world.check_rest()


def test_a_turn_chains_to_the_response_before_it() -> None:
    world = World()
    parent = with_call(world)
    turn = world.turn([call_output("call_1")], parent)
    turn.start()
    sent = world.exchanges()[-1]
    assert sent.body["previous_response_id"] == "resp_1"
    assert sent.body["input"] == [call_output("call_1")]
    sent.sends(*turn_events([text_item()], "resp_2", previous_response_id="resp_1"))
    assert (turn.record.route, turn.record.chained_to) == ("chained", "resp_1")
    assert world.accounts["a"].learned.continuity() == {"store": "chain", "no_store": "unknown"}
    world.check_rest()


@pytest.mark.parametrize("refusal", [NOT_FOUND, UNSUPPORTED, ORPHAN], ids=str)
def test_a_refused_chain_is_replayed_unseen_and_remembered(refusal: ApiError) -> None:
    world = World()
    parent = with_call(world)
    turn = world.turn([call_output("call_1")], parent)
    turn.start()
    world.exchanges()[-1].ends(refusal)
    assert world.sink.raw == [], "the client must not hear of the refused attempt"
    replay = world.exchanges()[-1]
    assert "previous_response_id" not in replay.body
    assert [item["type"] for item in replay.body["input"]] == [
        "message",
        "function_call",
        "function_call_output",
    ]
    assert world.accounts["a"].learned.reason_to_replay(True) is None, (
        "nothing is learned before the replay was accepted"
    )
    replay.sends(*turn_events([text_item()], "resp_2"))
    assert world.sink.last["type"] == "response.completed"
    assert turn.record.route == "replayed"
    assert [each.route for each in turn.record.attempts] == ["chained", "replayed"]
    assert world.accounts["a"].learned.reason_to_replay(True)
    assert world.accounts["a"].failures == 0
    third = world.turn([user("and?")], turn.recorded)
    third.start()
    assert "previous_response_id" not in world.exchanges()[-1].body, "it was taught to replay"
    third.cancel()
    world.check_rest()


@pytest.mark.parametrize("echo", [None, "resp_of_somebody"])
def test_an_answer_that_does_not_echo_the_id_is_dropped_and_replayed(echo: str | None) -> None:
    world = World()
    parent = with_call(world)
    turn = world.turn([call_output("call_1")], parent)
    turn.start()
    first = world.exchanges()[-1]
    first.sends(*turn_events([text_item("who are you?")], "resp_x", previous_response_id=echo))
    assert (first.state, world.sink.raw) == ("cancelled", [])
    world.exchanges()[-1].sends(*turn_events([text_item()], "resp_2"))
    assert turn.recorded is not None
    assert turn.recorded.record.id == "resp_2"
    assert turn.record.attempts[0].outcome == "did not continue the previous response"
    world.check_rest()


@pytest.mark.parametrize("refusal", [NOT_FOUND, ORPHAN, None], ids=str)
def test_a_connection_that_forgets_is_no_matter_of_the_account(refusal: ApiError | None) -> None:
    """Its transport is told, once the replay was answered; None: the id is ignored."""
    world = World()
    upstream = world.upstreams["a"]
    upstream.held = {"socket/1", "socket/2"}
    parent = with_call(world, store=False, holder="socket/1")
    turn = world.turn([call_output("call_1")], parent, store=False)
    turn.start()
    first = world.exchanges()[-1]
    if refusal is None:
        first.sends(*turn_events([text_item()], "resp_x"))
    else:
        first.ends(refusal)
    replay = world.exchanges()[-1]
    replay.holder = "socket/2"
    assert upstream.continuations == []
    replay.sends(*turn_events([text_item()], "resp_2"))
    assert upstream.continuations == [False]
    third = world.turn([user("and?")], turn.recorded, store=False)
    third.start()
    world.exchanges()[-1].sends(
        *turn_events([text_item()], "resp_3", previous_response_id="resp_2")
    )
    assert upstream.continuations == [False, True]
    assert world.accounts["a"].learned.continuity() == {"store": "unknown", "no_store": "unknown"}
    world.check_rest()


def test_an_orphan_of_the_client_is_the_clients_error_and_no_reason_to_replay() -> None:
    world = World()
    parent = with_call(world)
    turn = world.turn([call_output("call_99")], parent)
    turn.start()
    world.exchanges()[-1].ends(ORPHAN)
    assert len(world.exchanges()) == 2, "a replay cannot help: the call is nowhere"
    assert world.sink.last["error"]["message"] == ORPHAN.message
    assert turn.error is ORPHAN
    assert turn.recorded is None
    world.check_rest()


@pytest.mark.parametrize(("continuity", "chained"), [("chain", True), ("replay", False)])
def test_continuity_can_be_settled_by_the_operator(continuity: str, chained: bool) -> None:
    world = World(continuity=continuity)
    parent = with_call(world)
    turn = world.turn([call_output("call_1")], parent)
    turn.start()
    sent = world.exchanges()[-1]
    assert ("previous_response_id" in sent.body) is chained
    sent.sends(*turn_events([text_item()], "resp_2"))  # without an echo: nobody asked for one
    assert turn.record.status == "completed"
    world.check_rest()


def test_a_refusal_moves_the_turn_to_another_account_by_replay() -> None:
    world = World(accounts=2)
    sealed = reasoning_item("seal-of-a")
    parent = world.completed(
        [user("go")], turn_events([sealed, call_item("call_1")], "resp_1"), store=False
    )
    turn = world.turn([call_output("call_1")], parent, store=False)
    turn.start()
    world.exchanges("a")[-1].sends(
        *opening(response_object("resp_2", previous_response_id="resp_1"))
    )
    world.exchanges("a")[-1].ends(LIMIT)
    assert world.sink.raw == [], "a held preamble is taken back"
    (moved,) = world.exchanges("b")
    assert "previous_response_id" not in moved.body
    assert [item["type"] for item in moved.body["input"]] == [
        "message",
        "function_call",
        "function_call_output",
    ], "sealed reasoning must not follow to another account"
    assert "reasoning.encrypted_content" in moved.body["include"]
    moved.sends(*turn_events([text_item()], "resp_3"))
    assert world.sink.types.count("response.created") == 1
    assert (world.accounts["a"].failures, world.accounts["b"].failures) == (1, 0)
    assert [each.rule for each in turn.record.attempts] == [
        "holds the previous response",
        "stands in for a (round-robin)",
    ]
    world.check_rest()


def test_max_attempts_bounds_the_accounts_that_are_tried() -> None:
    world = World(accounts=4, routing=RoutingSettings(max_attempts=3, queue_seconds=0.0))
    turn = world.turn([user("hi")])
    turn.start()
    for name in "abc":
        world.exchanges(name)[-1].ends(LIMIT if name == "b" else DOWN)
    assert world.exchanges("d") == []
    assert (world.sink.types, world.sink.last["status"]) == (["error"], 502)
    assert turn.record.status == "error"
    world.check_rest()


def test_upstreams_that_answer_at_once_do_not_confuse_the_turn() -> None:
    """Every refusal comes from within ``start`` of its exchange."""
    world = World(accounts=3)
    for upstream in world.upstreams.values():
        upstream.answer = lambda exchange: exchange.ends(DOWN)
    world.upstreams["c"].answer = lambda exchange: exchange.sends(
        *turn_events([text_item()], "resp_1")
    )
    world.turn([user("hi")]).start()
    assert world.sink.last["type"] == "response.completed"
    world.check_rest()


def test_a_credential_of_the_pool_is_never_blamed_on_the_client() -> None:
    world = World()
    world.turn([user("hi")]).start()
    world.exchanges()[-1].ends(ApiError(401, "authentication_error", "Incorrect API key: sk-a"))
    assert world.sink.last["status"] == 502
    assert "sk-a" not in world.sink.raw[-1].decode()
    world.check_rest()


def test_a_model_nobody_offers_is_refused_without_an_attempt() -> None:
    world = World(accounts=0)
    turn = world.turn([user("hi")])
    turn.start()
    assert world.sink.last["error"]["code"] == "model_not_found"
    assert turn.record.attempts == []
    world.check_rest()


def test_refused_seals_are_left_out_and_teach_nothing_about_chaining() -> None:
    world = World()
    parent = with_call(world, store=False)
    foreign = reasoning_item("sealed elsewhere")
    turn = world.turn([foreign, call_output("call_1")], parent, store=False)
    turn.start()
    assert world.exchanges()[-1].body["previous_response_id"] == "resp_1"
    refusal = ApiError.invalid_request("Cannot decrypt.", "input", "invalid_encrypted_content")
    world.exchanges()[-1].ends(refusal)
    again = world.exchanges()[-1]
    assert [item["type"] for item in again.body["input"]] == [
        "message",
        "function_call",
        "function_call_output",
    ]
    again.sends(*turn_events([text_item()], "resp_2"))
    assert turn.record.status == "completed"
    assert world.accounts["a"].learned.reason_to_replay(False) is None, (
        "the account refused a seal, not the previous response"
    )
    world.check_rest()


def test_refused_seals_are_left_out_once_only() -> None:
    world = World()
    turn = world.turn([reasoning_item("sealed elsewhere"), user("hi")])
    turn.start()
    refusal = ApiError.invalid_request("Cannot decrypt.", "input", "invalid_encrypted_content")
    world.exchanges()[-1].ends(refusal)
    world.exchanges()[-1].ends(refusal)
    assert len(world.exchanges()) == 2
    assert world.sink.last["error"]["code"] == "invalid_encrypted_content"
    world.check_rest()


def preamble(response_id: str = "resp_1") -> list[Json]:
    return [
        {**event, "sequence_number": number}
        for number, event in enumerate(opening(response_object(response_id)))
    ]


def test_the_preamble_is_held_for_a_while_and_then_released() -> None:
    world = World(hold_seconds=5)
    turn = world.turn([user("hi")])
    turn.start()
    upstream = world.exchanges()[-1]
    upstream.sends(*preamble())
    world.clock.advance(4.9)
    assert world.sink.raw == [], "the preamble was let go before hold_seconds"
    assert turn.response_id == "resp_1"
    world.clock.advance(0.2)
    assert world.sink.types == ["response.created", "response.in_progress"]
    upstream.sends(*turn_events([text_item()], "resp_1")[2:])
    assert world.sink.types.count("response.created") == 1
    world.check_rest()


def test_what_was_released_cannot_be_taken_back() -> None:
    world = World(accounts=2, hold_seconds=1)
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[-1].sends(*preamble())
    world.clock.advance(1)
    world.exchanges()[-1].ends(LIMIT)
    assert world.exchanges("b") == [], "moving after something was seen would splice answers"
    failed = world.sink.last
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 2)
    assert failed["response"]["id"] == "resp_1"
    assert failed["response"]["error"]["code"] == "server_error"
    assert turn.record.status == "failed"
    world.check_rest()


def test_a_break_after_output_keeps_the_finished_items_and_goes_on_counting() -> None:
    world = World(accounts=2)
    done, half = text_item("done"), text_item("half")
    events = turn_events([done, half], "resp_1")
    turn = world.turn([user("hi")])
    turn.start()
    upto = next(i for i, e in enumerate(events) if e.get("item_id") == half["id"])
    world.exchanges()[-1].sends(*events[: upto + 1])
    world.exchanges()[-1].ends(None)
    failed = world.sink.last
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == events[upto]["sequence_number"] + 1
    assert failed["response"]["output"] == [done]
    assert failed["response"]["status"] == "failed"
    assert world.conversations.get("laptop", "resp_1") is None, "a failed response is not chainable"
    assert world.accounts["a"].failures == 1
    world.check_rest()


def test_numbers_go_on_after_events_that_have_none() -> None:
    world = World()
    world.turn([user("hi")]).start()
    events = turn_events([text_item()], "resp_1")
    world.exchanges()[-1].sends(*events[:4], {"type": "codex.rate_limits", "rate_limits": {}})
    world.exchanges()[-1].ends(None)
    assert world.sink.types[-2:] == ["codex.rate_limits", "response.failed"]
    assert world.sink.last["sequence_number"] == 4
    world.check_rest()


def test_an_error_about_the_request_keeps_its_code_after_output() -> None:
    world = World()
    world.turn([user("hi")]).start()
    world.exchanges()[-1].sends(*turn_events([text_item()], "resp_1")[:4])
    world.exchanges()[-1].ends(ApiError(400, "x", "Too long.", "context_length_exceeded"))
    assert world.sink.last["response"]["error"]["code"] == "context_length_exceeded"
    world.check_rest()


def test_output_before_any_created_event_gets_one_and_fails_under_its_id() -> None:
    world = World()
    world.turn([user("hi")]).start()
    world.exchanges()[-1].sends(turn_events([text_item()], "resp_1")[3])
    world.exchanges()[-1].ends(None)
    first, last = world.sink.events[0], world.sink.last
    assert (first["type"], last["type"]) == ("response.created", "response.failed")
    assert first["response"]["id"] == last["response"]["id"]
    world.check_rest()


def test_the_upstreams_own_failure_is_relayed_when_no_account_is_left() -> None:
    world = World()
    error = {"code": "server_error", "message": "It broke."}
    events = turn_events([], "resp_1", status="failed", error=error)
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[-1].sends(*events)
    assert world.sink.types == ["response.created", "response.in_progress", "response.failed"]
    assert world.sink.last["response"]["error"] == error
    assert (turn.record.status, turn.record.error_code) == ("failed", "server_error")
    world.check_rest()


def test_an_empty_output_is_filled_with_what_the_client_saw() -> None:
    world = World()
    item = text_item()
    world.turn([user("hi")]).start()
    world.exchanges()[-1].sends(*turn_events([item], "resp_1", empty_output=True))
    assert world.sink.last["response"]["output"] == [item]


@pytest.mark.parametrize("reason", ["max_output_tokens", "content_filter", "a new one", None])
def test_incomplete_responses_can_be_continued_whatever_the_reason(reason: str | None) -> None:
    world = World()
    events = turn_events(
        [text_item()], "resp_1", status="incomplete", incomplete_details={"reason": reason}
    )
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[-1].sends(*events)
    assert turn.recorded is not None
    assert (turn.record.status, turn.record.error_code) == ("incomplete", reason)
    world.check_rest()
