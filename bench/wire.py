"""What the benchmark's source and clients put on the wire: events, requests, WebSocket frames."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable

#: Ends the last event of every answer, so that a client need not parse to know that it is over.
END_MARK = b'"bench_end":true}'

#: Events around the deltas: created, in_progress, item added, item done, completed.
FRAME_EVENTS = 5

_WORDS = ("and", "the", "stream", "of", "tokens", "flows", "through", "a", "gateway", "quietly")
_RESPONSE_ID = "resp_" + "R" * 48
_ITEM_ID = "msg_" + "I" * 48

HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-store\r\n"
    b"x-request-id: req_bench\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LAST_CHUNK = b"0\r\n\r\n"


def model_name(deltas: int, every_ms: int = 0) -> str:
    """The model to ask for: the source reads its orders from the model's name."""
    return f"bench-{deltas}-{every_ms}"


Framing = Callable[[dict[str, object]], bytes]


def chunk(event: dict[str, object]) -> bytes:
    """An event as an HTTP chunk of its own."""
    data = json.dumps(event, separators=(",", ":"))
    text = f"event: {event['type']}\ndata: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(text), text)


def text_frame(event: dict[str, object]) -> bytes:
    """An event as a text frame of a server."""
    data = json.dumps(event, separators=(",", ":")).encode()
    return _frame_head(len(data), 0) + data


def _frame_head(size: int, masked: int) -> bytes:
    if size < 126:
        return struct.pack("!BB", 0x81, masked | size)
    if size < 65536:
        return struct.pack("!BBH", 0x81, masked | 126, size)
    return struct.pack("!BBQ", 0x81, masked | 127, size)


@functools.lru_cache(maxsize=32)
def _deltas(count: int, framing: Framing) -> tuple[bytes, ...]:
    return tuple(
        framing(
            {
                "type": "response.output_text.delta",
                "sequence_number": number + 3,
                "item_id": _ITEM_ID,
                "output_index": 0,
                "content_index": 0,
                "delta": " " + _WORDS[number % len(_WORDS)],
                "logprobs": [],
                "obfuscation": "k" * (16 - len(_WORDS[number % len(_WORDS)])),
            }
        )
        for number in range(count)
    )


@functools.lru_cache(maxsize=32)
def _all_deltas(count: int, framing: Framing) -> bytes:
    return b"".join(_deltas(count, framing))


@functools.lru_cache(maxsize=32)
def answer_text(count: int) -> str:
    return "".join(" " + _WORDS[number % len(_WORDS)] for number in range(count))


def _response(serial: int, model: str, previous: str | None, status: str) -> dict[str, object]:
    return {
        "id": f"resp_{serial:048x}",
        "object": "response",
        "created_at": 1763800000,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": previous,
        "reasoning": {"effort": "medium", "summary": None},
        "store": False,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": None,
        "metadata": {},
    }


