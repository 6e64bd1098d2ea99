"""Which handler serves a path and a method; the same under both of the API's prefixes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from gateway.protocol.errors import ApiError
from gateway.server.http_request import ClientRequest
from gateway.server.paths import PREFIXES, nothing_served, parts_of

#: Serves one request of a tenant: answers it now or later, or raises an ``ApiError``.
Handler = Callable[[ClientRequest, str], None]

#: The handlers of each path template, by method.  ``/responses/{response_id}``: a name in
#: braces stands for one part of the path and becomes a parameter; where several templates fit,
#: the first one that has the method serves the request.  HEAD is served as GET.
Table = Mapping[str, Mapping[str, Handler]]

_Parts = tuple[str, ...]


class Route(NamedTuple):
    """What a request's path and method lead to."""

    handler: Handler
    parameters: dict[str, str]


class RouteTable:
    """Finds handlers.

    :param table: without prefixes.
    """

    def __init__(self, table: Table) -> None:
        self._by_length: dict[int, list[tuple[_Parts, Mapping[str, Handler]]]] = {}
        for template, methods in table.items():
            for prefix in PREFIXES:
                parts = parts_of(prefix + template)
                self._by_length.setdefault(len(parts), []).append((parts, methods))

    def find(self, method: str, path: str) -> Route:
        """The route of a request.

        :param path: as it was sent, without the query.
        :raises ApiError: 404 for an unknown path, 405 with ``allow`` for a wrong method.
        """
        parts = parts_of(path)
        wanted = "GET" if method == "HEAD" else method
        allowed: set[str] = set()
        for template, methods in self._by_length.get(len(parts), ()):
            parameters = _match(template, parts)
            if parameters is None:
                continue
            handler = methods.get(wanted)
            if handler is not None:
                return Route(handler, parameters)
            allowed.update(methods)
        if not allowed:
            raise nothing_served(path)
        if "GET" in allowed:
            allowed.add("HEAD")
        raise _wrong_method(method, path, sorted(allowed))


def _match(template: _Parts, parts: _Parts) -> dict[str, str] | None:
    parameters: dict[str, str] = {}
    for wanted, part in zip(template, parts, strict=True):
        if wanted.startswith("{"):
            parameters[wanted[1:-1]] = unquote(part)
        elif wanted != part:
            return None
    return parameters


def _wrong_method(method: str, path: str, allowed: Sequence[str]) -> ApiError:
    names = ", ".join(allowed)
    return ApiError(
        405,
        "invalid_request_error",
        f"{path[:200]} is not for {method[:20]}; use {names}.",
        "method_not_allowed",
        headers={"allow": names},
    )
