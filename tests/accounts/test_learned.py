"""``continuity: auto``: what an account has shown, per store flag, from fresh refusals only."""

from __future__ import annotations

import pytest

from gateway.accounts.learned import TEACHES_FOR_SECONDS, LearnedContinuity
from gateway.ledger.records import Record

NOW = 100_000.0
FRESH, OLD = NOW - 60, NOW - TEACHES_FOR_SECONDS


def parent(store: bool, created_at: float = FRESH) -> Record:
    return Record("laptop", "resp_1", None, (), (), "a", store, True, None, created_at)


@pytest.fixture
def learned() -> LearnedContinuity:
    return LearnedContinuity(lambda: NOW)


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
