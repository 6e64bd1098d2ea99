"""The moment in which a connection is closed between two turns."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from gateway.server.rollover import QUIET_SECONDS, Rollover, RolloverState


class Connection:
    """What a rollover sees of one."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.running = 0
        self.closed: list[float] = []
        self.rollover = Rollover(self.clock, lambda: not self.running, self.close)

    def close(self) -> None:
        self.closed.append(self.clock.seconds())

    def ends(self, awaits_output: bool = False) -> None:
        self.running -= 1
        self.rollover.turn_ended(awaits_output)


def test_one_that_never_did_anything_closes_when_it_is_due() -> None:
    connection = Connection()
    connection.rollover.plan(3, 10)
    connection.clock.advance(2.9)
    assert connection.closed == []
    connection.clock.advance(0.1)
    assert connection.closed == [1003]


def test_a_turn_is_waited_for_and_then_a_quiet_moment() -> None:
    connection = Connection()
    connection.running = 1
    connection.rollover.plan(1, 100)
    connection.clock.advance(50)
    connection.ends()
    connection.clock.advance(QUIET_SECONDS - 0.1)
    assert connection.closed == []
    connection.running = 1  # the next turn came
    connection.clock.advance(60)
    assert connection.closed == [], "closed over a running turn"
    connection.ends()
    connection.clock.advance(QUIET_SECONDS)
    assert connection.closed == [connection.clock.seconds()]


def test_while_a_tool_works_there_is_time_but_not_for_ever() -> None:
    connection = Connection()
    connection.running = 1
    connection.rollover.plan(1, 20)
    connection.ends(awaits_output=True)
    connection.clock.advance(19.9)
    assert connection.closed == []
    connection.clock.advance(0.1)
    assert connection.closed == [1020]


def test_another_plan_replaces_the_first() -> None:
    connection = Connection()
    connection.rollover.plan(1, 1)
    connection.rollover.plan(100, 100)
    connection.clock.advance(99)
    assert connection.closed == []
    connection.clock.advance(1)
    assert connection.closed == [1100]


def test_one_that_is_gone_is_left_alone() -> None:
    connection = Connection()
    connection.rollover.plan(1, 1)
    connection.rollover.stop()
    connection.rollover.plan(1, 1)
    connection.clock.advance(5)
    assert connection.closed == []
    assert connection.clock.getDelayedCalls() == []


@pytest.mark.parametrize("opened_before", [0, 600])
def test_connections_of_the_same_age_close_one_after_the_other(opened_before: int) -> None:
    ends = []
    for _ in range(50):
        connection = Connection()
        connection.rollover.at_age(connection.clock.seconds() - opened_before, 3600)
        connection.clock.pump([10] * 360)
        ends += [closed - 1000 + opened_before for closed in connection.closed]
    assert len(ends) == 50, "one stayed beyond its age"
    assert 0.85 * 3600 <= min(ends) < max(ends) <= 0.95 * 3600 + 10
    assert len(set(ends)) > 10, "all in the same moment"


class RolloverMachine(RuleBasedStateMachine):
    """Turns come and go; the close comes once, in a moment without any."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = Connection()
        self.ended = 0.0

    @precondition(lambda self: not self.connection.closed)
    @rule(seconds=st.sampled_from([0, 0.3, 5]), more=st.sampled_from([0, 4]))
    def plans(self, seconds: float, more: float) -> None:
        self.connection.rollover.plan(seconds, seconds + more)

    @precondition(lambda self: not self.connection.closed)
    @rule()
    def begins(self) -> None:
        self.connection.running += 1

    @precondition(lambda self: self.connection.running)
    @rule(awaits_output=st.booleans())
    def ends(self, awaits_output: bool) -> None:
        self.connection.ends(awaits_output)
        self.ended = self.connection.clock.seconds()

    @rule(seconds=st.sampled_from([0.1, 0.5, 3]))
    def waits(self, seconds: float) -> None:
        self.connection.clock.pump([0.1] * round(seconds * 10))

    @invariant()
    def it_closes_once_and_over_no_turn(self) -> None:
        connection = self.connection
        assert len(connection.closed) <= 1
        if connection.closed:
            assert connection.running == 0
            assert connection.rollover.state is RolloverState.DONE
            quiet = connection.closed[0] - self.ended
            assert not self.ended or quiet > QUIET_SECONDS - 0.01, f"only {quiet} s of quiet"

    def teardown(self) -> None:
        connection = self.connection
        while connection.running:
            self.ends(awaits_output=True)
        if connection.rollover.state is not RolloverState.DONE:
            connection.rollover.plan(0, 1)
        connection.clock.pump([0.1] * 20)
        assert connection.closed, "it never closes"
        assert connection.clock.getDelayedCalls() == []


RolloverMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestRolloverMachine = RolloverMachine.TestCase
