"""A blocking WebSocket client for tests: wsproto frames on a plain socket.

The handshake is written by hand so that tests can send any header and read any refusal; the
incoming byte stream is also read frame by frame, so that tests can look at single frames.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.utilities import LocalProtocolError

from tests.support.events import Json

TERMINAL = ("response.completed", "response.failed", "response.incomplete", "error")
DEFLATE = "permessage-deflate; client_max_window_bits"
TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA


@dataclass
class Refused(Exception):
    """The upgrade was answered by something else than 101."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"handshake refused: {self.status} {self.body[:300]!r}"


@dataclass
class SocketClosed(Exception):
    """The server closed the connection; 1006 means without a Close frame."""

    code: int
    reason: str = ""

    def __str__(self) -> str:
        return f"the gateway closed the socket: {self.code} {self.reason!r}"


class Silence(Exception):
    """Nothing came before the deadline."""


@dataclass
class Frame:
    """The head of one incoming frame."""

    opcode: int
    fin: bool
    rsv1: bool
    length: int


@dataclass
class FrameTap:
    """Reads the heads of all frames of a byte stream."""

    frames: list[Frame] = field(default_factory=list)
    _skip: int = 0
    _head: bytes = b""

    def feed(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                continue
            self._head += data[at : at + 1]
            at += 1
            self._parse()

    def _parse(self) -> None:
        head = self._head
        if len(head) < 2:
            return
        length = head[1] & 0x7F
        size = 2 + {126: 2, 127: 8}.get(length, 0)
        if len(head) < size:
            return
        if size > 2:
            length = int.from_bytes(head[2:size], "big")
        self.frames.append(
            Frame(head[0] & 0x0F, bool(head[0] & 0x80), bool(head[0] & 0x40), length)
        )
        self._skip, self._head = length, b""


class WsClient:
    """One WebSocket connection. `key=None` sends no Authorization header."""

    def __init__(
        self,
        port: int,
        *,
        path: str = "/v1/responses",
        key: str | None = "key-laptop",
        headers: Iterable[tuple[str, str]] = (),
        host: str | None = None,
        extensions: str | None = None,
        version: str = "13",
        connection: str = "Upgrade",
        receive_buffer: int | None = None,
        timeout: float = 15.0,
    ) -> None:
        self.timeout = timeout
        self.auto_pong = True
        self.defaults: Json = {}  # members of every response.create that does not set them
        self.tap = FrameTap()
        self.texts: list[str] = []  # every text message as it came
        self.pongs: list[bytes] = []
        self.binaries: list[bytes] = []
        self.close_code: int | None = None
        self._partial: list[str] = []
        self._ready: deque[str] = deque()
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.connect(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fields = [
            ("Host", host or f"127.0.0.1:{port}"),
            ("Connection", connection),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", version),
            ("Sec-WebSocket-Key", base64.b64encode(os.urandom(16)).decode()),
        ]
        if key is not None:
            fields.append(("Authorization", f"Bearer {key}"))
        if extensions is not None:
            fields.append(("Sec-WebSocket-Extensions", extensions))
        fields.extend(headers)
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
        self.sock.sendall("\r\n".join(lines).encode("latin-1"))
        self.status, self.headers, rest = self._read_head()
        if self.status != 101:
            body = self._read_body(rest)
            self.sock.close()
            raise Refused(self.status, self.headers, body)
        agreed: list[Extension] = []
        accepted = self.headers.get("sec-websocket-extensions")
        if accepted is not None:
            deflate = PerMessageDeflate()
            deflate.finalize(accepted)
            agreed.append(deflate)
        self.compressed = bool(agreed)
        self._ws = Connection(ConnectionType.CLIENT, agreed)
        self._feed(rest)

    # ---- handshake

    def _read_head(self) -> tuple[int, dict[str, str], bytes]:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65536)
            if not piece:
                raise SocketClosed(1006, f"during the handshake, after {data!r}")
            data += piece
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        return int(first.split(" ")[1]), headers, rest

    def _read_body(self, rest: bytes) -> bytes:
        wanted = self.headers.get("content-length")
        with contextlib.suppress(OSError):
            while wanted is None or len(rest) < int(wanted):
                piece = self.sock.recv(65536)
                if not piece:
                    break
                rest += piece
        return rest

    # ---- sending

    def send(self, message: Json | str) -> None:
        """One text message, JSON unless it is a string already."""
        text = message if isinstance(message, str) else json.dumps(message)
        self.sock.sendall(self._ws.send(TextMessage(data=text)))

    def create(self, **fields: Any) -> Json:
        """Send a response.create; returns what was sent."""
        message = create(**{**self.defaults, **fields})
        self.send(message)
        return message

    def send_fragments(self, *pieces: str) -> None:
        """One text message in several frames."""
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            self.sock.sendall(self._ws.send(TextMessage(data=piece, message_finished=last)))

    def send_binary(self, data: bytes) -> None:
        self.sock.sendall(self._ws.send(BytesMessage(data=data)))

    def send_frame(self, opcode: int, payload: bytes, *, fin: bool = True, rsv: int = 0) -> None:
        """A frame as it is, unmasked in effect (mask key of zeros), whatever it holds."""
        head = bytes([(0x80 if fin else 0) | (rsv << 4) | opcode])
        size = len(payload)
        if size < 126:
            head += bytes([0x80 | size])
        elif size < 65536:
            head += b"\xfe" + struct.pack("!H", size)
        else:
            head += b"\xff" + struct.pack("!Q", size)
        self.sock.sendall(head + b"\0\0\0\0")
        self.sock.sendall(payload)

    def ping(self, payload: bytes = b"") -> None:
        self.sock.sendall(self._ws.send(Ping(payload=payload)))

    # ---- receiving

    def text(self, timeout: float | None = None) -> str:
        """The next text message; Silence after the deadline, SocketClosed at the end."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not self._ready:
            if self.close_code is not None:
                raise SocketClosed(self.close_code)
            self._pump(deadline)
        return self._ready.popleft()

    def event(self, timeout: float | None = None) -> Json:
        event = json.loads(self.text(timeout))
        assert isinstance(event, dict), f"a client expects objects, got {event!r}"
        return event

    def until(
        self, *types: str, lane: str | None = None, timeout: float | None = None
    ) -> list[Json]:
        """Events of a lane up to one of these types; of every lane with lane='*'."""
        events: list[Json] = []
        while True:
            event = self.event(timeout)
            if lane == "*" or event.get("stream_id") == lane:
                events.append(event)
                if event["type"] in types:
                    return events

    def until_terminal(self, lane: str | None = None, timeout: float | None = None) -> list[Json]:
        return self.until(*TERMINAL, lane=lane, timeout=timeout)

    def turn(self, timeout: float | None = None, **fields: Any) -> list[Json]:
        """Send a response.create and read up to its terminal event."""
        sent = self.create(**fields)
        return self.until_terminal(sent.get("stream_id"), timeout)

    def wait_pong(self, count: int = 1, timeout: float = 15.0) -> None:
        deadline = time.monotonic() + timeout
        while len(self.pongs) < count:
            self._pump(deadline)

    def wait_closed(self, timeout: float = 15.0) -> int:
        """Read on until the server closes; returns the close code."""
        deadline = time.monotonic() + timeout
        while self.close_code is None:
            self._pump(deadline)
        return self.close_code

    def assert_silent(self, seconds: float = 0.5) -> None:
        """Nothing more may come for a while."""
        try:
            text = self.text(seconds)
        except Silence:
            return
        raise AssertionError(f"the client expected nothing more, got {text[:500]}")

    def _pump(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise Silence("nothing from the gateway before the deadline")
        if self.close_code is not None:
            raise SocketClosed(self.close_code)
        self.sock.settimeout(left)
        try:
            data = self.sock.recv(1 << 20)
        except (TimeoutError, BlockingIOError):
            raise Silence("nothing from the gateway before the deadline") from None
        except OSError:
            data = b""
        finally:
            self.sock.settimeout(self.timeout)
        if not data:
            self.close_code = 1006
            return
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        self.tap.feed(data)
        self._ws.receive_data(data)
        for event in self._ws.events():
            if isinstance(event, TextMessage):
                self._partial.append(event.data)
                if event.message_finished:
                    text = "".join(self._partial)
                    self._partial.clear()
                    self.texts.append(text)
                    self._ready.append(text)
            elif isinstance(event, BytesMessage):
                self.binaries.append(bytes(event.data))
                raise AssertionError("the gateway sent a binary frame")
            elif isinstance(event, Ping):
                if self.auto_pong:
                    self.sock.sendall(self._ws.send(event.response()))
            elif isinstance(event, Pong):
                self.pongs.append(bytes(event.payload))
            elif isinstance(event, CloseConnection):
                self.close_code = int(event.code)
                with contextlib.suppress(OSError, LocalProtocolError):
                    self.sock.sendall(self._ws.send(event.response()))

    # ---- endings

    def close(self, code: int = 1000) -> None:
        """A Close frame, then the socket."""
        with contextlib.suppress(OSError, LocalProtocolError):
            if self.close_code is None:
                self.sock.sendall(self._ws.send(CloseConnection(code=code)))
        self.sock.close()

    def drop(self) -> None:
        """TCP end without a Close frame, as Codex does it."""
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def create(**fields: Any) -> Json:
    """A response.create with a model and an input unless given."""
    message: Json = {"type": "response.create", "model": "gpt-5.5", "input": "hello"}
    message.update(fields)
    return message
