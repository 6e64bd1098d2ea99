"""Turns and forwarded requests that are recorded: what the file has, and that nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.config import AccountSettings, ContentLogSettings
from gateway.config.settings import MASK
from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.turn.context import TurnContext
from gateway.turn.recording import (
    RecordedForwarding,
    RecordedTurn,
    recorded_forwarding,
    recorded_turn,
)
from gateway.turn.turn import Turn
from gateway.upstream.interface import UpstreamAnswer
from tests.support.events import text_item, turn_events, user
from tests.turn.calls import CallWorld, Journey
from tests.turn.fakes import FakeSink, World, resolver


class Call:
    """A client's HTTP request."""

    method, path, query_string = "POST", "/v1/responses", "api_key=sk-in-the-query"
    headers: Mapping[str, str] = {"authorization": "Bearer sk-of-the-client", "x-note": "n"}
    body = b'{"input": "say sk-of-the-client", "model": "gpt-5.5"}'

    def when_answered(self, call: Callable[[int, Mapping[str, str]], None]) -> None:
        self.answered = call


def switch_on(world: World, place: Path, **more: Any) -> Path:
    directory = place / "requests"
    world.services.request_log.configure(ContentLogSettings(directory=str(directory), **more))
    return directory


def context(world: World) -> TurnContext:
    return world.turn()._context


def turn(world: World, call: Call | None = None, **members: Any) -> Turn:
    world.sink = FakeSink()
    request = world.request([user("hi")], **members)
    return recorded_turn(world.services, context(world), request, world.sink, resolver(None), call)


def lines(directory: Path) -> list[Any]:
    (file,) = directory.iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def kinds(directory: Path) -> list[str]:
    return [line["kind"] for line in lines(directory)]


def one(directory: Path, kind: str) -> Any:
    (found,) = [line for line in lines(directory) if line["kind"] == kind]
    return found


# --- turns -------------------------------------------------------------------------------


def test_a_turn_that_nobody_asks_for_is_an_ordinary_one(tmp_path: Path) -> None:
    world = World()
    switch_on(world, tmp_path, keys=("desk",))
    assert type(turn(world)) is Turn
    assert not (tmp_path / "requests").exists()


def test_all_of_a_turn_is_written(tmp_path: Path) -> None:
    world = World()
    directory = switch_on(world, tmp_path)
    it = turn(world)
    it.start()
    (exchange,) = world.exchanges()
    exchange.receiver.upstream_connected()
    world.clock.advance(0.5)
    exchange.head = UpstreamAnswer(200, {"x-request-id": "req_1", "set-cookie": "crumbs"}, b"")
    exchange.receiver.upstream_answered(exchange.head.headers)  # type: ignore[call-arg]
    events = turn_events([text_item()], "resp_1")
    exchange.sends(*events)
    count = len(events)
    assert kinds(directory) == [
        *("request", "attempt", "sent", "answer"),
        *["from_account"] * count,
        *["to_client"] * count,
        "end",
    ]
    request, attempt, answer = (one(directory, kind) for kind in ("request", "attempt", "answer"))
    assert request["body"]["input"] == [user("hi")]
    assert (request["over"], request["key"], request["model"]) == ("websocket", "laptop", "gpt-5.5")
    assert attempt["account"] == "a"
    assert attempt["headers"]["authorization"] == MASK
    assert attempt["body"]["stream"] is True
    assert (answer["ms"], answer["status"]) == (500.0, 200)
    assert answer["headers"] == {"x-request-id": "req_1", "set-cookie": MASK}
    said = [line["body"] for line in lines(directory) if line["kind"] == "from_account"]
    got = [line["body"] for line in lines(directory) if line["kind"] == "to_client"]
    assert said == got == events
    end = one(directory, "end")
    assert end["body"]["response_id"] == "resp_1"
    assert end["body"]["recording"] == it.record.recording
    assert (directory / str(it.record.recording)).exists()
    world.check_rest()


