"""From a client's request to the one that an account gets (protocol.md §3.2, §8.1, §8.3).

Members that need no change keep the client's bytes.  A :class:`Dialect` describes how the
account's service needs the request changed.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from gateway.protocol.concessions import may_be_left_out
from gateway.protocol.errors import UNREADABLE
from gateway.protocol.events import value_of
from gateway.protocol.headers import may_pass
from gateway.protocol.request import ChatRequest, TurnRequest
from gateway.protocol.turn_state import TURN_STATE

#: Members that exist only between client and gateway, or that the gateway sets itself.
_NOT_FORWARDED = frozenset(
    {"type", "generate", "stream_id", "background", "stream", "previous_response_id", "input"}
)

_ENCRYPTED_REASONING = "reasoning.encrypted_content"

#: ``client_metadata`` keys of a turn that are headers over HTTP.
_METADATA_HEADERS = {
    "ws_request_header_traceparent": "traceparent",
    "ws_request_header_tracestate": "tracestate",
    "ws_request_header_x_openai_internal_codex_responses_lite": (
        "x-openai-internal-codex-responses-lite"
    ),
    "x-codex-turn-metadata": "x-codex-turn-metadata",
    "x-codex-window-id": "x-codex-window-id",
}

#: ``client_metadata`` keys that stand for headers, or mean nothing to an HTTP upstream.
_WEBSOCKET_METADATA = ("ws_request_header_", TURN_STATE, "x-codex-ws-stream-request-start-ms")

#: The name of the member ``model``, or maybe of it: its letters may be escaped.
_MODEL_NAME = re.compile(rb'"model"|\\u006[45CDFcdf]')

_TOOLS_ITEM = b'"additional_tools"'


class Dialect(NamedTuple):
    """How one account's service needs the client's request changed.

    :ivar model: the account's own name of the model, or None to leave the client's.
    :ivar strip: members that the service refuses.
    :ivar stores: false where ``store: false`` is forced.
    :ivar hoists_tools: ``additional_tools`` items become top-level ``tools``.
    :ivar cache_key: a ``prompt_cache_key`` for requests without one, or None.
    :ivar lists_input: text as ``input`` becomes a list, as where nothing is stored: ChatGPT's
        backend takes only lists.
    :ivar asks_encrypted: reasoning that is not stored is asked for with encrypted content.
    :ivar streams: the answer is asked for as a stream.
    :ivar spares: members that the service refuses, left out where that changes nothing.
    :ivar keeps_items: false where no item is kept whatever ``store`` says.
    :ivar inherits_instructions: the service keeps the instructions of the previous response, and
        refuses others beside it.
    """

    model: str | None = None
    strip: frozenset[str] = frozenset()
    stores: bool = True
    hoists_tools: bool = False
    cache_key: str | None = None
    lists_input: bool = False
    asks_encrypted: bool = True
    streams: bool = True
    spares: frozenset[str] = frozenset()
    keeps_items: bool = True
    inherits_instructions: bool = False

    @property
    def takes_only_lists(self) -> bool:
        """Whether text has to be written as a list of one message."""
        return self.lists_input or not self.stores


#: The platform's own.
PLAIN = Dialect()


class UpstreamTurn(NamedTuple):
    """A turn for one account, before a transport encodes it.

    :ivar items: the whole ``input`` as raw items, or None to send the client's own.
    :ivar previous_response_id: the response to chain to, or None.
    :ivar dialect: how the account's service needs the request changed.
    :ivar client_headers: those of the client's handshake that
        :func:`~gateway.protocol.headers.forwardable` kept; each character of a value stands for
        one byte.
    :ivar account_headers: the account's own, which win over everything.
    :ivar turn_state: ``x-codex-turn-state`` for this account, or None.
    :ivar affinity: what identifies the conversation, for a transport that keeps one on one
        connection; None when nothing does.
    :ivar tenant: the client key; tenants share no connection that keeps something of them.
    :ivar holder: the token of the connection that has the response to chain to; None if the
        account itself has it.
    :ivar avoids_websocket: true after WebSocket has failed for this request.
    """

    request: TurnRequest
    items: Sequence[bytes] | None = None
    previous_response_id: str | None = None
    dialect: Dialect = PLAIN
    client_headers: Mapping[str, str] = {}
    account_headers: Sequence[tuple[str, str]] = ()
    turn_state: str | None = None
    affinity: Hashable = None
    tenant: str = ""
    holder: str | None = None
    avoids_websocket: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether the account is asked to store the response."""
        return self.request.store and self.dialect.stores


