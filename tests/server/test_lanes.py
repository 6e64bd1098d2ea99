"""Whose turn is next: lanes with turns that do as they are told, without a session."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from gateway.protocol.errors import ApiError
from gateway.protocol.request import TurnRequest, read_create, read_members
from gateway.server.lanes import MAX_RUNNING, Lane, Lanes, LaneState
from gateway.turn.turn import Turn


def request(stream_id: str | None = None, size: int = 10) -> TurnRequest:
    message = {"type": "response.create", "input": "hi"}
    if stream_id is not None:
        message["stream_id"] = stream_id
    return read_create(read_members(json.dumps(message).encode()), size)


class FakeTurn:
    """Runs until it is told to end."""

    def __init__(self, session: FakeSession, lane: Lane) -> None:
        self.session = session
        self.lane = lane
        self.said: list[str] = []

    def pause(self) -> None:
        self.said.append("pause")

    def resume(self) -> None:
        self.said.append("resume")
        if self.session.fills_again:
            self.session.lanes.pause()

    def ends(self) -> None:
        self.lane.turn_ended()


class FakeSession:
    """Owns lanes, and starts what they say is due."""

    def __init__(self, max_queued_turns: int = 10, max_queued_bytes: int = 1000) -> None:
        self.lanes = Lanes(
            max_queued_turns, max_queued_bytes, self.send, self.start_turn, self.turn_ended
        )
        self.sent: list[Any] = []
        self.turns: list[FakeTurn] = []
        self.fills_again = False
        self.ends_at_once = False

    def send(self, payloads: Any) -> None:
        self.sent += [json.loads(payload) for payload in payloads]

    def start_turn(self, lane: Lane, request: TurnRequest, accepted_at: float) -> None:
        assert lane.state is LaneState.RUNNING
        turn = FakeTurn(self, lane)
        lane.running = cast(Turn, turn)
        self.turns.append(turn)
        if self.ends_at_once:
            turn.ends()

    def turn_ended(self, lane: Lane, turn: Turn) -> None:
        self.lanes.release(lane)


def test_a_lane_says_what_it_does() -> None:
    session = FakeSession()
    session.lanes.pause()
    session.lanes.add(request(), 0)
    session.lanes.add(request(), 0)
    (lane,) = session.lanes._lanes.values()
    assert (lane.state, session.lanes.running, session.lanes.queued) == (LaneState.WAITING, 0, 2)
    session.lanes.resume()
    assert (lane.state, session.lanes.running, session.lanes.queued) == (LaneState.RUNNING, 1, 1)
    session.turns[0].ends()
    assert (lane.state, session.lanes.running, session.lanes.queued) == (LaneState.RUNNING, 1, 0)
    session.turns[1].ends()
    assert (lane.state, session.lanes.running, session.lanes.queued) == (LaneState.IDLE, 0, 0)


def test_a_client_that_fills_up_while_it_catches_up_gets_no_new_turn() -> None:
    session = FakeSession()
    session.lanes.add(request("runs"), 0)
    session.lanes.pause()
    session.lanes.add(request("waits"), 0)
    session.fills_again = True
    session.lanes.resume()
    assert session.lanes.is_paused
    assert len(session.turns) == 1
    session.fills_again = False
    session.lanes.resume()
    assert len(session.turns) == 2
    assert session.turns[0].said == ["pause", "resume", "pause", "resume"]


def test_turns_that_end_at_once_start_the_next_without_a_deeper_stack() -> None:
    session = FakeSession(max_queued_turns=5000, max_queued_bytes=10**9)
    session.lanes.pause()
    for _ in range(5000):
        session.lanes.add(request(), 0)
    session.ends_at_once = True
    session.lanes.resume()
    assert (len(session.turns), session.lanes.running, session.lanes.queued) == (5000, 0, 0)


def test_a_turn_that_finds_no_room_leaves_its_lane_usable() -> None:
    session = FakeSession(max_queued_bytes=100)
    with pytest.raises(ApiError, match="0 turns wait"):
        session.lanes.add(request("a", size=101), 0)
    session.lanes.add(request("a", size=100), 0)
    session.lanes.add(request("a", size=100), 0)
    with pytest.raises(ApiError, match="1 turns wait"):
        session.lanes.add(request("b", size=1), 0)
    session.turns[0].ends()
    session.lanes.add(request("b", size=100), 0)
    assert session.lanes.running == 2


@pytest.mark.parametrize("how", ["end", "forget"])
def test_after_the_end_nothing_starts_and_only_who_is_there_is_told(how: str) -> None:
    session = FakeSession()
    for number in range(MAX_RUNNING + 1):
        session.lanes.add(request(f"lane-{number}"), 0)
    session.lanes.add(request("lane-0"), 0)
    getattr(session.lanes, how)()
    told = [event["stream_id"] for event in session.sent]
    assert told == ([f"lane-{MAX_RUNNING}"] if how == "end" else [])
    session.turns[0].ends()
    told = [event["stream_id"] for event in session.sent]
    assert told == ([f"lane-{MAX_RUNNING}", "lane-0"] if how == "end" else [])
    assert (session.lanes.running, session.lanes.queued) == (MAX_RUNNING - 1, 0)
    states = {lane.state for lane in session.lanes._lanes.values()}
    assert states == {LaneState.IDLE, LaneState.RUNNING}
