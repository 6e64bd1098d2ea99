"""Where clients find the API (protocol.md §2.1)."""

from __future__ import annotations

from gateway.protocol.errors import ApiError

#: Where platform clients, and Codex with a ChatGPT login, look for it.
PREFIXES = ("/v1", "/backend-api/codex")


def parts_of(path: str) -> tuple[str, ...]:
    """What stands between the slashes.

    Clients that join a base URL and a path write a slash twice, or one at the end; no part of
    the API has an empty name.
    """
    return tuple(part for part in path.split("/") if part)


def nothing_served(path: str) -> ApiError:
    """404 for any other path."""
    return ApiError(
        404,
        "invalid_request_error",
        f"Nothing is served at {path[:200]}; the API is under {' and '.join(PREFIXES)}.",
        "unknown_url",
    )
