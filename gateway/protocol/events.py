"""The events the gateway reads; all others pass as the bytes they came in (protocol.md §4).

Some services write invalid JSON (RFC 8259): ``NaN`` and ``Infinity``, and lone surrogates where
they cut a text within a pair of escapes.  :func:`strict_json` replaces both before an event is
read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.protocol.headers import counts_limits
from gateway.protocol.request import Members
from gateway.protocol.turn_state import TURN_STATE
from gateway.protocol.usage import whole_number

#: The events of a streamed answer that only the client reads: the hot path.
PASSED_UNREAD = frozenset(
    {
        b"response.output_item.added",
        b"response.content_part.added",
        b"response.content_part.done",
        b"response.output_text.delta",
        b"response.output_text.done",
        b"response.output_text.annotation.added",
        b"response.refusal.delta",
        b"response.refusal.done",
        b"response.function_call_arguments.delta",
        b"response.function_call_arguments.done",
        b"response.custom_tool_call_input.delta",
        b"response.custom_tool_call_input.done",
        b"response.reasoning_summary_part.added",
        b"response.reasoning_summary_part.done",
        b"response.reasoning_summary_text.delta",
        b"response.reasoning_summary_text.done",
        b"response.reasoning_text.delta",
        b"response.reasoning_text.done",
    }
)

#: Events before the first output: while they are held, the turn can still go elsewhere.
PREAMBLE = frozenset(
    {b"response.created", b"response.queued", b"response.in_progress", b"response.metadata"}
)

#: How upstreams end a response; the values are what clients understand.
TERMINALS = {
    b"response.completed": b"response.completed",
    b"response.failed": b"response.failed",
    b"response.incomplete": b"response.incomplete",
    b"response.done": b"response.completed",
    b"response.cancelled": b"response.incomplete",
}

#: Events that end an answer with an error.
ERRORS = frozenset({b"error", b"response.error"})

_TYPE_FIRST = re.compile(rb'\s*\{\s*"type"\s*:\s*"([^"\\\n]*)"')

_LONE = rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
_PAIR = rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ODD = re.compile(rb'(")|' + _PAIR + rb"|(" + _LONE + rb")|\\.|(NaN|-?Infinity)", re.DOTALL)

#: A byte that no one-line event has.  ``b"\n" in data`` takes three times as long: it asks first
#: whether the bytes are a number, which raises an error.
LINE_FEED = 0x0A


class ResponseHead(msgspec.Struct):
    """What the gateway reads of a response object; a member of another type counts as absent.

    :ivar previous_is_odd: its ``previous_response_id`` is neither a string nor null.
    """

    id: str = ""
    previous_response_id: str | None = None
    previous_is_odd: bool = False
    status: str | None = None
    error: Any = None
    incomplete_reason: str | None = None
    usage: Any = None


class _RawHead(msgspec.Struct):
    id: Any = None
    previous_response_id: Any = None
    status: Any = None
    error: Any = None
    incomplete_details: Any = None
    usage: Any = None


class _LifecycleEvent(msgspec.Struct):
    response: _RawHead


class _TypedEvent(msgspec.Struct):
    type: Any = None


class _NumberedEvent(msgspec.Struct):
    sequence_number: msgspec.Raw = msgspec.Raw(b"null")


class _MetadataEvent(msgspec.Struct):
    headers: dict[str, msgspec.Raw] = {}


_decode_lifecycle = msgspec.json.Decoder(_LifecycleEvent).decode
_decode_metadata = msgspec.json.Decoder(_MetadataEvent).decode
_decode_typed = msgspec.json.Decoder(_TypedEvent).decode
_decode_numbered = msgspec.json.Decoder(_NumberedEvent).decode
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class MalformedEvent(Exception):
    """An upstream's event that must be read cannot be."""


# --- JSON --------------------------------------------------------------------------------


def strict_json(data: bytes) -> bytes:
    """The same JSON without what strict parsers refuse.

    ``NaN`` and the like become null, lone surrogates U+FFFD; every other byte stays.
    """
    find = data.find  # ``in`` takes twice as long
    if find(b"NaN") < 0 and find(b"Infinity") < 0 and find(b"\\ud") < 0 and find(b"\\uD") < 0:
        return data
    in_text = False

    def replacement(found: re.Match[bytes]) -> bytes:
        nonlocal in_text
        if found[1]:
            in_text = not in_text
        elif found[2]:
            return b"\\ufffd"  # of the same length
        elif found[3] and not in_text:
            return b"null"
        return found[0]

    return _ODD.sub(replacement, data)


def is_whole(data: bytes) -> bool:
    """Whether this is one JSON text from its beginning to its end."""
    try:
        _decode_raw(strict_json(data))
    except UNREADABLE:
        return False
    return True


def value_of(raw: bytes | None) -> Any:
    """The value of a member; None where there is none, or one that cannot be read."""
    try:
        return None if raw is None else msgspec.json.decode(raw)
    except UNREADABLE:
        return None


def text_of(raw: bytes | None) -> str | None:
    """A member that is a text; None where it is anything else."""
    value = value_of(raw)
    return value if isinstance(value, str) else None


def raw_list(items: Sequence[bytes]) -> msgspec.Raw:
    """A JSON array of raw items."""
    return msgspec.Raw(b"[" + b",".join(items) + b"]")


def raw_value(value: object) -> msgspec.Raw:
    """A value as a raw JSON member."""
    return msgspec.Raw(msgspec.json.encode(value))


# --- any event ---------------------------------------------------------------------------


