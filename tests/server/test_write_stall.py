"""A client that takes nothing is waited for, longer after a large write, and not for ever."""

from __future__ import annotations

from twisted.internet.task import Clock

from gateway.server.connections import MIN_BYTES_PER_SECOND, WriteStallTimer, time_for


class Slow:
    """A client, and when it was lost."""

    def __init__(self, last_write: int = 0) -> None:
        self.clock = Clock()
        self.lost: list[float] = []
        self.patience = WriteStallTimer(self.clock)
        self.patience.last_write = last_write

    def fills(self, stall_seconds: float = 10) -> None:
        self.patience.begin(stall_seconds, lambda: self.lost.append(self.clock.seconds()))


def test_a_client_that_was_never_slow_costs_no_timer() -> None:
    slow = Slow()
    assert not slow.patience.is_stalled
    slow.patience.end()
    slow.patience.stop()
    assert slow.clock.getDelayedCalls() == []


def test_one_that_takes_nothing_is_lost_once() -> None:
    slow = Slow()
    slow.fills(10)
    assert slow.patience.is_stalled
    slow.clock.advance(9.9)
    assert slow.lost == []
    slow.clock.advance(0.1)
    slow.clock.advance(100)
    assert slow.lost == [10]


def test_a_large_write_may_take_its_time() -> None:
    slow = Slow(last_write=5 * MIN_BYTES_PER_SECOND)
    slow.fills(10)
    slow.clock.advance(14.9)
    assert slow.lost == []
    slow.clock.advance(0.1)
    assert slow.lost == [15] == [time_for(5 * MIN_BYTES_PER_SECOND, 10)]


def test_one_that_takes_everything_is_kept_and_may_be_slow_again() -> None:
    slow = Slow()
    slow.fills()
    slow.clock.advance(9)
    slow.patience.end()
    assert not slow.patience.is_stalled
    assert slow.clock.getDelayedCalls() == []
    slow.clock.advance(9)
    slow.fills()
    slow.clock.advance(9)
    assert slow.lost == []
    slow.clock.advance(1)
    assert slow.lost == [28]


def test_after_the_end_of_the_connection_nobody_is_lost_but_the_buffers_stay_full() -> None:
    slow = Slow()
    slow.fills()
    slow.patience.stop()
    assert slow.patience.is_stalled
    assert slow.clock.getDelayedCalls() == []
