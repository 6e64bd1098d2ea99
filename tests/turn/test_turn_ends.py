"""How a turn ends on the client's word or the gateway's: and only once."""

from __future__ import annotations

import json

import pytest

from gateway.protocol.errors import ApiError
from gateway.protocol.synthetic_events import interrupt_accepted
from tests.support.events import (
    call_item,
    call_output,
    opening,
    response_object,
    text_item,
    turn_events,
    user,
)
from tests.turn.fakes import World

RESTART = ApiError.bad_gateway("The gateway is restarting.", "gateway_restart")


def test_an_interrupt_before_any_answer_makes_a_response_to_go_on_from() -> None:
    world = World()
    turn = world.turn([user("hi")])
    turn.start()
    turn.interrupt(interrupt_accepted)
    created, accepted, ended = world.sink.events
    assert [event["sequence_number"] for event in world.sink.events] == [0, 1, 2]
    assert created["type"] == "response.created"
    assert accepted["type"] == "response.interrupt.accepted"
    assert ended["type"] == "response.incomplete"
    assert ended["response"]["incomplete_details"] == {"reason": "interrupted"}
    ids = {created["response"]["id"], accepted["response_id"], ended["response"]["id"]}
    assert len(ids) == 1, f"one response, one id: {ids}"
    assert world.exchanges()[0].state == "cancelled"
    assert turn.record.attempts[0].outcome == "interrupted"
    assert turn.recorded is not None
    assert turn.recorded is world.conversations.get("laptop", ids.pop())
    world.check_rest()


def test_an_interrupt_releases_the_preamble_it_ends() -> None:
    world = World()
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[0].sends(*turn_events([], "resp_1")[:2])
    turn.interrupt(None)
    assert world.sink.types == [
        "response.created",
        "response.in_progress",
        "response.incomplete",
    ]
    assert [event["sequence_number"] for event in world.sink.events] == [0, 1, 2]
    assert world.sink.last["response"]["id"] == "resp_1"
    world.check_rest()


def test_an_interrupt_keeps_only_finished_items_and_the_next_turn_brings_them_along() -> None:
    world = World()
    done, half = call_item("call_1"), text_item("half said")
    events = turn_events([done, half], "resp_1")
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[0].sends(*events[:-2])
    turn.interrupt(interrupt_accepted)
    assert world.sink.last["response"]["output"] == [done]
    assert turn.recorded is not None
    assert (turn.record.status, turn.record.error_code) == ("incomplete", "interrupted")
    following = world.turn([call_output("call_1")], turn.recorded)
    following.start()
    body = world.exchanges()[-1].body
    assert "previous_response_id" not in body, "no upstream knows an interrupted response"
    assert body["input"] == [user("hi"), done, call_output("call_1")]
    following.cancel()
    world.check_rest()


def test_a_turn_after_an_interrupted_one_chains_to_the_response_before_both() -> None:
    world = World()
    parent = world.completed([user("one")], turn_events([text_item()], "resp_1"))
    turn = world.turn([user("two")], parent)
    turn.start()
    turn.interrupt(None)
    following = world.turn([user("three")], turn.recorded)
    following.start()
    body = world.exchanges()[-1].body
    assert body["previous_response_id"] == "resp_1"
    assert body["input"] == [user("two"), user("three")]
    following.cancel()
    world.check_rest()


@pytest.mark.parametrize("events_seen", [0, 1, 4])
def test_a_cancelled_turn_says_nothing_more(events_seen: int) -> None:
    world = World()
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[0].sends(*turn_events([text_item()], "resp_1")[:events_seen])
    seen = list(world.sink.raw)
    turn.cancel()
    turn.cancel()
    assert world.sink.raw == seen
    assert (turn.record.status, world.exchanges()[0].state) == ("cancelled", "cancelled")
    assert (turn.recorded, turn.error) == (None, None)
    assert world.accounts["a"].failures == 0, "a client that leaves is no fault of the account"
    assert world.sink.ended == 1
    world.check_rest()


def test_a_turn_can_be_cancelled_before_it_starts() -> None:
    world = World()
    turn = world.turn([user("hi")])
    turn.cancel()
    assert world.exchanges() == []
    assert world.sink.ended == 1
    world.check_rest()


@pytest.mark.parametrize(
    ("events_seen", "terminal"), [(0, "error"), (2, "error"), (4, "response.failed")]
)
def test_an_abandoned_turn_tells_the_client_to_come_again(events_seen: int, terminal: str) -> None:
    world = World()
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[0].sends(*turn_events([text_item()], "resp_1")[:events_seen])
    turn.abandon(RESTART)
    assert world.sink.last["type"] == terminal
    if terminal == "error":
        assert world.sink.types == ["error"], "a held preamble is not let go for an error"
        assert world.sink.last["status"] == 502
    else:
        assert world.sink.last["response"]["error"]["code"] == "server_error"
    assert world.exchanges()[0].state == "cancelled"
    assert world.accounts["a"].failures == 0
    world.check_rest()


def test_a_turn_that_waits_is_abandoned_with_an_error() -> None:
    world = World()
    turn = world.turn([user("hi")])
    turn.abandon(RESTART)
    assert world.sink.last["error"]["code"] == "gateway_restart"
    world.check_rest()


