"""Strict checks of a whole conversation: pairing of calls, ids, and encrypted content."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.items import CALL_TYPES, CALLS_ANSWERED_BY, Item, spoken, type_of
from simulator.refusals import (
    bad_request,
    invalid_encrypted_content,
    item_not_found,
    missing_parameter,
)

FindItem = Callable[[str], Item | None]


def expand_references(items: Sequence[Item], find: FindItem) -> list[Item]:
    """The items with each `item_reference` replaced by the stored item it names."""
    expanded: list[Item] = []
    for item in items:
        if type_of(item) == "item_reference":
            found = find(str(item.get("id")))
            if found is None:
                raise item_not_found(str(item.get("id")))
            expanded.append(found)
        else:
            expanded.append(item)
    return expanded


def check_new_items(items: Sequence[Item], find: FindItem, issued: Callable[[str], bool]) -> None:
    """Checks of what came with this request: stored reasoning, and this account's seals."""
    for item in items:
        content = item.get("encrypted_content")
        if isinstance(content, str) and content:
            if not issued(content):
                raise invalid_encrypted_content(content)
        elif type_of(item) == "reasoning":
            item_id = item.get("id")
            if isinstance(item_id, str) and find(item_id) is None:
                raise item_not_found(item_id)
        elif type_of(item) == "compaction":
            raise missing_parameter("input.encrypted_content")


def check_context(context: Sequence[Item]) -> None:
    """Checks of the whole resolved conversation: unique ids, calls and outputs in pairs."""
    _check_duplicates(context)
    _check_outputs(context)
    _check_calls(context)
    _check_compaction_trigger(context)


def _check_duplicates(context: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in context:
        item_id = item.get("id")
        if not isinstance(item_id, str) or not item_id:
            continue
        if item_id in seen:
            message = (
                f"Duplicate item found with id {item_id}."
                " Remove duplicate items from your input and try again."
            )
            raise bad_request(message, "input")
        seen.add(item_id)


def _check_outputs(context: Sequence[Item]) -> None:
    """Every tool output comes after a call of its kind with its call id."""
    called: set[tuple[str, str]] = set()
    for item in context:
        kind, call_id = type_of(item), item.get("call_id")
        if not isinstance(call_id, str):
            continue
        if kind in CALL_TYPES:
            called.add((kind, call_id))
        calls = CALLS_ANSWERED_BY.get(kind)
        if calls and not any((call, call_id) in called for call in calls):
            message = f"No tool call found for {spoken(kind)} with call_id {call_id}."
            raise bad_request(message, "input")


def _check_calls(context: Sequence[Item]) -> None:
    """Every call has its output: the model cannot go on without it."""
    outputs = [item.get("call_id") for item in context if type_of(item) in CALLS_ANSWERED_BY]
    answered = {call_id for call_id in outputs if isinstance(call_id, str)}
    for item in context:
        kind, call_id = type_of(item), item.get("call_id")
        if kind in CALL_TYPES and isinstance(call_id, str) and call_id not in answered:
            message = f"No tool output found for {spoken(kind)} {call_id}."
            raise bad_request(message, "input")


def _check_compaction_trigger(context: Sequence[Item]) -> None:
    for item in context[:-1]:
        if type_of(item) == "compaction_trigger":
            message = "The 'compaction_trigger' item must be the last input item."
            raise bad_request(message, "input")
