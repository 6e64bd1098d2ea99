"""A scripted upstream on a loopback port: threads and plain sockets, every request logged.

A script is a function of one `Exchange`; it runs in the connection's thread, sends what it
likes, when it likes, and may end the connection at any point.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.events import Json, new_id, text_item, turn_events

Script = Callable[["Exchange"], object]
HOLD_LIMIT = 60.0


@dataclass
class Recorded:
    """One request as it arrived, and what became of it."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    raw: bytes
    body: Any
    connection: int
    received_at: float
    transport: str = "http"
    gone: threading.Event = field(default_factory=threading.Event)
    gone_at: float | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    bytes_sent: int = 0
    response_id: str | None = None
    refused: bool = False

    def header(self, name: str) -> str | None:
        """The value of a header, None if absent; `name` in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    @property
    def previous_response_id(self) -> str | None:
        value = self.body.get("previous_response_id")
        return value if isinstance(value, str) else None

    @property
    def input(self) -> Any:
        return self.body.get("input")

    def wait_gone(self, timeout: float = 15.0) -> bool:
        """Wait until the peer closed the connection in the middle of this exchange."""
        return self.gone.wait(timeout)


class Closed(Exception):
    """The script ended this connection itself."""


class Exchange:
    """One request being answered."""

    def __init__(self, upstream: Upstream, sock: socket.socket, request: Recorded) -> None:
        self.upstream = upstream
        self.request = request
        self._sock = sock
        self._chunked = False
        self.started = False
        self.complete = False

    # ---- whole answers

    def answer(
        self,
        items: list[Json] | None = None,
        *,
        response_id: str | None = None,
        event_lines: bool = True,
        **options: Any,
    ) -> str:
        """A whole successful turn that echoes the request's previous_response_id."""
        events = self.turn(items, response_id=response_id, **options)
        self.sse(*events, event_lines=event_lines)
        self.end()
        return str(self.request.response_id)

    def turn(
        self, items: list[Json] | None = None, *, response_id: str | None = None, **options: Any
    ) -> list[Json]:
        """The events of a successful turn for this request, not sent yet."""
        body = self.request.body
        options.setdefault("previous_response_id", body.get("previous_response_id"))
        options.setdefault("store", body.get("store", True))
        options.setdefault("model", body.get("model", "none"))
        self.request.response_id = response_id or new_id("resp")
        chosen = items if items is not None else [text_item()]
        return turn_events(chosen, self.request.response_id, **options)

    def json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(body).encode(), {"Content-Type": "application/json"}, headers)

    def reply(self, status: int, body: bytes, *headers: dict[str, str] | None) -> None:
        """A whole answer with a known length."""
        merged: dict[str, str] = {"Content-Length": str(len(body))}
        for more in headers:
            merged.update(more or {})
        self._head(status, merged)
        self.raw(body)
        self.complete = True

    # ---- pieces

    def start(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """The head of an SSE answer; sent at once."""
        self._chunked = True
        base = {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}
        self._head(status, {**base, **(headers or {})})

    def sse(self, *events: Json, event_lines: bool = True) -> None:
        """Events as one chunk each, written at once."""
        self.chunks(*(sse_bytes(event, event_lines) for event in events))

    def chunks(self, *pieces: bytes) -> None:
        """Each piece as one HTTP chunk."""
        if not self.started:
            self.start()
        for piece in pieces:
            self.raw(b"%x\r\n%s\r\n" % (len(piece), piece))

    def raw(self, data: bytes) -> None:
        """Bytes as they are; counted as the peer's kernel takes them."""
        view = memoryview(data)
        while view:
            sent = self._sock.send(view[:65536])
            self.request.bytes_sent += sent
            view = view[sent:]

    def end(self) -> None:
        """A proper end of the answer; the connection stays open for the next request."""
        if self._chunked:
            self.raw(b"0\r\n\r\n")
        self.complete = True

    def close(self) -> None:
        """FIN in the middle of whatever was going on."""
        raise Closed

    def reset(self) -> None:
        """RST instead of an orderly end."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Closed

    def hold(self, release: threading.Event | None = None, timeout: float = HOLD_LIMIT) -> bool:
        """Stay silent until released, the peer is gone or the upstream stops; True if released."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if release is not None and release.is_set():
                return True
            if self.request.gone.is_set() or self.upstream.stopping.is_set():
                return False
            (release or self.request.gone).wait(0.02)
        return False

    def _head(self, status: int, headers: dict[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{k}: {v}" for k, v in headers.items())]
        self.started = True
        self.raw("\r\n".join([*lines, "", ""]).encode())


def sse_bytes(event: Json, event_line: bool = True) -> bytes:
    data = json.dumps(event, separators=(",", ":"))
    head = f"event: {event['type']}\n" if event_line else ""
    return f"{head}data: {data}\n\n".encode()


def new_listener(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, 0), family=family, backlog=256)


class Upstream:
    """The server. `script` answers what the queue of one-time scripts does not."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        send_buffer: int | None = None,
    ) -> None:
        self.default: Script = script or Exchange.answer
        self.script = self.default
        self.requests: list[Recorded] = []
        self.errors: list[BaseException] = []
        self.connections = 0
        self.stopping = threading.Event()
        self._tls = tls
        self._send_buffer = send_buffer
        self._queue: deque[Script] = deque()
        self._arrived = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    # ---- where it listens

    def listen(self, listener: socket.socket | None = None) -> socket.socket:
        """Serve this socket, or a port of its own; the first call decides."""
        if self._listener is None:
            self._listener = listener or new_listener()
            threading.Thread(target=self._accept, name="upstream-accept", daemon=True).start()
        return self._listener

    @property
    def port(self) -> int:
        return int(self.listen().getsockname()[1])

    @property
    def base_url(self) -> str:
        host = self.listen().getsockname()[0]
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self._tls else 'http'}://{shown}:{self.port}/v1"

    # ---- for tests

    def queue(self, *scripts: Script) -> None:
        """Answer the next requests by these scripts, one each."""
        with self._arrived:
            self._queue.extend(scripts)

    def reset(self) -> None:
        """Forget log, queue and script: a clean start for the next test."""
        with self._arrived:
            self.requests = []
            self._queue.clear()
            self.errors = []
            self.script = self.default

    def wait_for(self, count: int, timeout: float = 15.0) -> list[Recorded]:
        """Wait until `count` requests arrived; returns the log."""
        with self._arrived:
            came = self._arrived.wait_for(lambda: len(self.requests) >= count, timeout)
            assert came, f"the upstream expected {count} requests, got {len(self.requests)}"
            return list(self.requests)

    def drop_connections(self) -> None:
        """Cut every open connection, idle ones too."""
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        self.stopping.set()
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        self.drop_connections()
        assert not self.errors, f"scripts of the upstream failed: {self.errors!r}"

    def arrive(self, request: Recorded) -> Script:
        """Log a request; the script that answers it."""
        with self._arrived:
            self.requests.append(request)
            script = self._queue.popleft() if self._queue else self.script
            self._arrived.notify_all()
        return script

    # ---- threads

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self.listen().accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(
                target=self._serve, args=(sock, self.connections), name="upstream", daemon=True
            ).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer)
        reader = None
        try:
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            self._sockets.add(sock)
            reader = sock.makefile("rb")
            while not self.stopping.is_set():
                request = read_request(reader, number)
                if request is None or not self._exchange(sock, request):
                    return
        except (OSError, ValueError):
            pass
        finally:
            self._sockets.discard(sock)
            if reader is not None:  # it holds the descriptor open as well
                reader.close()
            sock.close()

    def _exchange(self, sock: socket.socket, request: Recorded) -> bool:
        exchange = Exchange(self, sock, request)
        script = self.arrive(request)
        wake, over = os.pipe()
        watcher = threading.Thread(target=_watch, args=(sock, request, wake), daemon=True)
        watcher.start()
        try:
            script(exchange)
        except Closed:
            return False
        except OSError:
            return False
        except BaseException as error:
            self.errors.append(error)
            return False
        finally:
            request.finished.set()
            os.close(over)  # wakes the watcher
            watcher.join()
            os.close(wake)
        return exchange.complete


def _watch(sock: socket.socket, request: Recorded, wake: int) -> None:
    """Note the moment the peer goes away while its request is being answered."""
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    poller.register(wake, select.POLLHUP)
    ready = [number for number, _ in poller.poll()]
    if ready != [wake]:
        request.gone_at = time.monotonic()
        request.gone.set()


def read_request(reader: Any, connection: int) -> Recorded | None:
    """One HTTP/1.1 request with a length or in chunks; None at the end of the connection."""
    first = reader.readline()
    if not first.strip():
        return None
    method, target, _ = first.decode("latin-1").split(" ", 2)
    headers: list[tuple[str, str]] = []
    while (line := reader.readline().decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        headers.append((name.strip().lower(), value.strip(" \t")))
    fields = dict(headers)
    if "chunked" in fields.get("transfer-encoding", ""):
        raw = b""
        while size := int(reader.readline().split(b";")[0], 16):
            raw += reader.read(size)
            reader.readline()
        reader.readline()
    else:
        raw = reader.read(int(fields.get("content-length", "0")))
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = None
    return Recorded(method, target, headers, raw, body, connection, time.monotonic())
