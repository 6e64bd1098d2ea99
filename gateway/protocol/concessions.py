"""Concessions: parts of a request that can be left out for an account that refuses them.

Services of the same API differ, and their refusals say how: one requires ``store: false``, one does
not know ``client_metadata``, one keeps no items.  If a refusal names a part that does not change
the meaning of the answer, it is read here as a :class:`Concession`: without it the request may be
accepted (protocol.md §8.1).  Parts that the client needs or that change the answer are never left
out.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from gateway.protocol.error_classification import (
    ABOUT_THE_REQUEST,
    refuses_credentials,
    refuses_spending,
)
from gateway.protocol.errors import UNREADABLE, ApiError
from gateway.protocol.items import Item


class ConcessionKind(enum.Enum):
    """The kinds of concessions; the value describes how the request is sent instead."""

    CHAIN = "the whole conversation instead of previous_response_id"
    ENCRYPTED_REASONING = "include without reasoning.encrypted_content"
    STORAGE = "store: false"
    STORED_ITEMS = "items in full, none by its id"
    TEXT_INPUT = "input as a list"
    TOOL_ITEMS = "tools at the top level, not as items"
    STREAM = "stream: false"
    ONE_OBJECT = "stream: true"
    MEMBER = "without"


class Concession(NamedTuple):
    """One thing given up.

    :ivar member: for ``MEMBER`` which one; for ``CHAIN`` the ``store`` flag it is for.
    """

    kind: ConcessionKind
    member: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.member}".rstrip()


class SentRequest(NamedTuple):
    """The parts of a refused request that could be given up.

    :ivar members: the client's, raw.
    :ivar added_include: the gateway itself asked for ``reasoning.encrypted_content``.
    :ivar stores: the upstream was allowed to keep the response.
    :ivar streams: whether a stream was asked for; None where the request has no such choice.
    :ivar references: ids of the items that only a service which stores them can read.
    :ivar text_input: ``input`` was a string.
    :ivar tool_items: tools were sent as items of the input.
    :ivar encrypted_items: items with encrypted content were sent.
    """

    members: Mapping[str, msgspec.Raw]
    added_include: bool = False
    stores: bool = False
    streams: bool | None = None
    references: frozenset[str] = frozenset()
    text_input: bool = False
    tool_items: bool = False
    encrypted_items: bool = False


_ANY: tuple[Any, ...] | None = None

#: Members that may be left out: with any value, or with null and the values that stand for
#: their absence.  All others change the answer, or what it costs.
_SPARE: Mapping[str, tuple[Any, ...] | None] = {
    # Who asks and for what: for the service's own records.
    "access_programs": _ANY,
    "client_metadata": _ANY,
    "metadata": _ANY,
    "safety_identifier": _ANY,
    "user": _ANY,
    # How soon and for how much: the same answer, later or dearer.
    "prompt_cache_key": _ANY,
    "prompt_cache_options": _ANY,
    "prompt_cache_retention": _ANY,
    "service_tier": _ANY,
    # How the events are padded and ordered.
    "stream_options": _ANY,
    # What the service may do about a context that is too long: without it, it says so.
    "context_management": _ANY,
    # These say what is so without them.
    "conversation": (),
    "frequency_penalty": (0,),
    "include": ([],),
    "instructions": ("",),
    "max_output_tokens": (),
    "max_tool_calls": (),
    "moderation": (),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "prompt": (),
    "reasoning": ({},),
    "store": (True,),
    "temperature": (1,),
    "text": ({}, {"format": {"type": "text"}}),
    "tool_choice": ("auto",),
    "tools": ([],),
    "top_logprobs": (0,),
    "top_p": (1,),
    "truncation": ("disabled",),
}

#: Codes of requests that pass in no other form.  ``invalid_prompt`` is none of them: a response
#: that failed has no other code for whatever was refused of its request.
_FINAL = ABOUT_THE_REQUEST - {"invalid_prompt"}

_ENCRYPTED_REASONING = "reasoning.encrypted_content"

#: How much of a refusal's message is read, in characters.
_MAX_READ = 2_000

#: Codes of a member that the service does not take, or not with this value.
_MEMBER_CODES = frozenset({"unknown_parameter", "unsupported_parameter", "unsupported_value"})

#: Long words – an image in base64, say – are no names, and would be read from each letter on.
_NAME = r"(?<![\w.])[A-Za-z_][\w.]{0,99}(?![\w.])"
_NAMES = rf"['\"`]?({_NAME}(?:['\"`]?(?:, ?| and |, and )['\"`]?{_NAME}){{0,19}})"
_WHAT = (
    r"(?:(?:parameter|argument|field|key|name|member|option|attribute|value)s?"
    r"|propert(?:y|ies))"
)
_NOT_TAKEN = (
    r"(?:not (?:currently |yet )?(?:supported|allowed|permitted|recogni[sz]ed|known|available)"
    r"|unsupported|unknown|unrecogni[sz]ed|unexpected|disallowed"
    r"|only (?:supported|allowed|permitted|available))"
)

#: How services name members that they do not take; each group holds one name, or several.
_OBJECTIONS = (
    # Unknown parameter: 'x'. Unrecognized request arguments supplied: x, y. unknown field `x`
    re.compile(
        r"(?:unsupported|unknown|unrecogni[sz]ed|unexpected|extra|disallowed)"
        rf"(?: \w+){{0,2}}? {_WHAT}(?:[^:'\"`\n]{{0,30}}[:'\"`])?\s*{_NAMES}",
        re.IGNORECASE,
    ),
    # Argument not supported on this model: x
    re.compile(rf"{_WHAT} {_NOT_TAKEN}[^:'\"`\n]{{0,40}}:\s*{_NAMES}", re.IGNORECASE),
    # 'x' is not supported with this model. x: Extra inputs are not permitted
    re.compile(
        rf"{_NAMES}['\"`]?(?: {_WHAT})?(?::| is| are| was| were)? "
        rf"(?:extra (?:inputs?|fields?) (?:is |are )?)?{_NOT_TAKEN}",
        re.IGNORECASE,
    ),
)

#: Where a validator found what it does not take: ``"loc": ["body", "x"]`` as Python writes it, and
#: as :mod:`~gateway.protocol.error_parsing` writes such lists.
_PLACES = re.compile(
    r"(?:['\"]loc['\"]\s*:\s*[\[(]\s*['\"]body['\"]\s*,\s*['\"]|^|; )"
    r"(\w{1,100})(?:['\"]|[.\w]{0,200}: )"
)
_EXTRA = re.compile(r"extra_forbidden|extra (?:fields?|inputs?) (?:are )?not permitted", re.I)
_OBJECTS = re.compile(rf"{_NOT_TAKEN}|does not support|extra_forbidden", re.IGNORECASE)

_ENCRYPTED = re.compile(r"encrypted[ _]content", re.IGNORECASE)

_WANTED = r"(?:must|should|has to|have to|needs? to|can only|expected)\b[^.]{0,40}\b"
_STORAGE = re.compile(
    rf"\bstore\b[^.]{{0,40}}\b{_WANTED}false\b"
    r"|\bstore\b[^.]{0,30}\btrue\b[^.]{0,20}\b(?:not|cannot|unsupported)\b"
    r"|\bstore\b[^.]{0,30}\bnot\b[^.]{0,20}\btrue\b"
    r"|\b(?:storing|persisting) responses? (?:is|are) (?:not|disabled)\b",
    re.IGNORECASE,
)
_NO_STREAM = re.compile(
    rf"\bstream\b[^.]{{0,40}}\b{_WANTED}false\b"
    r"|\bstream\b[^.]{0,30}\btrue\b[^.]{0,20}\b(?:not|cannot|unsupported)\b"
    r"|\bstream\b[^.]{0,30}\bnot\b[^.]{0,20}\btrue\b"
    r"|\bstreaming\b[^.]{0,30}\b(?:not|unsupported|unavailable|disabled)\b"
    r"|\b(?:not|cannot)\b[^.]{0,20} (?:support )?stream(?:ing)?\b|\bverified to stream\b",
    re.IGNORECASE,
)
_STREAM_ONLY = re.compile(
    rf"\bstream\b[^.]{{0,40}}\b{_WANTED}true\b"
    r"|\bstream\b[^.]{0,30}\bfalse\b[^.]{0,20}\b(?:not|cannot|unsupported)\b"
    r"|\bonly\b[^.]{0,20}\bstreaming\b",
    re.IGNORECASE,
)
_LISTED = re.compile(rf"\binput\b[^.]{{0,40}}\b{_WANTED}(?:list|array)\b", re.IGNORECASE)
_LOST = re.compile(
    r"\bnot (?:be )?(?:found|exist|persisted|stored|resolved)\b|\bno such\b|\bunknown\b"
    r"|\bdoes(?: not|n't) exist\b",
    re.IGNORECASE,
)
#: Messages about items of an unknown type; most services validate them against all types.
_TOOL_ITEM = re.compile(
    r"additional_tools|untagged enum|discriminat|union|input should be|deseriali[sz]e|unmarshal"
    r"|(?:unknown|unsupported|unrecogni[sz]ed|unexpected)[\w ]{0,30}\b(?:item|type)\b"
    r"|invalid responses api request",
    re.IGNORECASE,
)
_OF_THE_MODEL = re.compile(
    r"\b(?:this|that|your|the (?:requested |selected |given )?|with|for|by|on) ?models?\b", re.I
)

_OF_THE_VALUE = re.compile(r"\b(?:unsupported|unknown|unexpected|unrecogni[sz]ed) value\b", re.I)
_CONDITION = re.compile(
    r"\b(?:when|while|if|unless|with|together)\b"
    r"(?! (?:this|that|the|your)\b[\w ]{0,20}\b(?:model|organi[sz]ation|account|project|key)\b)",
    re.IGNORECASE,
)


def concessions_to(error: ApiError, sent: SentRequest) -> list[Concession]:
    """The concessions by which a refused request may be accepted; often none."""
    if error.status == 429 or refuses_spending(error) or refuses_credentials(error):
        return []
    if error.code in _FINAL:
        return []
    if lost_items(error, sent.references):
        return [Concession(ConcessionKind.STORED_ITEMS)]
    said = error.message[:_MAX_READ]
    member = _top(error.param or "")
    named = list(dict.fromkeys(named_members(error)))
    if sent.added_include and _refuses_include(error, member, named, said):
        return [Concession(ConcessionKind.ENCRYPTED_REASONING)]
    if sent.stores and _wants(_STORAGE, "store", member, said):
        return [Concession(ConcessionKind.STORAGE)]
    if sent.streams is True and ("stream" in named or _wants(_NO_STREAM, "stream", member, said)):
        return [Concession(ConcessionKind.STREAM)]
    if sent.streams is False and _wants(_STREAM_ONLY, "stream", member, said):
        return [Concession(ConcessionKind.ONE_OBJECT)]
    if sent.text_input and _LISTED.search(said):
        return [Concession(ConcessionKind.TEXT_INPUT)]
    spared = [
        Concession(ConcessionKind.MEMBER, name)
        for name in named
        if may_be_left_out(name, sent.members.get(name))
    ]
    if not spared and sent.tool_items and error.status < 500 and _TOOL_ITEM.search(said):
        return [Concession(ConcessionKind.TOOL_ITEMS)]
    return spared


def may_be_left_out(name: str, raw: bytes | msgspec.Raw | None) -> bool:
    """Whether a request means the same without this member.

    :param raw: its value; None for one that the client did not write.
    """
    if name not in _SPARE:
        return False
    values = _SPARE[name]
    if values is None or raw is None:
        return values is None
    try:
        value = msgspec.json.decode(raw)
    except UNREADABLE:
        return False
    return value is None or any(
        value == each and type(value) in (type(each), float) for each in values
    )


def named_members(error: ApiError) -> Iterator[str]:
    """The top-level members that a refusal says are not taken, in any of the usual words."""
    said = error.message[:_MAX_READ]
    if error.param and (error.code in _MEMBER_CODES or _OBJECTS.search(said)):
        yield _top(error.param)
    if _EXTRA.search(said):
        yield from _PLACES.findall(said)
    for objection in _OBJECTIONS:
        for names in objection.findall(said):
            yield from map(_top, re.findall(_NAME, names))


def lost_items(error: ApiError, references: Collection[str]) -> set[str]:
    """Which of the items that were sent by their ids alone the upstream did not find."""
    said = error.message[:_MAX_READ]
    if not references or not _LOST.search(said):
        return set()
    named = {each for each in references if each in said}
    return named or (set(references) if said.startswith("Item with id") else set())


def sent_references(items: Iterable[Item]) -> frozenset[str]:
    """The ids of ``items`` that only a service which stores them can read."""
    return frozenset(item.id for item in items if item.id is not None and item.is_reference)


def is_of_the_model(concession: Concession, error: ApiError) -> bool:
    """Whether the refusal speaks of the model, so that others of the account may differ."""
    if concession.kind is ConcessionKind.ENCRYPTED_REASONING:
        return True
    return _OF_THE_MODEL.search(error.message[:_MAX_READ]) is not None


def is_of_the_value(concession: Concession, error: ApiError) -> bool:
    """Whether the refusal speaks of what a member holds, so that others' may be taken."""
    if concession.kind is not ConcessionKind.MEMBER:
        return False
    name = re.escape(concession.member)
    said = error.message[:_MAX_READ]
    inside = rf"\b{name}(?:\.\w|\[)|['\"]body['\"]\s*,\s*['\"]{name}['\"]\s*,"
    return (
        error.code == "unsupported_value"
        or _OF_THE_VALUE.search(said) is not None
        or re.search(inside, f"{error.param or ''} {said}") is not None
    )


