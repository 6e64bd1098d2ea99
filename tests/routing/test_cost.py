"""What routing costs: memory by binding, time by choice, for a pool as large as they come.

Time is counted in steps of the interpreter, against a loop that asks every account once, so
that a slow or busy machine judges no differently; ``bench/choosing.py`` has it in seconds.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import get_args
from uuid import UUID

import pytest
from twisted.internet.task import Clock

from gateway.config.settings import Strategy as StrategyName
from gateway.protocol.rate_limits import QuotaWindow
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, MemoryBindings
from gateway.routing.strategies import strategy
from gateway.routing.wait_queue import WaitQueue
from tests.routing.figures import account
from tests.routing.pools import Basin
from tests.support.steps import steps_of

NAMES = get_args(StrategyName)
MEGABYTE = 1_000_000


# --- memory --------------------------------------------------------------------------


def thread(number: int) -> AffinityKey:
    """As sessions make them: of equal texts, not the same ones."""
    tenant = "".join(("tenant ", str(number % 50)))
    return AffinityKey("thread", tenant, str(UUID(int=number << 64 | number)))


def test_a_hundred_thousand_bindings_stay_under_30_megabytes() -> None:
    count, now = 100_000, Clock()
    tracemalloc.start()
    try:
        bindings = MemoryBindings(count, 3600.0, now.seconds)
        for number in range(count + count // 10):
            now.advance(0.01)
            bindings.bind(thread(number), f"account {number % 100}", f"rule {number % 5}")
            bindings.find(thread(number // 2))
            if number % 10 == 0:
                bindings.stand_in(thread(number), f"account {number % 7}", "its home is cooling")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count * 0.98 < len(bindings) <= count
    assert peak < 30 * MEGABYTE, f"{peak / MEGABYTE:.1f} MB at most, while it grew"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_strategy_remembers_of_a_thousand_accounts_is_small(
    name: str, pool: tuple[Account, ...]
) -> None:
    chosen_by = strategy(name)
    tracemalloc.start()
    try:
        for first in range(200):
            assert chosen_by.pick(pool[first:], lambda _: True) is not None
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20 * MEGABYTE, f"{kept / MEGABYTE:.1f} MB for 200 sets of accounts"


# --- time ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> tuple[Account, ...]:
    return tuple(account(str(index), 1 + index % 7, 1 + index % 3) for index in range(1000))


def asking_everybody(pool: tuple[Account, ...], usable: Callable[[Account], bool]) -> float:
    """Steps of asking each account once, in the plainest way."""

    def ask() -> None:
        for each in pool:
            usable(each)

    return steps_of(ask, 1)


@pytest.mark.parametrize(
    ("which", "allowed"),
    [
        ("all are usable", 0.4),
        ("every other one is usable", 0.4),
        ("all but one are unusable", 2.0),
        ("none is usable", 2.0),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_choice_among_a_thousand_costs_no_more_than_asking_each(
    name: str, which: str, allowed: float, pool: tuple[Account, ...]
) -> None:
    fit = {
        "all are usable": set(pool),
        "every other one is usable": set(pool[1::2]),
        "all but one are unusable": {pool[-1]},
        "none is usable": set(),
    }[which]

    def usable(each: Account) -> bool:
        return each in fit

    chosen_by = strategy(name)
    chosen_by.pick(pool, usable)
    cost = steps_of(lambda: chosen_by.pick(pool, usable), 20)
    whole = asking_everybody(pool, usable)
    assert cost < allowed * whole, (
        f"{cost:,.0f} steps a choice; asking 1,000 accounts takes {whole:,.0f}"
    )


def asking_while_idle(basin: Basin) -> float:
    """Steps of asking each account of a basin whether it is available."""
    accounts = basin.pool.accounts
    return steps_of(lambda: [each.unavailable("gpt-5") for each in accounts], 1)


def assert_cheaper(basin: Basin, whole: float) -> None:
    """The basin's choices take fewer steps than asking all of its accounts took while idle."""
    basin.goes()
    cost = steps_of(basin.goes, 20)
    assert cost < whole, (
        f"{cost:,.0f} steps a choice; asking 1,000 idle accounts takes {whole:,.0f}"
    )


@pytest.mark.parametrize("resting", [0, 500, 999])
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_choice_costs_less_than_asking_a_thousand_accounts(name: str, resting: int) -> None:
    """With its binding, its place, its explanation, and whatever ails the others."""
    basin = Basin(*map(str, range(1000)), strategy=name)
    whole = asking_while_idle(basin)
    basin.fails(*map(str, range(resting)), seconds=500.0)
    assert_cheaper(basin, whole)


@pytest.mark.parametrize("spent", [500, 999, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_passing_over_the_used_up_costs_less_than_asking_everybody(name: str, spent: int) -> None:
    basin = Basin(*map(str, range(1000)), strategy=name)
    whole = asking_while_idle(basin)
    for each in basin.pool.accounts[:spent]:
        each.health.observe([QuotaWindow("requests", remaining=0.0, resets_at=basin.now + 60)])
    assert_cheaper(basin, whole)


def test_waking_a_full_room_in_vain_costs_little(pool: tuple[Account, ...]) -> None:
    room = WaitQueue(Clock(), 1000)
    offers = 0

    def retry() -> bool:
        nonlocal offers
        offers += 1
        return False

    for number in range(1000):
        room.wait(f"tenant {number % 20}", 15.0, retry, lambda: None, "gpt-5")
    cost = steps_of(room.wake, 50)
    whole = asking_everybody(pool, lambda _: True)
    assert offers == 50, "one of them speaks for all"
    assert cost < whole, f"{cost:,.0f} steps a wake; a loop of 1,000 takes {whole:,.0f}"
