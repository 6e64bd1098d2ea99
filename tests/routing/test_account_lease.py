"""Places on accounts: what the end of an attempt tells of its account's health."""

from __future__ import annotations

import pytest

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.account import Lease
from gateway.routing.selection import Selection
from tests.routing.pools import Basin, wanted

BROKEN = Fault(FaultKind.SERVICE, "502 the answer broke off")


def place(basin: Basin) -> Lease:
    choice = basin.pool.choose(wanted())
    assert isinstance(choice, Selection)
    return choice.lease


def taken_up(basin: Basin) -> Lease:
    taken = place(basin)
    taken.acknowledged()
    return taken


def breaks_off(basin: Basin) -> None:
    taken = taken_up(basin)
    taken.refused(BROKEN)
    taken.release()


def test_who_breaks_off_each_answer_after_its_beginning_is_left_alone() -> None:
    """Every answer begins well; that alone must not make up for the last one."""
    basin = Basin("a")
    for _ in range(3):
        breaks_off(basin)
    assert "broke off" in basin.nobody().reasons[0].why


@pytest.mark.parametrize(
    "kind",
    [FaultKind.SERVICE, FaultKind.RATE_LIMITED, FaultKind.EXHAUSTED, FaultKind.UNAUTHORIZED],
)
def test_who_begins_well_and_fails_is_asked_as_seldom_as_who_fails_at_once(kind: FaultKind) -> None:
    basin, turns = Basin("a", "b", strategy="fill-first"), 0
    for _ in range(3600):
        taken = taken_up(basin)
        if taken.account.name == "a":
            turns += 1
            taken.refused(Fault(kind, "it failed"))
        taken.release()
        basin.clock.advance(1.0)
    assert turns < 30, "rests of up to ten minutes leave room for some twenty in an hour"


def test_an_answer_that_ends_well_makes_up_for_those_that_broke_off() -> None:
    basin = Basin("a")
    for _ in range(5):
        breaks_off(basin)
        breaks_off(basin)
        taken_up(basin).release()
    assert basin.goes()[0] == "a"


def test_answers_under_way_do_not_hide_those_that_break_off() -> None:
    basin = Basin("a")
    running = [taken_up(basin) for _ in range(3)]
    for _ in range(3):
        taken_up(basin)
        breaks_off(basin)
    assert "broke off" in basin.nobody().reasons[0].why
    for each in running:
        each.release()
    assert basin.nobody().reasons, "they began before it tripped, and tell little"


def test_an_attempt_is_told_of_once() -> None:
    basin = Basin("a")
    taken = taken_up(basin)
    taken.acknowledged()
    taken.release()
    taken.release()
    assert basin.accounts["a"].in_flight == 0
    basin.fails("a", seconds=5.0)
    taken.acknowledged()
    basin.nobody()


def test_after_its_end_a_lease_tells_nothing() -> None:
    basin = Basin("a")
    fault = Fault(FaultKind.EXHAUSTED, "used up", basin.now + 10)
    cancelled = place(basin)
    cancelled.release()
    cancelled.refused(fault)
    assert basin.goes()[0] == "a", "the attempt had ended"
    refused = place(basin)
    refused.refused(fault)
    refused.acknowledged()
    refused.release()
    assert basin.nobody().reasons[0].why == "used up"


def test_an_attempt_that_is_only_cancelled_says_nothing() -> None:
    basin = Basin("a")
    breaks_off(basin)
    breaks_off(basin)
    place(basin).release()
    breaks_off(basin)
    assert basin.nobody().reasons
