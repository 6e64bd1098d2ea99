"""Messages between the gateway and an upstream that is spoken to over WebSocket.

Sources: protocol.md §8.7; the platform's guide to WebSocket mode.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence

import msgspec

from gateway.protocol.controls import ANSWERS
from gateway.protocol.events import (
    ERRORS,
    LINE_FEED,
    PASSED_UNREAD,
    TERMINALS,
    MalformedEvent,
    event_type,
    read_response,
    value_of,
)
from gateway.protocol.headers import may_pass
from gateway.protocol.response_body import with_one_type
from gateway.protocol.sse import Event
from gateway.protocol.turn_state import TURN_STATE
from gateway.protocol.upstream_request import UpstreamTurn, build_headers, write_turn

#: The largest message that OpenAI's services read, and what is left free below it, in bytes: the
#: measured limit is exact, and nobody promised it.
MAX_REQUEST_BYTES = 16 * 1024 * 1024 - 65_536

#: What the handshake has no use for: it has no body, and asks for no stream.
_OF_A_REQUEST = ("accept", "content-type")

_BETA = "openai-beta"
#: A value of ``OpenAI-Beta`` that does not go together with WebSocket.
_HTTP_BETA = "responses=experimental"

#: Client headers that name a session; a socket that has one belongs to that client for good.
SESSION_HEADERS = frozenset(
    {
        "session-id",
        "session_id",
        "thread-id",
        "conversation_id",
        "x-client-request-id",
        "x-codex-turn-metadata",
        "x-codex-window-id",
    }
)

#: Frames that may come between two responses, and mean nothing there: among them answers that come
#: too late.
_OUT_OF_BAND = (b"codex.", b"responsesapi.", b"keepalive", *ANSWERS)
_METADATA = b"response.metadata"

_ENDS = ERRORS | TERMINALS.keys()

#: Where an id usually stands; in a text the quotes would be escaped.
_RESPONSE_ID = re.compile(rb'"response":\{"id":"([^"\\]+)"')

_CARRIAGE_RETURN = 0x0D

#: What no message begins with.
_NO_MESSAGE = b"\xff"

#: The code of the error by which a service says that a socket is too old; the turn did not run.
SOCKET_AT_ITS_END = b"websocket_connection_limit_reached"


class UpgradeRefusal(enum.Enum):
    """What a refused upgrade is about."""

    ACCOUNT = "the account: its credentials or its quota"
    NO_WEBSOCKET = "the service takes no WebSocket"
    TRANSIENT = "the transport, at this moment"


#: 400 comes from servers that do not know the upgrade, also for their compression.
_REFUSALS = {
    401: UpgradeRefusal.ACCOUNT,
    429: UpgradeRefusal.ACCOUNT,
    **dict.fromkeys((400, 404, 405, 410, 426, 501), UpgradeRefusal.NO_WEBSOCKET),
}


def refusal_of_upgrade(status: int) -> UpgradeRefusal:
    """What a refusal is about.

    A 403 is no verdict on the account: ChatGPT's backend sends it without a body where the same
    credentials work a moment later.
    """
    return _REFUSALS.get(status, UpgradeRefusal.TRANSIENT)


def create_message(turn: UpstreamTurn) -> bytes:
    """A turn as ``response.create``: the body over HTTP, without what only HTTP has."""
    request = turn.request
    own: dict[str, bytes | msgspec.Raw] = {"type": b'"response.create"'}
    if request.prewarm and "generate" in request.members:
        own["generate"] = request.members["generate"]
    metadata: bytes | None = request.members.get("client_metadata")
    if metadata is not None or turn.turn_state:
        metadata = _metadata(bytes(metadata or b"{}"), turn.turn_state)
    return write_turn(request, turn.items, turn.previous_response_id, turn.dialect, own, metadata)


def handshake_headers(
    turn: UpstreamTurn | None,
    account_headers: Sequence[tuple[str, str]],
    beta: str | None = None,
) -> dict[str, str]:
    """The headers by which a socket is opened.

    :param turn: the first turn on it; None for a socket that is opened ahead of need.
    :param account_headers: the account's own, which win over everything.
    :param beta: a value that ``OpenAI-Beta`` must have, or None.
    """
    headers: dict[str, str] = {}
    if turn is None:
        headers.update((name.lower(), value) for name, value in account_headers)
    else:
        headers = build_headers(turn.request, turn.client_headers, account_headers, None)
        for name in _OF_A_REQUEST:
            headers.pop(name, None)
    values = [each.strip() for each in headers.pop(_BETA, "").split(",")]
    values = [each for each in values if each and each != _HTTP_BETA]
    if beta is not None and beta not in values:
        values.append(beta)
    if values:
        headers[_BETA] = ", ".join(values)
    return headers


def handshake_authorization(authorization: Mapping[str, str]) -> dict[str, str]:
    """What authorizes a handshake: Azure takes its API keys as bearer tokens only there."""
    headers = dict(authorization)
    key = headers.pop("api-key", None)
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    return headers


def names_a_session(headers: Mapping[str, str]) -> bool:
    """Whether a handshake names the session of one client."""
    return not SESSION_HEADERS.isdisjoint(headers)


def read_message(payload: bytes) -> Event | None:
    """A text message as an event under its type; None if no client could tell what it is.

    Line ends, which are white space in JSON, become spaces: over HTTP an event is one line.
    """
    if LINE_FEED in payload or _CARRIAGE_RETURN in payload:
        payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    kind = event_type(payload)
    return (kind, payload) if kind else with_one_type((b"", payload))


def read_until_end(payloads: list[bytes]) -> tuple[list[Event], list[bytes]]:
    """Messages as events, up to the first that ends a response or is an error.

    The hot path: most events are of the type of the one before, and say so in their first bytes.

    :return: the events, the end among them, and the messages behind it.
    """
    events: list[Event] = []
    several = b"".join(payloads)
    in_lines = LINE_FEED in several or _CARRIAGE_RETURN in several
    name, beginning = b"", _NO_MESSAGE
    for number, payload in enumerate(payloads, 1):
        if payload.startswith(beginning):
            events.append((name, payload))
            continue
        event = read_message(payload)
        if event is None:
            continue
        events.append(event)
        name = event[0]
        beginning = _NO_MESSAGE
        if name in PASSED_UNREAD:
            if not in_lines:
                beginning = b'{"type":"%b"' % name
        elif name in _ENDS:
            return events, payloads[number:]
    return events, []


def response_id(payload: bytes) -> bytes:
    """The id of the response in an event; empty where it has none."""
    usual = _RESPONSE_ID.search(payload)
    if usual is not None:
        return usual[1]
    try:
        head = read_response(payload)
    except MalformedEvent:
        return b""
    return b"" if head is None else head.id.encode(errors="replace")


def is_out_of_band(name: bytes) -> bool:
    """Whether a message of this type may come while no response runs, and is dropped then."""
    return name.startswith(_OUT_OF_BAND) or name == _METADATA


def ends_response(name: bytes) -> bool:
    """Whether an event is the last of its response, an error among them."""
    return name in _ENDS


def _metadata(raw: bytes, turn_state: str | None) -> bytes:
    """``client_metadata`` with the upstream's own turn state in place of the gateway's."""
    if TURN_STATE.encode() not in raw and not turn_state:
        return raw
    metadata = value_of(raw)
    if not isinstance(metadata, dict):
        return raw
    metadata.pop(TURN_STATE, None)
    if turn_state and may_pass(TURN_STATE, turn_state):
        metadata[TURN_STATE] = turn_state
    return msgspec.json.encode(metadata)
