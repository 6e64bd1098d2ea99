"""What a simulated model is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from simulator.items import Item


@dataclass(frozen=True)
class ModelTurn:
    """One turn as the model sees it: the resolved context, the tools on offer, the request."""

    context: Sequence[Item]
    tools: Sequence[Item]
    request: dict[str, Any]
    seal: Callable[[Any], str]
    unseal: Callable[[str], Any]


class Model(Protocol):
    """Answers a turn with the output items to produce.

    Items may leave out `id`, `status` and (of calls) `call_id`; they are filled in.
    """

    def respond(self, turn: ModelTurn) -> list[Item]: ...


def message(text: str) -> Item:
    """An assistant message with one text part."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "content": [part]}


def function_call(name: str, arguments: str) -> Item:
    return {"type": "function_call", "name": name, "arguments": arguments}


def custom_tool_call(name: str, text: str) -> Item:
    return {"type": "custom_tool_call", "name": name, "input": text}
