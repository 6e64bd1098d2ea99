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
from tests.simulator.house import House, Reader, parsed, until

BODY = {"model": "m", "input": "hello there", "background": True}
SECONDS = 10.0


@pytest_twisted.async_yield_fixture()
async def house() -> AsyncIterator[House]:
    running = House(clock=Clock(), background_seconds=SECONDS)
    yield running
    await running.stop()


def pending(clock: Clock) -> list[str]:
    """The calls of background responses that wait."""
    waiting = [str(call) for call in clock.getDelayedCalls()]
    return [call for call in waiting if BackgroundRun.__name__ in call]


async def followed(house: House, path: str) -> list[dict[str, Any]]:
    return parsed(await (await house.request("GET", path)).text())


@pytest_twisted.ensureDeferred
async def test_a_background_response_completes_by_itself(house: House) -> None:
    made = await house.create(BODY)
    assert (made["status"], made["background"], made["output"]) == ("queued", True, [])
    path = f"/responses/{made['id']}"
    assert await house.send("GET", path) == made
    house.simulator.clock.advance(SECONDS / 2)
    assert house.simulator.requests[-1].at == 0.0
    running = await house.send("GET", path)
    assert (running["status"], running["output"]) == ("in_progress", [])
    assert house.simulator.requests[-1].at == SECONDS / 2
    early = await house.create({"input": "more", "previous_response_id": made["id"]})
    assert early["error"]["param"] == "previous_response_id", "it cannot be continued yet"
    house.simulator.clock.pump([SECONDS / 50] * 50)
    done = await house.send("GET", path)
    assert (done["status"], done["id"]) == ("completed", made["id"])
    assert "hello there" in done["output"][0]["content"][0]["text"]
    more = await house.create({"input": "what did I say?", "previous_response_id": made["id"]})
    assert "hello there" in more["output"][0]["content"][0]["text"]
    late = await house.request("POST", path + "/cancel")
    assert late.code == 400
    assert "completed" in (await late.json())["error"]["message"]


@pytest_twisted.ensureDeferred
async def test_a_stream_that_is_dropped_does_not_end_the_response(house: House) -> None:
    response = await house.post({**BODY, "stream": True}, unbuffered=True)
    reader = Reader()
    response.original.deliverBody(reader)
    await until(lambda: reader.received)
    reader.transport.loseConnection()
    entry = house.simulator.requests[-1]
    await until(lambda: entry.outcome == "cancelled")
    house.simulator.clock.pump([SECONDS / 50] * 51)
    path = f"/responses/{entry.response_id}"
    assert (await house.send("GET", path))["status"] == "completed"
    whole = await followed(house, path + "?stream=true")
    assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
    assert [event["type"] for event in whole[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    statuses = [event["response"]["status"] for event in whole if "response" in event]
    assert statuses == ["queued", "queued", "in_progress", "completed"]
    assert await followed(house, path + "?stream=true&starting_after=3") == whole[4:]
    assert await followed(house, path + f"?stream=true&starting_after={len(whole)}") == []


@pytest_twisted.ensureDeferred
async def test_a_stream_resumed_in_the_middle_gets_what_comes_after(house: House) -> None:
    house.simulator.faults.push("stateful", DropAfter(2))
    with pytest.raises(ResponseFailed):
        await (await house.post({**BODY, "stream": True})).content()
    entry = house.simulator.requests[-1]
    assert entry.outcome == "dropped"
    response = await house.request(
        "GET", f"/responses/{entry.response_id}?stream=true&starting_after=1"
    )
    reading = response.text()
    house.simulator.clock.pump([SECONDS / 50] * 51)
    events = parsed(await reading)
    assert events[0]["sequence_number"] == 2
    assert events[-1]["type"] == "response.completed"


@pytest_twisted.ensureDeferred
async def test_cancelling_ends_it_and_its_streams(house: House) -> None:
    response = await house.post({**BODY, "stream": True}, unbuffered=True)
    reader = Reader()
    response.original.deliverBody(reader)
    await until(lambda: reader.received)
    path = f"/responses/{house.simulator.requests[-1].response_id}"
    entry = house.simulator.requests[-1]
    for _again in range(2):
        cancelled = await house.send("POST", path + "/cancel")
        assert (cancelled["object"], cancelled["status"]) == ("response", "cancelled")
    assert entry.outcome == "ended"
    house.simulator.clock.advance(SECONDS)
    assert await house.send("GET", path) == cancelled
    assert not pending(house.simulator.clock)


@pytest_twisted.ensureDeferred
async def test_deleting_stops_it(house: House) -> None:
    made = await house.create(BODY)
    assert pending(house.simulator.clock)
    await house.send("DELETE", f"/responses/{made['id']}")
    assert not pending(house.simulator.clock)
    assert (await house.request("GET", f"/responses/{made['id']}")).code == 404


@pytest_twisted.ensureDeferred
async def test_what_cannot_be_cancelled_or_followed(house: House) -> None:
    plain = await house.create({"input": "hello"})
    unstreamed = await house.create(BODY)
    for method, path in (
        ("POST", f"/responses/{plain['id']}/cancel"),
        ("GET", f"/responses/{plain['id']}?stream=true"),
        ("GET", f"/responses/{unstreamed['id']}?stream=true"),
        ("GET", f"/responses/{unstreamed['id']}?starting_after=-1"),
    ):
        response = await house.request(method, path)
        assert response.code == 400, path
        await response.content()
    unknown = await house.request("POST", "/responses/resp_1/cancel")
    assert unknown.code == 404


@pytest_twisted.ensureDeferred
async def test_who_takes_no_background(house: House) -> None:
    unstored = await house.create({**BODY, "store": False})
    assert "store" in unstored["error"]["message"]
    for account in ("stateless", "forgetful"):
        refused = await house.create(BODY, account)
        assert refused["error"]["code"] == "unsupported_parameter"
        assert refused["error"]["param"] == "background"


@pytest_twisted.ensureDeferred
async def test_a_background_response_may_fail(house: House) -> None:
    house.simulator.faults.push("stateful", TerminalAfter(after=4), Refuse.rate_limited())
    made = await house.create(BODY)
    refused = await house.create(BODY)
    assert refused["error"]["code"] == "rate_limit_exceeded"
    house.simulator.clock.pump([SECONDS / 4] * 5)
    failed = await house.send("GET", f"/responses/{made['id']}")
    assert (failed["status"], failed["error"]["code"]) == ("failed", "server_error")


@pytest_twisted.ensureDeferred
async def test_a_stop_leaves_no_background_response_behind() -> None:
    house = House(clock=Clock(), background_seconds=SECONDS)
    await house.create(BODY)
    await house.stop()
    assert not pending(house.simulator.clock)


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
