"""Chat completions: passed as they are; only the model's name and the usage are looked at."""

from __future__ import annotations

import json
import re
from itertools import islice
from typing import NamedTuple

import msgspec

from gateway.protocol.concessions import may_be_left_out
from gateway.protocol.errors import ApiError
from gateway.protocol.request import member, read_members
from gateway.protocol.splitting import Members
from gateway.protocol.usage import Usage, read_usage

#: How much of an answer's end is searched for its usage, in bytes.
TAIL_BYTES = 16_384

#: Quotes within a text are escaped, so this is never part of what a model said.
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')

#: The name of a member, or maybe of one: its letters may be escaped.
_MODEL = re.compile(rb'"model"|\\u006[45CDFcdf]')

_decoder = json.JSONDecoder()


class ChatRequest(NamedTuple):
    """The body of a ``POST /chat/completions``, as far as it is read."""

    body: bytes
    members: Members
    model: str | None
    stream: bool
    stores: bool
    prompt_cache_key: str | None


def read_chat(body: bytes) -> ChatRequest:
    """Read a request.

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


def chat_body(
    request: ChatRequest,
    model: str | None,
    stores: bool,
    spares: frozenset[str] = frozenset(),
) -> bytes:
    """The body for one account; the client's own bytes where nothing is to be changed.

    :param model: the account's name of the model, or None for the client's.
    :param stores: whether the account may store it.
    :param spares: members that the account refuses, left out where that changes nothing.
    """
    changed: dict[str, bytes] = {}
    if model is not None:
        changed["model"] = msgspec.json.encode(model)
    if request.stores and not stores:
        changed["store"] = b"false"
    spared = {
        name
        for name in spares.intersection(request.members)
        if may_be_left_out(name, request.members[name])
    }
    if not changed and not spared and not _may_repeat_the_model(request.body):
        return request.body
    return b"{%b}" % b",".join(
        msgspec.json.encode(name) + b":" + changed.get(name, bytes(raw))
        for name, raw in request.members.items()
        if name not in spared
    )


def _may_repeat_the_model(body: bytes) -> bool:
    """Whether a service might read another model than we did: the first of two, not the last."""
    return next(islice(_MODEL.finditer(body), 1, None), None) is not None


def last_usage(tail: bytes) -> Usage | None:
    """The usage of a completion: of its object, or of the last chunk that has one.

    :param tail: the end of the answer.
    """
    found = list(_USAGE.finditer(tail))
    if not found:
        return None
    try:
        usage, _ = _decoder.raw_decode(tail[found[-1].end() :].decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return read_usage(usage)
