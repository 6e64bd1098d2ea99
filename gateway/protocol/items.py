"""Input and output items: kept as raw JSON, looked at only where the gateway must.

Items are opaque (protocol.md §3.4): only ``type``, ``id``, ``call_id`` and the presence of
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

#: What the type of a call ends with, and that of an answer to one (§8.3.6).
_CALL = "_call"
_ANSWER = "_output"
_REQUEST = "mcp_approval_request"
_APPROVAL = "mcp_approval_response"

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

    @property
    def is_answer(self) -> bool:
        """Whether it answers a call: a tool's output of any kind, or an approval."""
        return self.type.endswith(_ANSWER) or self.type == _APPROVAL

    @property
    def is_model_made(self) -> bool:
        """Whether only a model makes such an item."""
        return self.type.endswith(_CALL) or self.type in MODEL_MADE or self.role == "assistant"

    @property
    def by_id(self) -> bool:
        """Whether only a service that keeps the item of this id can read it."""
        return self.type == "item_reference" or (self.type == "reasoning" and not self.sealed)


class _ItemHead(msgspec.Struct):
    type: str | None = None
    id: str | int | None = None
    call_id: str | int | None = None
    role: str | None = None
    approval_request_id: str | int | None = None


class _Status(msgspec.Struct):
    status: str | None = None


_decode_head = msgspec.json.Decoder(_ItemHead).decode
_decode_status = msgspec.json.Decoder(_Status).decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode

IssuerOf = Callable[[bytes], "str | None"]


def read_item(raw: bytes) -> Item:
    """Read an item; its issuer is not known yet (:func:`with_issuers`)."""
    try:
        head = _decode_head(raw)
    except UNREADABLE:
        return Item(raw)
    kind = head.type or ("message" if head.role else "item_reference" if head.id else "")
    call_id = head.approval_request_id if kind == _APPROVAL else head.call_id
    sealed = seal_of(raw) is not None
    return Item(raw, kind, _text(head.id), _text(call_id), head.role, sealed)


def with_issuers(items: tuple[Item, ...], issuer_of: IssuerOf) -> tuple[Item, ...]:
    """The items with the accounts that issued their ``encrypted_content``.

    :param issuer_of: finds the account by the item's JSON; None when it is unknown.
    """
    if not any(item.sealed for item in items):
        return items
    return tuple(
        msgspec.structs.replace(item, issuer=issuer_of(item.raw)) if item.sealed else item
        for item in items
    )


def read_input(raw: bytes) -> tuple[Item, ...]:
    """Split a request's ``input`` (string, list or null) into items (§10.20).

    :raises ValueError: when it is none of these.
    """
    kind = raw[:1]
    if kind == b"[":
        return tuple(read_item(bytes(item)) for item in _decode_list(raw))
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


def names_of_call(item: Item) -> tuple[str, ...]:
    """The names by which an answer may speak of this call: ``call_id``, ``id`` (§8.3.6).

    :return: none for an item that is no call.
    """
    if item.is_answer or not (item.call_id or item.type.endswith(_CALL) or item.type == _REQUEST):
        return ()
    return tuple(name for name in (item.call_id, item.id) if name is not None)


def unanswered_calls(items: Iterable[Item]) -> set[str]:
    """Names of the calls that ``items`` answer and do not hold."""
    answered: set[str] = set()
    held: set[str] = set()
    for item in items:
        if item.is_answer:
            name = item.call_id or item.id
            if name is not None:
                answered.add(name)
        else:
            held.update(names_of_call(item))
    return answered - held


def brings_history(items: Iterable[Item]) -> bool:
    """Whether an input holds what only a model makes: it is a conversation of its own."""
    return any(item.is_model_made for item in items)


def is_unfinished(raw: bytes) -> bool:
    """Whether an item says of itself that more of it is to come."""
    try:
        return _decode_status(raw).status == "in_progress"
    except UNREADABLE:
        return False


def item_content(raw: bytes) -> bytes:
    """What an item says, without what services and clients write otherwise about the same.

    Its type, its ids, its state and empty members do not count, nor does whether a text
    stands alone or as the only part of a list.
    """
    try:
        content = _essence(msgspec.json.decode(raw))
        return msgspec.json.encode(content, order="deterministic")
    except UNREADABLE:
        return raw


#: Members of an item, and of a part of its content, that say nothing of what it means.
_OF_AN_ITEM = frozenset({"id", "call_id", "status", "type"})
_OF_A_PART = frozenset({"annotations", "logprobs", "type"})


def _essence(item: object) -> object:
    if not isinstance(item, dict):
        return item
    return {
        name: _parts(value) if name in ("content", "output") else value
        for name, value in item.items()
        if name not in _OF_AN_ITEM and value not in (None, "", [], {})
    }


def _parts(content: object) -> object:
    if isinstance(content, str):
        return [{"text": content}]
    if not isinstance(content, list):
        return content
    return [
        {name: value for name, value in part.items() if name not in _OF_A_PART}
        if isinstance(part, dict)
        else part
        for part in content
    ]


def _text(name: str | int | None) -> str | None:
    """An id as text: some services and clients number their calls."""
    return name if name is None or isinstance(name, str) else str(name)
