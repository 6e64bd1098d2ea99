"""The picture of a conversation's chain, beside the same in words."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.admin.page import formatting
from gateway.admin.page.chain import Row, rows, width
from gateway.admin.page.layout import account_mark, colour, numeric, since, table
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.source import Json

#: Responses of a picture; the newest are shown.
_MOST = 300
#: Columns that are drawn; forks beyond them meet in the last.
_WIDEST = 40
_STEP = 14
_WORDS = {"chained": "chained to", "replayed": "replayed after", "follows": "follows"}
_HEIGHT = 28
_MIDDLE = _HEIGHT // 2


def chain_table(nodes: Sequence[Json], names: Sequence[str], now: float, wanted: str) -> Html:
    """A row for each response; the oldest is the first.

    :param names: of the accounts, in the order that gives them their colours.
    :param wanted: the response that was asked for.
    """
    shown = rows(nodes[-_MOST:])
    columns = min(width(shown), _WIDEST)
    forks = sum(max(0, row.children - 1) for row in shown)
    roots = sum(1 for row in shown if not row.above)
    left_out = len(nodes) - len(shown)
    summary = (
        f"{_count(len(shown), 'response')}, {_count(roots, 'root')}, {_count(forks, 'fork')}"
        + (f"; {left_out} older ones are not shown" if left_out else "")
        + ". Solid: chained. Dashed: replayed. Dotted: not known."
    )
    heads = [
        tag("th", "Chain", scope="col"),
        "Response",
        "Account",
        "Continues",
        "Ended",
        "Model",
        numeric("Items"),
        numeric("Size"),
        "When",
    ]
    body = [_row(row, columns, names, now, wanted) for row in shown]
    return joined(
        tag("p", summary, class_="muted"), table("The chain of responses", heads, body, "chain")
    )


def _row(row: Row, columns: int, names: Sequence[str], now: float, wanted: str) -> Html:
    node = row.node
    name, parent = str(node["id"]), node.get("parent")
    continues = (
        "begins"
        if parent is None
        else f"{_WORDS[_route(node)]} {formatting.shortened(str(parent), 15)}"
    )
    if row.children > 1:
        continues += f" · forks in {row.children}"
    return tag(
        "tr",
        tag("td", _picture(row, columns, names), class_="graph"),
        tag("th", tag("code", formatting.shortened(name), title=name), scope="row"),
        tag("td", account_mark(node.get("account"), names)),
        tag("td", continues),
        tag("td", node.get("status")),
        tag("td", node.get("model")),
        tag("td", formatting.number(node.get("items")), class_="n"),
        tag("td", formatting.size(node.get("bytes")), class_="n"),
        tag("td", since(node.get("created_at"), now)),
        class_="wanted" if name == wanted else None,
        aria_current="true" if name == wanted else None,
    )


def _picture(row: Row, columns: int, names: Sequence[str]) -> Html:
    """One row's part of the picture; parts join where rows meet."""
    middle = _x(row.column)
    lines = [_line(f"M{_x(column)} 0V{_HEIGHT}", to, names) for column, to in row.passing.items()]
    if row.above:
        lines.append(_line(f"M{middle} 0V{_MIDDLE}", row.node, names))
    for column, to in row.forks:
        x = _x(column)
        curve = f"M{middle} {_MIDDLE}C{middle} {_HEIGHT} {x} {_MIDDLE} {x} {_HEIGHT}"
        lines.append(_line(f"M{middle} {_MIDDLE}V{_HEIGHT}" if x == middle else curve, to, names))
    mark = colour(row.node.get("account"), names)
    lines.append(tag("circle", class_=f"node {mark}", cx=middle, cy=_MIDDLE, r="4.5"))
    wide = columns * _STEP + 4
    return tag(
        "svg",
        lines,
        viewBox=f"0 0 {wide} {_HEIGHT}",
        width=wide,
        height=_HEIGHT,
        aria_hidden="true",
    )


def _line(path: str, to: Json, names: Sequence[str]) -> Html:
    """Part of the edge that leads to a response."""
    mark = colour(to.get("account"), names)
    return tag("path", class_=f"edge {_route(to)} {mark}", d=path)


def _route(node: Json) -> str:
    return {"chained": "chained", "replayed": "replayed"}.get(str(node.get("route")), "follows")


def _x(column: int) -> int:
    return min(column, _WIDEST - 1) * _STEP + 9


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
