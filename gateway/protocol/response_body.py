"""The body of an upstream's response, read as events (protocol.md §4.1, §4.2).

An event stream is what was asked for.  Some services send it under another content type, and some
answer with one response object all the same, so the first bytes decide.  Each event is given one
type: services leave out the ``event:`` line or the ``type`` in its data, or let them differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gateway.protocol.error_parsing import from_untyped
from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import (
    ERRORS,
    PASSED_UNREAD,
    PREAMBLE,
    TERMINALS,
    decode_members,
    event_type,
    is_whole,
    strict_json,
    text_of,
    value_of,
    with_type,
)
from gateway.protocol.request import Members
from gateway.protocol.sse import Event, EventStreamParser, EventTooLarge, covers, read_events
from gateway.protocol.synthetic_events import opening
from gateway.protocol.usage import Usage, read_usage

#: How many blank bytes may come before the first that decides.
_MAX_BLANK = 1024
_BLANK = b"\xef\xbb\xbf \t\r\n"

#: How an event stream begins (WHATWG HTML §9.2.6).
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class NotAResponse(Exception):
    """The body is neither an event stream nor a response; it may be an error.

    :ivar body: as much of it as came.
    """

    def __init__(self, body: bytes) -> None:
        super().__init__("neither an event stream nor a response object")
        self.body = body


class ResponseBody:
    """Takes the body piece by piece and gives out its events.

    :param max_event_bytes: the largest event, and the largest response object.
    """

    def __init__(self, max_event_bytes: int = 64 * 1024 * 1024) -> None:
        self._max_event_bytes = max_event_bytes
        self._events: EventStreamParser | None = None
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self._is_object = False
        self._text = b""  # what no event stream begins with, until there is an event

    def feed(self, data: bytes) -> list[Event]:
        """Take the next bytes and return the events they complete.

        :raises EventTooLarge: when an event, or the response object, exceeds the bound.
        :raises NotAResponse: when it is a page.
        """
        if self._events is None:
            return self._begin(data)
        events = self._events.feed(data)
        if events:
            self._text = b""
        return events

    def _begin(self, data: bytes) -> list[Event]:
        """Find out what it is."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        if self._is_object:
            if self._held_bytes > self._max_event_bytes:
                raise EventTooLarge(f"an answer of more than {self._max_event_bytes} bytes")
            return []
        body = b"".join(self._pieces)
        text = body.lstrip(_BLANK)
        if text.startswith(b"{"):
            self._is_object = True
            return []
        if text.startswith(b"<"):
            raise NotAResponse(body)
        if not text and len(body) <= _MAX_BLANK:
            return []
        self._pieces.clear()
        if not any(field.startswith(text[: len(field)]) for field in _FIELDS):
            self._text = body
        self._events = EventStreamParser(self._max_event_bytes, read_named_events)
        return self.feed(body)

    def finish(self) -> list[Event]:
        """Return what only the end of the body completes: it has ended in order.

        An event whose data was cut is left out.

        :raises NotAResponse: for one object that is no response, and for a text.
        """
        if self._events is not None:
            events = [event for event in self._events.finish() if is_whole(event[1])]
            if self._text and not events:
                raise NotAResponse(self._text)
            return events
        body = b"".join(self._pieces).strip(_BLANK)
        self._pieces.clear()
        if not self._is_object:
            return []
        object_events = read_response_object(body)
        if object_events is None:
            raise NotAResponse(body)
        return object_events


# --- the type of an event ----------------------------------------------------------------

#: The usual form, and the hot path: the data begins with the type that the line before names.
_USUAL = re.compile(rb'^event: ([^\n]*)\ndata: (\{"type":"\1"[^\n]*)\n\n', re.MULTILINE)

#: Names of events without an ``event:`` line (WHATWG HTML §9.2.6).
_NO_NAMES = frozenset({b"", b"message"})

#: The gateway reads these itself, and reports them where they cannot be read.
_READ = PREAMBLE | TERMINALS.keys() | ERRORS | {b"response.output_item.done"}

#: What clients understand: it counts where the two names contradict each other.
_UNDERSTOOD = PASSED_UNREAD | PREAMBLE | {*TERMINALS.values()} | _READ - TERMINALS.keys()

#: How data says its type, wherever it stands; in a text the quotes would be escaped.  Looking
#: for it costs next to nothing, and an event of the hot path needs no more.
_TYPE_FORMS = (b'"type":"%b"', b'"type": "%b"')


def read_named_events(data: bytes) -> list[Event]:
    """Read whole events, each under its one type; for :class:`.sse.EventStreamParser`."""
    events: list[Event] = _USUAL.findall(data)
    if covers(events, data):
        return events
    return [event for event in map(with_one_type, read_events(data)) if event is not None]


def with_one_type(event: Event) -> Event | None:
    """The event under its one type, which its data says, too.

    Where line and data contradict each other the data counts, unless only the line's type is
    known to clients.  Data of an ``error`` stays as it is: its ``type`` may be that of the error.

    :return: None for an event of which no client could tell what it is.
    """
    name, data = event
    if name in PASSED_UNREAD and any(form % name in data for form in _TYPE_FORMS):
        return event
    kind = event_type(data)
    if kind == name and kind:
        return event
    if kind and (kind in _UNDERSTOOD or name not in _UNDERSTOOD):
        return kind, data
    if name in _NO_NAMES:
        return (b"error", data) if from_untyped(strict_json(data)) is not None else None
    if data == b"[DONE]":
        return None
    if name in ERRORS:
        return event
    try:
        return name, with_type(strict_json(data), name)
    except UNREADABLE:
        return event if name in _READ else None


