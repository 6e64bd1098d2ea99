"""What the backend of Codex and xAI do differently on their sockets (protocol.md §5, §8.1)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest_twisted
from twisted.internet.task import Clock

from simulator import SimulatedAccount
from simulator.accounts import SocketOptions
from simulator.faults import Refuse
from tests.simulator.running import RunningSimulator, until
from tests.simulator.websocket_client import BETA, SocketClient, opened

CODE_WORD = [{"role": "user", "content": "The code word is Lychee."}]
ASK = [{"role": "user", "content": "What was the code word?"}]
LATE = SocketOptions(sends_timing=True, sends_limits_late=True, late_seconds=1.5)
ACCOUNTS = [
    SimulatedAccount("codex", dialect="chatgpt"),
    SimulatedAccount("late", dialect="chatgpt", websocket=LATE),
    SimulatedAccount("xai", dialect="xai"),
]


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(accounts=ACCOUNTS)
    yield running
    await running.stop()


def says(event: dict[str, Any]) -> str:
    return str(event["response"]["output"][-1]["content"][0]["text"])


# ---- the backend of Codex


@pytest_twisted.ensureDeferred
async def test_codex_begins_with_limits_and_ends_without_output(running: RunningSimulator) -> None:
    client = await opened(running, "codex", BETA)
    events = await client.turn(CODE_WORD, store=False)
    assert [event["type"] for event in events[:2]] == ["codex.rate_limits", "response.created"]
    assert [event["type"] for event in events].count("codex.rate_limits") == 1
    assert "sequence_number" not in events[0]
    assert events[1]["sequence_number"] == 0
    assert events[-1]["response"]["output"] == []
    named = {"store": False, "previous_response_id": events[-1]["response"]["id"]}
    events = await client.turn(ASK, **named)
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert "Lychee" in done[-1]["item"]["content"][0]["text"]
    over_http = await running.create({"input": ASK, "stream": True, **named}, "codex")
    assert over_http == {"detail": "Unsupported parameter: previous_response_id"}


@pytest_twisted.ensureDeferred
async def test_codex_warms_up(running: RunningSimulator) -> None:
    client = await opened(running, "codex", BETA)
    warm = (await client.turn([], store=False, stream=True, generate=False))[-1]["response"]
    events = await client.turn(ASK, store=False, previous_response_id=warm["id"])
    assert events[-1]["type"] == "response.completed"


@pytest_twisted.ensureDeferred
async def test_what_codex_refuses(running: RunningSimulator) -> None:
    client = await opened(running, "codex", BETA)
    for members, detail in (
        ({"stream_id": "a"}, "Unsupported parameter: stream_id"),
        ({"user": "x"}, "Unsupported parameter: user"),
        ({"store": True}, "Store must be set to false"),
    ):
        client.create(CODE_WORD, **{"store": False, **members})
        assert await client.event() == {
            "type": "error",
            "status": 400,
            "error": {"detail": detail},
        }
    error = await client.refused(ASK, store=False, previous_response_id="resp_none")
    assert error["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_a_used_up_subscription_is_told_with_status_code(running: RunningSimulator) -> None:
    client = await opened(running, "codex", BETA)
    fault = Refuse.usage_limit_reached(1_800_000_000, 60)
    running.simulator.faults.push("codex", fault, to="create")
    (event,) = await client.turn(CODE_WORD, store=False)
    assert event["status_code"] == 429
    assert "status" not in event
    assert event["error"]["resets_at"] == 1_800_000_000
    assert "x-codex-primary-reset-at" in event["headers"]


@pytest_twisted.ensureDeferred
async def test_frames_out_of_band_come_after_the_end() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS)
    client = await opened(running, "late", BETA)
    first = (await client.turn(CODE_WORD, store=False))[-1]["response"]
    client.create(ASK, store=False, previous_response_id=first["id"])
    await client.events()
    assert not client.frames, "they are still to come, and the lane was free"
    clock.advance(1.5)
    await until(lambda: len(client.frames) == 4)
    assert sorted(frame["type"] for frame in client.frames) == [
        "codex.rate_limits",
        "codex.rate_limits",
        "responsesapi.websocket_timing",
        "responsesapi.websocket_timing",
    ]
    await running.stop()


# ---- xAI


async def refused_by_xai(client: SocketClient, given: Any, **members: Any) -> str:
    client.create(given, **members)
    event = await client.event()
    assert event.keys() == {"error"}, "neither a type nor a status"
    assert event["error"].keys() == {"message", "type"}
    assert event["error"]["type"] == "api_error"
    return str(event["error"]["message"])


@pytest_twisted.ensureDeferred
async def test_xai_continues_only_stored_responses(running: RunningSimulator) -> None:
    client = await opened(running, "xai")
    for members in ({}, {"generate": False}):
        first = await client.done(CODE_WORD, store=False, **members)
        named = {"previous_response_id": first["id"]}
        message = await refused_by_xai(client, ASK, store=False, **named)
        assert message == f"Response with id={first['id']} not found"
    first = await client.done(CODE_WORD)
    event = (await client.turn(ASK, previous_response_id=first["id"]))[-1]
    assert "Lychee" in says(event)
    assert event["response"]["id"] == first["id"], "one id names several turns"
    event = (await client.turn(ASK, previous_response_id=first["id"]))[-1]
    assert "Lychee" in says(event)


@pytest_twisted.ensureDeferred
async def test_what_xai_refuses(running: RunningSimulator) -> None:
    client = await opened(running, "xai")
    first = await client.done(CODE_WORD, instructions="Be brief.")
    named = {"previous_response_id": first["id"]}
    assert "instructions" in await refused_by_xai(client, ASK, instructions="Be brief.", **named)
    assert "stream_id" in await refused_by_xai(client, ASK, stream_id="a")
    tools = [{"type": "additional_tools", "role": "developer", "tools": []}]
    assert "deserialize" in await refused_by_xai(client, tools)
    client.says_text("{")
    assert (await client.event()).keys() == {"error"}
