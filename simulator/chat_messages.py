"""Chat messages: strict checks of one request, and the messages as items of a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simulator.items import Item
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
    invalid_value,
    missing_parameter,
)

_PARAMETERS: Mapping[str, str] = {
    "audio": OBJECT,
    "frequency_penalty": NUMBER,
    "function_call": STRING_OR_OBJECT,
    "functions": ARRAY,
    "logit_bias": OBJECT,
    "logprobs": BOOLEAN,
    "max_completion_tokens": INTEGER,
    "max_tokens": INTEGER,
    "messages": ARRAY,
    "metadata": OBJECT,
    "modalities": ARRAY,
    "model": STRING,
    "moderation": OBJECT,
    "n": INTEGER,
    "parallel_tool_calls": BOOLEAN,
    "prediction": OBJECT,
    "presence_penalty": NUMBER,
    "prompt_cache_key": STRING,
    "prompt_cache_options": OBJECT,
    "prompt_cache_retention": STRING,
    "reasoning_effort": STRING,
    "response_format": OBJECT,
    "safety_identifier": STRING,
    "seed": INTEGER,
    "service_tier": STRING,
    "stop": STRING_OR_ARRAY,
    "store": BOOLEAN,
    "stream": BOOLEAN,
    "stream_options": OBJECT,
    "temperature": NUMBER,
    "tool_choice": STRING_OR_OBJECT,
    "tools": ARRAY,
    "top_logprobs": INTEGER,
    "top_p": NUMBER,
    "user": STRING,
    "verbosity": STRING,
    "web_search_options": OBJECT,
}
_MOST_CHOICES = 128
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
#: How a call's own object is named, by its type, and what its input is called there and here.
_CALLS = {
    "function": ("function_call", "arguments"),
    "custom": ("custom_tool_call", "input"),
}


def check_chat(body: object) -> dict[str, Any]:
    """The request, if it is one the API accepts; else a Refusal."""
    request = check_types(body, _PARAMETERS)
    for name in ("model", "messages"):
        if request.get(name) in (None, ""):
            raise missing_parameter(name)
    messages = request["messages"]
    if not messages:
        message = (
            "Invalid 'messages': empty array. Expected an array with minimum length 1,"
            " but got an empty array instead."
        )
        raise bad_request(message, "messages", "empty_array")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    _check_pairs(messages)
    _check_tools(request)
    if not 1 <= (request.get("n") or 1) <= _MOST_CHOICES:
        message = f"Invalid 'n': expected a value between 1 and {_MOST_CHOICES}."
        raise bad_request(message, "n")
    if request.get("stream_options") is not None and not request.get("stream"):
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise bad_request(message, "stream_options")
    return request


def items_of(messages: Sequence[Item]) -> Iterator[Item]:
    """The messages as the items they would be in the Responses API."""
    kinds: dict[str, str] = {}
    for message in messages:
        if message["role"] == "tool":
            call_id = message["tool_call_id"]
            kind = f"{kinds[call_id]}_output"
            yield {"type": kind, "call_id": call_id, "output": message["content"]}
            continue
        if message.get("content") is not None:
            yield {"type": "message", "role": message["role"], "content": message["content"]}
        for call in message.get("tool_calls") or ():
            kind, given = _CALLS[call["type"]]
            kinds[call["id"]] = kind
            tool = call[call["type"]]
            yield {"type": kind, "call_id": call["id"], "name": tool["name"], given: tool[given]}


def tool_call_of(item: Item) -> Item:
    """A call the model made, as chat messages carry it."""
    kind = "custom" if item["type"] == "custom_tool_call" else "function"
    _, given = _CALLS[kind]
    return {
        "id": item["call_id"],
        "type": kind,
        kind: {"name": item["name"], given: item[given]},
    }


def turn_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the model reads of the request, in the shape of the Responses API."""
    choice = request.get("tool_choice")
    return {
        "model": request["model"],
        "tools": [_flat(tool) for tool in request.get("tools") or ()],
        "tool_choice": _flat(choice) if isinstance(choice, dict) else choice,
        "parallel_tool_calls": request.get("parallel_tool_calls"),
    }


