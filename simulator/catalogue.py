"""The models of an account, as the platform lists them and as Codex's own catalogue."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from simulator.accounts import SimulatedAccount
from simulator.exchange import Exchange
from simulator.refusals import Refusal
from simulator.replies import Reply, json_reply

#: What an account that serves any model name lists.
_DEFAULT = "gpt-simulated"


def models(exchange: Exchange) -> Reply:
    """`GET /models`; with `client_version` the catalogue of accounts that have one."""
    account = exchange.engine.account
    if account.has_catalogue and exchange.text("client_version") is not None:
        catalogue = {"models": [_model_info(name, n) for n, name in enumerate(_names(account))]}
        digest = hashlib.sha256(msgspec.json.encode(catalogue)).hexdigest()[:16]
        return json_reply(catalogue, exchange.fault, {"etag": f'W/"{digest}"'})
    listed = {"object": "list", "data": [_model(name) for name in _names(account)]}
    return json_reply(listed, exchange.fault)


def model(exchange: Exchange) -> Reply:
    """`GET /models/{id}`."""
    account, name = exchange.engine.account, exchange.named
    if account.models and name not in account.models:
        message = f"The model '{name}' does not exist"
        raise Refusal(404, message, param="model", code="model_not_found")
    return json_reply(_model(name), exchange.fault)


def _names(account: SimulatedAccount) -> tuple[str, ...]:
    return account.models or (_DEFAULT,)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1700000000, "owned_by": "simulator"}


def _model_info(name: str, priority: int) -> dict[str, Any]:
    """The keys that Codex requires of a model (protocol.md §7)."""
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
