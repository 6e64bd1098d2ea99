"""What the admin side reads of the gateway's measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Figures(Protocol):
    """The measurements, ready for JSON.  All of them are cheap: they are read once a second."""

    def process(self) -> Mapping[str, Any]:
        """``{memory: {rss_bytes, budget_bytes}, open_files: {used, limit},
        loop_lag_ms: {p50, p99}}``."""

    def rates(self) -> Mapping[str, Any]:
        """``{turns_per_minute, tokens_per_minute, errors_per_minute, refused_per_minute,
        cached_share, added_first_token_ms: {p50, p99}, upstream_first_token_ms: {p50, p99}}``."""

    def history(self) -> Mapping[str, Any]:
        """``{step_seconds, start, series: {name: [value, ...]}}``, the oldest first."""

    def newest(self) -> Mapping[str, Any]:
        """``{at, values: {name: value}}``: the last point of each series."""

    def account(self, name: str) -> Mapping[str, Any]:
        """``{errors: {class: count}, first_token_ms: {p50, p99}, cached_share}``."""

    def unwell_since(self, name: str) -> float | None:
        """Since when an account rests, in unix seconds; tries between do not end that."""

    def registers(self) -> Sequence[Mapping[str, Any]]:
        """``[{name, size, bound, unit, bytes}]`` of every bounded structure."""

    def alarms(self) -> Sequence[Mapping[str, Any]]:
        """``[{level: "red" | "amber", what, since, until, advice}]`` of what was measured."""
