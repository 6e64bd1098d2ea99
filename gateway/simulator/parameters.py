"""Strict checks of a request's top level: known names, right types, what must be there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from gateway.simulator.refusals import (
    bad_request,
    invalid_type,
    missing_parameter,
    unknown_parameter,
    unsupported_parameter,
)

_STRING, _BOOLEAN, _INTEGER = "a string", "a boolean", "an integer"
_NUMBER, _OBJECT, _ARRAY = "a decimal", "an object", "an array"
_STRING_OR_ARRAY = "one of a string or array of objects"
_STRING_OR_OBJECT = "one of a string or object"

_PARAMETERS: dict[str, str] = {
    "access_programs": _OBJECT,
    "background": _BOOLEAN,
    "background_options": _OBJECT,
    "client_metadata": _OBJECT,
    "context_management": _ARRAY,
    "conversation": _STRING_OR_OBJECT,
    "image": _OBJECT,
    "include": _ARRAY,
    "input": _STRING_OR_ARRAY,
    "instructions": _STRING,
    "max_output_tokens": _INTEGER,
    "max_tool_calls": _INTEGER,
    "metadata": _OBJECT,
    "model": _STRING,
    "moderation": _OBJECT,
    "parallel_tool_calls": _BOOLEAN,
    "personality": _STRING,
    "previous_response_id": _STRING,
    "prompt": _OBJECT,
    "prompt_cache_key": _STRING,
    "prompt_cache_options": _OBJECT,
    "prompt_cache_retention": _STRING,
    "reasoning": _OBJECT,
    "safety_identifier": _STRING,
    "service_tier": _STRING,
    "store": _BOOLEAN,
    "stream": _BOOLEAN,
    "stream_options": _OBJECT,
    "temperature": _NUMBER,
    "text": _OBJECT,
    "tool_choice": _STRING_OR_OBJECT,
    "tools": _ARRAY,
    "top_logprobs": _INTEGER,
    "top_p": _NUMBER,
    "truncation": _STRING,
    "user": _STRING,
}
_PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    _STRING: (str,),
    _BOOLEAN: (bool,),
    _INTEGER: (int,),
    _NUMBER: (int, float),
    _OBJECT: (dict,),
    _ARRAY: (list,),
    _STRING_OR_ARRAY: (str, list),
    _STRING_OR_OBJECT: (str, dict),
}
_ALL = frozenset(_PARAMETERS) - {"personality"}
#: What `input_tokens` takes.
COUNTED = frozenset(
    {
        "conversation",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "personality",
        "previous_response_id",
        "reasoning",
        "text",
        "tool_choice",
        "tools",
        "truncation",
    }
)
#: What `compact` takes: the documented parameters, and what Codex sends besides.
COMPACTED = frozenset(
    {
        "image",
        "input",
        "instructions",
        "model",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "service_tier",
        "text",
        "tools",
    }
)
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]
# Known to the WebSocket transport only.
_NOT_OVER_HTTP = frozenset({"generate"})
# Items that are nothing without their call id; of other calls a server may keep it to itself.
_NAMING_A_CALL = frozenset(
    {"function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output"}
)


def check_parameters(
    body: object,
    allowed: Collection[str] = _ALL,
    required: Sequence[str] = ("model",),
) -> dict[str, Any]:
    """The request, if its top level is one the endpoint accepts over HTTP; else a Refusal."""
    if not isinstance(body, dict):
        raise invalid_type("body", _OBJECT, body)
    for name, value in body.items():
        _check_parameter(name, value, allowed)
    for name in required:
        if body.get(name) in (None, ""):
            raise missing_parameter(name)
    _check_sources(body)
    _check_input(body.get("input"))
    _check_tools(body.get("tools"))
    _check_strings("include", body.get("include"))
    _check_client_metadata(body.get("client_metadata"))
    return body


def _check_parameter(name: str, value: object, allowed: Collection[str]) -> None:
    if name in _NOT_OVER_HTTP:
        raise unsupported_parameter(name)
    expected = _PARAMETERS.get(name)
    if expected is None or name not in allowed:
        raise unknown_parameter(name)
    types = _PYTHON_TYPES[expected]
    is_number_by_accident = isinstance(value, bool) and bool not in types
    if value is not None and (is_number_by_accident or not isinstance(value, types)):
        raise invalid_type(name, expected, value)


def _check_sources(body: dict[str, Any]) -> None:
    sources = ("input", "previous_response_id", "prompt", "conversation")
    if all(body.get(source) is None for source in sources):
        message = (
            "One of 'input' or 'previous_response_id' or 'prompt' or 'conversation'"
            " must be provided."
        )
        raise bad_request(message, "input", "missing_required_parameter")
    if body.get("previous_response_id") is not None and body.get("conversation") is not None:
        message = (
            "Mutually exclusive parameters: you cannot send both"
            " 'previous_response_id' and 'conversation'."
        )
        raise bad_request(message, None, "mutually_exclusive_parameters")


def _check_input(items: object) -> None:
    """Each item is an object with a type, or a role (an easy message); most are opaque."""
    for index, item in enumerate(items if isinstance(items, list) else ()):
        where = f"input[{index}]"
        if not isinstance(item, dict):
            raise invalid_type(where, _OBJECT, item)
        if "type" not in item and "role" not in item:
            raise missing_parameter(f"{where}.type")
        if "type" in item and not isinstance(item["type"], str):
            raise invalid_type(f"{where}.type", _STRING, item["type"])
        if item.get("type") in _NAMING_A_CALL and not isinstance(item.get("call_id"), str):
            raise missing_parameter(f"{where}.call_id")


def _check_tools(tools: Sequence[object] | None) -> None:
    for index, tool in enumerate(tools or ()):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid_type(where, _OBJECT, tool)
        if not isinstance(tool.get("type"), str):
            raise missing_parameter(f"{where}.type")
        if tool["type"] in ("function", "custom") and not isinstance(tool.get("name"), str):
            raise missing_parameter(f"{where}.name")


def _check_strings(name: str, values: Sequence[object] | None) -> None:
    for index, value in enumerate(values or ()):
        if not isinstance(value, str):
            raise invalid_type(f"{name}[{index}]", _STRING, value)


def _check_client_metadata(metadata: dict[str, object] | None) -> None:
    for name, value in (metadata or {}).items():
        if not isinstance(value, str):
            raise invalid_type(f"client_metadata.{name}", _STRING, value)
