"""The events the gateway reads; all others pass as the bytes they came in (protocol.md §4)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.protocol.headers import counts_limits
from gateway.protocol.tolerant_json import integer_of, mended, text_of, value_of
from gateway.protocol.turn_state import TURN_STATE

#: The events of a streamed answer that nobody but the client reads: the hot path.
PASSED_UNREAD = frozenset(
    name.encode()
    for name in (
        "response.output_item.added",
        "response.content_part.added",
        "response.content_part.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.output_text.annotation.added",
        "response.refusal.delta",
        "response.refusal.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.delta",
        "response.custom_tool_call_input.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
    )
)

#: Events before the first output: they can still be taken back while held (§8.4).
PREAMBLE = frozenset(
    {b"response.created", b"response.queued", b"response.in_progress", b"response.metadata"}
)

#: How upstreams end a response; the values are what clients understand (§4.3, §10.42).
TERMINALS = {
    b"response.completed": b"response.completed",
    b"response.failed": b"response.failed",
    b"response.incomplete": b"response.incomplete",
    b"response.done": b"response.completed",
    b"response.cancelled": b"response.incomplete",
}

#: Events that end an answer with what went wrong.
ERRORS = frozenset({b"error", b"response.error"})

Members = dict[str, msgspec.Raw]


class ResponseHead(msgspec.Struct):
    """What the gateway reads of a response object; what is of another type counts as unsaid."""

    id: str = ""
    previous_response_id: str | None = None
    previous_is_odd: bool = False
    status: str | None = None
    error: Any = None
    incomplete_reason: str | None = None
    usage: Any = None


class _Details(msgspec.Struct):
    reason: str | None = None


class _UsualHead(msgspec.Struct):
    id: str = ""
    previous_response_id: str | None = None
    status: str | None = None
    error: Any = None
    incomplete_details: _Details | None = None
    usage: Any = None


class _Lifecycle(msgspec.Struct):
    response: _UsualHead


class _Typed(msgspec.Struct):
    type: Any = None


class _Numbered(msgspec.Struct):
    sequence_number: msgspec.Raw = msgspec.Raw(b"null")


class _Metadata(msgspec.Struct):
    headers: dict[str, msgspec.Raw] = {}


_decode_lifecycle = msgspec.json.Decoder(_Lifecycle).decode
_decode_metadata = msgspec.json.Decoder(_Metadata).decode
_decode_typed = msgspec.json.Decoder(_Typed).decode
_decode_numbered = msgspec.json.Decoder(_Numbered).decode
decode_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

_TYPE_FIRST = re.compile(rb'\s*\{\s*"type"\s*:\s*"([^"\\\n]*)"')


class MalformedEvent(Exception):
    """An upstream's event that must be read cannot be."""


def event_type(data: bytes) -> bytes:
    """The type that an event's data says; empty when it says none."""
    first = _TYPE_FIRST.match(data)
    if first is not None:
        return first[1]
    try:
        kind = _decode_typed(mended(data)).type
    except UNREADABLE:
        return b""
    return kind.encode() if isinstance(kind, str) else b""


def typed(data: bytes, kind: bytes) -> bytes:
    """The same event with this type, as its first member."""
    members = decode_members(data)
    members.pop("type", None)
    return msgspec.json.encode({"type": kind.decode(), **members})


def read_response(data: bytes) -> ResponseHead | None:
    """The response object of a lifecycle event; None when it has none.

    :raises MalformedEvent: when the event is no JSON object.
    """
    try:
        usual = _decode_lifecycle(data).response
    except UNREADABLE:
        return _read_odd_response(data)
    return ResponseHead(
        usual.id,
        usual.previous_response_id,
        False,
        usual.status,
        usual.error,
        None if usual.incomplete_details is None else usual.incomplete_details.reason,
        usual.usage,
    )


def _read_odd_response(data: bytes) -> ResponseHead | None:
    """The same member by member: an odd one counts as unsaid, and no other suffers for it."""
    response = _response_in(_members_of(data))
    if response is None:
        return None
    previous = value_of(response.get("previous_response_id"))
    details = value_of(response.get("incomplete_details"))
    reason = details.get("reason") if isinstance(details, dict) else None
    return ResponseHead(
        text_of(response.get("id")) or "",
        previous if isinstance(previous, str) else None,
        not isinstance(previous, (str, type(None))),
        text_of(response.get("status")),
        value_of(response.get("error")),
        reason if isinstance(reason, str) else None,
        value_of(response.get("usage")),
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


def with_response(data: bytes, known: Members) -> bytes:
    """The lifecycle event with a response object, where it has none.

    :param known: what else is known of the response; what the event itself says in place of
        one counts more.
    :raises MalformedEvent: when the event is no JSON object.
    """
    event = _members_of(data)
    of_the_event = ("type", "sequence_number", "response")
    said = {name: value for name, value in event.items() if name not in of_the_event}
    kept = {name: value for name, value in event.items() if name in of_the_event}
    return msgspec.json.encode({**kept, "response": {**known, **said}})


def read_item_done(data: bytes) -> tuple[int | None, bytes | None]:
    """``output_index`` and the raw item of a ``response.output_item.done``.

    :return: None for what the event does not say, or not in a way that can be read.
    :raises MalformedEvent: when it is no JSON.
    """
    members = _members_of(data)
    item = bytes(members.get("item", b"null"))
    return integer_of(members.get("output_index")), item if item.startswith(b"{") else None


def read_turn_state(data: bytes) -> str | None:
    """``x-codex-turn-state`` of a ``response.metadata`` event (§4.6), or None."""
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

    Its turn state stays: what becomes of that is another matter.
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
    if len(kept) == len(headers):
        return data
    return msgspec.json.encode({**event, "headers": kept})


def metadata_event(headers: Mapping[str, str]) -> bytes:
    """A ``response.metadata`` event; it takes no part in the ``sequence_number``s (§4.6)."""
    return msgspec.json.encode(
        {"type": "response.metadata", "headers": dict(headers), "metadata": {}}
    )


def sequence_number(data: bytes) -> int:
    """The ``sequence_number`` of an event, or -1."""
    try:
        number = integer_of(_decode_numbered(data).sequence_number)
    except UNREADABLE:
        return -1
    return -1 if number is None else number


def with_response_members(data: bytes, members: Mapping[str, msgspec.Raw]) -> bytes:
    """Put ``members`` into the response of a lifecycle event; without one it stays as it is."""
    try:
        event = decode_members(data)
        response = decode_members(event["response"])
    except (KeyError, *UNREADABLE):
        return data
    response.update(members)
    event["response"] = raw_value(response)
    return msgspec.json.encode(event)


def with_stream_id(data: bytes, stream_id: bytes) -> bytes:
    """Name the lane in an event, everything else untouched (§10.46).

    :param stream_id: the lane's name as JSON.
    """
    members = data[data.find(b"{") + 1 :]
    separator = b"" if members.lstrip().startswith(b"}") else b","
    return b'{"stream_id":' + stream_id + separator + members


def response_members(data: bytes) -> Members:
    """The response object of a lifecycle event, as raw members; empty when unreadable."""
    try:
        return _response_in(decode_members(data)) or {}
    except UNREADABLE:
        return {}


def raw_list(items: Sequence[bytes]) -> msgspec.Raw:
    """A JSON array of raw items."""
    return msgspec.Raw(b"[" + b",".join(items) + b"]")


def raw_value(value: object) -> msgspec.Raw:
    """A value as a raw JSON member."""
    return msgspec.Raw(msgspec.json.encode(value))
