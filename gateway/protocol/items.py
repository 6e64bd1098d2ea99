"""Input and output items: kept as raw JSON, looked at only where the gateway must.

Items are opaque (protocol.md §3.4): only ``type``, ``id``, ``call_id`` and the presence of
``encrypted_content`` are read.  An item that cannot be read passes as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

from .errors import UNREADABLE

#: Item types of tool results; each answers the call of the same ``call_id`` (§8.3.6).
TOOL_OUTPUTS = frozenset(
    {
        "function_call_output",
        "custom_tool_call_output",
        "tool_search_output",
        "local_shell_call_output",
        "shell_call_output",
        "apply_patch_call_output",
        "computer_call_output",
        "program_output",
    }
)

#: Item types that only a model makes; an input that holds one brings its own history.
MODEL_MADE = frozenset(
    {
        "reasoning",
        "compaction",
        "compaction_summary",
        "function_call",
        "custom_tool_call",
        "tool_search_call",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
        "computer_call",
        "web_search_call",
        "file_search_call",
        "image_generation_call",
        "code_interpreter_call",
        "mcp_call",
        "item_reference",
    }
)

_SEAL_NAME = b'"encrypted_content"'
_SEAL = re.compile(_SEAL_NAME + rb'\s*:\s*"([^"]+)"')


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item of a transcript.

    ``sealed`` says that it carries ``encrypted_content``, which only the account that
    issued it can read (§8.3.9); ``issuer`` names that account, or is None when unknown.
    """

    raw: bytes
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    role: str | None = None
    sealed: bool = False
    issuer: str | None = None

    @property
    def seal_opens_nowhere_else(self) -> bool:
        """Sealed, and too precious to drop: compaction items, messages between agents."""
        return self.sealed and self.type != "reasoning"


class _Head(msgspec.Struct):
    type: str | None = None
    id: str | None = None
    call_id: str | None = None
    role: str | None = None


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

IssuerOf = Callable[[bytes], "str | None"]


def read_item(raw: bytes, issuer_of: IssuerOf | None = None) -> Item:
    """Make an :class:`Item` of its JSON.

    :param issuer_of: tells which account issued a sealed item, from its JSON.
    """
    try:
        head = _decode_head(raw)
    except UNREADABLE:
        return Item(raw)
    kind = head.type or ("message" if head.role else "")
    sealed = seal_of(raw) is not None
    issuer = issuer_of(raw) if sealed and issuer_of is not None else None
    return Item(raw, kind, head.id, head.call_id, head.role, sealed, issuer)


def read_input(raw: bytes, issuer_of: IssuerOf | None = None) -> tuple[Item, ...]:
    """Split a request's ``input`` (string, list or null) into items (§10.20).

    :raises ValueError: when it is none of these.
    """
    kind = raw[:1]
    if kind == b"[":
        return tuple(read_item(bytes(item), issuer_of) for item in _decode_list(raw))
    if kind == b'"':
        content = b'{"type":"message","role":"user","content":' + raw + b"}"
        return (Item(content, "message", role="user"),)
    if raw == b"null":
        return ()
    raise ValueError("expected a string or a list of items")


def seal_of(raw: bytes) -> bytes | None:
    """The ``encrypted_content`` of an item, wherever in it; None when it is not sealed.

    A client may echo an item with other members around the seal, so the seal alone counts.
    """
    if _SEAL_NAME not in raw:
        return None  # the usual case, and the cheap one
    found = _SEAL.search(raw)
    return None if found is None else found[1]


def unanswered_calls(items: Iterable[Item]) -> set[str]:
    """``call_id`` of tool outputs whose call is not among ``items``."""
    outputs: set[str] = set()
    calls: set[str] = set()
    for item in items:
        if item.call_id is not None:
            (outputs if item.type in TOOL_OUTPUTS else calls).add(item.call_id)
    return outputs - calls


def brings_history(items: Iterable[Item]) -> bool:
    """Whether an input holds what only a model makes: it is a conversation of its own."""
    return any(item.type in MODEL_MADE or item.role == "assistant" for item in items)
