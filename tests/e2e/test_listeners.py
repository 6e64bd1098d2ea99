"""Clients over TLS and over a UNIX socket: the same conversation, the same quiet end."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.certificates import self_signed
from tests.support.gateway import BAD_WORDS
from tests.support.ports import free_port

websockets = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
DEADLINE = 30


def converse(listen: str, folder: Path, connect: Callable[[], Any]) -> None:
    """Two chained turns on the simulator, then SIGTERM."""
    config = folder / "gateway.yaml"
    config.write_text(
        json.dumps({"listen": listen, "admin": {"listen": None}, "simulator": {"accounts": 1}})
    )
    twistd = Path(sys.executable).parent / "twistd"
    process = subprocess.Popen(
        [twistd, "-n", "--pidfile=", "responses-gateway", "--config", config],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        with when_listening(connect, process) as client:
            first = turn(client, input="My code word is heron.")
            second = turn(client, input="Which code word?", previous_response_id=first["id"])
            assert "heron" in json.dumps(second["output"]), "the second turn lost the first"
    finally:
        process.send_signal(signal.SIGTERM)
        log, _ = process.communicate(timeout=DEADLINE)
    assert not any(word in log for word in BAD_WORDS), log


def when_listening(connect: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            return connect()
        except OSError:
            assert process.poll() is None, "the gateway did not start"
            assert time.monotonic() < deadline, "the gateway does not listen"
            time.sleep(0.05)


def turn(client: Any, **fields: Any) -> Any:
    client.send(json.dumps({"type": "response.create", "model": "m", **fields}))
    while True:
        event = json.loads(client.recv(timeout=DEADLINE))
        assert event["type"] not in ("error", "response.failed"), f"the turn failed: {event}"
        if event["type"] == "response.completed":
            return event["response"]


def test_clients_over_tls(tmp_path: Path) -> None:
    key, certificate = self_signed(tmp_path)
    port = free_port()
    trust = ssl.create_default_context(cafile=str(certificate))
    converse(
        f"ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
        tmp_path,
        lambda: websockets.connect(
            f"wss://localhost:{port}/v1/responses", ssl=trust, compression=None, proxy=None
        ),
    )


def test_clients_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "clients.sock"
    converse(
        f"unix:{path}",
        tmp_path,
        lambda: websockets.unix_connect(str(path), "ws://localhost/v1/responses"),
    )
