"""Input and output items: kept as raw JSON, read only where the gateway must.

Items are opaque (protocol.md §3.4, §8.3): only ``type``, ``id``, ``call_id`` and the presence of
``encrypted_content`` are read.  An item that cannot be read passes as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import msgspec

from gateway.protocol.errors import UNREADABLE

#: Item types that only a model makes, beside all calls; an input that holds one brings its own
#: history.
MODEL_MADE = frozenset(
    {
        "reasoning",
        "compaction",
        "compaction_summary",
        "item_reference",
        "mcp_approval_request",
        "mcp_list_tools",
        "program",
    }
)

#: No model takes an input of so many items.
_MAX_ITEMS = 100_000

#: What the type of a call ends with, and that of its output.
_CALL = "_call"
_OUTPUT = "_output"
_REQUEST = "mcp_approval_request"
_APPROVAL = "mcp_approval_response"

_CONTENT_NAME = b'"encrypted_content"'
_CONTENT = re.compile(_CONTENT_NAME + rb'\s*:\s*"([^"]+)"')

#: Members of an item, and of a part of its content, that do not change what it means.
_ITEM_LABELS = frozenset({"id", "call_id", "status", "type"})
_PART_LABELS = frozenset({"annotations", "logprobs", "type"})

IssuerOf = Callable[[bytes], "str | None"]


class Item(msgspec.Struct, frozen=True, gc=False):
    """One item of a transcript.

    :ivar encrypted: it carries ``encrypted_content``, which only the account that issued it
        can read.
    :ivar issuer: that account; None when it is unknown.
    :ivar unfinished: it says that more of it is to come.
    """

    raw: bytes
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    role: str | None = None
    encrypted: bool = False
    issuer: str | None = None
    unfinished: bool = False

    @property
    def needs_issuer(self) -> bool:
        """Encrypted, and not to be dropped: compaction items, messages between agents."""
        return self.encrypted and self.type != "reasoning"

    @property
    def is_call_output(self) -> bool:
        """Whether it answers a call: a tool's output of any kind, or an approval."""
        return self.type.endswith(_OUTPUT) or self.type == _APPROVAL

    @property
    def is_model_made(self) -> bool:
        """Whether only a model makes such an item."""
        return self.type.endswith(_CALL) or self.type in MODEL_MADE or self.role == "assistant"

    @property
    def is_reference(self) -> bool:
        """Whether only a service that stores the item of this id can read it."""
        return self.type == "item_reference" or (self.type == "reasoning" and not self.encrypted)


class _ItemHead(msgspec.Struct):
    type: str | None = None
    id: str | int | None = None
    call_id: str | int | None = None
    role: str | None = None
    approval_request_id: str | int | None = None
    status: msgspec.Raw = msgspec.Raw(b"null")


_decode_head = msgspec.json.Decoder(_ItemHead).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


def read_item(raw: bytes) -> Item:
    """Read an item; its issuer is not known yet (:func:`with_issuers`)."""
    try:
        head = _decode_head(raw)
    except UNREADABLE:
        return Item(raw)
    kind = head.type or ("message" if head.role else "item_reference" if head.id else "")
    id_ = head.id
    call_id = head.approval_request_id if kind == _APPROVAL else head.call_id
    if isinstance(id_, int):  # some services and clients number their calls
        id_ = str(id_)
    if isinstance(call_id, int):
        call_id = str(call_id)
    encrypted = _CONTENT_NAME in raw and _CONTENT.search(raw) is not None
    unfinished = bytes(head.status) == b'"in_progress"'
    return Item(raw, kind, id_, call_id, head.role, encrypted, None, unfinished)


def with_issuers(items: tuple[Item, ...], issuer_of: IssuerOf) -> tuple[Item, ...]:
    """The items with the accounts that issued their ``encrypted_content``.

    :param issuer_of: finds the account by the item's JSON; None when it is unknown.
    """
    return tuple(
        msgspec.structs.replace(item, issuer=issuer_of(item.raw)) if item.encrypted else item
        for item in items
    )


def read_input(raw: bytes) -> tuple[Item, ...]:
    """Split a request's ``input`` (string, list or null) into items.

    :raises ValueError: when it is none of these, or too long.
    """
    kind = raw[:1]
    if kind == b"[":
        entries = _decode_list(raw)
        if len(entries) > _MAX_ITEMS:
            raise ValueError(f"it has more than {_MAX_ITEMS} items")
        return tuple([read_item(bytes(entry)) for entry in entries])
    if kind == b'"':
        content = b'{"type":"message","role":"user","content":' + raw + b"}"
        return (Item(content, "message", role="user"),)
    if raw == b"null":
        return ()
    raise ValueError("expected a string or a list of items")


def encrypted_content(raw: bytes) -> bytes | None:
    """The ``encrypted_content`` of an item, wherever in it; None when it has none.

    A client may echo an item with other members around it, so it alone identifies the item.
    """
    if _CONTENT_NAME not in raw:
        return None  # the usual case, and the cheap one
    found = _CONTENT.search(raw)
    return None if found is None else found[1]


def call_ids(item: Item) -> tuple[str, ...]:
    """The ids by which an output may refer to this call; none for an item that is no call."""
    is_call = item.call_id or item.type.endswith(_CALL) or item.type == _REQUEST
    if item.is_call_output or not is_call:
        return ()
    return tuple(each for each in (item.call_id, item.id) if each is not None)


def missing_calls(items: Iterable[Item]) -> set[str]:
    """Ids of calls that have an output among ``items`` but are missing themselves."""
    answered: set[str] = set()
    present: set[str] = set()
    for item in items:
        if item.is_call_output:
            name = item.call_id or item.id
            if name is not None:
                answered.add(name)
        else:
            present.update(call_ids(item))
    return answered - present


def brings_history(items: Iterable[Item]) -> bool:
    """Whether an input holds what only a model makes: it is a conversation of its own."""
    return any(item.is_model_made for item in items)


def item_content(raw: bytes) -> bytes:
    """What an item means, in one form for what services and clients write in several.

    Its type, ids, status and empty members do not count, nor does whether a text stands alone
    or as the only part of a list.
    """
    try:
        item = msgspec.json.decode(raw)
        if isinstance(item, dict):
            item = {
                name: _content_parts(value) if name in ("content", "output") else value
                for name, value in item.items()
                if name not in _ITEM_LABELS and value not in (None, "", [], {})
            }
        return msgspec.json.encode(item, order="deterministic")
    except UNREADABLE:
        return raw


def _content_parts(content: object) -> object:
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        return content
    return [
        {name: value for name, value in part.items() if name not in _PART_LABELS}
        if isinstance(part, dict)
        else part
        for part in content
    ]
