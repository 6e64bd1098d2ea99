"""Headers that may pass from one side to the other, and the gateway's own turn state.

Rules: RFC 9110 §5.5, protocol.md §2.2, §3.2, §4.6, §7.  ``x-codex-turn-state`` is an opaque value
that brings a client's turn back to its account: clients echo it on every further request of the
same turn.  The gateway's own value names the account and carries the upstream's value, signed, so
that nothing has to be remembered and no client can make one up.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE

#: Name of the header, of the ``client_metadata`` member, and in ``response.metadata``.
TURN_STATE = "x-codex-turn-state"

#: Bounds on a value in characters; clients send some of several KiB.
MAX_VALUE = 16 * 1024
_MAX_ID = 256

#: A longer turn state is not the gateway's; upstreams' own values are a few hundred characters.
_MAX_STATE = 8192
_STATE_VERSION = "gw1"

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


class TurnState(NamedTuple):
    """The content of a turn state: the account, and the value which its upstream gave."""

    account: str
    upstream: str | None


class TurnStates:
    """Signs and verifies turn states.

    :param secret: signs them; gateways that share it accept each other's.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def wrap(self, tenant: str, state: TurnState) -> str:
        """The value that ``tenant`` may echo."""
        text = urlsafe_b64encode(msgspec.json.encode(state)).decode()
        return f"{_STATE_VERSION}.{text}.{self._signature(tenant, text)}"

    def unwrap(self, tenant: str, value: str | None) -> TurnState | None:
        """The content of ``value``; None when this gateway did not sign it for this tenant."""
        if not value or len(value) > _MAX_STATE or not value.isascii():
            return None
        version, _, rest = value.partition(".")
        text, _, signature = rest.partition(".")
        expected = self._signature(tenant, text)
        if version != _STATE_VERSION or not hmac.compare_digest(signature, expected):
            return None
        try:
            return msgspec.json.decode(urlsafe_b64decode(text), type=TurnState)
        except (Base64Error, ValueError, *UNREADABLE):
            return None

    def _signature(self, tenant: str, text: str) -> str:
        message = f"{len(tenant)}.{tenant}.{text}".encode(errors="surrogatepass")
        return hmac.new(self._secret, message, "sha256").hexdigest()[:32]
