"""``POST /chat/completions``: the same model behind the older API, as one object or in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from simulator.items import CALL_TYPES, Item, estimated_tokens, new_id, pieces, text_of
from simulator.request_log import LoggedRequest
from simulator.simulator import Exchange
from simulator.stream import Reply, Written, as_sse, json_reply, stream_reply
from simulator.validation import (
    ARRAY,
    BOOLEAN,
    INTEGER,
    NUMBER,
    OBJECT,
    STRING,
    STRING_OR_ARRAY,
    STRING_OR_OBJECT,
    Refusal,
    bad_request,
    check_types,
    invalid_type,
    invalid_value,
    missing_parameter,
    typed,
)

_PARAMETERS = typed(
    {
        STRING: "model prompt_cache_key prompt_cache_retention reasoning_effort "
        "safety_identifier service_tier user verbosity",
        BOOLEAN: "logprobs parallel_tool_calls store stream",
        INTEGER: "max_completion_tokens max_tokens n seed top_logprobs",
        NUMBER: "frequency_penalty presence_penalty temperature top_p",
        OBJECT: "audio logit_bias metadata moderation prediction prompt_cache_options "
        "response_format stream_options web_search_options",
        ARRAY: "functions messages modalities tools",
        STRING_OR_ARRAY: "stop",
        STRING_OR_OBJECT: "function_call tool_choice",
    }
)
_MOST_CHOICES = 128
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")
#: By the type of a call: the type of its item, and the name of its input.
_CALLS = {
    "function": ("function_call", "arguments"),
    "custom": ("custom_tool_call", "input"),
}


def chat(exchange: Exchange) -> Reply:
    """Answer with a completion. Nothing is stored: a request has the whole conversation."""
    request = check_chat(exchange.body)
    engine, entry = exchange.engine, exchange.entry
    if engine.account.models and request["model"] not in engine.account.models:
        message = f"The model `{request['model']}` does not exist or you do not have access to it."
        raise Refusal(404, message, code="model_not_found")
    context = list(items_of(request["messages"]))
    given = turn_request(request)
    output = [engine.generate(context, given) for _choice in range(request.get("n") or 1)]
    completion = Completion(request, context, output)
    entry.context = context
    entry.response_id = completion.id
    if not request.get("stream"):
        return json_reply(completion.whole(), exchange.fault)
    return stream_reply(_written(exchange, completion))


class Completion:
    """The answer to one request.

    :param context: the items of the conversation.
    :param output: the model's items of each choice.
    """

    def __init__(
        self, request: dict[str, Any], context: Sequence[Item], output: Sequence[Sequence[Item]]
    ) -> None:
        self.id = new_id("chatcmpl").replace("_", "-", 1)
        self._created = int(time.time())
        self._request = request
        self._messages = [_message(items) for items in output]
        asked = estimated_tokens([list(context), request.get("tools")])
        answered = estimated_tokens([list(items) for items in output])
        self._usage = {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def whole(self) -> dict[str, Any]:
        """One object."""
        choices = [
            {
                "index": index,
                "message": message,
                "logprobs": None,
                "finish_reason": _finish_reason(message),
            }
            for index, message in enumerate(self._messages)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage}

    def chunks(self) -> Iterator[dict[str, Any]]:
        """The chunks: one choice after the other, and the usage at the end if requested."""
        options = self._request.get("stream_options") or {}
        counted = {"usage": None} if options.get("include_usage") else {}
        head = self._head("chat.completion.chunk")
        for index, message in enumerate(self._messages):
            reason = _finish_reason(message)
            for delta, finish_reason in (*_deltas(message), ({}, reason)):
                choice = {
                    "index": index,
                    "delta": delta,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
                yield {**head, "choices": [choice], **counted}
        if counted:
            yield {**head, "choices": [], "usage": self._usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._request["model"],
            "service_tier": "default",
            "system_fingerprint": None,
        }


def _message(items: Sequence[Item]) -> dict[str, Any]:
    """The assistant's message of one choice."""
    texts = [text_of(item["content"]) for item in items if item["type"] == "message"]
    calls = [tool_call_of(item) for item in items if item["type"] in CALL_TYPES]
    message: dict[str, Any] = {
        "role": "assistant",
        "content": " ".join(texts) if texts else None,
        "refusal": None,
        "annotations": [],
    }
    if calls:
        message["tool_calls"] = calls
    return message


def _finish_reason(message: dict[str, Any]) -> str:
    return "tool_calls" if "tool_calls" in message else "stop"


def _deltas(message: dict[str, Any]) -> Iterator[tuple[dict[str, Any], None]]:
    text = message["content"]
    yield {"role": "assistant", "content": None if text is None else "", "refusal": None}, None
    for piece in pieces(text or ""):
        yield {"content": piece}, None
    for index, call in enumerate(message.get("tool_calls", ())):
        kind = call["type"]
        given = "arguments" if kind == "function" else "input"
        start = {"name": call[kind]["name"], given: ""}
        head = {"index": index, "id": call["id"], "type": kind, kind: start}
        yield {"tool_calls": [head]}, None
        for piece in pieces(call[kind][given]):
            yield {"tool_calls": [{"index": index, kind: {given: piece}}]}, None


def _written(exchange: Exchange, completion: Completion) -> Iterator[Written]:
    """The chunks with the fault applied; events of the Responses API are left out."""
    steps = exchange.fault.rewrite(_encoded(completion, exchange.entry))
    for step in as_sse(step for step in steps if not isinstance(step, dict)):
        exchange.entry.events_sent += isinstance(step, bytes)
        yield step


def _encoded(completion: Completion, entry: LoggedRequest) -> Iterator[bytes]:
    for chunk in completion.chunks():
        yield b"data: %b\n\n" % msgspec.json.encode(chunk)
    entry.outcome = "completed"


def check_chat(body: object) -> dict[str, Any]:
    """Check a request.

    :return: the request.
    :raises Refusal: when the API does not accept it.
    """
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
    """The messages as items of the Responses API."""
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
    """A call of the model as chat messages have it."""
    kind = "custom" if item["type"] == "custom_tool_call" else "function"
    _, given = _CALLS[kind]
    return {
        "id": item["call_id"],
        "type": kind,
        kind: {"name": item["name"], given: item[given]},
    }


def turn_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as the model reads it, in the shape of the Responses API."""
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
    """Every call is answered by a tool message, before any other message."""
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
