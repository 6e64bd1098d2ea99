"""When an account may be asked again, and how much of its quotas is used.

Every path by which upstreams say it (protocol.md §4.5, §5.2, §7): ``retry-after``,
``x-ratelimit-*`` and ``x-codex-*`` headers, members of the error, the message, and
``codex.rate_limits`` events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.protocol import moments
from gateway.protocol.errors import UNREADABLE

#: Bounds on what one answer may say.
_MAX_WINDOWS = 16
_MAX_NAME = 60

#: ``x-<limit>-primary-used-percent`` and its kin; ``<limit>`` is ``codex`` by default (§7).
_CODEX = re.compile(
    r"x-(.+)-(primary|secondary)-(used-percent|window-minutes|reset-at|reset-after-seconds)"
)
_ACTIVE_LIMIT = "x-codex-active-limit"
_CODEX_LIMIT = "codex"
_RATE = re.compile(r"x-ratelimit-(limit|remaining|reset)(?:-(.+))?")


class QuotaWindow(NamedTuple):
    """One quota of an account, as its upstream last told it.

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

    :param headers: :attr:`ApiError.hints`.
    :param details: :attr:`ApiError.details`.
    :param message: the error's text.
    :param now: unix seconds.
    :return: unix seconds, at most :data:`~gateway.protocol.moments.FURTHEST_SECONDS` ahead;
        None when unsaid.
    """
    return _first(
        moments.at(details.get("resets_at"), now),
        moments.after(details.get("resets_in_seconds"), now),
        _asked_for(headers, now),
        _used_up_until(headers, now),
        moments.in_message(message, now),
    )


def ready_at(headers: Mapping[str, str], message: str, now: float) -> float | None:
    """As :func:`retry_at`, for a failure that has nothing to do with quotas."""
    return _first(_asked_for(headers, now), moments.in_message(message, now))


def read_windows(headers: Mapping[str, str], now: float) -> tuple[QuotaWindow, ...]:
    """The quotas that the headers of any answer tell of.

    :param headers: names in lower case.
    :param now: unix seconds.
    """
    found: dict[str, dict[str, float]] = {}
    for name, value in headers.items():
        if not name.startswith("x-"):
            continue
        read = _quota_header(name, value, now)
        if read is None:
            continue
        window, member, number = read
        if number is None:
            continue
        if window in found or len(found) < _MAX_WINDOWS:
            found.setdefault(window, {}).setdefault(member, number)
    return tuple(QuotaWindow(name, **members) for name, members in found.items())


def read_rate_limits_event(data: bytes, now: float) -> tuple[QuotaWindow, ...]:
    """The quotas of a ``codex.rate_limits`` event (§4.5).

    :param data: the event's JSON.
    :param now: unix seconds.
    """
    try:
        event = msgspec.json.decode(data)
    except UNREADABLE:
        return ()
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
        used = moments.number(window.get("used_percent"))
        minutes = moments.number(window.get("window_minutes"))
        resets_at = moments.at(window.get("reset_at"), now)
        if resets_at is None:
            resets_at = moments.after(window.get("reset_after_seconds"), now)
        seconds = (
            moments.number(window.get("limit_window_seconds")) if minutes is None else minutes * 60
        )
        if used is not None or resets_at is not None:
            yield QuotaWindow(f"{limit} {which}", used, None, None, resets_at, seconds)


def _quota_header(name: str, value: str, now: float) -> tuple[str, str, float | None] | None:
    """The window, the member of :class:`QuotaWindow` and its value that a header names."""
    rate = _RATE.fullmatch(name)
    if rate is not None:
        member, what = rate.groups()
        window = (what or "requests")[:_MAX_NAME]
        if member == "reset":
            return window, "resets_at", moments.after_length(value, now)
        return window, member, moments.number(value)
    codex = _CODEX.fullmatch(name)
    if codex is None:
        return None
    limit, which, member = codex.groups()
    window = f"{_limit_name(limit)} {which}"
    if member == "used-percent":
        return window, "used_percent", moments.number(value)
    if member == "window-minutes":
        minutes = moments.number(value)
        return window, "window_seconds", None if minutes is None else minutes * 60
    read = moments.at(value, now) if member == "reset-at" else moments.after(value, now)
    return window, "resets_at", read


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


def _first(*said: float | None) -> float | None:
    return next((moment for moment in said if moment is not None), None)


def _asked_for(headers: Mapping[str, str], now: float) -> float | None:
    return _first(
        moments.after(headers.get("retry-after-ms"), now, 1e-3),
        moments.after_or_date(headers.get("retry-after"), now),
    )


def _limit_name(name: object) -> str:
    return str(name).strip().lower().replace("_", "-")[:_MAX_NAME]
