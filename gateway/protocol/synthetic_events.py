"""Responses and events that the gateway itself creates (protocol.md §3.5, §3.6, §4.4, §8.6)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.protocol.events import raw_list, raw_value
from gateway.protocol.request import Members, TurnRequest

#: Members of a request that its response repeats.
_REPEATED = ("parallel_tool_calls", "tool_choice", "tools", "instructions", "reasoning")

#: Codes of messages about a running response that the gateway refuses itself.
STEERING_NOT_SUPPORTED = "steering_not_supported"
INJECTION_NOT_SUPPORTED = "injection_not_supported"
NOT_ACTIVE = "response_not_active"
ALREADY_COMPLETED = "response_already_completed"
TOO_MANY_STEERS = "too_many_pending_steers"
TOO_MANY_INJECTIONS = "too_many_pending_injections"
NO_SUCCESSOR = "successor_creation_failed"

#: The codes for messages that no account's service knows, by the names in ``websocket.controls``.
NOT_SUPPORTED = {"steer": STEERING_NOT_SUPPORTED, "inject": INJECTION_NOT_SUPPORTED}

_WHY = {
    STEERING_NOT_SUPPORTED: "The account of this response cannot be steered while it answers.",
    INJECTION_NOT_SUPPORTED: "The account of this response takes no input while it answers.",
    NOT_ACTIVE: "That response is not running on this connection.",
    ALREADY_COMPLETED: "That response has ended.",
    TOO_MANY_STEERS: "Too much steering input waits for this response already.",
    TOO_MANY_INJECTIONS: "Too much injected input waits for this response already.",
    NO_SUCCESSOR: "The response that was to follow could not be created.",
}


def new_response_id(purpose: str = "") -> str:
    """An id for a response that the gateway itself creates."""
    return f"resp_{purpose}{'_' if purpose else ''}{secrets.token_hex(16)}"


def synthetic_response(
    response_id: str, request: TurnRequest, created_at: int, previous_response_id: str | None
) -> Members:
    """A full response object for an answer that no upstream gave.

    :param created_at: unix seconds.
    """
    response: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": request.model or "",
        "output": [],
        "previous_response_id": previous_response_id,
        "store": request.store,
        "usage": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "instructions": None,
        "metadata": {},
        "temperature": None,
        "top_p": None,
        "text": {"format": {"type": "text"}},
        "truncation": "disabled",
    }
    members = {name: raw_value(value) for name, value in response.items()}
    for name in _REPEATED:
        if name in request.members:
            members[name] = msgspec.Raw(bytes(request.members[name]))
    return members


def opening(response: Mapping[str, msgspec.Raw]) -> Members:
    """A response as it was when it began, from what is known of it later."""
    began = _with(response, status="in_progress", usage=None, error=None, incomplete_details=None)
    began["output"] = raw_list([])
    began.pop("completed_at", None)
    return began


def created_event(response: Mapping[str, msgspec.Raw], number: int = 0) -> bytes:
    """``response.created`` as the first event of a response."""
    return _lifecycle("response.created", response, number)


def prewarm_events(response: Members, completed_at: int) -> list[bytes]:
    """The whole answer to ``generate: false``: no items, a usage of zeros."""
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    done = _with(response, status="completed", completed_at=completed_at, usage=usage)
    return [created_event(response), _lifecycle("response.completed", done, 1)]


def interrupted_event(
    response: Mapping[str, msgspec.Raw], items: Sequence[bytes], number: int
) -> bytes:
    """``response.incomplete`` with the reason ``interrupted`` and the finished items."""
    ended = _with(response, status="incomplete", incomplete_details={"reason": "interrupted"})
    return _lifecycle("response.incomplete", {**ended, "output": raw_list(items)}, number)


def failed_event(
    response: Mapping[str, msgspec.Raw],
    items: Sequence[bytes],
    number: int,
    code: str,
    message: str,
) -> bytes:
    """``response.failed``: what clients retry with their full input."""
    ended = _with(response, status="failed", error={"code": code, "message": message})
    return _lifecycle("response.failed", {**ended, "output": raw_list(items)}, number)


def _with(response: Mapping[str, msgspec.Raw], **members: object) -> Members:
    return {**response, **{name: raw_value(value) for name, value in members.items()}}


def _lifecycle(kind: str, response: Mapping[str, msgspec.Raw], number: int) -> bytes:
    return msgspec.json.encode(
        {"type": kind, "sequence_number": number, "response": dict(response)}
    )


def interrupt_accepted(response_id: str, number: int) -> bytes:
    """``response.interrupt.accepted``, before the interrupted response's terminal event."""
    return msgspec.json.encode(
        {
            "type": "response.interrupt.accepted",
            "response_id": response_id,
            "sequence_number": number,
        }
    )


def interrupt_failed(response_id: str) -> bytes:
    """``response.interrupt.failed``: that response is not running (any more)."""
    message = f"No response '{response_id}' is running on this connection."
    return msgspec.json.encode(
        {
            "type": "response.interrupt.failed",
            "response_id": response_id,
            "error": {"code": "response_not_active", "message": message},
        }
    )


def steer_failed(
    previous_response_id: str | None,
    given: bytes = b"",
    code: str = STEERING_NOT_SUPPORTED,
    steer_id: str | None = None,
) -> bytes:
    """``response.steer.failed``: the input was not, and will not be, brought to a response.

    :param given: the ``input``, which goes back to the client; empty to leave it out.
    :param steer_id: what the service that had accepted it called it.
    """
    steer: dict[str, Any] = {} if steer_id is None else {"id": steer_id}
    steer["previous_response_id"] = previous_response_id
    if given:
        steer["input"] = msgspec.Raw(given)
    error = {"type": "invalid_request_error", "code": code, "message": _WHY[code]}
    return msgspec.json.encode({"type": "response.steer.failed", "error": error, "steer": steer})


def inject_failed(response_id: str | None, given: bytes, code: str) -> bytes:
    """``response.inject.failed``: the input was not brought to the response.

    :param given: the ``input``, which goes back to the client; empty to leave it out.
    """
    event: dict[str, Any] = {
        "type": "response.inject.failed",
        "response_id": response_id,
        "error": {"code": code, "message": _WHY[code]},
    }
    if given:
        event["input"] = msgspec.Raw(given)
    return msgspec.json.encode(event)
