"""The breaker: rests, one probe, late news, and a clock that jumps."""

from __future__ import annotations

import pytest

from gateway.circuit_breaker import (
    TRANSITIONS,
    BreakerAttempt,
    BreakerEvent,
    BreakerState,
    CircuitBreaker,
)

START = 1_795_000_000.0
MAX = 600.0

CLOSED, OPEN = BreakerState.CLOSED, BreakerState.OPEN
HALF_OPEN, PROBING = BreakerState.HALF_OPEN, BreakerState.PROBING


class Bench:
    """A breaker whose clock and jitter the test turns."""

    def __init__(self, threshold: int = 1, first_seconds: float = 10.0) -> None:
        self.now = START
        self.jitter = 0.0
        self.breaker = CircuitBreaker(
            lambda: self.now, threshold, first_seconds, MAX, lambda: self.jitter
        )

    def fail(self, retry_in: float | None = None) -> None:
        """Begin an attempt, which fails at once."""
        retry_at = None if retry_in is None else self.now + retry_in
        self.breaker.failed(self.breaker.attempt(), retry_at)

    @property
    def rest(self) -> float:
        return self.breaker.until - self.now

    def sleep(self) -> None:
        """To the end of the rest."""
        self.now = self.breaker.until


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- closed and open -----------------------------------------------------------------


def test_a_new_breaker_is_closed(bench: Bench) -> None:
    assert bench.breaker.state is CLOSED
    assert bench.breaker.usable
    assert bench.breaker.until == 0.0


def test_it_trips_at_so_many_failures_in_a_row() -> None:
    bench = Bench(threshold=3)
    bench.fail()
    bench.fail()
    bench.breaker.succeeded(bench.breaker.attempt())
    bench.fail()
    bench.fail()
    assert bench.breaker.state is CLOSED, "a success lay between"
    bench.fail()
    assert bench.breaker.state is OPEN
    assert not bench.breaker.usable


def test_a_named_time_trips_it_at_once() -> None:
    bench = Bench(threshold=3)
    bench.fail(retry_in=20)
    assert bench.breaker.state is OPEN
    assert bench.rest == 20


def test_attempts_that_tell_nothing_are_no_successes() -> None:
    bench = Bench(threshold=2)
    bench.fail()
    bench.breaker.dropped(bench.breaker.attempt())
    bench.fail()
    assert bench.breaker.state is OPEN


def test_every_rest_without_a_success_between_is_twice_as_long_up_to_the_bound(
    bench: Bench,
) -> None:
    rests = []
    for _ in range(9):
        bench.fail()
        rests.append(bench.rest)
        bench.sleep()
    assert rests == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    bench.breaker.succeeded(bench.breaker.attempt())
    bench.fail()
    assert bench.rest == 10, "a success forgives everything"


def test_a_named_time_is_kept_to_but_one_that_proves_wrong_is_not_believed(
    bench: Bench,
) -> None:
    rests = []
    for _ in range(4):
        bench.fail(retry_in=3)
        rests.append(bench.rest)
        bench.sleep()
    assert rests == [3, 3, 4, 8]


def test_a_named_time_that_is_now_leads_to_no_busy_loop(bench: Bench) -> None:
    bench.fail(retry_in=0)
    assert bench.rest == 1.0


def test_rests_are_bounded_and_the_named_time_stays_known(bench: Bench) -> None:
    bench.fail(retry_in=86_400)
    assert bench.rest == MAX
    assert bench.breaker.named == START + 86_400


def test_endless_failing_overflows_nothing() -> None:
    bench = Bench(first_seconds=1e-9)
    for _ in range(5000):
        bench.fail()
        bench.sleep()
    assert bench.breaker.trips == 5000


# --- the probe -----------------------------------------------------------------------


def test_after_the_rest_one_probe_is_due(bench: Bench) -> None:
    bench.fail()
    bench.now += 9.99
    assert bench.breaker.state is OPEN
    bench.sleep()
    assert bench.breaker.state is HALF_OPEN
    assert bench.breaker.usable
    bench.breaker.attempt()
    assert bench.breaker.state is PROBING
    assert not bench.breaker.usable, "one is enough"


def test_a_probe_that_succeeds_closes_it(bench: Bench) -> None:
    bench.fail()
    bench.sleep()
    probe = bench.breaker.attempt()
    bench.breaker.succeeded(probe)
    assert bench.breaker.state is CLOSED
    assert (bench.breaker.until, bench.breaker.named) == (0.0, None)


def test_a_probe_that_is_dropped_may_be_made_again(bench: Bench) -> None:
    bench.fail()
    bench.sleep()
    probe = bench.breaker.attempt()
    bench.breaker.dropped(probe)
    assert bench.breaker.state is HALF_OPEN
    again = bench.breaker.attempt()
    assert bench.breaker.state is PROBING
    bench.breaker.dropped(probe)
    assert bench.breaker.state is PROBING, "the lost one is no probe any more"
    bench.breaker.succeeded(again)
    assert bench.breaker.closed


