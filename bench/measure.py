"""Processes under test: started, pinned to a core, their CPU time and memory read from /proc."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from load import BenchError

_TICK = os.sysconf("SC_CLK_TCK")


def pin(pid: int, core: int) -> bool:
    """Keep a process on one core; whether that was possible."""
    try:
        os.sched_setaffinity(pid, {core})
    except (AttributeError, OSError):
        return False
    return True


def raise_file_limit() -> None:
    """Let this process, and those it starts, open as many files as allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Process:
    """A child process that listens on a loopback port."""

    def __init__(
        self, name: str, command: Sequence[str], port: int, core: int | None, cwd: Path
    ) -> None:
        self.name, self.port = name, port
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._popen = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )
        self.pid = self._popen.pid
        self.pinned = core is not None and pin(self.pid, core)
        try:
            self._wait_until_listening()
        except BaseException:
            self.stop()
            raise

    def _wait_until_listening(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._popen.poll() is not None:
                raise BenchError(f"{self.name} ended at once:\n{self.log_tail()}")
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            time.sleep(0.05)
        raise BenchError(f"{self.name} does not listen on {self.port}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def cpu_seconds(self) -> float:
        """CPU time used so far by all threads."""
        total = 0
        try:
            for task in Path(f"/proc/{self.pid}/task").iterdir():
                total += int((task / "schedstat").read_bytes().split()[0])
            return total / 1e9
        except OSError:
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b") ")[2].split()
            return (int(fields[11]) + int(fields[12])) / _TICK

    def memory_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def stop(self) -> None:
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(5)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        self._log.close()


class Spent:
    """What a process spent between entering and leaving a block."""

    cpu = 0.0  # seconds of CPU
    wall = 0.0  # seconds
    foreign = 0.0  # share of its core that others used meanwhile


def _busy_seconds(core: int) -> float:
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name == f"cpu{core}":
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            return (user + nice + system + irq + softirq + steal) / _TICK
    return 0.0


@contextlib.contextmanager
def spending(process: Process, core: int) -> Iterator[Spent]:
    """Measure a process over a block."""
    spent = Spent()
    busy, cpu, wall = _busy_seconds(core), process.cpu_seconds(), time.perf_counter()
    yield spent
    spent.wall = time.perf_counter() - wall
    spent.cpu = process.cpu_seconds() - cpu
    if process.pinned and spent.wall:
        others = _busy_seconds(core) - busy - spent.cpu - 2 / _TICK  # that clock is coarse
        spent.foreign = max(0.0, others / spent.wall)
