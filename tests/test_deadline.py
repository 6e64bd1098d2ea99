"""The deadline expires once, when nothing happened for its whole length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gateway.deadline import Deadline


class Waiting:
    def __init__(self, seconds: float = 10) -> None:
        self.clock = Clock()
        self.expired: list[float] = []
        self.deadline = Deadline(self.clock, lambda: self.expired.append(self.clock.seconds()))
        self.deadline.start(seconds)


def test_it_expires_once() -> None:
    waiting = Waiting(10)
    waiting.clock.advance(9.9)
    assert waiting.expired == []
    waiting.clock.advance(0.1)
    waiting.clock.advance(100)
    assert waiting.expired == [10]
    assert waiting.clock.getDelayedCalls() == []


def test_it_expires_within_the_reactors_turn_when_it_has_no_length() -> None:
    waiting = Waiting(0)
    assert waiting.expired == [], "never from within start"
    waiting.clock.advance(0)
    assert waiting.expired == [0]


def test_a_touch_gives_it_its_whole_length_again_without_a_new_timer() -> None:
    waiting = Waiting(10)
    (call,) = waiting.clock.getDelayedCalls()
    for _ in range(9):
        waiting.clock.advance(1)
        waiting.deadline.touch()
    assert waiting.clock.getDelayedCalls() == [call]
    waiting.clock.advance(9.9)
    assert waiting.expired == []
    waiting.clock.advance(0.1)
    assert waiting.expired == [19]


def test_signs_of_life_give_it_its_time_anew_up_to_twice_its_length() -> None:
    waiting = Waiting(10)
    for _ in range(4):
        waiting.clock.advance(4.5)
        waiting.deadline.sign_of_life()
    assert waiting.expired == []
    waiting.clock.advance(2)
    assert waiting.expired == [20]


def test_what_is_waited_for_gives_it_both_times_anew() -> None:
    waiting = Waiting(10)
    for _ in range(5):
        waiting.clock.advance(9)
        waiting.deadline.sign_of_life()
        waiting.clock.advance(9)
        waiting.deadline.touch()
    waiting.clock.advance(10)
    assert waiting.expired == [100]


def test_it_can_be_started_anew_and_stopped_as_often_as_one_likes() -> None:
    waiting = Waiting(10)
    waiting.deadline.start(3)
    assert len(waiting.clock.getDelayedCalls()) == 1
    waiting.deadline.stop()
    waiting.deadline.stop()
    waiting.deadline.touch()
    assert waiting.clock.getDelayedCalls() == []
    waiting.clock.advance(100)
    assert waiting.expired == []
    waiting.deadline.start(1)
    waiting.clock.advance(1)
    assert waiting.expired == [101]


def test_it_may_be_started_from_within_its_expiry() -> None:
    clock = Clock()
    times: list[float] = []

    def again() -> None:
        times.append(clock.seconds())
        deadline.start(5)

    deadline = Deadline(clock, again)
    deadline.start(5)
    clock.pump([1] * 16)
    assert times == [5, 10, 15]


@given(
    length=st.integers(1, 20),
    steps=st.lists(st.tuples(st.integers(1, 25), st.booleans()), max_size=30),
)
def test_it_expires_exactly_when_the_last_touch_is_its_length_ago(
    length: int, steps: list[tuple[int, bool]]
) -> None:
    waiting = Waiting(length)
    touched = 0
    due: float | None = None
    for seconds, touch in steps:
        for _ in range(seconds):
            waiting.clock.advance(1)
            if due is None and waiting.clock.seconds() - touched >= length:
                due = waiting.clock.seconds()
        if touch:
            waiting.deadline.touch()
            touched = int(waiting.clock.seconds())
    assert waiting.expired == ([] if due is None else [due])
