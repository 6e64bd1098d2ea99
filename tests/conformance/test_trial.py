"""Chaining on trial: protocol.md §8.1, §10.73-74 (continuity: auto)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.support.checks import assert_error, assert_one_terminal, completed, output_text, types
from tests.support.events import Json, call_output, error_body, response_object, user
from tests.support.strict import Mode
from tests.support.upstream import Exchange

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize("store", [False, True])
def test_10_73_an_upstream_that_ignores_ids_gets_replays(stage: Stage, store: bool) -> None:
    strict = stage.strict("s", Mode.FORGETFUL)
    client = stage.serve(strict).connect()
    previous: Json = {}
    for number in range(4):
        events = client.turn(input=[user(f"recall {number}")], store=store, **previous)
        previous = {"previous_response_id": completed(events)["id"]}
        assert types(events).count("response.created") == 1, "the trial is not seen"
        assert output_text(events) == " | ".join(f"recall {n}" for n in range(number + 1))
    trials = [request for request in strict.requests if request.previous_response_id]
    assert len(trials) == 1, f"what was learned is kept, got {len(trials)} trials"
    assert all(request.gone.is_set() or request.finished.is_set() for request in trials)


REFUSALS: list[Any] = [
    (400, error_body("previous_response_not_found", "gone", param="previous_response_id")),
    (400, {"detail": "Unsupported parameter: previous_response_id"}),
    (400, error_body("unsupported_parameter", "zero data", param="previous_response_id")),
    (404, error_body(None, "Response with id 'resp_x' not found.")),
    (404, {"detail": "Not Found"}),
    (501, error_body(None, "responses are not stored here", kind="not_implemented")),
    ("flat", "previous_response_not_found"),
    ("failed", "previous_response_not_found"),
    ("created, failed", "previous_response_not_found"),
]


def refuse_chained(exchange: Exchange, how: Any, body: Any) -> bool:
    """Answer a chained request by a refusal; False if it was not chained."""
    if exchange.request.previous_response_id is None:
        return False
    exchange.request.refused = True
    if isinstance(how, int):
        exchange.json(how, body)
        return True
    events = exchange.turn()
    failure = {"code": body, "message": "Previous response not found."}
    if "created" in how:
        exchange.sse(*events[:2])
    if how == "flat":
        param = {"param": "previous_response_id", "sequence_number": 0}
        exchange.sse({"type": "error", **failure, **param})
    else:
        response_id = str(exchange.request.response_id)
        response = response_object(response_id, status="failed", error=failure)
        exchange.sse({"type": "response.failed", "sequence_number": 3, "response": response})
    exchange.end()
    return True


@pytest.mark.parametrize(("how", "body"), REFUSALS, ids=lambda value: str(value)[:50])
def test_10_74_a_refused_id_is_replayed_unseen(stage: Stage, how: Any, body: Any) -> None:
    def script(exchange: Exchange) -> None:
        if not refuse_chained(exchange, how, body):
            exchange.answer()

    upstream = stage.upstream(script)
    client = stage.serve(upstream).connect()
    first = completed(client.turn(input=[user("a")], store=False))
    fields: Json = {"previous_response_id": first["id"], "store": False}
    events = client.turn(input=[user("b")], **fields)
    assert output_text(events) == "hello"
    assert types(events).count("response.created") == 1
    assert [r.previous_response_id for r in upstream.requests] == [None, first["id"], None]
    assert upstream.requests[2].input == [user("a"), *first["output"], user("b")]


def test_10_74_replay_is_tried_once(stage: Stage) -> None:
    not_found = error_body("previous_response_not_found", "x", param="previous_response_id")

    def script(exchange: Exchange) -> None:
        if len(exchange.upstream.requests) == 1:
            exchange.answer()
        else:
            exchange.json(400, not_found)

    upstream = stage.upstream(script)
    client = stage.serve(upstream).connect()
    first = completed(client.turn())
    events = client.turn(previous_response_id=first["id"])
    assert_one_terminal(events)
    assert len(upstream.requests) == 3, "one trial, one replay, no more"


def test_10_74_a_mistake_of_the_client_teaches_nothing_about_the_account(stage: Stage) -> None:
    """An orphan output may mean that the id was ignored, so a replay is fair; both refused."""
    strict = stage.strict("s")
    client = stage.serve(strict).connect()
    first = completed(client.turn(input=[user("a")], store=True))
    fields: Json = {"previous_response_id": first["id"], "store": True}
    assert_error(client.turn(input=[call_output("call_nobody")], **fields)[-1], 400)
    assert len(strict.requests) <= 3
    second = completed(client.turn(input=[user("b")], store=True))
    fields["previous_response_id"] = second["id"]
    assert output_text(client.turn(input=[user("recall c")], **fields)) == "b | recall c"
    assert strict.requests[-1].previous_response_id == second["id"], "the account still chains"
