"""Server-sent events, read from whatever pieces a network delivers (WHATWG HTML §9.2.6).

The hot path: an ``event:`` line followed by one ``data:`` line costs one slice each.
Anything else the grammar allows takes the line-by-line way in :func:`_read_block`.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event: ``name`` is empty when the stream gave no ``event:`` line."""

    name: bytes
    data: bytes


class EventTooLarge(Exception):
    """An event outgrew its bound before it ended."""


class EventStreamParser:
    """Cuts a byte stream into events.

    :param max_event_bytes: the largest event that is held back while incomplete.
    """

    def __init__(self, max_event_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Take the next bytes and return the events they complete.

        :raises EventTooLarge: when an unfinished event exceeds the bound.
        """
        if data and (self._after_cr or b"\r" in data):
            data = self._line_feeds_only(data)
        if not self._ends_event(data):
            return []
        if self._pieces:
            self._pieces.append(data)
            data = b"".join(self._pieces)
            self._pieces.clear()
            self._held_bytes = 0
        if self._at_start:
            self._at_start = False
            data = data.removeprefix(_BOM)
        blocks = data.split(b"\n\n")
        self._hold(blocks.pop())
        events: list[ServerSentEvent] = []
        for block in blocks:
            cut = block.find(b"\ndata: ", 7)
            if cut > 0 and block.startswith(b"event: ") and block.count(b"\n") == 1:
                events.append(ServerSentEvent(block[7:cut], block[cut + 7 :]))
            else:
                event = _read_block(block)
                if event is not None:
                    events.append(event)
        return events if data.isascii() else [_in_utf8(event) for event in events]

    def _ends_event(self, data: bytes) -> bool:
        """Whether a blank line is complete now; if not, ``data`` is put aside unscanned later."""
        if b"\n\n" in data:
            return True
        if self._pieces and data.startswith(b"\n") and self._pieces[-1].endswith(b"\n"):
            return True
        self._hold(data)
        return False

    def _hold(self, data: bytes) -> None:
        if not data:
            return
        self._held_bytes += len(data)
        if self._held_bytes > self._max_event_bytes:
            raise EventTooLarge(f"an event of more than {self._max_event_bytes} bytes")
        self._pieces.append(data)

    def _line_feeds_only(self, data: bytes) -> bytes:
        """Turn CR LF and CR into LF, also where a read ended between the two."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            if not data:
                self._after_cr = False
                return data
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _in_utf8(event: ServerSentEvent) -> ServerSentEvent:
    """Clients must get UTF-8; event streams are decoded with replacement (WHATWG §9.2.5)."""
    try:
        event.data.decode()
    except UnicodeDecodeError:
        return ServerSentEvent(event.name, event.data.decode(errors="replace").encode())
    return event


def _read_block(block: bytes) -> ServerSentEvent | None:
    """Read the lines of one event; None when it has no ``data`` line."""
    name = b""
    data: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return ServerSentEvent(name, b"\n".join(data)) if data else None
