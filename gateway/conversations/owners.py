"""Whose a stored response is, and which account keeps it; outlives its transcript.

An upstream keeps what it stores for weeks, the ledger for an hour.  Until then requests about
a response must find its account, and nobody else's key may name it (design law 14).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from hashlib import blake2b

#: What services keep responses for at least (protocol.md §8.1), in seconds.
STORED_SECONDS = 30 * 86_400.0


class ResponseOwners:
    """Response id -> account, per tenant; bounded in count and age.

    Two generations take turns: a response is forgotten with its whole generation, between
    one and two ``ttl_seconds`` after it was noted.  That needs no time and no order of each
    entry, which makes it small.

    :param now: a clock, in seconds.
    :ivar max_responses: bound; one costs some 130 bytes.
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
        self._age()
        key = _key(tenant, response_id)
        self._old.pop(key, None)
        if len(self._young) >= self._max_of_generation and key not in self._young:
            self._turn()
        self._young[key] = sys.intern(account)

    def owner_of(self, tenant: str, response_id: str) -> str | None:
        """The account that keeps this response of ``tenant``, or None when unknown."""
        self._age()
        key = _key(tenant, response_id)
        return self._young.get(key) or self._old.get(key)

    def forget(self, tenant: str, response_id: str) -> None:
        """The response is deleted."""
        key = _key(tenant, response_id)
        self._young.pop(key, None)
        self._old.pop(key, None)

    def _age(self) -> None:
        age = self._now() - self._began
        if age >= self._ttl_seconds:
            self._turn()
            if age >= 2 * self._ttl_seconds:
                self._old = {}

    def _turn(self) -> None:
        self._old, self._young = self._young, {}
        self._began = self._now()


def _key(tenant: str, response_id: str) -> bytes:
    """Ids are as long as upstreams and clients like; a digest is not."""
    said = f"{len(tenant)}.{tenant}{response_id}".encode(errors="surrogatepass")
    return blake2b(said, digest_size=16).digest()
