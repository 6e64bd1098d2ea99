"""When an account may be asked again, and how much of its quotas is used.

Every path by which upstreams say it (protocol.md §4.5, §5.2, §7): ``retry-after``,
``x-ratelimit-*`` and ``x-codex-*`` headers, members of the error, the message, and
``codex.rate_limits`` events.  Times are unix seconds.  A time that is negative, no number, passed
or further away than anything resets counts as absent: readers return None then, and raise nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from gateway.protocol.events import value_of

#: Nothing that upstreams reset takes longer: monthly budgets are the slowest.
FURTHEST_SECONDS = 40 * 86_400.0

#: Bounds on what one answer may say.
_MAX_WINDOWS = 16
_MAX_NAME = 60
_MAX_TEXT = 100
_MAX_MESSAGE = 4_000

#: A plain number from here on is no delay but a unix time, and from there on in milliseconds.
_UNIX_SECONDS = 1e9
_UNIX_MILLISECONDS = 1e11

#: ``x-<limit>-primary-used-percent`` and its kin; ``<limit>`` is ``codex`` by default.
_CODEX = re.compile(
    r"x-(.+)-(primary|secondary)-(used-percent|window-minutes|reset-at|reset-after-seconds)"
)
_ACTIVE_LIMIT = "x-codex-active-limit"
_CODEX_LIMIT = "codex"
_RATE = re.compile(r"x-ratelimit-(limit|remaining|reset)(?:-(.+))?")

_NUMBER = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)
_PART = re.compile(
    r"[\s,]*(?:and\s+)?(\d{1,15}(?:\.\d{1,15})?)\s?([a-zµ]+)", re.ASCII | re.IGNORECASE
)
_AGAIN = re.compile(r"(?:try|retry) again (?:in|after)|retry (?:in|after)", re.IGNORECASE)

#: Seconds of each unit, by its names without the plural's "s".
_UNITS = {
    name: seconds
    for seconds, names in (
        (1e-9, "ns"),
        (1e-6, "us µs"),
        (1e-3, "ms millisecond"),
        (1.0, "s sec second"),
        (60.0, "m min minute"),
        (3_600.0, "h hr hour"),
        (86_400.0, "d day"),
    )
    for name in names.split()
}


class QuotaWindow(NamedTuple):
    """One quota of an account, as its upstream last reported it.

    :ivar name: ``requests``, ``tokens``, ``codex primary``, ….
    :ivar used_percent: 0 and up; more than 100 is possible.
    :ivar remaining: requests or tokens left.
    :ivar limit: requests or tokens in a window.
    :ivar resets_at: unix seconds.
    :ivar window_seconds: its length.
    """

    name: str
    used_percent: float | None = None
    remaining: float | None = None
    limit: float | None = None
    resets_at: float | None = None
    window_seconds: float | None = None

    @property
    def used_up(self) -> bool:
        """Whether nothing is left of it."""
        return self.remaining == 0 or (self.used_percent or 0.0) >= 100.0


def retry_at(
    headers: Mapping[str, str], details: Mapping[str, Any], message: str, now: float
) -> float | None:
    """When a refused request may be tried again, by the most exact of what was said.

    :param headers: ``hints`` of an :class:`~gateway.protocol.errors.ApiError`.
    :param details: its ``details``.
    :param message: its text.
    :param now: unix seconds.
    :return: unix seconds, at most :data:`FURTHEST_SECONDS` ahead; None when unsaid.
    """
    return _first(
        read_time(details.get("resets_at"), now),
        read_delay(details.get("resets_in_seconds"), now),
        _retry_after(headers, now),
        _used_up_until(headers, now),
        delay_in_message(message, now),
    )


def ready_at(headers: Mapping[str, str], message: str, now: float) -> float | None:
    """As :func:`retry_at`, for a failure that has nothing to do with quotas."""
    return _first(_retry_after(headers, now), delay_in_message(message, now))


def read_windows(headers: Mapping[str, str], now: float) -> tuple[QuotaWindow, ...]:
    """The quotas that the headers of any answer tell of.

    :param headers: names in lower case.
    :param now: unix seconds.
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in headers.items():
        if not name.startswith("x-"):
            continue
        window, member, number = _quota_header(name, value, now)
        if number is not None and (window in found or len(found) < _MAX_WINDOWS):
            found.setdefault(window, {}).setdefault(member, number)
    return tuple(QuotaWindow(name, **members) for name, members in found.items())


def read_rate_limits_event(data: bytes, now: float) -> tuple[QuotaWindow, ...]:
    """The quotas of a ``codex.rate_limits`` event.

    :param data: the event's JSON.
    :param now: unix seconds.
    """
    event = value_of(data)
    if not isinstance(event, dict):
        return ()
    limit = _limit_name(event.get("metered_limit_name") or event.get("limit_name") or _CODEX_LIMIT)
    windows = list(_event_windows(limit, event.get("rate_limits"), now))
    more = event.get("additional_rate_limits")
    for each in more if isinstance(more, list) else ():
        if isinstance(each, dict):
            named = each.get("metered_feature") or each.get("limit_name")
            windows += _event_windows(_limit_name(named), each.get("rate_limit"), now)
    return tuple(windows[:_MAX_WINDOWS])


