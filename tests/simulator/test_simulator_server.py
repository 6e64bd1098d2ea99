"""The simulator over real sockets: streams, JSON, modes, faults, clients that leave."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
import treq
from twisted.internet import reactor
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.web.client import HTTPConnectionPool, ResponseFailed
from twisted.web.iweb import IResponse

from gateway.simulator import (
    CloseAfter,
    DropAfter,
    EmptyOutput,
    EndAfter,
    Fault,
    InsertAfter,
    NoEcho,
    Refuse,
    SilenceAfter,
    SimulatedAccount,
    Simulator,
    SimulatorService,
    TerminalAfter,
    flat_error,
)

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


class House:
    """A running simulator of one account a mode, and a client for it."""

    def __init__(self, **options: Any) -> None:
        accounts = [
            SimulatedAccount("stateful"),
            SimulatedAccount("other"),
            SimulatedAccount("stateless", mode="stateless"),
            SimulatedAccount("forgetful", mode="forgetful"),
        ]
        self.simulator = Simulator(accounts, reactor, **options)
        self.service = SimulatorService(self.simulator, reactor)
        self.pool = HTTPConnectionPool(reactor, persistent=True)
        self.service.startService()

    async def stop(self) -> None:
        await self.pool.closeCachedConnections()
        await self.service.stopService()

    async def post(self, body: Any, account: str = "stateful", **more: Any) -> IResponse:
        url = self.service.base_url() + "/responses"
        key = self.simulator.account(account).key
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        return await treq.post(url, json=body, headers=headers, pool=self.pool, timeout=20, **more)

    async def create(self, body: Any, account: str = "stateful") -> Any:
        response = await self.post({"model": "m", **body}, account)
        return await response.json()

    async def events(self, body: Any, account: str = "stateful") -> list[dict[str, Any]]:
        response = await self.post({"model": "m", "stream": True, **body}, account)
        text = (await response.content()).decode()
        assert response.code == 200, text
        return parsed(text)


def parsed(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if lines and lines["data"] != "[DONE]":
            found.append(json.loads(lines["data"]))
            assert lines["event"] == found[-1]["type"]
    return found


@pytest_twisted.async_yield_fixture()
async def house() -> AsyncIterator[House]:
    running = House()
    yield running
    await running.stop()


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until the condition holds."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, "the condition never came true"
        await deferLater(reactor, 0.01)


@pytest_twisted.ensureDeferred
async def test_a_stream_has_the_whole_sequence(house: House) -> None:
    response = await house.post({"model": "m", "input": "hello there", "stream": True})
    text = (await response.content()).decode()
    assert response.headers.getRawHeaders("content-type") == ["text/event-stream; charset=utf-8"]
    assert text.endswith("data: [DONE]\n\n")
    events = parsed(text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.completed"
    final = events[-1]["response"]
    assert final["id"] == events[0]["response"]["id"]
    assert final["output"][0] == events[-2]["item"]
    assert house.simulator.requests[-1].outcome == "completed"


@pytest_twisted.ensureDeferred
async def test_a_tool_conversation_chains(house: House) -> None:
    first = await house.create({"input": "Please call get_weather in Paris", "tools": [WEATHER]})
    call = first["output"][0]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "18 degrees"}
    body = {"input": [output], "tools": [WEATHER]}
    second = await house.create({**body, "previous_response_id": first["id"]})
    assert second["previous_response_id"] == first["id"]
    assert "18 degrees" in second["output"][0]["content"][0]["text"]
    orphan = await house.create(body)
    assert orphan["error"]["message"] == (
        f"No tool call found for function call output with call_id {call['call_id']}."
    )
    foreign = await house.create({**body, "previous_response_id": first["id"]}, "other")
    assert foreign["error"]["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_modes_treat_the_previous_id_their_own_way(house: House) -> None:
    body = {"input": "what did I say first?", "previous_response_id": "resp_1"}
    refused = await house.create(body, "stateless")
    assert refused["error"]["code"] == "unsupported_parameter"
    assert refused["error"]["param"] == "previous_response_id"
    ignored = await house.create(body, "forgetful")
    assert ignored["previous_response_id"] is None
    assert "nothing said earlier" in ignored["output"][0]["content"][0]["text"]
    unknown = await house.create(body, "stateful")
    assert unknown["error"]["message"] == "Previous response with id 'resp_1' not found."


@pytest_twisted.ensureDeferred
async def test_store_false_is_not_kept(house: House) -> None:
    first = await house.create({"input": "hi", "store": False})
    assert first["store"] is False
    second = await house.create({"input": "hi", "previous_response_id": first["id"]})
    assert second["error"]["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_requests_that_are_none_of_ours(house: House) -> None:
    url = house.service.base_url() + "/responses"
    wrong_key = await treq.post(url, json={}, headers={"authorization": "Bearer nobody"})
    assert wrong_key.code == 401
    assert (await wrong_key.json())["error"]["code"] == "invalid_api_key"
    assert house.simulator.requests[-1].account is None
    key = house.simulator.account("other").key
    headers = {"authorization": f"Bearer {key}"}
    lost = await treq.get(house.service.base_url() + "/nothing", headers=headers)
    assert lost.code == 404
    await lost.content()
    models = await treq.get(house.service.base_url() + "/models", headers=headers)
    assert (await models.json())["object"] == "list"
    form = await treq.post(url, data={"model": "m"}, headers=headers)
    assert (await form.json())["error"]["code"] == "unsupported_content_type"


@pytest_twisted.ensureDeferred
async def test_refusals_and_event_faults_come_in_order(house: House) -> None:
    house.simulator.faults.push(
        "stateful",
        Refuse.rate_limited(retry_after=1),
        Fault(),
        EmptyOutput(),
        TerminalAfter(incomplete_reason="max_output_tokens"),
        InsertAfter(flat_error("server_error", "oh"), after=2),
    )
    limited = await house.post({"model": "m", "input": "x"})
    assert limited.code == 429
    assert limited.headers.getRawHeaders("retry-after") == ["1"]
    await limited.content()
    assert (await house.events({"input": "x"}))[-1]["response"]["output"]
    assert (await house.events({"input": "x"}))[-1]["response"]["output"] == []
    ended = (await house.events({"input": "x"}))[-1]
    assert ended["type"] == "response.incomplete"
    assert (await house.events({"input": "x"}))[2] == flat_error("server_error", "oh")
    outcomes = [entry.outcome for entry in house.simulator.requests]
    assert outcomes == ["refused", "completed", "completed", "incomplete", "completed"]


@pytest_twisted.ensureDeferred
async def test_no_echo_hides_the_previous_id(house: House) -> None:
    first = await house.create({"input": "hi"})
    house.simulator.faults.push("stateful", NoEcho())
    events = await house.events({"input": "hi", "previous_response_id": first["id"]})
    assert events[0]["response"]["previous_response_id"] is None
    assert events[-1]["response"]["previous_response_id"] is None


@pytest.mark.parametrize("fault", [CloseAfter(0), DropAfter(0)])
@pytest_twisted.ensureDeferred
async def test_a_connection_lost_before_the_first_byte(house: House, fault: Fault) -> None:
    house.simulator.faults.push("stateful", fault)
    with pytest.raises(ResponseFailed):
        await house.post({"model": "m", "input": "x", "stream": True})
    assert house.simulator.requests[-1].outcome == "dropped"


@pytest_twisted.ensureDeferred
async def test_a_connection_closed_after_events_delivers_them(house: House) -> None:
    house.simulator.faults.push("stateful", CloseAfter(3), EndAfter(3))
    received: list[bytes] = []
    response = await house.post({"model": "m", "input": "x", "stream": True})
    with pytest.raises(ResponseFailed):
        await treq.collect(response, received.append)
    assert len(parsed(b"".join(received).decode())) == 3
    ended = await house.events({"input": "x"})
    assert [event["type"] for event in ended][-1] == "response.output_item.added"
    assert [entry.outcome for entry in house.simulator.requests] == ["dropped", "ended"]


@pytest_twisted.ensureDeferred
async def test_a_silent_account_notices_that_the_client_left(house: House) -> None:
    house.simulator.faults.push("stateful", SilenceAfter(2))
    response = await house.post({"model": "m", "input": "x", "stream": True}, unbuffered=True)
    entry = house.simulator.requests[-1]
    await until(lambda: entry.events_sent == 2)
    reader = Protocol()
    response.original.deliverBody(reader)
    reader.transport.loseConnection()
    await until(lambda: entry.outcome == "cancelled")
    assert not house.simulator.streams