def build_body(
    request: TurnRequest,
    items: Sequence[bytes] | None,
    previous_response_id: str | None,
    dialect: Dialect = PLAIN,
) -> bytes:
    """Write the body of ``POST /responses``.

    :param items: the whole ``input`` as raw items, or None to send the client's own.
    :param previous_response_id: the response to chain to, or None.
    """
    own: dict[str, bytes | msgspec.Raw] = {"stream": b"true" if dialect.streams else b"false"}
    if request.background:
        own["background"] = b"true"
    metadata: bytes | None = request.members.get("client_metadata")
    if metadata is not None:
        metadata = _http_metadata(bytes(metadata))
    return write_turn(request, items, previous_response_id, dialect, own, metadata)


def write_turn(
    request: TurnRequest,
    items: Sequence[bytes] | None,
    previous_response_id: str | None,
    dialect: Dialect,
    own: Mapping[str, bytes | msgspec.Raw],
    client_metadata: bytes | msgspec.Raw | None,
) -> bytes:
    """Write a turn's request for any transport.

    :param items: as for :func:`build_body`.
    :param own: the raw members that only this transport has.
    :param client_metadata: as this transport sends it; None where there is none.
    """
    kept: dict[str, bytes | msgspec.Raw] = dict(request.members)
    for name in _NOT_FORWARDED.intersection(kept):
        del kept[name]
    include = added_include(request, dialect)
    if include is not None:
        kept["include"] = include
    if request.store and not dialect.stores:
        kept["store"] = b"false"
    if client_metadata is not None:
        kept["client_metadata"] = client_metadata
    if dialect.hoists_tools:
        whole = [item.raw for item in request.items] if items is None else items
        others, tools = hoist_tools(whole, bytes(kept.get("tools", b"null")))
        if len(others) < len(whole):
            items, kept["tools"] = others, tools
    _adapt(kept, dialect)
    body = dict(own)
    if previous_response_id is not None:
        if dialect.inherits_instructions:
            kept.pop("instructions", None)
        body["previous_response_id"] = msgspec.json.encode(previous_response_id)
    body.update(kept)
    return _write(body, request, items, dialect)


def build_input_body(
    request: TurnRequest,
    items: Sequence[bytes] | None,
    previous_response_id: str | None,
    dialect: Dialect,
) -> bytes:
    """Write the body of a compaction or token count: a turn's input without a turn.

    :param items: as for :func:`build_body`.
    :param previous_response_id: the response to chain to, or None.
    """
    kept: dict[str, bytes | msgspec.Raw] = dict(request.members)
    kept.pop("input", None)
    kept.pop("previous_response_id", None)
    if "store" in kept and not dialect.stores:
        kept["store"] = b"false"
    _adapt(kept, dialect)
    if previous_response_id is not None:
        kept["previous_response_id"] = msgspec.json.encode(previous_response_id)
    return _write(kept, request, items, dialect)


def build_chat_body(
    request: ChatRequest,
    model: str | None,
    stores: bool,
    spares: frozenset[str] = frozenset(),
) -> bytes:
    """Write the body of a chat completion: the client's own bytes where nothing is changed.

    :param model: the account's name of the model, or None for the client's.
    :param stores: whether the account may store it.
    :param spares: members that the account refuses, left out where that changes nothing.
    """
    body: dict[str, bytes | msgspec.Raw] = dict(request.members)
    if request.stores and not stores:
        body["store"] = b"false"
    _adapt(body, Dialect(model=model, spares=spares))
    # A service might read another model than the gateway did: the first of two, not the last.
    names_one_model = len(_MODEL_NAME.findall(request.body)) < 2
    return request.body if body == request.members and names_one_model else _write(body)


def instructions_digest(request: TurnRequest) -> bytes:
    """A value that is equal for requests with the same instructions."""
    return blake2b(request.members.get("instructions", b"null"), digest_size=8).digest()


def _adapt(members: dict[str, bytes | msgspec.Raw], dialect: Dialect) -> None:
    """Put in what the account calls otherwise, and leave out what it refuses."""
    if dialect.model is not None:
        members["model"] = msgspec.json.encode(dialect.model)
    if dialect.cache_key is not None and "prompt_cache_key" not in members:
        members["prompt_cache_key"] = msgspec.json.encode(dialect.cache_key)
    for name in dialect.strip.intersection(members):
        del members[name]
    for name in dialect.spares.intersection(members):
        if may_be_left_out(name, members[name]):
            del members[name]


