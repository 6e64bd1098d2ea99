"""Starts the gateway as an operator does: twistd, a configuration file, SIGTERM."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from tests.support.events import Json
from tests.support.ports import free_port
from tests.support.upstream import Upstream
from tests.support.wsclient import WsClient

ROOT = Path(__file__).resolve().parents[2]
CLIENT_KEYS = {"laptop": "key-laptop", "desk": "key-desk"}
BAD_WORDS = ("Unhandled error", "Unhandled Error", "Traceback (most recent call last)")
START_SECONDS = 30.0

BASE: Json = {
    "keys": [{"name": name, "key": key} for name, key in CLIENT_KEYS.items()],
    "timeouts": {
        "connect_seconds": 5,
        "first_byte_seconds": 20,
        "idle_seconds": 20,
        "shutdown_seconds": 3,
    },
    # Refusals are looked at often; a test that wants turns to wait says so.
    "routing": {"queue_seconds": 1},
    "log": {"format": "text", "level": "info"},
}


def account(name: str, upstream: Upstream | str, **fields: Any) -> Json:
    """An `accounts:` entry that points at an upstream (or a base URL)."""
    url = upstream if isinstance(upstream, str) else upstream.base_url
    return {"name": name, "base_url": url, "key": f"upstream-secret-{name}", **fields}


def merged(base: Json, over: Json) -> Json:
    result = copy.deepcopy(base)
    for name, value in over.items():
        if isinstance(value, dict) and isinstance(result.get(name), dict):
            result[name] = merged(result[name], value)
        else:
            result[name] = copy.deepcopy(value)
    return result


class Gateway:
    """One running gateway process. `config` overrides the base configuration.

    With `instead_of` it listens where that one did, has its state, and continues its log.
    """

    def __init__(
        self,
        folder: Path,
        config: Json,
        environ: dict[str, str] | None = None,
        instead_of: Gateway | None = None,
    ) -> None:
        self.port = free_port() if instead_of is None else instead_of.port
        self.admin_port = free_port() if instead_of is None else instead_of.admin_port
        self.config = merged(BASE, config)
        self.config.setdefault("listen", f"tcp:{self.port}:interface=127.0.0.1")
        listen = f"tcp:{self.admin_port}:interface=127.0.0.1"
        self.config["admin"] = {"listen": listen, **self.config.get("admin", {})}
        self.log_path = folder / f"gateway-{self.port}.log"
        path = folder / f"gateway-{self.port}.yaml"
        path.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")
        self.clients: list[WsClient] = []
        self.stopped = self.terminated = False
        own = {"PYTHONUNBUFFERED": "1", "XDG_STATE_HOME": str(folder / f"state-{self.port}")}
        twistd = Path(sys.executable).parent / "twistd"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(twistd), "-n", "--pidfile=", "responses-gateway", "--config", str(path)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, **own, **(environ or {})},
            )
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"the gateway did not start:\n{self.log()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        self.process.kill()
        raise AssertionError(f"the gateway does not listen on {self.port}:\n{self.log()}")

    # ---- for tests

    def connect(self, **options: Any) -> WsClient:
        """A WebSocket client that is closed when the test ends."""
        client = WsClient(self.port, **options)
        self.clients.append(client)
        return client

    def close_clients(self) -> None:
        for client in self.clients:
            client.drop()
        self.clients.clear()

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def terminate(self) -> None:
        """Ask it to stop, once; does not wait."""
        if self.terminated:
            return
        self.terminated = True
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash does."""
        self.stopped = True
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> None:
        """SIGTERM, wait, and look through its log."""
        if self.stopped:
            return
        self.stopped = True
        self.close_clients()
        if self.process.poll() is None:
            self.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"the gateway did not stop:\n{self.log()[-4000:]}") from None
        self.check_log()

    def check_log(self, start: int = 0) -> None:
        """No tracebacks and no secrets, from `start` on."""
        log = self.log()[start:]
        for word in BAD_WORDS:
            at = log.find(word)
            assert at < 0, f"the gateway's log has {word!r}:\n{log[max(0, at - 500) :][:5000]}"
        for secret in self.secrets():
            assert secret not in log, f"the gateway's log shows the secret {secret!r}"

    def secrets(self) -> list[str]:
        accounts = self.config.get("accounts") or []
        return [entry["key"] for entry in [*self.config["keys"], *accounts] if entry.get("key")]
