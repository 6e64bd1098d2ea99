"""What identifies a conversation, so that its turns find back to their account (design law 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from ..protocol.request import TurnRequest, client_metadata
from .bindings import Bindings as Bindings

#: Opaque, from an upstream; the client echoes it within a turn (protocol.md §4.6).
TURN_STATE = "x-codex-turn-state"

_TURN_STATE_RULE = "turn state"

#: Members that stay the same over a conversation's requests.
_LASTING_MEMBERS = ("model", "instructions", "tools")

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
    connection: str | None,
) -> list[AffinityKey]:
    """The keys a turn is routed by, the strongest first (design law 8).

    A turn state, where the client echoes one, and the strongest of the keys that outlast
    the turn.  Weaker ones are left out, so that sub-agents, which share a session and
    differ in thread, do not pre-empt each other.

    :param headers: of the client's handshake or request, names in lower case.
    :param metadata: the turn's ``client_metadata``.
    :param connection: the connection's own id; None for a request of its own, which may
        then be without a lasting key (see :func:`http_affinity_keys`).
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
    turn_state = metadata.get(TURN_STATE) or headers.get(TURN_STATE)
    keys = [turn_state_key(tenant, turn_state)] if turn_state else []
    keys += islice((_key(rule, tenant, value) for rule, value in lasting if value), 1)
    return keys


def http_affinity_keys(
    tenant: str, headers: Mapping[str, str], request: TurnRequest
) -> list[AffinityKey]:
    """As :func:`affinity_keys`; the last key lasts, even where the client sends none at all."""
    metadata = client_metadata(request.members)
    keys = affinity_keys(tenant, headers, metadata, request.prompt_cache_key, None)
    if lasting_key(keys) is None:
        keys.append(derived_key(tenant, request))
    return keys


def lasting_key(keys: Sequence[AffinityKey]) -> AffinityKey | None:
    """The strongest key that outlasts the turn, or None."""
    return next((key for key in keys if key.rule != _TURN_STATE_RULE), None)


def derived_key(tenant: str, request: TurnRequest) -> AffinityKey:
    """The key of a client that sends its whole conversation each time, and no name for it.

    It is told by what its requests have in common: the model, the instructions, the tools
    and the first thing the user said, as the client wrote them.
    """
    said = (item.raw for item in request.items if item.role == "user")
    first = next(said, request.items[0].raw if request.items else b"")
    digest = blake2b(digest_size=16)
    for part in (*(request.members.get(name, b"") for name in _LASTING_MEMBERS), first):
        digest.update(b"%d " % len(part))
        digest.update(part)
    return AffinityKey("derived from the request", tenant, digest.hexdigest())


def derived_cache_key(keys: Sequence[AffinityKey]) -> str:
    """A ``prompt_cache_key`` for accounts that want one where the client sends none.

    The same conversation gets the same one at any time and from any gateway, and tenants do
    not share any.  It tells the upstream nothing of the client's ids.

    :param keys: the turn's; one of them lasts.
    """
    key = lasting_key(keys) or keys[0]
    return _hashed("\0".join(("prompt_cache_key", *key)))


def turn_state_key(tenant: str, turn_state: str) -> AffinityKey:
    """The key of the turn that an upstream gave this ``x-codex-turn-state``."""
    return _key(_TURN_STATE_RULE, tenant, turn_state)


def connection_key(tenant: str, connection: str) -> AffinityKey:
    """The key of a connection without any better one."""
    return _key("connection", tenant, connection)


def named_keys(tenant: str, value: str) -> list[AffinityKey]:
    """Every key that ``value`` may be of, for a search."""
    rules = (_TURN_STATE_RULE, "thread", "session", "prompt_cache_key", "connection")
    return [_key(rule, tenant, value) for rule in rules]


def _key(rule: str, tenant: str, value: str) -> AffinityKey:
    """Clients choose the values: a long one must not cost more memory than another."""
    if len(value) > _MAX_VALUE:
        value = _hashed(value)
    return AffinityKey(rule, tenant, value)


def _hashed(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
