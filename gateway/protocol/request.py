"""What clients send: one JSON object, split at its top level into raw members (protocol.md §3).

Large members (``input``, ``tools``) stay the client's bytes.  Splitting has a bounded cost: a
mapping of a hundred thousand members takes a hundred times as long as the same bytes in one of
them, so members are counted before they are kept.  Counting takes as long as splitting; what is
large in honest requests is therefore cut out first, and costs nothing.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE, ApiError
from gateway.protocol.items import IssuerOf, Item, read_input, with_issuers

Members = dict[str, msgspec.Raw]

#: No service knows a tenth of so many.
MAX_MEMBERS = 1000

#: Bounds on what is worth reading: no model takes so many tokens, but a kilobyte of compressed
#: zeros would keep the gateway busy for a minute.  Every value but the first follows a comma.
_MAX_COMMAS = 2_000_000

#: Colons outside the large members; each member has one, and texts and schemas have others.
_MAX_COLONS = 20_000

#: A message of this size can be split whatever it is, in bytes.
_SMALL = 65_536

#: A member is cut out from this size on, in bytes.
_LARGE = 4096

#: ``client_metadata`` stands for headers, and more than that fits into none.
_MAX_METADATA_BYTES = 256 * 1024

#: Lane names, as ``stream_id`` gives them.
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}\Z")

#: Members of ``response.create`` that a POST must not have.
_WEBSOCKET_ONLY = ("generate", "stream_id")

#: Members in which a request that is sent again differs from the one before.
_PER_TRY = frozenset({"client_metadata", "stream_id"})

#: The small members that are decoded, and their types.
_TYPES = {
    "model": str,
    "previous_response_id": str,
    "prompt_cache_key": str,
    "store": bool,
    "background": bool,
    "generate": bool,
}
_TYPE_NAMES = {str: "a string", bool: "true or false"}
_DECODERS = {name: msgspec.json.Decoder(kind | None).decode for name, kind in _TYPES.items()}


class TurnRequest(msgspec.Struct, frozen=True):
    """One ``response.create`` (or POST body), validated as far as the gateway reads it.

    :ivar members: every top-level member as the client wrote it.
    :ivar items: its input, split.
    :ivar previous_response_id: the id the client named, or None.
    :ivar store: whether the upstream may keep the response; true when absent.
    :ivar prewarm: ``generate: false``: the gateway answers, and only remembers the input.
    :ivar stream_id: the named lane, or None for the default lane.
    :ivar size: bytes of the whole message.
    :ivar background: whether it runs on without its client; over HTTP only.
    :ivar stream: whether the client wants events; always over WebSocket.
    :ivar client_metadata: the string members of ``client_metadata``.
    """

    members: Members
    items: tuple[Item, ...]
    model: str | None
    previous_response_id: str | None
    store: bool
    prewarm: bool
    stream_id: str | None
    prompt_cache_key: str | None
    in_conversation: bool
    size: int
    background: bool = False
    stream: bool = True
    client_metadata: Mapping[str, str] = {}

    @property
    def has_text_input(self) -> bool:
        """Whether its input is a string, which stands for one message."""
        return bytes(self.members.get("input", b""))[:1] == b'"'

    def with_issuers(self, issuer_of: IssuerOf) -> TurnRequest:
        """The same request with the accounts that issued its encrypted items.

        :param issuer_of: finds the account by an item's JSON; None when it is unknown.
        """
        for item in self.items:
            if item.encrypted:
                return msgspec.structs.replace(self, items=with_issuers(self.items, issuer_of))
        return self

    def fingerprint(self) -> bytes:
        """A digest that is the same when a client sends a request again.

        Members that change with each try, and serve only the service's log, are left out.
        """
        digest = blake2b(digest_size=16)
        for name, value in self.members.items():
            if name not in _PER_TRY:
                digest.update(name.encode())
                digest.update(value)
        return digest.digest()


class ChatRequest(NamedTuple):
    """The body of a ``POST /chat/completions``, as far as it is read."""

    body: bytes
    members: Members
    model: str | None
    stream: bool
    stores: bool
    prompt_cache_key: str | None


def json_text(data: bytes) -> bytes:
    """A client's JSON without the byte order mark that some begin with (RFC 8259 §8.1)."""
    return data.removeprefix(codecs.BOM_UTF8)


