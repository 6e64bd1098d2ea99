"""The OpenAI Python SDK: a tool loop as its documentation writes it.

Modes: `whole`, `stream` or `websocket`, then what the next request brings: `-chained` names the
response before it, `-full` repeats all items.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from openai import OpenAI
from task import Task, perform

TOOL: Any = {
    "type": "function",
    "name": "record_round",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"number": {"type": "integer"}},
        "required": ["number"],
        "additionalProperties": False,
    },
}

Ask = Callable[..., Any]


def ask_whole(client: OpenAI, **request: Any) -> Any:
    return client.responses.create(**request)


def ask_streaming(client: OpenAI, **request: Any) -> Any:
    with client.responses.stream(**request) as stream:
        return stream.get_final_response()


def ask_websocket(connection: Any, **request: Any) -> Any:
    connection.response.create(**request)
    while True:
        event = connection.recv()
        if event.type == "response.completed":
            return event.response
        if event.type in ("error", "response.failed", "response.incomplete"):
            raise RuntimeError(f"the turn ended with {event}")


def converse(ask: Ask, task: Task, chained: bool) -> Iterator[str]:
    history: list[Any] = []
    previous: dict[str, str] = {}
    for prompt in task.prompts:
        new: list[Any] = [{"role": "user", "content": prompt}]
        while new:
            history += new
            response = ask(
                model=task.model, tools=[TOOL], input=new if chained else history, **previous
            )
            if chained:
                previous = {"previous_response_id": response.id}
            history += [item.to_dict(mode="json") for item in response.output]
            new = [
                {
                    "type": "function_call_output",
                    "call_id": item.call_id,
                    "output": task.record_round(**json.loads(item.arguments)),
                }
                for item in response.output
                if item.type == "function_call"
            ]
        yield response.output_text


def run(task: Task) -> list[str]:
    way, brings = task.mode.split("-")
    client = OpenAI(base_url=task.base_url, api_key=task.key, max_retries=0)
    with ExitStack() as stack:
        ask: Ask
        if way == "websocket":
            ask = functools.partial(ask_websocket, stack.enter_context(client.responses.connect()))
        else:
            ask = functools.partial(ask_whole if way == "whole" else ask_streaming, client)
        return list(converse(ask, task, brings == "chained"))


perform(run)
