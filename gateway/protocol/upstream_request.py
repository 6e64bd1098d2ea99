"""From a client's turn to the HTTP request an upstream gets (protocol.md §3.2, §8.3)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from gateway.protocol.dialect import PLAIN, Dialect, hoist_tools
from gateway.protocol.errors import UNREADABLE
from gateway.protocol.headers import may_pass
from gateway.protocol.request import TurnRequest
from gateway.protocol.turn_state import TURN_STATE

#: Members that exist only between client and gateway, or that the gateway sets itself.
_NOT_FORWARDED = frozenset(
    {"type", "generate", "stream_id", "background", "stream", "previous_response_id", "input"}
)

_SEALED_REASONING = "reasoning.encrypted_content"

#: Client headers that mean the same on the upstream's HTTP request (§3.2).
_FORWARDED_HEADERS = frozenset(
    {
        "originator",
        "session-id",
        "session_id",
        "thread-id",
        "conversation_id",
        "user-agent",
        "version",
        "x-client-request-id",
    }
)

#: Families of headers by which Codex tells its upstream what a request is for; each version
#: knows more of them.  A turn state is valid for one turn and account, not for a connection.
_FORWARDED_FAMILIES = ("x-codex-", "x-openai-")
#: ``client_metadata`` keys of a turn that are headers over HTTP (§3.2).
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
_WEBSOCKET_METADATA = (
    "ws_request_header_",
    TURN_STATE,
    "x-codex-ws-stream-request-start-ms",
)


class UpstreamTurn(NamedTuple):
    """A turn for one account, before a transport encodes it.

    :ivar items: the whole ``input`` as raw items, or None to send the client's own.
    :ivar previous_response_id: the response to chain to, or None.
    :ivar dialect: what the account's service wants otherwise.
    :ivar client_headers: those of the client's handshake that :func:`forwardable` kept; each
        character of a value stands for one byte.
    :ivar account_headers: the account's own, which win over everything.
    :ivar turn_state: ``x-codex-turn-state`` for this account, or None.
    :ivar affinity: what identifies the conversation, for a transport that keeps one on one
        connection; None when nothing does.
    """

    request: TurnRequest
    items: Sequence[bytes] | None = None
    previous_response_id: str | None = None
    dialect: Dialect = PLAIN
    client_headers: Mapping[str, str] = {}
    account_headers: Sequence[tuple[str, str]] = ()
    turn_state: str | None = None
    affinity: Hashable = None


def build_body(
    request: TurnRequest,
    items: Sequence[bytes] | None,
    previous_response_id: str | None,
    dialect: Dialect = PLAIN,
) -> bytes:
    """Write the request body; members that need no change keep the client's bytes.

    :param items: the whole ``input`` as raw items, or None to send the client's own.
    :param previous_response_id: the response to chain to, or None.
    :param dialect: what the account's service wants otherwise.
    """
    members: dict[str, bytes | msgspec.Raw] = dict(request.members)
    include = added_include(request, dialect)
    if include is not None:
        members["include"] = include
    if request.store and not dialect.stores:
        members["store"] = b"false"
    if dialect.model is not None:
        members["model"] = msgspec.json.encode(dialect.model)
    if dialect.cache_key is not None and "prompt_cache_key" not in members:
        members["prompt_cache_key"] = msgspec.json.encode(dialect.cache_key)
    if "client_metadata" in members:
        members["client_metadata"] = _http_metadata(bytes(members["client_metadata"]))
    if items is None and dialect.takes_only_lists and request.has_text_input:
        items = [item.raw for item in request.items]
    if dialect.hoists_tools:
        whole = [item.raw for item in request.items] if items is None else items
        kept, tools = hoist_tools(whole, bytes(members.get("tools", b"null")))
        if len(kept) < len(whole):
            items, members["tools"] = kept, tools
    parts = [b'{"stream":true' if dialect.streams else b'{"stream":false']
    if previous_response_id is not None:
        parts += b',"previous_response_id":', msgspec.json.encode(previous_response_id)
    if request.background:
        parts.append(b',"background":true')
    for name, value in members.items():
        if name not in _NOT_FORWARDED and not dialect.leaves_out(name, value):
            parts += b",", msgspec.json.encode(name), b":", value
    if items is not None:
        parts += b',"input":[', b",".join(items), b"]}"
    elif "input" in members:
        parts += b',"input":', members["input"], b"}"
    else:
        parts.append(b"}")
    return b"".join(parts)


def forwardable(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a client's handshake that matter beyond it (§3.2).

    :param headers: all of them, names in lower case; each character stands for one byte.
    """
    return {
        name: value
        for name, value in headers.items()
        if (name in _FORWARDED_HEADERS or name.startswith(_FORWARDED_FAMILIES))
        and name != TURN_STATE
        and may_pass(name, value)
    }


def build_headers(
    request: TurnRequest,
    client_headers: Mapping[str, str],
    account_headers: Iterable[tuple[str, str]],
    turn_state: str | None = None,
    streams: bool = True,
) -> dict[str, str]:
    """Choose the headers of the upstream request.

    :param client_headers: those of the client's handshake that :func:`forwardable` kept.
    :param account_headers: the account's own, which win over everything.
    :param turn_state: ``x-codex-turn-state`` for this account, or None.
    :param streams: whether a stream was asked for.
    """
    accept = "text/event-stream" if streams else "application/json"
    headers = {"content-type": "application/json", "accept": accept}
    headers.update(client_headers)
    for key, value in request.client_metadata.items():
        target = _METADATA_HEADERS.get(key)
        if target is not None:
            with suppress(UnicodeEncodeError):  # half of a surrogate pair
                text = value.encode().decode("latin-1")
                if may_pass(target, text):
                    headers[target] = text
    if turn_state and may_pass(TURN_STATE, turn_state):
        headers[TURN_STATE] = turn_state
    headers.update((name.lower(), value) for name, value in account_headers)
    return headers


def added_include(request: TurnRequest, dialect: Dialect) -> bytes | None:
    """``include`` with what the gateway adds to it; None where it adds nothing.

    Without storage, only sealed reasoning can be replayed: it is always asked for (§10.68).
    """
    kept = request.store and dialect.stores and dialect.keeps_items
    if kept or not dialect.issuers:
        return None
    try:
        wanted = msgspec.json.decode(request.members.get("include", b"null"))
    except UNREADABLE:
        return None
    wanted = [] if wanted is None else wanted
    if not isinstance(wanted, list) or _SEALED_REASONING in wanted:
        return None
    return msgspec.json.encode([*wanted, _SEALED_REASONING])


def _http_metadata(raw: bytes) -> bytes:
    """``client_metadata`` without what stands in for WebSocket headers."""
    if not any(name.encode() in raw for name in _WEBSOCKET_METADATA):
        return raw
    try:
        decoded = msgspec.json.decode(raw)
    except UNREADABLE:
        return raw
    if not isinstance(decoded, dict):
        return raw
    return msgspec.json.encode(
        {name: value for name, value in decoded.items() if not name.startswith(_WEBSOCKET_METADATA)}
    )
