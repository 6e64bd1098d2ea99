"""One dense row for each account, in the manner of HAProxy's statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from . import wording
from .layout import (
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
from .markup import Html, joined, tag
from .source import Json, Viewer

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
#: States that end only when somebody does something.
_ACT = frozenset(("unauthorized",))


def accounts_table(accounts: Sequence[Json], viewer: Viewer, now: float) -> Html:
    """The table, and a line that counts the states."""
    names = [account["name"] for account in accounts]
    states = Counter(str(account.get("state", "ready")) for account in accounts)
    counts = " · ".join(f"{count} {state}" for state, count in states.most_common())
    columns: list[Any] = [
        "Account",
        "State",
        "Why",
        "Since",
        "Until",
        "Quota windows",
        numeric("In flight", "turns now, and how many are allowed"),
        numeric("Pinned", "conversations that stay here"),
        numeric("First token p50", "upstream’s time to first token"),
        numeric("p99"),
        numeric("Turns"),
        numeric("Failed"),
        "Errors",
        numeric("Cached", "part of the input that came from the upstream’s cache"),
        "Continues by",
    ]
    if viewer.may_act:
        columns.append(tag("th", "Actions", scope="col", class_="actions"))
    rows = [_row(account, names, viewer, now) for account in accounts]
    return joined(
        tag("p", counts or "no accounts", class_="muted"),
        tag("p", _sentence(viewer.why_not), class_="muted") if viewer.why_not else None,
        table("Accounts", columns, rows, "accounts"),
    )


def _row(account: Json, names: Sequence[str], viewer: Viewer, now: float) -> Html:
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
        tag("td", dot(state), word("state", state), class_="state"),
        tag("td", word("why", account.get("why")), class_="why"),
        tag("td", since(account.get("since"), now, "since")),
        tag("td", countdown(account.get("until"), now, "until")),
        tag("td", _windows(account.get("windows") or (), now)),
        tag(
            "td",
            live("in_flight", "number", in_flight),
            tag("span", f" / {limit}", class_="muted") if limit else None,
            class_="n",
        ),
        _number("pinned", "number", account),
        tag("td", live("first_token_ms.p50", "ms", first.get("p50")), class_="n"),
        tag("td", live("first_token_ms.p99", "ms", first.get("p99")), class_="n"),
        _number("turns", "number", account),
        _number("failures", "number", account),
        tag("td", _errors(account)),
        _number("cached_share", "share", account),
        tag("td", _continuity(account.get("continuity"))),
    ]
    if viewer.may_act:
        cells.append(tag("td", _actions(name, account.get("actions")), class_="actions"))
    return tag(
        "tr", cells, data_account=name, data_state=state, class_="act" if _act(state) else None
    )


def _sentence(why_not: str) -> str:
    return f"Only to look at: {why_not}."


def _act(state: str) -> bool:
    return state in _ACT


def _number(path: str, form: str, account: Json) -> Html:
    return tag("td", live(path, form, account.get(path)), class_="n")


def _windows(windows: Sequence[Json], now: float) -> Any:
    return [_window(each, now) for each in windows] or wording.NONE


def _window(window: Json, now: float) -> Html:
    """One quota: how much of it is used, and when it begins anew."""
    name, limit, remaining = window.get("name"), window.get("limit"), window.get("remaining")
    part = None if window.get("used_percent") is None else window["used_percent"] / 100
    if part is None and limit and remaining is not None:
        part = of_limit(limit - remaining, limit)
    used = wording.share(part) if part is not None else wording.number(remaining) + " left"
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
    """Failures by class, and the models that rest."""
    counted = account.get("errors") or {}
    parts: list[Any] = [
        tag("span", f"{kind} ", tag("b", wording.number(count)), class_="count")
        for kind, count in counted.items()
        if count
    ]
    for model in account.get("models") or ():
        if isinstance(model, dict) and model.get("model"):
            why = f"{model['model']} {model.get('state', 'cooling')}"
            parts.append(tag("span", why, class_="count", title=model.get("why")))
    return parts or wording.NONE


def _continuity(continuity: Any) -> str:
    """Chain or replay: the setting, and what was learned."""
    if not isinstance(continuity, dict):
        return wording.NONE if continuity is None else str(continuity)
    learned = continuity.get("learned")
    if isinstance(learned, dict):
        learned = ", ".join(f"{name} {value}" for name, value in learned.items())
    setting = str(continuity.get("setting"))
    return f"{setting}: {learned}" if learned else setting


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
