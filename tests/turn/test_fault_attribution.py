"""Whose fault a refusal is, seen from turns and passages: who hears it, who rests (law 13)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.config import RoutingSettings
from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.routing.affinity import AffinityKey
from tests.support.events import Json, response_object, text_item, turn_events, user
from tests.support.sse import ServerSentEvent
from tests.turn.calls import CallWorld, FakeSpec, Journey
from tests.turn.fakes import World

PAGE = from_http(403, {}, b"<html>Just a moment")
UNCLEAR = ApiError(404, "invalid_request_error", "Not here.")
BROKEN = ApiError(500, "server_error", "Boom.")

NAMED = [
    ApiError(404, "invalid_request_error", "Prompt with id 'pmpt_1' not found."),
    ApiError(403, "invalid_request_error", "You do not have access to this file."),
    ApiError(409, "invalid_request_error", "The conversation is locked."),
    ApiError(404, "invalid_request_error", "No.", None, "tools[0].vector_store_ids[0]"),
    ApiError(502, "upstream_error", "Your input exceeds the context window of this model."),
]


def world(accounts: int = 2) -> World:
    return World(accounts, routing=RoutingSettings(queue_seconds=0.0, strategy="fill-first"))


def plays(place: World, **replies: ApiError | None) -> None:
    """Each account named answers every turn: with this error, or well."""

    def reply(exchange: Any, error: ApiError | None) -> None:
        if error is None:
            exchange.sends(*turn_events([text_item()], f"resp_{id(exchange)}"))
        else:
            exchange.ends(error)

    for name, error in replies.items():
        place.upstreams[name].answer = lambda exchange, error=error: reply(exchange, error)


def ask(place: World, text: str, **members: Any) -> Json:
    """A turn of a conversation of its own."""
    turn = place.turn([user(text)], **members)
    turn.start()
    place.services.pool.bindings.release(AffinityKey("connection", "laptop", "c-1"))
    return place.sink.last


def requests(place: World) -> list[int]:
    return [len(place.exchanges(name)) for name in place.accounts]


def resting(place: World) -> list[str]:
    return [name for name, each in place.accounts.items() if each.unavailable("gpt-5.5")]


@pytest.mark.parametrize("error", NAMED, ids=str)
def test_what_a_request_names_costs_one_upstream_request_and_rests_nobody(error: ApiError) -> None:
    place = world()
    plays(place, a=error, b=error)
    for number in range(5):
        heard = ask(place, f"bad {number}")
        assert heard["status"] == (400 if error.status >= 500 else error.status)
        assert heard["error"]["message"] == error.message
    assert requests(place) == [5, 0]
    assert resting(place) == []
    assert place.accounts["a"].failures == 0
    place.check_rest()


@pytest.mark.parametrize("error", [NAMED[0], PAGE], ids=str)
def test_what_has_nothing_to_do_with_the_thread_does_not_replay_it(error: ApiError) -> None:
    place = World()
    parent = place.completed([user("hi")], turn_events([text_item()], "resp_1"))
    place.turn([user("and?")], parent).start()
    place.exchanges()[-1].ends(error)
    assert len(place.exchanges()) == 2
    assert place.sink.last["error"]["message"] == error.message
    assert place.accounts["a"].learned.reason_to_replay(True) is None
    place.check_rest()


def test_a_failed_response_whose_code_would_make_clients_repeat_it_is_told_as_theirs() -> None:
    place = World()
    place.turn([user("hi")]).start()
    error = {"code": "server_error", "message": "The prompt is too long for this model."}
    response = response_object("resp_1", status="failed", error=error)
    place.exchanges()[0].sends({"type": "response.failed", "response": response})
    assert place.sink.last["type"] == "error"
    assert place.sink.last["status"] == 400
    assert place.sink.last["error"]["code"] == "context_length_exceeded"
    place.check_rest()


def test_a_bare_error_after_output_is_a_failure_that_says_why() -> None:
    place = World()
    place.turn([user("hi")]).start()
    events = turn_events([text_item()], "resp_1")
    exchange = place.exchanges()[0]
    exchange.sends(*events[:5])
    bare = b'{"error":{"message":"max context is 9","code":400}}'
    exchange.receiver.upstream_events([ServerSentEvent(b"error", bare)])
    assert place.sink.last["type"] == "response.failed"
    assert place.sink.last["response"]["error"] == {
        "code": "context_length_exceeded",
        "message": "max context is 9",
    }
    place.check_rest()


def test_a_request_that_breaks_every_account_takes_nobody_down() -> None:
    place = world()
    plays(place, a=BROKEN, b=BROKEN)
    for number in range(10):
        metadata = {"turn": f"{number}"}  # what differs with each try makes no other request of it
        assert ask(place, "poison", client_metadata=metadata)["status"] == 500
    assert resting(place) == []
    plays(place, a=None, b=None)
    assert ask(place, "well")["type"] == "response.completed"


def test_an_outage_is_noticed() -> None:
    place = world()
    plays(place, a=BROKEN, b=BROKEN)
    for number in range(3):
        ask(place, f"turn {number}")
    assert resting(place) == ["a", "b"]


@pytest.mark.parametrize("error", [UNCLEAR, ApiError(403, "x", "forbidden")], ids=str)
def test_a_refusal_that_no_account_explains_rests_nobody(error: ApiError) -> None:
    place = world()
    plays(place, a=error, b=error)
    for number in range(10):
        ask(place, f"turn {number}")
    assert requests(place) == [10, 10]
    assert resting(place) == []


def test_who_refuses_what_others_serve_is_left_alone_after_a_while() -> None:
    place = world()
    plays(place, a=UNCLEAR, b=None)
    for number in range(3):
        assert resting(place) == []
        assert ask(place, f"turn {number}")["type"] == "response.completed"
    assert resting(place) == ["a"]
    ask(place, "one more")
    assert requests(place) == [3, 4]


def test_who_serves_in_the_end_what_it_refused_before_is_not_left_alone() -> None:
    place = World(2, routing=RoutingSettings(queue_seconds=15.0, strategy="fill-first"))
    soon = ApiError(429, "requests", "Slow down.", hints={"retry-after": "1"})
    for number in range(3):
        plays(place, a=UNCLEAR, b=soon)
        turn = place.turn([user(f"turn {number}")])
        turn.start()
        plays(place, a=None, b=soon)
        place.clock.pump([0.25] * 20)
        assert turn.record.attempts[-1].account == "a"
        assert turn.record.attempts[-1].outcome == "completed"
        place.services.pool.bindings.release(AffinityKey("connection", "laptop", "c-1"))
    assert not place.accounts["a"].health.in_doubt("gpt-5.5")


def test_a_page_is_nobodys_refusal_and_told_as_what_it_is() -> None:
    place = world()
    plays(place, a=PAGE, b=None)
    assert ask(place, "one")["type"] == "response.completed"
    plays(place, b=PAGE)
    heard = ask(place, "two")
    assert heard["status"] == 502
    assert heard["error"]["code"] == "upstream_not_the_api"
    for number in range(3):
        ask(place, f"turn {number}")
    found = place.accounts["a"].unavailable("gpt-5.5")
    assert found is not None
    assert "a page of HTML, not the API's answer" in found.why
    assert found.until is not None
    assert found.until - place.clock.seconds() < 2, "it is a hiccup"


def test_a_tools_model_that_does_not_exist_rests_not_the_turns_own() -> None:
    place = world()
    error = ApiError(404, "x", "The model 'images-9' does not exist.", "model_not_found")
    plays(place, a=error, b=error)
    assert ask(place, "draw")["error"]["message"] == error.message
    assert resting(place) == []
    named = ApiError(404, "x", "The model 'gpt-5.5' does not exist.", "model_not_found")
    plays(place, a=named, b=named)
    ask(place, "draw")
    assert resting(place) == ["a", "b"]


STATUSES = st.integers(400, 599)
MESSAGES = st.sampled_from(["No.", "Not found", "forbidden", "File not found", "Server error"])
CODES = st.sampled_from([None, "server_error", "unheard_of", "file_not_found"])


@settings(deadline=None, max_examples=40)
@given(STATUSES, MESSAGES, CODES, st.integers(1, 6))
def test_one_request_never_takes_the_pool_down(
    status: int, message: str, code: str | None, times: int
) -> None:
    """Unless its refusal speaks of the account: of its credentials, its money, its limits."""
    place = world()
    error = from_http(status, {}, body_of(message, code))
    plays(place, a=error, b=error)
    for _ in range(times):
        ask(place, "poison")
    if status not in (401, 402, 429):
        assert resting(place) == []


def body_of(message: str, code: str | None) -> bytes:
    return b'{"error":{"message":"%s","code":%s}}' % (
        message.encode(),
        b"null" if code is None else b'"%s"' % code.encode(),
    )


# --- passages --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 409, 500])
def test_what_a_passed_request_names_is_its_own_affair(status: int) -> None:
    place = CallWorld(2)
    journey = Journey(place).starts()
    place.calls("a")[0].refuses(status, None, "Vector store with id 'vs_1' not found.")
    assert journey.sink.error.status == (status if status < 500 else 400)
    assert journey.sink.error.message == "Vector store with id 'vs_1' not found."
    assert not place.calls("b")
    assert place.accounts["a"].failures == 0
    place.check_rest()


def test_a_passed_request_that_is_sent_again_and_again_rests_nobody() -> None:
    place = CallWorld(2)
    for number in range(6):
        Journey(place).starts()
        place.calls("a")[number].refuses(500)
        place.calls("b")[number].refuses(500)
    assert resting(place) == []
    place.check_rest()


ERROR = b' {"error": {"message": "bad tool schema", "param": "tools", "code": 400}}'


@pytest.mark.parametrize("pieces", [[ERROR], [ERROR[:3], ERROR[3:9], ERROR[9:]]])
def test_an_error_in_the_place_of_a_passed_answer_is_told_as_one(pieces: list[bytes]) -> None:
    place = CallWorld(2)
    journey = Journey(place).starts()
    call = place.calls("a")[0]
    call.begins(200)
    for piece in pieces:
        call.sends(piece)
    call.ends()
    assert (journey.sink.error.status, journey.sink.error.message) == (400, "bad tool schema")
    assert not place.calls("b")
    assert resting(place) == []
    place.check_rest()


def test_a_limit_in_the_place_of_a_passed_answer_moves_it() -> None:
    place = CallWorld(2)
    journey = Journey(place).starts()
    place.calls("a")[0].begins(200)
    place.calls("a")[0].sends(b'{"error":{"message":"slow","code":429}}')
    place.calls("a")[0].ends()
    place.calls("b")[0].answers({})
    assert journey.sink.endings == [None]
    assert resting(place) == ["a"]
    place.check_rest()


def test_an_error_in_the_place_of_a_passed_answer_teaches_nothing_and_gives_no_home() -> None:
    place = CallWorld(2)
    journey = Journey(place, FakeSpec()).starts()
    place.calls("a")[0].begins(200)
    place.calls("a")[0].sends(b'{"error":{"message":"slow","code":429}}')
    place.calls("a")[0].ends()
    place.calls("b")[0].begins(200)
    place.calls("b")[0].sends(b'{"id":')
    assert journey.spec.took == ["b"]
    assert [each.account for _, each in place.services.pool.bindings.items(9)] == ["b"]
    place.calls("b")[0].ends()
    place.check_rest()


@pytest.mark.parametrize(
    "answer",
    [
        b'{"error": null, "id": "chatcmpl_1"}',
        b'{"error": {}, "object": "chat.completion"}',
        b'{"id": "chatcmpl_1"}',
        b'{"error": {"message": "' + 70_000 * b"x" + b'"}}',
        b'{"err',
        b"",
    ],
    ids=lambda each: repr(each[:30]),
)
def test_any_other_answer_is_passed_as_it_is(answer: bytes) -> None:
    place = CallWorld(2)
    journey = Journey(place).starts()
    place.calls("a")[0].begins(200)
    place.calls("a")[0].sends(answer)
    place.calls("a")[0].ends()
    assert journey.sink.endings == [None]
    assert journey.sink.body == answer
    place.check_rest()


def test_an_error_within_an_answer_quotes_no_secret() -> None:
    place = World(1)
    place.turn([user("hi")]).start()
    said = b'{"error":{"message":"Bad tool schema for sk-secret","code":400}}'
    place.exchanges()[0].receiver.upstream_events([ServerSentEvent(b"error", said)])
    assert place.sink.last["error"]["message"] == "Bad tool schema for *"
    passing = CallWorld(1)
    journey = Journey(passing).starts()
    passing.calls("a")[0].begins(200)
    passing.calls("a")[0].sends(said)
    passing.calls("a")[0].ends()
    assert journey.sink.error.message == "Bad tool schema for *"
    place.check_rest()
    passing.check_rest()
