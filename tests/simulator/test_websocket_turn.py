"""Interrupts, cancels and steers of responses on the simulator's sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted

from simulator import SimulatedAccount
from simulator.accounts import SocketOptions
from simulator.faults import PauseAfter, SilenceAfter, TerminalAfter, Together
from tests.simulator.running import RunningSimulator, until
from tests.simulator.websocket_client import SocketClient, opened

LOOKUP = {
    "type": "function",
    "name": "lookup",
    "parameters": {"type": "object", "properties": {}},
}
UNSTORED = {"store": False, "input": "hello"}
ACCOUNTS = [
    SimulatedAccount("stateful"),
    SimulatedAccount("deaf", websocket=SocketOptions(interrupts=False, steers=False)),
    SimulatedAccount("cancelling", websocket=SocketOptions(cancels=True)),
]


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(accounts=ACCOUNTS)
    yield running
    await running.stop()


async def begun(
    running: RunningSimulator,
    client: SocketClient,
    *,
    after: int = 5,
    account: str = "stateful",
    **members: Any,
) -> str:
    """A response that waits after some events; its id."""
    running.simulator.faults.push(account, PauseAfter(60, after), to="create")
    client.create(store=False, **members)
    events = [await client.event() for _ in range(after)]
    response_id = events[0]["response"]["id"]
    assert isinstance(response_id, str)
    return response_id


# ---- interrupt


@pytest_twisted.ensureDeferred
async def test_an_interrupted_response_can_be_continued(running: RunningSimulator) -> None:
    client = await opened(running)
    response_id = await begun(running, client, given="The code word is Lychee.")
    client.says(type="response.interrupt", response_id=response_id, mode="discard_partial_items")
    accepted, item, last = await client.events()
    assert accepted == {
        "type": "response.interrupt.accepted",
        "sequence_number": 5,
        "response_id": response_id,
    }
    assert (item["type"], item["output_index"]) == ("response.output_item.interrupted", 0)
    assert (last["type"], last["sequence_number"]) == ("response.incomplete", 7)
    response = last["response"]
    assert (response["id"], response["status"], response["output"]) == (
        response_id,
        "incomplete",
        [],
    )
    assert response["incomplete_details"] == {"reason": "interrupted"}
    assert response["usage"]["output_tokens"] == 0
    again = await client.done(
        "What was the code word?", store=False, previous_response_id=response_id
    )
    assert "Lychee" in again["output"][0]["content"][0]["text"]
    assert running.simulator.requests[-2].outcome == "incomplete"


@pytest_twisted.ensureDeferred
async def test_finished_items_stay(running: RunningSimulator) -> None:
    client = await opened(running)
    response_id = await begun(running, client, after=4, reasoning={"effort": "low"}, stream_id="a")
    client.says(type="response.interrupt", response_id=response_id)
    last = (await client.events(lane="a"))[-1]
    assert [item["type"] for item in last["response"]["output"]] == ["reasoning"]


@pytest_twisted.ensureDeferred
async def test_an_interrupt_that_comes_too_late(running: RunningSimulator) -> None:
    client = await opened(running)
    first = await client.done()
    client.says(type="response.interrupt", response_id=first["id"])
    failed = await client.event()
    assert (failed["type"], failed["response_id"]) == ("response.interrupt.failed", first["id"])
    assert failed["error"]["code"] == "response_not_active"
    client.says(type="response.interrupt")
    assert (await client.event())["error"]["param"] == "response_id"
    client.says(type="response.interrupt", response_id=3)
    assert (await client.event())["error"]["param"] == "response_id"


@pytest_twisted.ensureDeferred
async def test_an_interrupt_before_the_response_began_fails(running: RunningSimulator) -> None:
    client = await opened(running)
    running.simulator.faults.push("stateful", SilenceAfter(0))
    client.create()
    await until(lambda: running.simulator.requests[-1].response_id)
    client.says(type="response.interrupt", response_id=running.simulator.requests[-1].response_id)
    assert (await client.event())["type"] == "response.interrupt.failed"


@pytest_twisted.ensureDeferred
async def test_the_next_turn_of_the_lane_goes_on(running: RunningSimulator) -> None:
    client = await opened(running)
    response_id = await begun(running, client)
    client.create("second")
    client.says(type="response.interrupt", response_id=response_id)
    assert (await client.events())[-1]["type"] == "response.incomplete"
    assert (await client.events())[-1]["type"] == "response.completed"


@pytest_twisted.ensureDeferred
async def test_an_account_can_ignore_interrupts_and_refuse_steers(
    running: RunningSimulator,
) -> None:
    client = await opened(running, "deaf")
    response_id = await begun(running, client, account="deaf")
    client.says(type="response.interrupt", response_id=response_id)
    client.says(type="response.steer", previous_response_id=response_id, input="also")
    failed = await client.event()
    assert failed["error"]["code"] == "steering_not_supported"
    assert failed["sequence_number"] == 5


@pytest_twisted.ensureDeferred
async def test_an_account_can_know_cancel(running: RunningSimulator) -> None:
    client = await opened(running, "cancelling")
    await begun(running, client, account="cancelling")
    client.says(type="response.cancel", stream_id="other")
    client.says(type="response.cancel")
    events = await client.events()
    assert [event["type"] for event in events] == [
        "response.output_item.interrupted",
        "response.incomplete",
    ]


# ---- steer


@pytest_twisted.ensureDeferred
async def test_a_steered_response_has_a_successor(running: RunningSimulator) -> None:
    client = await opened(running)
    running.simulator.faults.push("stateful", PauseAfter(0.3, 5), to="create")
    client.create("The code word is Lychee.", store=False, stream_id="a", reasoning={})
    response_id = (await client.event())["response"]["id"]
    client.says(
        type="response.steer",
        previous_response_id=response_id,
        input="What was the code word?",
    )
    events = await client.events("response.completed", lane="a")
    kinds = [event["type"] for event in events]
    accepted = events[kinds.index("response.steer.accepted")]
    assert accepted["steer"]["previous_response_id"] == response_id
    assert accepted["steer"]["id"].startswith("steer_")
    end = kinds.index("response.incomplete")
    assert events[end]["response"]["incomplete_details"] == {"reason": "steered"}
    assert [item["type"] for item in events[end]["response"]["output"]] == [
        "reasoning",
        "message",
    ]
    assert kinds[end - 1] == "response.output_item.done"
    numbers = [event["sequence_number"] for event in events[: end + 1]]
    assert numbers == list(range(1, end + 2))
    successor = events[end + 1]
    assert (successor["type"], successor["sequence_number"]) == ("response.created", 0)
    assert successor["response"]["previous_response_id"] == response_id
    assert successor["response"]["store"] is False
    final = events[-1]["response"]
    assert "Lychee" in final["output"][-1]["content"][0]["text"]
    await client.done(store=False, previous_response_id=final["id"], stream_id="a")
    creates = [each for each in running.simulator.requests if each.endpoint == "create"]
    assert len(creates) == 2, "the successor is no request of the client"


@pytest_twisted.ensureDeferred
async def test_a_steer_waits_for_the_output_of_a_tool(running: RunningSimulator) -> None:
    client = await opened(running)
    running.simulator.faults.push("stateful", PauseAfter(0.3, 3), to="create")
    client.create("Call lookup once.", store=False, tools=[LOOKUP])
    response_id = (await client.event())["response"]["id"]
    client.says(type="response.steer", previous_response_id=response_id, input="Be quick.")
    events = await client.events("response.steer.pending")
    assert events[-2]["type"] == "response.completed"
    call = events[-2]["response"]["output"][0]
    pending = events[-1]
    assert pending["reason"] == "waiting_for_required_input"
    assert pending["required_input"] == [
        {"type": "function_call_output", "call_id": call["call_id"], "name": "lookup"}
    ]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "42"}
    await client.done([output], store=False, previous_response_id=response_id, tools=[LOOKUP])
    types = [item.get("type") for item in running.simulator.requests[-1].context]
    assert types == ["message", "function_call", "message", "function_call_output"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"input": []}, "invalid_input"),
        ({"input": ""}, "invalid_input"),
        ({"input": 3}, "invalid_input"),
        ({"input": ["x"]}, "invalid_input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "invalid_input"),
        ({"input": [{"role": "user", "content": [{"type": "audio"}]}]}, "invalid_input"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "invalid_input"),
        ({"input": "x", "stream_id": "a"}, "invalid_input"),
        ({"input": "x", "previous_response_id": "resp_none"}, "response_not_found"),
        ({"input": "x"}, "response_already_completed"),
        ({"input": [{"role": "user", "content": "x"}]}, "response_already_completed"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_steers_that_fail(running: RunningSimulator, message: Any, code: str) -> None:
    client = await opened(running)
    first = await client.done()
    steer = {"previous_response_id": first["id"], **message}
    client.says(type="response.steer", **steer)
    failed = await client.event()
    assert failed["type"] == "response.steer.failed"
    assert failed["error"]["code"] == code
    assert failed["steer"] == steer


@pytest_twisted.ensureDeferred
async def test_eight_steers_may_wait(running: RunningSimulator) -> None:
    client = await opened(running)
    response_id = await begun(running, client)
    for _ in range(9):
        client.says(type="response.steer", previous_response_id=response_id, input="x")
    events = await client.events("response.steer.failed")
    assert len(events) == 9
    assert events[-1]["error"]["code"] == "too_many_pending_steers"


@pytest_twisted.ensureDeferred
async def test_a_response_that_fails_gives_its_steers_back(running: RunningSimulator) -> None:
    client = await opened(running)
    fault = Together([TerminalAfter(after=4), PauseAfter(0.3, 3)])
    running.simulator.faults.push("stateful", fault, to="create")
    client.create()
    response_id = (await client.event())["response"]["id"]
    client.says(type="response.steer", previous_response_id=response_id, input="also")
    events = await client.events("response.steer.failed")
    assert events[-2]["type"] == "response.failed"
    assert events[-1]["error"]["code"] == "successor_creation_failed"
    assert events[-1]["steer"]["input"][0]["content"][0]["text"] == "also"


# ---- the public types


@pytest_twisted.ensureDeferred
async def test_steers_have_the_public_types(running: RunningSimulator) -> None:
    openai_types = pytest.importorskip("openai.types.responses")
    client = await opened(running)
    running.simulator.faults.push("stateful", PauseAfter(0.3, 3), to="create")
    client.create("Call lookup once.", store=False, tools=[LOOKUP], stream_id="a")
    response_id = (await client.event())["response"]["id"]
    client.says(type="response.steer", previous_response_id=response_id, input="Be quick.")
    events = await client.events("response.steer.pending", lane="a")
    client.says(type="response.steer", previous_response_id="resp_none", input="Be quick.")
    events += await client.events("response.steer.failed")
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(openai_types.ResponsesServerEvent)
    kinds = {adapter.validate_python(event, strict=True).type for event in events}
    assert {f"response.steer.{kind}" for kind in ("accepted", "pending", "failed")} <= kinds
