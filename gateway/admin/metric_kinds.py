"""The kinds of families of ``/metrics``, made of rows of label values and a number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from gateway.metrics.histogram import Histogram

#: Label values and a number.
Row = tuple[Sequence[str], float]

_MILLISECONDS = 1000.0

#: Upper ends of the buckets of times, in milliseconds.
_TIMES = (
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0),
    *(1_000.0, 2_500.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0, 300_000.0),
)


def counter_family(name: str, about: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """A number that only rises.

    :param name: without the ``_total`` that it gets.
    """
    family = CounterMetricFamily(name, about, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def gauge_family(name: str, about: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """A number that rises and falls."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def number_family(name: str, about: str, value: float | None) -> Metric:
    """A gauge without labels, and without a value when that is not known."""
    return gauge_family(name, about, (), () if value is None else (((), value),))


def histogram_family(
    name: str,
    about: str,
    labels: Sequence[str],
    rows: Iterable[tuple[Sequence[str], Histogram]],
    bounds: tuple[float, ...] = _TIMES,
    unit: float = _MILLISECONDS,
) -> Metric:
    """Histograms of times, which are exported in seconds, or of counts.

    :param bounds: some of the histograms' own bounds.
    :param unit: the exported unit in units of the histogram.
    """
    family = HistogramMetricFamily(name, about, labels=labels)
    ends = _ends(bounds, unit)
    for values, histogram in rows:
        buckets = list(zip(ends, histogram.cumulative(bounds), strict=True))
        family.add_metric(values, buckets, histogram.sum / unit)
    return family


@lru_cache(16)
def _ends(bounds: tuple[float, ...], unit: float) -> list[str]:
    return [*(str(bound / unit) for bound in bounds), "+Inf"]
