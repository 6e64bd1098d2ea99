"""What a session's turns continue: as named, as found, and no more than was kept."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.protocol.errors import ApiError
from tests.server.session_stage import FakeChannel, Stage
from tests.support.events import Json, call_item, call_output, text_item, user
from tests.turn.fakes import NoLimits

WRONG = ApiError.invalid_request("No tool call found for function call output with call_id c.")


def code_of(event: Json) -> str:
    code = event["error"]["code"]
    assert isinstance(code, str)
    return code


def parents(stage: Stage) -> list[str | None]:
    """The ``previous_response_id`` of every request that went upstream."""
    return [exchange.body.get("previous_response_id") for exchange in stage.world.exchanges()]


def test_a_turn_may_name_the_response_that_runs_before_it() -> None:
    stage = Stage()
    stage.create("one")
    stage.create("two", previous_response_id="resp_1")
    stage.answer("resp_1")
    assert parents(stage) == [None, "resp_1"]


def test_a_prewarm_can_be_continued() -> None:
    stage = Stage()
    stage.create([user("base")], generate=False)
    stage.create([user("hi")], previous_response_id=stage.channel.last["response"]["id"])
    assert stage.sent().body["input"] == [user("base"), user("hi")]


def test_a_tool_output_without_an_id_continues_the_response_that_made_the_call() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1", call_item("call_1"))
    stage.create("something else")
    stage.answer("resp_2")
    stage.create([call_output("call_1")], previous_response_id=None)
    assert parents(stage) == [None, None, "resp_1"]
    stage.answer("resp_3")
    assert stage.world.turn_log.latest()[-1].continuation == "answers a call of this session"


def test_of_several_calls_the_latest_response_counts() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1", call_item("call_1"))
    stage.create("go on", previous_response_id="resp_1")
    stage.answer("resp_2", call_item("call_2"))
    stage.create([call_output("call_1"), call_output("call_2")])
    assert parents(stage)[-1] == "resp_2"


def test_an_input_that_brings_its_call_along_is_a_conversation_of_its_own() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1", call_item("call_1"))
    stage.create([user("one"), call_item("call_1"), call_output("call_1")])
    assert parents(stage)[-1] is None


def test_another_connection_made_other_calls() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1", call_item("call_1"))
    stage.session = stage.connect(FakeChannel())
    stage.create([call_output("call_1")])
    assert parents(stage)[-1] is None


def test_a_conversation_object_has_its_own_memory() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1", call_item("call_1"))
    stage.create([call_output("call_1")], conversation="conv_1")
    assert parents(stage)[-1] is None


@pytest.mark.parametrize("chaining", ["auto", "always"])
def test_chaining_always_goes_on_where_the_lane_stopped(chaining: str) -> None:
    stage = Stage(chaining=chaining)
    stage.create("one")
    stage.answer("resp_1")
    stage.create("two")
    stage.create("left", stream_id="left")
    always = chaining == "always"
    assert parents(stage) == [None, "resp_1" if always else None, None]
    stage.answer("resp_2")
    stage.create([user("one"), text_item(), user("three")])
    assert parents(stage)[-1] is None, "a full input starts a new root in any case"


def test_an_unknown_id_is_not_found_and_the_connection_goes_on() -> None:
    stage = Stage()
    stage.create("hi", previous_response_id="resp_of_nobody")
    assert stage.channel.last["status"] == 400
    assert code_of(stage.channel.last) == "previous_response_not_found"
    assert stage.channel.last["error"]["param"] == "previous_response_id"
    stage.create("hi")
    stage.answer("resp_1")
    assert stage.channel.last["type"] == "response.completed"


def test_an_unknown_id_is_no_upstreams_once_it_may_be_another_tenants() -> None:
    """A reload that adds a key holds for the connections that are open."""
    stage = Stage()
    tenants: Any = stage.world.services.limits
    assert isinstance(tenants, NoLimits)
    tenants.one_tenant = True
    stage.session = stage.connect(stage.channel)
    tenants.one_tenant = False
    stage.create("hi", previous_response_id="resp_of_another")
    assert code_of(stage.channel.last) == "previous_response_not_found"
    assert stage.running == []


def test_an_unknown_id_does_not_stop_the_lane() -> None:
    stage = Stage()
    stage.create("one")
    stage.create("two", previous_response_id="resp_of_nobody")
    stage.create("three")
    stage.answer("resp_1")
    assert code_of(stage.channel.last) == "previous_response_not_found"
    assert len(stage.running) == 1


def test_what_the_ledger_had_to_forget_sends_the_client_to_a_new_connection() -> None:
    """``previous_response_not_found`` is fatal for old clients (protocol.md §1.17)."""
    stage = Stage(max_age_minutes=600)
    stage.create("one", store=False)
    stage.answer("resp_1")
    stage.world.clock.advance(3601)
    stage.create("two", previous_response_id="resp_1")
    assert code_of(stage.channel.last) == "websocket_connection_limit_reached"


def test_what_the_ledger_had_to_forget_its_account_may_keep() -> None:
    stage = Stage(max_age_minutes=600)
    stage.create("one", store=True)
    stage.answer("resp_1")
    stage.world.clock.advance(3601)
    stage.create("two", previous_response_id="resp_1")
    assert parents(stage)[-1] == "resp_1"
    stage.answer("resp_2")
    assert stage.channel.last["response"]["id"] == "resp_2"
    stage.world.clock.advance(3601)
    stage.create("three", previous_response_id="resp_2")
    stage.world.exchanges()[-1].ends(ApiError.previous_response_not_found("resp_2"))
    assert code_of(stage.channel.last) == "websocket_connection_limit_reached", (
        "it had it from here"
    )


def test_ids_of_another_tenant_are_unknown() -> None:
    stage = Stage()
    stage.create("one", store=True)
    stage.answer("resp_1")
    channel = FakeChannel()
    stage.session = stage.connect(channel, tenant="somebody else")
    stage.create("two", previous_response_id="resp_1")
    assert code_of(channel.last) == "previous_response_not_found"


@pytest.mark.parametrize("store", [True, False])
def test_unstored_responses_live_as_long_as_their_connection(store: bool) -> None:
    stage = Stage()
    stage.create("one", store=store)
    stage.answer("resp_1", store=store)
    stage.session.closed()
    channel = FakeChannel()
    stage.session = stage.connect(channel)
    stage.create("two", previous_response_id="resp_1", store=store)
    if store:
        assert parents(stage)[-1] == "resp_1"
    else:
        assert code_of(channel.last) == "previous_response_not_found"


def test_a_wrong_continuation_costs_its_lane_the_parent() -> None:
    stage = Stage()
    stage.create("one", store=False)
    stage.answer("resp_1", store=False)
    stage.create([call_output("c")], previous_response_id="resp_1", store=False)
    stage.sent().ends(WRONG)
    stage.create("two", previous_response_id="resp_1", store=False)
    assert code_of(stage.channel.last) == "previous_response_not_found"


def test_a_wrong_continuation_on_another_lane_costs_nothing() -> None:
    stage = Stage()
    stage.create("one", store=False)
    stage.answer("resp_1", store=False)
    about = {"previous_response_id": "resp_1", "store": False}
    stage.create([call_output("c")], stream_id="left", **about)
    stage.sent().ends(WRONG)
    stage.create("two", **about)
    assert len(stage.running) == 1


def test_a_stored_parent_survives_a_wrong_continuation() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1")
    stage.create([call_output("c")], previous_response_id="resp_1")
    stage.sent().ends(WRONG)
    stage.create("two", previous_response_id="resp_1")
    assert parents(stage)[-1] == "resp_1"


@pytest.mark.parametrize(
    "error",
    [
        ApiError.bad_gateway("It broke."),
        ApiError(429, "rate_limit_error", "Slow down.", "rate_limit_exceeded"),
        ApiError(401, "authentication_error", "Bad key."),
    ],
    ids=str,
)
def test_an_accounts_refusal_leaves_the_thread_whole(error: ApiError) -> None:
    stage = Stage()
    stage.create("one", store=False)
    stage.answer("resp_1", store=False)
    stage.create("two", previous_response_id="resp_1", store=False)
    stage.sent().ends(error)
    assert stage.channel.last["type"] == "error"
    stage.world.clock.advance(120)  # the account has rested by then
    stage.create("two", previous_response_id="resp_1", store=False)
    assert len(stage.running) == 1


def test_forks_of_one_response_do_not_disturb_each_other() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1")
    stage.create("a", stream_id="a", previous_response_id="resp_1")
    stage.create("b", stream_id="b", previous_response_id="resp_1")
    assert parents(stage) == [None, "resp_1", "resp_1"]
    stage.answer("resp_a")
    stage.answer("resp_b")
    stage.create("a2", stream_id="b", previous_response_id="resp_a")
    assert parents(stage)[-1] == "resp_a"
