"""Which account a conversation sticks to, and why: bindings by key, bounded in count and age."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import NamedTuple

#: Opaque, from an upstream; the client echoes it within a turn (protocol.md §4.6).
TURN_STATE = "x-codex-turn-state"


_MAX_VALUE = 100


class AffinityKey(NamedTuple):
    """What identifies a conversation: the rule it comes from, the tenant, and the value."""

    rule: str
    tenant: str
    value: str


def affinity_keys(
    tenant: str,
    headers: Mapping[str, str],
    metadata: Mapping[str, str],
    prompt_cache_key: str | None,
    connection: str,
) -> list[AffinityKey]:
    """The keys a turn is routed by, the strongest first (design law 8).

    A turn state, where the client echoes one, and the strongest of the keys that outlast
    the turn.  Weaker ones are left out, so that sub-agents, which share a session and
    differ in thread, do not pre-empt each other.

    :param headers: of the client's handshake, names in lower case.
    :param metadata: the turn's ``client_metadata``.
    :param connection: the connection's own id.
    """
    thread = metadata.get("thread_id") or headers.get("thread-id")
    session = (
        metadata.get("session_id")
        or headers.get("session-id")
        or headers.get("session_id")
        or headers.get("conversation_id")
    )
    lasting = (
        ("thread", thread),
        ("session", session),
        ("prompt_cache_key", prompt_cache_key),
        ("connection", connection),
    )
    keys = [next(_key(rule, tenant, value) for rule, value in lasting if value)]
    turn_state = metadata.get(TURN_STATE) or headers.get(TURN_STATE)
    if turn_state:
        keys.insert(0, turn_state_key(tenant, turn_state))
    return keys


def turn_state_key(tenant: str, turn_state: str) -> AffinityKey:
    """The key of the turn that an upstream gave this ``x-codex-turn-state``."""
    return _key("turn state", tenant, turn_state)


def connection_key(tenant: str, connection: str) -> AffinityKey:
    """The key of a connection without any better one."""
    return _key("connection", tenant, connection)


def _key(rule: str, tenant: str, value: str) -> AffinityKey:
    """Clients choose the values: a long one must not cost more memory than another."""
    if len(value) > _MAX_VALUE:
        value = blake2b(value.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return AffinityKey(rule, tenant, value)


class Bindings:
    """Remembers the account of each conversation.

    :param max_bindings: bound on the count; the least recently used go first.
    :param ttl_seconds: how long an unused binding lasts.
    :param now: the clock, in seconds.
    """

    def __init__(self, max_bindings: int, ttl_seconds: float, now: Callable[[], float]) -> None:
        self._max_bindings = max_bindings
        self._ttl_seconds = ttl_seconds
        self._now = now
        self._bound: OrderedDict[AffinityKey, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bound)

    def account_of(self, key: AffinityKey) -> str | None:
        """The account ``key`` is bound to, or None."""
        found = self._bound.get(key)
        if found is None:
            return None
        account, used_at = found
        if used_at + self._ttl_seconds <= self._now():
            del self._bound[key]
            return None
        return account

    def bind(self, key: AffinityKey, account: str) -> None:
        """Stick ``key`` to ``account``."""
        self._bound[key] = (account, self._now())
        self._bound.move_to_end(key)
        if len(self._bound) > self._max_bindings:
            self._bound.popitem(last=False)

    def release(self, key: AffinityKey) -> None:
        """Forget ``key``; a connection's own key dies with the connection."""
        self._bound.pop(key, None)
