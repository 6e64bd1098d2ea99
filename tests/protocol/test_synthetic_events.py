"""What the gateway says itself: complete responses in events that clients take for real."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.protocol.events import raw_value
from gateway.protocol.request import TurnRequest, read_create, read_members
from gateway.protocol.synthetic_events import (
    created_event,
    failed_event,
    interrupt_accepted,
    interrupt_failed,
    interrupted_event,
    new_response_id,
    prewarm_events,
    steer_failed,
    synthetic_response,
)

#: Members that clients' types require of a response (§4.4).
REQUIRED = {
    *("id", "object", "created_at", "model", "output", "parallel_tool_calls", "tool_choice"),
    *("tools", "status", "usage", "error", "incomplete_details"),
}
ITEMS = [b'{ "type":"message","id":"msg_1"}']


def request(**members: Any) -> TurnRequest:
    payload = json.dumps({"type": "response.create", **members}).encode()
    return read_create(read_members(payload), len(payload))


def made(**members: Any) -> dict[str, Any]:
    return synthetic_response("resp_1", request(**members), 17, "resp_0")


def test_ids_are_new_each_time_and_say_what_they_are_for() -> None:
    assert len({new_response_id() for _ in range(50)}) == 50
    assert new_response_id().startswith("resp_")
    assert new_response_id("prewarm").startswith("resp_prewarm_")


def test_a_made_response_is_complete() -> None:
    response = json.loads(created_event(made(model="gpt-5", store=False)))["response"]
    assert response.keys() >= REQUIRED
    assert (response["id"], response["created_at"]) == ("resp_1", 17)
    assert response["previous_response_id"] == "resp_0"
    assert (response["model"], response["store"]) == ("gpt-5", False)
    assert (response["status"], response["output"]) == ("in_progress", [])


def test_a_made_response_repeats_what_the_client_asked_for() -> None:
    tools = [{"type": "function", "name": "f"}]
    response = json.loads(created_event(made(tools=tools, instructions="be brief")))["response"]
    assert (response["tools"], response["instructions"]) == (tools, "be brief")


def test_a_prewarm_is_created_and_completed_without_items() -> None:
    created, completed = map(json.loads, prewarm_events(made(model="gpt-5"), 18))
    assert (created["type"], created["sequence_number"]) == ("response.created", 0)
    assert (completed["type"], completed["sequence_number"]) == ("response.completed", 1)
    response = completed["response"]
    assert response["id"] == created["response"]["id"] == "resp_1"
    assert (response["status"], response["output"]) == ("completed", [])
    assert response["usage"]["total_tokens"] == 0
    assert response["usage"]["input_tokens_details"] == {"cached_tokens": 0}
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 0}
    assert "end_turn" not in response


def test_an_interrupted_response_has_its_finished_items() -> None:
    raw = interrupted_event({"id": raw_value("resp_1")}, ITEMS, 7)
    event = json.loads(raw)
    assert (event["type"], event["sequence_number"]) == ("response.incomplete", 7)
    assert event["response"]["incomplete_details"] == {"reason": "interrupted"}
    assert event["response"]["status"] == "incomplete"
    assert ITEMS[0] in raw


def test_a_failed_response_says_why() -> None:
    event = json.loads(failed_event({"id": raw_value("resp_1")}, ITEMS, 7, "server_error", "Gone."))
    assert (event["type"], event["sequence_number"]) == ("response.failed", 7)
    assert event["response"]["error"] == {"code": "server_error", "message": "Gone."}
    assert (event["response"]["status"], len(event["response"]["output"])) == ("failed", 1)


def test_ending_a_response_leaves_the_one_it_was_made_of() -> None:
    response = {"id": raw_value("resp_1")}
    interrupted_event(response, ITEMS, 1)
    failed_event(response, ITEMS, 1, "server_error", "Gone.")
    prewarm_events(response, 1)
    assert response.keys() == {"id"}


@pytest.mark.parametrize("response_id", ["resp_1", 'odd"id'])
def test_interrupts_are_answered_by_id(response_id: str) -> None:
    accepted = json.loads(interrupt_accepted(response_id, 3))
    assert accepted == {
        "type": "response.interrupt.accepted",
        "response_id": response_id,
        "sequence_number": 3,
    }
    failed = json.loads(interrupt_failed(response_id))
    assert (failed["type"], failed["response_id"]) == ("response.interrupt.failed", response_id)


def test_steering_is_refused_honestly() -> None:
    event = json.loads(steer_failed("resp_1"))
    assert event["type"] == "response.steer.failed"
    assert event["error"]["code"] == "steering_not_supported"
    assert event["steer"] == {"previous_response_id": "resp_1"}
