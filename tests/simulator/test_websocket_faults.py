"""Faults of the simulator's sockets: at the upgrade, in frames, at each point of an answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock, deferLater

from simulator import SimulatedAccount
from simulator.accounts import SocketOptions
from simulator.faults import (
    EMPTY_ERROR,
    CloseAfter,
    CloseFrame,
    DropAfter,
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
)
from simulator.websocket_faults import (
    BreakAt,
    CloseWith,
    DeafAfter,
    Fragmented,
    Point,
    SecondAnswer,
    SlowReading,
    StrayAtEnd,
    WireAfter,
)
from tests.simulator.running import RunningSimulator, until
from tests.simulator.websocket_client import close_frame, dialled, opened, refused_upgrade

ACCOUNTS = [
    SimulatedAccount("a"),
    SimulatedAccount("limits", websocket=SocketOptions(sends_limits=True)),
]


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(accounts=ACCOUNTS)
    yield running
    await running.stop()


def push(running: RunningSimulator, fault: Fault, to: Any = "create") -> None:
    running.simulator.faults.push("a", fault, to=to)


# ---- upgrades


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (Refuse(403), 403, b""),
        (Refuse(403, "<html>", {"cf-mitigated": "challenge"}), 403, b"<html>"),
        (Refuse(404), 404, b""),
        (Refuse(405), 405, b""),
        (Refuse(426), 426, b""),
        (Refuse(503, headers={"retry-after": "1"}), 503, b""),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_refused_upgrade(
    running: RunningSimulator, fault: Refuse, status: int, body: bytes
) -> None:
    push(running, fault, "upgrade")
    client = await refused_upgrade(running, "a")
    assert (client.status, client.body) == (status, body)
    assert fault.headers.items() <= client.headers.items()
    entry = running.simulator.requests[-1]
    assert (entry.endpoint, entry.status, entry.outcome) == ("upgrade", status, "refused")
    await (await opened(running, "a")).done()


@pytest_twisted.ensureDeferred
async def test_a_refused_upgrade_of_a_used_up_account(running: RunningSimulator) -> None:
    push(running, Refuse.usage_limit_reached(1_800_000_000, 86_400), "upgrade")
    client = await refused_upgrade(running, "a")
    assert client.status == 429
    error = json.loads(client.body)["error"]
    assert (error["type"], error["resets_at"]) == ("usage_limit_reached", 1_800_000_000)


@pytest_twisted.ensureDeferred
async def test_an_upgrade_takes_only_its_own_faults(running: RunningSimulator) -> None:
    running.simulator.faults.push("a", Refuse(500))
    running.simulator.faults.always("a", NoEcho())
    client = await opened(running, "a")
    assert (await client.refused())["message"] == "None"


@pytest_twisted.ensureDeferred
async def test_a_late_101() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS)
    push(running, PauseAfter(15), "upgrade")
    client = await dialled(running, "a")
    await until(lambda: len(running.simulator.requests))
    await deferLater(reactor, 0.05)
    assert not client.status
    clock.advance(15)
    await until(lambda: client.status == 101)
    await client.done()
    await running.stop()


@pytest.mark.parametrize("fault", [DropAfter(), CloseAfter()])
@pytest_twisted.ensureDeferred
async def test_a_connection_that_ends_before_the_101(
    running: RunningSimulator, fault: Fault
) -> None:
    push(running, fault, "upgrade")
    client = await dialled(running, "a")
    await until(lambda: client.lost)
    assert client.status == 0
    assert running.simulator.requests[-1].outcome == "dropped"


@pytest_twisted.ensureDeferred
async def test_an_upgrade_without_an_answer(running: RunningSimulator) -> None:
    push(running, SilenceAfter(), "upgrade")
    client = await dialled(running, "a")
    await until(lambda: len(running.simulator.requests))
    await deferLater(reactor, 0.05)
    assert (client.status, client.lost) == (0, False)
    client.drop()
    await until(lambda: running.simulator.requests[-1].outcome == "cancelled")


@pytest_twisted.ensureDeferred
async def test_a_refusal_behind_the_101(running: RunningSimulator) -> None:
    push(running, CloseWith(1008, after=1), "upgrade")
    client = await dialled(running, "a")
    await until(lambda: client.close_code)
    assert (client.status, client.close_code) == (101, 1008)


@pytest_twisted.ensureDeferred
async def test_headers_of_the_101(running: RunningSimulator) -> None:
    push(running, ResponseHeaders({"x-models-etag": "7"}), "upgrade")
    assert (await opened(running, "a")).headers["x-models-etag"] == "7"


# ---- answers


@pytest.mark.parametrize(
    ("point", "last"),
    [
        ("begin", None),
        ("created", "codex.rate_limits"),
        ("output", "response.in_progress"),
        ("item_done", "response.output_item.done"),
        ("terminal", "response.output_item.done"),
        ("end", "response.completed"),
    ],
)
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending.DROP, None),
        (Ending.CLOSE, None),
        (CloseFrame(1000), 1000),
        (CloseFrame(1011, "keepalive ping timeout"), 1011),
        (CloseFrame(1012), 1012),
        (CloseFrame(4000), 4000),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_end_at_a_point(
    running: RunningSimulator,
    point: Point,
    last: str | None,
    ending: Ending | CloseFrame,
    code: int | None,
) -> None:
    running.simulator.faults.push("limits", BreakAt(point, ending), to="create")
    client = await opened(running, "limits")
    client.create()
    assert await client.closed() == code
    await until(lambda: not running.simulator.sockets[-1].is_open)
    kinds = [frame["type"] for frame in client.frames]
    assert (kinds[-1] if kinds else None) == last
    record = running.simulator.sockets[-1]
    assert (record.closed_by_service, record.close_code) == (True, code)
    expected = "completed" if point == "end" else "dropped"
    assert running.simulator.requests[-1].outcome == expected


@pytest.mark.parametrize("ending", [Ending.DROP, Ending.CLOSE, Ending.DEAF, CloseFrame(1011)])
@pytest_twisted.ensureDeferred
async def test_an_end_is_one_for_all_lanes(
    running: RunningSimulator, ending: Ending | CloseFrame
) -> None:
    for fault in (SilenceAfter(3), Fault(), SilenceAfter(3), Fault(), BreakAt("output", ending)):
        push(running, fault)
    client = await opened(running, "a")
    for lane in ("a", "b"):
        client.create(stream_id=lane)
        client.create(stream_id=lane)
    client.create("last")
    creates = running.simulator.requests
    await until(lambda: len(creates) == 6)
    outcomes = [entry.outcome for entry in creates][1:]
    assert outcomes == ["cancelled"] * 4 + ["dropped"]
    if client.close_code is None:
        client.create("ignored")
    await until(lambda: client.lost or client.close_code or ending is Ending.DEAF)
    assert len(creates) == 6


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("kind", [DropAfter, CloseAfter])
@pytest_twisted.ensureDeferred
async def test_an_end_after_n_events(running: RunningSimulator, kind: Any, count: int) -> None:
    push(running, kind(count))
    client = await opened(running, "a")
    client.create()
    await until(lambda: client.lost)
    assert len(client.texts) == count
    assert client.close_code is None


@pytest_twisted.ensureDeferred
async def test_a_close_frame_without_a_code(running: RunningSimulator) -> None:
    push(running, CloseWith(None, after=2))
    client = await opened(running, "a")
    client.create()
    assert await client.closed() == 1005


@pytest_twisted.ensureDeferred
async def test_silence_and_pings(running: RunningSimulator) -> None:
    push(running, SilenceAfter(2))
    client = await opened(running, "a")
    client.create()
    await client.events("response.in_progress")
    client.ping()
    await until(lambda: client.pongs)
    assert not client.frames


@pytest_twisted.ensureDeferred
async def test_a_dead_peer_answers_no_ping(running: RunningSimulator) -> None:
    push(running, DeafAfter(2))
    client = await opened(running, "a")
    client.create()
    await client.events("response.in_progress")
    client.ping()
    client.create()
    await deferLater(reactor, 0.1)
    assert (client.pongs, client.lost, len(client.frames)) == ([], False, 0)
    assert running.simulator.sockets[-1].requests == 1


@pytest_twisted.ensureDeferred
async def test_a_late_first_event() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS)
    push(running, PauseAfter(120))
    client = await opened(running, "a")
    client.create()
    await until(lambda: len(running.simulator.requests) == 2)
    await deferLater(reactor, 0.05)
    assert not client.texts
    clock.advance(120)
    await client.events()
    await running.stop()


@pytest_twisted.ensureDeferred
async def test_an_answer_that_just_ends_leaves_the_lane_free(running: RunningSimulator) -> None:
    push(running, EndAfter(3))
    client = await opened(running, "a")
    client.create()
    client.create()
    kinds = [event["type"] for event in await client.events()]
    assert kinds.count("response.created") == 2


@pytest_twisted.ensureDeferred
async def test_errors_of_a_request(running: RunningSimulator) -> None:
    client = await opened(running, "a")
    push(running, Refuse.rate_limited(30))
    push(running, Refuse.error(503, "server_is_overloaded"))
    push(running, Refuse(502, "Bad gateway"))
    (event,) = await client.turn(stream_id="b")
    assert (event["status"], event["headers"]) == (429, {"retry-after": "30"})
    assert event["stream_id"] == "b"
    assert (await client.refused())["code"] == "server_is_overloaded"
    assert (await client.refused())["message"] == "Bad gateway"


@pytest_twisted.ensureDeferred
async def test_odd_events(running: RunningSimulator) -> None:
    client = await opened(running, "a")
    push(running, InsertAfter(EMPTY_ERROR, 2))
    push(running, InsertAfter(b'{\n  "type": "error",\n  "status": 503\n}', 0, Ending.END))
    push(running, TerminalAfter(incomplete_reason="max_output_tokens"))
    push(running, ResponseHeaders({"openai-model": "m-2"}))
    kinds = [event["type"] for event in await client.turn()]
    assert kinds == ["response.created", "response.in_progress", "error"]
    assert (await client.events())[-1]["type"] == "response.completed"
    assert (await client.turn())[-1]["status"] == 503
    assert "\n" in client.texts[-1]
    last = (await client.turn())[-1]
    assert last["type"] == "response.incomplete"
    first = (await client.turn())[0]
    assert (first["type"], first["headers"]) == ("response.metadata", {"openai-model": "m-2"})


@pytest_twisted.ensureDeferred
async def test_what_comes_after_an_answer() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS)
    stray = {"type": "response.completed", "response": {"id": "resp_stray"}}
    push(running, StrayAtEnd([stray], seconds=2.0))
    push(running, SecondAnswer())
    client = await opened(running, "a")
    await client.done()
    await client.done()
    assert (await client.events())[-1]["type"] == "response.completed"
    clock.advance(2.0)
    assert await client.event() == stray
    await running.stop()


# ---- frames


@pytest_twisted.ensureDeferred
async def test_fragmented_messages(running: RunningSimulator) -> None:
    push(running, Fragmented(5))
    client = await opened(running, "a")
    await client.done()
    data = [frame for frame in client.tap.frames if frame.opcode in (0, 1)]
    assert max(frame.length for frame in data) == 5
    assert sum(frame.fin for frame in data) == len(client.texts)


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\x02\xff\xfe",  # not UTF-8
        b"\x82\x01x",  # binary
        b"\xc1\x01x",  # a reserved bit
        b"\x81\x81\0\0\0\0x",  # masked
        b"\x83\x01x",  # an unknown opcode
    ],
)
@pytest_twisted.ensureDeferred
async def test_broken_frames(running: RunningSimulator, data: bytes) -> None:
    push(running, WireAfter(data, 2))
    client = await opened(running, "a")
    client.create()
    await until(lambda: client.error or len(client.tap.frames) > 3)
    found = {(frame.opcode, frame.rsv1, frame.length) for frame in client.tap.frames}
    assert (data[0] & 15, bool(data[0] & 64), data[1] & 127) in found


@pytest.mark.parametrize("code", [999, 1004, 1005, 1006, 1015, 5000])
@pytest_twisted.ensureDeferred
async def test_close_codes_that_nobody_may_send(running: RunningSimulator, code: int) -> None:
    push(running, CloseWith(code, after=1))
    push(running, WireAfter(close_frame(code), 1))
    for _ in range(2):
        client = await opened(running, "a")
        client.create()
        await until(lambda client=client: client.error or client.close_code)  # type: ignore[misc]
        assert client.tap.frames[1].opcode == 8
        client.drop()


@pytest_twisted.ensureDeferred
async def test_an_event_of_70_mb(running: RunningSimulator) -> None:
    big = {"type": "response.output_text.delta", "delta": "x" * 70_000_000}
    push(running, InsertAfter(big, 3))
    client = await opened(running, "a")
    client.create()
    await client.events()
    assert max(map(len, client.texts)) > 70_000_000


@pytest_twisted.ensureDeferred
async def test_slow_reading() -> None:
    clock = Clock()
    running = RunningSimulator(clock, accounts=ACCOUNTS)
    push(running, SlowReading(1000), "upgrade")
    client = await opened(running, "a")
    await until(lambda: running.simulator.sockets)
    client.create("x" * 40_000_000)
    await deferLater(reactor, 0.2)
    assert running.simulator.sockets[-1].messages == 0

    def answered() -> bool:
        clock.advance(1000)
        return bool(client.lost or running.simulator.sockets[-1].close_code)

    await until(answered)
    assert running.simulator.sockets[-1].close_code == 1009
    await running.stop()
