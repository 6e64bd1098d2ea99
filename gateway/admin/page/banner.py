"""Whether all is well, and what needs somebody."""

from __future__ import annotations

from gateway.admin.page import formatting
from gateway.admin.page.layout import countdown, dot, live, since, word
from gateway.admin.page.rendering import Html, tag
from gateway.admin.page.source import Json


def banner(status: Json, now: float) -> Html:
    """The state in a word, the figures that limit the gateway, and its alarms."""
    state = _state(status)
    memory, files = status.get("memory") or {}, status.get("open_files") or {}
    lag = status.get("loop_lag_ms") or {}
    budget = live("memory.budget_bytes", "size", memory.get("budget_bytes"))
    facts = [
        ("Version", formatting.shortened(str(status.get("version", formatting.NONE)))),
        ("Up", live("uptime_seconds", "duration", status.get("uptime_seconds"))),
        (
            "Configuration",
            tag("span", "no. ", live("generation", "number", status.get("generation"))),
        ),
        ("Loop lag, p99", live("loop_lag_ms.p99", "ms", lag.get("p99"))),
        (
            "Memory",
            [
                live("memory.rss_bytes", "size", memory.get("rss_bytes")),
                [" of ", budget] if memory.get("budget_bytes") else None,
            ],
        ),
        (
            "Open files",
            [
                live("open_files.used", "number", files.get("used")),
                [" of ", live("open_files.limit", "number", files.get("limit"))],
            ],
        ),
    ]
    return tag(
        "div",
        tag(
            "p",
            dot(state),
            word("state", state, "word"),
            class_="state",
        ),
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts]),
        tag(
            "ul",
            [_alarm(each, now) for each in status.get("alarms") or ()],
            class_="alarms",
            role="list",
        ),
        class_="banner",
        id="banner",
        data_state=state,
    )


def _state(status: Json) -> str:
    found = status.get("state")
    if isinstance(found, str):
        return found
    return "ready" if status.get("ready", True) else "draining"


def _alarm(alarm: Json, now: float) -> Html:
    level = "red" if alarm.get("level") == "red" else "amber"
    at, until, advice = alarm.get("since"), alarm.get("until"), alarm.get("advice")
    return tag(
        "li",
        tag("strong", "Act: " if level == "red" else "Look: "),
        alarm.get("what"),
        tag("span", " · ", since(at, now)) if at is not None else None,
        tag("span", " · should end ", countdown(until, now)) if until is not None else None,
        tag("span", advice, class_="advice") if advice else None,
        class_=level,
    )