def test_the_client_sees_the_same_with_and_without_a_recording(tmp_path: Path) -> None:
    seen = []
    for recorded in (False, True):
        world = World()
        if recorded:
            switch_on(world, tmp_path)
        it = turn(world)
        assert isinstance(it, RecordedTurn) is recorded
        it.start()
        world.exchanges()[0].sends(*turn_events([text_item(item_id="msg_1")], "resp_1"))
        seen.append((world.sink.raw, world.sink.ended, it.record.status, it.record.events))
    assert seen[0] == seen[1]


def test_every_attempt_is_written_with_its_refusal(tmp_path: Path) -> None:
    world = World(2)
    directory = switch_on(world, tmp_path)
    turn(world).start()
    (first,) = world.exchanges("a")
    refusal = b'{"error": {"message": "no sk-secret", "code": "rate_limit_exceeded"}}'
    first.head = UpstreamAnswer(429, {"retry-after": "7"}, refusal)
    first.ends(from_http(429, {"retry-after": "7"}, refusal))
    world.exchanges("b")[0].sends(*turn_events([text_item()], "resp_1"))
    shown = lines(directory)
    assert [line["account"] for line in shown if line["kind"] == "attempt"] == ["a", "b"]
    answer, said, ended = shown[2:5]
    assert (answer["kind"], answer["status"], answer["attempt"]) == ("answer", 429, 1)
    assert said["body"]["error"]["message"] == f"no {MASK}", "the account's key is shown"
    assert (ended["kind"], ended["error"]) == ("attempt_ended", "rate_limit_exceeded")
    assert shown[-1]["status"] == "completed"


def test_an_error_for_the_client_is_written(tmp_path: Path) -> None:
    world = World()
    directory = switch_on(world, tmp_path)
    turn(world).start()
    world.exchanges()[0].ends(ApiError(400, "invalid_request_error", "wrong", "bad_thing"))
    assert one(directory, "to_client")["body"]["error"]["code"] == "bad_thing"
    assert one(directory, "end")["error"] == "bad_thing"


@pytest.mark.parametrize("how", ["cancel", "interrupt", "abandon"])
def test_a_turn_that_is_ended_from_outside_has_an_end(tmp_path: Path, how: str) -> None:
    world = World()
    directory = switch_on(world, tmp_path)
    it = turn(world)
    it.start()
    {
        "cancel": it.cancel,
        "interrupt": lambda: it.interrupt(None),
        "abandon": lambda: it.abandon(ApiError.gateway_restarts()),
    }[how]()
    assert kinds(directory)[-1] == "end"
    assert kinds(directory).count("end") == 1


def test_an_http_request_is_written_with_its_head_and_the_heads_of_the_answer(
    tmp_path: Path,
) -> None:
    world, call = World(), Call()
    directory = switch_on(world, tmp_path)
    turn(world, call).start()
    call.answered(200, {"content-type": "text/event-stream", "set-cookie": "c"})
    request, head = one(directory, "request"), one(directory, "head")
    assert request["over"] == "http"
    assert request["headers"] == {"authorization": MASK, "x-note": "n"}
    assert request["path"] == f"/v1/responses?api_key={MASK}"
    assert request["body"]["input"] == f"say {MASK}", "the client's key is shown"
    assert (head["status"], head["headers"]["set-cookie"]) == (200, MASK)


def test_headers_of_accounts_are_hidden(tmp_path: Path) -> None:
    world = World()
    account = world.accounts["a"]
    account.settings = AccountSettings(
        name="a", auth_header="api-key", headers={"OpenAI-Project": "proj-of-somebody"}
    )
    directory = switch_on(world, tmp_path)
    turn(world, instructions="for proj-of-somebody").start()
    attempt = one(directory, "attempt")
    shown = {name.lower(): value for name, value in attempt["headers"].items()}
    assert (shown["openai-project"], shown["api-key"]) == (MASK, MASK)
    assert "proj-of-somebody" not in json.dumps(attempt)


