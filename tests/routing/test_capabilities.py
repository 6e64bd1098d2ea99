"""What an account taught: of previous responses from fresh refusals only, and what it refuses."""

from __future__ import annotations

import pytest

from gateway.conversations.store import ResponseRecord
from gateway.protocol.concessions import Concession, ConcessionKind
from gateway.routing.capabilities import (
    FRESH_RESPONSE_SECONDS,
    MAX_LEARNED,
    CapabilityScope,
    LearnedCapabilities,
)
from tests.support.now import Now

NOW = 100_000.0
HOUR = 3600.0
FRESH, OLD = NOW - 60, NOW - FRESH_RESPONSE_SECONDS


def parent(store: bool, created_at: float = FRESH) -> ResponseRecord:
    return ResponseRecord("laptop", "resp_1", None, (), (), "a", store, True, None, created_at)


@pytest.fixture
def clock() -> Now:
    return Now(NOW)


@pytest.fixture
def learned(clock: Now) -> LearnedCapabilities:
    return LearnedCapabilities(clock)


def test_nothing_is_known_of_a_new_account(learned: LearnedCapabilities) -> None:
    assert learned.continuity() == {"store": "unknown", "no_store": "unknown"}
    assert learned.reason_to_replay(True) is None
    assert learned.reason_to_replay(False) is None


@pytest.mark.parametrize("store", [True, False])
def test_a_fresh_refusal_teaches_for_its_store_flag_alone(
    learned: LearnedCapabilities, store: bool
) -> None:
    learned.refused(parent(store), "it was refused")
    assert learned.reason_to_replay(store) == "it was refused"
    assert learned.reason_to_replay(not store) is None
    shown = learned.continuity()
    assert shown["store" if store else "no_store"] == "it was refused"
    assert shown["no_store" if store else "store"] == "unknown"


def test_an_old_response_may_simply_have_expired(learned: LearnedCapabilities) -> None:
    learned.refused(parent(True, OLD), "it was refused")
    assert learned.reason_to_replay(True) is None


def test_a_continued_response_is_shown(learned: LearnedCapabilities) -> None:
    learned.continued(True)
    assert learned.continuity() == {"store": "chain", "no_store": "unknown"}
    assert learned.reason_to_replay(True) is None


def test_an_account_that_could_is_forgiven_twice_in_a_row(learned: LearnedCapabilities) -> None:
    for _ in range(3):
        learned.continued(False)
        learned.refused(parent(False), "it was refused")
        learned.refused(parent(False), "it was refused")
        assert learned.continuity()["no_store"] == "chain"
    learned.refused(parent(False), "it was refused")
    assert learned.continuity()["no_store"] == "it was refused"


def test_accounts_learn_each_for_themselves(learned: LearnedCapabilities) -> None:
    learned.refused(parent(True), "it was refused")
    assert LearnedCapabilities(lambda: NOW).reason_to_replay(True) is None


def test_one_bad_hour_is_not_held_against_an_account_that_could(
    learned: LearnedCapabilities, clock: Now
) -> None:
    learned.continued(True)
    for _ in range(3):
        learned.refused(parent(True), "it was refused")
    clock.now += HOUR - 1
    assert (learned.reason_to_replay(True), learned.trusts(True)) == ("it was refused", False)
    clock.now += 1
    assert learned.reason_to_replay(True) is None
    assert learned.trusts(True) is False, "it has to show it again"
    assert learned.continuity()["store"] == "chain"
    learned.refused(parent(True, clock.now), "it was refused again")
    assert learned.reason_to_replay(True) == "it was refused again", "at once, this time"
    clock.now += HOUR
    learned.continued(True)
    learned.refused(parent(True, clock.now), "it was refused")
    assert learned.reason_to_replay(True) is None
    assert learned.trusts(True) is True


def test_an_account_that_never_could_is_asked_again_after_a_day(
    learned: LearnedCapabilities, clock: Now
) -> None:
    learned.refused(parent(True), "it was refused")
    clock.now += 23 * HOUR
    assert learned.reason_to_replay(True) == "it was refused"
    clock.now += HOUR
    assert learned.reason_to_replay(True) is None
    assert learned.continuity()["store"] == "unknown"


