"""Stored responses: finding one, its input items, and deleting it."""

from __future__ import annotations

from typing import Any, get_args

from simulator.exchange import Exchange
from simulator.items import Item, as_stored
from simulator.parameters import Includable
from simulator.refusals import bad_request, invalid_response_id, response_not_found
from simulator.replies import Reply, json_reply
from simulator.store import Record

_PAGE = 20
_LONGEST_PAGE = 100


def delete(exchange: Exchange) -> Reply:
    """`DELETE /responses/{id}`: a deleted response can be neither read nor continued."""
    record = find(exchange)
    if record.run is not None:
        record.run.stop()
    exchange.engine.store.forget(record.response_id)
    deleted = {"id": record.response_id, "object": "response", "deleted": True}
    return json_reply(deleted, exchange.fault)


def input_items(exchange: Exchange) -> Reply:
    """`GET /responses/{id}/input_items`: a page of what the request itself brought as input."""
    record = find(exchange)
    check_include(exchange)
    order = exchange.choice("order", ("desc", "asc"))
    limit = exchange.integer("limit", 1, _LONGEST_PAGE) or _PAGE
    items = listed(record)
    if order == "desc":
        items.reverse()
    after = exchange.text("after")
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise bad_request(f"Item with id '{after}' not found.", "after")
        items = items[ids.index(after) + 1 :]
    return json_reply(_page(items, limit), exchange.fault)


def find(exchange: Exchange) -> Record:
    """The stored response that the path names; Refusal if this account has none of that id."""
    if not exchange.named.startswith("resp"):
        raise invalid_response_id(exchange.named)
    record = exchange.engine.store.get(exchange.named)
    if record is None:
        raise response_not_found(exchange.named)
    exchange.entry.response_id = record.response_id
    return record


def listed(record: Record) -> list[Item]:
    """The input of a stored response in the order it was given, each item with an id."""
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


def check_include(exchange: Exchange) -> None:
    """Refusal of an `include` the API does not know."""
    allowed = get_args(Includable)
    for index, value in enumerate(exchange.texts("include")):
        if value not in allowed:
            supported = ", ".join(f"'{each}'" for each in allowed)
            message = f"Invalid value: '{value}'. Supported values are: {supported}."
            raise bad_request(message, f"include[{index}]", "invalid_value")
