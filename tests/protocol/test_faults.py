"""Whose fault it is (design law 13), in step with what moves a turn (refusals.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.error_classification import (
    ABOUT_THE_REQUEST,
    Fault,
    FaultKind,
    attribute,
    is_clients_fault,
    may_move,
)
from gateway.protocol.error_parsing import from_event, from_failed_response, from_http
from gateway.protocol.errors import ApiError
from gateway.protocol.rate_limits import FURTHEST_SECONDS

NOW = 1_795_000_000.0

REQUEST = FaultKind.REQUEST
EXHAUSTED = FaultKind.EXHAUSTED
RATE_LIMITED = FaultKind.RATE_LIMITED
MODEL_REFUSED = FaultKind.MODEL_REFUSED
UNCLEAR = FaultKind.UNCLEAR
UNAUTHORIZED = FaultKind.UNAUTHORIZED
SERVICE = FaultKind.SERVICE
PROXY = FaultKind.PROXY


def refusal(
    status: int,
    code: str | None = None,
    message: str = "No.",
    type: str = "invalid_request_error",
    param: str | None = None,
) -> ApiError:
    return ApiError(status, type, message, code, param)


def read(data: dict[str, Any]) -> Fault:
    error = from_event(json.dumps(data).encode())
    assert error is not None, f"{data} tells of an error"
    return attribute(error, NOW)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refusal(400), REQUEST),
        (refusal(405), REQUEST),
        (refusal(409), REQUEST),
        (refusal(413), REQUEST),
        (refusal(422), REQUEST),
        (refusal(425), REQUEST),
        *(
            (refusal(status, code), REQUEST)
            for status in (400, 500)
            for code in sorted(ABOUT_THE_REQUEST)
        ),
        (refusal(400, "invalid_encrypted_content"), REQUEST),
        (refusal(400, None, "No tool call found for function call output", param="input"), REQUEST),
        (refusal(404, None, "Item with id 'rs_1' not found."), REQUEST),
        (refusal(404, "previous_response_not_found"), REQUEST),
        (refusal(404, None, "Previous response resp_1 not found"), REQUEST),
        (refusal(400, "unsupported_parameter", "not supported with this model"), REQUEST),
        (refusal(400, None, "This model's parameter x is not supported"), REQUEST),
        (refusal(429, "rate_limit_exceeded", "Request too large for gpt-6: Limit 9"), REQUEST),
        (refusal(402), EXHAUSTED),
        (refusal(429, "insufficient_quota"), EXHAUSTED),
        (refusal(403, "insufficient_quota"), EXHAUSTED),
        (refusal(429, None, type="insufficient_quota"), EXHAUSTED),
        (refusal(429, None, type="usage_limit_reached"), EXHAUSTED),
        (refusal(429, "usage_limit_reached"), EXHAUSTED),
        (refusal(429, None, type="usage_not_included"), EXHAUSTED),
        (refusal(429, "credit_balance_exhausted"), EXHAUSTED),
        (refusal(500, "organization_spend_limit_exceeded"), EXHAUSTED),
        (refusal(429, "project_spend_limit_exceeded"), EXHAUSTED),
        (refusal(429), RATE_LIMITED),
        (refusal(429, "rate_limit_exceeded"), RATE_LIMITED),
        (refusal(401), UNAUTHORIZED),
        (refusal(401, "invalid_api_key"), UNAUTHORIZED),
        (refusal(400, "invalid_api_key"), UNAUTHORIZED),
        (refusal(403, "account_deactivated"), UNAUTHORIZED),
        (refusal(403, None, type="authentication_error"), UNAUTHORIZED),
        (refusal(502, "upstream_unauthorized"), UNAUTHORIZED),
        (refusal(403), UNCLEAR),
        (refusal(404), UNCLEAR),
        (refusal(404, "model_not_found"), MODEL_REFUSED),
        (refusal(400, "model_not_found"), MODEL_REFUSED),
        (refusal(400, None, "The requested model 'gpt-9' does not exist."), MODEL_REFUSED),
        (
            refusal(400, None, "The 'gpt-9' model is not supported when using Codex with …"),
            MODEL_REFUSED,
        ),
        (refusal(404, "DeploymentNotFound"), MODEL_REFUSED),
        (refusal(404, None, "No.", param="model"), MODEL_REFUSED),
        (refusal(404, None, "Vector store with id 'vs_1' not found."), REQUEST),
        (refusal(403, None, "You do not have access to this file"), REQUEST),
        (refusal(502, None, "Your input exceeds the context window of this model."), REQUEST),
        (refusal(500, None, "No.", param="tools[0]"), REQUEST),
        (from_http(403, {}, b"<html>"), SERVICE),
        (from_http(404, {}, b"404 page not found"), SERVICE),
        (from_http(400, {}, b'{"error":"Our servers are currently overloaded."}'), SERVICE),
        (from_http(400, {}, b'{"error":{"code":"rate_limit_exceeded"}}'), RATE_LIMITED),
        (from_http(400, {}, b'{"error":"Your credit balance is too low."}'), EXHAUSTED),
        (from_http(502, {}, b'{"error":{"code":400,"message":"No."}}'), REQUEST),
        (refusal(431), SERVICE),
        (refusal(408), SERVICE),
        (refusal(500), SERVICE),
        (refusal(501), SERVICE),
        (refusal(503), SERVICE),
        (refusal(529), SERVICE),
        (refusal(503, "server_is_overloaded"), SERVICE),
        (refusal(429, "slow_down"), SERVICE),
        (ApiError.bad_gateway("The upstream refused the connection."), SERVICE),
        (ApiError.bad_gateway("Too late.", "upstream_timeout"), SERVICE),
        (ApiError.bad_gateway("The proxy is down.", "egress_proxy_error"), PROXY),
    ],
    ids=str,
)
def test_faults_are_attributed(error: ApiError, kind: FaultKind) -> None:
    assert attribute(error, NOW).kind is kind


def test_a_usage_limit_event_of_chatgpt_is_the_accounts_until_its_reset() -> None:
    event = {
        "type": "error",
        "status_code": 429,
        "error": {
            "type": "usage_limit_reached",
            "message": "The usage limit has been reached",
            "plan_type": "plus",
            "resets_at": NOW + 7200,
            "resets_in_seconds": 7200,
        },
        "headers": {
            "X-Codex-Active-Limit": "premium",
            "X-Codex-Primary-Used-Percent": "100",
            "X-Codex-Primary-Reset-At": f"{NOW + 7300:.0f}",
        },
    }
    why = "429 usage_limit_reached: The usage limit has been reached"
    assert read(event) == Fault(EXHAUSTED, why, NOW + 7200)
    del event["error"]["resets_at"], event["error"]["resets_in_seconds"]  # type: ignore[attr-defined]
    assert read(event).retry_at == NOW + 7300, "the headers tell it, too"
    event["headers"]["X-Codex-Active-Limit"] = "codex_bengalfox"  # type: ignore[index]
    assert read(event).kind is RATE_LIMITED, "that is a single model's limit"


def test_hints_are_found_on_every_path() -> None:
    body = b'{"error":{"code":"rate_limit_exceeded","message":"Slow down."}}'
    assert attribute(from_http(429, {"retry-after": "7"}, body), NOW).retry_at == NOW + 7
    spent = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    assert attribute(from_http(429, spent, body), NOW).retry_at == NOW + 360

    error: dict[str, Any] = {"code": "rate_limit_exceeded", "message": "Try again in 1.5s."}
    assert attribute(from_failed_response(error), NOW).retry_at == NOW + 1.5
    assert read({"type": "error", **error}).retry_at == NOW + 1.5, "the flat form of SSE"
    assert (
        read({"type": "error", "error": error, "headers": {"Retry-After": 3}}).retry_at == NOW + 3
    )
    error["headers"] = {"Retry-After-Ms": ["2500"]}
    assert attribute(from_failed_response(error), NOW).retry_at == NOW + 2.5
    assert read({"type": "error", "error": error}).retry_at == NOW + 2.5
    error["metadata"] = {"headers": {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "9"}}
    del error["headers"]
    assert read({"type": "error", "error": error}).retry_at == NOW + 9


def test_flat_events_may_carry_the_reset() -> None:
    event = {"type": "error", "code": "usage_limit_reached", "resets_in_seconds": 60}
    assert read(event) == Fault(
        EXHAUSTED,
        "429 usage_limit_reached: The upstream answered with the status 429 and no message.",
        NOW + 60,
    )


def test_a_server_error_is_not_dated_by_the_accounts_quota() -> None:
    spent = {"x-codex-primary-used-percent": "100", "x-codex-primary-reset-after-seconds": "9000"}
    assert attribute(from_http(500, spent, b""), NOW) == Fault(
        SERVICE, "500 server_error: The upstream answered with the status 500 and no message."
    )
    assert attribute(from_http(503, {**spent, "retry-after": "2"}, b""), NOW).retry_at == NOW + 2


@pytest.mark.parametrize("status", [400, 401])
def test_what_names_no_time_has_none(status: int) -> None:
    assert attribute(from_http(status, {"retry-after": "7"}, b""), NOW).retry_at is None


def test_the_reason_is_one_short_line() -> None:
    why = attribute(refusal(500, None, "a\n\tb" * 500), NOW).why
    assert why.startswith("500 invalid_request_error: a ba b")
    assert len(why) <= 200
    assert "\n" not in why


STATUSES = st.integers(400, 599)
CODES = st.sampled_from(
    [
        None,
        *sorted(ABOUT_THE_REQUEST),
        "insufficient_quota",
        "usage_limit_reached",
        "invalid_api_key",
        "model_not_found",
        "server_is_overloaded",
        "slow_down",
        "previous_response_not_found",
        "rate_limit_exceeded",
    ]
)
TYPES = st.sampled_from(["server_error", "usage_limit_reached", "authentication_error"])
MESSAGES = st.sampled_from(["No.", "Item with id 'x'", "The model 'x' does not exist", "Later."])


@given(STATUSES, CODES, TYPES, MESSAGES | st.text())
def test_what_rests_an_account_moves_the_turn(
    status: int, code: str | None, type: str, message: str
) -> None:
    error = refusal(status, code, message, type)
    fault = attribute(error, NOW)
    if fault.kind is not REQUEST:
        assert may_move(error), f"an account rests because of {error}, so others may serve"
    if is_clients_fault(error):
        assert fault.kind is REQUEST, f"nobody rests because of {error}"
    assert fault.retry_at is None or NOW <= fault.retry_at <= NOW + FURTHEST_SECONDS


@pytest.mark.parametrize(
    ("models", "kind"),
    [
        ((), MODEL_REFUSED),
        (("o9",), MODEL_REFUSED),
        (("big", "azure/o9"), MODEL_REFUSED),
        (("gpt-6",), REQUEST),
    ],
)
def test_another_model_than_the_turns_own_tells_nothing_of_that(
    models: tuple[str, ...], kind: FaultKind
) -> None:
    error = refusal(404, "model_not_found", "The model `o9` does not exist.")
    assert attribute(error, NOW, None, models).kind is kind
