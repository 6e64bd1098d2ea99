"""What the services do differently on a WebSocket: upgrades, requests, errors, further events.

protocol.md §5 and §8.1 describe the dialects: the platform as documented, the backend of Codex,
and xAI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.accounts import (
    DetailRefusal,
    SimulatedAccount,
    TextRefusal,
    account_headers,
    check_dialect,
    limits_event,
)
from simulator.events import Event
from simulator.faults import EmptyOutput, Fault, Pause, Refuse, Steps
from simulator.validation import Refusal, unsupported_parameter

_TERMINALS = ("response.completed", "response.failed", "response.incomplete")
#: The token of ``OpenAI-Beta`` that the backend of Codex wants, and the one that excludes it.
_BETA, _OTHER_BETA = "responses_websockets=", "responses=experimental"


def check_upgrade(account: SimulatedAccount, headers: Mapping[str, str]) -> None:
    """Check the headers of an upgrade beyond the key.

    :raises Refusal: when the account's service refuses the upgrade.
    """
    if not account.websocket.enabled:
        more = {"upgrade": "websocket", "sec-websocket-version": "13"}
        raise Refusal(426, "WebSocket mode is switched off.", headers=more)
    wanted = account.websocket.subprotocol
    if wanted is not None and wanted not in offered_subprotocols(headers):
        raise Refusal(400, f"Offer the subprotocol {wanted}.")
    if account.dialect == "chatgpt":
        tokens = [each.strip() for each in headers.get("openai-beta", "").split(",")]
        if _OTHER_BETA in tokens or not any(each.startswith(_BETA) for each in tokens):
            raise DetailRefusal(400, f"Send OpenAI-Beta: {_BETA}2026-02-06, not {_OTHER_BETA}")


def offered_subprotocols(headers: Mapping[str, str]) -> list[str]:
    """The subprotocols that the client of an upgrade offers."""
    offered = headers.get("sec-websocket-protocol", "").split(",")
    return [each.strip() for each in offered if each.strip()]


def upgrade_headers(account: SimulatedAccount, fault: Fault) -> dict[str, str]:
    """The headers of a 101: quotas and the account's own, without a turn state."""
    found = dict(account_headers(account, "create"))
    found.pop("x-codex-turn-state", None)
    return {**found, **fault.extra_headers()}


def check_message(account: SimulatedAccount, request: dict[str, Any]) -> None:
    """Check what the account's service refuses on its sockets, though the platform accepts it.

    :param request: without the members of the transport.
    :raises Refusal: when it does.
    """
    if request.get("background"):
        raise unsupported_parameter("background")
    if account.dialect == "chatgpt":
        # Here, and only here, the backend can be told what to continue; it always streams.
        request = {**request, "previous_response_id": None, "stream": True}
    elif account.dialect == "xai" and all(
        request.get(name) is not None for name in ("previous_response_id", "instructions")
    ):
        message = "Argument not supported: instructions, with previous_response_id"
        raise TextRefusal(400, message)
    check_dialect(account, "create", request)


def no_lanes(account: SimulatedAccount) -> Refusal:
    """The refusal of ``stream_id`` by a service without lanes."""
    if account.dialect == "chatgpt":
        return DetailRefusal(400, "Unsupported parameter: stream_id")
    if account.dialect == "xai":
        return TextRefusal(400, "Argument not supported: stream_id")
    return unsupported_parameter("stream_id")


def error_frame(
    account: SimulatedAccount,
    status: int,
    body: Any,
    headers: Mapping[str, str] | None = None,
) -> Event:
    """An error as the account's service sends it on a socket.

    :param body: as it would be over HTTP: ``{"error": …}``, ``{"detail": …}`` or a text.
    """
    error = body.get("error", body) if isinstance(body, Mapping) else {"message": str(body)}
    if account.dialect == "xai":
        text = error if isinstance(error, str) else error.get("message")
        return {"error": {"message": text, "type": "api_error"}}
    if isinstance(error, str):
        error = {"message": error}
    if account.websocket.has_uncoded_misses and error.get("code") == "previous_response_not_found":
        message = "Invalid `previous_response_id`."
        error = {"type": "invalid_request_error", "message": message, "code": None, "param": None}
    # The backend of Codex names the status of a used-up subscription like this.
    is_used_up = account.dialect == "chatgpt" and error.get("type") == "usage_limit_reached"
    frame: Event = {"type": "error", "status_code" if is_used_up else "status": status}
    frame["error"] = error
    if is_used_up:
        headers = {**account_headers(account, "create"), **(headers or {})}
    return {**frame, "headers": dict(headers)} if headers else frame


def refusal_frame(account: SimulatedAccount, refusal: Refusal, named: object = None) -> Event:
    """The error event for a request that was refused.

    :param named: the previous response that it names.
    """
    body = refusal.body
    if account.dialect == "xai" and refusal.error["code"] == "previous_response_not_found":
        body = f"Response with id={named} not found"
    return error_frame(account, refusal.status, body, refusal.headers)


def speak_on_socket(account: SimulatedAccount, steps: Steps, fault: Fault) -> Steps:
    """The steps of a response as the account's service sends them on a socket.

    The events of the account come before ``response.created``, those out of band after the end.
    """
    if account.dialect == "chatgpt":
        steps = EmptyOutput().rewrite(steps)
    return _surrounded(account, steps, fault)


def _surrounded(account: SimulatedAccount, steps: Steps, fault: Fault) -> Steps:
    options = account.websocket
    if options.sends_limits:
        yield limits_event(account)
    headers = {} if isinstance(fault, Refuse) else dict(fault.extra_headers())
    if account.turn_state is not None:
        headers["x-codex-turn-state"] = account.turn_state
    if headers:
        yield {"type": "response.metadata", "headers": headers, "metadata": {}}
    ended = False
    for step in steps:
        yield step
        ended = ended or (isinstance(step, dict) and step["type"] in _TERMINALS)
    if not ended or not (options.sends_limits_late or options.sends_timing):
        return
    if options.late_seconds:
        yield Pause(options.late_seconds)
    if options.sends_limits_late:
        yield limits_event(account)
    if options.sends_timing:
        timing = {"responses_duration_excl_engine_and_client_tool_time_ms": 1}
        yield {"type": "responsesapi.websocket_timing", "timing_metrics": timing}
