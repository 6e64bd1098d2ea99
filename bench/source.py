"""The benchmark's upstream: POST /v1/responses answered with server-sent events, one per chunk, or
a WebSocket of the same path with one text frame per event.

A single-threaded server on plain sockets that must never be the bottleneck. What to answer stands
in the name of the model that a request asks for (see ``wire.model_name``): so many deltas, at once
or one every so many milliseconds, each in a TCP segment of its own.
"""

from __future__ import annotations

import heapq
import json
import re
import selectors
import socket
import sys
import time

from wire import HEAD, LAST_CHUNK, Answer, ClientFrames, accepted, chunk, text_frame

_MODEL = re.compile(rb'"model"\s*:\s*"([^"]*)"')
_PREVIOUS = re.compile(rb'"previous_response_id"\s*:\s*"([^"]*)"')
_KEY = re.compile(rb"\r\nsec-websocket-key:\s*([^\r]*)", re.IGNORECASE)
_PING = 9
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)


class _Connection:
    def __init__(self, server: Source, sock: socket.socket) -> None:
        self.server, self.sock = server, sock
        self.received = bytearray()
        self.expected = 0  # length of the request being read, 0 while its head is incomplete
        self.unsent = memoryview(b"")
        self.waiting_to_write = False
        self.answer: Answer | None = None
        self.next_delta = 0
        self.open = True
        self.frames: ClientFrames | None = None  # of a WebSocket

    def readable(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.server.stats["bytes"] += len(data)
        if self.frames is not None:
            self.framed(data)
            return
        self.received += data
        if not self.expected:
            end = self.received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self.received, 0, end + 2)
            self.expected = end + 4 + (int(length[1]) if length else 0)
        if len(self.received) >= self.expected:
            request = bytes(self.received[: self.expected])
            del self.received[: self.expected]
            self.expected = 0
            self.requested(request)

    def requested(self, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        if head.startswith(b"GET /stats "):
            stats = json.dumps(self.server.stats).encode()
            self.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(stats), stats))
            return
        key = _KEY.search(head + b"\r\n")
        if key is not None:
            self.frames = ClientFrames()
            self.send(accepted(key[1].strip()))
            return
        self.turn(body)

    def framed(self, data: bytes) -> None:
        assert self.frames is not None
        for opcode, payload in self.frames.feed(data):
            if opcode == 1:
                self.turn(payload)
            elif opcode == _PING:
                self.send(bytes((0x8A, len(payload))) + payload)

    def turn(self, body: bytes) -> None:
        framing, head, end = chunk, HEAD, LAST_CHUNK
        if self.frames is not None:
            framing, head, end = text_frame, b"", b""
        model = _MODEL.search(body)
        previous = _PREVIOUS.search(body)
        stats_of = self.server.stats
        stats_of["requests"] += 1
        stats_of["chained"] += previous is not None
        stats_of["last_body_bytes"] = len(body)
        answer = Answer(
            stats_of["requests"],
            model[1].decode() if model else "bench-1-0",
            previous[1].decode() if previous else None,
            framing,
        )
        if not answer.every:
            self.send(b"".join((head, answer.before, answer.all_deltas(), answer.after, end)))
            return
        self.answer, self.next_delta = answer, 0
        self.send(head + answer.before)
        # Streams that start together do not tick together.
        phase = stats_of["requests"] * 0.618034 % 1.0
        self.server.at(time.monotonic() + (1 + phase) * answer.every, self)

    def tick(self, due: float) -> None:
        answer = self.answer
        if answer is None or not self.open:
            return
        if self.next_delta < answer.count:
            self.send(answer.delta(self.next_delta))
            self.next_delta += 1
            self.server.at(due + answer.every, self)
        else:
            self.answer = None
            self.send(answer.after + (LAST_CHUNK if self.frames is None else b""))

    def send(self, data: bytes) -> None:
        if len(self.unsent):
            self.unsent = memoryview(bytes(self.unsent) + data)
        else:
            self.unsent = memoryview(data)
        self.writable()

    def writable(self) -> None:
        try:
            while len(self.unsent):
                self.unsent = self.unsent[self.sock.send(self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        wanted = len(self.unsent) > 0
        if wanted != self.waiting_to_write:
            self.waiting_to_write = wanted
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wanted else 0)
            self.server.selector.modify(self.sock, events, self)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.server.selector.unregister(self.sock)
            self.sock.close()


class Source:
    """The server; ``run`` serves until the process is killed."""

    def __init__(self, port: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.stats = {"requests": 0, "chained": 0, "last_body_bytes": 0, "bytes": 0}
        self._ticks: list[tuple[float, int, _Connection]] = []
        self._ticked = 0
        self._listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self._listener.setblocking(False)
        self.selector.register(self._listener, selectors.EVENT_READ, None)

    def at(self, due: float, connection: _Connection) -> None:
        self._ticked += 1
        heapq.heappush(self._ticks, (due, self._ticked, connection))

    def run(self) -> None:
        while True:
            timeout = max(0.0, self._ticks[0][0] - time.monotonic()) if self._ticks else None
            for key, events in self.selector.select(timeout):
                connection: _Connection | None = key.data
                if connection is None:
                    self._accept()
                    continue
                if events & selectors.EVENT_WRITE:
                    connection.writable()
                if events & selectors.EVENT_READ and connection.open:
                    connection.readable()
            now = time.monotonic()
            while self._ticks and self._ticks[0][0] <= now:
                due, _, connection = heapq.heappop(self._ticks)
                connection.tick(due)

    def _accept(self) -> None:
        for _ in range(128):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(sock, selectors.EVENT_READ, _Connection(self, sock))


if __name__ == "__main__":
    Source(int(sys.argv[1])).run()
