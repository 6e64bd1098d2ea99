"""`POST /chat/completions`: the same model behind the older API, as one object or in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from simulator.chat_messages import check_chat, items_of, tool_call_of, turn_request
from simulator.exchange import Exchange
from simulator.items import CALL_TYPES, Item, estimated_tokens, new_id, pieces, text_of
from simulator.refusals import Refusal
from simulator.replies import Reply, as_sse, json_reply, stream_reply
from simulator.request_log import LoggedRequest
from simulator.stream import Written


def chat(exchange: Exchange) -> Reply:
    """A completion. Nothing is stored: every request brings the whole conversation."""
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
    """What one request is answered with; `output` has the model's items of each choice."""

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
        """The choices one after another, and the usage at the end if it was asked for."""
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
    """The chunks as the fault leaves them; events of the Responses API have no place here."""
    steps = exchange.fault.rewrite(_encoded(completion, exchange.entry))
    for step in as_sse(step for step in steps if not isinstance(step, dict)):
        exchange.entry.events_sent += isinstance(step, bytes)
        yield step


def _encoded(completion: Completion, entry: LoggedRequest) -> Iterator[bytes]:
    for chunk in completion.chunks():
        yield b"data: %b\n\n" % msgspec.json.encode(chunk)
    entry.outcome = "completed"
