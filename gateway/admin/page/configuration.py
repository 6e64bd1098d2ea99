"""The configuration in force, the log level, and the drain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from gateway.admin.page import formatting
from gateway.admin.page.layout import button, live, posting, table
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.source import Json, Viewer

_LEVELS = ("debug", "info", "warn", "error")


def settings_tables(configuration: Json) -> Html:
    """Every value with its origin, in groups that open."""
    source = configuration.get("source")
    settings = configuration.get("settings") or ()
    groups = [_group(name, list(members)) for name, members in groupby(settings, key=_group_of)]
    return joined(
        tag("p", "Read from ", tag("code", source), ".") if source else None,
        groups or tag("p", "Nothing is known of it."),
    )


def controls(status: Json, level: str | None, can_reload: bool, viewer: Viewer) -> Html:
    """The log level and the drain; without the right to act, only what they are."""
    in_flight = (status.get("now") or status).get("turns_in_flight")
    connections = (status.get("now") or status).get("connections")
    left = tag(
        "p",
        live("now.connections", "number", connections),
        " connections and ",
        live("now.turns_in_flight", "number", in_flight),
        " turns in flight.",
        class_="left",
    )
    if not viewer.may_act:
        return joined(
            tag("p", "Log level: ", tag("b", level or formatting.NONE), "."),
            left,
        )
    options = [tag("option", each, value=each, selected=each == level) for each in _LEVELS]
    drain = tag(
        "details",
        tag("summary", "Drain the gateway…"),
        tag(
            "p",
            "New connections and new turns are turned away; turns that run may end. "
            "Only a restart ends it.",
        ),
        posting(button("Drain now", "/admin/drain", class_="danger")),
    )
    return tag(
        "div",
        posting(
            tag("label", "Log level", for_="level"),
            tag("select", options, id="level", name="level"),
            button("Set", "/admin/log-level", "the log level"),
            class_="acts filters",
        ),
        posting(button("Reload the configuration", "/admin/reload")) if can_reload else None,
        drain,
        left,
        class_="controls",
    )


def _group_of(setting: Json) -> str:
    """Accounts and keys one by one, other settings by section."""
    path = str(setting.get("path"))
    head, _, _ = path.partition(".")
    return head


def _group(name: str, members: Sequence[Json]) -> Html:
    own = sum(1 for each in members if str(each.get("origin")) != "default")
    values = "1 value" if len(members) == 1 else f"{len(members)} values"
    count = f"{values}, {own} not the default" if own else f"{values}, as by default"
    rows = [
        tag(
            "tr",
            tag("th", tag("code", each.get("path")), scope="row"),
            tag("td", tag("code", _value(each.get("value")))),
            tag("td", each.get("origin")),
            class_="default" if str(each.get("origin")) == "default" else None,
        )
        for each in members
    ]
    given = next((each.get("value") for each in members if each["path"] == f"{name}.name"), None)
    title = [tag("code", name), " ", tag("b", given) if given else None]
    return tag(
        "details",
        tag("summary", title, " ", tag("span", count, class_="muted")),
        table(f"Settings of {name}", ["Setting", "Value", "Origin"], rows, "settings"),
        data_key=name,
    )


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
