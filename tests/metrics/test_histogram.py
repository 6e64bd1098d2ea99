"""Histograms count everything, and their percentiles are right to a quarter."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.metrics.histogram import MILLISECONDS, TOKENS, Histogram, Recent, percentile

times = st.lists(st.floats(0.11, 800_000), min_size=1, max_size=200)


@given(times)
def test_percentiles_are_right_to_a_bucket(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    for share in (0.5, 0.99):
        exact = sorted(values)[math.ceil(share * len(values)) - 1]
        found = percentile(histogram.bounds, histogram.counts, share)
        assert found is not None
        assert exact / 1.5 <= found <= exact * 1.5, f"p{share} of {values}: expected {exact}"


@given(times)
def test_buckets_for_prometheus_rise_and_hold_everything(values: list[float]) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    bounds = (1.0, 100.0, 5_000.0)
    counts = histogram.cumulative(bounds)
    assert counts == [sum(value <= bound for value in values) for bound in bounds] + [len(values)]
    assert histogram.sum == pytest.approx(sum(values))


def test_bounds_rise() -> None:
    for bounds in (MILLISECONDS, TOKENS):
        assert list(bounds) == sorted(set(bounds))


def test_what_is_beyond_all_bounds_counts_as_the_last() -> None:
    histogram = Histogram(TOKENS)
    histogram.add(10**12)
    assert percentile(histogram.bounds, histogram.counts, 0.5) == TOKENS[-1]
    assert histogram.cumulative((1, 4)) == [0, 0, 1]


def test_only_what_is_recent_counts() -> None:
    histogram = Histogram()
    recent = Recent(histogram, 2)
    assert recent.percentiles() == {"p50": None, "p99": None}
    histogram.add(800.0)
    for _ in range(2):
        recent.mark()
    histogram.add(10.0)
    p50 = recent.percentiles()["p50"]
    assert p50 is not None
    assert p50 <= 10.0, "what came before the marks expected to be forgotten"
