"""Nothing readable reaches the disk with a key, and another key reads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import globalLogPublisher

from gateway.state.backend import OWNERS, RECORDS, RESPONSES, Recall, Row
from gateway.state.database import Database
from gateway.state.encryption import Cipher, EncryptedBackend
from tests.state.stage import FakeBackend, value_of

LATE = 10.0**10
SECRET = b"the words of a client"
ROOT, LEAF = b"a" * 12, b"b" * 12


def rows() -> list[Row]:
    name = ROOT.hex()
    return [
        Row(RECORDS, ROOT, SECRET, LATE, "laptop", name),
        Row(RECORDS, LEAF, SECRET, LATE, "laptop", name, ROOT),
        Row(RESPONSES, b"digest", LEAF, LATE, "laptop", name),
        Row(OWNERS, b"owner", SECRET, LATE, "laptop"),
    ]


class OnDisk(FakeBackend):
    """The same on a file."""

    def __init__(self, file: Path) -> None:
        super().__init__(lambda: 1.0)
        self.database = Database(file, 2**30, 1e9, lambda: 1.0)
        self.database.open()


def read(backend: EncryptedBackend) -> Any:
    return value_of(backend.read(Recall([(OWNERS, b"owner")], b"digest")))


def test_nothing_readable_is_on_the_disk(tmp_path: Path) -> None:
    inner = OnDisk(tmp_path / "state.db")
    backend = EncryptedBackend(inner, Cipher(b"a passphrase of some length"))
    answer: Deferred[None] = maybeDeferred(backend.write, rows())
    assert value_of(answer) is None
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "state.db-wal" in files
    assert all(SECRET not in data for data in files.values())
    found = read(backend)
    assert found.rows == {(OWNERS, b"owner"): SECRET}
    assert [value for _, value in found.records] == [SECRET, SECRET]
    inner.database.close()
    assert SECRET not in (tmp_path / "state.db").read_bytes()


def test_another_key_reads_nothing_and_says_so_once(tmp_path: Path) -> None:
    inner = OnDisk(tmp_path / "state.db")
    EncryptedBackend(inner, Cipher(b"a passphrase of some length")).write(rows())
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    for key in (b"", b"another passphrase"):
        other = EncryptedBackend(inner, Cipher(key))
        logged.clear()
        for _ in range(3):
            found = read(other)
            assert (found.rows, list(found.records)) == ({}, [])
        assert other.unreadable > 0
        said = [each for each in logged if each["log_namespace"] == "gateway.state"]
        assert len(said) == 1
    globalLogPublisher.removeObserver(logged.append)


def test_what_was_written_without_a_key_is_read_with_one(tmp_path: Path) -> None:
    inner = OnDisk(tmp_path / "state.db")
    EncryptedBackend(inner, Cipher(b"")).write(rows())
    assert read(EncryptedBackend(inner, Cipher(b"a passphrase"))).rows


def test_a_value_at_another_place_is_not_read() -> None:
    cipher = Cipher(b"a passphrase")
    written = cipher.encrypt(SECRET, b"here")
    assert cipher.decrypt(written, b"here") == SECRET
    assert cipher.decrypt(written, b"there") is None
    assert cipher.decrypt(written[:-1] + b"\0", b"here") is None
    assert cipher.decrypt(b"", b"here") is None
    assert cipher.decrypt(b"\1short", b"here") is None
