"""Histograms: counts of values by size, for percentiles and for Prometheus.

Buckets are fixed, some eleven in each power of ten.  A percentile is right to a quarter of its
value, and a histogram always takes 600 bytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

#: Upper ends of the buckets of times, in milliseconds: from 0.1 ms to 800 s.
MILLISECONDS = tuple(
    round(mantissa * 10.0**exponent, 4)
    for exponent in range(-1, 6)
    for mantissa in (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 7.5, 8)
)

#: Upper ends of the buckets of token counts, as in OpenTelemetry's ``gen_ai.client.token.usage``.
TOKENS = tuple(4**exponent for exponent in range(14))


class Histogram:
    """The number of values in each bucket, and their sum.

    :param bounds: upper ends of the buckets, rising; one more takes the values beyond.
    :ivar counts: by bucket.
    :ivar sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = MILLISECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def add(self, value: float) -> None:
        """Count ``value``."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self, bounds: Sequence[float]) -> list[int]:
        """The number of values up to each of ``bounds``, and of all values.

        :param bounds: some of the histogram's own.
        """
        sums = list(accumulate(self.counts))
        return [sums[self.bounds.index(bound)] for bound in bounds] + [sums[-1]]


class Recent:
    """The values that a histogram got since the oldest of its last marks.

    :param marks: how many are kept; :meth:`mark` is called at equal intervals.
    """

    __slots__ = ("_histogram", "_marks")

    def __init__(self, histogram: Histogram, marks: int) -> None:
        self._histogram = histogram
        self._marks: deque[list[int]] = deque([list(histogram.counts)], maxlen=marks)

    def mark(self) -> None:
        """A step of time is over."""
        self._marks.append(list(self._histogram.counts))

    def percentiles(self) -> dict[str, float | None]:
        """``{p50, p99}`` in the histogram's unit; None when there was nothing."""
        return percentiles(self.counts(), self._histogram.bounds)

    def counts(self) -> list[int]:
        """How many values there are in each bucket."""
        return [new - old for new, old in zip(self._histogram.counts, self._marks[0], strict=True)]


def percentiles(
    counts: Sequence[int], bounds: Sequence[float] = MILLISECONDS
) -> dict[str, float | None]:
    """``{p50, p99}`` of values that are counted by bucket; None when there was nothing."""
    return {"p50": percentile(bounds, counts, 0.5), "p99": percentile(bounds, counts, 0.99)}


def percentile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float | None:
    """The value that ``share`` of all values are below, to a bucket; None without values."""
    total = sum(counts)
    if not total:
        return None
    rank = share * total
    below, begin = 0, 0.0
    for end, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return round(begin + (end - begin) * (rank - below) / count, 3)
        below += count
        begin = end
    return float(bounds[-1])


def unmeasured() -> dict[str, Any]:
    """The percentiles of no values."""
    return {"p50": None, "p99": None}
