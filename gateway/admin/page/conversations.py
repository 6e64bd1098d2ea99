"""Conversations: search, what can be done with each, and why one is where it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from gateway.admin.page import formatting
from gateway.admin.page.chain_picture import chain_table
from gateway.admin.page.layout import account_mark, button, posting, since, table
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.source import Json, PageQuery, Viewer


def search_form(asked: PageQuery) -> Html:
    """Search by anything that names a conversation."""
    return tag(
        "form",
        tag("label", "Response, thread, session, key or account", for_="q"),
        tag("input", id="q", name="q", type="search", value=asked.q, autocomplete="off"),
        tag("button", "Search"),
        method="get",
        action="/status#conversations",
        role="search",
        class_="filters",
    )


def conversations_table(
    conversations: Sequence[Json],
    names: Sequence[str],
    asked: PageQuery,
    viewer: Viewer,
    now: float,
) -> Html:
    """What was found, or what was used last."""
    if not conversations:
        return tag("p", "No conversation is known by that name." if asked.q else "None yet.")
    columns: list[Any] = [
        "Conversation",
        "Stuck by",
        "Key",
        "Account",
        "Stand-in",
        "Why",
        "Since",
        "Last used",
    ]
    if viewer.may_act:
        columns.append("Actions")
    rows = [_row(each, names, asked, viewer, now) for each in conversations]
    return table("Conversations", columns, rows, "conversations")


def explanation(
    asked: PageQuery, found: Json | None, names: Sequence[str], now: float
) -> Html | None:
    """Why a conversation is where it is, and its chain; None when nobody asked."""
    if not asked.why:
        return None
    heading = tag("h3", "Why here: ", tag("code", asked.why), id="why-heading")
    if found is None:
        body = joined(tag("p", "Nothing is known of it any more."))
    else:
        nodes = (found.get("chain") or {}).get("nodes") or []
        body = joined(
            tag("ol", [tag("li", each) for each in found.get("explanation") or ()]),
            chain_table(nodes, names, now, asked.why) if nodes else None,
        )
    close = tag("a", "Close", href=asked.address("/status", **_search(asked)) + "#conversations")
    return tag(
        "section",
        heading,
        body,
        tag("p", close),
        id="why",
        class_="why",
        aria_labelledby="why-heading",
    )


def _row(each: Json, names: Sequence[str], asked: PageQuery, viewer: Viewer, now: float) -> Html:
    name = str(each["id"])
    reason = asked.address("/status", why=name, **_search(asked)) + "#why"
    leaves = each.get("leaves")
    cells = [
        tag("th", tag("code", formatting.shortened(name), title=name), scope="row"),
        tag("td", each.get("rule")),
        tag("td", each.get("tenant")),
        tag(
            "td",
            account_mark(each.get("account"), names),
            tag("span", " leaves at its next turn", class_="muted") if leaves else None,
        ),
        tag("td", account_mark(each.get("stand_in"), names)),
        tag(
            "td",
            tag("a", "why here", href=reason, aria_label=f"why here: {name}"),
            " ",
            tag("span", each.get("stand_in_why") or each.get("why"), class_="muted"),
            class_="why",
        ),
        tag("td", since(each.get("bound_at"), now)),
        tag("td", since(each.get("used_at"), now)),
    ]
    if viewer.may_act:
        path = f"/admin/conversations/{quote(name, safe='', errors='replace')}"
        short = formatting.shortened(name)
        cells.append(
            tag(
                "td",
                posting(
                    button("Unpin", f"{path}/unpin", short, title="choose anew at the next turn"),
                    button(
                        "Move", f"{path}/move", short, title="leave the account at the next turn"
                    ),
                    button("Drop", f"{path}/drop", short, title="forget it now", class_="danger"),
                ),
                class_="actions",
            )
        )
    return tag("tr", cells, data_key=name)


def _search(asked: PageQuery) -> dict[str, str]:
    return {"q": asked.q} if asked.q else {}
