"""Chat completions over HTTP: whole and in chunks, tools, and what is refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.web.client import ResponseFailed

from simulator import SimulatedAccount
from simulator.chat import check_chat, items_of
from simulator.faults import CloseAfter, EmptyOutput, Refuse
from simulator.validation import Refusal, check_context
from tests.simulator.running import RunningSimulator

CHAT = "/chat/completions"
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}
SAY = {"type": "custom", "custom": {"name": "say_it"}}
HI = {"role": "user", "content": "hi"}


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(
        accounts=[SimulatedAccount("stateful"), SimulatedAccount("b", models=("m",))]
    )
    yield running
    await running.stop()


async def ask(running: RunningSimulator, *messages: Any, **more: Any) -> Any:
    body = {"model": "m", "messages": list(messages), **more}
    return await running.send("POST", CHAT, json=body)


async def chunks(running: RunningSimulator, *messages: Any, **more: Any) -> list[dict[str, Any]]:
    body = {"model": "m", "messages": list(messages), "stream": True, **more}
    response = await running.request("POST", CHAT, json=body)
    assert response.headers.getRawHeaders("content-type") == ["text/event-stream; charset=utf-8"]
    lines = (await response.text()).strip().split("\n\n")
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest_twisted.ensureDeferred
async def test_a_conversation_goes_on_by_its_messages(running: RunningSimulator) -> None:
    said = {"role": "user", "content": [{"type": "text", "text": "The code word is heron."}]}
    first = await ask(running, {"role": "system", "content": "Be kind."}, said)
    assert first["object"] == "chat.completion"
    message = first["choices"][0]["message"]
    assert first["choices"][0]["finish_reason"] == "stop"
    answer = await ask(
        running, said, message, {"role": "user", "content": "What was the code word?"}
    )
    assert answer["choices"][0]["message"]["content"] == "The code word is heron."
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    entry = running.simulator.requests[-1]
    assert (entry.endpoint, entry.outcome, entry.response_id) == ("chat", "completed", answer["id"])
    assert len(entry.context) == 3


@pytest.mark.parametrize(("tool", "kind"), [(LOOK, "function"), (SAY, "custom")])
@pytest_twisted.ensureDeferred
async def test_tools_are_called_and_answered(
    running: RunningSimulator, tool: Any, kind: str
) -> None:
    name = tool[kind]["name"]
    order = {"role": "user", "content": f'Please call {name} with "the garden"'}
    first = await ask(running, order, tools=[tool])
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    message = first["choices"][0]["message"]
    (call,) = message["tool_calls"]
    assert (call["type"], call[kind]["name"]) == (kind, name)
    assert "the garden" in call[kind]["arguments" if kind == "function" else "input"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "roses"}
    second = await ask(running, order, message, result, tools=[tool])
    assert "roses" in second["choices"][0]["message"]["content"]


@pytest_twisted.ensureDeferred
async def test_chunks_joined_are_the_whole_message(running: RunningSimulator) -> None:
    whole = await ask(running, HI)
    pieces = await chunks(running, HI, stream_options={"include_usage": True})
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert len({piece["id"] for piece in pieces}) == 1
    assert pieces[-1]["choices"] == []
    assert pieces[-1]["usage"] == whole["usage"]
    assert {piece["usage"] for piece in pieces[:-1]} == {None}
    deltas = [piece["choices"][0]["delta"] for piece in pieces[:-1]]
    assert deltas[0]["role"] == "assistant"
    joined = "".join(delta.get("content", "") for delta in deltas)
    assert joined == whole["choices"][0]["message"]["content"]
    assert pieces[-2]["choices"][0]["finish_reason"] == "stop"
    assert running.simulator.requests[-1].outcome == "completed"


@pytest_twisted.ensureDeferred
async def test_chunks_of_calls_and_of_several_choices(running: RunningSimulator) -> None:
    order = {"role": "user", "content": 'call look for "the garden"'}
    pieces = await chunks(running, order, tools=[LOOK], n=2)
    assert all("usage" not in piece for piece in pieces)
    for index in range(2):
        choices = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == index]
        calls = [call for each in choices for call in each["delta"].get("tool_calls", ())]
        assert calls[0]["function"]["name"] == "look"
        arguments = "".join(call["function"]["arguments"] for call in calls)
        assert json.loads(arguments) == {"place": "the garden"}
        assert choices[-1]["finish_reason"] == "tool_calls"


CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ],
}


def result(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": "seen"}


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": [HI]}, "missing_required_parameter", "model"),
        ({"model": "m"}, "missing_required_parameter", "messages"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": [HI], "input": "hi"}, "unknown_parameter", "input"),
        ({"messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "me", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "invalid_type", "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "invalid_type", "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "missing_required_parameter",
            "messages[0].content[0].text",
        ),
        ({"messages": [HI, result("c1")]}, None, "messages.[1].role"),
        ({"messages": [HI, CALLING]}, None, "messages.[2].role"),
        ({"messages": [CALLING, result("c1"), HI, result("c2")]}, None, "messages.[2].role"),
        ({"messages": [CALLING, result("c1"), result("c1")]}, None, "messages.[2].role"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "missing_required_parameter",
            "messages[0].tool_call_id",
        ),
        ({"messages": [{**HI, "tool_calls": []}]}, None, "messages[0].tool_calls"),
        ({"messages": [HI], "tool_choice": "auto"}, None, "tool_choice"),
        (
            {"messages": [HI], "tools": [{"type": "function", "name": "flat"}]},
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        ({"messages": [HI], "tools": [{"type": "web"}]}, "invalid_value", "tools[0].type"),
        ({"messages": [HI], "n": 129}, None, "n"),
        ({"messages": [HI], "stream_options": {}}, None, "stream_options"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_chats_that_are_refused(
    running: RunningSimulator, body: Any, code: str, param: str
) -> None:
    body = body if "model" in body or param == "model" else {"model": "m", **body}
    response = await running.request("POST", CHAT, json=body)
    assert response.code == 400
    error = (await response.json())["error"]
    assert (error["code"], error["param"]) == (code, param)


@pytest_twisted.ensureDeferred
async def test_models_and_faults(running: RunningSimulator) -> None:
    unknown = {"model": "other", "messages": [HI]}
    lost = await running.request("POST", CHAT, "b", json=unknown)
    assert lost.code == 404
    assert (await lost.json())["error"]["code"] == "model_not_found"
    running.simulator.faults.push("stateful", Refuse.rate_limited(), CloseAfter(2), EmptyOutput())
    assert (await ask(running, HI))["error"]["code"] == "rate_limit_exceeded"
    with pytest.raises(ResponseFailed):
        await chunks(running, HI)
    entry = running.simulator.requests[-1]
    assert (entry.outcome, entry.events_sent) == ("dropped", 2)
    assert (await ask(running, HI))["choices"], "faults of responses mean nothing here"


@given(st.lists(st.sampled_from([HI, CALLING, result("c1"), result("c2")]), min_size=1, max_size=6))
def test_what_is_accepted_is_a_sound_conversation(messages: list[Any]) -> None:
    """Chat messages that pass are paired as the Responses API wants its items."""
    try:
        check_chat({"model": "m", "messages": messages})
    except Refusal:
        return
    check_context(list(items_of(messages)))
