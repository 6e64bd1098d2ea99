"""The benchmark's load client: many links, each sending one turn at a time, cheaply counted.

A link speaks WebSocket to a gateway, or plain HTTP to the source and to the relay before it. That
an answer is over is seen by the mark at its end; nothing is parsed while the clock runs.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import wire

TIMEOUT = 60.0
DELTA_MARK = b'"response.output_text.delta"'
_READ = 1 << 18
_BATCH = 40  # connections opened at once: below every listen backlog


class BenchError(Exception):
    """A subject did not do what the benchmark asked of it."""


@dataclass
class Answered:
    """What one link saw of one answer; times are ``time.perf_counter`` seconds."""

    sent: float = 0.0
    first: float = 0.0
    size: int = 0
    data: bytes = b""


class Link:
    """One connection to a subject."""

    def __init__(self, port: int, websocket: bool) -> None:
        self.port, self.websocket = port, websocket
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.settimeout(TIMEOUT)
        self.end_mark = wire.END_MARK if websocket else wire.LAST_CHUNK

    def start(self) -> None:
        self.sock.connect(("127.0.0.1", self.port))
        if self.websocket:
            self.sock.sendall(wire.websocket_handshake(self.port))

    def finish_start(self) -> None:
        if self.websocket:
            answer = b""
            while b"\r\n\r\n" not in answer:
                data = self.sock.recv(4096)
                if not data:
                    raise BenchError(f"port {self.port} closed during the handshake: {answer!r}")
                answer += data
            if not answer.startswith(b"HTTP/1.1 101"):
                raise BenchError(f"port {self.port} refused the WebSocket: {answer[:300]!r}")

    def encode(self, body: bytes) -> bytes:
        return wire.masked_text_frame(body) if self.websocket else wire.http_request(body)

    def messages(self, received: bytes) -> list[bytes]:
        """The events in the whole answer that was received, as JSON."""
        if not self.websocket:
            return wire.event_data(received)
        return [m for m in wire.text_messages(received) if b'"response.' in m[:40]]

    def close(self) -> None:
        self.sock.close()


def connect(port: int, websocket: bool, count: int) -> list[Link]:
    """Open this many links, a few at a time."""
    links = [Link(port, websocket) for _ in range(count)]
    for start in range(0, count, _BATCH):
        for link in links[start : start + _BATCH]:
            link.start()
        for link in links[start : start + _BATCH]:
            link.finish_start()
    return links


def close(links: Sequence[Link]) -> None:
    for link in links:
        link.close()


def wave(links: Sequence[Link], requests: Sequence[bytes], keep: int = 0) -> list[Answered]:
    """Send one request on each link at the same time; wait until every answer is over.

    The bytes of the first ``keep`` answers are kept.
    """
    selector = selectors.DefaultSelector()
    answers = [Answered() for _ in links]
    tails = [b""] * len(links)
    kept: list[list[bytes]] = [[] for _ in range(keep)]
    now = time.perf_counter
    for number, link in enumerate(links):
        selector.register(link.sock, selectors.EVENT_READ, number)
    for number, (link, request) in enumerate(zip(links, requests, strict=True)):
        answers[number].sent = now()
        link.sock.sendall(request)
        link.sock.setblocking(False)
    open_answers = len(links)
    deadline = now() + TIMEOUT
    while open_answers:
        ready = selector.select(1.0)
        if not ready and now() > deadline:
            stuck = next(tail for tail in tails if not tail.startswith(b"over"))
            raise BenchError(f"{open_answers} answers were not over in time; one ends {stuck!r}")
        for key, _ in ready:
            number = key.data
            link, answer = links[number], answers[number]
            data = link.sock.recv(_READ)
            if not answer.size:
                answer.first = now()
            if not data:
                raise BenchError(f"port {link.port} closed the connection after {tails[number]!r}")
            answer.size += len(data)
            if number < keep:
                kept[number].append(data)
            tail = (tails[number] + data[-200:])[-200:]
            if link.end_mark in tail:
                selector.unregister(link.sock)
                link.sock.settimeout(TIMEOUT)
                open_answers -= 1
                tail = b"over"
            tails[number] = tail
    selector.close()
    for number in range(keep):
        answers[number].data = b"".join(kept[number])
    return answers


def first_delta(link: Link, request: bytes) -> float:
    """Seconds until the first delta of one paced answer, which is then read to its end."""
    sent = time.perf_counter()
    link.sock.sendall(request)
    received = b""
    while DELTA_MARK not in received:
        received += link.sock.recv(_READ)
    seconds = time.perf_counter() - sent
    while link.end_mark not in received[-200:]:
        data = link.sock.recv(_READ)
        if not data:
            raise BenchError(f"port {link.port} closed the connection after {received[-200:]!r}")
        received += data
    return seconds


def check(link: Link, answer: Answered, deltas: int) -> None:
    """Decode one kept answer in full: every event is there once, in order."""
    messages = link.messages(answer.data)
    expected = wire.event_count(deltas)
    numbers = [
        int(message.partition(b'"sequence_number":')[2].split(b",")[0]) for message in messages
    ]
    if numbers != list(range(expected)):
        raise BenchError(
            f"port {link.port} relayed {len(messages)} events of {expected}, or out of order"
        )


def response_id(data: bytes) -> str:
    """The id of the response in the terminal event at the end of these bytes."""
    terminal = data[data.rindex(b'"response.completed"') :]
    return terminal[terminal.index(b'"id":"') + 6 :].split(b'"', 1)[0].decode()


def conversation(
    link: Link, model: str, size: int, previous: str | None, times: list[float] | None = None
) -> Iterator[str]:
    """Turns without end, each with a body of this size and naming the response before it.

    :param times: gets the seconds to the first event of each.
    """
    while True:
        request = link.encode(wire.request_body(model, size, previous))
        (answer,) = wave([link], [request], keep=1)
        previous = response_id(answer.data)
        if times is not None:
            times.append(answer.first - answer.sent)
        yield previous
