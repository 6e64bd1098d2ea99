"""The process: memory, open files and CPU time, and what makes its event loop late.

What cannot be read is None.
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from gateway.metrics.histogram import Histogram, Recent

#: Limits as large as this are none.
_ENDLESS = 1 << 60

_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")

#: Between two samples of the event loop's lag, in seconds.
SAMPLE_SECONDS = 0.25


class ProcessFigures(NamedTuple):
    """One reading.

    :ivar rss_bytes: memory that is resident.
    :ivar open_files: sockets among them.
    """

    rss_bytes: int | None
    open_files: int | None
    open_files_limit: int | None
    cpu_seconds: float


def read_process(proc: Path = _PROC) -> ProcessFigures:
    """Read the figures; takes some 100 us, and 1 ms where 4,000 files are open."""
    rss = files = None
    with suppress(OSError, ValueError, IndexError):
        rss = int((proc / "statm").read_bytes().split()[1]) * resource.getpagesize()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        files = len(os.listdir(proc / "fd"))
    except OSError as error:
        if error.errno == errno.EMFILE:
            files = limit  # listing the directory opens one file
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return ProcessFigures(
        rss,
        files,
        None if limit == resource.RLIM_INFINITY else limit,
        usage.ru_utime + usage.ru_stime,
    )


def memory_budget(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """The memory that the process's control groups leave it, in bytes; None without a limit."""
    limits = [limit for path in _limit_files(proc, cgroups) if (limit := _limit_in(path))]
    return min(limits, default=None)


def _limit_files(proc: Path, cgroups: Path) -> Iterator[Path]:
    """Those of its group and of all groups above, in either version of control groups."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in group.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield root.joinpath(*parts[:depth], name)


def _limit_in(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        limit = int(path.read_text())  # or "max"
        return limit if 0 < limit < _ENDLESS else None
    return None


class LoopLag:
    """Measures how late the event loop is: every stream waits while something takes long.

    :param now: monotonic seconds.
    :ivar lag: in milliseconds.
    """

    def __init__(
        self, reactor: IReactorTime, marks: int, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.lag = Histogram()
        self.recent = Recent(self.lag, marks)
        self._reactor = reactor
        self._now = now
        self._due = 0.0
        self._call: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to sample."""
        if self._call is None:
            self._schedule()

    def stop(self) -> None:
        """Stop sampling."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _schedule(self) -> None:
        self._due = self._now() + SAMPLE_SECONDS
        self._call = self._reactor.callLater(SAMPLE_SECONDS, self._sample)

    def _sample(self) -> None:
        self.lag.add(max(0.0, self._now() - self._due) * 1000)
        self._schedule()


class GarbagePauses:
    """Measures how long Python's garbage collector stops everything.

    :ivar pauses: in milliseconds, by generation.
    """

    def __init__(self) -> None:
        self.pauses = [Histogram() for _ in range(3)]
        self._began = 0.0

    def start(self) -> None:
        """Begin to measure."""
        if self._collected not in gc.callbacks:
            gc.callbacks.append(self._collected)

    def stop(self) -> None:
        """Stop measuring."""
        if self._collected in gc.callbacks:
            gc.callbacks.remove(self._collected)

    def _collected(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.pauses[info["generation"]].add((time.perf_counter() - self._began) * 1000)
