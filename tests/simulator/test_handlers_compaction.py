"""Compacting over HTTP: what comes back, who can go on with it, what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted

from simulator.faults import Refuse
from tests.simulator.running import RunningSimulator

COMPACT = "/responses/compact"
CALL = {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "it rained"}
SAID = {"role": "user", "content": "The code word is heron."}


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator()
    yield running
    await running.stop()


def text(response: Any) -> str:
    return response["output"][-1]["content"][0]["text"]  # type: ignore[no-any-return]


@pytest_twisted.ensureDeferred
async def test_a_new_conversation_goes_on_with_what_was_compacted(
    running: RunningSimulator,
) -> None:
    body = {"model": "m", "input": [SAID, CALL, OUTPUT, {"role": "developer", "content": "x"}]}
    made = await running.send("POST", COMPACT, json=body)
    assert made["object"] == "response.compaction"
    assert [item["type"] for item in made["output"]] == ["message", "compaction"]
    assert made["output"][0]["content"] == [{"type": "input_text", "text": SAID["content"]}]
    assert made["usage"]["total_tokens"] > made["usage"]["output_tokens"] > 0
    asks = {"role": "user", "content": "What was the code word, and the result of the tools?"}
    answer = await running.create({"input": [*made["output"], asks]})
    assert text(answer) == 'The code word is heron. Tools answered "it rained".'


@pytest_twisted.ensureDeferred
async def test_only_the_account_itself_opens_it(running: RunningSimulator) -> None:
    made = await running.send("POST", COMPACT, json={"model": "m", "input": [SAID]})
    asks = {"role": "user", "content": "go on"}
    foreign = await running.create({"input": [*made["output"], asks]}, "other")
    assert foreign["error"]["code"] == "invalid_encrypted_content"
    again = {"model": "m", "input": [*made["output"], asks]}
    twice = await running.send("POST", COMPACT, json=again)
    assert [item["type"] for item in twice["output"]] == ["message", "message", "compaction"]


@pytest_twisted.ensureDeferred
async def test_a_stored_conversation_is_compacted_by_its_last_id(running: RunningSimulator) -> None:
    first = await running.create({"input": [SAID]})
    body = {"model": "m", "previous_response_id": first["id"]}
    made = await running.send("POST", COMPACT, json=body)
    assert made["output"][0]["content"][0]["text"] == SAID["content"]
    assert running.simulator.requests[-1].response_id == made["id"]
    chained = await running.create({"input": "x", "previous_response_id": made["id"]})
    assert chained["error"]["code"] == "previous_response_not_found", "it is no response"
    refused = await running.send("POST", COMPACT, "stateless", json=body)
    assert refused["error"]["code"] == "unsupported_parameter"


@pytest_twisted.ensureDeferred
async def test_what_is_not_compacted(running: RunningSimulator) -> None:
    cases: list[tuple[dict[str, Any], str | None, str | None]] = [
        ({"input": [SAID]}, "missing_required_parameter", "model"),
        ({"model": "m"}, "missing_required_parameter", "input"),
        ({"model": "m", "input": [SAID], "stream": True}, "unknown_parameter", "stream"),
        ({"model": "m", "input": [OUTPUT]}, None, "input"),
    ]
    for body, code, param in cases:
        error = (await running.send("POST", COMPACT, json=body))["error"]
        assert (error["code"], error["param"]) == (code, param)
    running.simulator.faults.push("stateful", Refuse.rate_limited(), to="compact")
    limited = await running.send("POST", COMPACT, json={"model": "m", "input": [SAID]})
    assert limited["error"]["code"] == "rate_limit_exceeded"
