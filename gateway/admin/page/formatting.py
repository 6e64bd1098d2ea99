"""Figures as people read them.  ``static/page.js`` writes the same; a test compares the two."""

from __future__ import annotations

import math
from typing import Any

#: For what is not known.
NONE = "–"
_SPACE = "\u00a0"
_SIZES = ("B", "kB", "MB", "GB", "TB")


def number(value: Any) -> str:
    """12, 1.5, 2,000."""
    if value is None:
        return NONE
    if isinstance(value, int) or abs(value) >= 10 or value == int(value):
        return f"{math.floor(value + 0.5):,}"
    return _tenths(value)


def milliseconds(value: Any) -> str:
    """0.3 ms, 132 ms, 1.3 s, 75 s."""
    if value is None:
        return NONE
    if value < 1000:
        return number(value) + _SPACE + "ms"
    return number(value / 1000) + _SPACE + "s"


def share(value: Any) -> str:
    """A part of one, in percent."""
    return NONE if value is None else percent(value * 100)


def percent(value: Any) -> str:
    """62 %."""
    return NONE if value is None else f"{math.floor(value + 0.5)}{_SPACE}%"


def size(value: Any) -> str:
    """Bytes, by thousands: 512 B, 1.2 MB."""
    if value is None:
        return NONE
    amount: float = value
    for unit in _SIZES:
        if amount < 1000 or unit == _SIZES[-1]:
            break
        amount /= 1000
    return number(amount) + _SPACE + unit


def duration(seconds: Any) -> str:
    """5 s, 12 min 5 s, 4 h 12 min, 3 d 4 h."""
    if seconds is None:
        return NONE
    left = max(0, math.floor(seconds))
    parts: list[str] = []
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (name == "s" and not parts):
            parts.append(f"{count}{_SPACE}{name}")
        elif parts:
            break
    return " ".join(parts[:2])


def ago(at: Any, now: float) -> str:
    """A moment that is over; seconds matter in its first minute alone."""
    if at is None:
        return NONE
    gone = duration(now - at)
    return (gone.partition(" ")[0] if now - at < 3600 else gone) + " ago"


def ahead(at: Any, now: float) -> str:
    """A moment to come."""
    if at is None:
        return NONE
    return "in " + duration(at - now) if at > now else "now"


def shortened(text: str, length: int = 24) -> str:
    """The ends of a long name."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _tenths(value: float) -> str:
    return f"{math.floor(value * 10 + 0.5) / 10:.1f}"
