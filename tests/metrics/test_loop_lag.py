"""How late the loop is, and that its timer ends with its owner."""

from __future__ import annotations

import gc

import pytest
from twisted.internet.task import Clock

from gateway.metrics.garbage import GarbagePauses
from gateway.metrics.loop_lag import SAMPLE_SECONDS, LoopLag


def test_lateness_is_measured_on_a_clock_that_does_not_jump() -> None:
    clock = Clock()
    late = 0.0
    lag = LoopLag(clock, 12, lambda: clock.seconds() + late)
    lag.start()
    lag.start()
    clock.advance(SAMPLE_SECONDS)
    assert lag.lag.sum == pytest.approx(0)
    late = 0.4
    clock.advance(SAMPLE_SECONDS)
    assert lag.lag.sum == pytest.approx(400)
    assert sum(lag.lag.counts) == 2
    p99 = lag.recent.percentiles()["p99"]
    assert p99 is not None
    assert 300 < p99 <= 400
    lag.stop()
    lag.stop()
    assert clock.getDelayedCalls() == [], "the timer expected to be gone"


def test_the_collector_is_heard_while_wanted() -> None:
    garbage = GarbagePauses()
    garbage.start()
    garbage.start()
    gc.collect()
    garbage.stop()
    gc.collect()
    assert sum(garbage.pauses[2].counts) == 1
