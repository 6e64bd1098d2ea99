"""A key that never changes, and the functions for all keys: the header and the secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: The header that takes a scheme and a key; every other one takes the bare key.
AUTHORIZATION = "authorization"

#: Shorter keys are placeholders for local servers ("unused"), and are not removed from messages.
_SHORTEST_SECRET = 8


def key_header(key: str, auth_header: str) -> dict[str, str]:
    """The header that presents a key.

    :param auth_header: ``authorization`` for ``Bearer KEY`` (RFC 6750 §2.1), or the name of
        the header that takes the bare key (Azure's ``api-key``).
    """
    name = auth_header.lower()
    return {name: f"Bearer {key}" if name == AUTHORIZATION else key}


def can_be_sent(key: str) -> bool:
    """Whether a header can carry the key: visible ASCII, without spaces."""
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


def worth_hiding(*values: str | None) -> tuple[str, ...]:
    """Those of ``values`` that are secrets; the longest first, in case one holds another."""
    secrets = {value for value in values if value and len(value) >= _SHORTEST_SECRET}
    return tuple(sorted(secrets, key=len, reverse=True))


class KeyCredentials:
    """One key that never changes.

    :param auth_header: the header that carries it, see :func:`key_header`.
    """

    def __init__(self, key: str, auth_header: str = AUTHORIZATION) -> None:
        self._headers = key_header(key, auth_header)
        self._secrets = worth_hiding(key)

    def headers(self) -> Mapping[str, str]:
        """The header with the key."""
        return self._headers

    def refused(self, used: Mapping[str, str]) -> bool:
        """There is no other key."""
        return False

    def secrets(self) -> Sequence[str]:
        """The key."""
        return self._secrets

    def close(self) -> None:
        """Nothing runs."""
