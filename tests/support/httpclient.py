"""A blocking HTTP/1.1 client for tests: a plain socket, so that tests may also misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.support.events import Json


@dataclass
class Answer:
    """One whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        return error

    @property
    def events(self) -> list[Json]:
        """The data of server-sent events; each is checked to be named after its type."""
        return read_events(self.body)


def read_events(body: bytes) -> list[Json]:
    events: list[Json] = []
    for block in body.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(line.split(": ", 1) for line in lines)
            events.append(json.loads(fields["data"]))
            assert fields["event"] == events[-1]["type"], "an event is named after its type"
    return events


@dataclass
class HttpClient:
    """One connection. `key=None` sends no Authorization header; `sock` is one in use."""

    port: int
    key: str | None = "key-laptop"
    timeout: float = 15.0
    receive_buffer: int | None = None
    buffered: bytes = b""
    sock: Any = None

    def __post_init__(self) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
            return
        self.sock = socket.socket()
        if self.receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        self.sock.settimeout(self.timeout)
        self.sock.connect(("127.0.0.1", self.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # ---- sending

    def head(
        self,
        method: str = "POST",
        path: str = "/v1/responses",
        headers: Iterable[tuple[str, str]] = (),
        length: int | None = None,
    ) -> bytes:
        fields = [("Host", f"127.0.0.1:{self.port}"), *headers]
        if self.key is not None:
            fields.append(("Authorization", f"Bearer {self.key}"))
        if length is not None:
            fields.append(("Content-Length", str(length)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def send(
        self,
        method: str = "POST",
        path: str = "/v1/responses",
        body: bytes | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        length = None if body is None else len(body)
        self.sock.sendall(self.head(method, path, headers, length) + (body or b""))

    def post(self, headers: Iterable[tuple[str, str]] = (), **members: Any) -> None:
        """Send a `POST /v1/responses` with these members of the body."""
        body = {"model": "gpt-5.5", "input": "hi", **members}
        self.send(body=json.dumps(body).encode(), headers=headers)

    # ---- receiving

    def ask(self, *args: Any, **options: Any) -> Answer:
        self.send(*args, **options)
        return self.answer()

    def create(self, headers: Iterable[tuple[str, str]] = (), **members: Any) -> Answer:
        self.post(headers, **members)
        return self.answer()

    def answer(self) -> Answer:
        """The next answer, whole; an AssertionError when the connection ends within it."""
        answer = self.begin()
        if answer.status in (204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while piece := self.chunk():
                answer.body += piece
        elif "content-length" in answer.headers:
            answer.body = self.exactly(int(answer.headers["content-length"]))
        else:
            answer.body, self.buffered = self.buffered, b""
            while data := self.sock.recv(65536):
                answer.body += data
        return answer

    def begin(self) -> Answer:
        """The head of the next answer."""
        lines = self.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        pairs = (line.partition(":") for line in lines[1:] if line)
        return Answer(status, {name.lower(): value.strip() for name, _, value in pairs})

    def chunk(self) -> bytes:
        """The next piece of a chunked body; empty at its end."""
        size = int(self.until(b"\r\n").split(b";")[0], 16)
        return self.exactly(size + 2)[:-2]

    def until(self, end: bytes) -> bytes:
        while end not in self.buffered:
            self._more()
        data, _, self.buffered = self.buffered.partition(end)
        return data

    def exactly(self, size: int) -> bytes:
        while len(self.buffered) < size:
            self._more()
        data, self.buffered = self.buffered[:size], self.buffered[size:]
        return data

    def is_closed(self) -> bool:
        """Whether the gateway closes the connection; waits for that."""
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return True
        assert not data, f"the client expected the end, got {data[:200]!r}"
        return True

    def _more(self) -> None:
        data = self.sock.recv(65536)
        assert data, f"the connection ended within an answer, after {self.buffered[-300:]!r}"
        self.buffered += data

    # ---- leaving

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()
