"""Runs the programs of `clients/`: tool loops of one real client, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = Path(__file__).parent / "clients"
PYTHON = REPOSITORY / ".e2e" / "python" / "bin" / "python"
NODE_MODULES = REPOSITORY / ".e2e" / "node" / "node_modules"


@dataclass(frozen=True)
class RealClient:
    """One client.

    :ivar program: a file of `clients/`, whose first lines tell its modes.
    :ivar package: what has to be installed for it.
    :ivar modes: those that are tried, one conversation each.
    """

    program: str
    package: str
    modes: tuple[str, ...]

    def __str__(self) -> str:
        return self.program.removeprefix("run_")

    @property
    def is_installed(self) -> bool:
        if self.program.endswith(".mjs"):
            return shutil.which("node") is not None and (NODE_MODULES / self.package).is_dir()
        return any(PYTHON.parents[1].glob(f"lib/*/site-packages/{self.package}"))


@dataclass(frozen=True)
class ClientRun:
    """What a program printed, and how it ended."""

    returncode: int | None  # None: killed after the time limit
    stdout: str
    stderr: str
    seconds: float

    @property
    def outcomes(self) -> dict[str, Any]:
        """By mode: the model's answers and the rounds that were run, or what went wrong."""
        lines = [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]
        return {line.pop("mode"): line for line in lines}

    def report(self) -> str:
        ending = "killed after the time limit" if self.returncode is None else self.returncode
        return (
            f"exit status: {ending}, {self.seconds:.1f} s\n"
            f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        )


def run_client(
    client: RealClient, task: dict[str, Any], directory: Path, *, proxy: str, timeout: float = 120
) -> ClientRun:
    """One conversation a mode; the task has `base_url`, `key`, `prompts`, and `models` by mode."""
    started = time.monotonic()
    returncode: int | None
    try:
        done = subprocess.run(
            _command(client, directory),
            cwd=directory,
            env=_environment(task, directory, proxy),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        returncode, stdout, stderr = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as late:
        returncode, stdout, stderr = None, _text(late.stdout), _text(late.stderr)
    return ClientRun(returncode, stdout, stderr, time.monotonic() - started)


def _command(client: RealClient, directory: Path) -> list[str]:
    if client.program.endswith(".py"):
        return [str(PYTHON), "-B", str(PROGRAMS / client.program)]
    # Node looks for packages beside the program.
    for program in PROGRAMS.glob("*.mjs"):
        shutil.copy(program, directory)
    (directory / "node_modules").symlink_to(NODE_MODULES)
    return ["node", client.program]


def _environment(task: dict[str, Any], home: Path, proxy: str) -> dict[str, str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "E2E_TASK": json.dumps(task)}
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment[name] = environment[name.upper()] = proxy
    environment["no_proxy"] = environment["NO_PROXY"] = "127.0.0.1,localhost"
    return environment


def _text(output: bytes | str | None) -> str:
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output or ""
