"""Where the page for browsers comes in; without it there is a plain form to log in with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Protocol

from twisted.web.resource import Resource

from .access import Visitor


class Pages(Protocol):
    """Makes HTML of what the API shows.

    :ivar static: the files that pages load, mounted at ``/static``; or None.
    """

    static: Resource | None

    def status(self, arguments: Mapping[bytes, Sequence[bytes]], visitor: Visitor) -> bytes | None:
        """The page of ``/status``; None when there is none and JSON has to do.

        :param arguments: a request's ``args``.
        """

    def login(self, wrong: str | None) -> bytes:
        """The form that posts ``token`` to ``/login``.

        :param wrong: why the last try failed.
        """

    def forget(self) -> None:
        """Somebody changed something: what was kept of the page is old."""


class PlainPages:
    """No page but the form; see :class:`Pages`."""

    static: Resource | None = None

    def status(self, arguments: Mapping[bytes, Sequence[bytes]], visitor: Visitor) -> bytes | None:
        """See ``Pages``."""
        return None

    def login(self, wrong: str | None) -> bytes:
        """See ``Pages``."""
        problem = "" if wrong is None else f'<p role="alert">{escape(wrong)}</p>'
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width"><title>Log in</title></head>'
            f"<body><main><h1>responses-gateway</h1>{problem}"
            '<form method="post" action="/login"><label>Admin token'
            ' <input type="password" name="token" autocomplete="current-password" required>'
            '</label> <button type="submit">Log in</button></form></main></body></html>'
        ).encode()

    def forget(self) -> None:
        """See ``Pages``."""
