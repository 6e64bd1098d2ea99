"""Who a client is: its key, compared in constant time (protocol.md §2.4)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence

from gateway.config import KeySettings
from gateway.protocol.errors import ApiError

#: The tenant of every client while no keys are configured.
EVERYBODY = "everybody"


#: Where clients put their key whose service has no ``Authorization``: Azure's and Anthropic's.
KEY_HEADERS = ("api-key", "x-api-key")


class Authenticator:
    """Turns the key that a client's headers present into a tenant.

    :param keys: the configured client keys; without any, everybody is one tenant.
    """

    def __init__(self, keys: Sequence[KeySettings]) -> None:
        self._keys = [(key.name, _digest(key)) for key in keys]

    def knows(self, key: KeySettings) -> bool:
        """Whether ``key`` opens the door, to the same tenant."""
        return (key.name, _digest(key)) in self._keys

    def tenant(self, headers: Mapping[str, str]) -> str:
        """The name of the client's key.

        Of several keys the first that is one of ours counts: some clients cannot leave the
        header out that they do not use.

        :param headers: names in lower case.
        :raises ApiError: 401 for a missing or wrong key; 403 for a web page that tries to
            use a gateway which asks for none.
        """
        if not self._keys:
            if "origin" in headers:
                raise ApiError(
                    403,
                    "permission_error",
                    "This gateway has no client keys, so it serves no web pages.",
                    "origin_not_allowed",
                )
            return EVERYBODY
        for given in _presented(headers):
            digest = hashlib.sha256(given.encode("latin-1", "replace")).digest()
            matches = [name for name, key in self._keys if hmac.compare_digest(key, digest)]
            if matches:
                return matches[0]
        raise ApiError(
            401,
            "authentication_error",
            "Incorrect API key provided: send 'Authorization: Bearer <key>' with a key"
            " of this gateway.",
            "invalid_api_key",
        )


def _presented(headers: Mapping[str, str]) -> Iterator[str]:
    """The keys that a client presents, in the order in which they are tried."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield token.strip()
    for name in KEY_HEADERS:
        if name in headers:
            yield headers[name].strip()


def _digest(key: KeySettings) -> bytes:
    """What is compared: the SHA-256 of the key, which may be all that the configuration has."""
    if key.key_sha256 is not None:
        return bytes.fromhex(key.key_sha256)
    return hashlib.sha256((key.key or "").encode()).digest()
