"""What the page's sections are built from: the document around them, tables, cells, buttons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.admin.page import formatting
from gateway.admin.page.rendering import Html, joined, tag
from gateway.admin.page.static_files import address

#: How figures are written, by the names that cells and the script use.
FORMS = {
    "number": formatting.number,
    "ms": formatting.milliseconds,
    "share": formatting.share,
    "size": formatting.size,
    "duration": formatting.duration,
}
#: As many colours tell accounts apart.
COLOURS = 8


def document(title: str, *body: Any, live: bool) -> bytes:
    """A whole page.

    :param live: whether it follows what goes on.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href=address("icon.svg")),
        tag("link", rel="stylesheet", href=address("page.css")),
        tag("script", src=address("theme.js")),
        tag("script", src=address("page.js"), defer=True) if live else None,
    )
    page = tag("html", head, tag("body", *body), lang="en")
    return b"<!DOCTYPE html>\n" + page.encode("utf-8", "replace")


def section(name: str, title: str, *children: Any, aside: Any = None) -> Html:
    """A part of the page, with a heading one can go to."""
    heading = tag("h2", title, id=f"{name}-heading")
    return tag(
        "section",
        tag("div", heading, aside, class_="heading"),
        *children,
        id=name,
        aria_labelledby=f"{name}-heading",
    )


def table(label: str, columns: Sequence[Any], rows: Iterable[Any], class_: str = "") -> Html:
    """A table in a box of its own, which scrolls and can be scrolled by keyboard.

    :param columns: header cells, or texts to make them of.
    """
    heads = [each if isinstance(each, Html) else tag("th", each, scope="col") for each in columns]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", label, class_="unseen"),
            tag("thead", tag("tr", heads)),
            tag("tbody", *rows),
            class_=class_ or None,
        ),
        class_="scroll",
        role="region",
        aria_label=f"{label}: a table that scrolls",
        tabindex="0",
    )


def numeric(title: str, hint: str | None = None) -> Html:
    """The head of a column of figures."""
    return tag("th", title, scope="col", class_="n", title=hint)


def live(path: str, form: str, value: Any, class_: str | None = None) -> Html:
    """A figure that the script keeps up to date.

    :param path: where the value stands in the status, or in its row of it.
    :param form: how it is written.
    """
    return tag("span", FORMS[form](value), data_v=path, data_as=form, class_=class_)


def word(path: str, value: Any, class_: str | None = None) -> Html:
    """A text that the script keeps up to date."""
    return tag(
        "span",
        formatting.NONE if value is None else value,
        data_v=path,
        data_as="text",
        class_=class_,
    )


def since(at: float | None, now: float, path: str | None = None) -> Html:
    """How long ago something was; the script counts on."""
    return tag("span", formatting.ago(at, now), data_ago=_whole(at), data_at=path)


def countdown(at: float | None, now: float, path: str | None = None) -> Html:
    """How long until something is; the script counts down."""
    return tag("span", formatting.ahead(at, now), data_ahead=_whole(at), data_at=path)


def bar(part: float | None, label: str) -> Html | None:
    """How full something is.

    :param part: of one.
    """
    if part is None:
        return None
    width = round(max(0.0, min(part, 1.0)) * 100, 1)
    level = "high" if part >= 0.9 else None
    return tag(
        "svg",
        tag("rect", class_="room", width="100", height="6"),
        tag("rect", class_="used", width=width, height="6"),
        class_=f"bar {level}" if level else "bar",
        viewBox="0 0 100 6",
        preserveAspectRatio="none",
        role="img",
        aria_label=label,
    )


def of_limit(used: float | None, limit: float | None) -> float | None:
    """What part of a limit is used."""
    return used / limit if used is not None and limit else None


def button(text: str, path: str, target: str = "", **attributes: Any) -> Html:
    """A button that acts; it stands in a form that posts.

    :param target: what it acts on, for those who do not see the row.
    """
    label = f"{text} {target}" if target else None
    return tag("button", text, formaction=path, aria_label=label, **attributes)


def posting(*children: Any, path: str = "/admin", class_: str = "acts") -> Html:
    """A form for buttons; the script sends it without leaving the page."""
    return tag("form", *children, method="post", action=path, class_=class_)


def dot(state: str) -> Html:
    """A mark in the colour of a state, beside its name."""
    return tag("span", class_=f"dot {state}", aria_hidden="true")


def colour(account: str | None, names: Sequence[str]) -> str:
    """The class that gives an account its colour."""
    if account is None or account not in names:
        return "c-none"
    return f"c{names.index(account) % COLOURS}"


def account_mark(account: str | None, names: Sequence[str]) -> Html:
    """An account's name beside its colour."""
    if account is None:
        return joined(formatting.NONE)
    return tag(
        "span",
        tag("span", class_=f"chip {colour(account, names)}", aria_hidden="true"),
        account,
        class_="account",
    )


def _whole(at: float | None) -> str | None:
    return None if at is None else f"{at:.0f}"
