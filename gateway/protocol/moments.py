"""Moments and lengths of time, in all the forms in which services write them.

Moments are unix seconds.  What is negative, no number, or further away than anything resets
counts as unsaid: every function answers None then and raises nothing.
"""

from __future__ import annotations

import math
import re
from datetime import timezone
from email.utils import parsedate_to_datetime

#: Nothing that upstreams reset takes longer: monthly budgets are the slowest.
FURTHEST_SECONDS = 40 * 86_400.0

_MAX_TEXT = 100
_MAX_MESSAGE = 4_000

#: A plain number from here on is no delay but a unix time, and from there on in milliseconds.
_UNIX_SECONDS = 1e9
_UNIX_MILLISECONDS = 1e11

_NUMBER = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)
_PART = re.compile(
    r"[\s,]*(?:and\s+)?(\d{1,15}(?:\.\d{1,15})?)\s?([a-zµ]+)", re.ASCII | re.IGNORECASE
)
_AGAIN = re.compile(r"(?:try|retry) again (?:in|after)|retry (?:in|after)", re.IGNORECASE)

_UNITS = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "millisecond": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "second": 1.0,
    "m": 60.0,
    "min": 60.0,
    "minute": 60.0,
    "h": 3_600.0,
    "hr": 3_600.0,
    "hour": 3_600.0,
    "d": 86_400.0,
    "day": 86_400.0,
}


def number(value: object) -> float | None:
    """A finite number from 0 on, given as one or as text."""
    if isinstance(value, str):
        text = value.strip()[:_MAX_TEXT]
        return float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        read = float(value)
    except OverflowError:
        return None
    return read if math.isfinite(read) and read >= 0 else None


def at(value: object, now: float) -> float | None:
    """A unix time in seconds (or milliseconds); one that has passed says nothing."""
    moment = number(value)
    if moment is None:
        return None
    if moment >= _UNIX_MILLISECONDS:
        moment /= 1000
    return moment if now <= moment <= now + FURTHEST_SECONDS else None


def after(value: object, now: float, unit: float = 1.0) -> float | None:
    """A delay in ``unit`` seconds; too large for one, it is a unix time: some send those."""
    delay = number(value)
    if delay is None:
        return None
    return at(delay, now) if delay >= _UNIX_SECONDS else _within_reach(delay * unit, now)


def seconds_of(text: str) -> float | None:
    """A length of time as ``x-ratelimit-reset-*`` writes it: ``6m0s``, ``20ms``, ``1.5``."""
    text = text.strip()[:_MAX_TEXT]
    if _NUMBER.fullmatch(text):
        return float(text)
    seconds, end = _parts(text, 0)
    return seconds if end == len(text) else None


def after_length(value: str, now: float) -> float | None:
    """A delay in the forms of :func:`seconds_of`, or a unix time."""
    return after(seconds_of(value), now)


def after_or_date(value: str | None, now: float) -> float | None:
    """Delta seconds or an HTTP date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    delay = after(value, now)
    if delay is not None or len(value) > _MAX_TEXT:
        return delay
    try:
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        return at(date.timestamp(), now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def in_message(message: str, now: float) -> float | None:
    """``Please try again in 1m30.5s``, ``retry after 20 seconds``."""
    message = message[:_MAX_MESSAGE]
    for found in _AGAIN.finditer(message):
        seconds, _ = _parts(message, found.end())
        if seconds is not None:
            return _within_reach(seconds, now)
    return None


def _within_reach(delay: float, now: float) -> float | None:
    return now + delay if delay <= FURTHEST_SECONDS else None


def _parts(text: str, start: int) -> tuple[float | None, int]:
    """The sum of ``1h``, ``5 minutes and 2s``, … from ``start``, and where it ends."""
    total: float | None = None
    position = start
    for _ in range(8):
        part = _PART.match(text, position)
        if part is None:
            break
        unit = part[2].lower()
        scale = _UNITS.get(unit) or _UNITS.get(unit.rstrip("s"))
        if scale is None:
            break
        total = (total or 0.0) + float(part[1]) * scale
        position = part.end()
    return total, position