# --- a response object -------------------------------------------------------------------

#: How a response of each status ends; one of any other status has no end yet.
_ENDS = {
    kind.removeprefix(b"response.").decode(): kind.decode()
    for kind in TERMINALS
    if kind != b"response.done"
}

#: What a part of a message's content says, by its type: the member, and the events' middle name.
_PARTS = {"output_text": ("text", "output_text"), "refusal": ("refusal", "refusal")}

#: What the deltas of a call bring, by its type.
_CALLS = {
    "function_call": ("arguments", "function_call_arguments"),
    "custom_tool_call": ("input", "custom_tool_call_input"),
    "mcp_call": ("arguments", "mcp_call_arguments"),
}

_Events = Iterator[tuple[str, dict[str, Any]]]


def read_response_object(body: bytes) -> list[Event] | None:
    """The events that would have streamed a response object; clients build answers from events.

    A body that is one event gives that event.

    :return: None for anything else, an error among it.
    """
    body = strict_json(body)
    try:
        members = decode_members(body)
    except UNREADABLE:
        return None
    kind = event_type(body)
    if kind.startswith(b"response."):
        return [(kind, body)]
    lists_output = bytes(members.get("output", b"")).startswith(b"[")
    if text_of(members.get("object")) != "response" and not lists_output:
        return None
    return [
        (kind.encode(), msgspec.json.encode({"type": kind, "sequence_number": number, **event}))
        for number, (kind, event) in enumerate(_response_events(members))
    ]


def _response_events(response: Members) -> _Events:
    failed = value_of(response.get("error")) is not None
    status = text_of(response.get("status")) or ("failed" if failed else "completed")
    yield "response.created", {"response": opening(response) if status in _ENDS else response}
    if status in ("completed", "incomplete"):
        try:
            items = _decode_list(response["output"])
        except (KeyError, *UNREADABLE):
            items = []
        for index, raw in enumerate(items):
            yield from _item_events(index, raw)
    if status in _ENDS:
        yield _ENDS[status], {"response": response}


def _item_events(index: int, raw: msgspec.Raw) -> _Events:
    """One item: announced empty, filled, finished as the object has it."""
    item = value_of(raw)
    if not isinstance(item, dict):
        return
    at = {"item_id": item.get("id"), "output_index": index}
    kind = item.get("type")
    begun = {**item, **({"status": "in_progress"} if "status" in item else {})}
    filling: list[tuple[str, dict[str, Any]]] = []
    if kind == "message" and isinstance(item.get("content"), list):
        begun["content"] = []
        filling = list(_content_events(item["content"], at))
    elif kind == "reasoning":
        filling = list(_reasoning_events(item, begun, at))
    elif kind in _CALLS and isinstance(item.get(_CALLS[kind][0]), str):
        member, name = _CALLS[kind]
        begun[member] = ""
        filling = list(_text_events(name, member, item[member], at))
    yield "response.output_item.added", {"output_index": index, "item": begun}
    yield from filling
    yield "response.output_item.done", {"output_index": index, "item": raw}


def _content_events(content: list[Any], at: dict[str, Any]) -> _Events:
    for number, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") not in _PARTS:
            continue
        member, name = _PARTS[part["type"]]
        text = part.get(member)
        if not isinstance(text, str):
            continue
        here = {**at, "content_index": number}
        more: dict[str, Any] = {"logprobs": []} if name == "output_text" else {}
        yield "response.content_part.added", {**here, "part": {**part, member: ""}}
        yield from _text_events(name, member, text, {**here, **more})
        yield "response.content_part.done", {**here, "part": part}


def _reasoning_events(item: dict[str, Any], begun: dict[str, Any], at: dict[str, Any]) -> _Events:
    """Of a reasoning item: its summary, and its text where it has one."""
    for number, part in enumerate(_texts(item.get("summary"))):
        begun["summary"] = []
        here = {**at, "summary_index": number}
        yield "response.reasoning_summary_part.added", {**here, "part": {**part, "text": ""}}
        yield from _text_events("reasoning_summary_text", "text", part["text"], here)
        yield "response.reasoning_summary_part.done", {**here, "part": part}
    for number, part in enumerate(_texts(item.get("content"))):
        begun["content"] = []
        here = {**at, "content_index": number}
        yield from _text_events("reasoning_text", "text", part["text"], here)


def _texts(parts: object) -> list[dict[str, Any]]:
    if not isinstance(parts, list):
        return []
    return [part for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _text_events(name: str, member: str, text: str, at: dict[str, Any]) -> _Events:
    yield f"response.{name}.delta", {**at, "delta": text}
    yield f"response.{name}.done", {**at, member: text}


# --- a compaction ------------------------------------------------------------------------


class Compaction(NamedTuple):
    """What is read of the answer of ``/responses/compact`` (protocol.md §6.5).

    :ivar items: the raw items that start the new chain.
    """

    items: tuple[bytes, ...]
    usage: Usage | None


class _CompactionObject(msgspec.Struct):
    output: list[msgspec.Raw] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")


_decode_compaction = msgspec.json.Decoder(_CompactionObject).decode


def read_compaction(body: bytes) -> Compaction:
    """Read a compaction; a body of another shape holds nothing."""
    try:
        answer = _decode_compaction(body)
        usage = msgspec.json.decode(answer.usage)
    except UNREADABLE:
        return Compaction((), None)
    return Compaction(tuple(map(bytes, answer.output)), read_usage(usage))
