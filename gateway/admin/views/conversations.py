"""The conversations: how to find one, its turns, and why it is on its account."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from gateway.admin.running_gateway import RunningGateway
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.routing.affinity import Binding, named_keys, opaque_id
from gateway.turn.turn_log import TurnRecord

#: Conversations that a search by words covers, the most recently used first.
_SEARCHED = 10_000

#: Responses of one chain that are shown, the newest ones.
_MAX_NODES = 1000

#: Turns that are explained in words.
_MAX_TURNS = 3

#: What is shown of a binding, besides its id.
_BINDING = (
    *("rule", "tenant", "account", "stand_in", "stand_in_why", "leaves"),
    *("why", "bound_at", "used_at"),
)


def conversations(running: RunningGateway, q: str = "", limit: int = 100) -> dict[str, Any]:
    """The most recently used conversations.

    :param q: a response id, a thread, a session, a ``prompt_cache_key`` or a connection in
        full, or a part of the name of a client key, an account or a rule.
    """
    found = _all(running) if not q else _search(running, q)
    return {"conversations": list(islice(found, limit))}


def turns(
    running: RunningGateway,
    account: str | None = None,
    key: str | None = None,
    status: str | None = None,
    conversation: str | None = None,
    limit: int = 500,
) -> dict[str, Any]:
    """The last turns, the newest last.

    :param account: only those that it served or refused.
    :param key: only those of this client key.
    :param status: only those that ended so.
    :param conversation: only those of the binding with this id.
    """

    def fits(record: TurnRecord) -> bool:
        return (
            (account is None or any(each.account == account for each in record.attempts))
            and key in (None, record.key)
            and status in (None, record.status)
            and conversation in (None, record.conversation)
        )

    found = [record.as_dict() for record in running.services.turn_log.latest() if fits(record)]
    return {"turns": found[-limit:]}


def responses_of(running: RunningGateway, response_id: str) -> list[Transcript]:
    """The conversation that holds a response of whichever key, or nothing."""
    store = running.services.conversations
    for key in running.api_keys.snapshot():
        responses = store.conversation(key["name"], response_id)
        if responses:
            return responses
    return []


def binding_id_of(running: RunningGateway, identity: str) -> str | None:
    """The id of the binding that ``identity`` is, or that its response's turn had."""
    if running.services.pool.bindings.with_id(identity) is not None:
        return identity
    for turn in reversed(running.services.turn_log.latest()):
        if turn.response_id == identity:
            return turn.conversation
    return None


def response_ids_of(running: RunningGateway, identity: str) -> list[str]:
    """The known responses of a binding or a response, the newest first."""
    latest = reversed(running.services.turn_log.latest())
    return [
        turn.response_id
        for turn in latest
        if turn.response_id is not None and identity in (turn.conversation, turn.response_id)
    ]


def _binding(identity: str, binding: Binding) -> dict[str, Any]:
    return {"id": identity, **{name: getattr(binding, name) for name in _BINDING}}


def _unbound(record: ResponseRecord) -> dict[str, Any]:
    """A response without a known binding."""
    return {
        **dict.fromkeys(("id", *_BINDING)),
        "id": record.id,
        "rule": "response",
        "tenant": record.tenant,
        "account": record.account,
        "why": "made the response",
        "bound_at": record.created_at,
        "used_at": record.created_at,
    }


# --- search --------------------------------------------------------------------------------


def _all(running: RunningGateway) -> Iterator[dict[str, Any]]:
    for identity, binding in running.services.pool.bindings.items(_SEARCHED):
        yield _binding(identity, binding)


def _search(running: RunningGateway, q: str) -> Iterator[dict[str, Any]]:
    exactly = {entry["id"]: entry for entry in _exactly(running, q)}
    return iter(exactly.values()) if exactly else _by_words(running, q.lower())


def _exactly(running: RunningGateway, q: str) -> Iterator[dict[str, Any]]:
    bindings = running.services.pool.bindings
    identity = binding_id_of(running, q)
    binding = None if identity is None else bindings.with_id(identity)
    if identity is not None and binding is not None:
        yield _binding(identity, binding)
    else:
        records = (each.record for each in responses_of(running, q))
        yield from (_unbound(record) for record in records if record.id == q)
    for tenant in running.api_keys.snapshot():
        for key in named_keys(tenant["name"], q):
            binding = bindings.peek(key)
            if binding is not None:
                yield _binding(opaque_id(key), binding)


def _by_words(running: RunningGateway, q: str) -> Iterator[dict[str, Any]]:
    for entry in _all(running):
        names = (entry["tenant"], entry["account"], entry["stand_in"] or "", entry["rule"])
        if entry["id"].startswith(q) or any(q in name.lower() for name in names):
            yield entry


