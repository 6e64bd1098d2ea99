"""The accounts that keep stored responses, and those that issued encrypted content.

An upstream keeps a stored response for weeks, but the conversation store only for an hour.
Requests about the response must reach its account all that time, and only from the key that made
it (design law 14).  ``encrypted_content`` can only be read by the account that issued it (law 9).
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from gateway.protocol.items import encrypted_content

#: How long services keep responses (protocol.md §8.1), in seconds.
STORED_SECONDS = 30 * 86_400.0


class ResponseOwners(Protocol):
    """Which account keeps a stored response, per tenant; outlives its transcript."""

    @property
    def max_responses(self) -> int:
        """Bound on the count in memory."""

    def __len__(self) -> int: ...

    def note(self, tenant: str, response_id: str, account: str) -> None:
        """``account`` keeps this response of ``tenant``."""

    def owner_of(self, tenant: str, response_id: str) -> str | None:
        """The account that keeps this response of ``tenant``, or None when unknown."""

    def forget(self, tenant: str, response_id: str) -> None:
        """The response was deleted."""


class ContentIssuers(Protocol):
    """Which account issued the encrypted content of an item."""

    @property
    def max_entries(self) -> int:
        """Bound on the count in memory."""

    def __len__(self) -> int: ...

    def note(self, raw: bytes, account: str) -> None:
        """``account`` issued the encrypted content of the item ``raw``, if it has any."""

    def issuer_of(self, raw: bytes) -> str | None:
        """The account that issued the encrypted content of the item ``raw``, or None."""


class MemoryOwners:
    """Response owners in memory.

    Entries are kept in two generations.  A response is forgotten with its generation, between one
    and two ``ttl_seconds`` after it was noted.  So entries need no time and no order, which keeps
    them small.

    :param now: a clock, in seconds.
    :ivar max_responses: bound on the count; one costs some 130 bytes.
    """

    def __init__(
        self,
        now: Callable[[], float],
        ttl_seconds: float = STORED_SECONDS,
        max_responses: int = 200_000,
    ) -> None:
        self._now = now
        self._ttl_seconds = ttl_seconds
        self.max_responses = max_responses
        self._max_of_generation = max(1, max_responses // 2)
        self._young: dict[bytes, str] = {}
        self._old: dict[bytes, str] = {}
        self._began = now()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def note(self, tenant: str, response_id: str, account: str) -> None:
        """``account`` keeps this response of ``tenant``."""
        self.restore(response_digest(tenant, response_id), account)

    def restore(self, key: bytes, account: str) -> None:
        """Note an owner by the digest of its response."""
        self._age()
        self._old.pop(key, None)
        if len(self._young) >= self._max_of_generation and key not in self._young:
            self._begin_generation()
        self._young[key] = sys.intern(account)

    def owner_of(self, tenant: str, response_id: str) -> str | None:
        """The account that keeps this response of ``tenant``, or None when unknown."""
        self._age()
        key = response_digest(tenant, response_id)
        return self._young.get(key) or self._old.get(key)

    def forget(self, tenant: str, response_id: str) -> None:
        """The response was deleted."""
        key = response_digest(tenant, response_id)
        self._young.pop(key, None)
        self._old.pop(key, None)

    def _age(self) -> None:
        age = self._now() - self._began
        if age >= self._ttl_seconds:
            self._begin_generation()
            if age >= 2 * self._ttl_seconds:
                self._old = {}

    def _begin_generation(self) -> None:
        self._old, self._young = self._young, {}
        self._began = self._now()


class MemoryIssuers:
    """Content issuers in memory; the oldest are forgotten first.

    :ivar max_entries: bound on the count; one costs some 150 bytes.
    """

    def __init__(self, max_entries: int = 200_000) -> None:
        self.max_entries = max_entries
        self._issuers: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._issuers)

    def note(self, raw: bytes, account: str) -> None:
        """``account`` issued the encrypted content of the item ``raw``, if it has any."""
        digest = content_digest(raw)
        if digest is not None:
            self.restore(digest, account)

    def restore(self, digest: bytes, account: str) -> None:
        """Note an issuer by the digest of its content."""
        self._issuers[digest] = account
        self._issuers.move_to_end(digest)
        if len(self._issuers) > self.max_entries:
            self._issuers.popitem(last=False)

    def issuer_of(self, raw: bytes) -> str | None:
        """The account that issued the encrypted content of the item ``raw``, or None."""
        digest = content_digest(raw)
        return None if digest is None else self._issuers.get(digest)


def response_digest(tenant: str, response_id: str) -> bytes:
    """A digest of fixed size of a response id, because upstreams and clients choose them."""
    text = f"{len(tenant)}.{tenant}{response_id}".encode(errors="surrogatepass")
    return blake2b(text, digest_size=16).digest()


def item_digest(tenant: str, item_id: str) -> bytes:
    """A digest of fixed size of an item's id."""
    return response_digest(tenant, item_id)


def content_digest(raw: bytes) -> bytes | None:
    """The digest of the encrypted content of the item ``raw``, or None when it has none."""
    content = encrypted_content(raw)
    return None if content is None else blake2b(content, digest_size=12).digest()
