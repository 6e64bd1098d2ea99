"""Where the pages for browsers come in; without them there is a plain form to log in with."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple, Protocol

from .access import Visitor


class Static(NamedTuple):
    """A file that pages load."""

    content_type: str
    content: bytes


class Pages(Protocol):
    """Makes HTML of what the API shows."""

    def document(
        self, view: str, shown: Mapping[str, Any], query: Mapping[str, str], visitor: Visitor
    ) -> bytes | None:
        """A whole HTML document, UTF-8; None when there is none and JSON has to do.

        :param view: ``status``, ``accounts``, ``conversations``, ``why``, ``turns``, ``keys``,
            ``memory``, ``config``, ``audit``, ``login`` or ``error``.
        :param shown: what the API shows there; of ``login`` and ``error`` ``{status, error}``,
            the sentence being None where nothing went wrong.
        :param query: of the request, names once each.
        """

    def static(self, name: str) -> Static | None:
        """The file of that name, one of a fixed set; never one of the file system by path."""


class PlainPages:
    """No pages but the form; see :class:`Pages`."""

    def document(
        self, view: str, shown: Mapping[str, Any], query: Mapping[str, str], visitor: Visitor
    ) -> bytes | None:
        """See ``Pages``."""
        if view != "login":
            return None
        problem = f'<p role="alert">{escape(shown["error"])}</p>' if shown.get("error") else ""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width"><title>Log in</title></head>'
            f"<body><main><h1>responses-gateway</h1>{problem}"
            '<form method="post" action="/login"><label>Admin token'
            ' <input type="password" name="token" autocomplete="current-password" required>'
            '</label> <button type="submit">Log in</button></form></main></body></html>'
        ).encode()

    def static(self, name: str) -> Static | None:
        """See ``Pages``."""
        return None
