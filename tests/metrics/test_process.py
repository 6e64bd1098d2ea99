"""Memory, files and control groups, read from a `/proc` of the test's own."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest

from gateway.metrics.process import look, memory_budget


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_look_at_this_process() -> None:
    looked = look()
    assert looked.cpu_seconds > 0
    if Path("/proc/self/statm").exists():
        assert looked.rss_bytes is not None
        assert 1 << 20 < looked.rss_bytes < 1 << 40
        assert looked.open_files is not None
        assert looked.open_files > 2


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    looked = look(tmp_path / "nowhere")
    assert (looked.rss_bytes, looked.open_files) == (None, None)
    assert memory_budget(tmp_path / "nowhere", tmp_path) is None


def test_where_not_even_a_look_can_be_had_all_files_are_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listdir(path: Path) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gateway.metrics.process.os.listdir", listdir)
    looked = look()
    assert looked.open_files == looked.open_files_limit


def test_resident_pages_are_counted_in_bytes(tmp_path: Path) -> None:
    write(tmp_path / "statm", "1000 300 20 1 0 200 0\n")
    assert look(tmp_path).rss_bytes == 300 * resource.getpagesize()


@pytest.mark.parametrize(
    ("limits", "budget"),
    [
        ({"memory.max": "max\n"}, None),
        ({"a/memory.max": "1000000\n", "a/b/memory.max": "max\n"}, 1_000_000),
        ({"a/memory.max": "1000000\n", "a/b/memory.max": "500000\n"}, 500_000),
        ({"memory.max": "700000\n"}, 700_000),
        ({"a/b/memory.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_budget_is_the_least_of_all_groups_above(
    tmp_path: Path, limits: dict[str, str], budget: int | None
) -> None:
    write(tmp_path / "proc/cgroup", "0::/a/b\n")
    for name, text in limits.items():
        write(tmp_path / "cgroup" / name, text)
    assert memory_budget(tmp_path / "proc", tmp_path / "cgroup") == budget


def test_older_control_groups_are_read_too(tmp_path: Path) -> None:
    write(tmp_path / "proc/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/1\nbroken\n")
    limit = tmp_path / "cgroup/memory/docker/1/memory.limit_in_bytes"
    write(limit, "9223372036854771712\n")
    assert memory_budget(tmp_path / "proc", tmp_path / "cgroup") is None
    write(limit, "268435456\n")
    assert memory_budget(tmp_path / "proc", tmp_path / "cgroup") == 268_435_456