def _write(
    members: Mapping[str, bytes | msgspec.Raw],
    request: TurnRequest | None = None,
    items: Sequence[bytes] | None = None,
    dialect: Dialect = PLAIN,
) -> bytes:
    """An object of raw members, and the input of ``request``; a large one is copied once."""
    parts: list[bytes | msgspec.Raw] = [b"{"]
    for name, raw in members.items():
        parts += msgspec.json.encode(name), b":", raw, b","
    if request is not None:
        if items is None and request.has_text_input and dialect.takes_only_lists:
            items = [item.raw for item in request.items]
        if items is not None:
            parts += b'"input":[', b",".join(items), b"]", b","
        elif "input" in request.members:
            parts += b'"input":', request.members["input"], b","
    parts[1 if len(parts) == 1 else -1 :] = [b"}"]
    return b"".join(parts)


def build_headers(
    request: TurnRequest,
    client_headers: Mapping[str, str],
    account_headers: Iterable[tuple[str, str]],
    turn_state: str | None = None,
    streams: bool = True,
) -> dict[str, str]:
    """Choose the headers of the upstream request.

    :param client_headers: those of the client's handshake that are forwarded.
    :param account_headers: the account's own, which win over everything.
    :param turn_state: ``x-codex-turn-state`` for this account, or None.
    :param streams: whether a stream was asked for.
    """
    accept = "text/event-stream" if streams else "application/json"
    headers = {"content-type": "application/json", "accept": accept, **client_headers}
    for key, value in request.client_metadata.items():
        target = _METADATA_HEADERS.get(key)
        if target is not None:
            with suppress(UnicodeEncodeError):  # half of a surrogate pair
                text = value.encode().decode("latin-1")
                if may_pass(target, text):
                    headers[target] = text
    if turn_state and may_pass(TURN_STATE, turn_state):
        headers[TURN_STATE] = turn_state
    for name, value in account_headers:
        headers[name.lower()] = value
    return headers


def added_include(request: TurnRequest, dialect: Dialect) -> bytes | None:
    """``include`` with what the gateway adds to it; None where it adds nothing.

    Without storage only encrypted reasoning can be replayed, so it is always asked for.
    """
    kept = request.store and dialect.stores and dialect.keeps_items
    if kept or not dialect.asks_encrypted:
        return None
    try:
        wanted = msgspec.json.decode(request.members.get("include", b"null"))
    except UNREADABLE:
        return None
    wanted = [] if wanted is None else wanted
    if not isinstance(wanted, list) or _ENCRYPTED_REASONING in wanted:
        return None
    return msgspec.json.encode([*wanted, _ENCRYPTED_REASONING])


def _http_metadata(raw: bytes) -> bytes:
    """``client_metadata`` without what stands in for WebSocket headers."""
    if not any(name.encode() in raw for name in _WEBSOCKET_METADATA):
        return raw
    metadata = value_of(raw)
    if not isinstance(metadata, dict):
        return raw
    return msgspec.json.encode(
        {name: each for name, each in metadata.items() if not name.startswith(_WEBSOCKET_METADATA)}
    )


# --- tools -------------------------------------------------------------------------------


class _Tool(msgspec.Struct):
    type: str | None = None
    name: str | None = None
    server_label: str | None = None


class _ToolsItem(msgspec.Struct):
    type: str | None = None
    tools: list[msgspec.Raw] = []


_decode_item = msgspec.json.Decoder(_ToolsItem).decode
_decode_tool = msgspec.json.Decoder(_Tool).decode
_decode_tools = msgspec.json.Decoder(list[msgspec.Raw]).decode


def hoist_tools(items: Sequence[bytes], tools: bytes) -> tuple[list[bytes], bytes]:
    """Move the tools of ``additional_tools`` items to the top level.

    :param items: the whole input, raw.
    :param tools: the request's own ``tools``, raw; ``null`` when it has none.
    :return: the input without these items, and all tools: of one name the last counts.
    """
    kept: list[bytes] = []
    added: list[msgspec.Raw] = []
    for raw in items:
        item = _ToolsItem()
        if _TOOLS_ITEM in raw:
            with suppress(*UNREADABLE):
                item = _decode_item(raw)
        if item.type == "additional_tools":
            added += item.tools
        else:
            kept.append(raw)
    if not added:
        return kept, tools
    try:
        own = _decode_tools(tools) if tools != b"null" else []
    except UNREADABLE:
        own = []  # the upstream will say what is wrong with them
    known: dict[tuple[str | None, ...], bytes] = {}
    for number, tool in enumerate([*own, *added]):
        try:
            head = _decode_tool(tool)
        except UNREADABLE:
            head = _Tool(name=f"unreadable {number}")
        known[head.type, head.name, head.server_label] = bytes(tool)  # where it was first defined
    return kept, b"[" + b",".join(known.values()) + b"]"
