"""What clients are told when no account can serve (protocol.md §5.2, §10.62-64)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.error_classification import FaultKind
from gateway.protocol.errors import ApiError, error_event
from gateway.routing.errors import attempts_error, pool_error
from tests.routing.pools import Basin

HOUR = 3600.0


def told(
    basin: Basin, *refusals: ApiError, tried: tuple[str, ...] = (), **members: Any
) -> ApiError:
    return pool_error(basin.nobody(tried=tried, **members), refusals, basin.now)


def usage_limit(**details: Any) -> ApiError:
    message = "The usage limit has been reached"
    return ApiError(429, "usage_limit_reached", message, details=details)


def rate_limit() -> ApiError:
    return ApiError(429, "requests", "Rate limit reached.", "rate_limit_exceeded")


# --- quotas --------------------------------------------------------------------------


def test_a_pool_that_is_used_up_names_the_earliest_reset() -> None:
    basin = Basin("a", "b", "c")
    for name, hours in (("a", 5), ("b", 2), ("c", 30)):
        basin.fails(name, kind=FaultKind.EXHAUSTED, seconds=hours * HOUR)
    error = told(basin, usage_limit(plan_type="plus", resets_at=1))
    assert (error.status, error.type, error.code) == (429, "usage_limit_reached", None)
    assert error.details == {
        "plan_type": "plus",
        "resets_at": int(basin.now + 2 * HOUR),
        "resets_in_seconds": 2 * HOUR,
    }
    assert error.headers == {"retry-after": str(int(2 * HOUR))}
    frame = json.loads(error_event(error))
    assert frame["error"]["resets_at"] == int(basin.now + 2 * HOUR), "Codex reads it there"
    assert frame["headers"]["retry-after"] == str(int(2 * HOUR))


def test_the_reset_is_the_upstreams_word_not_the_end_of_our_patience() -> None:
    basin = Basin("a", "b")
    basin.fails("a", "b", kind=FaultKind.EXHAUSTED, seconds=50 * HOUR)
    nobody = basin.nobody()
    assert nobody.free_at is not None
    assert nobody.free_at <= basin.now + 600, "the cap: it is asked again long before"
    assert told(basin).details["resets_at"] == int(basin.now + 50 * HOUR)


def test_a_reset_that_has_passed_is_not_told() -> None:
    basin = Basin("a")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=1.0)
    basin.clock.advance(30)
    probe = basin.pool.choose(basin.nobody(tried=["a"]).wanted)
    assert told(basin).details["resets_at"] > basin.now, f"while {probe} is on its way"


def test_accounts_without_credit_that_name_no_time_are_a_quota_that_is_spent() -> None:
    basin = Basin("a", "b")
    basin.fails("a", "b", kind=FaultKind.EXHAUSTED, seconds=None)
    error = told(basin)
    assert (error.status, error.type, error.code) == (
        429,
        "insufficient_quota",
        "insufficient_quota",
    )


@pytest.mark.parametrize("out", ["disabled", "draining", "unauthorized"])
def test_accounts_that_are_out_do_not_hide_that_the_others_are_used_up(out: str) -> None:
    basin = Basin("a", "b")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=3 * HOUR)
    if out == "unauthorized":
        basin.fails("b", kind=FaultKind.UNAUTHORIZED, seconds=None)
    else:
        health = basin.accounts["b"].health
        {"disabled": health.disable, "draining": health.drain}[out]()
    error = told(basin)
    assert error.type == "usage_limit_reached"
    assert error.details["resets_at"] == int(basin.now + 3 * HOUR)


def test_a_pool_of_which_only_some_is_used_up_is_worth_waiting_for() -> None:
    basin = Basin("a", "b")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=HOUR)
    basin.fails("b", kind=FaultKind.RATE_LIMITED, seconds=20.0)
    error = told(basin, usage_limit())
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert 20 <= int(error.headers["retry-after"]) <= 26
    assert f"try again in {error.headers['retry-after']}s" in error.message, "Codex reads it"


# --- limits, places, the operator ----------------------------------------------------


def test_who_waits_for_a_place_is_told_to_come_again_soon() -> None:
    basin = Basin("a", accounts={"a": {"max_in_flight": 1}})
    basin.pool.choose(basin.nobody(tried=["a"]).wanted)
    error = told(basin)
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert error.headers == {"retry-after": "1"}


@pytest.mark.parametrize("wish", ["disable", "drain"])
def test_a_pool_that_the_operator_took_out_of_service_is_unavailable(wish: str) -> None:
    basin = Basin("a", "b")
    for account in basin.accounts.values():
        getattr(account.health, wish)()
    error = told(basin)
    assert (error.status, error.type, error.code) == (503, "server_error", "no_account_available")
    assert error.headers == {"retry-after": "30"}


def test_a_pool_whose_keys_are_refused_is_a_bad_gateway_and_tells_no_401() -> None:
    """§5.2: a client would believe that its own key is meant."""
    basin = Basin("a", "b")
    basin.fails("a", "b", kind=FaultKind.UNAUTHORIZED, seconds=None, why="401 sk-secret")
    for refusals in ([], [ApiError(401, "invalid_request_error", "Incorrect key sk-secret")]):
        error = told(basin, *refusals)
        assert (error.status, error.code) == (502, "upstream_unauthorized")
        assert "sk-secret" not in error.message


# --- one's own refusals --------------------------------------------------------------


@pytest.mark.parametrize(
    "refusal",
    [
        usage_limit(resets_at=1_900_000_000, plan_type="pro"),
        rate_limit(),
        ApiError(429, "insufficient_quota", "You exceeded your quota", "insufficient_quota"),
        ApiError(500, "server_error", "We had an error"),
    ],
    ids=lambda refusal: refusal.label,
)
def test_a_single_account_speaks_for_itself(refusal: ApiError) -> None:
    basin = Basin("a")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=HOUR)
    assert told(basin, refusal) is refusal


def test_a_single_accounts_overload_and_credentials_are_told_in_our_words() -> None:
    basin = Basin("a")
    basin.fails("a")
    overload = ApiError(503, "server_error", "Overloaded", "server_is_overloaded")
    assert told(basin, overload).code == "upstream_overloaded", "Codex would give up (§10.64)"
    assert told(basin, ApiError(401, "x", "no", "invalid_api_key")).status == 502


def test_a_server_error_is_told_where_clients_would_retry_it() -> None:
    basin = Basin("a", "b")
    basin.fails("a", "b")
    broken = ApiError.bad_gateway("The upstream closed the connection.")
    assert told(basin, rate_limit(), broken, rate_limit()) is broken


def test_refusals_without_a_rest_are_told_as_they_are() -> None:
    """All refused this very turn, and none of them rests because of it."""
    basin = Basin("a", "b")
    conflict = ApiError(409, "invalid_request_error", "Conflict")
    assert told(basin, conflict, conflict, tried=("a", "b")) is conflict


# --- those that never can ------------------------------------------------------------


def test_a_model_that_nobody_offers_does_not_exist() -> None:
    basin = Basin("a", accounts={"a": {"models": ("gpt-*",)}})
    error = told(basin, model="o3")
    assert (error.status, error.code, error.param) == (400, "model_not_found", "model")
    assert "'o3'" in error.message
    assert len(told(basin, model="x" * 10_000).message) < 300


def no_such_model(status: int = 404) -> ApiError:
    return ApiError(status, "invalid_request_error", "No such model.", "model_not_found", "model")


@pytest.mark.parametrize("status", [403, 404])
def test_a_model_that_every_account_refuses_is_told_in_their_words(status: int) -> None:
    basin = Basin("a", "b", "c")
    basin.fails("a", "b", "c", kind=FaultKind.MODEL_REFUSED, seconds=None)
    first, last = no_such_model(), no_such_model(status)
    assert told(basin, first, last, tried=("a", "b", "c")) is last


def test_a_wall_before_every_account_says_nothing_of_the_model() -> None:
    basin = Basin("a", "b")
    basin.fails("a", "b", kind=FaultKind.MODEL_REFUSED, seconds=None)
    wall = ApiError(403, "permission_error", "<html>")
    error = told(basin, wall, wall, tried=("a", "b"))
    assert (error.status, error.code) == (502, "upstream_unauthorized")


@pytest.mark.parametrize("names", ["a", "ab"])
def test_turns_that_come_later_hear_of_the_model_and_of_no_limit(names: str) -> None:
    basin = Basin(*names)
    basin.fails(*names, kind=FaultKind.MODEL_REFUSED, seconds=30.0)
    error = told(basin)
    assert (error.status, error.code, error.param) == (503, "model_unavailable", "model")
    assert "'gpt-5'" in error.message
    assert re.search(r"asks again in \d+s", error.message)
    assert "retry-after" not in error.headers, "clients would sleep over a mistyped name"


def test_a_model_that_some_refuse_and_others_cannot_take_now_is_waited_for() -> None:
    basin = Basin("a", "b")
    basin.fails("a", kind=FaultKind.MODEL_REFUSED, seconds=None)
    basin.fails("b", kind=FaultKind.RATE_LIMITED, seconds=20.0)
    assert told(basin, no_such_model(), tried=("a",)).code == "rate_limit_exceeded"


def test_background_responses_that_nobody_takes_are_unsupported() -> None:
    error = told(Basin("a"), background=True)
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", "background")


def test_a_conversation_whose_only_reader_is_gone_must_begin_anew() -> None:
    error = told(Basin("a"), pinned_to="removed")
    assert (error.status, error.code, error.param) == (400, "invalid_encrypted_content", "input")
    assert "'removed'" in error.message


def test_a_pinned_conversation_is_told_of_its_own_account_alone() -> None:
    basin = Basin("a", "b")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=HOUR)
    assert told(basin, pinned_to="a").type == "usage_limit_reached"
    basin.recovers("a")
    basin.fails("a", kind=FaultKind.RATE_LIMITED, seconds=10.0)
    assert "account of this conversation" in told(basin, pinned_to="a").message


# --- as often as it may be -----------------------------------------------------------


def test_who_was_tried_on_some_of_many_accounts_may_come_again() -> None:
    """§10.62: the limits of those it met are not the pool's."""
    error = attempts_error([usage_limit(), rate_limit(), usage_limit()])
    assert (error.status, error.type, error.code) == (502, "server_error", "upstream_refused")
    broken = ApiError.bad_gateway("The upstream closed the connection.")
    assert attempts_error([usage_limit(), broken, rate_limit()]) is broken


