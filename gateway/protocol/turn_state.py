"""Turn state: the value that brings the requests of one user's turn to one account.

Rules: protocol.md §4.6, §7.  Clients echo ``x-codex-turn-state`` on every further request of the
same turn.  The gateway's own value names the account and carries the upstream's value, signed, so
that nothing has to be remembered and no client can make one up.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from typing import NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE

#: Name of the header, of the ``client_metadata`` member, and in ``response.metadata``.
TURN_STATE = "x-codex-turn-state"

#: A longer turn state is not the gateway's; upstreams' own values are a few hundred characters.
_MAX_STATE = 8192
_STATE_VERSION = "gw1"


class TurnState(NamedTuple):
    """The content of a turn state: the account, and the value which its upstream gave."""

    account: str
    upstream: str | None


class TurnStateSigner:
    """Signs and verifies turn states.

    :ivar secret: signs them; gateways that share it accept each other's.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = secret

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
        return hmac.new(self.secret, message, "sha256").hexdigest()[:32]
