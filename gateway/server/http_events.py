"""Events as a client gets them over HTTP: server-sent, each payload the bytes it came in."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.protocol.events import event_type

#: Headers of every event stream; proxies must neither keep nor buffer it.
UNBUFFERED = {"cache-control": "no-cache, no-transform", "x-accel-buffering": "no"}
STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", **UNBUFFERED}

#: As the platform sends it; of no known type, so that it needs no ``sequence_number`` (§4.7).
KEEP_ALIVE = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'

#: For typed clients, which want to see ``response.created`` before any other event.
COMMENT = b": keepalive\n\n"


def event_stream(payloads: Iterable[bytes]) -> bytes:
    """The events of ``payloads``, one JSON text each, joined for one write."""
    parts: list[bytes] = []
    for payload in payloads:
        parts += b"event: ", event_type(payload), b"\ndata: "
        if b"\n" in payload:  # in JSON between values only: each line has a field of its own
            payload = payload.replace(b"\n", b"\ndata: ")
        parts += payload, b"\n\n"
    return b"".join(parts)