# --- whatever happens ----------------------------------------------------------------

STATES = st.sampled_from(["ready", "disabled", "draining", *FaultKind])


@given(
    st.lists(STATES, min_size=1, max_size=5),
    st.lists(
        st.sampled_from([usage_limit(), rate_limit(), ApiError.bad_gateway("broken")]), max_size=3
    ),
)
def test_any_pool_gives_an_error_that_clients_understand(
    states: list[Any], refusals: list[ApiError]
) -> None:
    names = [f"a{number}" for number in range(len(states))]
    basin = Basin(*names)
    for name, state in zip(names, states, strict=True):
        if state in ("disabled", "draining"):
            health = basin.accounts[name].health
            {"disabled": health.disable, "draining": health.drain}[state]()
        elif state != "ready":
            basin.fails(name, kind=state, seconds=HOUR)
    nobody = basin.nobody(tried=names)
    if not nobody.reasons and not refusals:
        return  # nobody refused anything
    error = pool_error(nobody, refusals, basin.now)
    assert error.status in (429, 502, 503), f"{error} of {states}"
    if error.type == "usage_limit_reached" and error not in refusals:
        assert error.details["resets_at"] >= basin.now
    if error.status == 429 and error not in refusals:
        assert int(error.headers["retry-after"]) >= 1


def test_what_nobody_explained_is_told_as_it_was_said() -> None:
    basin = Basin("a", "b")
    basin.fails("a", "b", kind=FaultKind.UNCLEAR, seconds=None)
    said = ApiError(404, "invalid_request_error", "Not here.")
    assert told(basin, said, said, tried=("a", "b")) is said
