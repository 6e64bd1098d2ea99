"""Tokens, as a response's ``usage`` counts them (protocol.md §4.3)."""

from __future__ import annotations

from typing import NamedTuple

from gateway.protocol.tolerant_json import whole_number

#: Bytes of a request that make one token, and of a stream: each event carries about one.
_SENT_BYTES = 4
_STREAMED_BYTES = 250


class Usage(NamedTuple):
    """What one answer took.

    :ivar cached_tokens: those of ``input_tokens`` that came from a prompt cache.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def read_usage(usage: object) -> Usage | None:
    """The ``usage`` of a response or of a chat completion; None when there is none.

    :param usage: as decoded JSON; chat completions call the members otherwise.
    """
    if not isinstance(usage, dict):
        return None
    details = usage.get("input_tokens_details") or usage.get("prompt_tokens_details")
    return Usage(
        _count(usage.get("input_tokens", usage.get("prompt_tokens"))),
        _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        _count(usage.get("output_tokens", usage.get("completion_tokens"))),
    )


def estimated_usage(sent_bytes: int, streamed_bytes: int) -> Usage:
    """About what an answer took that never said: its client left before, or did not ask."""
    return Usage(sent_bytes // _SENT_BYTES, 0, streamed_bytes // _STREAMED_BYTES)


def _count(value: object) -> int:
    """Whatever is no count counts nothing."""
    return whole_number(value) or 0
