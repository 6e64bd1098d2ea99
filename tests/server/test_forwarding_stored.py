"""Stored responses: found at the account that keeps them, by nobody but their tenant."""

from __future__ import annotations

import pytest

from gateway.conversations.store import foreign_response
from gateway.protocol.errors import ApiError
from tests.server.handlers import DESK, LAPTOP, Hall

STORED = {"id": "resp_1", "object": "response"}
VERBS = [
    ("GET", ""),
    ("GET", "/input_items"),
    ("DELETE", ""),
    ("POST", "/cancel"),
]
CHANGES = [verb for verb in VERBS if verb[0] != "GET"]


def not_found(error: object) -> None:
    assert error == {
        "message": "Response with id 'resp_1' not found.",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


@pytest.mark.parametrize(("method", "suffix"), VERBS)
def test_the_account_that_made_a_response_is_asked(method: str, suffix: str) -> None:
    hall = Hall(3)
    hall.remembers(account="b")
    asked = hall.asks(method, f"/responses/resp_1{suffix}?include[]=a.b&limit=2", user_agent="me")
    (call,) = hall.calls("b")
    assert (call.call.method, call.call.path) == (
        method,
        f"/responses/resp_1{suffix}?include[]=a.b&limit=2",
    )
    assert call.call.headers["user-agent"] == "me"
    call.answers(STORED, x_request_id="req_1", set_cookie="secret")
    assert asked.wire.json == STORED
    assert asked.wire.headers["x-gateway-account"] == "b"
    assert asked.wire.headers["x-request-id"] == "req_1"
    assert "set-cookie" not in asked.wire.headers
    assert len(hall.world.all_calls) == 1
    hall.check_rest()


@pytest.mark.parametrize(("method", "suffix"), VERBS)
def test_the_owner_is_known_longer_than_the_transcript(method: str, suffix: str) -> None:
    hall = Hall(3, keys=(LAPTOP, DESK))
    hall.services.owners.note("laptop", "resp_1", "c")
    hall.world.clock.advance(7 * 86_400)
    asked = hall.asks(method, f"/responses/resp_1{suffix}")
    hall.calls("c")[0].answers(STORED)
    assert asked.wire.json == STORED
    hall.check_rest()


@pytest.mark.parametrize("dots", [".", "..", "%2e%2e", "%2E."])
@pytest.mark.parametrize(("method", "suffix"), VERBS)
def test_no_path_leads_out_of_the_responses(method: str, suffix: str, dots: str) -> None:
    hall = Hall(2)
    asked = hall.asks(method, f"/responses/{dots}{suffix}")
    assert asked.wire.status == 404
    assert not hall.world.all_calls, "it would have asked for something else in our name"
    hall.check_rest()


@pytest.mark.parametrize(("method", "suffix"), VERBS)
def test_another_tenants_response_does_not_exist(method: str, suffix: str) -> None:
    hall = Hall(2, keys=(LAPTOP, DESK))
    hall.remembers(account="a")
    hall.services.owners.note("laptop", "resp_1", "a")
    asked = hall.asks(method, f"/responses/resp_1{suffix}", tenant="desk")
    assert asked.wire.status == 404
    not_found(asked.wire.error)
    assert not hall.world.all_calls, "expected no upstream to hear of it"
    assert hall.services.conversations.get("laptop", "resp_1") is not None
    hall.check_rest()


@pytest.mark.parametrize(
    "about",
    [
        {"account": None, "held_upstream": False},
        {"held_upstream": False},
        {"store": False},
    ],
)
def test_what_no_upstream_keeps_does_not_exist(about: dict[str, bool]) -> None:
    hall = Hall(2)
    hall.remembers(**about)  # type: ignore[arg-type]
    not_found(hall.asks("GET", "/responses/resp_1").wire.error)
    assert not hall.world.all_calls
    hall.check_rest()


def test_an_account_that_is_gone_took_its_responses_with_it() -> None:
    hall = Hall(2)
    hall.services.owners.note("laptop", "resp_1", "sold")
    not_found(hall.asks("GET", "/responses/resp_1").wire.error)
    hall.check_rest()


def test_an_unknown_response_of_the_only_tenant_is_asked_for_everywhere() -> None:
    hall = Hall(3)
    asked = hall.asks("GET", "/responses/resp_1")
    hall.calls("a")[0].refuses(404)
    hall.calls("b")[0].ends(ApiError.bad_gateway("reset"))
    hall.calls("c")[0].answers(STORED)
    assert asked.wire.json == STORED
    hall.asks("GET", "/responses/resp_1")
    assert len(hall.calls("a")) == 1, "expected its account to be remembered"
    hall.calls("c")[1].answers(STORED)
    hall.check_rest()


def test_an_unknown_response_is_asked_for_where_its_conversation_is_at_home() -> None:
    hall = Hall(3)
    session = {"session_id": "s-1"}
    chat = hall.asks("POST", "/chat/completions", {"model": "m"}, **session)
    home = chat.request.headers and next(n for n in "abc" if hall.calls(n))
    hall.calls(home)[0].answers({})
    hall.asks("GET", "/responses/resp_1", **session).leaves()
    assert len(hall.calls(home)) == 2
    hall.check_rest()


@pytest.mark.parametrize(("method", "suffix"), VERBS)
def test_what_no_account_knows_does_not_exist(method: str, suffix: str) -> None:
    hall = Hall(2)
    asked = hall.asks(method, f"/responses/resp_1{suffix}")
    hall.calls("a")[0].refuses(404)
    hall.calls("b")[0].refuses(404)
    not_found(asked.wire.error)
    hall.check_rest()


@pytest.mark.parametrize(("method", "suffix"), CHANGES)
def test_a_change_that_may_have_happened_is_not_tried_elsewhere(method: str, suffix: str) -> None:
    hall = Hall(2)
    asked = hall.asks(method, f"/responses/resp_1{suffix}")
    hall.calls("a")[0].ends(ApiError.bad_gateway("reset"))
    assert asked.wire.status == 502
    assert not hall.calls("b")
    hall.check_rest()


def test_few_accounts_are_asked_for_what_nobody_knows() -> None:
    hall = Hall(8)
    hall.world.accounts["a"].health.disable()
    asked = hall.asks("GET", "/responses/resp_1")
    for name in "bcdefgh":
        hall.calls(name)[0].refuses(404)
    assert asked.wire.status == 404
    assert not hall.calls("a"), "expected a disabled account to be left alone"
    hall.check_rest()


def test_a_deleted_response_cannot_be_continued_or_found() -> None:
    hall = Hall(2, keys=(LAPTOP, DESK))
    hall.remembers()
    hall.services.owners.note("laptop", "resp_1", "a")
    asked = hall.asks("DELETE", "/responses/resp_1")
    assert hall.services.conversations.get("laptop", "resp_1") is not None
    hall.calls()[0].answers({"id": "resp_1", "object": "response", "deleted": True})
    assert asked.wire.status == 200
    assert hall.services.conversations.get("laptop", "resp_1") is None
    not_found(hall.asks("GET", "/responses/resp_1").wire.error)
    hall.check_rest()


def test_a_response_that_was_not_deleted_lives_on() -> None:
    hall = Hall()
    hall.remembers()
    asked = hall.asks("DELETE", "/responses/resp_1")
    hall.calls()[0].refuses(500)
    assert asked.wire.status == 500
    assert hall.services.conversations.get("laptop", "resp_1") is not None
    hall.check_rest()


def test_a_stream_passes_as_it_comes_and_a_slow_client_holds_it_back() -> None:
    hall = Hall()
    hall.remembers()
    asked = hall.asks("GET", "/responses/resp_1?stream=true&starting_after=3")
    call = hall.calls()[0]
    assert call.call.headers["accept"] == "text/event-stream"
    call.begins(200, {"content-type": "text/event-stream; charset=utf-8"})
    call.sends(b"data: {}\n\n")
    assert asked.wire.body == b"data: {}\n\n"
    assert asked.wire.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert asked.wire.headers["x-accel-buffering"] == "no"
    asked.request.hold_back(True)
    assert call.paused
    asked.request.hold_back(False)
    assert not call.paused
    call.ends(ApiError.bad_gateway("reset"))
    assert asked.wire.was_cut, "expected the client to see that it is not whole"
    hall.check_rest()


def test_a_client_that_leaves_cancels_its_request() -> None:
    hall = Hall()
    hall.remembers()
    asked = hall.asks("GET", "/responses/resp_1?stream=true")
    hall.calls()[0].begins()
    asked.leaves()
    assert hall.calls()[0].state == "cancelled"
    hall.check_rest()


def test_reading_takes_no_place_and_proves_nothing() -> None:
    hall = Hall()
    hall.remembers()
    account = hall.world.accounts["a"]
    account._max_in_flight = 0
    hall.asks("GET", "/responses/resp_1")
    hall.calls()[0].answers(STORED)
    assert account.turns == 0
    hall.asks("GET", "/responses/resp_1")
    hall.calls()[1].refuses(503)
    assert account.health.state.value == "ready"
    hall.check_rest()


def test_an_accounts_own_trouble_is_not_the_clients() -> None:
    hall = Hall()
    hall.remembers()
    asked = hall.asks("GET", "/responses/resp_1")
    hall.calls()[0].refuses(401, "invalid_api_key", "wrong key")
    assert (asked.wire.status, asked.wire.error["code"]) == (502, "upstream_unauthorized")
    hall.check_rest()


@pytest.mark.parametrize("odd", ["resp_%2F..%2Fmodels", "a b", "r" * 5000])
def test_odd_ids_stay_one_part_of_the_path(odd: str) -> None:
    hall = Hall()
    asked = hall.asks("GET", f"/responses/{odd}")
    for call in hall.calls():
        assert call.call.path.count("/") == 2, f"expected one part, got {call.call.path}"
        assert " " not in call.call.path
        call.refuses(404)
    assert asked.wire.status == 404
    hall.check_rest()


def test_a_response_that_was_continued_unseen_is_found_where_it_is_kept() -> None:
    """What the ledger knows of it is only that it was named."""
    hall = Hall(2)
    parent = foreign_response("laptop", "resp_far", None)
    hall.remembers(parent=parent)
    for method, suffix in VERBS[:2]:
        asked = hall.asks(method, f"/responses/resp_far{suffix}")
        hall.calls("a")[-1].refuses(404)
        hall.calls("b")[-1].answers(STORED)
        assert asked.wire.json == STORED
        hall.services.owners.forget("laptop", "resp_far")
    hall.services.owners.note("laptop", "resp_far", "b")
    hall.asks("GET", "/responses/resp_far")
    hall.calls("b")[-1].answers(STORED)
    assert len(hall.calls("a")) == 2
    hall.check_rest()
