"""The routing table of HTTP requests, and the API's path prefixes (protocol.md §2.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.protocol.errors import ApiError

#: Path prefixes of the API: for platform clients, and for Codex with a ChatGPT login.
PREFIXES = ("/v1", "/backend-api/codex")

H = TypeVar("H")

_Parts = Sequence[str]


class NoRoute(Exception):
    """Nothing serves a request.

    :ivar allowed: the methods that its path has, sorted; empty for an unknown path.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        super().__init__(*allowed)
        self.allowed = allowed


@dataclass(frozen=True)
class Route(Generic[H]):
    """A handler, and the parameters from the path.

    :ivar parameters: the part of the path for each name in braces.
    """

    handler: H
    parameters: dict[str, str]


class RouteTable(Generic[H]):
    """Maps paths and methods to handlers.

    :param table: the handlers of each path template, by method.  ``/responses/{response_id}``:
        a name in braces stands for one part of the path that is not empty; where several
        templates fit, the first one that has the method serves the request.  HEAD is served as
        GET.
    """

    def __init__(self, table: Mapping[str, Mapping[str, H]]) -> None:
        self._by_length: dict[int, list[tuple[_Parts, Mapping[str, H]]]] = {}
        for template, methods in table.items():
            parts = template[1:].split("/")
            self._by_length.setdefault(len(parts), []).append((parts, methods))

    def find(self, method: str, parts: _Parts) -> Route[H]:
        """The route of a request.

        :param parts: the parts of its path between the slashes.
        :raises NoRoute: for an unknown path, or a method that it does not have.
        """
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
        if "GET" in allowed:
            allowed.add("HEAD")
        raise NoRoute(sorted(allowed))


def _match(template: _Parts, parts: _Parts) -> dict[str, str] | None:
    parameters: dict[str, str] = {}
    for wanted, part in zip(template, parts, strict=True):
        if wanted.startswith("{") and part:
            parameters[wanted[1:-1]] = part
        elif wanted != part:
            return None
    return parameters


# --- the clients' API ----------------------------------------------------------------------


def parts_of(path: str) -> tuple[str, ...]:
    """The non-empty parts of a path.

    Clients that join a base URL and a path may write a slash twice, or one at the end.
    """
    return tuple(part for part in path.split("/") if part)


def nothing_served(path: str) -> ApiError:
    """404 for an unknown path."""
    return ApiError(
        404,
        "invalid_request_error",
        f"Nothing is served at {path[:200]}; the API is under {' and '.join(PREFIXES)}.",
        "unknown_url",
    )


def wrong_method(method: str, path: str, allowed: Sequence[str]) -> ApiError:
    """405, with ``allow``."""
    names = ", ".join(allowed)
    return ApiError(
        405,
        "invalid_request_error",
        f"{path[:200]} is not for {method[:20]}; use {names}.",
        "method_not_allowed",
        headers={"allow": names},
    )
