"""The page's templates (``gateway/admin/templates``), compiled once when the gateway starts.

Everything that a template shows is text and is escaped, unless a template made it.  A name that
is not given to a template is an error and never an empty text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.ext import Extension
from markupsafe import Markup

from gateway.admin.page import charts, formatting
from gateway.admin.page.static_files import address
from gateway.admin.views.accounts import used_share

# Control characters end a parse; marks of direction make a name look like another.
_UNSEEN_RANGES = (
    (0, 8),
    (11, 11),
    (14, 31),
    (127, 159),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2066, 0x2069),
    (0xD800, 0xDFFF),
    (0xFEFF, 0xFEFF),
)
_UNSEEN = {code: "\ufffd" for first, last in _UNSEEN_RANGES for code in range(first, last + 1)}

#: An expression of a template, or a line break with the indentation around it.
_BREAKS = re.compile(r"(\{[{%#].*?[}%#]\})|\s*?(\n)\s*", re.DOTALL)


class _OneLine(Extension):
    """Joins a template's lines, so that it can be indented and its HTML is not.

    A break beside a tag or an expression is nothing; elsewhere it is one space.  In its place
    stands a comment, which keeps the numbers of the lines for tracebacks.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        def joined(found: re.Match[str]) -> str:
            if found[1]:
                return found[1]
            before, after = source[: found.start()][-1:], source[found.end() :][:1]
            glued = before in ("", ">", "}") or after in ("", "<", "{")
            return ("" if glued else " ") + "{#" + "\n" * found[0].count("\n") + "#}"

        return _BREAKS.sub(joined, source)


def _text(value: Any) -> Any:
    """A value as it is shown: None is nothing, and what cannot be seen is marked."""
    if value is None:
        return ""
    if type(value) is str and not value.isprintable():
        return value.translate(_UNSEEN)
    return value


def _by_state(accounts: Sequence[Any]) -> list[tuple[str, list[tuple[int, str]]]]:
    """The rows and names of the accounts in each state, the most frequent state first."""
    states: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row, account in enumerate(accounts):
        states[account["state"]].append((row, account["name"]))
    return sorted(states.items(), key=lambda each: -len(each[1]))


def _at(values: Any, path: str) -> Any:
    """The value at a dotted path."""
    for name in path.split("."):
        values = values[name]
    return values


def _segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="", errors="replace")


def _host(url: str) -> str:
    return urlsplit(url).netloc


_environment = Environment(
    loader=PackageLoader("gateway.admin"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_text,
    extensions=[_OneLine],
    auto_reload=False,
)
_environment.filters |= {
    **formatting.FORMS,
    "written": formatting.written,
    "ago": formatting.ago,
    "ahead": formatting.ahead,
    "shorten": formatting.shorten,
    "counted": formatting.counted,
    "fixed": formatting.fixed,
    "filled": formatting.filled,
    "of_limit": formatting.of_limit,
    "continuity": formatting.continuity,
    "setting": formatting.setting,
    "sparkline": charts.Sparkline,
    "phases": charts.phases,
    "route": charts.route,
    "used_share": used_share,
    "by_state": _by_state,
    "at": _at,
    "segment": _segment,
    "host": _host,
}
_environment.globals["static"] = address
_templates = {name: _environment.get_template(name) for name in _environment.list_templates()}


def render(template: str, **values: Any) -> Markup:
    """The HTML of a template.

    :param template: its name without ``.html``.
    """
    return Markup(_templates[f"{template}.html"].render(values))
