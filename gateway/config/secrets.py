"""What of the configuration is never shown, and what is shown in its place."""

from __future__ import annotations

from typing import Any

MASK = "<hidden>"
SECRET_FIELDS = frozenset(
    [
        *("key", "key_sha256", "token", "headers", "proxy"),
        *("client_secret", "refresh_token"),
    ]
)


def masked(name: str, value: Any) -> Any:
    """The value of a field, or only its shape when it is a secret."""
    if name not in SECRET_FIELDS or value is None:
        return value
    if isinstance(value, dict):
        return dict.fromkeys(value, MASK)
    return without_credentials(value) if name == "proxy" else MASK


def mask(name: str, value: Any) -> str:
    """The same as text, for a repr."""
    shown = masked(name, value)
    if shown is value:
        return repr(value)
    if isinstance(shown, dict):
        return "{" + ", ".join(f"{key!r}: {MASK}" for key in shown) + "}"
    return str(shown)


def without_credentials(url: str) -> str:
    """A URL whose user name and password are masked, however badly it is written."""
    userinfo, at, place = url.rpartition("@")
    scheme, slashes, _ = userinfo.partition("://")
    return f"{scheme}{slashes}{MASK}@{place}" if at and slashes else (MASK if at else url)
