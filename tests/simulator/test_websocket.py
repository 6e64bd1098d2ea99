"""The simulator's WebSockets: upgrades, frames, bounds, pings and ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater

from simulator import SimulatedAccount
from simulator.accounts import SocketOptions
from simulator.model import ModelTurn, message
from tests.simulator.running import RunningSimulator, until
from tests.simulator.websocket_client import BETA, opened, refused_upgrade

ACCOUNTS = [
    SimulatedAccount("stateful", turn_state="state-1"),
    SimulatedAccount("other"),
    SimulatedAccount("codex", dialect="chatgpt", turn_state="state-2"),
    SimulatedAccount("azure", auth_header="api-key"),
    SimulatedAccount("without", websocket=SocketOptions(enabled=False)),
    SimulatedAccount("orq", websocket=SocketOptions(subprotocol="openai-beta.responses.v1")),
    SimulatedAccount("phaseo", websocket=SocketOptions(path="/responses/ws")),
    SimulatedAccount("two", websocket=SocketOptions(max_sockets=2)),
    SimulatedAccount("small", websocket=SocketOptions(max_message_bytes=2000)),
    SimulatedAccount("pinging", websocket=SocketOptions(ping_seconds=0.02, pong_seconds=0.1)),
]


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(accounts=ACCOUNTS)
    yield running
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_turn_is_one_text_message_an_event(running: RunningSimulator) -> None:
    client = await opened(running)
    assert "x-codex-turn-state" not in client.headers, "the live 101 has no turn state"
    assert client.headers["x-ratelimit-remaining-requests"] == "9999"
    events = await client.turn("hello there")
    assert events[0]["type"] == "response.metadata"
    assert events[0]["headers"] == {"x-codex-turn-state": "state-1"}
    kinds = [event["type"] for event in events[1:]]
    assert kinds[:3] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
    ]
    assert [event["sequence_number"] for event in events[1:]] == list(range(len(kinds)))
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert not any("stream_id" in event for event in events)
    entry = running.simulator.requests[-1]
    assert (entry.endpoint, entry.outcome, entry.events_sent) == (
        "create",
        "completed",
        len(events),
    )


@pytest_twisted.ensureDeferred
async def test_the_upgrade_needs_the_key_of_an_account(running: RunningSimulator) -> None:
    client = await refused_upgrade(running, key="sk-wrong")
    assert client.status == 401
    assert json.loads(client.body)["error"]["code"] == "invalid_api_key"
    assert running.simulator.requests[-1].endpoint == "upgrade"
    await opened(running, "azure")  # a bearer, though its header over HTTP is another


@pytest_twisted.ensureDeferred
async def test_upgrades_are_refused_as_the_account_refuses_them(running: RunningSimulator) -> None:
    client = await refused_upgrade(running, "without")
    assert (client.status, client.headers["upgrade"]) == (426, "websocket")
    client = await refused_upgrade(running, path="/v1/other")
    assert client.status == 404
    client = await refused_upgrade(running, "phaseo")
    assert client.status == 404
    await opened(running, "phaseo", path="/v1/responses/ws")
    client = await refused_upgrade(running, "orq")
    assert client.status == 400
    offer = ("Sec-WebSocket-Protocol", "a, openai-beta.responses.v1")
    client = await opened(running, "orq", offer)
    assert client.headers["sec-websocket-protocol"] == "openai-beta.responses.v1"
    client = await opened(running, "stateful", offer)
    assert "sec-websocket-protocol" not in client.headers


@pytest_twisted.ensureDeferred
async def test_an_account_may_have_a_bound_of_sockets(running: RunningSimulator) -> None:
    first = await opened(running, "two")
    await opened(running, "two")
    assert (await refused_upgrade(running, "two")).status == 403
    await opened(running, "other")
    first.drop()
    await until(lambda: not running.simulator.sockets[0].is_open)
    await opened(running, "two")


@pytest_twisted.ensureDeferred
async def test_codex_wants_its_beta_header(running: RunningSimulator) -> None:
    client = await refused_upgrade(running, "codex")
    assert client.status == 400
    assert "detail" in json.loads(client.body)
    client = await refused_upgrade(
        running, "codex", ("OpenAI-Beta", f"{BETA[1]}, responses=experimental")
    )
    assert client.status == 400
    client = await opened(running, "codex", ("OpenAI-Beta", f"other=1, {BETA[1]}"))
    assert client.headers["x-codex-primary-used-percent"] == "12"
    assert "x-codex-turn-state" not in client.headers


@pytest_twisted.ensureDeferred
async def test_a_plain_get_of_responses_is_no_upgrade(running: RunningSimulator) -> None:
    response = await running.request("GET", "/responses")
    assert response.code == 405


@pytest_twisted.ensureDeferred
async def test_a_message_of_16_mib_ends_the_socket(running: RunningSimulator) -> None:
    bound = SimulatedAccount("any").websocket.max_message_bytes
    assert bound == 16 * 1024 * 1024 - 1
    client = await opened(running, "small")
    empty = len(json.dumps({"type": "response.create", "model": "m", "input": ""}))
    await client.done("x" * (2000 - empty))
    client.create("x" * (2001 - empty))
    assert await client.closed() == 1009
    assert not client.frames
    await until(lambda: not running.simulator.sockets[-1].is_open)
    record = running.simulator.sockets[-1]
    assert (record.requests, record.close_code, record.closed_by_service) == (1, 1009, True)


@pytest_twisted.ensureDeferred
async def test_a_message_just_below_16_mib_is_answered(running: RunningSimulator) -> None:
    client = await opened(running)
    empty = len(json.dumps({"type": "response.create", "model": "m", "input": ""}))
    await client.done("x" * (16 * 1024 * 1024 - 1 - empty))
    assert running.simulator.sockets[-1].received_bytes == 16 * 1024 * 1024 - 1
    client.create("x" * (16 * 1024 * 1024 - empty))
    assert await client.closed() == 1009


@pytest_twisted.ensureDeferred
async def test_pings_are_answered(running: RunningSimulator) -> None:
    client = await opened(running)
    client.ping(b"one")
    client.ping(b"two")
    await until(lambda: client.pongs == [b"one", b"two"])
    assert running.simulator.sockets[-1].pings == 2


@pytest_twisted.ensureDeferred
async def test_a_client_that_answers_no_ping_is_closed(running: RunningSimulator) -> None:
    client = await opened(running, "pinging")
    await until(lambda: client.pings > 10)
    assert client.close_code is None
    client.answers_pings = False
    assert await client.closed() == 1011


@pytest_twisted.ensureDeferred
async def test_a_lost_socket_cancels_what_runs_on_it() -> None:
    clock = Clock()
    running = RunningSimulator(clock, event_delay=1.0)
    client = await opened(running)
    client.create("one")
    client.create("two")
    await client.event()
    await until(lambda: len(running.simulator.requests) == 3)
    client.drop()
    await until(lambda: not running.simulator.sockets[-1].is_open)
    outcomes = [entry.outcome for entry in running.simulator.requests]
    assert outcomes == ["completed", "cancelled", "cancelled"]
    assert not running.simulator.streams
    running.service._site.stopFactory()  # its own timer
    assert not clock.getDelayedCalls()
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_close_of_the_client_is_answered_and_logged(running: RunningSimulator) -> None:
    client = await opened(running)
    client.close(1001)
    await until(lambda: client.lost)
    await until(lambda: not running.simulator.sockets[-1].is_open)
    record = running.simulator.sockets[-1]
    assert (record.close_code, record.closed_by_service) == (1001, False)


class LongAnswer:
    """A model that says eight words of a megabyte each."""

    def respond(self, turn: ModelTurn) -> list[dict[str, Any]]:
        return [message(" ".join(["x" * 1_000_000] * 8))]


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_pauses_its_answers() -> None:
    running = RunningSimulator(model=LongAnswer())
    client = await opened(running)
    transport: Any = client.transport
    transport.pauseProducing()
    client.create("x", store=False)
    entries = running.simulator.requests
    await until(lambda: len(entries) == 2 and entries[1].events_sent > 3)
    await deferLater(reactor, 0.2)
    assert entries[1].outcome == "running", "the answer must wait for its reader"
    transport.resumeProducing()
    last = (await client.events())[-1]
    assert len(last["response"]["output"][0]["content"][0]["text"]) > 8_000_000
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_stop_resets_the_sockets() -> None:
    running = RunningSimulator()
    client = await opened(running)
    await running.stop()
    await until(lambda: client.lost)
    assert client.close_code is None


@pytest_twisted.ensureDeferred
async def test_http_goes_on_beside_a_socket(running: RunningSimulator) -> None:
    client = await opened(running)
    first = await client.done("The code word is Lychee.")
    second = await running.create(
        {"input": "Which code word?", "previous_response_id": first["id"]}
    )
    assert "Lychee" in second["output"][0]["content"][0]["text"], "it was stored"
    third = await client.done("Do you remember the code word?", previous_response_id=second["id"])
    assert "Lychee" in third["output"][0]["content"][0]["text"]
