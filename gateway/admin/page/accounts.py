"""One dense row for each account, in the manner of HAProxy's statistics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from gateway.admin.page import formatting
from gateway.admin.page.layout import (
    account_mark,
    bar,
    button,
    countdown,
    dot,
    live,
    numeric,
    of_limit,
    posting,
    since,
    table,
    word,
)
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.source import Json, Viewer

#: The order of the buttons, and what is on them.
_ACTIONS = {
    "pause": "Pause",
    "drain": "Drain",
    "resume": "Resume",
    "clear": "Clear",
    "probe": "Probe",
}
_HINTS = {
    "pause": "give it no turns; those that run go on",
    "drain": "give it no new conversations",
    "resume": "give it turns again",
    "clear": "forget its cooldowns",
    "probe": "let one turn through",
}
#: Accounts of one state that are named above the table, and models of one that are told.
_NAMED = 8
_MODELS = 3
#: Lessons of one that are told.
_LESSONS = 8

#: A limit that resets so much later than the account is tried again is told, in seconds.
_MUCH_LATER = 60.0


def accounts_table(accounts: Sequence[Json], viewer: Viewer, now: float) -> Html:
    """The table, and a line that counts the states."""
    names = [account["name"] for account in accounts]
    columns: list[Any] = [
        "Account",
        "State",
        "Why",
        "Since",
        tag("th", "Until", scope="col", title="when a turn tries it again"),
        "Errors",
        numeric("In flight", "turns now, and how many are allowed"),
        "Quota windows",
        numeric("Failed", "attempts that it refused or broke"),
        numeric("First token p50", "upstream’s time to first token"),
        numeric("p99"),
        numeric("Pinned", "conversations that stay here"),
        numeric("Turns"),
        numeric("Cached", "part of the input that came from the upstream’s cache"),
        "Continues by",
    ]
    if viewer.may_act:
        columns.append(tag("th", "Actions", scope="col", class_="actions"))
    rows = [_row(each, names, viewer, now, row) for row, each in enumerate(accounts)]
    return joined(
        tag("p", list(_counts(accounts)) or "no accounts", class_="muted"),
        tag("p", _sentence(viewer.why_not), class_="muted") if viewer.why_not else None,
        table("Accounts", columns, rows, "accounts"),
    )


def _counts(accounts: Sequence[Json]) -> Iterator[Any]:
    """How many are in each state; those that do not serve by name, and a way to their rows."""
    states: dict[str, list[int]] = defaultdict(list)
    for row, account in enumerate(accounts):
        states[str(account.get("state", "ready"))].append(row)
    for number, (state, rows) in enumerate(sorted(states.items(), key=lambda each: -len(each[1]))):
        yield f"{' · ' if number else ''}{len(rows)} {state}"
        if state != "ready":
            for place, row in enumerate(rows[:_NAMED]):
                yield ", " if place else ": "
                name = formatting.shortened(str(accounts[row]["name"]), 40)
                yield tag("a", name, href=f"#account-{row}")
            if len(rows) > _NAMED:
                yield " …"


def _row(account: Json, names: Sequence[str], viewer: Viewer, now: float, row: int) -> Html:
    name = account["name"]
    state = str(account.get("state", "ready"))
    first = account.get("first_token_ms") or {}
    limit = account.get("max_in_flight")
    in_flight = account.get("in_flight")
    host = urlsplit(str(account.get("base_url") or "")).netloc
    cells = [
        tag(
            "th",
            account_mark(name, names),
            tag("span", host, class_="under") if host else None,
            scope="row",
        ),
        tag("td", dot(state), word("state", state), _models_rest(account), class_="state"),
        tag("td", _why(account, now), class_="why"),
        tag("td", since(account.get("since"), now, "since")),
        tag("td", countdown(account.get("until"), now, "until"), _resets(account, now)),
        tag("td", _errors(account), class_="errors"),
        tag(
            "td",
            live("in_flight", "number", in_flight),
            tag("span", f" / {limit}", class_="muted") if limit else None,
            class_="n",
        ),
        tag("td", _windows(account.get("windows") or (), now)),
        _number("failures", "number", account),
        tag("td", live("first_token_ms.p50", "ms", first.get("p50")), class_="n"),
        tag("td", live("first_token_ms.p99", "ms", first.get("p99")), class_="n"),
        _number("pinned", "number", account),
        _number("turns", "number", account),
        _number("cached_share", "share", account),
        tag("td", _continuity(account.get("continuity")), _learned(account, now), class_="why"),
    ]
    if viewer.may_act:
        cells.append(tag("td", _actions(name, account.get("actions")), class_="actions"))
    rests = bool(account.get("models"))
    return tag(
        "tr", cells, id=f"account-{row}", data_account=name, data_state=state, data_rests=rests
    )


def _sentence(why_not: str) -> str:
    return f"Only to look at: {why_not}."


def _models_rest(account: Json) -> Html | None:
    """An account that serves may still refuse the very model that everybody asks for."""
    count = len(account.get("models") or ())
    if not count:
        return None
    return tag(
        "span", f"{count} model rests" if count == 1 else f"{count} models rest", class_="look"
    )


def _why(account: Json, now: float) -> list[Any]:
    """Why it does not serve, and which of its models it does not."""
    models = account.get("models") or ()
    told = [
        tag(
            "span",
            tag("b", each.get("model") or "no model named"),
            " ",
            countdown(each.get("until"), now),
            f": {each.get('why')}" if each.get("why") else None,
            class_="model",
        )
        for each in models[:_MODELS]
    ]
    if len(models) > _MODELS:
        told.append(tag("span", f"and {len(models) - _MODELS} more", class_="model"))
    return [word("why", account.get("why"), "unsaid" if told else None), *told]


def _resets(account: Json, now: float) -> Html | None:
    """The upstream's own word for when, where the account is tried sooner than that."""
    resets, until = account.get("resets_at"), account.get("until")
    if resets is None or until is None or resets - until < _MUCH_LATER:
        return None
    return tag("span", "its limit resets ", countdown(resets, now), class_="under")


