"""``continuity: auto``: what an account has shown, per store flag, from fresh refusals only."""

from __future__ import annotations

import pytest

from gateway.accounts.learned import TEACHES_FOR_SECONDS, LearnedContinuity
from gateway.ledger.records import Record
from tests.support.now import Now

NOW = 100_000.0
HOUR = 3600.0
FRESH, OLD = NOW - 60, NOW - TEACHES_FOR_SECONDS


def parent(store: bool, created_at: float = FRESH) -> Record:
    return Record("laptop", "resp_1", None, (), (), "a", store, True, None, created_at)


@pytest.fixture
def clock() -> Now:
    return Now(NOW)


@pytest.fixture
def learned(clock: Now) -> LearnedContinuity:
    return LearnedContinuity(clock)


def test_nothing_is_known_of_a_new_account(learned: LearnedContinuity) -> None:
    assert learned.shown() == {"store": "unknown", "no_store": "unknown"}
    assert learned.reason_to_replay(True) is None
    assert learned.reason_to_replay(False) is None


@pytest.mark.parametrize("store", [True, False])
def test_a_fresh_refusal_teaches_for_its_store_flag_alone(
    learned: LearnedContinuity, store: bool
) -> None:
    learned.refused(parent(store), "it was refused")
    assert learned.reason_to_replay(store) == "it was refused"
    assert learned.reason_to_replay(not store) is None
    shown = learned.shown()
    assert shown["store" if store else "no_store"] == "it was refused"
    assert shown["no_store" if store else "store"] == "unknown"


def test_an_old_response_may_simply_have_expired(learned: LearnedContinuity) -> None:
    learned.refused(parent(True, OLD), "it was refused")
    assert learned.reason_to_replay(True) is None


def test_a_continued_response_is_shown(learned: LearnedContinuity) -> None:
    learned.continued(True)
    assert learned.shown() == {"store": "chain", "no_store": "unknown"}
    assert learned.reason_to_replay(True) is None


def test_an_account_that_could_is_forgiven_twice_in_a_row(learned: LearnedContinuity) -> None:
    for _ in range(3):
        learned.continued(False)
        learned.refused(parent(False), "it was refused")
        learned.refused(parent(False), "it was refused")
        assert learned.shown()["no_store"] == "chain"
    learned.refused(parent(False), "it was refused")
    assert learned.shown()["no_store"] == "it was refused"


def test_accounts_learn_each_for_themselves(learned: LearnedContinuity) -> None:
    learned.refused(parent(True), "it was refused")
    assert LearnedContinuity(lambda: NOW).reason_to_replay(True) is None


def test_one_bad_hour_is_not_held_against_an_account_that_could(
    learned: LearnedContinuity, clock: Now
) -> None:
    learned.continued(True)
    for _ in range(3):
        learned.refused(parent(True), "it was refused")
    clock.now += HOUR - 1
    assert (learned.reason_to_replay(True), learned.trusts(True)) == ("it was refused", False)
    clock.now += 1
    assert learned.reason_to_replay(True) is None
    assert learned.trusts(True) is False, "it has to show it again"
    assert learned.shown()["store"] == "chain"
    learned.refused(parent(True, clock.now), "it was refused again")
    assert learned.reason_to_replay(True) == "it was refused again", "at once, this time"
    clock.now += HOUR
    learned.continued(True)
    learned.refused(parent(True, clock.now), "it was refused")
    assert learned.reason_to_replay(True) is None
    assert learned.trusts(True) is True


def test_an_account_that_never_could_is_asked_again_after_a_day(
    learned: LearnedContinuity, clock: Now
) -> None:
    learned.refused(parent(True), "it was refused")
    clock.now += 23 * HOUR
    assert learned.reason_to_replay(True) == "it was refused"
    clock.now += HOUR
    assert learned.reason_to_replay(True) is None
    assert learned.shown()["store"] == "unknown"


def test_a_turn_that_was_continued_meanwhile_is_the_newer_word(
    learned: LearnedContinuity,
) -> None:
    learned.refused(parent(True), "it was refused")
    learned.continued(True)
    assert learned.reason_to_replay(True) is None
