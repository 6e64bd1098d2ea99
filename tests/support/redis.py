"""Starts a real redis-server on a free port, and ill-treats it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port

START_SECONDS = 20.0


def need_program(name: str, required: bool) -> None:
    """Skip, or fail where these tests are required to run."""
    if shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin:/usr/local/sbin"):
        return
    if required:
        pytest.fail(f"{name} is not installed (GATEWAY_REQUIRE_E2E=1)")
    pytest.skip(f"{name} is not installed")


class RedisServer:
    """A redis-server that keeps nothing on disk.

    :param options: of its command line, such as ``("--requirepass", "x")``.
    :param sentinel: the configuration of a Sentinel, which it is then.
    :param password: that it wants.
    """

    def __init__(
        self, folder: Path, *options: str, sentinel: Path | None = None, password: str = ""
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self.options = (*options, "--requirepass", password) if password else options
        self.password = password
        self.sentinel = sentinel
        self.start()

    @property
    def url(self) -> str:
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, empty."""
        command = ["redis-server"]
        if self.sentinel is not None:
            command += [str(self.sentinel), "--sentinel"]
        else:
            command += ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        command += ["--port", str(self.port), "--bind", "127.0.0.1", *self.options]
        with (self.folder / f"redis-{self.port}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for_port(self.port, self.process)

    def ask(self, *parts: str) -> Any:
        """The reply to one command, by a simple client of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as sock:
            file = sock.makefile("rwb")
            if self.password:
                _send(file, ("AUTH", self.password))
                assert _reply(file) == b"OK"
            _send(file, parts)
            return _reply(file)

    def stop_answering(self) -> None:
        """It hangs: connections stay, nothing is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def answer_again(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """It is gone, and so is all that it had in memory."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        self.stop_answering()
        try:
            yield
        finally:
            self.answer_again()


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args} did not start"
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"{process.args} does not listen on {port}")


class SlowLine:
    """Passes bytes on to a port, each some seconds later.

    :ivar seconds: the delay, each way.
    """

    def __init__(self, target: int, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pipe, args=pair, daemon=True).start()

    def _pipe(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                time.sleep(self.seconds)
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _send(file: Any, parts: tuple[str, ...]) -> None:
    words = [part.encode() for part in parts]
    file.write(b"*%d\r\n" % len(words))
    file.write(b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words))
    file.flush()


def _reply(file: Any) -> Any:
    line = file.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b":":
        return int(rest)
    if kind == b"$":
        return None if rest == b"-1" else file.read(int(rest) + 2)[:-2]
    if kind == b"*":
        return None if rest == b"-1" else [_reply(file) for _ in range(int(rest))]
    if kind == b"-":
        raise AssertionError(rest.decode())
    return rest
