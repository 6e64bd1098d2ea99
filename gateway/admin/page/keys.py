"""The client keys: use against limits, what was refused, and when each was last used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.admin.page import formatting
from gateway.admin.page.layout import bar, countdown, numeric, of_limit, since, table
from gateway.admin.page.rendering import Html, tag
from gateway.admin.page.source import Json


def keys_table(keys: Sequence[Json], now: float) -> Html:
    """One row for each key."""
    if not keys:
        return tag("p", "No client keys are configured: everybody is one client.")
    columns = [
        "Key",
        numeric("Turns now"),
        numeric("Turns"),
        numeric("Tokens"),
        "Limits",
        "Refused for",
        "Last used",
        "Models",
    ]
    return table("Client keys", columns, [_row(each, now) for each in keys], "keys")


def _row(key: Json, now: float) -> Html:
    running, most = key.get("turns_running"), key.get("max_concurrent_turns")
    return tag(
        "tr",
        tag("th", key.get("name"), scope="row"),
        tag(
            "td",
            formatting.number(running),
            tag("span", f" / {formatting.number(most)}", class_="muted") if most else None,
            class_="n",
        ),
        tag("td", formatting.number(key.get("turns")), class_="n"),
        tag("td", formatting.number(key.get("tokens")), class_="n"),
        tag("td", _limits(key.get("limits") or {}, now)),
        tag("td", _refusals(key.get("refusals") or {})),
        tag("td", since(key.get("last_used_at"), now) if key.get("last_used_at") else "never"),
        tag("td", ", ".join(map(str, key.get("models") or ())) or formatting.NONE),
        data_key=key.get("name"),
    )


def _limits(limits: Json, now: float) -> Any:
    return [_limit(name, each, now) for name, each in limits.items()] or formatting.NONE


def _limit(name: str, shown: Json, now: float) -> Html:
    used, limit, free_at = shown.get("used"), shown.get("limit"), shown.get("free_at")
    text = f"{formatting.number(used)} of {formatting.number(limit)}"
    return tag(
        "span",
        tag("span", name.replace("_", " "), class_="name"),
        bar(of_limit(used, limit), f"{name.replace('_', ' ')}: {text}"),
        tag("span", text, class_="figure"),
        tag("span", "free ", countdown(free_at, now)) if free_at is not None else None,
        class_="window",
    )


def _refusals(refusals: Json) -> Any:
    return [
        tag(
            "span", f"{name.replace('_', ' ')} ", tag("b", formatting.number(count)), class_="count"
        )
        for name, count in refusals.items()
        if count
    ] or formatting.NONE
