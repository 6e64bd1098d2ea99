"""The last 15 minutes in steps of five seconds, and the rates of the last minute."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gateway.metrics.histogram import Histogram, Recent
from gateway.metrics.turns import TurnMetrics, share

STEP_SECONDS = 5
STEPS = 180

#: Steps in a minute.
MINUTE = 60 // STEP_SECONDS

_SPANS: dict[str, Callable[[TurnMetrics], Histogram]] = {
    "added_first_token_ms": lambda tally: tally.added,
    "upstream_first_token_ms": lambda tally: tally.upstream,
}


class _Totals(NamedTuple):
    """The tally's counts at one moment."""

    at: float
    turns: int
    failed: int
    tokens: int
    input: int
    cached: int


class History:
    """Points of each series, and what passed between them.

    :param tally: what is counted.
    """

    def __init__(self, tally: TurnMetrics, now: float) -> None:
        self._tally = tally
        self._series: dict[str, deque[float | None]] = {}
        self._at: deque[float] = deque(maxlen=STEPS)
        self._before: deque[_Totals] = deque([self._totals(now)], maxlen=MINUTE)
        self._of_step = {name: Recent(of(tally), 1) for name, of in _SPANS.items()}
        self._of_minute = {name: Recent(of(tally), MINUTE) for name, of in _SPANS.items()}

    def __len__(self) -> int:
        return len(self._at)

    def step(self, now: float, gauges: Mapping[str, float]) -> None:
        """Note a point.

        :param now: unix seconds.
        :param gauges: the values of this moment by their series.
        """
        totals = self._totals(now)
        values: dict[str, float | None] = {**gauges, **_rates(self._before[-1], totals)}
        for name, recent in self._of_step.items():
            for which, value in recent.percentiles().items():
                values[f"{name}.{which}"] = value
        for name, value in values.items():
            line = self._series.get(name)
            if line is None:
                line = self._series[name] = deque([None] * len(self._at), maxlen=STEPS)
            line.append(value)
        self._at.append(now)
        self._before.append(totals)
        for recent in (*self._of_step.values(), *self._of_minute.values()):
            recent.mark()

    def rates(self, now: float) -> dict[str, Any]:
        """Those of the last minute, or since the start if that is less."""
        return {
            **_rates(self._before[0], self._totals(now)),
            **{name: recent.percentiles() for name, recent in self._of_minute.items()},
        }

    def in_the_last_minute(self) -> tuple[int, int]:
        """Turns that ended, and those of them that failed."""
        before = self._before[0]
        self._tally.catch_up()
        return self._tally.turns - before.turns, self._tally.failed - before.failed

    def shown(self) -> dict[str, Any]:
        """All points, the oldest first."""
        return {
            "step_seconds": STEP_SECONDS,
            "start": self._at[0] if self._at else None,
            "series": {name: list(line) for name, line in self._series.items()},
        }

    def newest(self) -> dict[str, Any]:
        """The last point."""
        if not self._at:
            return {"at": None, "values": {}}
        return {
            "at": self._at[-1],
            "values": {name: line[-1] for name, line in self._series.items()},
        }

    def _totals(self, now: float) -> _Totals:
        tally = self._tally
        tally.catch_up()
        tokens = tally.tokens
        return _Totals(now, tally.turns, tally.failed, tokens.total, tokens.input, tokens.cached)


def _rates(before: _Totals, after: _Totals) -> dict[str, float | None]:
    seconds = max(after.at - before.at, STEP_SECONDS)

    def a_minute(count: int) -> float:
        return round(count * 60 / seconds, 2)

    return {
        "turns_per_minute": a_minute(after.turns - before.turns),
        "tokens_per_minute": a_minute(after.tokens - before.tokens),
        "errors_per_minute": a_minute(after.failed - before.failed),
        "cached_share": share(after.cached - before.cached, after.input - before.input),
    }
