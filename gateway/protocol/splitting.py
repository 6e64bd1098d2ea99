"""Splitting a client's JSON object into its top-level members, at a bounded cost.

A mapping of a hundred thousand members takes a hundred times as long as the same bytes in one
of them, so they are counted before they are kept.  Counting takes as long as splitting; what
is large in honest requests is therefore cut out first, and costs nothing.
"""

from __future__ import annotations

import re

import msgspec

from gateway.protocol.errors import ApiError

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

_ABSENT = msgspec.Raw(b"null")


class _Large(msgspec.Struct):
    """The members that are large in honest requests; the others are passed over."""

    input: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    messages: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT


_decode_large = msgspec.json.Decoder(_Large).decode
_decode_members = msgspec.json.Decoder(Members).decode


def split_object(payload: bytes) -> Members:
    """The members of a JSON object, as the bytes that they are.

    :raises ApiError: 400, for too many of them.
    :raises msgspec.DecodeError: for what is no JSON object.
    :raises RecursionError: for one that is nested too deeply.
    """
    if len(payload) <= _SMALL:
        return _counted(_decode_members(payload))
    if len(payload) > _MAX_COMMAS and payload.count(b",") > _MAX_COMMAS:
        raise _too_intricate(f"more than {_MAX_COMMAS} commas")
    rest, cut = _without_large(payload)
    members = _split(rest)
    if all(bytes(members.get(name, b"")) == b"null" for name in cut):
        members.update(cut)  # in their places
        return members
    return _split(payload)  # what was cut out stood within another member


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


def _split(payload: bytes) -> Members:
    if len(payload) > _MAX_COLONS and payload.count(b":") > _MAX_COLONS:
        raise _too_intricate("too many members")
    return _counted(_decode_members(payload))


def _counted(members: Members) -> Members:
    if len(members) > MAX_MEMBERS:
        raise _too_intricate(f"more than {MAX_MEMBERS} members")
    return members


def _too_intricate(what: str) -> ApiError:
    return ApiError.invalid_request(f"The message has {what}; that is too intricate to be read.")
