"""Headers that may pass from one side to the other.

Rules: RFC 9110 §5.5, protocol.md §2.2, §3.2, §7.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from gateway.protocol.turn_state import TURN_STATE

#: Bounds on a value in characters; clients send some of several KiB.
MAX_VALUE = 16 * 1024
_MAX_ID = 256

_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,128}", re.IGNORECASE)
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]+")
_ID = re.compile(r"[\x21-\x7e]+")

#: Client headers that mean the same on the upstream's HTTP request.
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
#: knows more of them.
_FORWARDED_FAMILIES = ("x-codex-", "x-openai-")

#: Families of headers that count one account's limits.
_LIMIT_FAMILIES = ("x-codex-", "x-ratelimit-")


def may_pass(name: str, value: str) -> bool:
    """Whether a header is well formed and of a bounded length; any other is dropped.

    A value may have bytes beyond ASCII, as RFC 9110 allows.  A request's id may not: ids end up
    in logs and in what users report.
    """
    if not _NAME.fullmatch(name) or len(value) > MAX_VALUE or not _VALUE.fullmatch(value):
        return False
    if name.lower().endswith("-request-id"):
        return len(value) <= _MAX_ID and _ID.fullmatch(value) is not None
    return True


def forwardable(headers: Mapping[str, str]) -> dict[str, str]:
    """The client's headers that are forwarded to upstreams.

    A turn state is left out: it is valid for one turn and account, not for a connection.

    :param headers: all of them, names in lower case; each character stands for one byte.
    """
    return {
        name: value
        for name, value in headers.items()
        if (name in _FORWARDED_HEADERS or name.startswith(_FORWARDED_FAMILIES))
        and name != TURN_STATE
        and may_pass(name, value)
    }


def counts_limits(name: str) -> bool:
    """Whether a header may tell of an account's limits: only for clients that may see quotas."""
    return name.lower().startswith(_LIMIT_FAMILIES)


def without_limits(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers that tell of no account's limits."""
    return {name: value for name, value in headers.items() if not counts_limits(name)}