def limits_single_model(headers: Mapping[str, str]) -> bool:
    """Whether the limit that refused is one of ChatGPT's for single models.

    Those are named ``codex_…``; ``codex``, ``premium`` and others are the account's.
    """
    return _limit_name(headers.get(_ACTIVE_LIMIT, "")).startswith(f"{_CODEX_LIMIT}-")


def _event_windows(limit: str, limits: object, now: float) -> Iterator[QuotaWindow]:
    if not isinstance(limits, dict):
        return
    for which in ("primary", "secondary"):
        window = limits.get(which) or limits.get(f"{which}_window")
        if not isinstance(window, dict):
            continue
        used = read_number(window.get("used_percent"))
        minutes = read_number(window.get("window_minutes"))
        seconds = read_number(window.get("limit_window_seconds"))
        resets_at = _first(
            read_time(window.get("reset_at"), now),
            read_delay(window.get("reset_after_seconds"), now),
        )
        if used is not None or resets_at is not None:
            length = seconds if minutes is None else minutes * 60
            yield QuotaWindow(f"{limit} {which}", used, None, None, resets_at, length)


def _quota_header(name: str, value: str, now: float) -> tuple[str, str, float | None]:
    """The window, the member of :class:`QuotaWindow` and its value that a header names."""
    rate = _RATE.fullmatch(name)
    if rate is not None:
        member, what = rate.groups()
        window = (what or "requests")[:_MAX_NAME]
        if member == "reset":
            return window, "resets_at", read_delay(read_duration(value), now)
        return window, member, read_number(value)
    codex = _CODEX.fullmatch(name)
    if codex is None:
        return "", "", None
    limit, which, member = codex.groups()
    window = f"{_limit_name(limit)} {which}"
    if member == "used-percent":
        return window, "used_percent", read_number(value)
    if member == "window-minutes":
        minutes = read_number(value)
        return window, "window_seconds", None if minutes is None else minutes * 60
    read = read_time if member == "reset-at" else read_delay
    return window, "resets_at", read(value, now)


def _used_up_until(headers: Mapping[str, str], now: float) -> float | None:
    """When the quotas that are used up are all there again; of a named limit, its own."""
    windows = read_windows(headers, now)
    for limit in (_limit_name(headers.get(_ACTIVE_LIMIT, "")), _CODEX_LIMIT):
        of_limit = tuple(each for each in windows if each.name.startswith(f"{limit} "))
        if of_limit:
            windows = of_limit
            break
    return max(
        (each.resets_at for each in windows if each.used_up and each.resets_at is not None),
        default=None,
    )


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    return _first(
        read_delay(headers.get("retry-after-ms"), now, 1e-3),
        read_delay_or_date(headers.get("retry-after"), now),
    )


def _limit_name(name: object) -> str:
    return str(name).strip().lower().replace("_", "-")[:_MAX_NAME]


def _first(*times: float | None) -> float | None:
    return next((time for time in times if time is not None), None)


# --- times in all the forms in which services write them -----------------------------------


def read_number(value: object) -> float | None:
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


def read_time(value: object, now: float) -> float | None:
    """A unix time in seconds or milliseconds, from now on."""
    time = read_number(value)
    if time is None:
        return None
    if time >= _UNIX_MILLISECONDS:
        time /= 1000
    return time if now <= time <= now + FURTHEST_SECONDS else None


def read_delay(value: object, now: float, unit: float = 1.0) -> float | None:
    """The time after a delay in ``unit`` seconds; some services send a unix time instead."""
    delay = read_number(value)
    if delay is None:
        return None
    return read_time(delay, now) if delay >= _UNIX_SECONDS else _within_reach(delay * unit, now)


def read_delay_or_date(value: str | None, now: float) -> float | None:
    """The time of a ``retry-after``: delta seconds or an HTTP date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    delay = read_delay(value, now)
    if delay is not None or len(value) > _MAX_TEXT:
        return delay
    try:
        date = parsedate_to_datetime(value)
        if date.tzinfo is None:
            date = date.replace(tzinfo=timezone.utc)
        return read_time(date.timestamp(), now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def read_duration(text: str) -> float | None:
    """Seconds, as ``x-ratelimit-reset-*`` writes them: ``6m0s``, ``20ms``, ``1.5``."""
    text = text.strip()[:_MAX_TEXT]
    if _NUMBER.fullmatch(text):
        return float(text)
    seconds, end = _sum_parts(text, 0)
    return seconds if end == len(text) else None


def delay_in_message(message: str, now: float) -> float | None:
    """The time of ``Please try again in 1m30.5s`` or ``retry after 20 seconds``."""
    message = message[:_MAX_MESSAGE]
    for found in _AGAIN.finditer(message):
        seconds, _ = _sum_parts(message, found.end())
        if seconds is not None:
            return _within_reach(seconds, now)
    return None


def _within_reach(delay: float, now: float) -> float | None:
    return now + delay if delay <= FURTHEST_SECONDS else None


def _sum_parts(text: str, start: int) -> tuple[float | None, int]:
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
