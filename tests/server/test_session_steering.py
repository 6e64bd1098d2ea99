"""A lane whose response is steered: it stays busy until the response that follows has ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.config import ContentLogSettings
from gateway.protocol.errors import SOCKET_LOST, ApiError
from gateway.turn.controls import ANSWER_SECONDS
from tests.server.session_stage import Stage
from tests.support.events import (
    Json,
    call_item,
    call_output,
    response_object,
    text_item,
    turn_events,
    user,
)
from tests.turn.fakes import FakeExchange, FakeSuccessor

LOST = ApiError.bad_gateway("lost", SOCKET_LOST)


def steering(verdict: str, response_id: str = "resp_1", **more: Any) -> Json:
    steer = {"id": "steer_1", "previous_response_id": response_id}
    return {"type": f"response.steer.{verdict}", "steer": steer, "sequence_number": 90, **more}


class Steered:
    """A stage on which a response was steered, and has ended."""

    def __init__(
        self,
        *verdicts: str,
        items: list[Json] | None = None,
        log: Path | None = None,
        **members: Any,
    ) -> None:
        self.stage = Stage(accounts=2, controls=["steer", "interrupt", "cancel"])
        if log is not None:
            settings = ContentLogSettings(directory=str(log))
            self.stage.world.services.request_log.configure(settings)
        self.stage.create([user("one")], instructions="Be kind.", **members)
        self.first = self.stage.running[0]
        whole = turn_events([text_item("whole")] if items is None else items, "resp_1")
        self.first.sends(*whole[:-1])
        self.steer()
        self.first.sends(*map(steering, verdicts))
        details = {"reason": "steered"}
        output = whole[-1]["response"]["output"]
        response = response_object(
            "resp_1", status="incomplete", incomplete_details=details, output=output
        )
        self.first.sends({"type": "response.incomplete", "response": response})

    def steer(self) -> None:
        self.stage.says(
            type="response.steer", previous_response_id="resp_1", input=[user("to the left")]
        )

    @property
    def successor(self) -> FakeSuccessor:
        found = self.first.succeeded_by
        assert found is not None
        return found

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.stage.channel.events]

    def texts(self, exchange: FakeExchange) -> str:
        return json.dumps(exchange.body["input"])


def test_the_lane_is_busy_until_the_response_that_follows_has_ended() -> None:
    steered = Steered("accepted", stream_id="left")
    stage = steered.stage
    stage.create("queued", stream_id="left")
    assert stage.running == []
    assert stage.session.turns_running == 1
    follows = steered.successor.begins(*turn_events([text_item("done")], "resp_2"))
    assert follows.state == "finished"
    assert {event["stream_id"] for event in stage.channel.events} == {"left"}
    assert stage.channel.last["response"]["id"] == "resp_2"
    assert len(stage.running) == 1, "the queued turn runs now"
    first, second = stage.world.turn_log.latest()
    assert (first.status, first.error_code) == ("incomplete", "steered")
    assert (second.status, second.route, second.chained_to) == ("completed", "chained", "resp_1")
    assert second.account == first.account
    assert second.attempts[0].rule == "follows a steered response"


def test_the_response_that_follows_can_be_continued_by_others() -> None:
    steered = Steered("accepted")
    steered.successor.begins(*turn_events([text_item("done")], "resp_2"))
    found = steered.stage.world.conversations.get("laptop", "resp_2")
    assert found is not None
    said = [json.loads(item.raw) for each in found.ancestry() for item in each.input]
    assert said == [user("to the left"), user("one")]
    assert found.parent is not None
    assert found.parent.record.id == "resp_1"


def test_both_turns_are_written_where_a_request_log_asks_for_them(tmp_path: Path) -> None:
    steered = Steered("accepted", log=tmp_path / "log")
    steered.successor.begins(*turn_events([text_item("done")], "resp_2"))
    texts = [file.read_text().splitlines() for file in (tmp_path / "log").iterdir()]
    written = [[json.loads(line) for line in lines] for lines in texts]
    first, second = sorted(written, key=lambda lines: "previous_response_id" in lines[0]["body"])
    assert [line["kind"] for line in second[:2]] == ["request", "attempt"]
    assert second[0]["body"]["input"] == [user("to the left")]
    assert second[0]["body"]["previous_response_id"] == "resp_1"
    assert second[1]["route"] == "chained"
    accepted = [line for line in first if "response.steer.accepted" in json.dumps(line)]
    assert {line["kind"] for line in accepted} == {"from_account", "to_client"}


def test_a_lost_connection_makes_it_a_turn_like_any_other() -> None:
    steered = Steered("accepted")
    steered.successor.watcher.successor_lost(LOST)
    (sent,) = steered.stage.running
    assert sent.body["instructions"] == "Be kind."
    assert "to the left" in steered.texts(sent)
    assert steered.stage.answer("resp_2")["response"]["status"] == "completed"
    assert "response.steer.failed" not in steered.types


def test_a_response_that_follows_and_is_lost_unseen_is_sent_again() -> None:
    steered = Steered("accepted")
    follows = steered.successor.begins(*turn_events([], "resp_2")[:2])
    follows.ends(LOST)
    (sent,) = steered.stage.running
    assert "to the left" in steered.texts(sent)
    assert steered.stage.answer("resp_3")["response"]["id"] == "resp_3"
    assert steered.types.count("response.created") == 2


def test_input_without_an_answer_goes_back_in_time() -> None:
    steered = Steered()
    clock = steered.stage.world.clock
    clock.advance(ANSWER_SECONDS - 1)
    assert steered.stage.session.turns_running == 1
    clock.advance(1)
    failed = steered.stage.channel.last
    assert failed["type"] == "response.steer.failed"
    assert failed["steer"]["input"] == [user("to the left")]
    assert steered.successor.state == "cancelled"
    assert steered.stage.session.turns_running == 0


def test_an_answer_after_the_end_is_still_good() -> None:
    steered = Steered()
    steered.successor.answers(steering("accepted"))
    steered.stage.world.clock.advance(3 * ANSWER_SECONDS)
    steered.successor.begins(*turn_events([text_item("done")], "resp_2"))
    assert steered.stage.channel.last["response"]["id"] == "resp_2"


@pytest.mark.parametrize("end", ["failed", "pending"])
def test_no_response_follows(end: str) -> None:
    steered = Steered("accepted")
    steered.successor.answers(steering(end))
    assert steered.types[-1] == f"response.steer.{end}"
    assert steered.successor.state == "finished", "the connection is as good as before"
    assert steered.stage.session.turns_running == 0
    steered.stage.world.check_rest()


def test_pending_input_comes_before_that_of_the_next_turn() -> None:
    steered = Steered("accepted", items=[call_item("call_1")])
    stage = steered.stage
    steered.successor.answers(steering("pending"))
    output = call_output("call_1")
    stage.create([output], previous_response_id="resp_1")
    (sent,) = stage.running
    assert sent.body["previous_response_id"] == "resp_1"
    assert sent.body["input"] == [output], "the service has the rest"
    stage.answer("resp_2")
    found = stage.world.conversations.get("laptop", "resp_2")
    assert found is not None
    assert [json.loads(i.raw) for i in found.record.input] == [user("to the left"), output]
    stage.create([user("again")], previous_response_id="resp_1")
    stage.answer("resp_3")
    found = stage.world.conversations.get("laptop", "resp_3")
    assert found is not None
    assert [json.loads(i.raw) for i in found.record.input] == [user("again")], "once is enough"


@pytest.mark.parametrize("how", ["closed", "abandon", "cancel"])
def test_a_wait_ends_with_what_ends_turns(how: str) -> None:
    steered = Steered("accepted")
    stage, before = steered.stage, len(steered.stage.channel.events)
    if how == "cancel":
        stage.says(type="response.cancel")
    else:
        getattr(stage.session, how)()
    assert steered.successor.state == "cancelled"
    assert stage.session.turns_running == 0
    told = steered.types[before:]
    assert told == ([] if how == "closed" else ["response.steer.failed"])
    stage.world.check_rest()


def test_nothing_can_be_said_about_a_response_that_has_ended() -> None:
    steered = Steered("accepted")
    steered.steer()
    assert steered.stage.channel.last["error"]["code"] == "response_not_active"
    steered.stage.says(type="response.interrupt", response_id="resp_1")
    assert steered.stage.channel.last["type"] == "response.interrupt.failed"
    assert steered.successor.state == "running"


def test_a_slow_client_slows_down_what_follows() -> None:
    steered = Steered("accepted")
    steered.stage.session.pause()
    assert steered.successor.paused
    steered.stage.session.resume()
    assert not steered.successor.paused
    follows = steered.successor.begins(*turn_events([], "resp_2")[:2])
    steered.stage.session.pause()
    assert follows.paused


def test_a_response_that_failed_is_followed_by_none() -> None:
    stage = Stage(controls=["steer"])
    stage.create("one")
    (first,) = stage.running
    events = turn_events([text_item("x")], "resp_1")
    first.sends(*events[:-1])
    stage.says(type="response.steer", previous_response_id="resp_1", input="left")
    first.sends(steering("accepted"))
    error = {"code": "invalid_prompt", "message": "no"}
    first.sends(
        {
            "type": "response.failed",
            "response": response_object("resp_1", status="failed", error=error),
        }
    )
    assert first.succeeded_by is not None
    first.succeeded_by.watcher.successor_begins()
    assert stage.channel.last["type"] == "response.steer.failed"
    assert first.succeeded_by.state == "cancelled"
    stage.world.check_rest()