def event_type(data: bytes) -> bytes:
    """The ``type`` in an event's data; empty when there is none."""
    first = _TYPE_FIRST.match(data)
    if first is not None:
        return first[1]
    try:
        kind = _decode_typed(strict_json(data)).type
    except UNREADABLE:
        return b""
    return kind.encode() if isinstance(kind, str) else b""


def with_type(data: bytes, kind: bytes) -> bytes:
    """The same event with this type, as its first member."""
    members = decode_members(data)
    members.pop("type", None)
    return msgspec.json.encode({"type": kind.decode(), **members})


def sequence_number(data: bytes) -> int:
    """The ``sequence_number`` of an event, or -1."""
    try:
        number = whole_number(value_of(_decode_numbered(data).sequence_number))
    except UNREADABLE:
        return -1
    return -1 if number is None else number


def with_stream_id(data: bytes, stream_id: bytes) -> bytes:
    """Name the lane in an event, everything else untouched.

    :param stream_id: the lane's name as JSON.
    """
    members = data[data.find(b"{") + 1 :]
    separator = b"" if members.lstrip().startswith(b"}") else b","
    return b'{"stream_id":' + stream_id + separator + members


# --- events with a response or an item ---------------------------------------------------


def read_response(data: bytes) -> ResponseHead | None:
    """The response object of a lifecycle event; None when it has none.

    :raises MalformedEvent: when the event is no JSON object.
    """
    try:
        head = _decode_lifecycle(data).response
    except UNREADABLE:  # member by member: for one that is unreadable no other suffers
        response = _response_in(_members_of(data))
        if response is None:
            return None
        head = _RawHead(*(value_of(response.get(name)) for name in _RawHead.__struct_fields__))
    previous, details = head.previous_response_id, head.incomplete_details
    reason = details.get("reason") if isinstance(details, dict) else None
    return ResponseHead(
        head.id if isinstance(head.id, str) else "",
        previous if isinstance(previous, str) else None,
        not isinstance(previous, (str, type(None))),
        head.status if isinstance(head.status, str) else None,
        head.error,
        reason if isinstance(reason, str) else None,
        head.usage,
    )


def _members_of(data: bytes) -> Members:
    try:
        return decode_members(data)
    except UNREADABLE as error:
        raise MalformedEvent(str(error)) from None


def _response_in(event: Members) -> Members | None:
    try:
        return decode_members(event["response"])
    except (KeyError, *UNREADABLE):
        return None


def response_members(data: bytes) -> Members:
    """The response object of a lifecycle event, as raw members; empty when unreadable."""
    try:
        return _response_in(decode_members(data)) or {}
    except UNREADABLE:
        return {}


def with_response(data: bytes, known: Members) -> bytes:
    """The lifecycle event with a response object, where it has none.

    :param known: what else is known of the response; the event's own members count more.
    :raises MalformedEvent: when the event is no JSON object.
    """
    kept: Members = {}
    response = dict(known)
    for name, value in _members_of(data).items():
        (kept if name in ("type", "sequence_number", "response") else response)[name] = value
    return msgspec.json.encode({**kept, "response": response})


def with_response_members(data: bytes, members: Mapping[str, msgspec.Raw]) -> bytes:
    """Put ``members`` into the response of a lifecycle event; without one it stays as it is."""
    try:
        event = decode_members(data)
        response = decode_members(event["response"])
    except (KeyError, *UNREADABLE):
        return data
    return msgspec.json.encode({**event, "response": {**response, **members}})


def read_item_done(data: bytes) -> tuple[int | None, bytes | None]:
    """``output_index`` and the raw item of a ``response.output_item.done``.

    :return: None for a part that is missing or cannot be read.
    :raises MalformedEvent: when it is no JSON.
    """
    members = _members_of(data)
    item = bytes(members.get("item", b"null"))
    index = whole_number(value_of(members.get("output_index")))
    return index, item if item.startswith(b"{") else None


# --- response.metadata -------------------------------------------------------------------


def metadata_event(headers: Mapping[str, str]) -> bytes:
    """A ``response.metadata`` event; it takes no part in the ``sequence_number``s."""
    return msgspec.json.encode(
        {"type": "response.metadata", "headers": dict(headers), "metadata": {}}
    )


def read_turn_state(data: bytes) -> str | None:
    """``x-codex-turn-state`` of a ``response.metadata`` event, or None."""
    try:
        headers = _decode_metadata(data).headers
    except UNREADABLE:
        return None
    for name, raw in headers.items():
        if name.lower() == TURN_STATE:
            value = value_of(raw)
            if isinstance(value, list) and value:
                value = value[0]
            return value if isinstance(value, str) else None
    return None


def with_turn_state(data: bytes, turn_state: str) -> bytes:
    """Put another turn state into a ``response.metadata`` event that has one."""
    event = decode_members(data)
    headers = decode_members(event["headers"])
    others = {name: value for name, value in headers.items() if name.lower() != TURN_STATE}
    return msgspec.json.encode({**event, "headers": {**others, TURN_STATE: turn_state}})


def without_limit_headers(data: bytes) -> bytes:
    """A ``response.metadata`` event without the headers that count an account's limits.

    Its turn state stays; :func:`with_turn_state` replaces it.
    """
    try:
        event = decode_members(data)
        headers = decode_members(event["headers"])
    except (KeyError, *UNREADABLE):
        return data
    kept = {
        name: value
        for name, value in headers.items()
        if name.lower() == TURN_STATE or not counts_limits(name)
    }
    return data if len(kept) == len(headers) else msgspec.json.encode({**event, "headers": kept})
