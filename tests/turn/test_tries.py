"""On how many accounts a turn may be tried: what counts, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.errors import UNREACHABLE, ApiError
from gateway.turn.account_search import MOST_REFUSALS, Tries

BROKEN = ApiError(500, "server_error", "boom")
WRONG_KEY = ApiError(401, "invalid_request_error", "Incorrect API key.", "invalid_api_key")
FREE = [
    WRONG_KEY,
    ApiError(403, "invalid_request_error", "Deactivated.", "account_deactivated"),
    ApiError(429, "insufficient_quota", "You exceeded it.", "insufficient_quota"),
    ApiError.bad_gateway("The upstream refused the connection.", UNREACHABLE),
    ApiError.previous_response_not_found("resp_1"),
]


@pytest.mark.parametrize("error", FREE, ids=lambda error: error.label)
def test_what_cost_nothing_does_not_count_once_for_each_account(error: ApiError) -> None:
    tries = Tries()
    for account in "abcdef":
        tries.refused(account, error, in_doubt=False)
    assert not tries.exhausted(1)
    tries.refused("a", error, in_doubt=False)
    assert tries.exhausted(1)


def test_what_may_have_cost_something_counts() -> None:
    tries = Tries()
    for account in "ab":
        tries.refused(account, BROKEN, in_doubt=False)
    assert (tries.exhausted(3), tries.exhausted(2)) == (False, True)


def test_who_was_in_doubt_keeps_no_turn_from_those_that_are_not() -> None:
    tries = Tries()
    tries.refused("a", BROKEN, in_doubt=True)
    assert not tries.exhausted(1)
    assert (tries.may_doubt(1), tries.may_doubt(2)) == (False, True)


def test_nobody_needs_to_be_doubted_before_one_was() -> None:
    tries = Tries()
    assert tries.may_doubt(1)
    tries.refused("a", BROKEN, in_doubt=False)
    assert tries.may_doubt(1)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*FREE, BROKEN]), st.booleans())),
    st.integers(1, 30),
)
def test_every_turn_ends(refusals: list[tuple[str, ApiError, bool]], most: int) -> None:
    tries = Tries()
    for account, error, in_doubt in refusals:
        if tries.exhausted(most):
            break
        tries.refused(account, error, in_doubt)
    assert len(tries.refusals) <= max(most, MOST_REFUSALS)
