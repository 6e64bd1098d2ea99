"""`POST /responses/compact`: a conversation as its user messages and one sealed item."""

from __future__ import annotations

import time

from simulator.events import usage_object
from simulator.exchange import Exchange
from simulator.items import Item, as_stored, estimated_tokens, new_id, type_of
from simulator.memory import Memory
from simulator.parameters import COMPACTED, check_parameters
from simulator.replies import Reply, json_reply


def compact(exchange: Exchange) -> Reply:
    """The input of a new conversation that goes on with this one (protocol.md §6.5).

    What users said stays as it is. Everything else is in the `compaction` item, which only the
    account that made it can open. The compaction itself is not stored and cannot be continued.
    """
    engine = exchange.engine
    request = check_parameters(exchange.body, COMPACTED)
    resolved = engine.resolve(request)
    context = exchange.entry.context = resolved.context
    compaction_id = exchange.entry.response_id = new_id("resp")
    turn = engine.turn(context, request)
    others = Memory.of(turn, [item for item in context if not _is_of_user(item)])
    output = [
        as_stored(item, f"{compaction_id}/{index}")
        for index, item in enumerate(context)
        if _is_of_user(item)
    ]
    sealed = turn.seal(others.as_json())
    output.append({"id": new_id("cmp"), "type": "compaction", "encrypted_content": sealed})
    compacted = {
        "id": compaction_id,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": output,
        "usage": usage_object(resolved.tokens, resolved.cached_tokens, estimated_tokens(output)),
    }
    return json_reply(compacted, exchange.fault)


def _is_of_user(item: Item) -> bool:
    return type_of(item) == "message" and item.get("role") == "user"
