"""The last turns, each with a bar of where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.admin.page import formatting
from gateway.admin.page.layout import account_mark, numeric, since, table
from gateway.admin.page.phases import PHASES, phases
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.source import Json, PageQuery

_STATUSES = ("completed", "incomplete", "failed", "cancelled")
_BAR = 160


def turns_filters(
    asked: PageQuery, accounts: Sequence[str], keys: Sequence[str], statuses: Sequence[str]
) -> Html:
    """Filters that work without scripts, and the same turns as JSON."""
    endings = dict.fromkeys([*_STATUSES, *statuses])
    return tag(
        "form",
        _choice("account", "Account", accounts, asked.account),
        _choice("key", "Key", keys, asked.key),
        _choice("status", "Ended", list(endings), asked.status),
        tag("label", "At most", for_="limit"),
        tag(
            "input",
            id="limit",
            name="limit",
            type="number",
            min="1",
            max="500",
            value=asked.limit,
            class_="short",
        ),
        tag("button", "Filter"),
        tag("a", "as JSON", href=asked.address("/status/turns")),
        method="get",
        action="/status#turns",
        class_="filters",
    )


def turns_table(turns: Sequence[Json], names: Sequence[str], asked: PageQuery, now: float) -> Html:
    """The newest turn is the first row."""
    legend = tag(
        "p",
        [
            tag("span", tag("span", class_=f"chip {_class(each)}", aria_hidden="true"), each)
            for each in PHASES
        ],
        class_="legend",
    )
    if not turns:
        none = "No turn fits." if asked.filters() else "No turn has ended yet."
        return joined(legend, tag("p", none))
    columns = [
        "Turn",
        "Ended",
        "Error",
        "Key",
        "Account",
        "Chosen by",
        "Route",
        "Model",
        "Time",
        numeric("Total"),
        numeric("First output"),
        numeric("Tokens in", "input tokens"),
        numeric("cached", "input tokens from the upstream’s cache"),
        numeric("out", "output tokens"),
        numeric("Request", "what the client sent"),
        numeric("Relayed", "what the client was sent"),
        "Response",
    ]
    rows = [_row(each, names, asked, now) for each in turns]
    return joined(legend, table("The last turns", columns, rows, "turns"))


def _row(turn: Json, names: Sequence[str], asked: PageQuery, now: float) -> Html:
    attempts = turn.get("attempts") or []
    last = attempts[-1] if attempts else {}
    response = turn.get("response_id")
    status = str(turn.get("status"))
    ended = turn.get("ended_at")
    tries = f" · {len(attempts)} tries" if len(attempts) > 1 else None
    return tag(
        "tr",
        tag(
            "th",
            _explained(
                tag("code", formatting.shortened(str(turn.get("turn")), 12)), response, asked
            ),
            tag("span", since(ended, now), class_="under") if ended is not None else None,
            scope="row",
        ),
        tag("td", status, class_=f"status {_safe(status)}"),
        tag("td", turn.get("error_code") or formatting.NONE),
        tag("td", turn.get("key")),
        tag("td", account_mark(turn.get("account") or last.get("account"), names)),
        tag("td", last.get("rule") or formatting.NONE, tries, title=_tries(attempts)),
        tag("td", turn.get("route") or formatting.NONE, title=turn.get("reason")),
        tag("td", turn.get("model") or formatting.NONE),
        tag("td", _bar(turn), class_="phases"),
        _figure(formatting.milliseconds(turn.get("duration_ms"))),
        _figure(formatting.milliseconds(turn.get("first_output_ms"))),
        _figure(formatting.number(turn.get("input_tokens"))),
        _figure(formatting.number(turn.get("cached_tokens"))),
        _figure(formatting.number(turn.get("output_tokens"))),
        _figure(formatting.size(turn.get("request_bytes"))),
        _figure(formatting.size(turn.get("relayed_bytes"))),
        tag("td", _response(response, asked)),
        data_key=turn.get("turn"),
    )


def _figure(text: str) -> Html:
    return tag("td", text, class_="n")


def _response(response: Any, asked: PageQuery) -> Any:
    if response is None:
        return formatting.NONE
    return _explained(tag("code", formatting.shortened(str(response))), response, asked)


def _explained(name: Html, response: Any, asked: PageQuery) -> Html:
    """A link from a name to why the response's conversation is where it is."""
    if response is None:
        return name
    return tag("a", name, href=asked.address("/status", why=str(response)) + "#why")


def _tries(attempts: Sequence[Json]) -> str | None:
    """What became of each attempt, in a line."""
    if len(attempts) < 2:
        return None
    return "; ".join(f"{each.get('account')}: {each.get('outcome')}" for each in attempts)


def _bar(turn: Json) -> Any:
    """The phases, as parts of the whole turn."""
    parts = phases(turn)
    if not parts:
        return formatting.NONE
    total = max(parts[-1].end, 1e-9)
    words = ", ".join(
        f"{each.name} {formatting.milliseconds(each.end - each.begin)}" for each in parts
    )
    return tag(
        "svg",
        [
            tag(
                "rect",
                class_=_class(each.name),
                x=round(each.begin / total * _BAR, 1),
                width=round((each.end - each.begin) / total * _BAR, 1),
                height="10",
            )
            for each in parts
        ],
        viewBox=f"0 0 {_BAR} 10",
        preserveAspectRatio="none",
        role="img",
        aria_label=words,
    )


def _choice(name: str, label: str, values: Sequence[str], chosen: str) -> list[Html]:
    options = [tag("option", "any", value="")]
    for value in dict.fromkeys([*values, *([chosen] if chosen else [])]):
        options.append(tag("option", value, value=value, selected=value == chosen))
    return [tag("label", label, for_=name), tag("select", options, id=name, name=name)]


def _class(phase: str) -> str:
    return "p-" + phase.replace(" ", "-")


def _safe(status: str) -> str:
    return status if status in _STATUSES else "other"
