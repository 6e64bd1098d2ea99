"""The memory register: every bounded structure, its size and its bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gateway.admin.running import Running


def memory(running: Running, own: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """All registers.

    :param own: those of the admin side itself.
    """
    return {"registers": [*running.figures.registers(), *own]}


def register(name: str, size: int, bound: int, unit: str) -> dict[str, Any]:
    """One entry whose bytes nobody counts."""
    return {"name": name, "size": size, "bound": bound, "unit": unit, "bytes": None}
