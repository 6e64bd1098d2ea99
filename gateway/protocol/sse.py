"""Server-sent events, read from whatever pieces a network delivers (WHATWG HTML §9.2.6).

The hot path: events of one ``event:`` and one ``data:`` line are cut out of a whole read by
one regular expression.  Anything else the grammar allows takes the line-by-line way in
:func:`_read_block`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain

_BOM = b"\xef\xbb\xbf"
_CARRIAGE_RETURN = 0x0D

#: The name, empty when the stream gave no ``event:`` line, and the data.  A plain tuple: making
#: a named one takes as long as parsing.
Event = tuple[bytes, bytes]

#: From the beginning of a line on: a long line is read once, whatever stands in it.
_USUAL = re.compile(rb"^event: ([^\n]*)\ndata: ([^\n]*)\n\n", re.MULTILINE)
_USUAL_OVERHEAD = len(b"event: \ndata: \n\n")

#: Reads whole events out of bytes that end with a blank line.
Reading = Callable[[bytes], list[Event]]


class EventTooLarge(Exception):
    """An event outgrew its bound before it ended."""


def read_events(data: bytes) -> list[Event]:
    """Read whole events: at once where each is of the usual form, else one after the other."""
    events: list[Event] = _USUAL.findall(data)
    if covers(events, data):
        return events
    blocks = map(_read_block, data.split(b"\n\n"))
    return [event for event in blocks if event is not None]


class EventStreamParser:
    """Cuts a byte stream into events.

    :param max_event_bytes: the largest event that is held back while incomplete.
    :param read: reads what is complete.
    """

    def __init__(
        self, max_event_bytes: int = 64 * 1024 * 1024, read: Reading = read_events
    ) -> None:
        self._max_event_bytes = max_event_bytes
        self._read = read
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return the events they complete.

        :raises EventTooLarge: when an unfinished event exceeds the bound.
        """
        if data and (self._after_cr or _CARRIAGE_RETURN in data):
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
        end = data.rfind(b"\n\n") + 2
        self._hold(data[end:])
        data = data[:end]
        events = self._read(data)
        return events if data.isascii() else [_in_utf8(event) for event in events]

    def finish(self) -> list[Event]:
        """Return an event without its blank line, after a stream that has ended in order.

        The standard drops it (WHATWG HTML §9.2.6); some servers leave out the last line ends.
        """
        return self.feed(b"\n\n")

    def _ends_event(self, data: bytes) -> bool:
        """Whether a blank line is complete now; if not, ``data`` is put aside unscanned later."""
        if data.find(b"\n\n") >= 0:
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


def covers(events: list[Event], data: bytes) -> bool:
    """Whether nothing of ``data`` lies between events of the usual form found in it."""
    found = sum(map(len, chain.from_iterable(events))) + _USUAL_OVERHEAD * len(events)
    return found == len(data)


def _in_utf8(event: Event) -> Event:
    """Clients must get UTF-8; event streams are decoded with replacement (WHATWG §9.2.5)."""
    name, data = event
    try:
        data.decode()
    except UnicodeDecodeError:
        return name, data.decode(errors="replace").encode()
    return event


def _read_block(block: bytes) -> Event | None:
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
    return (name, b"\n".join(data)) if data else None
