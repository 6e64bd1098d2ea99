"""Which endpoint a method and a path mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from simulator.refusals import invalid_url, method_not_supported

Endpoint = Literal[
    "create",
    "retrieve",
    "delete",
    "cancel",
    "input_items",
    "compact",
    "input_tokens",
    "models",
    "model",
    "chat",
]

#: Paths under the prefix; `*` is an id. Of two that fit, the first is meant.
_ROUTES: tuple[tuple[str, tuple[str, ...], Endpoint], ...] = (
    ("POST", ("responses",), "create"),
    ("POST", ("responses", "compact"), "compact"),
    ("POST", ("responses", "input_tokens"), "input_tokens"),
    ("GET", ("responses", "*"), "retrieve"),
    ("DELETE", ("responses", "*"), "delete"),
    ("POST", ("responses", "*", "cancel"), "cancel"),
    ("GET", ("responses", "*", "input_items"), "input_items"),
    ("GET", ("models",), "models"),
    ("GET", ("models", "*"), "model"),
    ("POST", ("chat", "completions"), "chat"),
)


@dataclass(frozen=True)
class Target:
    """An endpoint, and the id that the path names (empty: none)."""

    endpoint: Endpoint
    named: str = ""


def find_target(method: str, path: str, prefixes: Sequence[str]) -> Target:
    """What is asked for; Refusal 404 for an unknown path, 405 for a method it does not take."""
    prefix = next((each for each in prefixes if path.startswith(f"{each}/")), None)
    if prefix is None:
        raise invalid_url(method, path)
    parts = tuple(path[len(prefix) + 1 :].split("/"))
    allowed: list[str] = []
    for wanted, route, endpoint in _ROUTES:
        if not _fits(route, parts):
            continue
        if wanted == method:
            named = parts[route.index("*")] if "*" in route else ""
            return Target(endpoint, unquote(named))
        allowed.append(wanted)
    raise method_not_supported(method, path, allowed) if allowed else invalid_url(method, path)


def _fits(route: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    return len(route) == len(parts) and all(
        part and step in ("*", part) for step, part in zip(route, parts, strict=True)
    )
