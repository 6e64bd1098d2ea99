"""The routing dry run: explains the choice for a turn without taking a lease."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.admin.requests import bad_request
from gateway.admin.running_gateway import RunningGateway
from gateway.conversations.context import chain_point
from gateway.conversations.store import Transcript
from gateway.routing.affinity import affinity_keys
from gateway.routing.selection import RouteRequest

_MEMBERS = (
    "model",
    "key",
    "headers",
    "previous_response_id",
    "prompt_cache_key",
    "background",
    "chat",
)

#: In place of a connection, which the turn does not have.
_NO_CONNECTION = "dry-run"


def dry_run(running: RunningGateway, body: Mapping[str, Any]) -> dict[str, Any]:
    """Explain the choice for a turn as the client of ``key`` would send it.

    :raises AdminError: 400 when the description of the turn is wrong.
    """
    _check(body)
    key = body.get("key") or running.api_keys.snapshot()[0]["name"]
    if not running.api_keys.knows(key):
        raise bad_request("key: expected the name of a configured client key")
    model = body.get("model")
    headers = {name.lower(): value for name, value in (body.get("headers") or {}).items()}
    keys = affinity_keys(key, headers, {}, body.get("prompt_cache_key"), _NO_CONNECTION)
    parent = _parent(running, key, body.get("previous_response_id"))
    previous, _ = chain_point(parent)
    found = running.services.pool.explain(
        RouteRequest(
            model,
            keys,
            holder=None if previous is None else previous.record.account,
            pinned_to=None if parent is None else parent.record.pinned_to,
            background=body.get("background") is True,
            chat=body.get("chat") is True,
        ),
    )
    return {
        "account": found.account,
        "rule": found.rule,
        "among": list(found.among),
        "candidates": list(found.candidates),
        "rejected": [{"account": name, "why": why} for name, why in found.rejected.items()],
        "waits_for": found.waits_for,
        "key": key,
        "key_may_use_model": model is None or running.api_keys.may_use(key, model),
        "affinity": [each.rule for each in keys],
    }


def _parent(running: RunningGateway, key: str, response_id: str | None) -> Transcript | None:
    if response_id is None:
        return None
    responses = running.services.conversations.conversation(key, response_id)
    parent = next((each for each in responses if each.record.id == response_id), None)
    if parent is None:
        raise bad_request("previous_response_id: this key has no such response")
    return parent


def _check(body: Mapping[str, Any]) -> None:
    unknown = [name for name in body if name not in _MEMBERS]
    if unknown:
        raise bad_request(f"{unknown[0][:100]}: expected one of {', '.join(_MEMBERS)}")
    for name in ("model", "key", "previous_response_id", "prompt_cache_key"):
        if not isinstance(body.get(name), (str, type(None))):
            raise bad_request(f"{name}: expected text")
    headers = body.get("headers")
    if headers is not None and not (
        isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values())
    ):
        raise bad_request("headers: expected an object of texts")
