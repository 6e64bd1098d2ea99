"""What clients send: one JSON object per text frame, its top level split into raw members once.

Fields and rules: protocol.md §3.  Big members (``input``, ``tools``) stay the client's bytes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from gateway.protocol.errors import UNREADABLE, ApiError
from gateway.protocol.items import IssuerOf, Item, read_input, with_issuers
from gateway.protocol.splitting import Members, split_object

#: Lane names: 1-256 of these characters (§5.3 ``invalid_stream_id``).
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}\Z")

#: Members of ``response.create`` that a POST must not have.
_WEBSOCKET_ONLY = ("generate", "stream_id")

_MODEL = "model"

#: Members in which a request that is sent again differs from the one before.
_OF_THE_TRY = frozenset({"client_metadata", "stream_id"})

#: No model takes so many.
_MAX_ITEMS = 100_000

#: ``client_metadata`` stands for headers (§3.2), and more than that fits into none.
_MAX_METADATA_BYTES = 256 * 1024

_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class TurnRequest(msgspec.Struct, frozen=True):
    """One ``response.create`` (or POST body), validated as far as the gateway reads it.

    :ivar members: every top-level member as the client wrote it.
    :ivar items: its input, split.
    :ivar previous_response_id: the id the client named, or None.
    :ivar store: whether the upstream may keep the response; true when absent (§6.4).
    :ivar prewarm: ``generate: false`` (§2.6).
    :ivar stream_id: the named lane, or None for the default lane.
    :ivar background: whether it goes on without its client; over HTTP only (§7).
    :ivar stream: whether the client wants events; always over WebSocket.
    :ivar client_metadata: the string members of ``client_metadata`` (protocol.md §3.2).
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
        items = with_issuers(self.items, issuer_of)
        return self if items is self.items else msgspec.structs.replace(self, items=items)

    def fingerprint(self) -> bytes:
        """The same for a request that a client sends again.

        What changes with each try, and is for nobody but the log of the service, is left out.
        """
        digest = blake2b(digest_size=16)
        for name, value in self.members.items():
            if name not in _OF_THE_TRY:
                digest.update(name.encode())
                digest.update(value)
        return digest.digest()


def json_text(data: bytes) -> bytes:
    """What a client sent, without the byte order mark that some begin with (RFC 8259 §8.1)."""
    return data.removeprefix(codecs.BOM_UTF8)


def read_members(payload: bytes) -> Members:
    """Split a client message into its top-level members.

    :raises ApiError: 400, when it is not one JSON object in UTF-8.
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
        if len(name) == len(_MODEL) and name != _MODEL and name.lower() == _MODEL:
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
    """Read a ``response.create``.

    :param members: from :func:`read_members`.
    :param size: bytes of the whole message.
    :raises ApiError: 400, naming the member at fault.
    """
    if member(members, "background", bool):
        raise ApiError.invalid_request(
            "'background' cannot be true over WebSocket; send the request over HTTP.",
            "background",
            "unsupported_parameter",
        )
    return _read(
        members,
        size,
        prewarm=member(members, "generate", bool) is False or _prewarms_cache(members),
        stream_id=read_stream_id(members),
    )


def read_post(members: Members, size: int) -> TurnRequest:
    """Read the body of a ``POST /v1/responses`` (§7).

    :param members: from :func:`read_members`.
    :param size: bytes of the whole body.
    :raises ApiError: 400, naming the member at fault.
    """
    for name in _WEBSOCKET_ONLY:
        if bytes(members.get(name, b"null")) != b"null":
            raise ApiError.invalid_request(
                f"'{name}' is for WebSocket connections only.", name, "unsupported_parameter"
            )
    background = bool(member(members, "background", bool))
    if background and member(members, "store", bool) is False:
        raise ApiError.invalid_request(
            "'background' needs 'store': a response that nobody keeps cannot be read later.",
            "store",
        )
    return _read(
        members,
        size,
        background=background,
        stream=bool(member(members, "stream", bool)),
    )


def _read(
    members: Members,
    size: int,
    *,
    prewarm: bool = False,
    stream_id: str | None = None,
    background: bool = False,
    stream: bool = True,
) -> TurnRequest:
    """What both doors read alike."""
    store = member(members, "store", bool)
    try:
        raw_input = bytes(members.get("input", b"null"))
        if _has_too_many_items(raw_input):
            raise ValueError(f"it has more than {_MAX_ITEMS} items")
        items = read_input(raw_input)
    except (ValueError, *UNREADABLE) as error:
        raise ApiError.invalid_request(f"'input' cannot be read: {error}.", "input") from None
    return TurnRequest(
        members=members,
        items=items,
        model=member(members, "model", str),
        previous_response_id=member(members, "previous_response_id", str) or None,
        store=True if store is None else store,
        prewarm=prewarm,
        stream_id=stream_id,
        prompt_cache_key=member(members, "prompt_cache_key", str),
        in_conversation=bytes(members.get("conversation", b"null")) != b"null",
        size=size,
        background=background,
        stream=stream,
        client_metadata=_client_metadata(members),
    )


def _has_too_many_items(raw: bytes) -> bool:
    """Whether an ``input`` is longer than it may be; splitting it costs a tenth of reading it."""
    if len(raw) <= 2 * _MAX_ITEMS or raw[:1] != b"[" or raw.count(b",") < _MAX_ITEMS:
        return False
    return len(_decode_list(raw)) > _MAX_ITEMS


def read_stream_id(members: Members) -> str | None:
    """The lane a message names; None is the default lane.

    :raises ApiError: 400 ``invalid_stream_id`` (§5.3).
    """
    raw = bytes(members.get("stream_id", b"null"))
    if raw == b"null":
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


_NAMES = {str: "a string", bool: "true or false", dict: "an object"}


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
            f"'{name}' must be {_NAMES[kind]}, not {shown}.", name, "invalid_type"
        ) from None


def _client_metadata(members: Members) -> dict[str, str]:
    """Its string members; anything odd in it is left out."""
    raw = members.get("client_metadata")
    if raw is None or memoryview(raw).nbytes > _MAX_METADATA_BYTES:
        return {}
    try:
        decoded = msgspec.json.decode(raw)
    except UNREADABLE:
        return {}
    if not isinstance(decoded, dict):
        return {}
    return {name: value for name, value in decoded.items() if isinstance(value, str)}


def _prewarms_cache(members: Members) -> bool:
    """``prompt_cache_options.prewarm: true`` forces ``generate: false`` (§3.1)."""
    raw = members.get("prompt_cache_options")
    if raw is None:
        return False
    try:
        options = msgspec.json.decode(raw)
    except UNREADABLE:
        return False
    return isinstance(options, dict) and options.get("prewarm") is True