def test_a_prewarm_is_answered_here_and_its_input_is_part_of_the_thread() -> None:
    world = World()
    turn = world.turn([user("base prompt")], generate=False, store=False)
    turn.start()
    assert world.exchanges() == []
    created, completed = world.sink.events
    assert (created["type"], completed["type"]) == ("response.created", "response.completed")
    assert completed["response"]["id"] == created["response"]["id"] != ""
    assert completed["response"]["output"] == []
    assert completed["response"]["usage"]["total_tokens"] == 0
    assert turn.record.route == "prewarm"
    following = world.turn([user("hi")], turn.recorded, store=False)
    following.start()
    body = world.exchanges()[0].body
    assert body["input"] == [user("base prompt"), user("hi")]
    assert "previous_response_id" not in body
    assert "generate" not in body
    assert following.record.route == "root"
    following.cancel()
    world.check_rest()


def test_silence_is_broken_by_signs_of_life() -> None:
    world = World(keepalive_seconds=20)
    turn = world.turn([user("hi")])
    turn.start()
    world.clock.advance(19)
    assert world.sink.keep_alives == 0
    world.clock.advance(1)
    assert world.sink.keep_alives == 1
    world.clock.pump([10] * 4)
    assert world.sink.keep_alives == 3
    world.exchanges()[0].sends(*turn_events([text_item()], "resp_1")[:4])
    world.clock.advance(19)
    assert world.sink.keep_alives == 3, "an event is a sign of life too"
    world.clock.advance(1)
    assert world.sink.keep_alives == 4
    turn.cancel()
    world.check_rest()


def test_a_held_preamble_is_silence_to_the_client() -> None:
    world = World(keepalive_seconds=2, hold_seconds=5)
    turn = world.turn([user("hi")])
    turn.start()
    world.clock.advance(1.5)
    world.exchanges()[0].sends(*opening(response_object("resp_1")))
    world.clock.advance(0.5)
    assert world.sink.keep_alives == 1
    turn.cancel()


def test_keep_alives_can_be_switched_off() -> None:
    world = World(keepalive_seconds=0)
    turn = world.turn([user("hi")])
    turn.start()
    turn.pause()
    turn.resume()
    world.clock.pump([60] * 10)
    assert world.sink.keep_alives == 0
    turn.cancel()
    world.check_rest()


def test_a_client_that_does_not_read_gets_no_signs_of_life() -> None:
    world = World(keepalive_seconds=20)
    turn = world.turn([user("hi")])
    turn.start()
    turn.pause()
    assert world.exchanges()[0].paused
    world.clock.pump([15] * 6)
    assert world.sink.keep_alives == 0
    turn.resume()
    assert not world.exchanges()[0].paused
    world.clock.pump([15, 15])
    assert world.sink.keep_alives == 1
    turn.cancel()
    world.check_rest()


def test_a_turn_that_starts_paused_stays_paused_over_its_attempts() -> None:
    world = World(accounts=2, keepalive_seconds=20)
    turn = world.turn([user("hi")])
    turn.pause()
    turn.start()
    assert world.exchanges("a")[0].paused
    world.exchanges("a")[0].ends(ApiError.bad_gateway("Gone."))
    assert world.exchanges("b")[0].paused
    world.clock.pump([15] * 4)
    assert world.sink.keep_alives == 0, "the client's buffers are full"
    turn.resume()
    assert not world.exchanges("b")[0].paused
    turn.cancel()
    world.check_rest()


def test_the_journal_has_one_line_a_turn_with_its_times_and_sizes() -> None:
    world = World()
    turn = world.turn([user("hi")])
    world.clock.advance(0.25)
    turn.start()
    world.clock.advance(1)
    events = turn_events([text_item()], "resp_1")
    world.exchanges()[0].sends(*events[:4])
    world.clock.advance(1)
    world.exchanges()[0].sends(*events[4:])
    (record,) = world.turn_log.latest()
    assert record is turn.record
    assert (record.queued_ms, record.first_event_ms, record.first_output_ms) == (250, 1250, 1250)
    assert record.duration_ms == 2250
    assert record.events == len(events)
    assert record.relayed_bytes == sum(len(json.dumps(event)) for event in events)
    assert record.upstream_bytes > 0
    assert world.turn_log.totals == {"completed": 1}
    json.dumps(record.as_dict())


def test_the_journal_has_the_transport_of_the_last_attempt() -> None:
    world = World(2)
    turn = world.turn([user("hi")])
    assert turn.record.transport is None, "no account was tried"
    turn.start()
    exchange = world.exchanges("a")[0]
    assert turn.record.transport == "http"
    exchange.transport_name = "websocket"
    exchange.receiver.upstream_connected()
    assert turn.record.transport == "websocket", "an exchange may change to another transport"
    exchange.ends(ApiError.bad_gateway("Gone."))
    world.exchanges("b")[0].sends(*turn_events([text_item()], "resp_1"))
    assert (turn.record.account, turn.record.transport) == ("b", "http")
    assert " transport=http " in str(turn.record)
    assert turn.record.as_dict()["transport"] == "http"


def test_a_watcher_that_fails_stops_no_turn() -> None:
    world = World()

    def fails(record: object) -> None:
        raise ValueError("broken")

    world.turn_log.watchers.append(fails)
    turn = world.turn([user("hi")])
    turn.start()
    world.exchanges()[0].sends(*turn_events([text_item()], "resp_1"))
    assert world.sink.ended == 1
    world.check_rest()
