"""What the admin side reads of the gateway's measurements; absent until somebody measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

#: A median and a 99th percentile; None without anything measured.
_UNMEASURED = {"p50": None, "p99": None}


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
        """``[{level: "red" | "amber", what, since}]`` of what was measured."""


class NoFigures:
    """Nothing is measured; see :class:`Figures`."""

    def process(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        return {
            "memory": {"rss_bytes": None, "budget_bytes": None},
            "open_files": {"used": None, "limit": None},
            "loop_lag_ms": _UNMEASURED,
        }

    def rates(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        return {
            "turns_per_minute": None,
            "tokens_per_minute": None,
            "errors_per_minute": None,
            "refused_per_minute": None,
            "cached_share": None,
            "added_first_token_ms": _UNMEASURED,
            "upstream_first_token_ms": _UNMEASURED,
        }

    def history(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        return {"step_seconds": 5, "start": None, "series": {}}

    def newest(self) -> Mapping[str, Any]:
        """See ``Figures``."""
        return {"at": None, "values": {}}

    def account(self, name: str) -> Mapping[str, Any]:
        """See ``Figures``."""
        return {"errors": {}, "first_token_ms": _UNMEASURED, "cached_share": None}

    def unwell_since(self, name: str) -> float | None:
        """See ``Figures``."""
        return None

    def registers(self) -> Sequence[Mapping[str, Any]]:
        """See ``Figures``."""
        return ()

    def alarms(self) -> Sequence[Mapping[str, Any]]:
        """See ``Figures``."""
        return ()
