"""When no account works any more: the network was away, and is back."""

from __future__ import annotations

import pytest

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.selection import Selection
from tests.routing.pools import MODEL, Basin, thread, wanted

BROKEN = Fault(FaultKind.SERVICE, "502 the upstream could not be reached")


def turn_fails(basin: Basin) -> None:
    choice = basin.pool.choose(wanted())
    if isinstance(choice, Selection):
        choice.lease.refused(BROKEN)
        choice.lease.release()


def outage(basin: Basin, seconds: int) -> None:
    for _ in range(seconds):
        turn_fails(basin)
        basin.clock.advance(1.0)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_after_an_outage_of_all_a_turn_goes_through_within_seconds(names: str) -> None:
    basin = Basin(*names)
    outage(basin, 1800)
    for _ in range(11):
        if isinstance(basin.ask(), Selection):
            return
        basin.clock.advance(1.0)
    raise AssertionError("the network is back, and nobody is asked")


def test_a_turn_that_waits_knows_that_it_is_not_for_long() -> None:
    basin = Basin("a", "b")
    outage(basin, 600)
    if isinstance(basin.ask(), Selection):
        turn_fails(basin)
    turn_fails(basin)
    free_at = basin.nobody().free_at
    assert free_at is not None
    assert free_at <= basin.now + 10


def test_while_another_works_a_broken_service_is_left_alone() -> None:
    basin = Basin("a", "b", accounts={"b": {"max_in_flight": 1}}, strategy="fill-first")
    asked = 0
    for _ in range(1800):
        held = basin.pool.choose(wanted())
        assert isinstance(held, Selection)
        if held.account.name == "a":
            asked += 1
            held.lease.refused(BROKEN)
        else:
            basin.ask()  # the other one is busy now; that is no outage
        held.lease.release()
        basin.clock.advance(1.0)
    assert asked < 20


def test_limits_are_kept_to_in_any_hurry() -> None:
    basin = Basin("a", "b")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=300.0)
    basin.fails("b", kind=FaultKind.SERVICE, seconds=200.0)
    for _ in range(190):
        basin.nobody()
        basin.clock.advance(1.0)
    assert basin.accounts["a"].unavailable(MODEL) is not None


@pytest.mark.parametrize("first", ["t1", "t2", "t3"])
def test_the_turn_that_ends_the_rests_goes_where_its_conversation_is_at_home(first: str) -> None:
    basin = Basin("a", "b", "c")
    homes = {key: basin.goes(key)[0] for key in ("t1", "t2", "t3")}
    for _ in range(12):
        basin.clock.advance(601.0)
        basin.fails("a", "b", "c", kind=FaultKind.SERVICE, seconds=None)
    basin.clock.advance(20.0)
    assert all(each.unavailable(MODEL) for each in basin.pool.accounts), "they rest for minutes"
    assert basin.goes(first) == (homes[first], "thread")
    assert {key: basin.home(thread(key)) for key in homes} == homes
