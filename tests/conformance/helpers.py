"""Scripts and set-ups that several conformance modules share."""

from __future__ import annotations

from typing import Any

from tests.conformance.conftest import Stage
from tests.support.events import Json, error_body, user
from tests.support.upstream import Exchange, Recorded, Script
from tests.support.wsclient import WsClient


def refusing(status: int, body: Any, headers: dict[str, str] | None = None) -> Script:
    if isinstance(body, bytes):
        return lambda exchange: exchange.reply(status, body, headers)
    return lambda exchange: exchange.json(status, body, headers)


def solo(stage: Stage, script: Script) -> WsClient:
    """A client whose model has one account, answered by this script."""
    return stage.serve(script).connect()


def hung(exchange: Exchange, after: int) -> None:
    """A turn whose upstream falls silent after so many events."""
    if after:
        exchange.sse(*exchange.turn()[:after])
    exchange.hold()


def as_items(value: Any) -> list[Json]:
    """An input in list form, as a transcript keeps it; easy messages become full ones."""
    items = [user(value)] if isinstance(value, str) else list(value)
    full: list[Json] = []
    for item in items:
        if item.get("role") == "user" and isinstance(item.get("content"), str):
            item = {**item, "content": [{"type": "input_text", "text": item["content"]}]}
        full.append({"type": "message", **item} if "role" in item else item)
    return full


def sealed_in(requests: list[Recorded]) -> set[str]:
    """Which accounts' secrets the requests of an upstream held."""
    return {part.split(":")[1] for r in requests for part in _secrets(r.body)}


def _secrets(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["encrypted_content"]] if value.get("encrypted_content") else []
        return own + [found for member in value.values() for found in _secrets(member)]
    if isinstance(value, list):
        return [found for member in value for found in _secrets(member)]
    return []


def failing(status: int, body: Any) -> Any:
    def answer(exchange: Exchange) -> bool:
        exchange.json(status, body)
        return True

    return answer


LIMITED = error_body("rate_limit_exceeded", "slow down")
