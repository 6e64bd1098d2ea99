"""Tenants are separate: a client key sees only the response ids that it made (law 14)."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import assert_error, completed
from tests.support.events import Json, call_output, error_body, text_item, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange

pytestmark = pytest.mark.conformance

CALL: Json = {
    "id": "fc_private",
    "type": "function_call",
    "status": "completed",
    "name": "shell",
    "arguments": "{}",
    "call_id": "call_private",
}


def test_two_tenants_never_see_each_others_ids(any_rig: Rig) -> None:
    mine, other = any_rig.connect(), any_rig.connect(key="key-desk")
    parent = completed(mine.turn(input=[user("secret")], store=True))["id"]
    events = other.turn(previous_response_id=parent, store=True)
    assert_error(events[-1], 400, "previous_response_not_found", "previous_response_id")
    assert len(any_rig.upstream.requests) == 1
    completed(mine.turn(previous_response_id=parent, store=True))


def test_two_tenants_do_not_share_calls(any_rig: Rig) -> None:
    """Law 7 looks for the call in this connection alone."""
    any_rig.upstream.queue(lambda e: e.answer([text_item("x"), {**CALL}]))
    completed(any_rig.connect().turn(store=True))
    client = any_rig.connect(key="key-desk")
    client.turn(input=[call_output("call_private")], store=True)
    for request in any_rig.upstream.requests[1:]:
        assert request.previous_response_id is None
        assert request.input == [call_output("call_private")]


# --- an account's limits are its owner's business ------------------------------------------

SPENT = "51.5"  # what no guest may hear
LIMITS: Json = {
    "type": "codex.rate_limits",
    "plan_type": "plus",
    "rate_limits": {"primary": {"used_percent": float(SPENT), "window_minutes": 300}},
}
HEADERS = {
    "x-codex-primary-used-percent": SPENT,
    "x-ratelimit-remaining-tokens": SPENT,
    "x-codex-turn-state": "theirs",
    "x-request-id": "req_1",
}
METADATA: Json = {"type": "response.metadata", "metadata": {}, "headers": HEADERS}


def counted(exchange: Exchange) -> None:
    """An answer that tells of the account's limits wherever it can."""
    events = exchange.turn()
    exchange.start(headers=HEADERS)
    exchange.sse(events[0], LIMITS, METADATA, *events[1:4], LIMITS, METADATA, *events[4:])
    exchange.end()


def refusal_in_the_stream(exchange: Exchange) -> None:
    exchange.start(headers=HEADERS)
    error = {"type": "invalid_request_error", "code": "c", "message": "no", "headers": HEADERS}
    exchange.sse(exchange.turn()[0], {"type": "error", "status": 400, "error": error})
    exchange.end()


def failure_after_output(exchange: Exchange) -> None:
    events = exchange.turn()
    response = {
        **events[-1]["response"],
        "status": "failed",
        "error": {"code": "invalid_prompt", "message": "no", "headers": HEADERS},
    }
    exchange.start(headers=HEADERS)
    exchange.sse(*events[:4], {**events[-1], "type": "response.failed", "response": response})
    exchange.end()


def refusal(exchange: Exchange) -> None:
    exchange.json(400, error_body("c", "no"), HEADERS)


def chat_completion(exchange: Exchange) -> None:
    exchange.json(200, {"object": "chat.completion", "choices": []}, HEADERS)


ANSWERS = [counted, refusal_in_the_stream, failure_after_output, refusal]


def heard(gateway: Gateway, way: str, key: str) -> str:
    """All that a client gets of one turn: heads, events, errors."""
    if way == "websocket":
        return json.dumps(
            gateway.connect(key=key, headers=[("x-codex-turn-metadata", "{}")]).turn()
        )
    client = HttpClient(gateway.port, key=key)
    if way == "chat":
        body = {"model": "gpt-5.5", "messages": []}
        answer = client.ask(path="/v1/chat/completions", body=json.dumps(body).encode())
    else:
        answer = client.create(stream=way == "events")
    client.drop()
    return json.dumps(answer.headers) + answer.body.decode()


WAYS = ["websocket", "events", "object"]


@pytest.mark.parametrize("script", ANSWERS)
def test_10_49_guests_do_not_hear_of_an_accounts_limits(
    stage: Stage, script: Callable[[Exchange], None]
) -> None:
    """By default nobody does where there are several keys; no upstream's turn state is bare."""
    upstream = stage.upstream(script)
    gateway = stage.gateway(account("solo", upstream))
    for way in WAYS:
        said = heard(gateway, way, "key-desk")
        assert SPENT not in said, f"{way}: {said}"
        assert "codex.rate_limits" not in said, f"{way}: {said}"
        assert '"theirs"' not in said, f"{way}: {said}"


def test_10_49_guests_do_not_hear_of_limits_by_passed_requests(stage: Stage) -> None:
    upstream = stage.upstream(chat_completion)
    gateway = stage.gateway(account("solo", upstream))
    assert SPENT not in heard(gateway, "chat", "key-desk")
    upstream.script = refusal
    assert SPENT not in heard(gateway, "chat", "key-desk")


@pytest.mark.parametrize("keys", ["marked", "the only one", "none"])
def test_10_49_who_owns_an_account_hears_of_its_limits(stage: Stage, keys: str) -> None:
    desk = {"name": "desk", "key": "key-desk"}
    marked = [{"name": "laptop", "key": "key-laptop"}, {**desk, "sees_quotas": True}]
    configured = {"marked": marked, "the only one": [desk], "none": []}[keys]
    upstream = stage.upstream(counted)
    gateway = stage.gateway(account("solo", upstream), keys=configured)
    for way in ("websocket", "events"):
        said = heard(gateway, way, "key-desk")
        assert "codex.rate_limits" in said
        assert '"theirs"' not in said
    assert "x-ratelimit-remaining-tokens" in heard(gateway, "object", "key-desk")
    if keys == "marked":
        assert SPENT not in heard(gateway, "events", "key-laptop")