def read_members(payload: bytes) -> Members:
    """Split a client message into its top-level members.

    :raises ApiError: 400, when it is not one JSON object in UTF-8, or has too many members.
    """
    try:
        if not payload.isascii():
            payload.decode()
        members = split_object(payload)
    except UnicodeDecodeError as error:
        raise ApiError.invalid_request(
            f"The message is not valid UTF-8 (byte {error.start}); send JSON text in UTF-8."
        ) from None
    except RecursionError:
        raise ApiError.invalid_request("The message's JSON is nested too deeply.") from None
    except UNREADABLE as error:
        raise ApiError.invalid_request(f"The message is not a JSON object: {error}.") from None
    for name in members:
        if len(name) == 5 and name != "model" and name.lower() == "model":
            # Some services read names in any case: this one would get past the key's models.
            raise ApiError.invalid_request(f"Unknown parameter: '{name}'.", name)
    return members


def read_type(members: Members) -> str:
    """The ``type`` of a client message.

    :raises ApiError: 400, when there is none.
    """
    kind: str | None = member(members, "type", str)
    if not kind:
        raise ApiError.invalid_request("The message has no 'type'; send a string.", "type")
    return kind


def read_create(members: Members, size: int) -> TurnRequest:
    """Read a ``response.create`` message.

    :param members: from :func:`read_members`.
    :param size: bytes of the whole message.
    :raises ApiError: 400, naming the member at fault.
    """
    values = _read_small(members)
    if values["background"]:
        raise ApiError.invalid_request(
            "'background' cannot be true over WebSocket; send the request over HTTP.",
            "background",
            "unsupported_parameter",
        )
    prewarms = values["generate"] is False
    if "prompt_cache_options" in members:
        prewarms |= _read_object(members["prompt_cache_options"]).get("prewarm") is True
    stream_id = read_stream_id(members) if "stream_id" in members else None
    return _read(members, size, values, prewarms, stream_id)


def read_post(members: Members, size: int) -> TurnRequest:
    """Read the body of a ``POST /v1/responses``.

    :param members: from :func:`read_members`.
    :param size: bytes of the whole body.
    :raises ApiError: 400, naming the member at fault.
    """
    for name in _WEBSOCKET_ONLY:
        if bytes(members.get(name, b"null")) != b"null":
            raise ApiError.invalid_request(
                f"'{name}' is for WebSocket connections only.", name, "unsupported_parameter"
            )
    values = _read_small(members)
    if values["background"] and values["store"] is False:
        raise ApiError.invalid_request(
            "'background' needs 'store': a response that is not stored cannot be read later.",
            "store",
        )
    return _read(members, size, values, stream=bool(member(members, "stream", bool)))


def read_chat(body: bytes) -> ChatRequest:
    """Read the body of a ``POST /chat/completions``.

    :raises ApiError: 400, naming the member at fault.
    """
    members = read_members(body)
    model: str | None = member(members, "model", str)
    if not model:
        raise ApiError.invalid_request("You must provide a model parameter.", "model")
    return ChatRequest(
        body,
        members,
        model,
        bool(member(members, "stream", bool)),
        bool(member(members, "store", bool)),
        member(members, "prompt_cache_key", str),
    )


def read_stream_id(members: Members) -> str | None:
    """The lane a message names; None is the default lane.

    :raises ApiError: 400 ``invalid_stream_id``.
    """
    raw = members.get("stream_id")
    if raw is None or bytes(raw) == b"null":
        return None
    try:
        value = msgspec.json.decode(raw)
    except UNREADABLE:
        value = None
    if not isinstance(value, str) or not _STREAM_ID.match(value):
        raise ApiError.invalid_request(
            "'stream_id' must be a string of 1 to 256 characters out of A-Z a-z 0-9 _ . -",
            "stream_id",
            "invalid_stream_id",
        )
    return value


def member(members: Members, name: str, kind: type) -> Any:
    """Decode one small member; None when it is absent or null.

    :raises ApiError: 400, when it is of another type.
    """
    raw = members.get(name)
    if raw is None or bytes(raw) == b"null":
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except UNREADABLE:
        shown = bytes(raw)[:40].decode(errors="replace")
        raise ApiError.invalid_request(
            f"'{name}' must be {_TYPE_NAMES[kind]}, not {shown}.", name, "invalid_type"
        ) from None


