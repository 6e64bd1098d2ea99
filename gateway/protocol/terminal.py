"""The terminal event of a response: sent verbatim, unless it would harm a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import (
    TERMINALS,
    MalformedEvent,
    Members,
    decode_members,
    raw_list,
    raw_value,
    sequence_number,
)
from gateway.protocol.output_items import OutputItems
from gateway.protocol.tolerant_json import text_of, value_of, whole_number

#: The states of a response that has ended.
_ENDED = frozenset({"completed", "failed", "incomplete", "cancelled"})

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class TerminalEvent(NamedTuple):
    """The end of an answer as the client gets it.

    :ivar events: what to relay, the terminal event last.
    :ivar items: all output items of the answer in their order, as the client saw them.
    """

    events: list[bytes]
    items: list[bytes]


def finish_terminal(
    data: bytes, kind: bytes, shown: Mapping[str, msgspec.Raw], items: OutputItems
) -> TerminalEvent:
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
    changes = {**shown, **_mended(response, kind)}
    listed, is_sound = _items_in(bytes(response.get("output", b"null")))
    compared = items.compare(listed)
    if compared.is_short or not is_sound:
        changes["output"] = raw_list(compared.items if compared.is_short else listed)
    number = max(sequence_number(data), 0)
    before = _announcements(compared.missing, number)
    changed = {name: value for name, value in changes.items() if response.get(name) != value}
    if not changed and not before and TERMINALS[kind] == kind:
        return TerminalEvent([data], compared.items)
    event["response"] = raw_value({**response, **changed})
    event["type"] = raw_value(TERMINALS[kind].decode())
    if before:
        event["sequence_number"] = raw_value(number + len(before))
    return TerminalEvent([*before, msgspec.json.encode(event)], compared.items)


def _mended(response: Members, kind: bytes) -> Members:
    """Members that would harm a client, as they should be."""
    mended: Members = {}
    usage = mend_usage(bytes(response.get("usage", b"null")))
    if usage is not None:
        mended["usage"] = msgspec.Raw(usage)
    if kind == b"response.cancelled":
        mended["incomplete_details"] = raw_value({"reason": "interrupted"})
    elif not isinstance(value_of(response.get("incomplete_details")), (dict, type(None))):
        mended["incomplete_details"] = raw_value(None)
    if TERMINALS[kind] != kind or text_of(response.get("status")) not in _ENDED:
        mended["status"] = raw_value(TERMINALS[kind].removeprefix(b"response.").decode())
    return mended


def _items_in(output: bytes) -> tuple[list[bytes], bool]:
    """The items that an ``output`` lists, and whether it is a list of nothing else."""
    try:
        entries = list(map(bytes, _decode_list(output)))
    except UNREADABLE:
        return [], False
    items = [entry for entry in entries if entry.startswith(b"{")]
    return items, len(items) == len(entries)


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
    number = whole_number(value)
    if number is None and isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    return otherwise if number is None else number


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
