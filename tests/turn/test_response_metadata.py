"""What a client is told beside the answer: its turn state, where it went, upstream headers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.config import RoutingSettings
from gateway.protocol.errors import ApiError
from gateway.protocol.turn_state import TURN_STATE, TurnState
from gateway.routing.affinity import AffinityKey
from gateway.turn.context import MetadataFields, TurnContext
from gateway.turn.response_metadata import passed_headers
from gateway.turn.turn import Turn
from tests.support.events import Json, text_item, turn_events, user
from tests.turn.fakes import FakeSink, World, resolver

ANSWER = turn_events([text_item("hello")], "resp_1")
BOTH = MetadataFields.TURN_STATE | MetadataFields.ROUTE


def turn_of(
    world: World,
    told: MetadataFields = MetadataFields.NONE,
    turn_state: str | None = None,
    thread: str = "t",
) -> Turn:
    world.sink = FakeSink()
    context = TurnContext(
        tenant="laptop",
        connection="c-1",
        client_headers={},
        affinity=[AffinityKey("thread", "laptop", thread)],
        accepted_at=world.clock.seconds(),
        turn_state=turn_state,
        metadata=told,
    )
    return Turn(world.services, context, world.request([user("hi")]), world.sink, resolver())


def answered(
    world: World, turn: Turn, headers: dict[str, str] | None = None, name: str = "a"
) -> list[Json]:
    """What the client saw of a turn that account ``name`` answered."""
    turn.start()
    exchange = world.exchanges(name)[-1]
    exchange.receiver.upstream_connected()
    exchange.receiver.upstream_answered(headers or {})
    exchange.sends(*ANSWER)
    return world.sink.events


def metadata(events: list[Json]) -> Any:
    """The headers that the one ``response.metadata`` event brings."""
    found = [event for event in events if event["type"] == "response.metadata"]
    assert len(found) == 1, f"expected one response.metadata, got {[e['type'] for e in events]}"
    return found[0]["headers"]


def wrapped(world: World, account: str, upstream: str | None = None) -> str:
    return world.services.turn_states.wrap("laptop", TurnState(account, upstream))


# --- over WebSocket ------------------------------------------------------------------


def test_a_client_that_did_not_ask_gets_the_upstreams_events_alone() -> None:
    world = World()
    answered(world, turn_of(world), {TURN_STATE: "theirs"})
    assert world.sink.raw == [json.dumps(event).encode() for event in ANSWER]


def test_a_client_that_asked_is_told_right_after_created() -> None:
    world = World(2)
    events = answered(world, turn_of(world, BOTH))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.metadata"]
    assert metadata(events) == {
        TURN_STATE: wrapped(world, "a"),
        "x-gateway-account": "a",
        "x-gateway-route": "root",
    }
    assert "sequence_number" not in events[1], "the upstream's numbers go on without a gap"
    rest = [event for event in events if event["type"] != "response.metadata"]
    assert rest == ANSWER
    world.check_rest()


@pytest.mark.parametrize(
    ("told", "names"),
    [
        (MetadataFields.TURN_STATE, {TURN_STATE}),
        (MetadataFields.ROUTE, {"x-gateway-account", "x-gateway-route"}),
    ],
)
def test_a_client_is_told_what_it_asked_for(told: MetadataFields, names: set[str]) -> None:
    world = World()
    assert set(metadata(answered(world, turn_of(world, told)))) == names


def test_an_upstreams_turn_state_is_wrapped_whichever_way_it_comes() -> None:
    world = World()
    events = answered(world, turn_of(world, MetadataFields.TURN_STATE), {TURN_STATE: "theirs"})
    value = metadata(events)[TURN_STATE]
    assert "theirs" not in value
    state = world.services.turn_states.unwrap("laptop", value)
    assert state == TurnState("a", "theirs")


def test_the_client_hears_of_the_account_that_answered_not_of_those_that_refused() -> None:
    world = World(2, routing=RoutingSettings())
    turn = turn_of(world, BOTH)
    turn.start()
    world.exchanges("a")[0].ends(ApiError(429, "requests", "Slow down", "rate_limit_exceeded"))
    world.exchanges("b")[0].sends(*ANSWER)
    told = metadata(world.sink.events)
    assert told["x-gateway-account"] == "b"
    assert told[TURN_STATE] == wrapped(world, "b")


# --- the way back --------------------------------------------------------------------


def test_an_echoed_turn_state_brings_the_turn_to_its_account() -> None:
    world = World(3)
    turn = turn_of(world, turn_state=wrapped(world, "c", "theirs"))
    turn.start()
    (sent,) = world.exchanges("c")
    assert turn.record.attempts[0].rule == "turn state"
    assert sent.headers[TURN_STATE] == "theirs", "its upstream gets its own value back"
    turn.cancel()


def test_another_account_never_sees_an_upstreams_turn_state() -> None:
    world = World(2, routing=RoutingSettings())
    turn = turn_of(world, MetadataFields.TURN_STATE, wrapped(world, "a", "theirs"))
    turn.start()
    world.exchanges("a")[0].ends(ApiError.bad_gateway("gone"))
    (sent,) = world.exchanges("b")
    assert TURN_STATE not in sent.headers
    sent.sends(*ANSWER)
    assert metadata(world.sink.events)[TURN_STATE] == wrapped(world, "b")


def test_the_upstreams_value_lasts_though_later_answers_do_not_repeat_it() -> None:
    world = World()
    turn = turn_of(world, MetadataFields.TURN_STATE, wrapped(world, "a", "theirs"))
    assert metadata(answered(world, turn))[TURN_STATE] == wrapped(world, "a", "theirs")


@pytest.mark.parametrize("value", ["theirs", "gw1.x.y", "", "x" * 20_000])
def test_what_is_no_turn_state_of_ours_goes_nowhere(value: str) -> None:
    world = World()
    turn = turn_of(world, turn_state=value)
    turn.start()
    assert TURN_STATE not in world.exchanges()[0].headers
    assert turn.record.attempts[0].rule == "round-robin"
    turn.cancel()


def test_another_tenants_turn_state_names_no_account() -> None:
    world = World(3)
    value = world.services.turn_states.wrap("desk", TurnState("c", "theirs"))
    turn = turn_of(world, turn_state=value)
    turn.start()
    assert turn.record.attempts[0].account == "a"
    turn.cancel()


# --- over HTTP -----------------------------------------------------------------------

UPSTREAM = {
    "x-request-id": "req_1",
    "openai-processing-ms": "12",
    "x-codex-primary-used-percent": "40",
    "x-ratelimit-remaining-requests": "9",
    "set-cookie": "secret",
    "server": "cloudflare",
    TURN_STATE: "theirs",
}


def test_an_http_client_is_told_in_headers() -> None:
    world = World(2)
    turn = turn_of(world)
    assert turn.answer_headers() == {}, "nothing is known before the answer"
    answered(world, turn, UPSTREAM)
    turn = turn_of(world)
    turn.start()
    exchange = world.exchanges("a")[-1]
    exchange.receiver.upstream_answered(UPSTREAM)
    exchange.sends(*ANSWER[:4])
    assert turn.answer_headers() == {
        "x-gateway-account": "a",
        "x-gateway-route": "root",
        "x-request-id": "req_1",
        "openai-processing-ms": "12",
        TURN_STATE: wrapped(world, "a", "theirs"),
    }
    turn.cancel()


def test_limits_are_told_to_who_may_see_them() -> None:
    passed = passed_headers(UPSTREAM, limits=True)
    assert set(passed) == {
        "x-request-id",
        "openai-processing-ms",
        "x-codex-primary-used-percent",
        "x-ratelimit-remaining-requests",
    }, "its turn state is not passed as it is"
