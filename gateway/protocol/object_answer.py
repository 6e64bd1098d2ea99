"""An answer that came as one response object, as the events that would have told it (§4.1).

Some services answer a request for a stream in one piece.  Clients put an answer together from
events, so they get the usual ones: the beginning, each item with what its deltas would have
said, the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import TERMINALS, Members, decode_members, event_type
from gateway.protocol.sse import Event
from gateway.protocol.synthetic_events import opening
from gateway.protocol.tolerant_json import mended, text_of, value_of

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

#: How a response of each status ends; any other one is not over, and has no end.
_ENDS = {
    kind.removeprefix(b"response.").decode(): kind.decode()
    for kind in TERMINALS
    if kind != b"response.done"
}

#: What a part of a message's content says, by its type: the member, and the events' middle name.
_PARTS = {"output_text": ("text", "output_text"), "refusal": ("refusal", "refusal")}

#: What a call is made of that its deltas bring, by its type.
_CALLS = {
    "function_call": ("arguments", "function_call_arguments"),
    "custom_tool_call": ("input", "custom_tool_call_input"),
    "mcp_call": ("arguments", "mcp_call_arguments"),
}


def read_object_answer(body: bytes) -> list[Event] | None:
    """The events of an answer in one piece: a response object, or one event.

    :return: None for anything else, an error among it.
    """
    body = mended(body)
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
    events = _events_of(members)
    return [
        (kind.encode(), msgspec.json.encode({"type": kind, "sequence_number": number, **event}))
        for number, (kind, event) in enumerate(events)
    ]


_Events = Iterator[tuple[str, dict[str, Any]]]


def _events_of(response: Members) -> _Events:
    failed = value_of(response.get("error")) is not None
    status = text_of(response.get("status")) or ("failed" if failed else "completed")
    yield "response.created", {"response": opening(response) if status in _ENDS else response}
    if status in ("completed", "incomplete"):
        for index, raw in enumerate(_items_of(response)):
            yield from _item_events(index, raw)
    if status in _ENDS:
        yield _ENDS[status], {"response": response}


def _items_of(response: Members) -> list[msgspec.Raw]:
    try:
        return _decode_list(response["output"])
    except (KeyError, *UNREADABLE):
        return []


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
