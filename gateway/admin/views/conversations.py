"""The conversations: which account each sticks to, and how to find one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from gateway.admin.running import Running
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.routing.affinity import Binding, named_keys, opaque_id

#: Conversations that a search by words looks at, the last used first.
_SEARCHED = 10_000


def conversations(running: Running, q: str = "", limit: int = 100) -> dict[str, Any]:
    """The conversations that were used last.

    :param q: a response id, a thread, a session, a ``prompt_cache_key`` or a connection in
        full, or a part of the name of a client key, an account or a rule.
    """
    found = _all(running) if not q else _search(running, q)
    return {"conversations": list(islice(found, limit))}


def shown(identity: str, binding: Binding) -> dict[str, Any]:
    """One binding."""
    return {
        "id": identity,
        "rule": binding.rule,
        "tenant": binding.tenant,
        "account": binding.account,
        "stand_in": binding.stand_in,
        "stand_in_why": binding.stand_in_why,
        "leaves": binding.leaves,
        "why": binding.why,
        "bound_at": binding.bound_at,
        "used_at": binding.used_at,
    }


def responses_of(running: Running, response_id: str) -> list[Transcript]:
    """The conversation that holds a response of whichever key, or nothing."""
    ledger = running.services.ledger
    for key in running.tenants.snapshot():
        responses = ledger.conversation(key["name"], response_id)
        if responses:
            return responses
    return []


def binding_id_of(running: Running, identity: str) -> str | None:
    """The id of the binding that ``identity`` is, or that its response's turn had."""
    if running.services.pool.bindings.with_id(identity) is not None:
        return identity
    for turn in reversed(running.services.turn_log.latest()):
        if turn.response_id == identity:
            return turn.conversation
    return None


def response_ids_of(running: Running, identity: str) -> list[str]:
    """The responses that are known of a binding or a response, the newest first."""
    latest = reversed(running.services.turn_log.latest())
    return [
        turn.response_id
        for turn in latest
        if turn.response_id is not None and identity in (turn.conversation, turn.response_id)
    ]


def _all(running: Running) -> Iterator[dict[str, Any]]:
    for identity, binding in running.services.pool.bindings.items(_SEARCHED):
        yield shown(identity, binding)


def _search(running: Running, q: str) -> Iterator[dict[str, Any]]:
    exactly = {entry["id"]: entry for entry in _exactly(running, q)}
    return iter(exactly.values()) if exactly else _by_words(running, q.lower())


def _exactly(running: Running, q: str) -> Iterator[dict[str, Any]]:
    bindings = running.services.pool.bindings
    identity = binding_id_of(running, q)
    binding = None if identity is None else bindings.with_id(identity)
    if identity is not None and binding is not None:
        yield shown(identity, binding)
    else:
        records = (each.record for each in responses_of(running, q))
        yield from (_of_record(record) for record in records if record.id == q)
    for tenant in running.tenants.snapshot():
        for key in named_keys(tenant["name"], q):
            binding = bindings.look(key)
            if binding is not None:
                yield shown(opaque_id(key), binding)


def _by_words(running: Running, q: str) -> Iterator[dict[str, Any]]:
    for entry in _all(running):
        names = (entry["tenant"], entry["account"], entry["stand_in"] or "", entry["rule"])
        if entry["id"].startswith(q) or any(q in name.lower() for name in names):
            yield entry


def _of_record(record: ResponseRecord) -> dict[str, Any]:
    """A response whose binding is not known any more."""
    return {
        "id": record.id,
        "rule": "response",
        "tenant": record.tenant,
        "account": record.account,
        "stand_in": None,
        "stand_in_why": None,
        "leaves": None,
        "why": "made the response",
        "bound_at": record.created_at,
        "used_at": record.created_at,
    }