def test_a_turn_that_was_continued_meanwhile_is_the_newer_word(
    learned: LearnedCapabilities,
) -> None:
    learned.refused(parent(True), "it was refused")
    learned.continued(True)
    assert learned.reason_to_replay(True) is None


USER = Concession(ConcessionKind.MEMBER, "user")
LISTS = Concession(ConcessionKind.TEXT_INPUT)


def test_a_lesson_holds_for_whom_it_was_learned(learned: LearnedCapabilities) -> None:
    learned.learn(CapabilityScope(), USER, "400: no user")
    learned.learn(CapabilityScope(model="o9"), LISTS, "400: no text")
    learned.learn(
        CapabilityScope(tenant="desk"), Concession(ConcessionKind.STORED_ITEMS), "404: not found"
    )
    assert learned.concessions(CapabilityScope(model="gpt-5", tenant="laptop")) == {USER}
    assert learned.concessions(CapabilityScope(model="o9", tenant="laptop")) == {USER, LISTS}
    assert learned.concessions(CapabilityScope(model="o9", tenant="desk")) == {
        *(USER, LISTS, Concession(ConcessionKind.STORED_ITEMS))
    }


def test_what_turns_taught_holds_for_what_stands_beside_them(learned: LearnedCapabilities) -> None:
    learned.learn(CapabilityScope("/responses"), USER, "why")
    learned.learn(CapabilityScope("/responses/input_tokens"), LISTS, "why")
    assert learned.concessions(CapabilityScope("/responses/compact")) == {USER}
    assert learned.concessions(CapabilityScope("/responses/input_tokens")) == {USER, LISTS}
    assert learned.concessions(CapabilityScope("/responses")) == {USER}
    assert learned.concessions(CapabilityScope("/chat/completions")) == frozenset()


def test_lessons_are_shown_with_their_reason_and_forgotten(
    learned: LearnedCapabilities, clock: Now
) -> None:
    learned.learn(CapabilityScope(model="o9"), USER, "400: no user")
    learned.refused(parent(True), "it was refused")
    assert learned.shown() == [
        {
            "what": "without user",
            "path": "/responses",
            "model": "o9",
            "key": None,
            "why": "400: no user",
            "until": NOW + 24 * HOUR,
        },
        {
            "what": "the whole conversation instead of previous_response_id with store",
            "path": "/responses",
            "model": None,
            "key": None,
            "why": "it was refused",
            "until": NOW + 24 * HOUR,
        },
    ]
    clock.now += 24 * HOUR
    assert learned.shown() == []
    learned.learn(CapabilityScope(), USER, "why")
    learned.continued(False)
    learned.forget()
    assert (learned.shown(), learned.continuity()["no_store"]) == ([], "unknown")
    assert learned.concessions(CapabilityScope()) == frozenset()


def test_clients_cannot_make_it_remember_without_bounds(learned: LearnedCapabilities) -> None:
    for number in range(3 * MAX_LEARNED):
        learned.learn(CapabilityScope(model=f"m{number}"), USER, "why")
    learned.learn(CapabilityScope(model="m" * 201), USER, "why")
    assert len(learned.shown()) == MAX_LEARNED
    assert learned.concessions(CapabilityScope(model=f"m{3 * MAX_LEARNED - 1}")) == {USER}
    assert learned.concessions(CapabilityScope(model="m0")) == frozenset()


def test_an_account_that_continues_responses_keeps_items_unless_it_was_seen_to_lose_one(
    learned: LearnedCapabilities,
) -> None:
    items = Concession(ConcessionKind.STORED_ITEMS)
    learned.learn(CapabilityScope(tenant="desk"), items, "404")
    learned.continued(False)
    assert learned.concessions(CapabilityScope(tenant="desk")) == {items}
    learned.continued(True)
    assert learned.concessions(CapabilityScope(tenant="desk")) == frozenset()
    learned.learn(CapabilityScope(), items, "404")
    learned.continued(True)
    assert learned.concessions(CapabilityScope(tenant="desk")) == {items}
