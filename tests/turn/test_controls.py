"""What clients say about their running response, to services that know it and to others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocol.controls import Control, ControlMessage
from gateway.protocol.errors import SOCKET_LOST, ApiError
from gateway.protocol.synthetic_events import interrupt_accepted
from gateway.turn.controls import ANSWER_SECONDS
from gateway.turn.turn import Turn
from tests.support.events import (
    Json,
    call_item,
    call_output,
    response_object,
    text_item,
    turn_events,
    user,
)
from tests.turn.fakes import FakeExchange, World, read_members

KINDS = ("interrupt", "cancel", "steer", "inject")


def said(control: Control, **members: Any) -> ControlMessage:
    payload = json.dumps({"type": f"response.{control.value}", **members}).encode()
    return ControlMessage(control, read_members(payload), payload)


INTERRUPT = said(Control.INTERRUPT, response_id="resp_1", mode="discard_partial_items")
CANCEL = said(Control.CANCEL)
WHOLE, CUT = text_item("whole"), text_item("cut")


def started(world: World, items: int = 1, response_id: str = "resp_1") -> tuple[Turn, FakeExchange]:
    """A turn in the middle of its output: the first item is finished, the last is not."""
    turn = world.turn([user("hi")])
    turn.start()
    exchange = world.exchanges()[-1]
    events = turn_events([WHOLE, CUT][:items], response_id)
    exchange.sends(*events[:-2])
    return turn, exchange


def answer(kind: str, response_id: str = "resp_1", **members: Any) -> Json:
    return {"type": f"response.{kind}", "response_id": response_id, **members}


def steering(verdict: str, response_id: str = "resp_1", **steer: Any) -> Json:
    steer = {"previous_response_id": response_id, **steer}
    return {"type": f"response.steer.{verdict}", "steer": steer, "sequence_number": 90}


def ended(status: str, reason: str, response_id: str = "resp_1", *output: Json) -> Json:
    details = {"reason": reason}
    response = response_object(
        response_id, status=status, incomplete_details=details, output=list(output)
    )
    return {"type": f"response.{status}", "sequence_number": 99, "response": response}


# --- interrupts ----------------------------------------------------------------------------


def test_a_service_that_knows_interrupts_ends_the_response_itself() -> None:
    world = World(controls=KINDS)
    turn, exchange = started(world, 2)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    assert exchange.told == [json.loads(INTERRUPT.payload)]
    assert "response.incomplete" not in world.sink.types, "the service has the word"
    exchange.sends(
        answer("interrupt.accepted", sequence_number=41),
        answer("output_item.interrupted", item_id="msg_2", sequence_number=42),
        ended("incomplete", "interrupted", "resp_1", WHOLE),
    )
    assert world.sink.types[-3:] == [
        "response.interrupt.accepted",
        "response.output_item.interrupted",
        "response.incomplete",
    ]
    assert exchange.state == "finished", "the connection is free for the next turn"
    assert turn.recorded is not None
    assert turn.recorded.record.held_upstream, "the service can continue what it ended itself"
    assert (turn.record.status, turn.record.error_code) == ("incomplete", "interrupted")
    world.check_rest()


@pytest.mark.parametrize("accepted_first", [False, True])
def test_an_interrupt_without_an_answer_is_carried_out_by_the_gateway(accepted_first: bool) -> None:
    world = World(controls=["interrupt"])
    turn, exchange = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    if accepted_first:
        world.clock.advance(ANSWER_SECONDS - 1)
        exchange.sends(answer("interrupt.accepted", sequence_number=41))
    world.clock.advance(ANSWER_SECONDS - 1)
    assert "response.incomplete" not in world.sink.types
    world.clock.advance(1)
    assert world.sink.types.count("response.interrupt.accepted") == 1
    assert world.sink.types[-1] == "response.incomplete"
    assert "response.interrupt.failed" not in world.sink.types
    assert exchange.state == "cancelled"
    assert turn.recorded is not None
    assert not turn.recorded.record.held_upstream
    world.check_rest()


def test_a_refused_interrupt_leaves_the_response_running() -> None:
    world = World(controls=["interrupt"])
    turn, exchange = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    exchange.sends(answer("interrupt.failed"))
    world.clock.advance(3 * ANSWER_SECONDS)
    assert world.sink.types[-1] == "response.interrupt.failed"
    exchange.sends(*turn_events([WHOLE], "resp_1")[-1:])
    assert world.sink.types[-1] == "response.completed"
    assert world.sink.types.count("response.interrupt.failed") == 1
    assert turn.record.status == "completed"
    world.check_rest()


def test_a_response_that_ends_first_leaves_no_interrupt_unanswered() -> None:
    world = World(controls=["interrupt"])
    turn, exchange = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    exchange.sends(*turn_events([WHOLE], "resp_1")[-1:])
    assert world.sink.types[-2:] == ["response.completed", "response.interrupt.failed"]
    assert turn.record.status == "completed"
    world.check_rest()


@pytest.mark.parametrize("how", ["error", "lost"])
def test_a_response_that_breaks_while_it_is_interrupted_was_interrupted(how: str) -> None:
    world = World(controls=["interrupt"])
    turn, exchange = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    if how == "error":  # of a service that does not know the message
        error = {"type": "invalid_request_error", "message": "Unknown type.", "code": None}
        exchange.sends({"type": "error", "status": 400, "error": error})
    else:
        exchange.ends(ApiError.bad_gateway("lost", SOCKET_LOST))
    assert world.sink.types[-2:] == ["response.interrupt.accepted", "response.incomplete"]
    assert turn.recorded is not None
    world.check_rest()


@pytest.mark.parametrize("controls", [[], ["steer"], None])
def test_who_does_not_know_interrupts_is_interrupted_as_ever(controls: list[str] | None) -> None:
    world = World(controls=controls)
    turn, exchange = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    assert exchange.told == []
    assert world.sink.types[-2:] == ["response.interrupt.accepted", "response.incomplete"]
    world.check_rest()


def test_a_cancel_ends_with_the_services_own_end() -> None:
    world = World(controls=["cancel"])
    turn, exchange = started(world)
    turn.interrupt(None, CANCEL)
    turn.interrupt(None, CANCEL)
    assert exchange.told == [{"type": "response.cancel"}], "once is enough"
    cancelled = {**ended("incomplete", "interrupted"), "type": "response.cancelled"}
    exchange.sends(cancelled)
    assert world.sink.types[-1] == "response.incomplete"
    assert not [kind for kind in world.sink.types if "interrupt" in kind]
    world.check_rest()


def test_a_cancel_while_an_interrupt_waits_ends_it_at_once() -> None:
    world = World(controls=["interrupt"])
    turn, _ = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    turn.interrupt(None, None)
    assert world.sink.types[-2:] == ["response.interrupt.accepted", "response.incomplete"]
    world.check_rest()


def test_a_client_that_leaves_waits_for_nothing() -> None:
    world = World(controls=KINDS)
    turn, _ = started(world)
    turn.interrupt(interrupt_accepted, INTERRUPT)
    turn.give_input(said(Control.STEER, previous_response_id="resp_1", input="left"))
    before = world.sink.types
    turn.cancel()
    assert world.sink.types == before
    world.check_rest()


# --- input for a running response ----------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "code"),
    [
        (Control.STEER, "steering_not_supported"),
        (Control.INJECT, "injection_not_supported"),
    ],
)
def test_a_service_without_it_is_given_no_input(control: Control, code: str) -> None:
    world = World(controls=["interrupt"])
    turn, exchange = started(world)
    assert turn.give_input(said(control, input="x")) == code
    assert exchange.told == []
    turn.cancel()


def test_input_before_an_attempt_is_for_no_response() -> None:
    world = World(controls=KINDS)
    turn = world.turn([user("hi")])
    assert turn.give_input(said(Control.STEER, input="x")) == "response_not_active"


def test_only_so_much_input_waits() -> None:
    world = World(controls=KINDS)
    turn, exchange = started(world)
    steer, inject = (said(each, input="x") for each in (Control.STEER, Control.INJECT))
    given = [turn.give_input(each) for each in (steer, inject) for _ in range(17)]
    assert given == [
        *[None] * 16,
        "too_many_pending_steers",
        *[None] * 16,
        "too_many_pending_injections",
    ]
    assert len(exchange.told) == 32
    large = said(Control.INJECT, input="x" * 17_000_000)
    turn.cancel()
    turn, _ = started(world)
    assert turn.give_input(large) == "too_many_pending_injections"
    turn.cancel()


def test_answers_that_nobody_asked_for_are_dropped() -> None:
    world = World(controls=KINDS)
    turn, exchange = started(world)
    before = world.sink.types
    late = [answer("interrupt.failed", "resp_0"), steering("failed", "resp_0")]
    exchange.sends(*late, answer("inject.created"), steering("accepted"))
    assert world.sink.types == before
    turn.give_input(said(Control.STEER, previous_response_id="resp_1", input="left"))
    exchange.sends(steering("failed", "resp_0"))
    assert world.sink.types == before, "that is about another response"
    turn.cancel()


def test_injected_input_is_part_of_the_conversation() -> None:
    world = World(controls=["inject"])
    turn = world.turn([user("hi")])
    turn.start()
    exchange = world.exchanges()[-1]
    call, text = call_item("call_1"), text_item("done")
    events = turn_events([call, text], "resp_1")
    at = next(n for n, e in enumerate(events) if e["type"] == "response.output_item.done")
    exchange.sends(*events[: at + 1])
    output = call_output("call_1")
    for refused in (False, True):
        message = said(Control.INJECT, response_id="resp_1", input=[output] * (1 + refused))
        assert turn.give_input(message) is None
    exchange.sends(
        answer("inject.created", sequence_number=50),
        answer("inject.failed", input=[], error={"code": "response_not_found", "message": ""}),
        *events[at + 1 :],
    )
    assert world.sink.types.count("response.inject.created") == 1
    assert world.sink.last["response"]["output"] == [call, text]
    assert turn.recorded is not None
    known = [json.loads(item.raw) for item in turn.recorded.record.output]
    assert known == [call, output, text]


def test_injected_input_that_comes_too_late_goes_back() -> None:
    world = World(controls=["inject"])
    turn, exchange = started(world)
    given = [call_output("call_1")]
    turn.give_input(said(Control.INJECT, response_id="resp_1", input=given))
    exchange.sends(*turn_events([WHOLE], "resp_1")[-1:])
    failed = world.sink.last
    assert failed["type"] == "response.inject.failed"
    assert (failed["response_id"], failed["input"]) == ("resp_1", given)
    assert failed["error"]["code"] == "response_already_completed"


def test_each_side_knows_the_response_by_its_own_id() -> None:
    world = World(controls=KINDS)
    first, exchange = started(world)
    exchange.sends(*turn_events([WHOLE], "resp_1")[-1:])
    assert first.recorded is not None
    turn, exchange = started(world)  # the service uses its id again
    own = turn.response_id
    assert own != "resp_1"
    turn.interrupt(interrupt_accepted, said(Control.INTERRUPT, response_id=own))
    assert exchange.told == [{"type": "response.interrupt", "response_id": "resp_1"}]
    exchange.sends(answer("interrupt.accepted"), ended("incomplete", "interrupted"))
    assert world.sink.events[-2]["response_id"] == own
    assert world.sink.last["response"]["id"] == own
