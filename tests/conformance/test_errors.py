"""Errors: protocol.md §5, §10.52-65; a pool that is used up (§10.63) also in test_services.py."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.conformance.helpers import failing, refusing, solo
from tests.support.checks import (
    assert_error,
    assert_failed,
    assert_failed_or_502,
    assert_one_terminal,
    completed,
    output_text,
    types,
)
from tests.support.events import (
    Json,
    call_output,
    error_body,
    response_object,
    user,
)
from tests.support.gateway import account
from tests.support.strict import Mode
from tests.support.upstream import Exchange
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.conformance


HTTP_ERRORS: list[Any] = [
    (400, error_body("invalid_prompt", "bad prompt", param="input"), 400),
    (400, {"error": {"message": "coded", "type": "x", "code": 17, "param": None}}, 400),
    (400, {"error": {"message": "bare"}}, 400),
    (400, {"error": "a string"}, 400),
    (400, {"detail": "Unsupported parameter: temperature"}, 400),
    (400, {"status": "400", "status_code": 400, "error": {"message": "m", "type": "t"}}, 400),
    (400, {"message": "flat"}, 400),
    (400, b"", 400),
    (400, b"<html>Bad Request</html>", 400),
    (400, b"\xff\xfe{", 400),
    (404, error_body("model_not_found", "no such model"), 404),
    (413, b"too large", 413),
    (422, {"error": {"message": "unprocessable", "type": "invalid_request_error"}}, 422),
]


@pytest.mark.parametrize(("status", "body", "expected"), HTTP_ERRORS, ids=lambda v: str(v)[:40])
def test_10_52_to_55_request_errors_have_the_one_shape(
    stage: Stage, status: int, body: Any, expected: int
) -> None:
    client = solo(stage, refusing(status, body))
    events = client.turn()
    assert types(events) == ["error"]
    error = assert_error(events[0], expected)
    inner = body.get("error") if isinstance(body, dict) else None
    if isinstance(inner, dict):
        assert error["message"] == inner["message"], "what the upstream said reaches the client"
        if isinstance(inner.get("code"), str):
            assert error["code"] == inner["code"]
    elif isinstance(body, dict):
        said = next(v for v in (body.get("detail"), inner, body.get("message")) if v)
        assert said in error["message"]
    client.assert_silent(0.2)
    client.send("{")
    assert_error(client.event(), 400)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("rate_limit_exceeded", (429,)),
        ("server_error", (500, 502)),
        ("context_length_exceeded", (400,)),
        ("invalid_prompt", (400,)),
        (None, (400, 500, 502)),
        (17, (400, 500, 502)),
    ],
)
def test_10_56_flat_sse_error_becomes_nested_with_status(
    stage: Stage, code: Any, status: tuple[int, ...]
) -> None:
    flat = {"type": "error", "sequence_number": 0, "code": code, "message": "flat", "param": None}

    def script(exchange: Exchange) -> None:
        exchange.sse(flat)
        exchange.end()

    client = solo(stage, script)
    events = client.turn()
    assert_one_terminal(events)
    error = assert_error(events[-1], status)
    assert error["message"] == "flat"
    if isinstance(code, str):
        assert error["code"] == code
    client.assert_silent(0.2)


def test_10_56_flat_error_after_output(rig: Rig) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        flat = {"type": "error", "sequence_number": 5, "code": "server_error", "message": "boom"}
        exchange.sse(*events[:5], flat)
        exchange.end()

    rig.upstream.queue(script)
    client = rig.connect()
    events = client.turn()
    assert_one_terminal(events)
    assert_failed(events[-1])
    assert len(rig.upstream.requests) == 1
    client.assert_silent(0.2)


def failed_event(response_id: str, code: str, message: str = "failed") -> Json:
    error = {"code": code, "message": message}
    response = response_object(response_id, status="failed", error=error)
    return {"type": "response.failed", "sequence_number": 9, "response": response}


@pytest.mark.parametrize("output", [False, True], ids=["before output", "after output"])
@pytest.mark.parametrize("then", ["failed", "end"])
def test_10_57_empty_error_is_swallowed_when_a_failure_follows(
    stage: Stage, output: bool, then: str
) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[: 5 if output else 2], {"type": "error", "error": {}})
        if then == "failed":
            assert exchange.request.response_id is not None
            exchange.sse(failed_event(exchange.request.response_id, "context_length_exceeded"))
        exchange.end()

    client = solo(stage, script)
    events = client.turn()
    assert_one_terminal(events)
    if then == "failed":
        assert_failed(events[-1], "context_length_exceeded")
    elif output:
        assert_failed(events[-1])
    else:
        assert_failed_or_502(events)
    client.assert_silent(0.2)


def test_10_58_unknown_id_is_refused_and_the_socket_stays(any_rig: Rig) -> None:
    client = any_rig.connect()
    for store in (False, True):
        events = client.turn(previous_response_id="resp_unknown", store=store)
        assert types(events) == ["error"]
        error = events[0]
        assert_error(error, 400, "previous_response_not_found", "previous_response_id")
        assert error["error"]["type"] == "invalid_request_error"
    completed(client.turn(input="fresh"))


def test_10_58_a_closed_socket_takes_its_store_false_ids_along(any_rig: Rig) -> None:
    first = any_rig.connect()
    parent = completed(first.turn(store=False))["id"]
    first.close()
    events = any_rig.connect().turn(previous_response_id=parent, store=False)
    assert_error(events[-1], 400, "previous_response_not_found", "previous_response_id")


def test_stored_ids_are_usable_on_another_socket(any_rig: Rig) -> None:
    parent = completed(any_rig.connect().turn(input=[user("a")], store=True))
    events = any_rig.connect().turn(
        input=[user("b")], previous_response_id=parent["id"], store=True
    )
    completed(events)
    request = any_rig.upstream.requests[1]
    if request.previous_response_id is None:
        assert request.input == [user("a"), *parent["output"], user("b")]
    else:
        assert (request.previous_response_id, request.input) == (parent["id"], [user("b")])


ORPHAN = "No tool call found for function call output with call_id call_nobody"


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
def test_10_59_failed_continuation_evicts_its_parent(stage: Stage, mode: Mode) -> None:
    strict = stage.strict("s", mode)
    client = stage.serve(strict).connect()
    parent = completed(client.turn(input=[user("hello")], store=False))["id"]
    orphan = [call_output("call_nobody")]
    events = client.turn(input=orphan, previous_response_id=parent, store=False)
    assert types(events) == ["error"]
    assert_error(events[0], 400, None)
    assert events[0]["error"]["message"].startswith(ORPHAN)
    events = client.turn(input=[user("again")], previous_response_id=parent, store=False)
    assert_error(events[-1], 400, "previous_response_not_found", "previous_response_id")
    completed(client.turn(input=[user("fresh")], store=False))


def test_10_59_a_lenient_gateway_evicts_nothing(stage: Stage) -> None:
    strict = stage.strict("s")
    gateway = stage.gateway(account("a", strict.server), session={"eviction": "lenient"})
    client = gateway.connect()
    parent = completed(client.turn(input=[user("recall a")], store=False))["id"]
    events = client.turn(
        input=[call_output("call_nobody")], previous_response_id=parent, store=False
    )
    assert_error(events[0], 400, None)
    events = client.turn(input=[user("recall b")], previous_response_id=parent, store=False)
    assert output_text(events) == "recall a | recall b"


def test_10_59_a_fork_that_fails_on_another_lane_keeps_the_parent(stage: Stage) -> None:
    strict = stage.strict("s")
    client = stage.serve(strict).connect()
    parent = completed(client.turn(input=[user("recall a")], store=False))["id"]
    orphan = [call_output("call_nobody")]
    events = client.turn(stream_id="b", input=orphan, previous_response_id=parent, store=False)
    assert_error(events[-1], 400)
    events = client.turn(input=[user("recall b")], previous_response_id=parent, store=False)
    assert output_text(events) == "recall a | recall b"


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("trouble", ["restart", "switch", "cut connections"])
def test_10_60_lost_upstream_state_is_never_shown(stage: Stage, store: bool, trouble: str) -> None:
    first, second = stage.strict("a"), stage.strict("b")
    gateway = stage.serve(first, second)
    client = gateway.connect()
    parent = completed(client.turn(input=[user("recall a")], store=store))["id"]
    home = first if first.requests else second
    if trouble == "restart":
        home.forget()
    elif trouble == "cut connections":
        home.server.drop_connections()
    else:
        home.before_answer = failing(503, error_body(None, "down"))
    events = client.turn(input=[user("recall b")], previous_response_id=parent, store=store)
    assert output_text(events) == "recall a | recall b"
    assert "error" not in types(events)


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("accounts", [1, 2])
def test_10_61_orphan_output_is_400(stage: Stage, mode: Mode, accounts: int) -> None:
    stricts = [stage.strict(name, mode) for name in "ab"[:accounts]]
    client = stage.serve(*stricts).connect()
    events = client.turn(input=[user("x"), call_output("call_nobody")], store=False)
    assert types(events) == ["error"]
    assert assert_error(events[0], 400)["message"].startswith(ORPHAN)
    sent = sum(len(strict.requests) for strict in stricts)
    assert sent <= 1, "a fault of the client is not tried on one account after the other"


ACCOUNT_FAULTS: list[Any] = [
    pytest.param(429, error_body("rate_limit_exceeded", "slow", kind="requests"), id="429"),
    pytest.param(429, error_body(None, "limit", kind="usage_limit_reached"), id="usage limit"),
    pytest.param(429, error_body("insufficient_quota", "quota"), id="quota"),
    pytest.param(401, error_body("invalid_api_key", "bad key"), id="401"),
    pytest.param(403, {"detail": "forbidden"}, id="403"),
    pytest.param(500, b"oops", id="500"),
    pytest.param(502, b"<html>", id="502"),
    pytest.param(503, error_body("server_is_overloaded", "full"), id="503"),
]


@pytest.mark.parametrize(("status", "body"), ACCOUNT_FAULTS)
def test_10_62_faults_of_one_account_are_served_by_another(
    stage: Stage, status: int, body: Any
) -> None:
    bad, good = stage.upstream(refusing(status, body)), stage.upstream()
    gateway = stage.serve(bad, good)
    for _ in range(3):
        events = gateway.connect().turn()
        assert output_text(events) == "hello"
        assert types(events).count("response.created") == 1
    assert len(bad.requests) >= 1, "new conversations rotate, so the bad account was tried"
    assert len(good.requests) == 3


@pytest.mark.parametrize("code", ["rate_limit_exceeded", "server_error", "server_is_overloaded"])
@pytest.mark.parametrize("form", ["flat", "failed"])
def test_10_62_refusal_right_after_created_moves_unseen(stage: Stage, code: str, form: str) -> None:
    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:2])
        if form == "flat":
            exchange.sse({"type": "error", "code": code, "message": "no", "param": None})
        else:
            exchange.sse(failed_event(events[0]["response"]["id"], code))
        exchange.end()

    bad, good = stage.upstream(script), stage.upstream()
    gateway = stage.serve(bad, good)
    for _ in range(2):
        events = gateway.connect().turn()
        final = completed(events)
        assert types(events).count("response.created") == 1
        ids = {event["response"]["id"] for event in events if "response" in event}
        assert ids == {final["id"]}, "the abandoned response is not seen"
    assert len(bad.requests) >= 1


def test_created_is_held_back_until_the_first_output(stage: Stage) -> None:
    release = threading.Event()

    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:2])
        exchange.hold(release)
        exchange.sse(*events[2:])
        exchange.end()

    upstream = stage.upstream(script)
    patient = stage.gateway(account("solo", upstream), session={"hold_seconds": 10}).connect()
    patient.create()
    patient.assert_silent(1.0)
    release.set()
    completed(patient.until_terminal())
    release.clear()
    hasty = stage.gateway(account("solo", upstream), session={"hold_seconds": 0.3}).connect()
    hasty.create()
    assert hasty.event(5)["type"] == "response.created", "shown after hold_seconds"
    assert hasty.event(5)["type"] == "response.in_progress"
    release.set()
    assert types(completed_events(hasty)).count("response.created") == 0


def completed_events(client: WsClient) -> list[Json]:
    events = client.until_terminal()
    completed(events)
    return events


LIMITS: list[Any] = [
    pytest.param(
        {"type": "usage_limit_reached", "message": "limit", "plan_type": "plus", "resets_at": 99},
        id="usage_limit_reached",
    ),
    pytest.param(
        {"type": "insufficient_quota", "code": "insufficient_quota", "message": "q", "param": None},
        id="insufficient_quota",
    ),
]


@pytest.mark.parametrize("error", LIMITS)
def test_10_63_exhausted_quota_of_the_only_account_is_429(stage: Stage, error: Json) -> None:
    client = solo(stage, refusing(429, {"error": error}))
    event = client.turn()[-1]
    seen = assert_error(event, 429)
    for name, value in error.items():
        assert seen[name] == value, f"clients read {name} of a usage limit"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_10_64_upstream_failures_are_retryable(stage: Stage, status: int) -> None:
    client = solo(stage, refusing(status, b"<html>bad gateway</html>"))
    events = client.turn()
    assert_one_terminal(events)
    if events[-1]["type"] == "error":
        error = assert_error(events[-1], (500, 502, 503, 504))
        assert error["code"] not in ("server_is_overloaded", "slow_down")
    else:
        assert_failed(events[-1])


def test_10_64_overload_does_not_stop_the_client(stage: Stage) -> None:
    client = solo(stage, refusing(503, error_body("server_is_overloaded", "full")))
    event = client.turn()[-1]
    if event["type"] == "error":
        assert assert_error(event, (502, 503))["code"] != "server_is_overloaded"
    else:
        assert_failed(event)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_of_the_last_account_do_not_blame_the_client(
    stage: Stage, status: int
) -> None:
    message = "Incorrect API key provided: upstream-secret-solo"
    client = solo(stage, refusing(status, error_body("invalid_api_key", message)))
    event = client.turn()[-1]
    error = assert_error(event, 502)
    assert error["code"] != "invalid_api_key"
    assert "upstream-secret" not in json.dumps(event)


@pytest.mark.parametrize("header", [{"Retry-After": "7"}, {"retry-after-ms": "7000"}])
def test_10_65_retry_after_is_in_the_headers_of_a_429(stage: Stage, header: Json) -> None:
    body = error_body("rate_limit_exceeded", "slow down")
    event = solo(stage, refusing(429, body, header)).turn()[-1]
    assert_error(event, 429, "rate_limit_exceeded")
    headers = {name.lower(): str(value) for name, value in event["headers"].items()}
    if "retry-after-ms" in header:
        assert headers.get("retry-after-ms") == "7000" or headers.get("retry-after") == "7"
    else:
        assert headers["retry-after"] == "7"