def test_a_turn_of_another_account_leaves_no_file(tmp_path: Path) -> None:
    world = World()
    directory = switch_on(world, tmp_path, accounts=("b",))
    it = turn(world)
    it.start()
    world.exchanges()[0].sends(*turn_events([text_item()], "resp_1"))
    assert it.record.recording is None
    assert not directory.exists()


def test_a_turn_that_moves_to_an_account_that_is_asked_for_is_written_from_there(
    tmp_path: Path,
) -> None:
    world = World(2)
    directory = switch_on(world, tmp_path, accounts=("b",))
    turn(world).start()
    world.exchanges("a")[0].ends(ApiError.bad_gateway("reset"))
    world.exchanges("b")[0].sends(*turn_events([text_item()], "resp_1"))
    shown = lines(directory)
    assert [line["kind"] for line in shown[:2]] == ["request", "attempt"]
    assert shown[1]["attempt"] == 2
    assert [each["account"] for each in shown[-1]["body"]["attempts"]] == ["a", "b"]


def test_a_full_disk_ends_no_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    world = World()
    switch_on(world, tmp_path)
    monkeypatch.setattr("gateway.request_log.files.os.write", full)
    it = turn(world)
    it.start()
    world.exchanges()[0].sends(*turn_events([text_item()], "resp_1"))
    assert it.record.status == "completed"
    assert world.services.request_log.failed == "No space left on device"


# --- forwarded requests --------------------------------------------------------------------


def journey(world: CallWorld) -> Journey:
    """One forwarded request that may be recorded."""
    made = Journey(world)
    made.forwarding = recorded_forwarding(
        world.services, made.context, made.spec, made.sink, Call()
    )
    return made


def test_a_forwarded_request_is_written_with_its_answer(tmp_path: Path) -> None:
    world = CallWorld()
    directory = switch_on(world, tmp_path)
    it = journey(world).starts()
    assert isinstance(it.forwarding, RecordedForwarding)
    (call,) = world.calls()
    call.begins(201, {"x-request-id": "req_1"})
    call.sends(b'{"one": "sk-sec')
    call.sends(b'ret", "two": 2}')
    call.ends()
    assert kinds(directory) == [
        "request",
        "attempt",
        "answer",
        "from_account",
        "attempt_ended",
        "end",
    ]
    assert one(directory, "from_account")["body"] == {"one": MASK, "two": 2}
    assert one(directory, "answer")["status"] == 201
    assert it.sink.body == b'{"one": "sk-secret", "two": 2}', "the client gets the bytes"
    world.check_rest()


def test_events_of_a_forwarded_answer_are_lines(tmp_path: Path) -> None:
    world = CallWorld()
    directory = switch_on(world, tmp_path)
    journey(world).starts()
    (call,) = world.calls()
    call.begins(200, {"content-type": "text/event-stream"})
    call.sends(b'data: {"n": 1}\n\ndata: {"n"')
    call.sends(b": 2}\n\ndata: [DONE]\n\n")
    call.ends()
    said = [line["body"] for line in lines(directory) if line["kind"] == "from_account"]
    assert said == [{"n": 1}, {"n": 2}, {"text": "[DONE]"}]


def test_a_forwarded_request_that_is_refused_or_left_has_an_end(tmp_path: Path) -> None:
    world = CallWorld(2)
    directory = switch_on(world, tmp_path)
    it = journey(world).starts()
    world.calls("a")[0].refuses(429)
    world.calls("b")[0].refuses(400, "bad_thing")
    shown = lines(directory)
    assert [line["status"] for line in shown if line["kind"] == "answer"] == [429, 400]
    assert [line["kind"] for line in shown[-2:]] == ["to_client", "end"]
    assert shown[-1]["error"] == "bad_thing"
    (directory / shown[-1]["body"]["recording"]).unlink()
    it = journey(world).starts()
    it.forwarding.cancel()
    it.forwarding.cancel()
    assert kinds(directory)[-1] == "end"
    assert kinds(directory).count("end") == 1
