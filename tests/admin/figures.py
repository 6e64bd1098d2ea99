"""Figures of a gateway that nobody measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: A median and a 99th percentile of nothing.
_UNMEASURED = {"p50": None, "p99": None}


class NoFigures:
    """Nothing is measured; see :class:`Figures`."""

    def process(self) -> Mapping[str, Any]:
        return {
            "memory": {"rss_bytes": None, "budget_bytes": None},
            "open_files": {"used": None, "limit": None},
            "loop_lag_ms": _UNMEASURED,
        }

    def rates(self) -> Mapping[str, Any]:
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
        return {"step_seconds": 5, "start": None, "series": {}}

    def newest(self) -> Mapping[str, Any]:
        return {"at": None, "values": {}}

    def account(self, name: str) -> Mapping[str, Any]:
        return {"errors": {}, "first_token_ms": _UNMEASURED, "cached_share": None}

    def unwell_since(self, name: str) -> float | None:
        return None

    def registers(self) -> Sequence[Mapping[str, Any]]:
        return ()

    def alarms(self) -> Sequence[Mapping[str, Any]]:
        return ()
