"""Realistic Responses items and event sequences for scripted upstreams (protocol.md §4)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

_numbers = itertools.count(1)


def new_id(prefix: str) -> str:
    """An id of the usual form, never the same twice in one test run."""
    return f"{prefix}_{next(_numbers):06d}"


def user(text: str, **extra: Any) -> Json:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "user", "content": content, **extra}


def developer(text: str, **extra: Any) -> Json:
    content = [{"type": "input_text", "text": text}]
    return {"type": "message", "role": "developer", "content": content, **extra}


def call_output(call_id: str, output: Any = "ok", **extra: Any) -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": output, **extra}


def text_item(text: str = "hello", item_id: str | None = None) -> Json:
    return {
        "id": item_id or new_id("msg"),
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
    }


def call_item(call_id: str | None = None, name: str = "shell", arguments: str = "{}") -> Json:
    return {
        "id": new_id("fc"),
        "type": "function_call",
        "status": "completed",
        "name": name,
        "arguments": arguments,
        "call_id": call_id or new_id("call"),
    }


def custom_call_item(call_id: str | None = None, name: str = "exec", text: str = "1") -> Json:
    return {
        "id": new_id("ctc"),
        "type": "custom_tool_call",
        "status": "completed",
        "name": name,
        "input": text,
        "call_id": call_id or new_id("call"),
    }


def reasoning_item(encrypted: str | None = "gAAAA-sealed", summary: str | None = None) -> Json:
    parts = [] if summary is None else [{"type": "summary_text", "text": summary}]
    item: Json = {"id": new_id("rs"), "type": "reasoning", "summary": parts}
    if encrypted is not None:
        item["encrypted_content"] = encrypted
    return item


def compaction_item(encrypted: str = "gAAAA-compact") -> Json:
    return {"id": new_id("cmp"), "type": "compaction", "encrypted_content": encrypted}


USAGE: Json = {
    "input_tokens": 12,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 4,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 16,
}


def response_object(
    response_id: str,
    *,
    status: str = "in_progress",
    output: list[Json] | None = None,
    previous_response_id: str | None = None,
    model: str = "gpt-5.5",
    store: bool = True,
    **extra: Any,
) -> Json:
    """A full Response object; `extra` overrides any member."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": 1795326221,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": output if output is not None else [],
        "parallel_tool_calls": False,
        "previous_response_id": previous_response_id,
        "reasoning": {"effort": "medium", "summary": None},
        "store": store,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": USAGE if status != "in_progress" else None,
        "metadata": {},
        **extra,
    }


def opening(response: Json) -> list[Json]:
    """The two events that come before any output."""
    return [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
    ]


def item_events(item: Json, index: int, pieces: int = 2) -> Iterator[Json]:
    """Everything from output_item.added to output_item.done of one item."""
    at = {"output_index": index, "item_id": item.get("id")}
    started = {**item, "status": "in_progress"} if "status" in item else dict(item)
    if item["type"] == "message":
        started["content"] = []
    elif item["type"] == "function_call":
        started["arguments"] = ""
    yield {"type": "response.output_item.added", "output_index": index, "item": started}
    if item["type"] == "message":
        part = item["content"][0]
        at = {**at, "content_index": 0}
        empty = {**part, "text": ""}
        yield {"type": "response.content_part.added", **at, "part": empty}
        for piece in _pieces(part["text"], pieces):
            yield {"type": "response.output_text.delta", **at, "delta": piece, "logprobs": []}
        yield {"type": "response.output_text.done", **at, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **at, "part": part}
    elif item["type"] == "function_call":
        for piece in _pieces(item["arguments"], pieces):
            yield {"type": "response.function_call_arguments.delta", **at, "delta": piece}
        done = "response.function_call_arguments.done"
        yield {"type": done, **at, "arguments": item["arguments"]}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _pieces(text: str, count: int) -> list[str]:
    size = max(1, -(-len(text) // count))
    return [text[at : at + size] for at in range(0, len(text), size)] or [""]


def numbered(events: list[Json], start: int = 0) -> list[Json]:
    """The same events with a sequence_number each."""
    return [
        {"type": event["type"], "sequence_number": number, **event}
        for number, event in enumerate(events, start)
    ]


def turn_events(
    items: list[Json],
    response_id: str,
    *,
    previous_response_id: str | None = None,
    store: bool = True,
    model: str = "gpt-5.5",
    empty_output: bool = False,
    pieces: int = 2,
    status: str = "completed",
    **extra: Any,
) -> list[Json]:
    """One complete turn: created, in_progress, each item, terminal, numbered from 0."""
    about: Json = {"previous_response_id": previous_response_id, "store": store, "model": model}
    events = opening(response_object(response_id, **about))
    for index, item in enumerate(items):
        events.extend(item_events(item, index, pieces))
    output = [] if empty_output else list(items)
    final = response_object(response_id, status=status, output=output, **about, **extra)
    events.append({"type": f"response.{status}", "response": final})
    return numbered(events)


def error_body(
    code: str | None, message: str, *, kind: str = "invalid_request_error", param: str | None = None
) -> Json:
    """The HTTP error body of the platform API."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
