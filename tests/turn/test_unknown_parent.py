"""Turns that continue a response which the ledger does not hold: one of the accounts may."""

from __future__ import annotations

import pytest

from gateway.config import RoutingSettings
from gateway.conversations.store import Transcript, foreign_response
from gateway.protocol.errors import ApiError
from gateway.routing.health import AccountState
from tests.support.events import Json, call_output, text_item, turn_events, user
from tests.turn.fakes import FakeExchange, World

FAR = "resp_far"

#: How services say that they have no such response.
NOT_THERE = [
    ApiError.previous_response_not_found(FAR),
    ApiError(404, "invalid_request_error", f"Response with id '{FAR}' not found."),
    ApiError(404, "not_found_error", "Not Found"),
    ApiError(400, "invalid_request_error", f"No response found with id {FAR}"),
    ApiError(400, "invalid_request_error", "Invalid value", None, "previous_response_id"),
    ApiError(422, "validation_error", f"unknown response {FAR}"),
    ApiError(403, "permission_error", f"Response {FAR} does not exist or is not yours"),
    ApiError(500, "server_error", f"response {FAR} could not be found"),
    ApiError(400, "invalid_request_error", "No tool call found for call_id call_1."),
]


def parent(owner: str | None = None) -> Transcript:
    return foreign_response("laptop", FAR, owner)


def keeps(world: World, *names: str, refusal: ApiError = NOT_THERE[0]) -> None:
    """These accounts know the response, all others refuse it so."""

    def answer(name: str, exchange: FakeExchange) -> None:
        if name in names:
            events = turn_events([text_item()], f"resp_of_{name}", previous_response_id=FAR)
            exchange.sends(*events)
        else:
            exchange.ends(refusal)

    for name, upstream in world.upstreams.items():
        upstream.answer = lambda exchange, name=name: answer(name, exchange)


def asked(world: World) -> list[str]:
    return [name for name, each in world.upstreams.items() if each.exchanges]


def nothing_rests(world: World) -> None:
    for account in world.accounts.values():
        shown = account.health.snapshot()
        assert (account.health.state, shown["resting"]) == (AccountState.READY, {})
        assert (shown["models"], shown["breaker"]["failures"], account.failures) == ([], 0, 0)


@pytest.mark.parametrize("refusal", NOT_THERE, ids=lambda error: f"{error.status} {error.message}")
@pytest.mark.parametrize("owner", ["a", "c", "e"])
def test_accounts_are_asked_in_turn_until_one_knows_it(owner: str, refusal: ApiError) -> None:
    world = World(5)
    keeps(world, owner, refusal=refusal)
    world.turn([call_output("call_1")], parent()).start()
    assert world.sink.last["type"] == "response.completed"
    assert world.sink.last["response"]["id"] == f"resp_of_{owner}"
    assert asked(world) == list("abcde"[: "abcde".index(owner) + 1])
    sent = world.exchanges(owner)[0].body
    assert (sent["previous_response_id"], sent["input"]) == (FAR, [call_output("call_1")])
    assert world.services.owners.owner_of("laptop", FAR) == owner
    nothing_rests(world)
    world.check_rest()


@pytest.mark.parametrize("refusal", NOT_THERE, ids=lambda error: f"{error.status} {error.message}")
def test_where_nobody_knows_it_the_client_is_told_so(refusal: ApiError) -> None:
    world = World(4)
    keeps(world, refusal=refusal)
    turn = world.turn([user("go on")], parent())
    turn.start()
    assert asked(world) == list("abcd")
    assert world.sink.types == ["error"]
    error: Json = world.sink.last["error"]
    assert (world.sink.last["status"], error["code"]) == (400, "previous_response_not_found")
    assert (error["param"], FAR in error["message"]) == ("previous_response_id", True)
    assert world.services.owners.owner_of("laptop", FAR) is None
    nothing_rests(world)
    world.check_rest()


def test_who_ignores_the_id_does_not_know_it() -> None:
    """Such an upstream answers as if nothing had come before."""
    world = World(3)
    keeps(world, "c")
    ignores = turn_events([text_item()], "resp_x", previous_response_id=None)
    world.upstreams["a"].answer = lambda exchange: exchange.sends(*ignores)
    world.turn([user("go on")], parent()).start()
    assert world.sink.last["response"]["id"] == "resp_of_c"
    assert asked(world) == list("abc")
    nothing_rests(world)


def test_an_account_that_cannot_say_leaves_hope() -> None:
    world = World(3)
    keeps(world)
    limit = ApiError(429, "rate_limit_error", "Slow down.", "rate_limit_exceeded")
    world.upstreams["b"].answer = lambda exchange: exchange.ends(limit)
    world.turn([user("go on")], parent()).start()
    assert asked(world) == list("abc")
    assert world.sink.last["status"] == 429, "the response may be there"


@pytest.mark.parametrize("state", ["disable", "drain"])
def test_accounts_out_of_service_leave_none(state: str) -> None:
    world = World(3)
    keeps(world)
    getattr(world.accounts["b"].health, state)()
    world.turn([user("go on")], parent()).start()
    assert world.sink.last["error"]["code"] == "previous_response_not_found"


def test_who_does_not_know_it_is_not_asked_again_after_a_wait() -> None:
    world = World(2, routing=RoutingSettings(queue_seconds=15.0))
    keeps(world, "b")
    world.accounts["b"]._max_in_flight = 0
    world.turn([user("go on")], parent()).start()
    world.clock.advance(3)
    world.accounts["b"]._max_in_flight = None
    world.clock.advance(3)
    assert world.sink.last["response"]["id"] == "resp_of_b"
    assert len(world.exchanges("a")) == 1


def test_other_refusals_mean_what_they_say() -> None:
    world = World(2)
    wrong = ApiError(404, "invalid_request_error", "The model 'x' does not exist")
    keeps(world, refusal=wrong)
    world.turn([user("go on")], parent()).start()
    assert world.sink.last["error"]["message"] == wrong.message


def test_a_known_owner_is_the_only_one_that_is_asked() -> None:
    world = World(3)
    keeps(world, "c")
    turn = world.turn([user("go on")], parent("c"))
    turn.start()
    assert world.sink.last["response"]["id"] == "resp_of_c"
    assert asked(world) == ["c"]
    assert turn.record.attempts[0].rule == "keeps the previous response"
    keeps(world)
    world.turn([user("go on")], parent("c")).start()
    assert world.sink.last["error"]["code"] == "previous_response_not_found"
    assert asked(world) == ["c"]


def test_what_goes_on_from_there_stays_there_and_is_never_replayed_in_part() -> None:
    world = World(3)
    keeps(world, "b")
    first = world.turn([user("go on")], parent())
    first.start()
    assert first.recorded is not None
    lost = ApiError.previous_response_not_found("resp_of_b")
    world.upstreams["b"].answer = lambda exchange: exchange.ends(lost)
    world.turn([user("and on")], first.recorded).start()
    assert world.exchanges("b")[-1].body["previous_response_id"] == "resp_of_b"
    assert world.sink.last["error"]["code"] == "previous_response_not_found"
    assert len(world.exchanges("b")) == 2, "nobody has what came before, to send it again"
