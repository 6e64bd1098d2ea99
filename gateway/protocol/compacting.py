"""Compactions and token counts: the input of a turn without a turn (protocol.md §6.5, §7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from gateway.protocol.dialect import Dialect
from gateway.protocol.errors import UNREADABLE
from gateway.protocol.request import TurnRequest
from gateway.protocol.usage import Usage, read_usage

_REPLACED = frozenset({"input", "previous_response_id"})


def input_body(
    request: TurnRequest,
    items: Sequence[bytes] | None,
    previous_response_id: str | None,
    dialect: Dialect,
) -> bytes:
    """The body for one account; members that need no change keep the client's bytes.

    :param items: the whole ``input`` as raw items, or None to send the client's own.
    :param previous_response_id: the response to chain to, or None.
    :param dialect: what the account's service wants otherwise.
    """
    members: dict[str, bytes | msgspec.Raw] = {
        name: raw for name, raw in request.members.items() if name not in _REPLACED
    }
    if "store" in members and not dialect.stores:
        members["store"] = b"false"
    if dialect.model is not None:
        members["model"] = msgspec.json.encode(dialect.model)
    if dialect.cache_key is not None and "prompt_cache_key" not in members:
        members["prompt_cache_key"] = msgspec.json.encode(dialect.cache_key)
    if previous_response_id is not None:
        members["previous_response_id"] = msgspec.json.encode(previous_response_id)
    if items is None and dialect.takes_only_lists and request.has_text_input:
        items = [item.raw for item in request.items]
    if items is not None:
        members["input"] = b"[" + b",".join(items) + b"]"
    elif "input" in request.members:
        members["input"] = request.members["input"]
    pairs = (
        msgspec.json.encode(name) + b":" + bytes(raw)
        for name, raw in members.items()
        if not dialect.leaves_out(name, raw)
    )
    return b"{" + b",".join(pairs) + b"}"


class Compacted(NamedTuple):
    """What is read of a compaction.

    :ivar items: those that start the new chain, raw.
    """

    items: tuple[bytes, ...]
    usage: Usage | None


class _Answer(msgspec.Struct):
    output: list[msgspec.Raw] = []
    usage: msgspec.Raw = msgspec.Raw(b"null")


_decode = msgspec.json.Decoder(_Answer).decode


def read_compacted(body: bytes) -> Compacted:
    """Read the answer of ``/responses/compact``; one of another shape holds nothing."""
    try:
        answer = _decode(body)
        usage = msgspec.json.decode(answer.usage)
    except UNREADABLE:
        return Compacted((), None)
    return Compacted(tuple(map(bytes, answer.output)), read_usage(usage))
