"""The handlers of ``/responses`` and ``/models``: what each endpoint answers."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec

from simulator.accounts import SimulatedAccount, speak_dialect
from simulator.engine import Answer, BackgroundRun, Record
from simulator.events import numbered, usage_object
from simulator.faults import Steps
from simulator.items import Item, as_stored, estimated_tokens, new_id, type_of
from simulator.model import Memory
from simulator.request_log import LoggedRequest, Outcome
from simulator.simulator import Exchange
from simulator.stream import Reply, as_json, as_sse, json_reply, stream_reply
from simulator.validation import (
    COMPACTED,
    COUNTED,
    INCLUDABLE,
    Refusal,
    bad_request,
    check_parameters,
)

_TERMINALS: dict[str, Outcome] = {
    "response.completed": "completed",
    "response.failed": "failed",
    "response.incomplete": "incomplete",
}
_PAGE = 20
_LONGEST_PAGE = 100
#: The listed model of an account that serves any.
_DEFAULT_MODEL = "gpt-simulated"


def create(exchange: Exchange) -> Reply:
    """``POST /responses``: a stream of events or one object, possibly in the background."""
    entry = exchange.entry
    answer = exchange.engine.answer(exchange.body, entry.size)
    entry.response_id = answer.response_id
    entry.context = answer.context
    if exchange.body.get("background"):
        return _start(exchange, answer)
    events = speak_dialect(exchange.engine.account, answer.events())
    steps = _observed(numbered(exchange.fault.rewrite(events)), entry, answer)
    return stream_reply(as_sse(steps)) if exchange.body.get("stream") else Reply(as_json(steps))


def cancel(exchange: Exchange) -> Reply:
    """``POST /responses/{id}/cancel``: ends a background response, and may be repeated."""
    record = _find(exchange)
    if record.run is None:
        message = "Only responses created with 'background' set to true can be cancelled."
        raise bad_request(message, None)
    record.run.cancel()
    status = record.run.response["status"]
    if status != "cancelled":
        raise bad_request(f"Cannot cancel a {status} response.", None)
    return json_reply(record.run.response, exchange.fault)


def retrieve(exchange: Exchange) -> Reply:
    """``GET /responses/{id}``; with ``stream`` all events of a background response."""
    record = _find(exchange)
    _check_include(exchange)
    after = exchange.integer("starting_after", 0)
    if not exchange.flag("stream"):
        return json_reply(record.response, exchange.fault)
    if record.run is None or not record.run.streamed:
        message = "Only responses created with 'background' and 'stream' can be streamed again."
        raise bad_request(message, "stream")
    return _followed(exchange, record.run, -1 if after is None else after)


def _start(exchange: Exchange, answer: Answer) -> Reply:
    fault, events = exchange.fault, answer.events()
    run = exchange.simulator.start_in_background(
        answer.record,
        fault.rewrite(events) if fault.is_of_response else events,
        exchange.engine.store.keep,
        streamed=bool(exchange.body.get("stream")),
    )
    return _followed(exchange, run) if run.streamed else json_reply(run.response, fault)


def _followed(exchange: Exchange, run: BackgroundRun, after: int = -1) -> Reply:
    """The run's events for one client; the run goes on when the client leaves."""
    steps = run.follow(after)
    if not exchange.fault.is_of_response:
        steps = exchange.fault.rewrite(steps)
    return stream_reply(as_sse(_observed(steps, exchange.entry)))


def _observed(steps: Steps, entry: LoggedRequest, answer: Answer | None = None) -> Steps:
    """The steps; they are counted in the log, and the response is stored as it completes."""
    for step in steps:
        if isinstance(step, dict):
            if step["type"] == "response.completed" and answer is not None:
                answer.keep()
            entry.outcome = _TERMINALS.get(step["type"], entry.outcome)
            entry.events_sent += 1
        yield step


def delete(exchange: Exchange) -> Reply:
    """``DELETE /responses/{id}``: a deleted response can be neither read nor continued."""
    record = _find(exchange)
    if record.run is not None:
        record.run.stop()
    exchange.engine.store.forget(record.response_id)
    deleted = {"id": record.response_id, "object": "response", "deleted": True}
    return json_reply(deleted, exchange.fault)


