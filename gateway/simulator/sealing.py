"""Encrypted content of an account: text that only the account that issued it accepts back."""

from __future__ import annotations

import base64
import binascii
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
        sealed = self._tag(payload) + payload
        return _PREFIX + base64.urlsafe_b64encode(sealed).decode()

    def open(self, text: str) -> Any:
        """The sealed value; ValueError for text that was altered, cut or issued elsewhere."""
        if not text.startswith(_PREFIX):
            raise ValueError("not sealed here")
        try:
            encoded = text[len(_PREFIX) :].encode()
            sealed = base64.b64decode(encoded, altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as error:
            raise ValueError("not sealed here") from error
        tag, payload = sealed[:_TAG_BYTES], sealed[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(payload)):
            raise ValueError("not sealed here")
        return json.loads(payload[_NONCE_BYTES:])

    def issued(self, text: str) -> bool:
        try:
            self.open(text)
        except ValueError:
            return False
        return True

    def _tag(self, payload: bytes) -> bytes:
        return hmac.new(self._key, payload, hashlib.sha256).digest()
