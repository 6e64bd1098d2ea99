"""Rules for the keys that clients present."""

from __future__ import annotations

import re
from hashlib import sha256

import msgspec

from gateway.config.errors import SettingError, SettingErrors
from gateway.config.secrets import MASK
from gateway.config.settings import KeySettings
from gateway.config.words import check_credential, check_models, check_one_of

_DIGEST = re.compile(r"[0-9a-f]{64}")


def apply(keys: tuple[KeySettings, ...], mistakes: SettingErrors) -> tuple[KeySettings, ...]:
    """The keys with digests in lower case; no two entries may mean the same key."""
    applied = tuple(_apply(key, f"keys[{index}]", mistakes) for index, key in enumerate(keys))
    first: dict[str, int] = {}
    for index, key in enumerate(applied):
        if key.key is None and key.key_sha256 is None:
            continue
        digest = (
            key.key_sha256 or sha256((key.key or "").encode(errors="surrogatepass")).hexdigest()
        )
        if digest in first:
            member = "key" if key.key is not None else "key_sha256"
            taken = f"keys[{first[digest]}] has this key already; expected each key once"
            mistakes.append(SettingError(f"keys[{index}].{member}", MASK, taken))
        first.setdefault(digest, index)
    return applied


def _apply(key: KeySettings, path: str, mistakes: SettingErrors) -> KeySettings:
    with mistakes.noted():
        check_one_of(key, path, "key", "key_sha256")
    check_models(key.models, f"{path}.models", mistakes)
    if key.key is not None:
        with mistakes.noted():
            check_credential(key.key, f"{path}.key")
    if key.key_sha256 is None:
        return key
    digest = key.key_sha256.lower()
    if not _DIGEST.fullmatch(digest):
        words = "expected the SHA-256 of the key, 64 hexadecimal digits"
        mistakes.append(SettingError(f"{path}.key_sha256", MASK, words))
    return msgspec.structs.replace(key, key_sha256=digest)