def _number(path: str, form: str, account: Json) -> Html:
    return tag("td", live(path, form, account.get(path)), class_="n")


def _windows(windows: Sequence[Json], now: float) -> Any:
    return [_window(each, now) for each in windows] or formatting.NONE


def _window(window: Json, now: float) -> Html:
    """One quota: how much of it is used, and when it begins anew."""
    name, limit, remaining = window.get("name"), window.get("limit"), window.get("remaining")
    part = None if window.get("used_percent") is None else window["used_percent"] / 100
    if part is None and limit and remaining is not None:
        part = of_limit(limit - remaining, limit)
    used = formatting.share(part) if part is not None else formatting.number(remaining) + " left"
    resets = window.get("resets_at")
    return tag(
        "span",
        tag("span", name, class_="name"),
        bar(part, f"{name}: {used} used"),
        tag("span", used, class_="figure"),
        tag("span", "anew ", countdown(resets, now), class_="muted") if resets else None,
        class_="window",
    )


def _errors(account: Json) -> Any:
    """Failures by class."""
    counted = account.get("errors") or {}
    parts = [
        tag("span", f"{kind} ", tag("b", formatting.number(count)), class_="count")
        for kind, count in counted.items()
        if count
    ]
    return parts or formatting.NONE


def _continuity(continuity: Any) -> str:
    """Chain or replay: the setting, and what was learned."""
    if not isinstance(continuity, dict):
        return formatting.NONE if continuity is None else str(continuity)
    learned = continuity.get("learned")
    if isinstance(learned, dict):
        learned = ", ".join(f"{name} {value}" for name, value in learned.items())
    setting = str(continuity.get("setting"))
    return f"{setting}: {learned}" if learned else setting


def _learned(account: Json, now: float) -> list[Html]:
    """What it taught: how its requests are sent since, and for which of them."""
    lessons = account.get("learned") or ()
    told = [
        tag(
            "span",
            tag("b", each.get("what")),
            *(f" · {each[of]}" for of in ("model", "key") if each.get(of)),
            " ",
            countdown(each.get("until"), now),
            class_="model",
            title=each.get("why"),
        )
        for each in lessons[:_LESSONS]
    ]
    if len(lessons) > _LESSONS:
        told.append(tag("span", f"and {len(lessons) - _LESSONS} more", class_="model"))
    return told


def _actions(name: str, allowed: Any) -> Html:
    wanted = list(_ACTIONS) if allowed is None else allowed
    path = f"/admin/accounts/{quote(name, safe='', errors='replace')}"
    return posting(
        [
            button(
                text,
                f"{path}/{action}",
                name,
                hidden=action not in wanted,
                data_action=action,
                title=_HINTS[action],
            )
            for action, text in _ACTIONS.items()
        ]
    )
