"""A gateway that starts in a moment: a fork of a process that has loaded everything already."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, NamedTuple

from tests.support.events import Json, user
from tests.support.gateway import BASE, CLIENT_KEYS, ROOT, merged
from tests.support.ports import free_port

#: Seconds until it must listen.
_STARTS = 20.0


class Said(NamedTuple):
    status: int
    text: str

    @property
    def response_id(self) -> str:
        return str(json.loads(self.text)["id"])


class ForkedGateway:
    """Gateways of one configuration, one after the other.

    :ivar killed_at_before: when the one before this was killed.
    """

    def __init__(self, config: Json) -> None:
        self.port = free_port()
        listen = f"tcp:{self.port}:interface=127.0.0.1"
        self._config = merged(BASE, {"listen": listen, "admin": {"listen": None}, **config})
        self._mother = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.forked_gateway"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.running = False
        self.killed_at = self.killed_at_before = 0.0
        self._pid = 0

    def __enter__(self) -> ForkedGateway:
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.kill()
        self._mother.kill()
        self._mother.wait()

    def start(self) -> None:
        """Start one, and wait until it listens."""
        assert self._mother.stdin is not None
        assert self._mother.stdout is not None
        self._mother.stdin.write(json.dumps(self._config) + "\n")
        self._mother.stdin.flush()
        self._pid = int(self._mother.stdout.readline())
        self.killed_at_before, self.running = self.killed_at, True
        late = time.monotonic() + _STARTS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < late, "it does not listen"
                time.sleep(0.005)

    def kill(self) -> None:
        """End it at once."""
        os.kill(self._pid, signal.SIGKILL)
        self.killed_at, self.running = time.monotonic(), False

    def wait(self) -> None:
        """Wait until the process has ended."""
        assert self._mother.stdout is not None
        assert self._mother.stdout.readline() == "ended\n"

    def ask(self, text: str, previous: str | None) -> Said:
        """One stored turn.

        :raises OSError: when it breaks off.
        """
        body = {"model": "gpt-5.5", "input": [user(text)], "previous_response_id": previous}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {
            "authorization": f"Bearer {CLIENT_KEYS['laptop']}",
            "content-type": "application/json",
        }
        try:
            connection.request("POST", "/v1/responses", json.dumps(body), headers)
            answer = connection.getresponse()
            return Said(answer.status, answer.read().decode())
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()


def _serve(config: Any) -> None:
    """What a child does."""
    from twisted.internet import reactor

    from gateway.config import load_settings
    from gateway.service import GatewayService

    service = GatewayService(load_settings(json.dumps(config), {}, "forked"), reactor)
    service.privilegedStartService()
    service.startService()
    run: Any = reactor
    run.run(installSignalHandlers=False)


def _main() -> None:
    """Fork a gateway for each line, and tell its process id, and when it has ended."""
    import gateway.service

    assert gateway.service
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _serve(json.loads(line))
            os._exit(0)
        print(pid, flush=True)
        os.waitpid(pid, 0)
        print("ended", flush=True)


if __name__ == "__main__":
    _main()
