"""The messages of clients on a WebSocket: what they are, and which are refused (protocol.md §3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from simulator.items import CALL_TYPES, CALLS_ANSWERED_BY, Item, input_items, type_of
from simulator.validation import (
    BOOLEAN,
    OBJECT,
    STRING,
    Refusal,
    bad_request,
    check_types,
    invalid_type,
    invalid_value,
    missing_parameter,
)

TYPES = (
    "response.create",
    "response.steer",
    "response.interrupt",
    "response.cancel",
    "response.processed",
)
_STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")
#: The members of ``response.create`` that belong to the transport.
_OF_TRANSPORT = frozenset({"type", "generate", "stream_id"})
_STEER_PARTS = frozenset({"input_text", "input_image", "input_file"})
_OUTPUT_OF = {
    call: output for output, calls in reversed(CALLS_ANSWERED_BY.items()) for call in calls
}


@dataclass(frozen=True)
class CreateMessage:
    """A ``response.create``.

    :ivar lane: its ``stream_id``; None: the default lane.
    :ivar request: the request as it would be over HTTP.
    :ivar prewarms: whether the model is not to be asked.
    """

    lane: str | None
    request: dict[str, Any]
    prewarms: bool = False

    @property
    def previous_response_id(self) -> Any:
        """The response that it names, checked or not."""
        return self.request.get("previous_response_id")


def parsed_message(payload: bytes) -> dict[str, Any]:
    """The object of a text message, with a known type.

    :raises Refusal: when it is none.
    """
    try:
        message = msgspec.json.decode(payload)
    except (ValueError, RecursionError) as error:
        message = "We could not parse the JSON body of your request."
        raise Refusal(400, message) from error
    if not isinstance(message, dict):
        raise invalid_type("body", OBJECT, message)
    kind = message.get("type")
    if kind is None:
        raise missing_parameter("type")
    if not isinstance(kind, str):
        raise invalid_type("type", STRING, kind)
    if kind not in TYPES:
        raise invalid_value("type", kind, TYPES)
    return message


def lane_of(message: dict[str, Any]) -> str | None:
    """The lane that a message names.

    :raises Refusal: when its name is not allowed.
    """
    name = message.get("stream_id")
    if name is None:
        return None
    if not isinstance(name, str) or not _STREAM_ID.fullmatch(name):
        text = "Invalid 'stream_id': expected 1 to 256 letters, digits, '_', '.' or '-'."
        raise bad_request(text, "stream_id", "invalid_stream_id")
    return name


def create_message(message: dict[str, Any]) -> CreateMessage:
    """A ``response.create``; its request is checked when its turn comes.

    :raises Refusal: when its lane or ``generate`` is not allowed.
    """
    lane = lane_of(message)
    own = {name: value for name, value in message.items() if name == "generate"}
    check_types(own, {"generate": BOOLEAN})
    request = {name: value for name, value in message.items() if name not in _OF_TRANSPORT}
    options = request.get("prompt_cache_options")
    prewarms = isinstance(options, dict) and options.get("prewarm") is True
    return CreateMessage(lane, request, prewarms or message.get("generate") is False)


def steer_input(message: dict[str, Any]) -> list[Item]:
    """The items of a ``response.steer``: messages of the user.

    :raises Refusal: when it has others, or other members.
    """
    for name in message:
        if name not in ("type", "previous_response_id", "input"):
            raise bad_request(f"Unknown parameter: '{name}'.", name, "unknown_parameter")
    given = message.get("input")
    if not isinstance(given, (str, list)) or not given:
        raise missing_parameter("input")
    items = input_items(given)
    if len(items) != len(given) and isinstance(given, list):
        raise invalid_type("input", "an array of objects", given)
    for index, item in enumerate(items):
        if not _is_of_user(item):
            text = "Steering accepts only messages of the user with text, images and files."
            raise bad_request(text, f"input[{index}]")
    return items


def _is_of_user(item: Item) -> bool:
    content = item.get("content")
    parts = content if isinstance(content, list) else []
    return (
        set(item) <= {"type", "role", "content"}
        and type_of(item) == "message"
        and item.get("role") == "user"
        and (isinstance(content, str) or bool(parts))
        and all(isinstance(part, dict) and part.get("type") in _STEER_PARTS for part in parts)
    )


def required_outputs(output: list[Item]) -> list[Item]:
    """What the client has to bring before a response can be continued, without the results."""
    found: list[Item] = []
    for item in output:
        kind = type_of(item)
        if kind in CALL_TYPES:
            stub: Item = {"type": _OUTPUT_OF[kind], "call_id": item.get("call_id")}
            if kind == "function_call":
                stub["name"] = item.get("name")
            found.append(stub)
    return found
