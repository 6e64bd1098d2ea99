"""One request passed to the pool as it is: where it goes, when it moves, what is left behind."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api_keys.limits import LimitLease, LimitReached
from gateway.config import RoutingSettings
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.upstream.interface import ForwardedRequest
from tests.turn.calls import CallWorld, FakeSpec, Journey


def test_an_answer_is_relayed_as_it_comes() -> None:
    world = CallWorld()
    journey = Journey(world).starts()
    (call,) = world.calls()
    assert call.body == {"to": "a"}
    call.begins(201, {"x-request-id": "req_1"})
    call.sends(b"on")
    assert journey.sink.status == 201
    assert journey.sink.headers["x-request-id"] == "req_1"
    assert journey.sink.body == b"on"
    call.sends(b"e")
    call.ends()
    assert journey.sink.body == b"one"
    assert journey.sink.endings == [None]
    record = journey.forwarding.record
    assert (record.status, record.account, record.route) == ("completed", "a", "request")
    assert record.relayed_bytes == 3
    assert [attempt.outcome for attempt in record.attempts] == ["completed"]
    assert world.turn_log.latest() == [record]
    world.check_rest()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_a_refusal_that_another_account_may_not_share_moves_it(status: int) -> None:
    world = CallWorld(2)
    journey = Journey(world).starts()
    world.calls("a")[0].refuses(status)
    world.calls("b")[0].answers({"fine": True})
    assert journey.sink.body == b'{"fine": true}'
    assert journey.sink.endings == [None]
    assert [each.account for each in journey.forwarding.record.attempts] == ["a", "b"]
    assert world.accounts["a"].failures == (status != 403), "a 403 may be the path's alone"
    world.check_rest()


def test_a_lost_connection_moves_it() -> None:
    world = CallWorld(2)
    journey = Journey(world).starts()
    world.calls("a")[0].ends(ApiError.bad_gateway("reset"))
    world.calls("b")[0].answers({})
    assert journey.sink.endings == [None]
    world.check_rest()


def test_a_wrong_request_does_not_move() -> None:
    world = CallWorld(2)
    journey = Journey(world).starts()
    world.calls("a")[0].refuses(400, "invalid_type", "'n' must be a number")
    assert journey.sink.error.status == 400
    assert journey.sink.error.message == "'n' must be a number"
    assert not world.calls("b")
    assert world.accounts["a"].failures == 0
    assert world.accounts["a"].unavailable("gpt-5.5") is None
    world.check_rest()


def test_nothing_moves_once_the_client_has_seen_the_head() -> None:
    world = CallWorld(2)
    journey = Journey(world).starts()
    call = world.calls("a")[0]
    call.begins()
    call.sends(b"x")
    call.ends(ApiError.bad_gateway("reset"))
    assert journey.sink.error.message == "reset"
    assert not world.calls("b")
    assert journey.forwarding.record.attempts[0].outcome == "upstream_error"
    world.check_rest()


def test_an_answer_that_is_held_moves_until_it_is_whole() -> None:
    world = CallWorld(2)
    spec = FakeSpec()
    spec.held_bytes = 100
    journey = Journey(world, spec).starts()
    first = world.calls("a")[0]
    first.begins()
    first.sends(b"half")
    assert not journey.sink.status, "expected the answer to be held"
    first.ends(ApiError.bad_gateway("reset"))
    world.calls("b")[0].answers(b"whole")
    assert journey.sink.body == b"whole"
    assert journey.sink.endings == [None]
    world.check_rest()


def test_an_answer_that_is_too_long_to_be_held_ends_it() -> None:
    world = CallWorld(2)
    spec = FakeSpec()
    spec.held_bytes = 10
    journey = Journey(world, spec).starts()
    call = world.calls("a")[0]
    call.begins()
    call.sends(b"x" * 11)
    assert journey.sink.error.status == 502
    assert call.state == "cancelled"
    assert not world.calls("b")
    world.check_rest()


def test_attempts_are_bounded() -> None:
    world = CallWorld(5, RoutingSettings(queue_seconds=0.0, max_attempts=3))
    journey = Journey(world).starts()
    for call in ("a", "b", "c"):
        world.calls(call)[0].refuses(503)
    assert journey.sink.error.status == 503
    assert len(world.all_calls) == 3
    world.check_rest()


def test_the_same_account_gets_it_again_in_another_way() -> None:
    world = CallWorld(2)
    spec = FakeSpec()
    spec.mends = 1
    journey = Journey(world, spec).starts()
    world.calls("a")[0].refuses(404)
    world.calls("a")[1].answers({})
    assert journey.sink.endings == [None]
    assert world.accounts["a"].failures == 0
    world.check_rest()


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_path_that_is_not_served_lets_nobody_rest(status: int) -> None:
    world = CallWorld(2)
    Journey(world).starts()
    world.calls("a")[0].refuses(status)
    assert world.accounts["a"].unavailable("gpt-5.5") is None, "expected the account to be fine"
    assert world.calls("b") or status == 405
    for call in world.calls("b"):
        call.answers({})
    world.check_rest()


def test_a_permission_for_the_path_alone_lets_nobody_rest() -> None:
    world = CallWorld(2)
    Journey(world).starts()
    world.calls("a")[0].refuses(403, None, "Missing scopes: api.responses.write")
    assert world.accounts["a"].unavailable("gpt-5.5") is None
    world.calls("b")[0].refuses(404, "model_not_found")
    resting = world.accounts["b"].unavailable("gpt-5.5")
    assert resting is not None, "expected the model to rest there"
    world.check_rest()


def test_a_bug_costs_one_request() -> None:
    class Broken(FakeSpec):
        def request_for(self, account: Account) -> ForwardedRequest:
            raise ValueError("a bug")

    world = CallWorld()
    journey = Journey(world, Broken()).starts()
    assert journey.sink.error.code == "gateway_failed"
    world.check_rest()


def test_a_usage_limit_lets_the_account_rest() -> None:
    world = CallWorld(2)
    Journey(world).starts()
    world.calls("a")[0].refuses(429, "insufficient_quota")
    resting = world.accounts["a"].unavailable("gpt-5.5")
    assert resting is not None
    assert resting.state is AccountState.EXHAUSTED
    world.calls("b")[0].answers({})
    world.check_rest()


def test_what_generates_shows_that_the_account_is_well_and_counts() -> None:
    for generates in (True, False):
        world = CallWorld()
        spec = FakeSpec()
        spec.generates = generates
        Journey(world, spec).starts()
        world.calls()[0].answers({})
        assert world.accounts["a"].turns == generates
        world.check_rest()


def test_a_success_without_a_generation_does_not_clear_a_usage_limit() -> None:
    world = CallWorld()
    Journey(world).starts()
    world.calls()[0].refuses(429, "insufficient_quota")
    world.clock.advance(601)
    spec = FakeSpec()
    spec.generates = False
    Journey(world, spec).starts()
    world.calls()[1].answers({})
    shown = world.accounts["a"].health.snapshot()
    assert shown["state"] != "ready", f"expected the quota to be unproven, got {shown}"
    world.check_rest()


def test_a_client_that_leaves_cancels_its_call() -> None:
    for begun in (False, True):
        world = CallWorld(2)
        journey = Journey(world).starts()
        call = world.calls("a")[0]
        if begun:
            call.begins()
        journey.forwarding.cancel()
        journey.forwarding.cancel()
        assert call.state == "cancelled"
        assert journey.sink.endings == []
        assert journey.forwarding.record.status == "cancelled"
        assert world.accounts["a"].failures == 0
        world.check_rest()


def test_a_gateway_that_stops_says_so() -> None:
    world = CallWorld()
    journey = Journey(world).starts()
    journey.forwarding.abandon(ApiError.bad_gateway("restarting", "gateway_restart"))
    assert journey.sink.error.code == "gateway_restart"
    assert world.calls()[0].state == "cancelled"
    world.check_rest()


def test_a_slow_client_pauses_its_call_and_the_one_after_it() -> None:
    world = CallWorld(2)
    journey = Journey(world).starts()
    journey.forwarding.pause()
    assert world.calls("a")[0].paused
    world.calls("a")[0].refuses(503)
    assert world.calls("b")[0].paused
    journey.forwarding.resume()
    assert not world.calls("b")[0].paused
    world.calls("b")[0].answers({})
    journey.forwarding.pause()
    world.check_rest()


def test_it_waits_for_a_free_account() -> None:
    world = CallWorld(routing=RoutingSettings(queue_seconds=10), settings={"a": {}})
    world.accounts["a"]._max_in_flight = 1
    first = Journey(world).starts()
    second = Journey(world).starts()
    assert len(world.calls()) == 1, "expected the second to wait"
    world.calls()[0].answers({})
    assert first.sink.endings == [None]
    world.clock.advance(0.3)
    world.calls()[1].answers({})
    assert second.sink.endings == [None]
    world.check_rest()


def test_its_record_tells_how_long_each_step_took() -> None:
    world = CallWorld(routing=RoutingSettings(queue_seconds=10))
    world.accounts["a"]._max_in_flight = 1
    first = Journey(world).starts()
    second = Journey(world).starts()
    world.clock.advance(2)
    world.calls()[0].answers({})
    world.clock.advance(1)
    call = world.calls()[1]
    call.connects()
    world.clock.advance(1)
    call.answers({})
    record = second.forwarding.record
    assert (record.queued_ms, record.waited_ms, record.duration_ms) == (0, 2000, 4000)
    attempt = record.attempts[0]
    assert (attempt.chosen_ms, attempt.connected_ms, attempt.first_byte_ms) == (2000, 3000, 4000)
    assert first.forwarding.record.waited_ms is None
    assert first.forwarding.record.turn != record.turn
    world.check_rest()


def test_it_waits_only_so_long() -> None:
    world = CallWorld(routing=RoutingSettings(queue_seconds=10))
    world.accounts["a"]._max_in_flight = 1
    first, second = Journey(world).starts(), Journey(world).starts()
    world.clock.advance(11)
    assert second.sink.error.status == 429
    first.forwarding.cancel()
    world.check_rest()


def test_a_waiting_client_may_leave() -> None:
    world = CallWorld(routing=RoutingSettings(queue_seconds=10))
    world.accounts["a"]._max_in_flight = 1
    first, second = Journey(world).starts(), Journey(world).starts()
    second.forwarding.cancel()
    first.forwarding.cancel()
    world.clock.advance(1)
    assert len(world.calls()) == 1
    world.check_rest()


def test_usage_is_counted_once_within_the_tenants_limits() -> None:
    class Limits:
        def __init__(self) -> None:
            self.said: list[Any] = []

        def prepare(self, tenant: str) -> None:
            return None

        def acquire(self, tenant: str, model: str | None) -> LimitLease | LimitReached:
            self.said.append(("enter", tenant, model))
            return self

        def used(self, usage: Usage) -> None:
            self.said.append(usage)

        def release(self) -> None:
            self.said.append("release")

    limits = Limits()
    world = CallWorld()
    object.__setattr__(world.services, "limits", limits)
    journey = Journey(world)
    journey.sink.usage = Usage(3, 2, 1)
    journey.starts()
    world.calls()[0].answers({})
    assert limits.said == [("enter", "laptop", "gpt-5.5"), Usage(3, 2, 1), "release"]
    record = journey.forwarding.record
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (3, 2, 1)


def test_a_tenant_that_may_not_is_told() -> None:
    class Forbids:
        def prepare(self, tenant: str) -> None:
            return None

        def acquire(self, tenant: str, model: str | None) -> LimitLease | LimitReached:
            raise ApiError(403, "permission_error", "not this model", "model_not_allowed")

    world = CallWorld()
    object.__setattr__(world.services, "limits", Forbids())
    journey = Journey(world).starts()
    assert journey.sink.error.code == "model_not_allowed"
    assert not world.calls()
    world.check_rest()


def test_accounts_that_may_know_are_asked_in_turn() -> None:
    world = CallWorld(3)
    journey = Journey(world).asks("cab")
    world.calls("c")[0].refuses(404)
    world.calls("a")[0].refuses(500)
    world.calls("b")[0].answers({"id": "resp_1"})
    assert journey.sink.endings == [None]
    assert journey.forwarding.account is world.accounts["b"]
    assert all(account.in_flight == 0 for account in world.accounts.values())
    world.check_rest()


def test_what_no_account_knows_is_unknown() -> None:
    world = CallWorld(2)
    journey = Journey(world).asks("ab")
    world.calls("a")[0].refuses(404, None, "not by this account")
    world.calls("b")[0].refuses(404)
    assert journey.sink.error.message == "unknown"
    assert Journey(world).asks("").sink.error.message == "unknown"
    world.check_rest()


def test_what_an_account_could_not_say_may_still_exist() -> None:
    world = CallWorld(2)
    journey = Journey(world).asks("ab")
    world.calls("a")[0].refuses(503)
    world.calls("b")[0].refuses(404)
    assert journey.sink.error.status == 503
    world.check_rest()


STEPS = st.sampled_from(
    ["begins", "sends", "ends", "breaks", "refuses", "pause", "resume", "cancel", "abandon", "wait"]
)


@settings(max_examples=300)
@given(steps=st.lists(STEPS, max_size=14), held=st.sampled_from([0, 6]))
def test_it_ends_once_whatever_happens(steps: list[str], held: int) -> None:
    world = CallWorld(3, RoutingSettings(queue_seconds=5.0))
    spec = FakeSpec()
    spec.held_bytes = held
    journey = Journey(world, spec).starts()
    begun: set[int] = set()
    for step in steps:
        running = [call for call in world.all_calls if call.state == "running"]
        assert len(running) <= 1, "expected one call at a time"
        call = running[0] if running else None
        if step in ("pause", "resume", "cancel"):
            getattr(journey.forwarding, step)()
        elif step == "abandon":
            journey.forwarding.abandon(ApiError.bad_gateway("stop"))
        elif step == "wait":
            world.clock.advance(1)
        elif call is None:
            continue
        elif step == "begins" and id(call) not in begun:
            begun.add(id(call))
            call.begins()
        elif step == "sends" and id(call) in begun:
            call.sends(b"data")
        elif step == "ends" and id(call) in begun:
            call.ends()
        elif step == "breaks":
            call.ends(ApiError.bad_gateway("reset"))
        elif step == "refuses" and id(call) not in begun:
            call.refuses(500)
        assert len(journey.sink.endings) <= 1, "expected one ending"
    journey.forwarding.cancel()
    assert len(world.turn_log.latest()) == 1
    world.check_rest()
