"""What goes on now, each figure with its last 15 minutes."""

from __future__ import annotations

from typing import Any, NamedTuple

from gateway.admin.page import charts
from gateway.admin.page.layout import live
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.source import Json


class Tile(NamedTuple):
    """A figure.

    :ivar path: where it stands in ``now``; its line is found under the same name.
    :ivar beside: a smaller figure next to it: a path, its form and what it is.
    """

    title: str
    path: str
    form: str = "number"
    beside: tuple[str, str, str] | None = None


_TILES = (
    Tile("Connections", "connections", beside=("websockets", "number", "WebSockets")),
    Tile("Turns in flight", "turns_in_flight"),
    Tile("Turns queued", "turns_queued", beside=("turns_waiting", "number", "for an account")),
    Tile("Turns a minute", "turns_per_minute"),
    Tile("Tokens a minute", "tokens_per_minute"),
    Tile(
        "Errors a minute", "errors_per_minute", beside=("refused_per_minute", "number", "refused")
    ),
    Tile(
        "Added to first token, p99",
        "added_first_token_ms.p99",
        "ms",
        ("added_first_token_ms.p50", "ms", "p50"),
    ),
    Tile(
        "Upstream’s first token, p99",
        "upstream_first_token_ms.p99",
        "ms",
        ("upstream_first_token_ms.p50", "ms", "p50"),
    ),
    Tile("Lanes", "lanes"),
    Tile("Input from caches", "cached_share", "share"),
)


def now_tiles(status: Json) -> Html:
    """All of them."""
    return joined(
        tag("div", [_tile(each, status) for each in _TILES], class_="tiles"),
        tag("p", "Lines: the last 15 minutes, from zero to their peak.", class_="muted note"),
    )


def _tile(tile: Tile, status: Json) -> Html:
    now = status.get("now") or status
    series = _series(status, tile.path)
    highest = charts.peak(series)
    beside = None
    if tile.beside is not None:
        path, form, what = tile.beside
        beside = tag("span", live(f"now.{path}", form, _at(now, path)), f" {what}", class_="muted")
    return tag(
        "div",
        tag("h3", tile.title),
        tag(
            "p",
            tag("span", live(f"now.{tile.path}", tile.form, _at(now, tile.path)), class_="value"),
            beside,
            tag("span", "peak ", live("", tile.form, highest), class_="peak"),
        ),
        charts.line(series, f"{tile.title}, the last 15 minutes", tile.path),
        class_="tile",
    )


def _at(values: Json, path: str) -> Any:
    found: Any = values
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _series(status: Json, path: str) -> list[float | None]:
    """A line's points, under any of the names it may have."""
    series = (status.get("history") or {}).get("series") or {}
    for name in (path, path.replace(".", "_"), path.partition(".")[0]):
        if name in series:
            return list(series[name])
    return []
