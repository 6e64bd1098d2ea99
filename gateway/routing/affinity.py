"""What identifies a conversation, so that its turns find back to their account (design law 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from gateway.protocol.request import TurnRequest

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
    """The key a conversation is bound by: the strongest that the client gives (design law 8).

    Weaker ones are left out, so that sub-agents, which share a session and differ in thread,
    do not pre-empt each other.

    :param headers: of the client's handshake or request, names in lower case.
    :param metadata: the turn's ``client_metadata``.
    :param connection: the connection's own id; None for a request of its own, which may
        then have no key at all (see :func:`http_affinity_keys`).
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
    return list(islice((_key(rule, tenant, value) for rule, value in lasting if value), 1))


def http_affinity_keys(
    tenant: str, headers: Mapping[str, str], request: TurnRequest
) -> list[AffinityKey]:
    """As :func:`affinity_keys`, and never empty, even where the client sends none at all."""
    keys = affinity_keys(tenant, headers, request.client_metadata, request.prompt_cache_key, None)
    return keys or [derived_key(tenant, request)]


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

    :param keys: the turn's.
    """
    return _hashed("\0".join(("prompt_cache_key", *keys[-1])))


def connection_key(tenant: str, connection: str) -> AffinityKey:
    """The key of a connection without any better one."""
    return _key("connection", tenant, connection)


def named_keys(tenant: str, value: str) -> list[AffinityKey]:
    """Every key that ``value`` may be of, for a search."""
    rules = ("thread", "session", "prompt_cache_key", "connection")
    return [_key(rule, tenant, value) for rule in rules]


def _key(rule: str, tenant: str, value: str) -> AffinityKey:
    """Clients choose the values: a long one must not cost more memory than another."""
    if len(value) > _MAX_VALUE:
        value = _hashed(value)
    return AffinityKey(rule, tenant, value)


def _hashed(text: str) -> str:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
