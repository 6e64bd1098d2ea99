"""Background responses: they go on by themselves, are followed, resumed, cancelled and deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.web.client import ResponseFailed

from simulator.engine import BackgroundRun, Record
from simulator.faults import DropAfter, Refuse, TerminalAfter
from tests.simulator.running import Reader, RunningSimulator, parsed, until

BODY = {"model": "m", "input": "hello there", "background": True}
SECONDS = 10.0


@pytest_twisted.async_yield_fixture()
async def running() -> AsyncIterator[RunningSimulator]:
    running = RunningSimulator(clock=Clock(), background_seconds=SECONDS)
    yield running
    await running.stop()


def pending(clock: Clock) -> list[str]:
    """The calls of background responses that wait."""
    waiting = [str(call) for call in clock.getDelayedCalls()]
    return [call for call in waiting if BackgroundRun.__name__ in call]


async def followed(running: RunningSimulator, path: str) -> list[dict[str, Any]]:
    return parsed(await (await running.request("GET", path)).text())


@pytest_twisted.ensureDeferred
async def test_a_background_response_completes_by_itself(running: RunningSimulator) -> None:
    made = await running.create(BODY)
    assert (made["status"], made["background"], made["output"]) == ("queued", True, [])
    path = f"/responses/{made['id']}"
    assert await running.send("GET", path) == made
    running.simulator.clock.advance(SECONDS / 2)
    assert running.simulator.requests[-1].at == 0.0
    half = await running.send("GET", path)
    assert (half["status"], half["output"]) == ("in_progress", [])
    assert running.simulator.requests[-1].at == SECONDS / 2
    early = await running.create({"input": "more", "previous_response_id": made["id"]})
    assert early["error"]["param"] == "previous_response_id", "it cannot be continued yet"
    running.simulator.clock.pump([SECONDS / 50] * 50)
    done = await running.send("GET", path)
    assert (done["status"], done["id"]) == ("completed", made["id"])
    assert "hello there" in done["output"][0]["content"][0]["text"]
    more = await running.create({"input": "what did I say?", "previous_response_id": made["id"]})
    assert "hello there" in more["output"][0]["content"][0]["text"]
    late = await running.request("POST", path + "/cancel")
    assert late.code == 400
    assert "completed" in (await late.json())["error"]["message"]


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_dropped_does_not_end_the_response(
    running: RunningSimulator,
) -> None:
    response = await running.post({**BODY, "stream": True}, unbuffered=True)
    reader = Reader()
    response.original.deliverBody(reader)
    await until(lambda: reader.received)
    reader.transport.loseConnection()
    entry = running.simulator.requests[-1]
    await until(lambda: entry.outcome == "cancelled")
    running.simulator.clock.pump([SECONDS / 50] * 51)
    path = f"/responses/{entry.response_id}"
    assert (await running.send("GET", path))["status"] == "completed"
    whole = await followed(running, path + "?stream=true")
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert [event["type"] for event in whole[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    statuses = [event["response"]["status"] for event in whole if "response" in event]
    assert statuses == ["queued", "queued", "in_progress", "completed"]
    assert await followed(running, path + "?stream=true&starting_after=3") == whole[4:]
    assert await followed(running, path + f"?stream=true&starting_after={len(whole)}") == []


@pytest_twisted.ensureDeferred
async def test_a_stream_resumed_in_the_middle_gets_what_comes_after(
    running: RunningSimulator,
) -> None:
    running.simulator.faults.push("stateful", DropAfter(2))
    with pytest.raises(ResponseFailed):
        await (await running.post({**BODY, "stream": True})).content()
    entry = running.simulator.requests[-1]
    assert entry.outcome == "dropped"
    response = await running.request(
        "GET", f"/responses/{entry.response_id}?stream=true&starting_after=1"
    )
    reading = response.text()
    running.simulator.clock.pump([SECONDS / 50] * 51)
    events = parsed(await reading)
    assert events[0]["sequence_number"] == 2
    assert events[-1]["type"] == "response.completed"


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_it_and_its_streams(running: RunningSimulator) -> None:
    response = await running.post({**BODY, "stream": True}, unbuffered=True)
    reader = Reader()
    response.original.deliverBody(reader)
    await until(lambda: reader.received)
    path = f"/responses/{running.simulator.requests[-1].response_id}"
    entry = running.simulator.requests[-1]
    for _again in range(2):
        cancelled = await running.send("POST", path + "/cancel")
        assert (cancelled["object"], cancelled["status"]) == ("response", "cancelled")
    assert entry.outcome == "ended"
    running.simulator.clock.advance(SECONDS)
    assert await running.send("GET", path) == cancelled
    assert not pending(running.simulator.clock)


@pytest_twisted.ensureDeferred
async def test_deleting_stops_it(running: RunningSimulator) -> None:
    made = await running.create(BODY)
    assert pending(running.simulator.clock)
    await running.send("DELETE", f"/responses/{made['id']}")
    assert not pending(running.simulator.clock)
    assert (await running.request("GET", f"/responses/{made['id']}")).code == 404


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_cancelled_or_followed(running: RunningSimulator) -> None:
    plain = await running.create({"input": "hello"})
    unstreamed = await running.create(BODY)
    for method, path in (
        ("POST", f"/responses/{plain['id']}/cancel"),
        ("GET", f"/responses/{plain['id']}?stream=true"),
        ("GET", f"/responses/{unstreamed['id']}?stream=true"),
        ("GET", f"/responses/{unstreamed['id']}?starting_after=-1"),
    ):
        response = await running.request(method, path)
        assert response.code == 400, path
        await response.content()
    unknown = await running.request("POST", "/responses/resp_1/cancel")
    assert unknown.code == 404


@pytest_twisted.ensureDeferred
async def test_who_takes_no_background(running: RunningSimulator) -> None:
    unstored = await running.create({**BODY, "store": False})
    assert "store" in unstored["error"]["message"]
    for account in ("stateless", "forgetful"):
        refused = await running.create(BODY, account)
        assert refused["error"]["code"] == "unsupported_parameter"
        assert refused["error"]["param"] == "background"


@pytest_twisted.ensureDeferred
async def test_a_background_response_may_fail(running: RunningSimulator) -> None:
    running.simulator.faults.push("stateful", TerminalAfter(after=4), Refuse.rate_limited())
    made = await running.create(BODY)
    refused = await running.create(BODY)
    assert refused["error"]["code"] == "rate_limit_exceeded"
    running.simulator.clock.pump([SECONDS / 4] * 5)
    failed = await running.send("GET", f"/responses/{made['id']}")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")


@pytest_twisted.ensureDeferred
async def test_a_stop_leaves_no_background_response_behind() -> None:
    running = RunningSimulator(clock=Clock(), background_seconds=SECONDS)
    await running.create(BODY)
    await running.stop()
    assert not pending(running.simulator.clock)


@given(st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 3)), max_size=4), st.booleans())
def test_every_follower_gets_every_event_once(starts: Any, cancelled: bool) -> None:
    """Whenever they begin, and whether or not the run is cancelled half-way."""
    clock = Clock()
    events: list[Any] = [{"type": "response.created"}, *({"type": f"e{n}"} for n in range(6))]
    record = Record("resp_1", None, (), (), {"status": "queued", "output": []})
    run = BackgroundRun(
        record, events, keep=lambda _: None, clock=clock, seconds=7.0, streamed=True
    )
    run.start()
    followers: list[tuple[int, Any, list[int]]] = []

    def read() -> None:
        for _start, steps, seen in followers:
            for step in steps:
                if not isinstance(step, dict):
                    break
                seen.append(step["sequence_number"])

    for second in range(4):
        for after, when in starts:
            if when == second:
                followers.append((after, run.follow(after), []))
        read()
        clock.advance(1)
        read()
    if cancelled:
        run.cancel()
    else:
        clock.pump([1] * 8)
    read()
    made = 5 if cancelled else 7
    assert run.is_over
    for after, steps, seen in followers:
        assert seen == list(range(after + 1, made))
        assert next(steps, None) is None
    assert not clock.getDelayedCalls()