def _read_small(members: Members) -> dict[str, Any]:
    values = dict.fromkeys(_TYPES)
    for name, decode in _DECODERS.items():
        if name in members:
            try:
                values[name] = decode(members[name])
            except UNREADABLE:
                member(members, name, _TYPES[name])  # says what is wrong with it
    return values


def _read_object(raw: msgspec.Raw) -> dict[str, Any]:
    """A member that is an object; empty where it is none, too large or unreadable."""
    if memoryview(raw).nbytes > _MAX_METADATA_BYTES:
        return {}
    try:
        decoded = msgspec.json.decode(raw)
    except UNREADABLE:
        return {}
    return decoded if isinstance(decoded, dict) else {}


def _read(
    members: Members,
    size: int,
    values: Mapping[str, Any],
    prewarm: bool = False,
    stream_id: str | None = None,
    stream: bool = True,
) -> TurnRequest:
    try:
        items = read_input(bytes(members.get("input", b"null")))
    except (ValueError, *UNREADABLE) as error:
        raise ApiError.invalid_request(f"'input' cannot be read: {error}.", "input") from None
    metadata = {}
    if "client_metadata" in members:
        for key, value in _read_object(members["client_metadata"]).items():
            if isinstance(value, str):
                metadata[key] = value
    return TurnRequest(
        members=members,
        items=items,
        model=values["model"],
        previous_response_id=values["previous_response_id"] or None,
        store=values["store"] is not False,
        prewarm=prewarm,
        stream_id=stream_id,
        prompt_cache_key=values["prompt_cache_key"],
        in_conversation=bytes(members.get("conversation", b"null")) != b"null",
        size=size,
        background=bool(values["background"]),
        stream=stream,
        client_metadata=metadata,
    )


# --- splitting ---------------------------------------------------------------------------


class _LargeMembers(msgspec.Struct):
    """The members that are large in honest requests; the others are passed over."""

    input: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")
    messages: msgspec.Raw = msgspec.Raw(b"null")
    instructions: msgspec.Raw = msgspec.Raw(b"null")


_decode_large = msgspec.json.Decoder(_LargeMembers).decode
_decode_members = msgspec.json.Decoder(Members).decode


def split_object(payload: bytes) -> Members:
    """The members of a JSON object, as the bytes that they are.

    :raises ApiError: 400, for too many of them.
    :raises msgspec.DecodeError: for what is no JSON object.
    :raises RecursionError: for one that is nested too deeply.
    """
    cut: Members = {}
    rest = payload
    if len(payload) > _SMALL:
        if len(payload) > _MAX_COMMAS and payload.count(b",") > _MAX_COMMAS:
            raise _too_intricate(f"more than {_MAX_COMMAS} commas")
        rest, cut = _without_large(payload)
        if len(rest) > _MAX_COLONS and rest.count(b":") > _MAX_COLONS:
            raise _too_intricate("too many members")
    members = _decode_members(rest)
    if cut and any(bytes(members.get(name, b"")) != b"null" for name in cut):
        # What was cut out stood within another member.
        if payload.count(b":") > _MAX_COLONS:
            raise _too_intricate("too many members")
        members, cut = _decode_members(payload), {}
    if len(members) > MAX_MEMBERS:
        raise _too_intricate(f"more than {MAX_MEMBERS} members")
    members.update(cut)  # in their places
    return members


def _without_large(payload: bytes) -> tuple[bytes, Members]:
    """The object with ``null`` for its large members, and those."""
    large = _decode_large(payload)
    cut: Members = {}
    for name in large.__struct_fields__:
        raw = getattr(large, name)
        size = memoryview(raw).nbytes
        if size < _LARGE:
            continue
        for found in re.finditer(rb'"%b"\s*:\s*' % name.encode(), payload):
            if payload.startswith(raw, found.end()):
                payload = payload[: found.end()] + b"null" + payload[found.end() + size :]
                cut[name] = raw
                break
    return payload, cut


def _too_intricate(what: str) -> ApiError:
    return ApiError.invalid_request(f"The message has {what}; that is too intricate to be read.")
