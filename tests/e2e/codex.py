"""Runs the real Codex CLI, shut in: its home in a temporary directory, loopback traffic only."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NODE_MODULES = REPOSITORY / ".e2e" / "node" / "node_modules"
PINS = Path(__file__).parent / "clients" / "package.json"
ENV_KEY = "E2E_GATEWAY_KEY"


def _pinned(name: str) -> str:
    """The version of a package that has another name here: `npm:@openai/codex@0.118.0`."""
    wanted: str = json.loads(PINS.read_text())["dependencies"][name]
    return wanted.rpartition("@")[2]


#: The versions of Codex that the gateway is tested with.
OLDEST = _pinned("codex-oldest")
NEWEST = _pinned("codex-newest")


@dataclass(frozen=True)
class CodexClient:
    """One version of Codex with one model: each speaks a dialect of its own."""

    version: str
    model: str

    def __str__(self) -> str:
        return f"codex-{self.version}-{self.model}"

    def binary(self) -> Path | None:
        """The native program inside the npm packages, wherever npm hoisted it to; or None."""
        for manifest in NODE_MODULES.glob("**/@openai/codex-*/package.json"):
            version = json.loads(manifest.read_text()).get("version", "")
            if version.split("-")[0] == self.version:
                for program in manifest.parent.glob("vendor/*/*/codex"):
                    if os.access(program, os.X_OK):
                        return program
        return None


@dataclass(frozen=True)
class CodexRun:
    """What one `codex exec` printed, and how it ended."""

    returncode: int | None  # None: killed after the time limit
    stdout: str
    stderr: str
    seconds: float

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines() if line.startswith("{")]

    @property
    def error_lines(self) -> list[str]:
        """Everything Codex reports as going wrong, reconnects and fallbacks included."""
        return [
            json.dumps(event)
            for event in self.events
            if event["type"] in ("error", "turn.failed")
            or event.get("item", {}).get("type") == "error"
        ]

    @property
    def messages(self) -> list[str]:
        """The model's messages to the user."""
        return [item["text"] for item in self._completed_items("agent_message")]

    @property
    def commands(self) -> list[dict[str, Any]]:
        """The shell commands Codex says it ran."""
        return self._completed_items("command_execution")

    def _completed_items(self, kind: str) -> list[dict[str, Any]]:
        items = [event["item"] for event in self.events if event["type"] == "item.completed"]
        return [item for item in items if item["type"] == kind]

    def report(self) -> str:
        ending = "killed after the time limit" if self.returncode is None else self.returncode
        return (
            f"exit status: {ending}, {self.seconds:.1f} s\n"
            f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"
        )


def run_codex(
    client: CodexClient,
    base_url: str,
    key: str,
    prompt: str,
    directory: Path,
    *,
    proxy: str,
    websockets: bool = True,
    resume: bool = False,
    timeout: float = 120,
) -> CodexRun:
    """`codex exec` with one prompt; the whole process group is gone when this returns.

    `resume` continues the last conversation that was held in the same directory.
    """
    binary = client.binary()
    assert binary is not None, f"{client} is not installed under {NODE_MODULES}"
    work, environment = configured(
        client, base_url, key, directory, proxy=proxy, websockets=websockets
    )
    command = ["resume", "--last"] if resume else []
    started = time.monotonic()
    process = subprocess.Popen(
        [str(binary), "exec", *command, "--json", "--skip-git-repo-check", prompt],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    returncode: int | None
    try:
        stdout, stderr = process.communicate(timeout=timeout)
        returncode = process.returncode
    except subprocess.TimeoutExpired:
        kill_group(process)
        stdout, stderr = process.communicate()
        returncode = None
    finally:
        kill_group(process)
    return CodexRun(returncode, stdout, stderr, time.monotonic() - started)


def configured(
    client: CodexClient,
    base_url: str,
    key: str,
    directory: Path,
    *,
    proxy: str,
    websockets: bool = True,
) -> tuple[Path, dict[str, str]]:
    """A home of its own for one Codex; returns where it works, and its environment."""
    home, work = directory / "home", directory / "work"
    codex_home = home / ".codex"
    codex_home.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    (codex_home / "config.toml").write_text(_config(client, base_url, websockets))
    return work, _environment(home, codex_home, key, proxy)


def kill_group(process: subprocess.Popen[str]) -> None:
    """End a process that has a session of its own, and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment(home: Path, codex_home: Path, key: str, proxy: str) -> dict[str, str]:
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "CODEX_HOME": str(codex_home),
        "TERM": "dumb",
        ENV_KEY: key,
    }
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        environment[name] = environment[name.upper()] = proxy
    environment["no_proxy"] = environment["NO_PROXY"] = "127.0.0.1,localhost"
    return environment


def _config(client: CodexClient, base_url: str, websockets: bool) -> str:
    return f"""\
model = "{client.model}"
model_provider = "gateway"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false

[model_providers.gateway]
name = "gateway"
base_url = "{base_url}"
wire_api = "responses"
env_key = "{ENV_KEY}"
supports_websockets = {"true" if websockets else "false"}

[features]
plugins = false
apps = false
remote_plugin = false

[analytics]
enabled = false

[feedback]
enabled = false
"""
