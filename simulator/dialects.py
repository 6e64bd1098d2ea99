"""Services that speak the API their own way: what they refuse, and what they answer differently."""

from __future__ import annotations

import time
from typing import Any

from simulator.accounts import SimulatedAccount
from simulator.endpoints import Endpoint
from simulator.events import Event
from simulator.faults import EmptyOutput, Steps
from simulator.items import type_of
from simulator.refusals import Refusal

#: What the ChatGPT backend serves, and the request parameters it knows.
_CHATGPT_ENDPOINTS: frozenset[Endpoint] = frozenset({"create", "compact", "models"})
_CHATGPT_PARAMETERS = frozenset(
    {
        "client_metadata",
        "include",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "prompt_cache_key",
        "reasoning",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
    }
)


class DetailRefusal(Refusal):
    """A refusal of the ChatGPT backend's front: `{"detail": "…"}`."""

    @property
    def body(self) -> Any:
        return {"detail": self.error["message"]}


class TextRefusal(Refusal):
    """A refusal of a service whose errors are plain text: `{"error": "…"}`."""

    @property
    def body(self) -> Any:
        return {"error": self.error["message"]}


def check_dialect(account: SimulatedAccount, endpoint: Endpoint, body: object) -> None:
    """Refusal of what the account's service does not take, though the platform would."""
    request = body if isinstance(body, dict) else {}
    if endpoint == "chat" and not account.chat_completions:
        raise Refusal(404, "Chat completions are not served here.")
    if account.dialect == "chatgpt":
        _check_chatgpt(endpoint, request)
    elif account.dialect == "xai":
        _check_xai(request)


def speak_dialect(account: SimulatedAccount, steps: Steps) -> Steps:
    """The events of a response as the account's service sends them."""
    if account.dialect != "chatgpt":
        return steps
    return EmptyOutput().rewrite(_with_limits(account, steps))


def _check_chatgpt(endpoint: Endpoint, request: dict[str, Any]) -> None:
    """Protocol.md §8.1 and §10.77."""
    if endpoint not in _CHATGPT_ENDPOINTS:
        raise DetailRefusal(404, "Not Found")
    for name, value in request.items():
        if value is not None and name not in _CHATGPT_PARAMETERS:
            raise DetailRefusal(400, f"Unsupported parameter: {name}")
    if endpoint != "create":
        return
    if not isinstance(request.get("input"), list):
        raise DetailRefusal(400, "Input must be a list")
    if request.get("store") is not False:
        raise DetailRefusal(400, "Store must be set to false")
    if request.get("stream") is not True:
        raise DetailRefusal(400, "Stream must be set to true")


def _check_xai(request: dict[str, Any]) -> None:
    """An item of a type it does not know is no input at all (protocol.md §8.1)."""
    items = request.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and type_of(item) == "additional_tools":
            message = (
                "Failed to deserialize the JSON body into the target type:"
                " data did not match any variant of untagged enum ModelInput"
            )
            raise TextRefusal(422, message)


def _with_limits(account: SimulatedAccount, steps: Steps) -> Steps:
    for step in steps:
        yield step
        if isinstance(step, dict) and step["type"] == "response.in_progress":
            yield _limits_event(account)


def _limits_event(account: SimulatedAccount) -> Event:
    """`codex.rate_limits` (protocol.md §4.5)."""
    now = time.time()
    return {
        "type": "codex.rate_limits",
        "plan_type": "plus",
        "metered_limit_name": "codex",
        "limit_name": None,
        "rate_limits": {
            "allowed": True,
            "limit_reached": False,
            "primary": account.codex_limits.primary.as_json(now),
            "secondary": account.codex_limits.secondary.as_json(now),
        },
        "credits": {"has_credits": False, "unlimited": False, "balance": None},
        "additional_rate_limits": None,
        "promo": None,
    }
