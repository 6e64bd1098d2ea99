"""Sixteen lanes of the OpenAI SDK on one connection, over accounts of both transports."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import pytest

from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.tap import Connection
from tests.e2e.test_moving_conversations import parrot
from tests.support.events import Json
from tests.support.gateway import account
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange

pytestmark = pytest.mark.e2e

LANES = 16
TURNS = 6
LOST_IN = 3  # the turn
SECONDS = 60.0
TRANSPORTS = {"north": "http", "south": "http", "socket": "websocket"}


class Loss:
    """An account whose answers to the third turns do not come, until it is gone."""

    def __init__(self, upstream: Strict) -> None:
        self.upstream = upstream
        self.held = 0
        upstream.before_answer = self._hold

    def _hold(self, exchange: Exchange) -> bool:
        if f"turn {LOST_IN} of" not in str(exchange.request.input):
            return False
        self.held += 1
        exchange.hold()
        return True


def each_lane(connection: Connection) -> dict[str, list[Json]]:
    """The events of each lane as they were on the wire; none is without its id."""
    by_lane: dict[str, list[Json]] = defaultdict(list)
    for event in connection.server_frames:
        by_lane[event["stream_id"]].append(event)
    return by_lane


def assert_in_order(events: list[Json], responses: list[str]) -> None:
    """The responses of a lane, one after the other, each numbered without a gap or an error."""
    for response_id in responses:
        sequence: list[int] = []
        while True:
            event = events.pop(0)
            sequence.append(event["sequence_number"])
            if "response" in event:
                assert event["response"]["id"] == response_id, "an event of another response"
            if event["type"] == "response.completed":
                break
        assert sequence == list(range(len(sequence)))
    assert events == [], "more than was asked for"


@pytest.mark.parametrize("lost", ["north", pytest.param("socket", marks=pytest.mark.all_clients)])
def test_sixteen_lanes_and_an_account_lost(scene: Scene, lost: str) -> None:
    scene.need_packages("openai", "websockets")
    from openai import OpenAI
    from openai.lib.responses_websocket import ResponsesWebSocketLimits, ResponsesWebSocketSession

    pool: dict[str, Strict] = {}
    for name, transport in TRANSPORTS.items():
        scene.transport = transport
        pool[name] = scene.service(lambda _, name=name: Strict(name, Mode.STATEFUL, parrot))  # type: ignore[misc]
    loss = Loss(pool[lost])
    accounts = [
        account(name, upstream.server, transport=TRANSPORTS[name])
        for name, upstream in pool.items()
    ]
    tap = scene.tap(scene.gateway_with(accounts).port)
    limits = ResponsesWebSocketLimits(
        max_lanes=LANES + 1,
        max_events_per_lane=1000,
        max_events=LANES * 1000,
        max_bytes_per_lane=1 << 24,
        max_bytes=1 << 26,
    )
    client = OpenAI(base_url=tap.base_url, api_key=CLIENT_KEY, max_retries=0)
    options: Any = {"max_size": None}
    told: dict[int, list[str]] = defaultdict(list)
    ids: dict[int, list[str]] = defaultdict(list)
    with (
        client.responses.connect(websocket_connection_options=options) as connection,
        ResponsesWebSocketSession(connection, limits=limits) as session,
    ):
        lanes = [session.lane(f"lane-{number}") for number in range(LANES)]
        for turn in range(1, TURNS + 1):
            for number, lane in enumerate(lanes):
                told[number].append(f"turn {turn} of lane {number}")
                create: Any = {
                    "type": "response.create",
                    "model": "gpt-5.5",
                    "store": number % 2 == 0,
                    "prompt_cache_key": f"lane-{number}",
                    "input": told[number][-1],
                }
                if ids[number]:
                    create["previous_response_id"] = ids[number][-1]
                lane.send(create)
            if turn == LOST_IN:
                at_home = sum(list(ids.values())[n][-1] in loss.upstream.order for n in ids)
                deadline = time.monotonic() + SECONDS
                while loss.held < at_home:
                    assert time.monotonic() < deadline, "the turns did not reach their account"
                    time.sleep(0.01)
                assert loss.held, "nothing would be lost"
                loss.upstream.server.stop()
            for number, lane in enumerate(lanes):
                response = lane.get_final_response(timeout=SECONDS)
                assert response.status == "completed"
                assert response.output_text == " ".join(told[number]), "a turn lost or doubled"
                ids[number].append(response.id)

    (wire,) = tap.connections
    events = each_lane(wire)
    assert set(events) == {f"lane-{number}" for number in range(LANES)}
    for number in range(LANES):
        assert_in_order(events[f"lane-{number}"], ids[number])
    answered = {name: len(upstream.order) for name, upstream in pool.items()}
    assert all(answered.values()), "an account had nothing to do"
    assert sum(answered.values()) == LANES * TURNS, "a turn was answered twice"
    print(f"{LANES} lanes of {TURNS} turns; {loss.held} ran at {lost} when it was lost: {answered}")
