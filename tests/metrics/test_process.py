"""The process: memory, files and control groups from a `/proc` of the test's own; its lag."""

from __future__ import annotations

import errno
import gc
import resource
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from gateway.metrics.process import (
    SAMPLE_SECONDS,
    GarbagePauses,
    LoopLag,
    memory_budget,
    read_process,
)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_look_at_this_process() -> None:
    looked = read_process()
    assert looked.cpu_seconds > 0
    if Path("/proc/self/statm").exists():
        assert looked.rss_bytes is not None
        assert 1 << 20 < looked.rss_bytes < 1 << 40
        assert looked.open_files is not None
        assert looked.open_files > 2


def test_what_a_system_does_not_tell_is_none(tmp_path: Path) -> None:
    looked = read_process(tmp_path / "nowhere")
    assert (looked.rss_bytes, looked.open_files) == (None, None)
    assert memory_budget(tmp_path / "nowhere", tmp_path) is None


def test_where_not_even_a_look_can_be_had_all_files_are_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listdir(path: Path) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("gateway.metrics.process.os.listdir", listdir)
    looked = read_process()
    assert looked.open_files == looked.open_files_limit


def test_resident_pages_are_counted_in_bytes(tmp_path: Path) -> None:
    write(tmp_path / "statm", "1000 300 20 1 0 200 0\n")
    assert read_process(tmp_path).rss_bytes == 300 * resource.getpagesize()


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


def test_lateness_is_measured_on_a_clock_that_does_not_jump() -> None:
    clock = Clock()
    late = 0.0
    lag = LoopLag(clock, 12, lambda: clock.seconds() + late)
    lag.start()
    lag.start()
    clock.advance(SAMPLE_SECONDS)
    assert lag.lag.sum == pytest.approx(0)
    late = 0.4
    clock.advance(SAMPLE_SECONDS)
    assert lag.lag.sum == pytest.approx(400)
    assert sum(lag.lag.counts) == 2
    p99 = lag.recent.percentiles()["p99"]
    assert p99 is not None
    assert 300 < p99 <= 400
    lag.stop()
    lag.stop()
    assert clock.getDelayedCalls() == [], "the timer expected to be gone"


def test_the_collector_is_heard_while_wanted() -> None:
    garbage = GarbagePauses()
    garbage.start()
    garbage.start()
    gc.collect()
    garbage.stop()
    gc.collect()
    assert sum(garbage.pauses[2].counts) == 1
