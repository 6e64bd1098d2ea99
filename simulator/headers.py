"""The headers that an account's service puts on its answers."""

from __future__ import annotations

import time
from collections.abc import Mapping

from simulator.accounts import SimulatedAccount
from simulator.endpoints import Endpoint
from simulator.items import new_id

_GENERATING: frozenset[Endpoint] = frozenset({"create", "compact", "chat"})


def common_headers(processing_seconds: float) -> Mapping[str, str]:
    """What is on every answer, even to somebody unknown."""
    return {
        "x-request-id": new_id("req"),
        "openai-processing-ms": str(int(processing_seconds * 1000)),
        "openai-version": "2020-10-01",
    }


def account_headers(account: SimulatedAccount, endpoint: Endpoint | None) -> Mapping[str, str]:
    """What an account's answers carry: its limits where they count, and its own headers."""
    found: dict[str, str] = {}
    if endpoint in _GENERATING:
        if account.dialect == "chatgpt":
            found.update(account.codex_limits.headers(time.time()))
        else:
            found.update(account.rate_limits.headers())
    if endpoint == "create" and account.turn_state is not None:
        found["x-codex-turn-state"] = account.turn_state
    found.update(account.headers)
    return found