# --- why -----------------------------------------------------------------------------------


def why(running: RunningGateway, identity: str) -> dict[str, Any] | None:
    """Why a conversation is on its account: its binding, its chain, its last turns, in words.

    :param identity: a response id, or the id of a binding.
    :return: None when nothing is known of it.
    """
    binding_id = binding_id_of(running, identity)
    binding = None if binding_id is None else running.services.pool.bindings.with_id(binding_id)
    turns = _turns_of(running, identity, binding_id)
    responses = _chain(running, identity, binding_id)
    owner = _owner(running, identity)
    if binding is None and not responses and not turns and owner is None:
        return None
    sentences = [
        *_explain_binding(running, binding),
        *_explain_responses(responses),
        *([] if owner is None else [f"{owner} keeps this response."]),
        *(sentence for turn in turns[-_MAX_TURNS:] for sentence in _explain_turn(turn)),
    ]
    return {
        "explanation": sentences,
        "binding": None if binding is None or binding_id is None else _binding(binding_id, binding),
        "chain": {"nodes": _nodes(running, responses)},
        "turns": [turn.as_dict() for turn in turns],
    }


def _turns_of(running: RunningGateway, identity: str, binding_id: str | None) -> list[TurnRecord]:
    """The last turns of the conversation; of a response only its own."""
    latest = running.services.turn_log.latest()
    if identity == binding_id:
        return [turn for turn in latest if turn.conversation == identity]
    return [turn for turn in latest if turn.response_id == identity]


def _chain(running: RunningGateway, identity: str, binding_id: str | None) -> list[Transcript]:
    for response_id in dict.fromkeys([identity, *response_ids_of(running, binding_id or identity)]):
        responses = responses_of(running, response_id)
        if responses:
            return responses
    return []


def _owner(running: RunningGateway, response_id: str) -> str | None:
    """The account that keeps a response, which is known for longer than its contents."""
    owners = running.services.owners
    names = (key["name"] for key in running.api_keys.snapshot())
    return next(filter(None, (owners.owner_of(name, response_id) for name in names)), None)


def _explain_binding(running: RunningGateway, binding: Binding | None) -> Iterator[str]:
    if binding is None:
        yield "No binding is known: the conversation sticks to no account of its own."
        return
    yield f"It is at home at {binding.account}, by the rule: {binding.why}."
    account = running.services.pool.named(binding.account)
    blocked = None if account is None else account.unavailable(None)
    if account is None:
        yield f"{binding.account} is no longer configured."
    elif blocked is not None:
        yield f"{binding.account} is {blocked.state.value}: {blocked.why}."
    if binding.stand_in is not None:
        yield f"{binding.stand_in} serves it meanwhile: {binding.stand_in_why}."
    if binding.leaves is not None:
        yield f"An operator wants it to leave {binding.leaves} at its next turn."


def _explain_responses(responses: list[Transcript]) -> Iterator[str]:
    pins = {each.record.pinned_to for each in responses if each.record.pinned_to is not None}
    if pins:
        yield f"It has encrypted items that only {' or '.join(sorted(pins))} can read."
    if not responses:
        yield "The conversation store has none of its responses."


def _explain_turn(turn: TurnRecord) -> Iterator[str]:
    for number, attempt in enumerate(turn.attempts, 1):
        others = "; ".join(f"{name}: {said}" for name, said in list(attempt.others.items())[:5])
        yield (
            f"Turn {turn.turn}, attempt {number}: {attempt.account} by the rule"
            f" '{attempt.rule}' of {attempt.candidates} candidates, {attempt.route}, ended"
            f" {attempt.outcome}." + (f" Not chosen: {others}." if others else "")
        )
    if turn.reason:
        yield f"Turn {turn.turn} was {turn.route} because {turn.reason}."
    if turn.error_code:
        yield f"Turn {turn.turn} ended {turn.status} with {turn.error_code}."


def _nodes(running: RunningGateway, responses: list[Transcript]) -> list[dict[str, Any]]:
    turns = {turn.response_id: turn for turn in running.services.turn_log.latest()}
    return [_node(running, each, turns.get(each.record.id)) for each in responses[-_MAX_NODES:]]


def _node(running: RunningGateway, response: Transcript, turn: TurnRecord | None) -> dict[str, Any]:
    record, parent = response.record, response.parent
    evicted = running.services.conversations.is_evicted(response)
    items = record.items()
    return {
        "id": record.id,
        "parent": None if parent is None else parent.record.id,
        "account": record.account,
        "route": None if turn is None else turn.route,
        "status": "evicted" if evicted else (turn.status if turn else "remembered"),
        "created_at": record.created_at,
        "model": record.model,
        "items": len(items),
        "bytes": sum(len(item.raw) for item in items),
    }
