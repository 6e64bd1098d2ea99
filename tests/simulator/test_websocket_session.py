"""The simulator's sockets: messages, memory, prewarms, lanes and age."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from simulator import SimulatedAccount
from simulator.accounts import SocketOptions
from simulator.faults import (
    Ending,
    Fault,
    InsertAfter,
    PauseAfter,
    Refuse,
    SilenceAfter,
    TerminalAfter,
)
from tests.simulator.running import RunningSimulator, until
from tests.simulator.websocket_client import SocketClient, opened

CALL = {
    "type": "function",
    "name": "lookup",
    "parameters": {"type": "object", "properties": {}},
}
ORPHAN = [{"type": "function_call_output", "call_id": "call_none", "output": "x"}]
CODE_WORD = "The code word is Lychee."
ASK = "What was the code word?"
ACCOUNTS = [
    SimulatedAccount("stateful"),
    SimulatedAccount("stateless", mode="stateless"),
    SimulatedAccount("forgetful", mode="forgetful"),
    SimulatedAccount("alone", websocket=SocketOptions(has_lanes=False, queues=False)),
    SimulatedAccount("uncoded", websocket=SocketOptions(has_uncoded_misses=True)),
]


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(accounts=ACCOUNTS)
    yield running
    await running.stop()


def says(response: dict[str, Any]) -> str:
    return str(response["output"][-1]["content"][0]["text"])


# ---- messages


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ("{", None),
        ("[]", "body"),
        ("3", "body"),
        ("[" * 100_000, None),
        ('{"model": "m", "input": "x"}', "type"),
        ('{"type": 3}', "type"),
        ('{"type": "response.append"}', "type"),
        ('{"type": "response.inject"}', "type"),
        ('{"type": "response.create", "model": "m", "input": "x", "stream_id": ""}', "stream_id"),
        ('{"type": "response.create", "model": "m", "input": "x", "stream_id": "ä"}', "stream_id"),
        ('{"type": "response.create", "model": "m", "input": "x", "stream_id": 3}', "stream_id"),
        ('{"type": "response.create", "model": "m", "input": "x", "generate": 0}', "generate"),
        ('{"type": "response.create", "input": "x"}', "model"),
        ('{"type": "response.create", "model": "m"}', "input"),
        ('{"type": "response.create", "model": "m", "input": "x", "nonsense": 1}', "nonsense"),
        ('{"type": "response.create", "model": "m", "input": "x", "stream": 1}', "stream"),
        (
            '{"type": "response.create", "model": "m", "input": "x", "background": true}',
            "background",
        ),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_wrong_message_is_one_error(
    running: RunningSimulator, text: str, param: str | None
) -> None:
    client = await opened(running)
    client.says_text(text)
    event = await client.event()
    assert (event["type"], event["status"], event["error"]["param"]) == ("error", 400, param)
    assert "stream_id" not in event
    await client.done()
    assert not client.frames


@pytest_twisted.ensureDeferred
async def test_a_binary_message_is_an_error(running: RunningSimulator) -> None:
    client = await opened(running)
    client.says_bytes(b"{}")
    assert (await client.event())["status"] == 400
    await client.done()


@pytest.mark.parametrize("stream", [True, False, None])
@pytest_twisted.ensureDeferred
async def test_it_streams_whatever_stream_says(running: RunningSimulator, stream: Any) -> None:
    client = await opened(running)
    assert len(await client.turn(stream=stream, background=False)) > 4


@pytest_twisted.ensureDeferred
async def test_messages_without_an_answer(running: RunningSimulator) -> None:
    client = await opened(running)
    client.says(type="response.processed", response_id="resp_1")
    client.says(type="response.cancel")
    await client.done()
    assert not client.frames
    record = running.simulator.sockets[-1]
    assert [each["type"] for each in record.controls] == [
        "response.processed",
        "response.cancel",
    ]
    assert (record.messages, record.requests) == (3, 1)


# ---- memory


@pytest.mark.parametrize("account", ["stateful", "stateless"])
@pytest_twisted.ensureDeferred
async def test_the_latest_unstored_response_can_be_continued_here_alone(
    running: RunningSimulator, account: str
) -> None:
    client, other = await opened(running, account), await opened(running, account)
    first = await client.done(CODE_WORD, store=False)
    named = {"previous_response_id": first["id"], "store": False}
    error = await other.refused(ASK, **named)
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )
    over_http = await running.create({"input": ASK, **named}, account)
    assert over_http["error"]["param"] == "previous_response_id"
    second = await client.done(ASK, **named)
    assert "Lychee" in says(second)
    assert second["previous_response_id"] == first["id"]
    error = await client.refused(ASK, **named)
    assert error["code"] == "previous_response_not_found", "it is not the latest any more"


@pytest_twisted.ensureDeferred
async def test_a_stored_response_can_be_continued_everywhere(running: RunningSimulator) -> None:
    client, other = await opened(running), await opened(running)
    first = await client.done(CODE_WORD)
    await client.done("And another one.")
    for socket in (client, other):
        assert "Lychee" in says(await socket.done(ASK, previous_response_id=first["id"]))


@pytest_twisted.ensureDeferred
async def test_a_failed_turn_evicts_what_it_named(running: RunningSimulator) -> None:
    client = await opened(running)
    first = await client.done(CODE_WORD, store=False)
    named = {"previous_response_id": first["id"], "store": False}
    assert (await client.refused(ORPHAN, **named))["param"] == "input"
    assert (await client.refused(ASK, **named))["code"] == "previous_response_not_found"
    await client.done(ASK, store=False)


@pytest.mark.parametrize(
    "fault",
    [
        Refuse.error(500, "server_error"),
        Refuse.rate_limited(),
        TerminalAfter(),
        InsertAfter({"type": "error", "status": 502, "error": {}}, 2, Ending.END),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_failure_evicts(running: RunningSimulator, fault: Fault) -> None:
    client = await opened(running)
    first = await client.done(CODE_WORD, store=False)
    named = {"previous_response_id": first["id"], "store": False}
    running.simulator.faults.push("stateful", fault, to="create")
    await client.turn(ASK, **named)
    assert (await client.refused(ASK, **named))["code"] == "previous_response_not_found"


@pytest_twisted.ensureDeferred
async def test_a_failure_without_a_parent_evicts_nothing(running: RunningSimulator) -> None:
    client = await opened(running)
    first = await client.done(CODE_WORD, store=False)
    await client.refused(ORPHAN, store=False)
    assert "Lychee" in says(await client.done(ASK, previous_response_id=first["id"], store=False))


@pytest_twisted.ensureDeferred
async def test_a_fork_on_another_lane(running: RunningSimulator) -> None:
    client = await opened(running)
    first = await client.done(CODE_WORD, store=False)
    named = {"previous_response_id": first["id"], "store": False}
    assert "Lychee" in says(await client.done(ASK, stream_id="a", **named))
    await client.refused(ORPHAN, stream_id="b", **named)
    assert "Lychee" in says(await client.done(ASK, stream_id="b", **named)), "b has not had it"
    assert "Lychee" in says(await client.done(ASK, **named))


@pytest_twisted.ensureDeferred
async def test_a_forgetful_account_forgets_here_too(running: RunningSimulator) -> None:
    client = await opened(running, "forgetful")
    first = await client.done(CODE_WORD)
    second = await client.done(ASK, previous_response_id=first["id"])
    assert "Lychee" not in says(second)
    assert second["previous_response_id"] is None


@pytest_twisted.ensureDeferred
async def test_a_miss_without_a_code(running: RunningSimulator) -> None:
    client = await opened(running, "uncoded")
    error = await client.refused(previous_response_id="resp_1")
    assert error["message"] == "Invalid `previous_response_id`."
    assert (error["code"], error["param"]) == (None, None)


@pytest_twisted.ensureDeferred
async def test_what_is_not_inherited(running: RunningSimulator) -> None:
    client = await opened(running)
    given = {"store": False, "tools": [CALL], "instructions": "Be brief."}
    first = await client.done(CODE_WORD, **given)
    second = await client.done(ASK, store=False, previous_response_id=first["id"])
    assert (second["tools"], second["instructions"]) == ([], None)


@pytest_twisted.ensureDeferred
async def test_a_socket_counts_what_it_received(running: RunningSimulator) -> None:
    client = await opened(running)
    warm = await client.done(CODE_WORD, store=False, generate=False)
    latest = warm["id"]
    for _ in range(3):
        response = await client.done(ASK, store=False, previous_response_id=latest)
        latest = response["id"]
    await client.done("Another root.", store=False)
    await client.refused(ASK, store=False, previous_response_id=latest)
    (record,) = running.simulator.sockets
    assert (record.number, record.account, record.is_open) == (1, "stateful", True)
    assert (record.requests, record.prewarms, record.chained, record.completed) == (6, 1, 3, 5)
    creates = [entry for entry in running.simulator.requests if entry.endpoint == "create"]
    assert record.received_bytes == sum(entry.size for entry in creates)
    assert all(entry.socket is record for entry in creates)
    assert [entry.outcome for entry in creates] == ["completed"] * 5 + ["refused"]
    assert creates[-1].error
    assert creates[-1].error["code"] == "previous_response_not_found"
    assert len(creates[3].context) == 6


@pytest_twisted.ensureDeferred
async def test_a_stored_response_can_be_found_late_elsewhere() -> None:
    clock = Clock()
    accounts = [SimulatedAccount("azure", store_delay_seconds=6.0)]
    running = RunningSimulator(clock, accounts=accounts)
    client, other = await opened(running, "azure"), await opened(running, "azure")
    first = await client.done(CODE_WORD)
    named = {"previous_response_id": first["id"]}
    clock.advance(5.9)
    assert (await other.refused(ASK, **named))["code"] == "previous_response_not_found"
    over_http = await running.create({"input": ASK, **named}, "azure")
    assert over_http["error"]["code"] == "previous_response_not_found"
    assert "Lychee" in says(await client.done(ASK, **named)), "this socket made it"
    clock.advance(0.2)
    assert "Lychee" in says(await other.done(ASK, **named))
    await running.stop()


# ---- prewarm


@pytest.mark.parametrize(
    "prewarm", [{"generate": False}, {"prompt_cache_options": {"prewarm": True}}]
)
@pytest_twisted.ensureDeferred
async def test_a_prewarm_can_be_continued(running: RunningSimulator, prewarm: Any) -> None:
    client = await opened(running)
    events = await client.turn(CODE_WORD, store=False, **prewarm)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    warm = events[-1]["response"]
    assert warm["output"] == []
    assert warm["usage"]["input_tokens"] > 0
    assert warm["usage"]["output_tokens"] == 0
    named = {"store": False, "previous_response_id": warm["id"]}
    assert "You said" in says(await client.done([], **named)), "an empty delta generates"


@pytest_twisted.ensureDeferred
async def test_a_prewarm_in_the_middle(running: RunningSimulator) -> None:
    client = await opened(running)
    first = await client.done(CODE_WORD, store=False)
    named = {"store": False, "previous_response_id": first["id"]}
    warm = await client.done([], generate=False, **named)
    assert "Lychee" in says(await client.done(ASK, store=False, previous_response_id=warm["id"]))


# ---- lanes


@pytest_twisted.ensureDeferred
async def test_every_event_and_error_of_a_lane_has_its_name(running: RunningSimulator) -> None:
    client = await opened(running)
    client.create(stream_id="a.B-c_1")
    client.create(ORPHAN, stream_id="x")
    while (await client.event())["type"] != "error":
        pass
    assert {event.get("stream_id") for event in map(json.loads, client.texts)} == {"a.B-c_1", "x"}


async def passes(clock: Clock, condition: Any) -> None:
    """Let seconds pass until the condition holds; clients read between them."""

    def holds() -> bool:
        clock.advance(1.0)
        return bool(condition())

    await until(holds)


async def lanes_of(client: SocketClient, *lanes: str | None) -> None:
    for lane in lanes:
        client.create(**({} if lane is None else {"stream_id": lane}))


@pytest_twisted.ensureDeferred
async def test_lanes_run_side_by_side_and_each_in_order() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS, event_delay=1.0)
    client = await opened(running)
    await lanes_of(client, None, None, "a", "a", "b")
    log = running.simulator.requests
    await until(lambda: len(log) == 6)
    assert [bool(entry.response_id) for entry in log][1:] == [True, False, True, False, True]
    await passes(clock, lambda: all(entry.outcome == "completed" for entry in log))
    frames: list[Any] = []
    while len([frame for frame in frames if frame["type"] == "response.completed"]) < 5:
        frames.append(await client.event())
    for lane in (None, "a"):
        mine = [frame for frame in frames if frame.get("stream_id") == lane]
        ends = [frame["type"] == "response.completed" for frame in mine]
        assert ends.index(True) < [f["type"] == "response.created" for f in mine].index(True, 1)
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_sixteen_run_and_more_wait() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS, event_delay=1.0)
    client = await opened(running)
    await lanes_of(client, *(f"lane-{number}" for number in range(20)))
    log = running.simulator.requests
    await until(lambda: len(log) == 21)
    assert sum(bool(entry.response_id) for entry in log) == 16
    await passes(clock, lambda: all(entry.outcome == "completed" for entry in log))
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_a_connection_has_32_names(running: RunningSimulator) -> None:
    client = await opened(running)
    for number in range(32):
        await client.done(stream_id=f"lane-{number}")
    error = (await client.turn(stream_id="one-too-many"))[-1]["error"]
    assert error["code"] == "websocket_stream_limit_reached"
    await client.done(stream_id="lane-0")
    await client.done()


@pytest_twisted.ensureDeferred
async def test_an_account_without_lanes_and_queue(running: RunningSimulator) -> None:
    client = await opened(running, "alone")
    client.create(stream_id="a")
    event = await client.event()
    assert event["error"]["code"] == "unsupported_parameter"
    assert "stream_id" not in event
    running.simulator.faults.push("alone", SilenceAfter(1))
    client.create("one")
    client.create("two")
    assert (await client.event())["type"] == "response.created"
    assert (await client.event())["error"]["code"] == "response_already_in_flight"


@pytest_twisted.ensureDeferred
async def test_waiting_requests_are_bounded(running: RunningSimulator) -> None:
    client = await opened(running)
    running.simulator.faults.push("stateful", SilenceAfter(1))
    for _ in range(1002):
        client.create()
    (error,) = [each for each in await client.events(lane="*") if each["type"] == "error"]
    assert error["status"] == 429


# ---- age


@pytest_twisted.ensureDeferred
async def test_an_old_socket_refuses_requests_and_answers_pings() -> None:
    clock = Clock()
    options = SocketOptions(age_seconds=90)
    running = RunningSimulator(clock, accounts=[SimulatedAccount("stateful", websocket=options)])
    client = await opened(running)
    clock.advance(89)
    first = await client.done(store=False)
    clock.advance(1)
    for _ in range(2):
        error = await client.refused(previous_response_id=first["id"], store=False)
        assert error["code"] == "websocket_connection_limit_reached"
        assert error["type"] == "invalid_request_error"
    client.ping()
    await until(lambda: client.pongs)
    assert client.close_code is None
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_the_ages_of_the_services() -> None:
    ages = {
        dialect: SimulatedAccount("a", dialect=dialect).websocket.age_seconds
        for dialect in ("platform", "chatgpt", "xai")
    }
    assert ages == {"platform": 3600.0, "chatgpt": 3600.0, "xai": 1500.0}


@pytest_twisted.ensureDeferred
async def test_a_socket_can_close_at_its_age_between_responses() -> None:
    clock = Clock()
    options = SocketOptions(age_seconds=90, close_at_age=1001)
    accounts = [SimulatedAccount("stateful", websocket=options)]
    running = RunningSimulator(clock, accounts=accounts)
    client = await opened(running)
    running.simulator.faults.push("stateful", PauseAfter(5, 2))
    clock.advance(87)
    client.create()
    await client.events("response.in_progress")
    clock.advance(4)
    client.ping()
    await until(lambda: client.pongs)
    assert client.close_code is None, "a response runs"
    clock.advance(5)
    await client.events()
    assert await client.closed() == 1001
    await running.stop()