def input_items(exchange: Exchange) -> Reply:
    """``GET /responses/{id}/input_items``: a page of the request's own input."""
    record = _find(exchange)
    _check_include(exchange)
    order = exchange.choice("order", ("desc", "asc"))
    limit = exchange.integer("limit", 1, _LONGEST_PAGE) or _PAGE
    items = _listed(record)
    if order == "desc":
        items.reverse()
    after = exchange.text("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise bad_request(f"Item with id '{after}' not found.", "after")
        items = items[ids.index(after) + 1 :]
    return json_reply(_page(items, limit), exchange.fault)


def _find(exchange: Exchange) -> Record:
    """The stored response of the id in the path.

    :raises Refusal: when this account has none.
    """
    if not exchange.named.startswith("resp"):
        message = f"Invalid 'response_id': '{exchange.named}'."
        message += " Expected an ID that begins with 'resp'."
        raise bad_request(message, "response_id", "invalid_value")
    record = exchange.engine.store.get(exchange.named)
    if record is None:
        raise Refusal(404, f"Response with id '{exchange.named}' not found.")
    exchange.entry.response_id = record.response_id
    return record


def _listed(record: Record) -> list[Item]:
    """The input of a stored response in its order, each item with an id."""
    return [
        as_stored(item, f"{record.response_id}/{index}") for index, item in enumerate(record.input)
    ]


def _page(items: list[Item], limit: int) -> dict[str, Any]:
    data = items[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > limit,
    }


def _check_include(exchange: Exchange) -> None:
    """Refuse an ``include`` that the API does not know."""
    allowed = INCLUDABLE
    for index, value in enumerate(exchange.texts("include")):
        if value not in allowed:
            supported = ", ".join(f"'{each}'" for each in allowed)
            message = f"Invalid value: '{value}'. Supported values are: {supported}."
            raise bad_request(message, f"include[{index}]", "invalid_value")


def compact(exchange: Exchange) -> Reply:
    """``POST /responses/compact``: the input of a new conversation that continues this one.

    Messages of users stay as they are. Everything else is in the ``compaction`` item, which only
    the account that made it can decrypt. The compaction is not stored and cannot be continued.
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
    content = turn.encrypt(others.as_json())
    output.append({"id": new_id("cmp"), "type": "compaction", "encrypted_content": content})
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


def input_tokens(exchange: Exchange) -> Reply:
    """``POST /responses/input_tokens``: the tokens that a request would bring to the model."""
    request = check_parameters(exchange.body, COUNTED, required=())
    resolved = exchange.engine.resolve(request)
    exchange.entry.context = resolved.context
    counted = {"object": "response.input_tokens", "input_tokens": resolved.tokens}
    return json_reply(counted, exchange.fault)


def models(exchange: Exchange) -> Reply:
    """``GET /models``; with ``client_version`` in Codex's own shape, if the account has it."""
    account = exchange.engine.account
    if account.has_catalogue and exchange.text("client_version") is not None:
        catalogue = {"models": [_model_info(name, n) for n, name in enumerate(_names(account))]}
        digest = hashlib.sha256(msgspec.json.encode(catalogue)).hexdigest()[:16]
        return json_reply(catalogue, exchange.fault, {"etag": f'W/"{digest}"'})
    listed = {"object": "list", "data": [_model(name) for name in _names(account)]}
    return json_reply(listed, exchange.fault)


def model(exchange: Exchange) -> Reply:
    """``GET /models/{id}``."""
    account, name = exchange.engine.account, exchange.named
    if account.models and name not in account.models:
        message = f"The model '{name}' does not exist"
        raise Refusal(404, message, param="model", code="model_not_found")
    return json_reply(_model(name), exchange.fault)


def _names(account: SimulatedAccount) -> tuple[str, ...]:
    return account.models or (_DEFAULT_MODEL,)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1700000000, "owned_by": "simulator"}


def _model_info(name: str, priority: int) -> dict[str, Any]:
    """A model with the members that Codex requires."""
    return {
        "slug": name,
        "display_name": name,
        "description": None,
        "default_reasoning_level": "medium",
        "supported_reasoning_levels": [
            {"effort": effort, "description": effort} for effort in ("low", "medium", "high")
        ],
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": priority,
        "base_instructions": "",
        "support_verbosity": True,
        "default_verbosity": "low",
        "truncation_policy": {"mode": "tokens", "limit": 10_000},
        "supports_parallel_tool_calls": True,
        "context_window": 272_000,
        "experimental_supported_tools": [],
    }