def test_a_probe_that_never_ends_does_not_block_for_ever(bench: Bench) -> None:
    bench.fail()
    bench.sleep()
    lost = bench.breaker.attempt()
    bench.now += MAX - 0.01
    assert not bench.breaker.usable
    bench.now += 0.01
    assert bench.breaker.state is HALF_OPEN
    bench.breaker.attempt()
    bench.breaker.failed(lost)
    assert bench.breaker.state is PROBING, "its failure is old news"
    bench.breaker.succeeded(lost)
    assert bench.breaker.closed, "its success is not: it began after the rest"


# --- beginning well ------------------------------------------------------------------


def begin_well(bench: Bench) -> BreakerAttempt:
    bench.sleep()
    probe = bench.breaker.attempt()
    bench.breaker.began(probe)
    assert bench.breaker.closed, "others need not wait for its end"
    return probe


@pytest.mark.parametrize("threshold", [1, 3])
def test_a_probe_that_begins_well_and_fails_has_failed(threshold: int) -> None:
    bench = Bench(threshold)
    for _ in range(threshold):
        bench.fail()
    rests = []
    for _ in range(7):
        rests.append(bench.rest)
        bench.breaker.failed(begin_well(bench))
    assert rests == [10, 20, 40, 80, 160, 320, 600]


def test_a_probe_that_begins_and_ends_well_forgives_everything(bench: Bench) -> None:
    for _ in range(3):
        bench.fail()
        bench.breaker.failed(begin_well(bench))
        bench.breaker.succeeded(begin_well(bench))
        bench.fail()
        assert bench.rest == 10
        bench.breaker.close()


def test_what_fails_beside_a_probe_that_begins_well_is_a_failure_of_its_own() -> None:
    bench = Bench(threshold=2)
    bench.fail()
    bench.fail()
    probe = begin_well(bench)
    bench.fail()
    assert bench.breaker.closed, "one in a row"
    bench.fail()
    assert bench.rest == 10, "the probe still runs"
    bench.breaker.failed(probe)
    assert bench.rest == 10, "it began before this rest"
    bench.sleep()
    bench.fail()
    assert bench.rest == 20


def test_what_a_probe_was_forgiven_counts_once(bench: Bench) -> None:
    bench.fail()
    probe = begin_well(bench)
    bench.breaker.failed(probe)
    assert bench.rest == 20
    bench.breaker.failed(probe)
    bench.breaker.succeeded(begin_well(bench))
    bench.breaker.failed(probe)
    assert bench.rest == 10


# --- hurry ---------------------------------------------------------------------------


def test_a_rest_can_be_shortened_but_not_lengthened() -> None:
    bench = Bench(first_seconds=100)
    assert bench.breaker.shorten(20) is False, "nothing rests"
    bench.fail()
    assert bench.breaker.shorten(20) is True
    assert bench.rest == 20
    assert bench.breaker.shorten(20) is False
    assert bench.breaker.shorten(50) is False
    bench.now += 5
    assert bench.breaker.shorten(4) is True
    assert bench.breaker.state is HALF_OPEN, "its time is over already"
    bench.fail()
    assert bench.rest == 200, "it grows as ever"


def test_a_time_that_was_named_is_kept_to_in_any_hurry(bench: Bench) -> None:
    bench.fail(retry_in=100)
    assert bench.breaker.shorten(20) is False
    assert bench.rest == 100


# --- late news -----------------------------------------------------------------------


def test_many_attempts_that_fail_together_trip_it_once(bench: Bench) -> None:
    attempts = [bench.breaker.attempt() for _ in range(20)]
    for attempt in attempts:
        bench.breaker.failed(attempt)
    assert (bench.rest, bench.breaker.trips) == (10, 1)
    bench.sleep()
    bench.fail()
    assert bench.rest == 20, "only the probe makes the rest longer"


def test_of_many_failures_the_latest_named_time_counts(bench: Bench) -> None:
    attempts = [bench.breaker.attempt() for _ in range(4)]
    for attempt, seconds in zip(attempts, (20, 50, 30, 7200), strict=True):
        bench.breaker.failed(attempt, bench.now + seconds)
    assert bench.rest == MAX
    assert (bench.breaker.named, bench.breaker.trips) == (START + 7200, 1)


def test_what_began_before_the_rest_cannot_end_it(bench: Bench) -> None:
    early = bench.breaker.attempt()
    bench.fail()
    bench.breaker.succeeded(early)
    assert bench.breaker.state is OPEN
    bench.sleep()
    bench.breaker.attempt()
    bench.breaker.succeeded(early)
    assert bench.breaker.state is PROBING


def test_what_was_sent_in_spite_of_the_rest_may_end_it(bench: Bench) -> None:
    bench.fail()
    forced = bench.breaker.attempt()
    bench.breaker.failed(bench.breaker.attempt())
    assert bench.rest == 10, "its failure is no news"
    bench.breaker.succeeded(forced)
    assert bench.breaker.closed