def _flat(tool: Item) -> Item:
    kind = tool.get("type")
    inner = tool.get(kind) if isinstance(kind, str) else None
    return {"type": kind, **inner} if isinstance(inner, dict) else tool


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, dict):
        raise invalid_type(where, OBJECT, message)
    role = message.get("role")
    if role is None:
        raise missing_parameter(f"{where}.role")
    if role not in _ROLES:
        raise invalid_value(f"{where}.role", str(role), _ROLES)
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, f"{where}.tool_calls", role)
    content = message.get("content")
    if content is None and not (role == "assistant" and (calls or message.get("refusal"))):
        expected = "a string or an array of content parts"
        raise invalid_type(f"{where}.content", expected, content)
    if content is not None:
        _check_content(content, f"{where}.content")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise missing_parameter(f"{where}.tool_call_id")


def _check_content(content: object, where: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise invalid_type(where, STRING_OR_ARRAY, content)
    for index, part in enumerate(content):
        if not isinstance(part, dict):
            raise invalid_type(f"{where}[{index}]", OBJECT, part)
        if not isinstance(part.get("type"), str):
            raise missing_parameter(f"{where}[{index}].type")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise missing_parameter(f"{where}[{index}].text")


def _check_calls(calls: object, where: str, role: str) -> None:
    if role != "assistant":
        raise bad_request("'tool_calls' may only be set for assistant messages.", where)
    if not isinstance(calls, list):
        raise invalid_type(where, ARRAY, calls)
    if not calls:
        raise bad_request(f"Invalid '{where}': empty array.", where, "empty_array")
    for index, call in enumerate(calls):
        here = f"{where}[{index}]"
        if not isinstance(call, dict):
            raise invalid_type(here, OBJECT, call)
        if not isinstance(call.get("id"), str):
            raise missing_parameter(f"{here}.id")
        if call.get("type") not in _CALLS:
            raise invalid_value(f"{here}.type", str(call.get("type")), tuple(_CALLS))
        tool = call.get(call["type"])
        if not isinstance(tool, dict):
            raise missing_parameter(f"{here}.{call['type']}")
        for name in ("name", _CALLS[call["type"]][1]):
            if not isinstance(tool.get(name), str):
                raise missing_parameter(f"{here}.{call['type']}.{name}")


def _check_pairs(messages: Sequence[Item]) -> None:
    """Tool messages follow the calls they answer, and every call is answered before the rest."""
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                text = (
                    "Invalid parameter: messages with role 'tool' must be a response to a"
                    " preceeding message with 'tool_calls'."
                )
                raise bad_request(text, f"messages.[{index}].role")
            open_calls.remove(message["tool_call_id"])
            continue
        _check_none_open(open_calls, index)
        open_calls = [call["id"] for call in message.get("tool_calls") or ()]
    _check_none_open(open_calls, len(messages))


def _check_none_open(call_ids: Sequence[str], index: int) -> None:
    if call_ids:
        text = (
            "An assistant message with 'tool_calls' must be followed by tool messages responding"
            " to each 'tool_call_id'. The following tool_call_ids did not have response messages:"
            f" {', '.join(call_ids)}"
        )
        raise bad_request(text, f"messages.[{index}].role")


def _check_tools(request: Mapping[str, Any]) -> None:
    for index, tool in enumerate(request.get("tools") or ()):
        where = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise invalid_type(where, OBJECT, tool)
        kind = tool.get("type")
        if kind not in _CALLS:
            raise invalid_value(f"{where}.type", str(kind), tuple(_CALLS))
        inner = tool.get(kind)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise missing_parameter(f"{where}.{kind}.name")
    if request.get("tool_choice") is not None and not request.get("tools"):
        message = "'tool_choice' is only allowed when 'tools' are specified."
        raise bad_request(message, "tool_choice")
