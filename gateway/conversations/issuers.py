"""Which account issued a sealed item: ``encrypted_content`` opens nowhere else (law 9)."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from gateway.protocol.items import seal_of


class ContentIssuers:
    """Remembers the issuer of each seal, bounded in count; the oldest are forgotten first.

    :ivar max_seals: bound; one costs some 150 bytes.
    """

    def __init__(self, max_seals: int = 200_000) -> None:
        self.max_seals = max_seals
        self._issuers: OrderedDict[bytes, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._issuers)

    def issued(self, raw: bytes, account: str) -> None:
        """Note that ``account`` issued the sealed item ``raw``."""
        digest = _digest(raw)
        if digest is None:
            return
        self._issuers[digest] = account
        self._issuers.move_to_end(digest)
        if len(self._issuers) > self.max_seals:
            self._issuers.popitem(last=False)

    def issuer_of(self, raw: bytes) -> str | None:
        """The account that issued the sealed item ``raw``, or None when unknown."""
        digest = _digest(raw)
        return None if digest is None else self._issuers.get(digest)


def _digest(raw: bytes) -> bytes | None:
    seal = seal_of(raw)
    return None if seal is None else blake2b(seal, digest_size=12).digest()
