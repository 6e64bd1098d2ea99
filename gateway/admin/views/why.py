"""Why a conversation is where it is: its binding, its chain, and its last turns, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.admin.running import Running
from gateway.admin.views.conversations import binding_id_of, response_ids_of, responses_of, shown
from gateway.conversations.store import Transcript
from gateway.routing.affinity import Binding
from gateway.turn.turn_log import TurnRecord

#: Responses of one chain that are shown, the newest ones.
_MAX_NODES = 1000

#: Turns that are told in words.
_MAX_TURNS = 3


def why(running: Running, identity: str) -> dict[str, Any] | None:
    """All that is known of a conversation.

    :param identity: a response id, or the id of a binding.
    :return: None when nothing is known of it.
    """
    binding_id = binding_id_of(running, identity)
    binding = None if binding_id is None else running.services.pool.bindings.with_id(binding_id)
    turns = _turns(running, identity, binding_id)
    responses = _responses(running, identity, binding_id)
    owner = _owner(running, identity)
    if binding is None and not responses and not turns and owner is None:
        return None
    sentences = [
        *_of_binding(running, binding),
        *_of_responses(responses),
        *([] if owner is None else [f"{owner} keeps this response."]),
        *(sentence for turn in turns[-_MAX_TURNS:] for sentence in _of_turn(turn)),
    ]
    return {
        "explanation": sentences,
        "binding": None if binding is None or binding_id is None else shown(binding_id, binding),
        "chain": {"nodes": _nodes(running, responses)},
        "turns": [turn.as_dict() for turn in turns],
    }


def _turns(running: Running, identity: str, binding_id: str | None) -> list[TurnRecord]:
    """The last turns of the conversation; of a response only its own."""
    latest = running.services.turn_log.latest()
    if identity == binding_id:
        return [turn for turn in latest if turn.conversation == identity]
    return [turn for turn in latest if turn.response_id == identity]


def _responses(running: Running, identity: str, binding_id: str | None) -> list[Transcript]:
    for response_id in dict.fromkeys([identity, *response_ids_of(running, binding_id or identity)]):
        responses = responses_of(running, response_id)
        if responses:
            return responses
    return []


def _owner(running: Running, response_id: str) -> str | None:
    """The account that keeps a response, which is known for longer than what stands in it."""
    owners = running.services.owners
    names = (key["name"] for key in running.tenants.snapshot())
    return next(filter(None, (owners.owner_of(name, response_id) for name in names)), None)


def _of_binding(running: Running, binding: Binding | None) -> Iterator[str]:
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


def _of_responses(responses: list[Transcript]) -> Iterator[str]:
    pins = {each.record.pinned_to for each in responses if each.record.pinned_to is not None}
    if pins:
        yield f"It holds sealed items that only {' or '.join(sorted(pins))} can read."
    if not responses:
        yield "The ledger remembers none of its responses."


def _of_turn(turn: TurnRecord) -> Iterator[str]:
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


def _nodes(running: Running, responses: list[Transcript]) -> list[dict[str, Any]]:
    turns = {turn.response_id: turn for turn in running.services.turn_log.latest()}
    return [_node(running, each, turns.get(each.record.id)) for each in responses[-_MAX_NODES:]]


def _node(running: Running, response: Transcript, turn: TurnRecord | None) -> dict[str, Any]:
    record, parent = response.record, response.parent
    evicted = running.services.ledger.is_evicted(response)
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
