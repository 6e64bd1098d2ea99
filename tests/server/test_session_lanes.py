"""Lanes, limits, odd messages, and the end of a connection."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocol.request import TurnRequest
from gateway.server import session as session_module
from gateway.server.lanes import MAX_NAMED_LANES, MAX_RUNNING
from tests.server.session_stage import Stage
from tests.support.events import Json, turn_events
from tests.turn import fakes as fakes_module


def words(stage: Stage) -> list[str]:
    """What the requests upstream asked for, in the order they went out."""
    return [exchange.body["input"] for exchange in stage.world.exchanges()]


def test_turns_of_a_lane_run_one_after_the_other() -> None:
    stage = Stage()
    for text in ("one", "two", "three"):
        stage.create(text)
    assert (words(stage), stage.session.turns_running, stage.session.turns_queued) == (
        ["one"],
        1,
        2,
    )
    for number, expected in enumerate((["one", "two"], ["one", "two", "three"])):
        stage.answer(f"resp_{number}")
        assert words(stage) == expected
    stage.answer("resp_last")
    assert [event["response"]["id"] for event in stage.channel.terminals] == [
        "resp_0",
        "resp_1",
        "resp_last",
    ]
    stage.world.check_rest()


def test_lanes_run_side_by_side_and_name_themselves() -> None:
    stage = Stage()
    stage.create("default")
    stage.create("left", stream_id="l")
    stage.create("right", stream_id="r")
    assert words(stage) == ["default", "left", "right"]
    _, left, right = stage.running
    stage.answer("resp_right", exchange=right)
    stage.answer("resp_left", exchange=left)
    stage.answer("resp_default")
    for lane, response_id in ((None, "resp_default"), ("l", "resp_left"), ("r", "resp_right")):
        events = stage.channel.of_lane(lane)
        assert events[-1]["response"]["id"] == response_id
        assert [event["sequence_number"] for event in events] == list(range(len(events)))


def test_so_many_turns_run_at_once_and_the_others_wait_their_turn() -> None:
    stage = Stage()
    names = [f"lane-{number}" for number in range(MAX_RUNNING + 3)]
    for name in names:
        stage.create(name, stream_id=name)
    assert words(stage) == names[:MAX_RUNNING]
    stage.create("again", stream_id=names[0])
    stage.answer("resp_1")
    assert words(stage) == names[: MAX_RUNNING + 1]
    while stage.running:
        stage.answer("resp_next")
    assert words(stage) == [*names, "again"], "a lane's second turn waits behind the others"
    assert len(stage.channel.terminals) == len(names) + 1
    stage.world.check_rest()


def test_only_so_many_lanes_may_be_named() -> None:
    stage = Stage()
    stage.create("default")
    for number in range(MAX_NAMED_LANES + 1):
        stage.create("hi", stream_id=f"lane-{number}")
    refused = stage.channel.last
    assert refused["error"]["code"] == "websocket_stream_limit_reached"
    assert refused["stream_id"] == f"lane-{MAX_NAMED_LANES}"
    stage.create("hi", stream_id="lane-0")
    assert len(stage.channel.events) == 1, "a known lane may be used again"


def test_only_so_many_turns_may_wait() -> None:
    stage = Stage(limits={"max_queued_turns": 2})
    for _ in range(4):
        stage.create()
    (refused,) = stage.channel.events
    assert (refused["status"], refused["error"]["code"]) == (429, "too_many_queued_turns")
    assert stage.session.turns_queued == 2


def test_only_so_many_bytes_may_wait_and_what_starts_makes_room() -> None:
    stage = Stage(max_message_bytes=2000)
    stage.create("runs")
    long = "x" * 1500
    for _ in range(2):
        stage.create(long)
    assert stage.channel.terminals == [], "twice a message's bound may wait"
    for _ in range(2):
        stage.create(long)
        assert (stage.channel.last["status"], stage.channel.last["error"]["code"]) == (
            429,
            "too_many_queued_turns",
        )
    stage.create("short")
    assert stage.session.turns_queued == 3, "what was turned away takes no room"
    for number in range(3):
        stage.answer(f"resp_{number}")
    stage.create(long)
    stage.create(long)
    assert stage.session.turns_queued == 2, "what has started takes no room"


def test_turns_that_end_at_once_do_not_pile_up_on_the_stack() -> None:
    stage = Stage(limits={"max_queued_turns": 5000})
    stage.create("first")
    for _ in range(3000):
        stage.create([], generate=False)
    stage.answer("resp_1")
    assert len(stage.channel.terminals) == 3001
    stage.world.check_rest()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{",
        b"[]",
        b'"response.create"',
        b"{}",
        b'{"type":7}',
        b'{"type":"response.append"}',
        b'{"type":"response.create","input":7}',
        b'{"type":"response.create","model":7}',
        b'{"type":"response.create","stream_id":""}',
        b'{"type":"response.create","background":true}',
        b'{"type":"response.create\xff"}',
        b'{"type":"response.create","input":[{"type":"message","content":"\\ud800"}],"include":["\\ud800"]}',
        b'{"type":"response.create","prompt_cache_options":{"prewarm":"\\ud800"}}',
        b'{"type":"response.create","client_metadata":{"ws_request_header_a":"","b":"\\ud800"}}',
    ],
)
def test_a_message_that_is_wrong_is_answered_and_changes_nothing(message: bytes) -> None:
    stage = Stage()
    stage.create()
    stage.session.message(message)
    (refused,) = stage.channel.events
    assert (refused["type"], refused["status"]) == ("error", 400)
    stage.answer("resp_1")
    assert [each["type"] for each in stage.channel.terminals][-1] == "response.completed"
    assert stage.channel.closed == []


def test_errors_of_a_named_lane_carry_its_name() -> None:
    stage = Stage()
    stage.says(type="response.nonsense", stream_id="left")
    stage.create(7, stream_id="left")  # type: ignore[arg-type]
    stage.create("hi", stream_id="left", previous_response_id="resp_of_nobody")
    assert [event["stream_id"] for event in stage.channel.events] == ["left"] * 3


def test_what_asks_for_nothing_gets_no_answer() -> None:
    stage = Stage()
    stage.says(type="response.processed", response_id="resp_1")
    stage.says(type="response.cancel")
    assert stage.channel.events == []


def test_steering_is_refused_honestly() -> None:
    stage = Stage()
    stage.says(type="response.steer", previous_response_id="resp_1", input="stop")
    assert stage.channel.last["type"] == "response.steer.failed"
    assert stage.channel.last["error"]["code"] == "steering_not_supported"
    assert stage.channel.last["steer"] == {"previous_response_id": "resp_1", "input": "stop"}


@pytest.mark.parametrize(
    "message",
    [
        {"type": "response.steer", "previous_response_id": "resp_1"},
        {"type": "response.interrupt", "response_id": "resp_1"},
        {"type": "response.create", "stream_id": "not a name"},
    ],
)
def test_who_reads_no_answers_may_not_pile_them_up(message: Json) -> None:
    stage = Stage()
    stage.session.pause()
    for _ in range(100):
        stage.says(**message)
    assert not stage.channel.closed
    stage.says(**message)
    assert stage.channel.closed == [1008]
    assert len(stage.channel.events) == 100


def test_who_reads_the_answers_may_go_on_asking() -> None:
    stage = Stage()
    for _ in range(5):
        stage.session.pause()
        for _ in range(90):
            stage.says(type="response.steer")
        stage.session.resume()
    assert not stage.channel.closed


def test_an_endless_id_is_not_echoed_whole() -> None:
    stage = Stage()
    stage.says(type="response.steer", previous_response_id="r" * 1_000_000)
    stage.says(type="response.interrupt", response_id="r" * 1_000_000)
    for event in stage.channel.events:
        assert len(json.dumps(event)) < 10_000


def test_an_interrupt_ends_the_response_it_names() -> None:
    stage = Stage()
    stage.create("default")
    stage.create("left", stream_id="left")
    stage.create("after", stream_id="left")
    stage.running[1].sends(*turn_events([], "resp_l")[:2])
    stage.says(type="response.interrupt", response_id="resp_l", mode="discard_partial_items")
    assert [event["type"] for event in stage.channel.of_lane("left")] == [
        "response.created",
        "response.in_progress",
        "response.interrupt.accepted",
        "response.incomplete",
    ]
    assert words(stage) == ["default", "left", "after"]
    assert stage.world.exchanges()[0].state == "running"


def test_an_interrupt_that_comes_too_late_is_no_error() -> None:
    stage = Stage()
    stage.create()
    stage.answer("resp_1")
    stage.create()
    stage.says(type="response.interrupt", response_id="resp_1")
    assert stage.channel.last["type"] == "response.interrupt.failed"
    assert stage.channel.last["response_id"] == "resp_1"
    assert len(stage.running) == 1


@pytest.mark.parametrize("message", ["response.interrupt", "response.cancel"])
def test_without_an_id_the_lane_is_meant(message: str) -> None:
    stage = Stage()
    stage.create("default")
    stage.create("left", stream_id="left")
    stage.says(type=message, stream_id="left")
    assert [event["type"] for event in stage.channel.events] == [
        "response.created",
        "response.incomplete",
    ]
    assert stage.channel.last["stream_id"] == "left"
    assert len(stage.running) == 1


def test_a_slow_client_pauses_all_of_its_turns_and_those_that_follow() -> None:
    stage = Stage()
    stage.create("one")
    stage.create("left", stream_id="left")
    stage.create("two")
    stage.session.pause()
    assert all(exchange.paused for exchange in stage.running)
    stage.answer("resp_1")
    assert all(exchange.paused for exchange in stage.running), "nothing may flow before resume"
    stage.session.resume()
    assert words(stage) == ["one", "left", "two"]
    assert not any(exchange.paused for exchange in stage.running)
    while stage.running:
        stage.answer("resp_next")
    stage.world.check_rest()


# --- the end of a connection ---------------------------------------------------------------


def test_a_lost_connection_cancels_what_runs_and_forgets_what_waits() -> None:
    stage = Stage()
    stage.create("one")
    stage.create("two")
    stage.create("left", stream_id="left")
    stage.session.closed()
    assert stage.running == []
    assert stage.channel.events == []
    assert (stage.session.turns_running, stage.session.turns_queued) == (0, 0)
    assert len(stage.world.services.pool.bindings) == 0
    stage.world.check_rest()


def test_an_idle_connection_is_closed_at_once_when_the_gateway_stops() -> None:
    stage = Stage()
    stage.session.drain()
    assert stage.channel.closed == [1012]


def test_when_the_gateway_stops_what_runs_may_finish_and_what_waits_is_told() -> None:
    stage = Stage()
    stage.create("one")
    stage.create("two")
    stage.create("left", stream_id="left")
    stage.create("more", stream_id="left")
    stage.session.drain()
    assert stage.channel.closed == []
    stage.answer("resp_1")
    assert stage.channel.of_lane(None)[-1]["error"]["code"] == "websocket_connection_limit_reached"
    stage.answer("resp_2")
    assert stage.channel.closed[0] == 1012
    assert words(stage) == ["one", "left"], "nothing starts any more"
    assert [event["type"] for event in stage.channel.terminals] == [
        "response.completed",
        "error",
        "response.completed",
        "error",
    ], "every accepted turn gets one terminal event"
    assert stage.channel.last["stream_id"] == "left"


def test_a_tool_loop_without_pauses_ends_with_a_turn() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1")
    stage.session.roll_over(5)
    stage.session.end_with_turn()
    assert stage.channel.closed == [], "the next request is on its way"
    stage.create("two")
    stage.answer("resp_2")
    assert stage.channel.closed == [1012]
    assert [event["type"] for event in stage.channel.terminals] == ["response.completed"] * 2


def test_one_whose_next_request_does_not_come_closes_in_the_quiet_moment() -> None:
    stage = Stage()
    stage.create("one")
    stage.answer("resp_1")
    stage.session.roll_over(0)
    stage.session.end_with_turn()
    stage.world.clock.advance(0.5)
    assert stage.channel.closed == [1012]


def test_lanes_that_wait_for_room_are_told_when_the_gateway_stops() -> None:
    stage = Stage()
    for number in range(MAX_RUNNING + 1):
        stage.create(stream_id=f"lane-{number}")
    stage.session.drain()
    (told,) = stage.channel.events
    assert told["stream_id"] == f"lane-{MAX_RUNNING}"
    assert told["error"]["code"] == "websocket_connection_limit_reached"


def test_a_turn_that_comes_while_the_gateway_stops_is_turned_away() -> None:
    stage = Stage()
    stage.create("one")
    stage.session.drain()
    stage.create("two", stream_id="left")
    (turned_away,) = stage.channel.events
    assert turned_away["error"]["code"] == "websocket_connection_limit_reached"
    assert turned_away["stream_id"] == "left"
    stage.answer("resp_1")
    assert stage.channel.closed == [1012], "the code of the stop"


def test_when_time_is_up_running_turns_are_given_up_and_the_code_says_restart() -> None:
    stage = Stage()
    stage.create("one")
    stage.create("two")
    stage.create("left", stream_id="left")
    stage.session.drain()
    stage.running[0].sends(*turn_events([], "resp_1")[:2])
    stage.session.abandon()
    assert stage.running == []
    assert stage.channel.closed[0] == 1012
    assert [event["type"] for event in stage.channel.terminals] == ["error"] * 3
    assert json.dumps(stage.channel.events).count("gateway_restart") == 2
    stage.world.check_rest()


def test_an_old_connection_ends_between_turns() -> None:
    stage = Stage(max_age_minutes=60)
    stage.create("one")
    stage.world.clock.advance(3599)
    stage.create("two")
    stage.world.clock.advance(1)
    stage.create("three", stream_id="left")
    refused = stage.channel.last
    assert refused["error"]["code"] == "websocket_connection_limit_reached"
    assert refused["stream_id"] == "left"
    assert stage.channel.closed == []
    stage.answer("resp_1")
    assert stage.channel.closed == [1001]
    assert len(stage.channel.terminals) == 3, "the turn that waited is told too"


def test_an_idle_connection_ends_by_itself_before_it_is_too_old() -> None:
    stage = Stage(max_age_minutes=60)
    stage.session.grow_old()
    stage.create("one")
    stage.world.clock.advance(3000)
    assert stage.channel.closed == []
    stage.world.clock.advance(3600 * 0.95 - 3000)
    assert stage.channel.closed == [], "a turn runs"
    stage.answer("resp_1")
    assert stage.channel.closed == [], "the next turn may be on its way"
    stage.create("two")
    stage.answer("resp_2")
    stage.world.clock.advance(1)
    assert stage.channel.closed == [1001]
    assert [event["type"] for event in stage.channel.terminals] == ["response.completed"] * 2
    assert stage.session.moved


def test_an_old_idle_connection_is_closed_with_the_next_turn() -> None:
    stage = Stage(max_age_minutes=60)
    stage.world.clock.advance(7200)
    assert stage.channel.closed == []
    stage.create()
    assert stage.channel.last["status"] == 400
    assert stage.channel.closed == [1001]


def test_a_bug_of_ours_costs_one_turn_and_not_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    for text in ("one", "two", "three"):
        stage.create(text)
    really = fakes_module.build_body

    def broken(request: TurnRequest, *rest: Any) -> bytes:
        if bytes(request.members["input"]) == b'"two"':
            raise KeyError("of a test")
        return really(request, *rest)

    monkeypatch.setattr(fakes_module, "build_body", broken)
    stage.answer("resp_1")
    assert stage.channel.last["status"] == 500
    assert "of a test" not in json.dumps(stage.channel.events)
    assert words(stage) == ["one", "three"]
    stage.answer("resp_3")
    assert stage.channel.last["type"] == "response.completed"
    stage.world.check_rest()


def test_a_bug_of_ours_before_there_is_a_turn_costs_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage()
    really = session_module.affinity_keys
    broken = iter([True, False, False])

    def breaks_once(*about: Any) -> Any:
        if next(broken):
            raise KeyError("of a test")
        return really(*about)

    monkeypatch.setattr(session_module, "affinity_keys", breaks_once)
    stage.create("one")
    assert stage.channel.last["status"] == 500
    assert "of a test" not in json.dumps(stage.channel.events)
    stage.create("two")
    stage.create("three", stream_id="left")
    assert words(stage) == ["two", "three"], "the connection goes on"
    for exchange in list(stage.running):
        stage.answer("resp_1", exchange=exchange)
    stage.world.check_rest()
