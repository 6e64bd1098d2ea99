"""A key in a file, replaced, removed, broken and put right again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from gateway.credentials import file as file_module
from gateway.credentials.file import FileCredentials
from gateway.protocol.errors import ApiError


class Stage:
    """One account whose key is in a file."""

    def __init__(self, path: Path, auth_header: str = "authorization") -> None:
        self.clock = Clock()
        self.path = path
        path.write_text("sk-first-key\n")
        self.credentials = FileCredentials(str(path), self.clock.seconds, auth_header)

    def replace(self, content: str) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(content)
        beside.replace(self.path)

    def headers(self) -> Mapping[str, str]:
        headers = self.credentials.headers()
        assert not isinstance(headers, Deferred), "expected a key at once"
        return headers

    @property
    def key(self) -> str:
        return self.headers()["authorization"].removeprefix("Bearer ")

    @property
    def error(self) -> ApiError:
        failures: list[ApiError] = []
        headers = self.credentials.headers()
        assert isinstance(headers, Deferred), f"expected an error, got {headers}"
        headers.addErrback(lambda failure: failures.append(failure.value))
        return failures[0]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path / "key")


def test_the_key_is_what_the_file_holds_without_white_space(stage: Stage) -> None:
    assert stage.headers() == {"authorization": "Bearer sk-first-key"}
    assert list(stage.credentials.secrets()) == ["sk-first-key"]


def test_another_header_takes_the_bare_key(tmp_path: Path) -> None:
    assert Stage(tmp_path / "key", "Api-Key").headers() == {"api-key": "sk-first-key"}


def test_a_new_key_is_used_within_a_second(stage: Stage) -> None:
    stage.replace("sk-second-key")
    assert stage.key == "sk-first-key", "the file is looked at once a second at most"
    stage.clock.advance(1)
    assert stage.key == "sk-second-key"
    assert list(stage.credentials.secrets()) == ["sk-second-key"]


def test_a_file_written_in_place_is_seen(stage: Stage) -> None:
    stage.path.write_text("sk-second-key")
    os.utime(stage.path, (1, 1))
    stage.clock.advance(1)
    assert stage.key == "sk-second-key"


def test_an_unchanged_file_is_not_read_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: str) -> bytes:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(file_module, "read_small", forbidden)
    for _ in range(5):
        stage.clock.advance(1)
        assert stage.key == "sk-first-key"


def test_a_401_reads_it_at_once(stage: Stage) -> None:
    used = stage.headers()
    assert stage.credentials.refused(used) is False
    stage.replace("sk-second-key")
    assert stage.credentials.refused(used) is True
    assert stage.key == "sk-second-key"
    assert stage.credentials.refused(used) is True, "it was read since that request"
    assert stage.credentials.refused(stage.headers()) is False


def test_a_401_sees_what_no_stamp_shows(stage: Stage) -> None:
    """Same size, same file, within one tick of the file system's clock."""
    used, before = stage.headers(), stage.path.stat()
    stage.path.write_text("sk-other-key\n")
    os.utime(stage.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    stage.clock.advance(1)
    assert stage.key == "sk-first-key"
    assert stage.credentials.refused(used) is True


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "is missing"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("one two", "holds something else than one key"),
        ("sk-one\nsk-two", "holds something else than one key"),
        ("schlüssel", "holds something else than one key"),
        ("sk-\x00", "holds something else than one key"),
    ],
)
def test_without_a_key_the_last_good_one_serves_for_a_while(
    stage: Stage, content: str | None, said: str
) -> None:
    if content is None:
        stage.path.unlink()
    else:
        stage.replace(content)
    for _ in range(30):
        stage.clock.advance(2)
        assert stage.key == "sk-first-key"
    stage.clock.advance(2)
    error = stage.error
    assert (error.status, error.code) == (502, "upstream_unauthorized")
    assert error.message == f"The gateway's key file for this account {said}."
    stage.replace("sk-second-key")
    stage.clock.advance(1)
    assert stage.key == "sk-second-key"


def test_a_file_that_is_missing_from_the_start(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "key"
    path.mkdir()
    credentials = FileCredentials(str(path), clock.seconds)
    failures: list[ApiError] = []
    for _ in range(2):
        headers = credentials.headers()
        assert isinstance(headers, Deferred)
        headers.addErrback(lambda failure: failures.append(failure.value))
        clock.advance(1)
    assert [error.message for error in failures] == [
        "The gateway's key file for this account cannot be read: Not a file."
    ] * 2
    path.rmdir()
    path.write_text("sk-first-key")
    assert credentials.headers() == {"authorization": "Bearer sk-first-key"}


def test_a_401_while_the_file_is_missing_changes_nothing(stage: Stage) -> None:
    used = stage.headers()
    stage.path.unlink()
    assert stage.credentials.refused(used) is False


def test_nothing_shows_the_key(stage: Stage) -> None:
    assert "sk-first-key" not in repr(stage.credentials)
    assert stage.credentials.close() is None


def test_a_clock_that_is_set_back_does_not_hide_a_new_key(stage: Stage) -> None:
    assert stage.key == "sk-first-key"
    stage.replace("sk-second-key")
    stage.clock.rightNow -= 3600
    assert stage.key == "sk-second-key"
