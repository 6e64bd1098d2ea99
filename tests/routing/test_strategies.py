"""Which account a new conversation starts on: shares, ties, tiers, and who is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.settings import Strategy as StrategyName
from gateway.routing.account import Account
from gateway.routing.strategies import Strategy, strategy
from tests.routing.figures import account, weighted

NAMES = get_args(StrategyName)


def accounts(names: Iterable[str]) -> tuple[Account, ...]:
    return tuple(account(name) for name in names)


def everybody(_: Account) -> bool:
    return True


def without(*names: str) -> Callable[[Account], bool]:
    return lambda account: account.name not in names


def picks(
    chosen_by: Strategy,
    eligible: tuple[Account, ...],
    count: int,
    usable: Callable[[Account], bool] = everybody,
) -> str:
    found = [chosen_by.pick(eligible, usable) for _ in range(count)]
    return "".join(each.name if each is not None else "-" for each in found)


# --- all strategies ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_of_the_configuration_exists(name: str) -> None:
    assert strategy(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_without_accounts_there_is_none(name: str) -> None:
    assert strategy(name).pick((), everybody) is None


@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=40),
    st.lists(st.sets(st.integers(0, 39)), min_size=1, max_size=20),
)
def test_a_usable_account_is_found_if_there_is_one(
    name: str, settings: list[tuple[int, int]], unusable: list[set[int]]
) -> None:
    pool = tuple(account(str(i), weight, tier) for i, (weight, tier) in enumerate(settings))
    chosen_by = strategy(name)
    for out in unusable:
        fit = {each.name for each in pool} - {str(index) for index in out}
        found = chosen_by.pick(pool, lambda each, fit=fit: each.name in fit)
        assert (found is not None) == bool(fit)
        assert found is None or found.name in fit


@pytest.mark.parametrize("name", NAMES)
def test_each_set_of_accounts_has_its_own_turns(name: str) -> None:
    a, b, c = accounts("abc")
    chosen_by, one, other = strategy(name), (a, b), (b, c)
    alone = picks(strategy(name), one, 6)
    mixed = ""
    for _ in range(6):
        mixed += picks(chosen_by, one, 1)
        picks(chosen_by, other, 1)
    assert mixed == alone


def test_equal_tuples_share_their_turns() -> None:
    a, b, c = accounts("abc")
    chosen_by = strategy("round-robin")
    assert "".join(picks(chosen_by, (a, b, c), 1) for _ in range(6)) == "abcabc"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_strategy_remembers_is_bounded(name: str) -> None:
    pool = accounts("abcdefghij")
    chosen_by = strategy(name)
    for number in range(1, 1000):
        some = tuple(each for bit, each in enumerate(pool) if number & 1 << bit)
        for _ in range(3):
            assert chosen_by.pick(tuple(some), everybody) in some
    kept = vars(chosen_by)
    assert all(len(each) <= 256 for each in kept.values() if isinstance(each, dict))


@given(
    st.sampled_from(NAMES),
    st.lists(st.tuples(st.sets(st.sampled_from("abcdef")), st.booleans()), max_size=20),
)
def test_whom_it_may_choose_is_known_before_and_costs_nobody_a_turn(
    name: str, choices: list[tuple[set[str], bool]]
) -> None:
    """Two pools alike, of which one is asked each time whom it may choose."""
    pools = [
        tuple(
            account(each, weight=1 + at % 3, priority=at // 2) for at, each in enumerate("abcdef")
        )
        for _ in range(2)
    ]
    asked, unasked = strategy(name), strategy(name)
    for out, stays in choices:
        may = [each.name for each in asked.may_pick(pools[0], without(*out))]
        found = asked.pick(pools[0], without(*out))
        other = unasked.pick(pools[1], without(*out))
        assert (found and found.name) == (other and other.name)
        assert found.name in may if found is not None else not may
        for each in (found, other):
            if each is not None and stays:
                each.in_flight += 1


def test_whom_it_may_choose_is_as_narrow_as_the_strategy() -> None:
    a, b, c = pool = (account("a", priority=2), account("b", priority=1), account("c", priority=1))
    b.in_flight = 1
    may = {name: strategy(name).may_pick(pool, everybody) for name in NAMES}
    assert {name: [each.name for each in found] for name, found in may.items()} == {
        "round-robin": ["a", "b", "c"],
        "weighted": ["a", "b", "c"],
        "least-in-flight": ["a", "c"],
        "fill-first": ["a"],
        "priority": ["b", "c"],
    }
    assert [*strategy("priority").may_pick(pool, without("b", "c"))] == [a]
    assert [*strategy("least-in-flight").may_pick((a, b, c), without("a", "c"))] == [b]


# --- round-robin, fill-first ---------------------------------------------------------


def test_round_robin_takes_one_after_the_other() -> None:
    pool = accounts("abc")
    chosen_by = strategy("round-robin")
    assert picks(chosen_by, pool, 5) == "abcab"
    assert picks(chosen_by, pool, 3, without("c")) == "aba"
    assert picks(chosen_by, pool, 1, without(*"abc")) == "-"
    assert picks(chosen_by, pool, 2) == "bc", "who was left out does not catch up"


def test_fill_first_keeps_to_the_order_of_the_file() -> None:
    pool = accounts("abc")
    chosen_by = strategy("fill-first")
    assert picks(chosen_by, pool, 3) == "aaa"
    assert picks(chosen_by, pool, 2, without("a")) == "bb"
    assert picks(chosen_by, pool, 1) == "a"


# --- priority ------------------------------------------------------------------------


def test_the_lowest_priority_goes_first_and_fails_back() -> None:
    pool = (account("x", priority=9), account("a"), account("m", priority=2), account("b"))
    chosen_by = strategy("priority")
    assert picks(chosen_by, pool, 3) == "aba"
    assert picks(chosen_by, pool, 2, without("a", "b")) == "mm"
    assert picks(chosen_by, pool, 2, without("a", "b", "m")) == "xx"
    assert picks(chosen_by, pool, 3, without("b")) == "aaa", "it fails back as soon as it can"
    assert picks(chosen_by, pool, 2) == "ba"


# --- least in flight -----------------------------------------------------------------


def test_the_least_loaded_takes_the_next() -> None:
    a, b, c = pool = accounts("abc")
    a.in_flight, b.in_flight, c.in_flight = 3, 1, 2
    chosen_by = strategy("least-in-flight")
    assert picks(chosen_by, pool, 2) == "bb"
    assert picks(chosen_by, pool, 1, without("b")) == "c"


def test_load_is_relative_to_weight() -> None:
    a, b = pool = weighted(4, 1)
    a.in_flight, b.in_flight = 3, 1
    assert picks(strategy("least-in-flight"), pool, 1) == "0"


def test_equally_loaded_accounts_take_turns() -> None:
    pool = accounts("abc")
    chosen_by = strategy("least-in-flight")
    assert picks(chosen_by, pool, 6) == "abcabc"
    pool[0].in_flight = 1
    assert picks(chosen_by, pool, 4) == "bcbc"


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=10),
    st.lists(st.integers(0, 9), max_size=100),
)
def test_nobody_is_loaded_more_than_a_turn_above_the_others(
    weights: list[int], ends: list[int]
) -> None:
    """Turns begin all the time; now and then one ends somewhere."""
    pool = weighted(*weights)
    chosen_by = strategy("least-in-flight")
    for index in ends:
        least = min(each.in_flight / each.settings.weight for each in pool)
        found = chosen_by.pick(pool, everybody)
        assert found is not None, "all are usable"
        assert found.in_flight / found.settings.weight == least
        found.in_flight += 1
        if index < len(pool) and pool[index].in_flight:
            pool[index].in_flight -= 1


def test_a_large_pool_is_loaded_evenly() -> None:
    pool = accounts(str(number) for number in range(300))
    chosen_by = strategy("least-in-flight")
    for _ in range(900):
        found = chosen_by.pick(pool, everybody)
        assert found is not None, "all are usable"
        found.in_flight += 1
    assert {each.in_flight for each in pool} == {3}


# --- weighted ------------------------------------------------------------------------


def test_weights_are_spread_evenly() -> None:
    rounds = picks(strategy("weighted"), weighted(5, 1, 1), 14)
    assert Counter(rounds) == {"0": 10, "1": 2, "2": 2}
    assert "0000" not in rounds
    assert picks(strategy("weighted"), weighted(1, 1, 1), 6) == "012012"
    assert picks(strategy("weighted"), weighted(2, 1), 6) == "010010"


WEIGHTS = st.lists(st.integers(1, 20), min_size=1, max_size=12)


@given(WEIGHTS, st.integers(0, 3))
def test_every_round_gives_each_exactly_its_weight(weights: list[int], rounds: int) -> None:
    pool, chosen_by = weighted(*weights), strategy("weighted")
    for _ in range(rounds):
        taken = Counter(_names(chosen_by, pool, sum(weights)))
        assert [taken[each.name] for each in pool] == weights


@given(WEIGHTS)
def test_at_any_moment_the_shares_are_nearly_right(weights: list[int]) -> None:
    pool, total = weighted(*weights), sum(weights)
    taken: Counter[str] = Counter()
    allowed = 1 + len(set(weights)) / 2
    for number, name in enumerate(_names(strategy("weighted"), pool, 2 * total), 1):
        taken[name] += 1
        for each in pool:
            due = number * each.settings.weight / total
            assert abs(taken[each.name] - due) < allowed, "each has had what it was due"


@given(WEIGHTS, st.data())
def test_who_is_left_out_leaves_its_share_to_all_the_others(
    weights: list[int], data: st.DataObject
) -> None:
    pool, chosen_by = weighted(*weights), strategy("weighted")
    names = [each.name for each in pool]
    out = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
    fit = [each for each in pool if each.name not in out]
    total = sum(each.settings.weight for each in fit)
    taken = Counter(_names(chosen_by, pool, 3 * total, without(*out)))
    for each in fit:
        assert abs(taken[each.name] - 3 * each.settings.weight) <= 1


@pytest.mark.parametrize("crowd", [1, 30])
def test_an_account_that_returns_does_not_catch_up(crowd: int) -> None:
    """However its absence was noticed: on its turn, or past a crowd of absent ones."""
    pool = weighted(*[3] * crowd, *[2] * crowd)
    absent = [each.name for each in pool[:crowd]]
    chosen_by = strategy("weighted")
    picks(chosen_by, pool, 40 * crowd, without(*absent))
    back = Counter(_names(chosen_by, pool, 5 * crowd))
    assert all(2 <= back[name] <= 4 for name in absent), "three each, or one more or less"


def test_enormous_weights_cost_no_more() -> None:
    pool, chosen_by = weighted(10_000_000, 9_999_999, 1), strategy("weighted")
    taken = Counter(_names(chosen_by, pool, 1000))
    assert abs(taken["0"] - taken["1"]) <= 2


def test_equal_weights_are_evenly_mixed_with_a_heavy_one() -> None:
    pool = weighted(10, *[1] * 10)
    names = list(_names(strategy("weighted"), pool, 40))
    assert not any(one == other == "0" for one, other in pairwise(names)), "every other turn"


def _names(
    chosen_by: Strategy,
    pool: tuple[Account, ...],
    count: int,
    usable: Callable[[Account], bool] = everybody,
) -> Iterable[str]:
    for _ in range(count):
        found = chosen_by.pick(pool, usable)
        assert found is not None, "somebody is usable"
        yield found.name
