"""The simulator over real sockets: streams, JSON, modes, faults, clients that leave."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
import treq
from treq.testing import StubTreq
from twisted.internet.task import Clock
from twisted.web.client import ResponseFailed

from simulator import SimulatedAccount, Simulator
from simulator.faults import (
    EMPTY_ERROR,
    CloseAfter,
    DropAfter,
    EmptyOutput,
    EndAfter,
    Ending,
    Fault,
    InsertAfter,
    NoEcho,
    PauseAfter,
    Refuse,
    ResponseHeaders,
    SilenceAfter,
    TerminalAfter,
    Together,
    flat_error,
)
from simulator.model import ModelTurn
from simulator.server import SimulatorResource
from tests.simulator.running import Reader, RunningSimulator, parsed, until

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator()
    yield running
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_stream_has_the_whole_sequence(running: RunningSimulator) -> None:
    response = await running.post({"model": "m", "input": "hello there", "stream": True})
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
    assert running.simulator.requests[-1].outcome == "completed"


@pytest_twisted.ensureDeferred
async def test_a_response_says_what_it_was_made_with(running: RunningSimulator) -> None:
    plain = await running.create({"input": "hi", "tools": [WEATHER]})
    assert (plain["presence_penalty"], plain["frequency_penalty"]) == (0.0, 0.0)
    assert plain["tools"] == [{**WEATHER, "description": None, "strict": True}]
    sent = {
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
        "tools": [{**WEATHER, "strict": None}],
    }
    told = await running.create({"input": "hi", **sent})
    assert {name: told[name] for name in ("presence_penalty", "frequency_penalty")} == {
        "presence_penalty": 0.5,
        "frequency_penalty": -1,
    }
    assert told["tools"][0]["strict"] is None
    refused = await running.create({"input": "hi", "presence_penalty": "much"})
    assert refused["error"]["param"] == "presence_penalty"


@pytest_twisted.ensureDeferred
async def test_a_tool_conversation_chains(running: RunningSimulator) -> None:
    first = await running.create({"input": "Please call get_weather in Paris", "tools": [WEATHER]})
    call = first["output"][0]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert json.loads(call["arguments"]) == {"city": "Paris"}
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "18 degrees"}
    body = {"input": [output], "tools": [WEATHER]}
    second = await running.create({**body, "previous_response_id": first["id"]})
    assert second["previous_response_id"] == first["id"]
    assert "18 degrees" in second["output"][0]["content"][0]["text"]
    orphan = await running.create(body)
    assert orphan["error"]["message"] == (
        f"No tool call found for function call output with call_id {call['call_id']}."
    )
    foreign = await running.create({**body, "previous_response_id": first["id"]}, "other")
    assert foreign["error"]["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_modes_treat_the_previous_id_their_own_way(running: RunningSimulator) -> None:
    body = {"input": "what did I say first?", "previous_response_id": "resp_1"}
    refused = await running.create(body, "stateless")
    assert refused["error"]["code"] == "unsupported_parameter"
    assert refused["error"]["param"] == "previous_response_id"
    ignored = await running.create(body, "forgetful")
    assert ignored["previous_response_id"] is None
    assert "nothing said earlier" in ignored["output"][0]["content"][0]["text"]
    unknown = await running.create(body, "stateful")
    assert unknown["error"]["message"] == "Previous response with id 'resp_1' not found."


@pytest_twisted.ensureDeferred
async def test_store_false_is_not_kept(running: RunningSimulator) -> None:
    first = await running.create({"input": "hi", "store": False})
    assert first["store"] is False
    second = await running.create({"input": "hi", "previous_response_id": first["id"]})
    assert second["error"]["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_requests_that_are_none_of_ours(running: RunningSimulator) -> None:
    url = running.service.base_url() + "/responses"
    wrong_key = await treq.post(url, json={}, headers={"authorization": "Bearer nobody"})
    assert wrong_key.code == 401
    assert (await wrong_key.json())["error"]["code"] == "invalid_api_key"
    assert running.simulator.requests[-1].account is None
    key = running.simulator.account("other").key
    headers = {"authorization": f"Bearer {key}"}
    lost = await treq.get(running.service.base_url() + "/nothing", headers=headers)
    assert lost.code == 404
    await lost.content()
    models = await treq.get(running.service.base_url() + "/models", headers=headers)
    assert (await models.json())["object"] == "list"
    form = await treq.post(url, data={"model": "m"}, headers=headers)
    assert (await form.json())["error"]["code"] == "unsupported_content_type"


@pytest_twisted.ensureDeferred
async def test_refusals_and_event_faults_come_in_order(running: RunningSimulator) -> None:
    running.simulator.faults.push(
        "stateful",
        Refuse.rate_limited(retry_after=1),
        Fault(),
        EmptyOutput(),
        TerminalAfter(incomplete_reason="max_output_tokens"),
        InsertAfter(flat_error("server_error", "oh"), after=2),
    )
    limited = await running.post({"model": "m", "input": "x"})
    assert limited.code == 429
    assert limited.headers.getRawHeaders("retry-after") == ["1"]
    await limited.content()
    assert (await running.events({"input": "x"}))[-1]["response"]["output"]
    assert (await running.events({"input": "x"}))[-1]["response"]["output"] == []
    ended = (await running.events({"input": "x"}))[-1]
    assert ended["type"] == "response.incomplete"
    assert (await running.events({"input": "x"}))[2] == flat_error("server_error", "oh")
    outcomes = [entry.outcome for entry in running.simulator.requests]
    assert outcomes == ["refused", "completed", "completed", "incomplete", "completed"]


@pytest_twisted.ensureDeferred
async def test_no_echo_hides_the_previous_id(running: RunningSimulator) -> None:
    first = await running.create({"input": "hi"})
    running.simulator.faults.push("stateful", NoEcho())
    events = await running.events({"input": "hi", "previous_response_id": first["id"]})
    assert events[0]["response"]["previous_response_id"] is None
    assert events[-1]["response"]["previous_response_id"] is None


@pytest.mark.parametrize("fault", [CloseAfter(0), DropAfter(0)])
@pytest_twisted.ensureDeferred
async def test_a_connection_lost_before_the_first_byte(
    running: RunningSimulator, fault: Fault
) -> None:
    running.simulator.faults.push("stateful", fault)
    with pytest.raises(ResponseFailed):
        await running.post({"model": "m", "input": "x", "stream": True})
    assert running.simulator.requests[-1].outcome == "dropped"


async def received_before_the_loss(running: RunningSimulator) -> list[dict[str, Any]]:
    received: list[bytes] = []
    response = await running.post({"model": "m", "input": "x", "stream": True})
    with pytest.raises(ResponseFailed):
        await treq.collect(response, received.append)
    return parsed(b"".join(received).decode())


@pytest_twisted.ensureDeferred
async def test_a_connection_reset_after_events_delivers_them(running: RunningSimulator) -> None:
    running.simulator.faults.push("stateful", DropAfter(3))
    assert len(await received_before_the_loss(running)) == 3
    assert running.simulator.requests[-1].outcome == "dropped"


@pytest_twisted.ensureDeferred
async def test_a_connection_closed_after_events_delivers_them(running: RunningSimulator) -> None:
    running.simulator.faults.push("stateful", CloseAfter(3), EndAfter(3))
    assert len(await received_before_the_loss(running)) == 3
    ended = await running.events({"input": "x"})
    assert [event["type"] for event in ended][-1] == "response.output_item.added"
    assert [entry.outcome for entry in running.simulator.requests] == ["dropped", "ended"]


@pytest_twisted.ensureDeferred
async def test_a_silent_account_notices_that_the_client_left(running: RunningSimulator) -> None:
    running.simulator.faults.push("stateful", SilenceAfter(2))
    response = await running.post({"model": "m", "input": "x", "stream": True}, unbuffered=True)
    entry = running.simulator.requests[-1]
    await until(lambda: entry.events_sent == 2)
    reader = Reader()
    response.original.deliverBody(reader)
    reader.transport.loseConnection()
    await until(lambda: entry.outcome == "cancelled")
    assert not running.simulator.streams


class LongAnswer:
    """A model that says forty words of a megabyte each."""

    def respond(self, turn: ModelTurn) -> list[dict[str, Any]]:
        part = {"type": "output_text", "text": " ".join(["x" * 1_000_000] * 40), "annotations": []}
        return [{"type": "message", "role": "assistant", "content": [part]}]


@pytest.mark.parametrize("stream", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_pauses_its_answer(stream: bool) -> None:
    running = RunningSimulator(model=LongAnswer())
    body = {"model": "m", "input": "x", "stream": stream}
    response = await running.post(body, unbuffered=True)
    reader = Reader()
    response.original.deliverBody(reader)
    reader.transport.pauseProducing()
    (writer,) = running.simulator.streams
    await until(lambda: writer.is_paused)
    assert not reader.over, "the answer must wait for its reader"
    reader.transport.resumeProducing()
    await until(lambda: reader.over)
    assert reader.received > 40_000_000
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_events_are_paced_by_the_clock() -> None:
    clock = Clock()
    running = RunningSimulator(event_delay=5.0, clock=clock)
    response = await running.post({"model": "m", "input": "x", "stream": True}, unbuffered=True)
    entry = running.simulator.requests[-1]
    assert entry.events_sent == 1
    clock.advance(4.9)
    assert entry.events_sent == 1
    clock.advance(0.1)
    assert entry.events_sent == 2
    reading = response.text()
    while running.simulator.streams:
        clock.advance(5.0)
    assert parsed(await reading)[-1]["type"] == "response.completed"
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_cancels_the_generation() -> None:
    clock = Clock()
    running = RunningSimulator(event_delay=5.0, clock=clock)
    response = await running.post({"model": "m", "input": "x", "stream": True}, unbuffered=True)
    reader = Reader()
    response.original.deliverBody(reader)
    await until(lambda: reader.received)
    reader.transport.loseConnection()
    entry = running.simulator.requests[-1]
    await until(lambda: entry.outcome == "cancelled")
    clock.advance(60.0)
    assert entry.events_sent == 1, "nothing may be generated for a client that left"
    again = {"input": "x", "previous_response_id": entry.response_id}
    running.simulator.event_delay = 0.0
    assert (await running.create(again))["error"]["code"] == "previous_response_not_found"
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_stop_ends_what_is_under_way() -> None:
    running = RunningSimulator()
    running.simulator.faults.push("stateful", SilenceAfter(0, headers=True))
    response = await running.post({"model": "m", "input": "x", "stream": True}, unbuffered=True)
    await running.stop()
    with pytest.raises(ResponseFailed):
        await response.content()
    assert running.simulator.requests[-1].outcome == "dropped"
    with pytest.raises(RuntimeError):
        running.service.base_url()


@pytest_twisted.ensureDeferred
async def test_a_permanent_fault_gives_way_to_the_next_one(running: RunningSimulator) -> None:
    running.simulator.faults.always("stateful", Refuse.error(503, "server_is_overloaded"))
    running.simulator.faults.push("stateful", Fault())
    assert "error" in await running.create({"input": "x", "model": 3}), "a pass changes nothing"
    assert (await running.create({"input": "x"}))["error"]["code"] == "server_is_overloaded"
    assert (await running.create({"input": "x"}, "other"))["status"] == "completed"
    running.simulator.faults.clear("stateful")
    assert (await running.create({"input": "x"}))["status"] == "completed"


@pytest_twisted.ensureDeferred
async def test_faults_of_the_body_and_the_headers(running: RunningSimulator) -> None:
    running.simulator.faults.push(
        "stateful",
        Refuse(400, {"detail": "Unsupported parameter: previous_response_id"}),
        Refuse(502, "<html>bad gateway</html>", {"content-type": "text/html"}),
        Together((ResponseHeaders({"x-codex-turn-state": "s"}), EmptyOutput(), NoEcho())),
        InsertAfter(EMPTY_ERROR, after=2, then=Ending.END),
        PauseAfter(0.01),
    )
    assert "detail" in await running.create({"input": "x"})
    page = await running.post({"model": "m", "input": "x"})
    assert (page.code, await page.text()) == (502, "<html>bad gateway</html>")
    assert page.headers.getRawHeaders("content-type") == ["text/html"]
    both = await running.post({"model": "m", "input": "x"})
    assert both.headers.getRawHeaders("x-codex-turn-state") == ["s"]
    assert (await both.json())["output"] == []
    assert (await running.events({"input": "x"}))[-1] == EMPTY_ERROR
    assert (await running.create({"input": "x"}))["status"] == "completed"


@pytest_twisted.ensureDeferred
async def test_a_failed_response_is_not_kept(running: RunningSimulator) -> None:
    running.simulator.faults.push("stateful", TerminalAfter(after=1000))
    events = await running.events({"input": "x"})
    failed = events[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["response"]["output"] == [events[-2]["item"]], "what was finished is in there"
    body = {"input": "x", "previous_response_id": failed["response"]["id"]}
    assert (await running.create(body))["error"]["code"] == "previous_response_not_found"


class Broken:
    def respond(self, turn: ModelTurn) -> list[dict[str, Any]]:
        raise LookupError("a bug in a model")


@pytest_twisted.ensureDeferred
async def test_a_broken_model_is_a_500() -> None:
    running = RunningSimulator(model=Broken())
    response = await running.post({"model": "m", "input": "x"})
    assert response.code == 500
    assert (await response.json())["error"]["type"] == "server_error"
    assert running.simulator.requests[-1].outcome == "refused"
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_bodies_that_are_no_json(running: RunningSimulator) -> None:
    url = running.service.base_url() + "/responses"
    headers = {
        "authorization": f"Bearer {running.simulator.account('other').key}",
        "content-type": "application/json",
    }
    for data in (b"", b"{", b"\xff", b"[" * 100_000):
        response = await treq.post(url, data=data, headers=headers, pool=running.pool)
        assert response.code == 400, data[:10]
        message = (await response.json())["error"]["message"]
        assert message == "We could not parse the JSON body of your request."


def test_two_accounts_with_one_key_are_refused() -> None:
    with pytest.raises(ValueError):
        Simulator([SimulatedAccount("a", "k"), SimulatedAccount("b", "k")], Clock())


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError):
        SimulatedAccount("a", mode="moody")  # type: ignore[arg-type]


@pytest_twisted.ensureDeferred
async def test_the_resource_serves_without_a_socket() -> None:
    simulator = Simulator([SimulatedAccount("a", "k")], Clock())
    client = StubTreq(SimulatorResource(simulator))
    response = await client.post(
        "http://simulator/v1/responses",
        json={"model": "m", "input": "hello"},
        headers={"authorization": "Bearer k"},
    )
    assert (await client.json_content(response))["status"] == "completed"
