"""Files of request logs: names, modes, bounds, and reading what is there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from gateway.request_log.files import (
    DirectoryNotPrivate,
    LogPage,
    RequestLogFiles,
    file_name,
    is_file_name,
    private_directory,
    read_page,
    sizes_in,
)

AT = 1_764_561_696.123


def name(number: int) -> str:
    return file_name(f"c.{number}", AT + number)


def page(directory: Path, file: str, start: int = 0, lines: int = 100) -> LogPage:
    found = read_page(str(directory), file, start, lines)
    assert found is not None
    return found


# --- writing -----------------------------------------------------------------------------


def test_a_name_says_when_and_which_turn() -> None:
    assert file_name("http-2154d8-1.7", AT) == (
        "v1-responses-20251201T040136.123Z-http-2154d8-1.7.log"
    )
    assert is_file_name(file_name("../../é\n" * 100, AT))
    assert sorted([name(10), name(2), name(1)]) == [name(1), name(2), name(10)]


@pytest.mark.parametrize(
    "bad", ["", "x.log", "../v1-responses-20251201T040136.123Z-a.log", f"{name(1)}\n", "v1-.log"]
)
def test_nothing_else_is_a_name(bad: str, tmp_path: Path) -> None:
    assert not is_file_name(bad)
    assert read_page(str(tmp_path), bad, 0, 10) is None


def test_only_the_owner_can_read_what_is_written(tmp_path: Path) -> None:
    place = tmp_path / "new" / "requests"
    files = RequestLogFiles(str(place), 2**20, 10)
    before = os.umask(0)
    try:
        files.append(name(1), b"a\n", True)
        files.append(name(1), b"b\n", False)
    finally:
        os.umask(before)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / name(1)).stat().st_mode) == 0o600
    assert (place / name(1)).read_bytes() == b"a\nb\n"


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(DirectoryNotPrivate, match="chmod 0700"):
        RequestLogFiles(str(tmp_path), 2**20, 10).append(name(1), b"a\n", True)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError):
        private_directory(__file__)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    target = tmp_path / "target"
    target.write_bytes(b"theirs")
    (tmp_path / name(1)).symlink_to(target)
    files = RequestLogFiles(str(tmp_path), 2**20, 10)
    for is_new in (True, False):
        with pytest.raises(OSError):
            files.append(name(1), b"ours", is_new)
    assert target.read_bytes() == b"theirs"
    assert read_page(str(tmp_path), name(1), 0, 10) is None


def test_the_oldest_files_make_room_by_count(tmp_path: Path) -> None:
    files = RequestLogFiles(str(tmp_path / "r"), 2**20, 3)
    for number in range(1, 6):
        files.append(name(number), b"x\n", True)
    assert [each.name for each in sizes_in(files.directory)] == [name(3), name(4), name(5)]


def test_the_oldest_files_make_room_by_size_those_of_earlier_starts_too(tmp_path: Path) -> None:
    earlier = RequestLogFiles(str(tmp_path / "r"), 2**20, 100)
    for number in range(1, 6):
        earlier.append(name(number), b"x" * 100, True)
    (tmp_path / "r" / "notes.txt").write_text("not ours")
    files = RequestLogFiles(str(tmp_path / "r"), 350, 100)
    files.append(name(6), b"x" * 100, True)
    assert [each.name for each in sizes_in(files.directory)] == [name(4), name(5), name(6)]
    assert (tmp_path / "r" / "notes.txt").exists(), "a file that is not ours was removed"


def test_a_directory_that_was_removed_is_made_again_and_a_removed_file_is_not(
    tmp_path: Path,
) -> None:
    files = RequestLogFiles(str(tmp_path / "r"), 2**20, 3)
    files.append(name(1), b"x\n", True)
    (tmp_path / "r" / name(1)).unlink()
    with pytest.raises(FileNotFoundError):
        files.append(name(1), b"y\n", False)
    (tmp_path / "r").rmdir()
    files.append(name(2), b"x\n", True)
    assert [each.name for each in sizes_in(files.directory)] == [name(2)]


# --- reading -----------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def test_pages_follow_each_other(directory: Path) -> None:
    (directory / name(1)).write_bytes(b"".join(b"line %d\n" % n for n in range(5)))
    first = page(directory, name(1), 0, 3)
    assert [line.data for line in first.lines] == [b"line 0", b"line 1", b"line 2"]
    second = page(directory, name(1), first.end, 3)
    assert [line.data for line in second.lines] == [b"line 3", b"line 4"]
    assert second.end == second.size == 35


def test_a_long_line_is_shown_in_part_and_the_next_one_is_found(directory: Path) -> None:
    (directory / name(1)).write_bytes(b"a" * 3_000_000 + b"\nshort\n")
    long, short = page(directory, name(1)).lines
    assert (len(long.data), long.size, long.is_whole) == (65_536, 3_000_000, True)
    assert short.data == b"short"


def test_many_long_lines_are_bounded_together(directory: Path) -> None:
    (directory / name(1)).write_bytes((b"a" * 100_000 + b"\n") * 100)
    found = page(directory, name(1))
    assert len(found.lines) == 16
    assert found.end == 16 * 100_001


def test_a_line_that_was_not_written_to_its_end_says_so(directory: Path) -> None:
    (directory / name(1)).write_bytes(b"whole\nbro")
    lines = page(directory, name(1)).lines
    assert [(line.data, line.is_whole) for line in lines] == [(b"whole", True), (b"bro", False)]


def test_what_vanished_or_was_cut_is_no_error(directory: Path) -> None:
    assert read_page(str(directory), name(1), 0, 10) is None
    assert read_page(str(directory / "none"), name(1), 0, 10) is None
    (directory / name(1)).write_bytes(b"a\n")
    found = page(directory, name(1), 5000)
    assert (found.lines, found.start, found.end) == ([], 2, 2)
    assert sizes_in(str(directory / "none")) == []
