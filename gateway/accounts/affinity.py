"""Which account a conversation sticks to, and why: bindings by key, bounded in count and age."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple


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
    """The keys of a turn, the strongest first (design law 8).

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
    candidates = (
        ("thread", thread),
        ("session", session),
        ("prompt_cache_key", prompt_cache_key),
        ("connection", connection),
    )
    return [AffinityKey(rule, tenant, value) for rule, value in candidates if value]


class Bindings:
    """Remembers the account of each conversation.

    Only a turn's strongest key is bound and looked up, so sub-agents, which share a
    session and differ in thread, do not pre-empt each other.

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
