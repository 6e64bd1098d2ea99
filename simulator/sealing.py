"""Encrypted content of an account: text that only the account that issued it accepts back."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from typing import Any

_PREFIX = "gAAAAA"
_TAG_BYTES = 32
_NONCE_BYTES = 16


class Seal:
    """Seals values under one account's key. It authenticates; it does not hide anything."""

    def __init__(self, key: str) -> None:
        self._key = hashlib.sha256(b"simulator seal " + key.encode()).digest()

    def close(self, value: Any) -> str:
        payload = secrets.token_bytes(_NONCE_BYTES) + json.dumps(value).encode()
        return _armoured(self._tag(payload) + payload)

    def open(self, text: str) -> Any:
        """The sealed value; ValueError for text that was altered, cut or issued elsewhere."""
        encoded = text.removeprefix(_PREFIX).encode()
        sealed = base64.b64decode(encoded, altchars=b"-_", validate=True)
        tag, payload = sealed[:_TAG_BYTES], sealed[_TAG_BYTES:]
        # Several base64 texts stand for the same bytes; only the one issued is ours.
        if text != _armoured(sealed) or not hmac.compare_digest(tag, self._tag(payload)):
            raise ValueError("not sealed by this account")
        return json.loads(payload[_NONCE_BYTES:])

    def issued(self, text: str) -> bool:
        try:
            self.open(text)
        except ValueError:
            return False
        return True

    def _tag(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, hashlib.sha256).digest()


def _armoured(sealed: bytes) -> str:
    return _PREFIX + base64.urlsafe_b64encode(sealed).decode()
