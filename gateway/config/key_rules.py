"""Rules for the keys that clients present."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec

from gateway.config.errors import MistakeError
from gateway.config.secrets import MASK
from gateway.config.settings import KeySettings
from gateway.config.words import check_credential, check_models, check_one_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


def apply(keys: tuple[KeySettings, ...]) -> tuple[KeySettings, ...]:
    """The keys with digests in lower case; no two entries may mean the same key."""
    applied = tuple(_apply(key, f"keys[{index}]") for index, key in enumerate(keys))
    first: dict[str, int] = {}
    for index, key in enumerate(applied):
        digest = key.key_sha256 or sha256((key.key or "").encode()).hexdigest()
        if digest in first:
            member = "key" if key.key is not None else "key_sha256"
            taken = f"keys[{first[digest]}] has this key already; expected each key once"
            raise MistakeError(f"keys[{index}].{member}", MASK, taken)
        first[digest] = index
    return applied


def _apply(key: KeySettings, path: str) -> KeySettings:
    check_one_of(key, path, "key", "key_sha256")
    check_models(key.models, f"{path}.models")
    if key.key is not None:
        check_credential(key.key, f"{path}.key")
    if key.key_sha256 is None:
        return key
    digest = key.key_sha256.lower()
    if not _DIGEST.fullmatch(digest):
        words = "expected the SHA-256 of the key, 64 hexadecimal digits"
        raise MistakeError(f"{path}.key_sha256", MASK, words)
    return msgspec.structs.replace(key, key_sha256=digest)
