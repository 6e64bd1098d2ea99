"""The event sequence of one response, and events as server-sent events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from simulator.items import Item, pieces

Event = dict[str, Any]

DONE = b"data: [DONE]\n\n"

#: Members of a request that a response repeats, with their defaults.
_ECHOED: dict[str, Any] = {
    "background": False,
    "frequency_penalty": 0.0,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "prompt_cache_key": None,
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


#: Defaults of a function tool.
_FUNCTION: dict[str, Any] = {"description": None, "parameters": None, "strict": True}


def response_object(
    request: dict[str, Any],
    *,
    response_id: str,
    created_at: int,
    previous_response_id: str | None,
    store: bool,
) -> dict[str, Any]:
    """A Response object in progress that repeats the request; in the background it is queued.

    :param created_at: unix seconds.
    :param store: whether the response is stored.
    """
    response: dict[str, Any] = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "queued" if request.get("background") else "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": request["model"],
        "output": [],
        "previous_response_id": previous_response_id,
        "reasoning": {"effort": None, "summary": None, **(request.get("reasoning") or {})},
        "store": store,
        "usage": None,
    }
    for name, default in _ECHOED.items():
        value = request.get(name)
        response[name] = default if value is None else value
    response["tools"] = [_whole(tool) for tool in response["tools"]]
    return response


def _whole(tool: Item) -> Item:
    return {**_FUNCTION, **tool} if tool["type"] == "function" else tool


def usage_object(input_tokens: int, cached_tokens: int, output_tokens: int) -> dict[str, Any]:
    """The ``usage`` of a response."""
    return {
        "input_tokens": input_tokens,
        "input_tokens_details": {"cached_tokens": cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": input_tokens + output_tokens,
    }


def completed(
    response: dict[str, Any], output: Sequence[Item], usage: dict[str, Any], completed_at: int
) -> dict[str, Any]:
    """The completed response, with its output and usage."""
    return {
        **response,
        "status": "completed",
        "completed_at": completed_at,
        "output": list(output),
        "usage": usage,
    }


def opening_events(response: dict[str, Any]) -> Iterator[Event]:
    """The events before the first output item."""
    yield {"type": "response.created", "response": response}
    if response["status"] == "queued":
        yield {"type": "response.queued", "response": response}
        response = {**response, "status": "in_progress"}
    yield {"type": "response.in_progress", "response": response}


def item_events(index: int, item: Item) -> Iterator[Event]:
    """The events of one output item."""
    where = {"output_index": index, "item_id": item["id"]}
    start, middle = _growth(item, where)
    yield {"type": "response.output_item.added", "output_index": index, "item": start}
    yield from middle
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _growth(item: Item, where: dict[str, Any]) -> tuple[Item, Iterator[Event]]:
    """The item as it is added, and the events that complete it."""
    kind = item["type"]
    if kind == "message":
        return {**item, "status": "in_progress", "content": []}, _message_events(item, where)
    if kind == "function_call":
        started = {**item, "status": "in_progress", "arguments": ""}
        finished = {"arguments": item["arguments"], "name": item["name"]}
        name = "function_call_arguments"
        return started, _text_events(name, item["arguments"], finished, where)
    if kind == "custom_tool_call":
        started = {**item, "status": "in_progress", "input": ""}
        finished = {"input": item["input"]}
        return started, _text_events("custom_tool_call_input", item["input"], finished, where)
    return item, iter(())


def _message_events(item: Item, where: dict[str, Any]) -> Iterator[Event]:
    for index, part in enumerate(item["content"]):
        here = {**where, "content_index": index}
        empty = {**part, "text": ""}
        yield {"type": "response.content_part.added", **here, "part": empty}
        for piece in pieces(part["text"]):
            delta = {"delta": piece, "logprobs": []}
            yield {"type": "response.output_text.delta", **here, **delta}
        text = {"text": part["text"], "logprobs": []}
        yield {"type": "response.output_text.done", **here, **text}
        yield {"type": "response.content_part.done", **here, "part": part}


def _text_events(
    name: str, text: str, finished: dict[str, Any], where: dict[str, Any]
) -> Iterator[Event]:
    for piece in pieces(text):
        yield {"type": f"response.{name}.delta", **where, "delta": piece}
    yield {"type": f"response.{name}.done", **where, **finished}


def numbered(steps: Iterator[Any], start: int = 0) -> Iterator[Any]:
    """The steps with a sequence number in every event of the API.

    :param start: the first number.
    """
    number = start
    for step in steps:
        if isinstance(step, dict) and has_number(step):
            step = with_number(step, number)
            number += 1
        yield step


def has_number(event: Event) -> bool:
    """Whether it is an event of a response; errors and events about others are not."""
    kind = str(event.get("type", "error"))
    about_others = kind.startswith(("codex.", "responsesapi."))
    return kind not in ("error", "response.metadata") and not about_others


def with_number(event: Event, number: int) -> Event:
    """The event with a sequence number behind its type."""
    rest = {name: value for name, value in event.items() if name != "type"}
    return {"type": event["type"], "sequence_number": number, **rest}


def sse(event: Event) -> bytes:
    """One event as server-sent event text."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), msgspec.json.encode(event))
