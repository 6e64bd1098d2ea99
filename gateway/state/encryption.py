"""Encryption at rest: values are encrypted before a backend gets them (AES-256-GCM, RFC 5116).

The key is derived from the operator's passphrase.  Table and key of a row are authenticated with
it, so that nobody can exchange the values of two rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import blake2b

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gateway.config import StateSettings
from gateway.state.backend import RECORDS, RESPONSES, Feed, Recall, Recalled, Row, StateBackend

#: The first byte of a value.
_PLAIN = b"\0"
_ENCRYPTED = b"\1"

_NONCE_BYTES = 12

_log = Logger(namespace="gateway.state")


class Cipher:
    """Encrypts and decrypts values.

    :param passphrase: the operator's; empty: values are written as they are.
    :ivar unreadable: values that were encrypted with another key.
    """

    def __init__(self, passphrase: bytes) -> None:
        self._aead = AESGCM(_derived(passphrase)) if passphrase else None
        self.unreadable = 0

    def encrypt(self, value: bytes, place: bytes) -> bytes:
        """``value`` as it is written.

        :param place: where it is written; the same must be given to :meth:`decrypt`.
        """
        if self._aead is None:
            return _PLAIN + value
        nonce = os.urandom(_NONCE_BYTES)
        return _ENCRYPTED + nonce + self._aead.encrypt(nonce, value, place)

    def decrypt(self, written: bytes, place: bytes) -> bytes | None:
        """The value, or None if it was encrypted with another key, or changed."""
        if written[:1] == _PLAIN:
            return written[1:]
        if self._aead is not None and written[:1] == _ENCRYPTED:
            nonce, value = written[1 : 1 + _NONCE_BYTES], written[1 + _NONCE_BYTES :]
            try:
                return self._aead.decrypt(nonce, value, place)
            except (InvalidTag, ValueError):
                pass
        self._report()
        return None

    def _report(self) -> None:
        if not self.unreadable:
            _log.error(
                "a part of the state was encrypted with another key than state.encryption_key;"
                " it is not used"
            )
        self.unreadable += 1


class EncryptedBackend:
    """A backend whose values are encrypted.

    :ivar inner: the backend that keeps them.
    """

    def __init__(self, inner: StateBackend, cipher: Cipher) -> None:
        self.inner = inner
        self._cipher = cipher
        self.name = inner.name
        self.shared = inner.shared

    @property
    def unreadable(self) -> int:
        """Values that were encrypted with another key."""
        return self._cipher.unreadable

    @property
    def file_bytes(self) -> int | None:
        """What it takes on disk, if it is on this one's."""
        size: int | None = getattr(self.inner, "file_bytes", None)
        return size

    def open(self, feed: Feed) -> Deferred[None]:
        """Make it ready."""
        return self.inner.open(lambda rows: feed(self._decrypted(rows)))

    def scan(self, table: str) -> Deferred[list[Row]]:
        """All rows of a table that can be read."""
        return self.inner.scan(table).addCallback(self._decrypted)

    def read(self, wanted: Recall) -> Deferred[Recalled]:
        """Read some rows, and one conversation."""
        return self.inner.read(wanted).addCallback(self._recalled)

    def write(self, rows: Sequence[Row]) -> Deferred[None]:
        """Write rows, in this order."""
        return self.inner.write([self._encrypted(row) for row in rows])

    def close(self) -> Deferred[None]:
        """Release everything."""
        return self.inner.close()

    def _encrypted(self, row: Row) -> Row:
        # The value of such a row is the key of another one.
        if row.value is None or row.table == RESPONSES:
            return row
        return row._replace(value=self._cipher.encrypt(row.value, row_place(row.table, row.key)))

    def _decrypted(self, rows: Sequence[Row]) -> list[Row]:
        found = []
        for row in rows:
            if row.value is None:
                found.append(row)
                continue
            value = self._cipher.decrypt(row.value, row_place(row.table, row.key))
            if value is not None:
                found.append(row._replace(value=value))
        return found

    def _recalled(self, found: Recalled) -> Recalled:
        rows = {}
        for (table, key), written in found.rows.items():
            value = self._cipher.decrypt(written, row_place(table, key))
            if value is not None:
                rows[table, key] = value
        records = []
        for key, written in found.records:
            value = self._cipher.decrypt(written, row_place(RECORDS, key))
            if value is None:
                break  # what is older cannot be continued without it
            records.append((key, value))
        return Recalled(rows, records)


def passphrase(settings: StateSettings) -> bytes:
    """The operator's passphrase, or nothing.

    :raises OSError: when its file cannot be read.
    """
    if settings.encryption_key_file is None:
        return settings.encryption_key.encode()
    with open(settings.encryption_key_file, "rb") as file:
        return file.read().strip()


def _derived(passphrase: bytes) -> bytes:
    key: bytes = HKDF(SHA256(), 32, None, b"responses-gateway state").derive(passphrase)
    return key


def row_place(table: str, key: bytes) -> bytes:
    """Where a value is written, for :class:`Cipher`."""
    return blake2b(table.encode() + b"\0" + key, digest_size=32).digest()
