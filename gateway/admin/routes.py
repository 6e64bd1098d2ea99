"""A route of the admin side: who may use it, what its handler gets, and what that may return."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from gateway.admin.auth import Visitor
from gateway.admin.errors import bad_request
from gateway.admin.requests import AdminRequest

#: What a handler returns that answers later by itself.
ANSWERED_LATER: Final = object()


class AdminEntry(enum.Enum):
    """Who may use a route."""

    ANYBODY = "anybody"
    READER = "reader"
    OPERATOR = "operator"


class AdminQuery(NamedTuple):
    """What a handler gets.

    :ivar names: the parts of the path that its template leaves open.
    :ivar by_form: whether a form was posted, by a browser that shows the answer.
    """

    request: AdminRequest
    visitor: Visitor
    names: Mapping[str, str]
    query: Mapping[str, str]
    body: Mapping[str, Any]
    by_form: bool = False

    def text(self, name: str) -> str | None:
        """A value of the query; None when it is missing or empty."""
        return self.query.get(name) or None

    def number(self, name: str, default: int, most: int) -> int:
        """A number of the query.

        :raises AdminError: 400 when it is none.
        """
        value = self.query.get(name)
        if not value:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 8 and int(value) > 0):
            raise bad_request(f"{name}: expected a number above 0")
        return min(int(value), most)


class AdminRoute(NamedTuple):
    """One method of one path.

    :ivar template: a path whose parts in braces are open.
    :ivar handle: answers with an ``AdminResponse``, with what becomes JSON, with
        :data:`ANSWERED_LATER`, or with a ``Deferred`` of one of the first two.
    """

    method: str
    template: str
    entry: AdminEntry
    handle: Callable[[AdminQuery], Any]
