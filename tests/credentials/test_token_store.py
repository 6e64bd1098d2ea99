"""The token file: what it may hold, and that no crash leaves less than whole tokens in it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.credentials import token_store
from gateway.credentials.token_store import OAuthTokens, TokenFileError, TokenStore

TOKENS = OAuthTokens("refresh-1", "access-1", 1_800_000_000.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def store(path: Path) -> TokenStore:
    return TokenStore(str(path))


def test_what_is_written_is_read(store: TokenStore, path: Path) -> None:
    assert store.read() is None
    store.write(TOKENS)
    assert store.read() == TOKENS
    assert json.loads(path.read_bytes()) == {
        "refresh_token": "refresh-1",
        "access_token": "access-1",
        "expires_at": 1_800_000_000.5,
    }


def test_only_its_owner_may_read_it(store: TokenStore, path: Path) -> None:
    path.write_text("{}")
    path.chmod(0o644)
    before = os.umask(0)
    try:
        store.write(TOKENS)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_link_stays_a_link(tmp_path: Path, path: Path) -> None:
    path.symlink_to("real.json")
    TokenStore(str(path)).write(TOKENS)
    assert path.is_symlink()
    assert TokenStore(str(tmp_path / "real.json")).read() == TOKENS


def test_it_sees_what_others_write(store: TokenStore, path: Path) -> None:
    assert not store.changed()
    store.write(TOKENS)
    assert not store.changed(), "that was its own writing"
    other = TokenStore(str(path))
    assert other.changed()
    other.read()
    assert not other.changed()
    other.write(OAuthTokens("refresh-2"))
    assert store.changed()
    assert store.read() == OAuthTokens("refresh-2")
    assert not store.changed()
    path.unlink()
    assert store.changed()


def test_what_cannot_be_written_leaves_the_file_as_it_was(
    store: TokenStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(TOKENS)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.credentials.token_store.os.fsync", full)
    with pytest.raises(TokenFileError) as failed:
        store.write(OAuthTokens("refresh-2"))
    assert str(failed.value) == "cannot be written: No space left on device"
    assert store.read() == TOKENS
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_files_of_crashes_are_removed_and_those_of_others_are_not(
    store: TokenStore, path: Path
) -> None:
    folder = path.parent
    stale, fresh = folder / ".tokens.json.new-0a", folder / ".tokens.json.new-0b"
    others = folder / ".other.json.new-0a"
    long_ago = time.time() - 61
    for each in (stale, fresh, others):
        each.write_text("{")
    os.utime(stale, (long_ago, long_ago))
    os.utime(others, (long_ago, long_ago))
    store.write(TOKENS)
    assert {each.name for each in folder.iterdir()} == {path.name, fresh.name, others.name}


@pytest.mark.parametrize(
    ("content", "tokens"),
    [
        (b'{"refresh_token":"r"}', OAuthTokens("r")),
        (b' {"refresh_token":"r","access_token":null,"expires_at":null}\n', OAuthTokens("r")),
        (b'{"refresh_token":"r","access_token":"a","expires_at":7}', OAuthTokens("r", "a", 7)),
        (b'{"refresh_token":"r","account":"of another tool"}', OAuthTokens("r")),
        (b"", None),
        (b" \n", None),
    ],
)
def test_files_written_by_hand(
    store: TokenStore, path: Path, content: bytes, tokens: OAuthTokens | None
) -> None:
    path.write_bytes(content)
    assert store.read() == tokens


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 60_000, "is not JSON"),
        (b"[]", "is no JSON object"),
        (b"{}", "has no refresh_token"),
        (b'{"refresh_token":""}', "has no refresh_token"),
        (b'{"refresh_token":5}', "has no refresh_token"),
        (b'{"refresh_token":"r","access_token":""}', "has an access_token that cannot be sent"),
        (b'{"refresh_token":"r","access_token":"a b"}', "has an access_token that cannot be sent"),
        (b'{"refresh_token":"r","expires_at":"soon"}', "has an expires_at that is no time"),
        (b'{"refresh_token":"r","expires_at":true}', "has an expires_at that is no time"),
        (b'{"refresh_token":"r","expires_at":1e300}', "has an expires_at that is no time"),
    ],
)
def test_files_that_cannot_be_used(
    store: TokenStore, path: Path, content: bytes, said: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(TokenFileError, match=said):
        store.read()
    assert not store.changed(), "it is read again when it changes"


def test_only_files_are_read(store: TokenStore, path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(TokenFileError, match="cannot be read: Not a file"):
        store.read()


# --- crashes -----------------------------------------------------------------------------


class Crash(BaseException):
    """The process dies here; nothing of it runs any more."""


class FragileSystem:
    """``os``, with a crash at the ``left``-th call that changes something.

    A write may put down only a part, as any write may.
    """

    CHANGES = ("open", "write", "fsync", "replace", "unlink")

    def __init__(self, left: int, piece: int) -> None:
        self.left = left
        self.piece = piece

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CHANGES:
            return real

        def fragile(*given: Any, **named: Any) -> Any:
            if self.left == 0:
                raise Crash
            self.left -= 1
            if name == "write":
                return real(given[0], given[1][: self.piece])
            return real(*given, **named)

        return fragile


printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
any_tokens = st.builds(
    OAuthTokens, st.text(min_size=1), st.none() | printable, st.none() | st.floats(0, 9_999_999_999)
)


@given(st.lists(st.tuples(any_tokens, st.none() | st.integers(0, 12), st.integers(1, 40))))
def test_whenever_it_crashes_the_file_holds_whole_tokens(
    steps: list[tuple[OAuthTokens, int | None, int]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokens.json")
        possible: set[OAuthTokens | None] = {None}
        for tokens, crash_after, piece in steps:
            system = FragileSystem(-1 if crash_after is None else crash_after, piece)
            with mock.patch.object(token_store, "os", system):
                try:
                    TokenStore(path).write(tokens)
                    possible = {tokens}
                except Crash:
                    possible |= {tokens}
            held = TokenStore(path).read()
            assert held in possible, "expected the tokens before the crash, or the new ones"
            possible = {held}
