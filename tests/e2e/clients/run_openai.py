"""The OpenAI Python SDK: a tool loop as its documentation writes it.

Modes: `whole`, `stream` or `websocket`, then what the next request brings: `-chained` names the
response before it, `-full` repeats all items, `-sealed` repeats them unstored and encrypted.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

from openai import OpenAI
from task import Task, perform
from websockets.exceptions import ConnectionClosed

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


class Socket:
    """A WebSocket that is opened again when it was closed; then the request is sent again."""

    def __init__(self, client: OpenAI) -> None:
        self._client = client
        self._connection: Any = None

    def ask(self, **request: Any) -> Any:
        for pause in (0.0, 0.5, 1.0, 2.0, 4.0):
            time.sleep(pause)
            try:
                return self._asked(request)
            except (ConnectionClosed, OSError):
                self.close()
        raise RuntimeError("the gateway cannot be reached")

    def _asked(self, request: Any) -> Any:
        if self._connection is None:
            self._connection = self._client.responses.connect().enter()
        self._connection.response.create(**request)
        while True:
            event = self._connection.recv()
            if event.type == "response.completed":
                return event.response
            if event.type in ("error", "response.failed", "response.incomplete"):
                raise RuntimeError(f"the turn ended with {event}")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def converse(ask: Ask, task: Task, brings: str) -> Iterator[str]:
    chained, sealed = brings == "chained", brings == "sealed"
    options = {"store": False, "include": ["reasoning.encrypted_content"]} if sealed else {}
    history: list[Any] = []
    previous: dict[str, str] = {}
    for prompt in task.prompts:
        new: list[Any] = [{"role": "user", "content": prompt}]
        while new:
            history += new
            given = new if chained else history
            response = ask(model=task.model, tools=[TOOL], input=given, **options, **previous)
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
            ask = stack.enter_context(closing(Socket(client))).ask
        else:
            ask = functools.partial(ask_whole if way == "whole" else ask_streaming, client)
        return list(converse(ask, task, brings))


perform(run)
