"""The body of an upstream's answer to a turn, read as what it is.

A stream of events is what was asked for.  Some services send it under another content type, and
some answer in one piece all the same, so it is the first bytes that tell.  Sans-IO.
"""

from __future__ import annotations

from gateway.protocol.naming import read_named_events
from gateway.protocol.object_answer import read_object_answer
from gateway.protocol.sse import Event, EventStreamParser, EventTooLarge
from gateway.protocol.tolerant_json import is_whole

#: What may come before the first byte that tells, in bytes.
_MAX_BLANK = 1024
_BLANK = b"\xef\xbb\xbf \t\r\n"

#: How a stream of events begins (WHATWG HTML §9.2.6).
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


class NotAnAnswer(Exception):
    """The body is neither a stream of events nor a response; it may be an error.

    :ivar body: as much of it as came.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__("neither an event stream nor a response object")
        self.body = body


class AnswerBody:
    """Takes the body piece by piece and gives out its events.

    :param max_event_bytes: the largest event, and the largest answer in one piece.
    """

    def __init__(self, max_event_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._events: EventStreamParser | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._in_one_piece = False
        self._text = b""  # what no stream of events begins with, until there is an event

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return the events they complete.

        :raises EventTooLarge: when an event, or the answer in one piece, exceeds the bound.
        :raises NotAnAnswer: when it is a page.
        """
        if self._events is None:
            return self._begin(data)
        events = self._events.feed(data)
        if events:
            self._text = b""
        return events

    def _begin(self, data: bytes) -> list[Event]:
        """Look for what it is."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._in_one_piece:
            if self._held_bytes > self._max_event_bytes:
                raise EventTooLarge(f"an answer of more than {self._max_event_bytes} bytes")
            return []
        body = b"".join(self._pieces)
        text = body.lstrip(_BLANK)
        if text.startswith(b"{"):
            self._in_one_piece = True
            return []
        if text.startswith(b"<"):
            raise NotAnAnswer(body)
        if not text and len(body) <= _MAX_BLANK:
            return []
        self._pieces.clear()
        if not any(field.startswith(text[: len(field)]) for field in _FIELDS):
            self._text = body
        self._events = EventStreamParser(self._max_event_bytes, read_named_events)
        return self.feed(body)

    def finish(self) -> list[Event]:
        """Return what only the end of the body completes: it has ended in order.

        An event whose data was cut is none.

        :raises NotAnAnswer: when it came in one piece, and is no response; when it was a text.
        """
        if self._events is not None:
            events = [event for event in self._events.finish() if is_whole(event[1])]
            if self._text and not events:
                raise NotAnAnswer(self._text)
            return events
        body = b"".join(self._pieces).strip(_BLANK)
        self._pieces.clear()
        if not self._in_one_piece:
            return []
        told = read_object_answer(body)
        if told is None:
            raise NotAnAnswer(body)
        return told
