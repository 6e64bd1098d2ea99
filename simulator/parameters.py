"""Strict checks of a request's top level: known names, right types, what must be there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from simulator.parameter_types import (
    ARRAY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    STRING_OR_ARRAY,
    STRING_OR_OBJECT,
    check_types,
)
from simulator.refusals import (
    bad_request,
    invalid_type,
    missing_parameter,
    unsupported_parameter,
)

_PARAMETERS: dict[str, str] = {
    "access_programs": OBJECT,
    "background": BOOLEAN,
    "background_options": OBJECT,
    "client_metadata": OBJECT,
    "context_management": ARRAY,
    "conversation": STRING_OR_OBJECT,
    "frequency_penalty": NUMBER,
    "image": OBJECT,
    "include": ARRAY,
    "input": STRING_OR_ARRAY,
    "instructions": STRING,
    "max_output_tokens": INTEGER,
    "max_tool_calls": INTEGER,
    "metadata": OBJECT,
    "model": STRING,
    "moderation": OBJECT,
    "parallel_tool_calls": BOOLEAN,
    "personality": STRING,
    "presence_penalty": NUMBER,
    "previous_response_id": STRING,
    "prompt": OBJECT,
    "prompt_cache_key": STRING,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": STRING,
    "reasoning": OBJECT,
    "safety_identifier": STRING,
    "service_tier": STRING,
    "store": BOOLEAN,
    "stream": BOOLEAN,
    "stream_options": OBJECT,
    "temperature": NUMBER,
    "text": OBJECT,
    "tool_choice": STRING_OR_OBJECT,
    "tools": ARRAY,
    "top_logprobs": INTEGER,
    "top_p": NUMBER,
    "truncation": STRING,
    "user": STRING,
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
    for name in _NOT_OVER_HTTP:
        if isinstance(body, dict) and name in body:
            raise unsupported_parameter(name)
    body = check_types(body, {name: _PARAMETERS[name] for name in allowed})
    for name in required:
        if body.get(name) in (None, ""):
            raise missing_parameter(name)
    _check_sources(body)
    _check_input(body.get("input"))
    _check_tools(body.get("tools"))
    _check_strings("include", body.get("include"))
    _check_client_metadata(body.get("client_metadata"))
    return body


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
            raise invalid_type(where, OBJECT, item)
        if "type" not in item and "role" not in item:
            raise missing_parameter(f"{where}.type")
        if "type" in item and not isinstance(item["type"], str):
            raise invalid_type(f"{where}.type", STRING, item["type"])
        if item.get("type") in _NAMING_A_CALL and not isinstance(item.get("call_id"), str):
            raise missing_parameter(f"{where}.call_id")


def _check_tools(tools: Sequence[object] | None) -> None:
    for index, tool in enumerate(tools or ()):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid_type(where, OBJECT, tool)
        if not isinstance(tool.get("type"), str):
            raise missing_parameter(f"{where}.type")
        if tool["type"] in ("function", "custom") and not isinstance(tool.get("name"), str):
            raise missing_parameter(f"{where}.name")


def _check_strings(name: str, values: Sequence[object] | None) -> None:
    for index, value in enumerate(values or ()):
        if not isinstance(value, str):
            raise invalid_type(f"{name}[{index}]", STRING, value)


def _check_client_metadata(metadata: dict[str, object] | None) -> None:
    for name, value in (metadata or {}).items():
        if not isinstance(value, str):
            raise invalid_type(f"client_metadata.{name}", STRING, value)
