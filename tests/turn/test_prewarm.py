"""Prewarms of accounts whose connections are kept: asked, and answered in any case."""

from __future__ import annotations

import pytest

from gateway.protocol.errors import ApiError
from tests.support.events import text_item, turn_events, user
from tests.turn.fakes import FakeExchange, World


def warm_world(accounts: int = 1) -> World:
    world = World(accounts, keepalive_seconds=0)
    for upstream in world.upstreams.values():
        upstream.warms = True
    return world


def started(world: World) -> FakeExchange:
    world.turn([user("base prompt")], generate=False, store=False).start()
    return world.exchanges()[-1]


def answered_here(world: World) -> bool:
    created, completed = world.sink.events
    assert (created["type"], completed["type"]) == ("response.created", "response.completed")
    assert completed["response"]["output"] == []
    assert world.sink.ended == 1
    return str(completed["response"]["id"]).startswith("resp_prewarm")


def test_the_account_answers_it_and_the_next_turn_continues_that() -> None:
    world = warm_world()
    turn = world.turn([user("base prompt")], generate=False, store=False)
    turn.start()
    (sent,) = world.exchanges()
    sent.sends(*turn_events([], "resp_1"))
    assert world.sink.last["response"]["id"] == "resp_1"
    assert turn.record.route == "prewarm"
    following = world.turn([user("hi")], turn.recorded, store=False)
    following.start()
    body = world.exchanges()[-1].body
    assert body["previous_response_id"] == "resp_1"
    assert body["input"] == [user("hi")]
    following.cancel()
    world.check_rest()


@pytest.mark.parametrize(
    "error",
    [
        ApiError(429, "rate_limit_error", "slow down", "rate_limit_exceeded"),
        ApiError(400, "invalid_request_error", "generate is unknown", "unknown_parameter"),
        ApiError.bad_gateway("gone", "upstream_websocket_unsuited"),
    ],
)
def test_a_refused_one_is_answered_here_and_no_other_account_is_asked(error: ApiError) -> None:
    world = warm_world(2)
    started(world).ends(error)
    assert answered_here(world), "expected the gateway's own answer"
    assert len(world.exchanges("a") + world.exchanges("b")) == 1
    world.check_rest()


def test_one_that_takes_long_is_answered_here() -> None:
    world = warm_world()
    sent = started(world)
    world.clock.advance(3.9)
    assert world.sink.events == [], "expected the upstream to have its time"
    world.clock.advance(0.2)
    assert answered_here(world)
    assert sent.state == "cancelled"
    world.check_rest()


def test_one_that_has_begun_in_time_may_go_on() -> None:
    world = World(1, keepalive_seconds=0, hold_seconds=0.0)
    world.upstreams["a"].warms = True
    sent = started(world)
    events = turn_events([], "resp_1")
    sent.sends(events[0])
    world.clock.advance(10)
    assert sent.state == "running", "expected it to go on: the client has seen its beginning"
    sent.sends(*events[1:])
    assert [event["response"]["id"] for event in (world.sink.events[0], world.sink.last)] == [
        "resp_1",
        "resp_1",
    ]
    world.check_rest()


def test_a_client_that_leaves_ends_it() -> None:
    world = warm_world()
    turn = world.turn([user("base prompt")], generate=False)
    turn.start()
    turn.cancel()
    world.clock.advance(10)
    assert world.sink.events == []
    assert world.exchanges()[-1].state == "cancelled"
    world.check_rest()


def test_a_usual_turn_is_not_bound_by_its_time() -> None:
    world = warm_world()
    world.turn([user("hi")]).start()
    sent = world.exchanges()[-1]
    world.clock.advance(60)
    sent.sends(*turn_events([text_item()], "resp_1"))
    assert world.sink.last["type"] == "response.completed"
    world.check_rest()
