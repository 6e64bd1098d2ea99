"""Tokens, as the ``usage`` of a response or of a chat completion counts them (protocol.md §4.3)."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE

#: Bytes of a request that make one token, and of a stream: each event carries about one.
_SENT_BYTES = 4
_STREAMED_BYTES = 250

#: How much of a completion's end is searched for its usage, in bytes.
TAIL_BYTES = 16_384

#: Quotes within a text are escaped, so this is never part of what a model said.
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')

#: A number with more digits is no count of anything, and costs to make an integer of.
_MAX_DIGITS = 18

_decoder = json.JSONDecoder()


class Usage(NamedTuple):
    """The tokens of one answer.

    :ivar cached_tokens: those of ``input_tokens`` that came from a prompt cache.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def whole_number(value: object) -> int | None:
    """A whole number from 0 on, also where it is written ``"3"`` or ``3.0``."""
    if type(value) is int:  # the usual case, ten times a turn
        return value if value >= 0 else None
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value) if len(value) <= _MAX_DIGITS else None
    if isinstance(value, float) and value.is_integer() and value < 10**_MAX_DIGITS:
        value = int(value)
        return value if value >= 0 else None
    return None


def read_usage(usage: object) -> Usage | None:
    """The ``usage`` of a response or of a chat completion; None when there is none.

    :param usage: as decoded JSON; chat completions name the members otherwise.  What is no
        count counts nothing.
    """
    if not isinstance(usage, dict):
        return None
    details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(
        whole_number(usage.get("input_tokens", usage.get("prompt_tokens"))) or 0,
        whole_number(cached) or 0,
        whole_number(usage.get("output_tokens", usage.get("completion_tokens"))) or 0,
    )


def estimated_usage(sent_bytes: int, streamed_bytes: int) -> Usage:
    """An estimate for an answer without a usage: its client left early, or did not ask for one."""
    return Usage(sent_bytes // _SENT_BYTES, 0, streamed_bytes // _STREAMED_BYTES)


def usage_in_tail(tail: bytes) -> Usage | None:
    """The usage of a chat completion: of its object, or of the last chunk that has one.

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


def complete_usage(raw: bytes) -> bytes | None:
    """Complete a ``usage`` object that would make clients repeat the turn.

    :return: the completed JSON, or None when nothing is wrong with it.
    """
    try:
        usage = msgspec.json.decode(raw)
    except UNREADABLE:
        return b"null"
    if usage is None:
        return None
    if not isinstance(usage, dict):
        return b"null"
    completed = dict(usage)
    for name in ("input_tokens", "output_tokens"):
        completed[name] = _count(completed.get(name), 0)
    total = completed["input_tokens"] + completed["output_tokens"]
    completed["total_tokens"] = _count(completed.get("total_tokens"), total)
    for name, detail in (
        ("input_tokens_details", "cached_tokens"),
        ("output_tokens_details", "reasoning_tokens"),
    ):
        details = completed.get(name)
        if isinstance(details, dict):
            completed[name] = {**details, detail: _count(details.get(detail), 0)}
    written = msgspec.json.encode(completed)  # compared as text: to Python, 1 == 1.0 == True
    return None if written == msgspec.json.encode(usage) else written


def _count(value: Any, default: int) -> int:
    number = whole_number(value)
    if number is None and isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value)
    return default if number is None else number
