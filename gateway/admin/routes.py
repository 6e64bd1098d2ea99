"""The table of routes: which path and method leads where, and who may go there."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from gateway.admin.requests import AdminQuery


class AdminEntry(enum.Enum):
    """Who may come in."""

    ANYBODY = "anybody"
    READER = "reader"
    OPERATOR = "operator"


class AdminRoute(NamedTuple):
    """One method of one path.

    :ivar template: a path whose segments in braces are open.
    :ivar handle: answers with a an ``AdminResponse``, with what becomes JSON,
        with ``NOT_DONE_YET``, or later with one of the first two.
    """

    method: str
    template: str
    entry: AdminEntry
    handle: Callable[[AdminQuery], Any]


class RouteTable:
    """Finds routes; a HEAD goes where a GET goes."""

    def __init__(self, routes: Iterable[AdminRoute]) -> None:
        self.routes = tuple(routes)
        self._split = [(route, route.template[1:].split("/")) for route in self.routes]

    def find(self, segments: Sequence[str]) -> dict[str, tuple[AdminRoute, dict[str, str]]]:
        """By method, the routes of a path and what stands in the open segments."""
        found = {}
        for route, template in self._split:
            names = _match(template, segments)
            if names is not None and route.method not in found:
                found[route.method] = route, names
        if "GET" in found:
            found["HEAD"] = found["GET"]
        return found


def _match(template: Sequence[str], segments: Sequence[str]) -> dict[str, str] | None:
    if len(template) != len(segments):
        return None
    names = {}
    for wanted, given in zip(template, segments, strict=True):
        if wanted.startswith("{"):
            if not given:
                return None
            names[wanted[1:-1]] = given
        elif wanted != given:
            return None
    return names
