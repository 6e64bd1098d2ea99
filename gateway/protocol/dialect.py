"""What one account's service wants otherwise than the client wrote it (§8.1, §8.3.10)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from gateway.protocol.concessions import may_be_left_out
from gateway.protocol.errors import UNREADABLE


class Dialect(NamedTuple):
    """How a request body is put for one account.

    :ivar model: the account's own name of the model, or None to leave the client's.
    :ivar strip: members that the service refuses.
    :ivar stores: false where ``store: false`` is forced (§10.77).
    :ivar keeps_items: false where nothing is kept whatever ``store`` says.
    :ivar hoists_tools: ``additional_tools`` items become top-level ``tools`` (§10.30).
    :ivar cache_key: a ``prompt_cache_key`` for requests without one, or None.
    :ivar lists_input: text as ``input`` becomes a list, as where nothing is stored: ChatGPT's
        backend takes only lists.
    :ivar issuers: reasoning that is not stored is asked for sealed (§10.68).
    :ivar streams: the answer is asked for as a stream.
    :ivar spares: members that the service refuses, left out where that changes nothing.
    """

    model: str | None = None
    strip: frozenset[str] = frozenset()
    stores: bool = True
    hoists_tools: bool = False
    cache_key: str | None = None
    lists_input: bool = False
    issuers: bool = True
    streams: bool = True
    spares: frozenset[str] = frozenset()
    keeps_items: bool = True

    @property
    def takes_only_lists(self) -> bool:
        """Whether text has to be written as a list of one message."""
        return self.lists_input or not self.stores

    def leaves_out(self, name: str, raw: bytes | msgspec.Raw) -> bool:
        """Whether this member of a request is not for the service."""
        return name in self.strip or (name in self.spares and may_be_left_out(name, raw))


#: The platform's own.
PLAIN = Dialect()

_HOISTED = b'"additional_tools"'


class _Tool(msgspec.Struct):
    type: str | None = None
    name: str | None = None
    server_label: str | None = None


class _ToolItem(msgspec.Struct):
    type: str | None = None
    tools: list[msgspec.Raw] = []


_decode_item = msgspec.json.Decoder(_ToolItem).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_decode_tools = msgspec.json.Decoder(list[msgspec.Raw]).decode


def hoist_tools(items: Sequence[bytes], tools: bytes) -> tuple[list[bytes], bytes]:
    """Move what ``additional_tools`` items bring to the top level.

    :param items: the whole input, raw.
    :param tools: the request's own ``tools``, raw; ``null`` when it has none.
    :return: the input without these items, and all tools: of one name the last counts.
    """
    kept: list[bytes] = []
    brought: list[msgspec.Raw] = []
    for raw in items:
        item = _read_tool_item(raw)
        if item is None:
            kept.append(raw)
        else:
            brought += item.tools
    if not brought:
        return kept, tools
    try:
        own = _decode_tools(tools) if tools != b"null" else []
    except UNREADABLE:
        own = []  # the upstream will say what is wrong with them
    return kept, b"[" + b",".join(_by_name([*own, *brought])) + b"]"


def _read_tool_item(raw: bytes) -> _ToolItem | None:
    if _HOISTED not in raw:
        return None  # the usual case, and the cheap one
    try:
        item = _decode_item(raw)
    except UNREADABLE:
        return None
    return item if item.type == "additional_tools" else None


def _by_name(tools: Iterable[msgspec.Raw]) -> list[bytes]:
    """Each tool once, at the place of its first definition; MCP servers are told by labels."""
    known: dict[tuple[str | None, ...], bytes] = {}
    for number, tool in enumerate(tools):
        raw = bytes(tool)
        try:
            head = _decode_tool(raw)
        except UNREADABLE:
            head = _Tool(name=f"unreadable {number}")
        known[head.type, head.name, head.server_label] = raw
    return list(known.values())
