"""Requests per minute: never more than allowed in any 60 seconds, and never stuck."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.quotas import RequestRate


class Time:
    def __init__(self, now: float = 1_795_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_as_many_as_allowed_go_at_once_and_the_next_waits(time: Time) -> None:
    rate = RequestRate(3, time)
    for _ in range(3):
        assert rate.wait_seconds() == 0.0
        rate.take()
    assert 60.0 <= rate.wait_seconds() <= 60.25
    time.now += 59.9
    assert 0.1 <= rate.wait_seconds() <= 0.35
    time.now += 0.35
    assert rate.wait_seconds() == 0.0


def test_memory_does_not_grow_with_the_rate(time: Time) -> None:
    rate = RequestRate(1_000_000, time)
    for _ in range(100_000):
        time.now += 0.0007
        rate.take()
    assert len(rate._taken) <= 60 / 0.125 + 2


@pytest.mark.parametrize("jump", [-1e6, -60, -1, 1e6])
def test_a_jump_of_the_clock_does_not_stop_it_for_longer_than_a_minute(
    time: Time, jump: float
) -> None:
    rate = RequestRate(1, time)
    rate.take()
    time.now += jump
    assert rate.wait_seconds() <= 60.25
    time.now += 60.25
    assert rate.wait_seconds() == 0.0


def test_a_limit_may_be_raised_while_it_runs(time: Time) -> None:
    rate = RequestRate(1, time)
    rate.take()
    rate.per_minute = 2
    assert rate.wait_seconds() == 0.0


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0, 40), st.booleans()), max_size=60),
)
def test_no_minute_holds_more_than_allowed(
    per_minute: int, steps: list[tuple[float, bool]]
) -> None:
    time = Time()
    rate = RequestRate(per_minute, time)
    sent: list[float] = []
    for seconds, wait in steps:
        time.now += rate.wait_seconds() if wait else seconds
        if rate.wait_seconds() > 0:
            assert not wait, "what has waited as long as it was told may go"
            continue
        rate.take()
        sent.append(time.now)
    for first, last in zip(sent, sent[per_minute:], strict=False):
        assert last - first >= 60.0, f"{per_minute} per minute are allowed"