def depends_on_the_request(concession: Concession, error: ApiError) -> bool:
    """Whether the refusal holds only beside something else in the request.

    Of such a request nothing follows for others, except where they lose nothing by it.
    """
    if concession.kind is ConcessionKind.MEMBER:
        return False
    return _CONDITION.search(error.message[:_MAX_READ]) is not None


def _top(path: str) -> str:
    """The member at the top level: of ``stream_options.x``, ``include[0]``, ``body.user``."""
    return re.split(r"[.\[]", path.removeprefix("body."), maxsplit=1)[0]


def _wants(pattern: re.Pattern[str], name: str, member: str, said: str) -> bool:
    """Whether the refusal says so, in its words alone or together with its ``param``.

    Where that names another member, the words may be what a client wrote into it.
    """
    if member not in ("", name):
        return False
    if pattern.search(said):
        return True
    return name in (member, *_PLACES.findall(said)) and bool(pattern.search(f"{name} {said}"))


def _refuses_include(error: ApiError, member: str, named: list[str], said: str) -> bool:
    if error.code == "invalid_encrypted_content":
        return False  # it speaks of what was sent, not of what was asked for
    if member == "include" or "include" in named or "include" in _PLACES.findall(said):
        return True
    return _ENCRYPTED_REASONING in said or bool(_ENCRYPTED.search(said) and _OBJECTS.search(said))
