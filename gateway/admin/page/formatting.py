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
    return f"{math.floor(value * 10 + 0.5) / 10:.1f}"


def milliseconds(value: Any) -> str:
    """0.3 ms, 132 ms, 1.3 s, 75 s."""
    if value is None:
        return NONE
    if value < 1000:
        return number(value) + _SPACE + "ms"
    return number(value / 1000) + _SPACE + "s"


def share(value: Any) -> str:
    """A part of one in percent: 62 %."""
    return NONE if value is None else f"{math.floor(value * 100 + 0.5)}{_SPACE}%"


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


#: How figures are written, by the names that cells and the script use.
FORMS = {
    "number": number,
    "ms": milliseconds,
    "share": share,
    "size": size,
    "duration": duration,
}


def written(value: Any, form: str) -> str:
    """A value in one of the :data:`FORMS`, or as ``text``."""
    if form == "text":
        return NONE if value is None else str(value)
    return FORMS[form](value)


def ago(at: float | None, now: float) -> str:
    """A time in the past; without seconds after the first minutes."""
    if at is None:
        return NONE
    gone = duration(now - at)
    return (gone.partition(" ")[0] if now - at < 3600 else gone) + " ago"


def ahead(at: float | None, now: float) -> str:
    """A time in the future."""
    if at is None:
        return NONE
    return "in " + duration(at - now) if at > now else "now"


def shorten(text: str, length: int = 24) -> str:
    """The ends of a long name."""
    if len(text) <= length:
        return text
    half = (length - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """1 fork, 2 forks."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def fixed(value: float, digits: int) -> str:
    """A number for the script, with so many digits after the point."""
    return f"{value:.{digits}f}"


def of_limit(used: float | None, limit: float | None) -> float | None:
    """What part of a limit is used."""
    return used / limit if used is not None and limit else None


def filled(part: float) -> float:
    """The width of a bar in percent."""
    return round(max(0.0, min(part, 1.0)) * 100, 1)


def continuity(value: dict[str, Any]) -> str:
    """How an account continues conversations: the setting, and what was learned."""
    learned = ", ".join(f"{name} {way}" for name, way in value["learned"].items())
    return f"{value['setting']}: {learned}" if learned else str(value["setting"])


def setting(value: object) -> str:
    """A value of the configuration."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
