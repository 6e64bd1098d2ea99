"""Which headers may be passed from one side to the other (RFC 9110 §5.5, protocol.md §7)."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: Bounds on a value in characters; clients send some of several KiB (protocol.md §2.2).
MAX_VALUE = 16 * 1024
_MAX_ID = 256

_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}", re.IGNORECASE)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]+")
_ID = re.compile(r"[\x21-\x7e]+")

#: Ids of requests end up in logs and in what users report.
_IDS = "-request-id"

#: These count one account's limits (protocol.md §4.5).
_LIMITS = ("x-codex-", "x-ratelimit-")


def may_pass(name: str, value: str) -> bool:
    """Whether a header is well formed and of a bounded length; any other is dropped.

    A value may have bytes beyond ASCII, as RFC 9110 allows; an id may not.
    """
    if not _NAME.fullmatch(name) or len(value) > MAX_VALUE or not _VALUE.fullmatch(value):
        return False
    if name.lower().endswith(_IDS):
        return len(value) <= _MAX_ID and _ID.fullmatch(value) is not None
    return True


def counts_limits(name: str) -> bool:
    """Whether a header may tell of an account's limits: for those alone who may see quotas."""
    return name.lower().startswith(_LIMITS)


def without_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that tell of no account's limits."""
    return {name: value for name, value in headers.items() if not counts_limits(name)}