def test_a_time_named_beside_the_probe_holds_if_the_probe_is_lost(bench: Bench) -> None:
    early = bench.breaker.attempt()
    bench.fail()
    bench.sleep()
    probe = bench.breaker.attempt()
    bench.breaker.failed(early, bench.now + 30)
    assert bench.breaker.state is PROBING
    bench.breaker.dropped(probe)
    assert bench.breaker.state is OPEN
    assert bench.rest == 30


def test_a_time_named_before_the_probe_began_delays_it(bench: Bench) -> None:
    early = bench.breaker.attempt()
    bench.fail()
    bench.sleep()
    assert bench.breaker.state is HALF_OPEN
    bench.breaker.failed(early, bench.now + 30)
    assert bench.breaker.state is OPEN
    assert bench.rest == 30


def test_a_late_failure_when_the_rest_is_over_repeats_it(bench: Bench) -> None:
    early = [bench.breaker.attempt() for _ in range(3)]
    for attempt in early:
        bench.breaker.failed(attempt)
        assert bench.breaker.state is OPEN
        assert bench.rest == 10, "no probe has failed that would double it"
        bench.sleep()


def test_a_late_failure_after_it_closed_is_news(bench: Bench) -> None:
    early = bench.breaker.attempt()
    bench.fail()
    bench.sleep()
    bench.breaker.succeeded(bench.breaker.attempt())
    bench.breaker.failed(early)
    assert bench.breaker.state is OPEN
    assert bench.rest == 10


def test_closing_by_hand_forgets_everything(bench: Bench) -> None:
    for _ in range(3):
        bench.fail(retry_in=7200)
        bench.sleep()
    probe = bench.breaker.attempt()
    bench.breaker.close()
    assert bench.breaker.closed
    bench.breaker.dropped(probe)
    assert bench.breaker.closed
    bench.fail()
    assert (bench.rest, bench.breaker.named) == (10, None)


# --- clock and jitter ----------------------------------------------------------------


def test_a_clock_that_is_set_back_does_not_lengthen_the_rest_beyond_its_bound(
    bench: Bench,
) -> None:
    bench.fail(retry_in=300)
    bench.now -= 86_400
    assert not bench.breaker.usable
    assert bench.rest == MAX
    bench.sleep()
    assert bench.breaker.usable


def test_a_clock_that_is_set_back_does_not_keep_the_probe(bench: Bench) -> None:
    bench.fail()
    bench.sleep()
    bench.breaker.attempt()
    bench.now -= 86_400
    bench.breaker.state  # noqa: B018 - somebody asks
    bench.now += MAX
    assert bench.breaker.usable


@pytest.mark.parametrize(
    ("seconds", "jitter", "rest"),
    [
        (4, 0.0, 4),
        (4, 1.0, 5),
        (400, 1.0, 405),
        (599, 1.0, 600),
        (9999, 0.0, 600),
        (9999, 1.0, 595),
    ],
)
def test_rests_end_a_little_later_or_at_the_bound_a_little_earlier(
    bench: Bench, seconds: float, jitter: float, rest: float
) -> None:
    bench.jitter = jitter
    bench.fail(retry_in=seconds)
    assert bench.rest == pytest.approx(rest)


# --- the table -----------------------------------------------------------------------


def test_every_state_can_be_left_and_reached() -> None:
    for state in BreakerState:
        assert any(old is state is not new for (old, _), new in TRANSITIONS.items())
        assert any(new is state is not old for (old, _), new in TRANSITIONS.items())


def test_everything_can_be_closed() -> None:
    for state in BreakerState:
        assert TRANSITIONS[state, BreakerEvent.CLOSED] is CLOSED


# --- what another process knows ------------------------------------------------------


def test_what_another_process_knows_is_taken_over(bench: Bench) -> None:
    other = Bench()
    other.fail()
    other.sleep()
    other.fail()
    bench.now = other.now
    bench.breaker.restore(other.breaker.snapshot())
    assert bench.breaker.snapshot() == other.breaker.snapshot()
    assert bench.breaker.state is OPEN
    bench.sleep()
    bench.fail()
    assert bench.rest == 40.0, "the third in a row"


def test_attempts_from_before_do_not_close_what_tripped_elsewhere(bench: Bench) -> None:
    other = Bench()
    attempt = bench.breaker.attempt()
    other.fail()
    bench.breaker.restore(other.breaker.snapshot())
    bench.breaker.succeeded(attempt)
    assert bench.breaker.state is OPEN


def test_a_probe_elsewhere_is_waited_for_a_few_seconds_only(bench: Bench) -> None:
    other = Bench()
    other.fail()
    other.sleep()
    other.breaker.attempt()
    bench.now = other.now
    bench.breaker.restore(other.breaker.snapshot())
    assert bench.breaker.state is PROBING
    bench.now += 9.9
    assert bench.breaker.state is PROBING
    bench.now += 0.2
    assert bench.breaker.state is HALF_OPEN
    bench.breaker.attempt()
    bench.now += 11
    assert bench.breaker.state is PROBING, "its own probe has longer"


def test_what_is_closed_elsewhere_is_closed(bench: Bench) -> None:
    bench.fail()
    bench.breaker.restore(Bench().breaker.snapshot())
    assert bench.breaker.state is CLOSED
