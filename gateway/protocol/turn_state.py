"""``x-codex-turn-state``: an opaque value that brings a client's turn back to its account.

Clients echo it on every further request of the same turn (protocol.md §4.6).  Ours names the
account and carries the upstream's own value, signed, so that nothing has to be remembered
and no client can make one up.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from typing import NamedTuple

import msgspec

from gateway.protocol.errors import UNREADABLE

#: The name of the header, of the ``client_metadata`` member and in ``response.metadata``.
TURN_STATE = "x-codex-turn-state"

_MARK = "gw1"

#: A longer one is not ours; upstreams' own values are a few hundred characters.
_MAX_LENGTH = 8192


class TurnState(NamedTuple):
    """What a value says: the account, and the value which that account's upstream gave."""

    account: str
    upstream: str | None


class TurnStates:
    """Makes and reads the values.

    :param secret: signs them; gateways that share it understand each other's.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def wrap(self, tenant: str, state: TurnState) -> str:
        """The value that ``tenant`` may echo."""
        said = urlsafe_b64encode(msgspec.json.encode(state)).decode()
        return f"{_MARK}.{said}.{self._signature(tenant, said)}"

    def unwrap(self, tenant: str, value: str | None) -> TurnState | None:
        """What ``value`` says, or None when it is not one of ours for this tenant."""
        if not value or len(value) > _MAX_LENGTH or not value.isascii():
            return None
        mark, _, rest = value.partition(".")
        said, _, signature = rest.partition(".")
        if mark != _MARK or not hmac.compare_digest(signature, self._signature(tenant, said)):
            return None
        try:
            return msgspec.json.decode(urlsafe_b64decode(said), type=TurnState)
        except (NotBase64, ValueError, *UNREADABLE):
            return None

    def _signature(self, tenant: str, said: str) -> str:
        message = f"{len(tenant)}.{tenant}.{said}".encode(errors="surrogatepass")
        return hmac.new(self._secret, message, "sha256").hexdigest()[:32]