class Answer:
    """The events of one answer: what comes before the deltas, the deltas, what comes after.

    :param framing: what each event is sent as.
    """

    def __init__(self, serial: int, model: str, previous: str | None, framing: Framing) -> None:
        _, count, every_ms = model.split("-")
        self.count, self.every = int(count), int(every_ms) / 1000
        self._framing = framing
        self._item_id = f"msg_{serial:048x}".encode()
        item: dict[str, object] = {
            "id": f"msg_{serial:048x}",
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        done = dict(item, status="completed")
        done["content"] = [
            {"type": "output_text", "annotations": [], "text": answer_text(self.count)}
        ]
        started = _response(serial, model, previous, "in_progress")
        ended = dict(started, status="completed", output=[done])
        ended["usage"] = {"input_tokens": 100, "output_tokens": self.count, "total_tokens": 100}
        number = self.count + 3
        self.before = b"".join(
            (
                framing({"type": "response.created", "sequence_number": 0, "response": started}),
                framing(
                    {"type": "response.in_progress", "sequence_number": 1, "response": started}
                ),
                framing(
                    {
                        "type": "response.output_item.added",
                        "sequence_number": 2,
                        "output_index": 0,
                        "item": item,
                    }
                ),
            )
        )
        self.after = framing(
            {
                "type": "response.output_item.done",
                "sequence_number": number,
                "output_index": 0,
                "item": done,
            }
        ) + framing(
            {
                "type": "response.completed",
                "sequence_number": number + 1,
                "response": ended,
                "bench_end": True,
            }
        )

    def all_deltas(self) -> bytes:
        return _all_deltas(self.count, self._framing).replace(_ITEM_ID.encode(), self._item_id)

    def delta(self, number: int) -> bytes:
        return _deltas(self.count, self._framing)[number].replace(_ITEM_ID.encode(), self._item_id)


def event_count(deltas: int) -> int:
    return deltas + FRAME_EVENTS


def request_body(model: str, size: int = 300, previous: str | None = None) -> bytes:
    """A ``response.create`` of about this many bytes (the source reads it as a POST body too)."""
    body: dict[str, object] = {"type": "response.create", "model": model, "stream": True}
    if previous is not None:
        body["previous_response_id"] = previous
    content = [{"type": "input_text", "text": ""}]
    body["input"] = [{"type": "message", "role": "user", "content": content}]
    body["store"] = False
    padding = max(1, size - len(json.dumps(body, separators=(",", ":"))))
    content[0]["text"] = (answer_text(200) * (padding // 1000 + 1))[:padding]
    return json.dumps(body, separators=(",", ":")).encode()


def http_request(body: bytes) -> bytes:
    return (
        b"POST /v1/responses HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


def websocket_handshake(port: int) -> bytes:
    key = base64.b64encode(os.urandom(16))
    return (
        b"GET /v1/responses HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n"
        b"Authorization: Bearer bench\r\n"
        b"OpenAI-Beta: responses_websockets=2026-02-06\r\n\r\n" % (port, key)
    )


def masked_text_frame(payload: bytes) -> bytes:
    mask = os.urandom(4)
    return _frame_head(len(payload), 0x80) + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """The payload with this mask put on, or taken off."""
    size = len(payload)
    keys = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return (int.from_bytes(payload, "big") ^ keys).to_bytes(size, "big")


class ClientFrames:
    """Reads the frames of a client."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._fragments = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The messages that these bytes complete, each with its opcode: 1, or that of a control."""
        self._received += data
        messages = []
        while (frame := self._next()) is not None:
            first, payload = frame
            if first & 0x0F >= 8:
                messages.append((first & 0x0F, payload))
                continue
            self._fragments += payload
            if first & 0x80:
                messages.append((1, self._fragments))
                self._fragments = b""
        return messages

    def _next(self) -> tuple[int, bytes] | None:
        received = self._received
        if len(received) < 2:
            return None
        size, start = received[1] & 0x7F, 2
        if size > 125:
            start = 4 if size == 126 else 10
            size = int.from_bytes(received[2:start], "big")
        if len(received) < start + 4 + size:
            return None
        first, mask = received[0], bytes(received[start : start + 4])
        payload = masked(bytes(received[start + 4 : start + 4 + size]), mask)
        del received[: start + 4 + size]
        return first, payload


def accepted(key: bytes) -> bytes:
    """The answer to a client that asks for a WebSocket with this key."""
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"x-request-id: req_bench\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept
    )


def text_messages(received: bytes) -> list[bytes]:
    """The unfragmented text messages in these whole frames of a server; others are skipped."""
    messages, position = [], 0
    while position < len(received):
        opcode, size = received[position] & 0x0F, received[position + 1]
        position += 2
        if size == 126:
            (size,) = struct.unpack_from("!H", received, position)
            position += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", received, position)
            position += 8
        if opcode == 1:
            messages.append(received[position : position + size])
        position += size
    return messages


def event_data(received: bytes) -> list[bytes]:
    """The ``data:`` of the events in this whole chunked HTTP response, one event per chunk."""
    body, events = received.partition(b"\r\n\r\n")[2], []
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if size:
            events.append(body[:size].partition(b"data: ")[2].rstrip())
        body = body[size + 2 :]
    return events
