"""The terminal event of a response: sent verbatim, unless it would harm a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from .errors import UNREADABLE
from .events import (
    TERMINALS,
    MalformedEvent,
    decode_members,
    raw_list,
    raw_value,
    sequence_number,
)
from .output_items import OutputItems
from .tolerant_json import text_of

#: The states of a response that has ended.
_ENDED = frozenset({"completed", "failed", "incomplete", "cancelled"})

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Ending(NamedTuple):
    """The end of an answer as the client gets it.

    :ivar events: what to relay, the terminal event last.
    :ivar items: all output items of the answer in their order, as the client saw them.
    """

    events: list[bytes]
    items: list[bytes]


def finish_terminal(
    data: bytes, kind: bytes, shown: Mapping[str, msgspec.Raw], items: OutputItems
) -> Ending:
    """What to send for an upstream's terminal event.

    It is sent verbatim unless it must be mended: an ``output`` that lacks items which the
    client saw gets them (§10.40), items the client never saw are announced first
    (§10.39), ``usage`` is completed (§10.43), the id and the like are those of
    ``response.created`` (§10.38), and a type no client knows becomes one that they do (§10.42).

    :param kind: the event's type as the upstream named it.
    :param shown: members of the response as the client saw them in ``response.created``.
    :param items: the finished items that the client was shown.
    :raises MalformedEvent: when it has no response.
    """
    try:
        event = decode_members(data)
        response = decode_members(event["response"])
    except (KeyError, *UNREADABLE) as error:
        raise MalformedEvent(f"{kind.decode()} without a response object: {error}") from None
    changed = False
    before: list[bytes] = []
    output = bytes(response.get("output", b"null"))
    all_items = items.raw
    if not _is_empty(output):
        members = _decode_list(output)
        in_it = [bytes(each) for each in members if bytes(each).startswith(b"{")]
        if len(in_it) != len(members):
            response["output"] = raw_list(in_it)
            changed = True
        listed = items.compare(in_it)
        all_items = listed.items
        if listed.missing:
            number = max(sequence_number(data), 0)
            before = _announcements(listed.missing, number)
            event["sequence_number"] = raw_value(number + len(before))
            changed = True
        if listed.is_short:
            response["output"] = raw_list(all_items)
            changed = True
    elif all_items or not output.startswith(b"["):
        response["output"] = raw_list(all_items)
        changed = True
    usage = response.get("usage")
    if usage is not None:
        mended = mend_usage(bytes(usage))
        if mended is not None:
            response["usage"] = msgspec.Raw(mended)
            changed = True
    for name, value in shown.items():
        if bytes(response.get(name, b"")) != bytes(value):
            response[name] = value
            changed = True
    if bytes(response.get("incomplete_details", b"null"))[:1] not in (b"{", b"n"):
        response["incomplete_details"] = raw_value(None)
        changed = True
    if text_of(response.get("status")) not in _ENDED:
        response["status"] = raw_value(TERMINALS[kind].removeprefix(b"response.").decode())
        changed = True
    if TERMINALS[kind] != kind:
        event["type"] = raw_value(TERMINALS[kind].decode())
        response["status"] = raw_value(TERMINALS[kind].removeprefix(b"response.").decode())
        if kind == b"response.cancelled":
            response["incomplete_details"] = raw_value({"reason": "interrupted"})
        changed = True
    if not changed:
        return Ending([data], all_items)
    event["response"] = msgspec.Raw(msgspec.json.encode(response))
    return Ending([*before, msgspec.json.encode(event)], all_items)


def mend_usage(raw: bytes) -> bytes | None:
    """Complete a ``usage`` object that would make clients repeat the turn (§4.3).

    :return: the completed JSON, or None when nothing is wrong with it.
    """
    try:
        usage = msgspec.json.decode(raw)
    except UNREADABLE:
        return b"null"
    if usage is None:
        return None
    if not isinstance(usage, dict):
        return b"null"
    mended = dict(usage)
    for name in ("input_tokens", "output_tokens"):
        mended[name] = _count(mended.get(name), 0)
    mended["total_tokens"] = _count(
        mended.get("total_tokens"), mended["input_tokens"] + mended["output_tokens"]
    )
    for name, detail in (
        ("input_tokens_details", "cached_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
    ):
        details = mended.get(name)
        if isinstance(details, dict):
            mended[name] = {**details, detail: _count(details.get(detail), 0)}
    written = msgspec.json.encode(mended)  # compared as text: to Python, 1 == 1.0 == True
    return None if written == msgspec.json.encode(usage) else written


def _count(value: object, otherwise: int) -> int:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    return otherwise


def _announcements(missing: list[tuple[int, bytes]], first_number: int) -> list[bytes]:
    """``response.output_item.done`` for what the client was not shown."""
    return [
        msgspec.json.encode(
            {
                "type": "response.output_item.done",
                "sequence_number": first_number + offset,
                "output_index": index,
                "item": msgspec.Raw(raw),
            }
        )
        for offset, (index, raw) in enumerate(missing)
    ]


def _is_empty(output: bytes) -> bool:
    """Whether it lists nothing; what is no list lists nothing either."""
    return output[:1] != b"[" or not output[1:-1].strip()
