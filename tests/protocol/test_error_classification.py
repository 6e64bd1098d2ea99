"""What a refusal means for the turn: replay, move, tell the client (§5.2, §5.3, §8.1)."""

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
    code_of_failure,
    for_the_client,
    is_about_the_request,
    is_clients_fault,
    may_move,
    misses_calls,
    most_hopeful,
    refuses_continuation,
    refuses_encrypted_content,
    refuses_model,
)
from gateway.protocol.error_parsing import from_event, from_failed_response, from_http
from gateway.protocol.errors import NOT_THE_API, ApiError
from gateway.protocol.rate_limits import FURTHEST_SECONDS


def refusal(
    status: int, code: str | None = None, message: str = "No.", param: str | None = None
) -> ApiError:
    return ApiError(status, "invalid_request_error", message, code, param)


@pytest.mark.parametrize(
    "error",
    [
        ApiError.previous_response_not_found("resp_1"),
        refusal(404),
        refusal(501),
        refusal(400, "unsupported_parameter", "No.", "previous_response_id"),
        refusal(400, None, "Unsupported parameter: previous_response_id"),
        refusal(422, None, "Extra inputs are not permitted: previous_response_id"),
        refusal(400, None, "Previous response was deleted."),
        refusal(500, "previous_response_not_found"),
        refusal(500, None, "Response with id=resp_1 not found"),
        refusal(500, None, "Previous response with the id 'resp_1' could not be found."),
    ],
    ids=str,
)
def test_a_refused_continuation_is_recognised(error: ApiError) -> None:
    assert refuses_continuation(error)


@pytest.mark.parametrize(
    "error",
    [
        refusal(400, "context_length_exceeded", "Too long."),
        refusal(429, None, "previous_response_id has nothing to do with it"),
        refusal(500, None, "previous_response_id crashed"),
        refusal(500, None, "Response with identical text not found in cache"),
        refusal(401),
        refusal(400, "unsupported_parameter", "No.", "temperature"),
    ],
    ids=str,
)
def test_other_refusals_say_nothing_of_the_continuation(error: ApiError) -> None:
    assert not refuses_continuation(error)


def test_an_orphan_tool_output_is_recognised() -> None:
    orphan = "No tool call found for function call output with call_id call_1."
    assert misses_calls(refusal(400, None, orphan, "input"))
    assert misses_calls(refusal(400, None, "No tool output found for function call call_1."))
    assert not misses_calls(refusal(500, None, orphan))
    assert not misses_calls(refusal(400, None, "The tool found no call."))


def test_refused_seals_are_recognised() -> None:
    assert refuses_encrypted_content(refusal(400, "invalid_encrypted_content"))
    assert refuses_encrypted_content(
        refusal(400, None, "The encrypted content gAAA could not be verified.")
    )
    assert not refuses_encrypted_content(refusal(503, None, "The encrypted content store is down."))


@pytest.mark.parametrize("status", [401, 402, 403, 404, 408, 409, 425, 429, 500, 502, 503, 504])
def test_another_account_may_answer_what_is_this_accounts_trouble(status: int) -> None:
    assert may_move(refusal(status))
    assert not is_clients_fault(refusal(status))


@pytest.mark.parametrize("status", [400, 405, 411, 413, 422])
def test_a_wrong_request_is_wrong_everywhere(status: int) -> None:
    assert not may_move(refusal(status))
    assert is_clients_fault(refusal(status))


@pytest.mark.parametrize(
    "code",
    [
        "bio_policy",
        "content_filter",
        "context_length_exceeded",
        "cyber_policy",
        "invalid_prompt",
        "misalignment_policy_violation",
    ],
)
@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_what_speaks_of_the_request_stays_whatever_its_status(status: int, code: str) -> None:
    assert not may_move(refusal(status, code))


@pytest.mark.parametrize(
    "error",
    [
        refusal(400, "model_not_found"),
        refusal(400, None, "The requested model 'gpt-9' does not exist."),
        refusal(400, None, "The 'gpt-9' model is not supported when using Codex with …"),
        refusal(400, "insufficient_quota"),
        refusal(400, "invalid_api_key"),
        refusal(400, "slow_down"),
    ],
    ids=str,
)
def test_what_speaks_of_the_account_moves_whatever_its_status(error: ApiError) -> None:
    assert may_move(error)
    assert not is_clients_fault(error)


@pytest.mark.parametrize(
    "message",
    [
        "Unsupported parameter: 'temperature' is not supported with this model.",
        "Write about: The model 'x' does not exist",
        "The model's context is too small",
    ],
)
def test_other_words_of_models_are_about_the_request(message: str) -> None:
    assert not may_move(refusal(400, None, message))


def test_a_lost_item_is_not_found_by_moving() -> None:
    assert not may_move(refusal(404, None, "Item with id 'rs_1' not found."))


def test_clients_hear_the_refusal_they_can_do_most_with() -> None:
    unauthorized, limited, broken = refusal(401), refusal(429), refusal(502)
    assert most_hopeful([unauthorized, broken, limited]) is broken
    assert most_hopeful([limited, unauthorized]) is limited
    assert most_hopeful([unauthorized]) is unauthorized


def test_of_equal_refusals_the_last_is_told() -> None:
    first, second = refusal(429, "a"), refusal(429, "b")
    assert most_hopeful([first, second]) is second


@pytest.mark.parametrize(("status", "code"), [(401, None), (403, None), (400, "invalid_api_key")])
def test_an_accounts_credentials_are_not_the_clients_business(
    status: int, code: str | None
) -> None:
    told = for_the_client(ApiError(status, "x", "Incorrect API key sk-1234.", code))
    assert (told.status, told.code) == (502, "upstream_unauthorized")
    assert "sk-1234" not in told.message


@pytest.mark.parametrize("code", ["server_is_overloaded", "slow_down"])
def test_overload_is_told_so_that_clients_try_again(code: str) -> None:
    told = for_the_client(ApiError(503, "x", "Busy.", code, None, {"retry-after": "2"}))
    assert (told.status, told.code, told.type) == (503, "upstream_overloaded", "server_error")
    assert (told.message, told.headers) == ("Busy.", {"retry-after": "2"})


@pytest.mark.parametrize("status", [400, 404, 429, 500, 502])
def test_other_refusals_are_told_as_they_are(status: int) -> None:
    error = refusal(status)
    assert for_the_client(error) is error


NAMED = [
    refusal(404, None, "Vector store with id 'vs_1' not found."),
    refusal(403, None, "Project `p` does not have access to file file-1"),
    refusal(404, None, "No.", "tools[0].vector_store_ids[0]"),
    refusal(409, "conversation_locked", "Another process is using this conversation."),
    refusal(409, None, "The conversation is locked."),
    refusal(404, "container_expired"),
    refusal(500, "invalid_image_url"),
    refusal(500, "image_parse_error"),
    refusal(502, None, "Your input exceeds the context window of this model."),
    refusal(500, None, "Invalid schema for function 'look_up'."),
    refusal(404, "model_not_found", "The model 'x' does not exist", "tools[0].model"),
]


@pytest.mark.parametrize("error", NAMED, ids=str)
def test_what_the_request_names_is_its_own_affair_whatever_the_status(error: ApiError) -> None:
    assert is_about_the_request(error)
    assert not may_move(error)
    assert not refuses_continuation(error), "sent again it would be refused again"
    told = for_the_client(error)
    assert told.status == (error.status if error.status < 500 else 400)
    assert told.message == error.message


@pytest.mark.parametrize(
    "error",
    [
        refusal(404, None, "Not Found"),
        refusal(404, None, "Invalid URL (POST /v1/responses)"),
        refusal(403, None, "forbidden"),
        refusal(401, None, "Invalid value: 'x'"),
        refusal(429, None, "File not found", "input"),
        refusal(503, NOT_THE_API, "File not found"),
        refusal(404, None, "Response with id 'resp_1' not found."),
        refusal(404, "model_not_found", "The model 'x' does not exist", "model"),
    ],
    ids=str,
)
def test_other_refusals_are_not_about_the_request(error: ApiError) -> None:
    assert not is_about_the_request(error)


@pytest.mark.parametrize(
    "error",
    [
        refusal(404, "DeploymentNotFound"),
        refusal(404, None, "No.", "model"),
        refusal(400, None, "Invalid model name passed in model=x. Call `/v1/models`."),
        refusal(404, None, 'model "x" not found, try pulling it first'),
        refusal(403, None, "Project `p` does not have access to model `x`"),
    ],
    ids=str,
)
def test_a_model_that_is_refused_is_looked_for_elsewhere(error: ApiError) -> None:
    assert refuses_model(error)
    assert may_move(error)
    assert not refuses_continuation(error)


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_page_does_not_refuse_a_continuation(status: int) -> None:
    error = from_http(status, {}, b"<html>")
    assert not refuses_continuation(error)
    assert may_move(error)
    assert for_the_client(error) is error


def test_headers_that_are_too_large_may_be_small_enough_elsewhere() -> None:
    assert may_move(refusal(431))
    assert for_the_client(refusal(431)).status == 502


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (refusal(500), "server_error"),
        (refusal(429, "rate_limit_exceeded"), "server_error"),
        (refusal(400, "content_filter"), "content_filter"),
        (refusal(400, "server_error", "The prompt is too long"), "context_length_exceeded"),
        (refusal(400, None, "Invalid value: 'x'"), "invalid_prompt"),
    ],
    ids=str,
)
def test_a_failure_that_is_the_requests_is_not_tried_again(error: ApiError, code: str) -> None:
    assert code_of_failure(error) == code


# --- faults ---------------------------------------------------------------------------


NOW = 1_795_000_000.0

REQUEST = FaultKind.REQUEST
EXHAUSTED = FaultKind.EXHAUSTED
RATE_LIMITED = FaultKind.RATE_LIMITED
MODEL_REFUSED = FaultKind.MODEL_REFUSED
UNCLEAR = FaultKind.UNCLEAR
UNAUTHORIZED = FaultKind.UNAUTHORIZED
SERVICE = FaultKind.SERVICE
PROXY = FaultKind.PROXY


def failed(
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
        (failed(400), REQUEST),
        (failed(405), REQUEST),
        (failed(409), REQUEST),
        (failed(413), REQUEST),
        (failed(422), REQUEST),
        (failed(425), REQUEST),
        *(
            (failed(status, code), REQUEST)
            for status in (400, 500)
            for code in sorted(ABOUT_THE_REQUEST)
        ),
        (failed(400, "invalid_encrypted_content"), REQUEST),
        (
            failed(400, None, "No tool call found for function call output", param="input"),
            REQUEST,
        ),
        (failed(404, None, "Item with id 'rs_1' not found."), REQUEST),
        (failed(404, "previous_response_not_found"), REQUEST),
        (failed(404, None, "Previous response resp_1 not found"), REQUEST),
        (failed(400, "unsupported_parameter", "not supported with this model"), REQUEST),
        (failed(400, None, "This model's parameter x is not supported"), REQUEST),
        (
            failed(429, "rate_limit_exceeded", "Request too large for gpt-6: Limit 9"),
            REQUEST,
        ),
        (failed(402), EXHAUSTED),
        (failed(429, "insufficient_quota"), EXHAUSTED),
        (failed(403, "insufficient_quota"), EXHAUSTED),
        (failed(429, None, type="insufficient_quota"), EXHAUSTED),
        (failed(429, None, type="usage_limit_reached"), EXHAUSTED),
        (failed(429, "usage_limit_reached"), EXHAUSTED),
        (failed(429, None, type="usage_not_included"), EXHAUSTED),
        (failed(429, "credit_balance_exhausted"), EXHAUSTED),
        (failed(500, "organization_spend_limit_exceeded"), EXHAUSTED),
        (failed(429, "project_spend_limit_exceeded"), EXHAUSTED),
        (failed(429), RATE_LIMITED),
        (failed(429, "rate_limit_exceeded"), RATE_LIMITED),
        (failed(401), UNAUTHORIZED),
        (failed(401, "invalid_api_key"), UNAUTHORIZED),
        (failed(400, "invalid_api_key"), UNAUTHORIZED),
        (failed(403, "account_deactivated"), UNAUTHORIZED),
        (failed(403, None, type="authentication_error"), UNAUTHORIZED),
        (failed(502, "upstream_unauthorized"), UNAUTHORIZED),
        (failed(403), UNCLEAR),
        (failed(404), UNCLEAR),
        (failed(404, "model_not_found"), MODEL_REFUSED),
        (failed(400, "model_not_found"), MODEL_REFUSED),
        (failed(400, None, "The requested model 'gpt-9' does not exist."), MODEL_REFUSED),
        (
            failed(400, None, "The 'gpt-9' model is not supported when using Codex with …"),
            MODEL_REFUSED,
        ),
        (failed(404, "DeploymentNotFound"), MODEL_REFUSED),
        (failed(404, None, "No.", param="model"), MODEL_REFUSED),
        (failed(404, None, "Vector store with id 'vs_1' not found."), REQUEST),
        (failed(403, None, "You do not have access to this file"), REQUEST),
        (
            failed(502, None, "Your input exceeds the context window of this model."),
            REQUEST,
        ),
        (failed(500, None, "No.", param="tools[0]"), REQUEST),
        (from_http(403, {}, b"<html>"), SERVICE),
        (from_http(404, {}, b"404 page not found"), SERVICE),
        (from_http(400, {}, b'{"error":"Our servers are currently overloaded."}'), SERVICE),
        (from_http(400, {}, b'{"error":{"code":"rate_limit_exceeded"}}'), RATE_LIMITED),
        (from_http(400, {}, b'{"error":"Your credit balance is too low."}'), EXHAUSTED),
        (from_http(502, {}, b'{"error":{"code":400,"message":"No."}}'), REQUEST),
        (failed(431), SERVICE),
        (failed(408), SERVICE),
        (failed(500), SERVICE),
        (failed(501), SERVICE),
        (failed(503), SERVICE),
        (failed(529), SERVICE),
        (failed(503, "server_is_overloaded"), SERVICE),
        (failed(429, "slow_down"), SERVICE),
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
    why = attribute(failed(500, None, "a\n\tb" * 500), NOW).why
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
    error = failed(status, code, message, type)
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
    error = failed(404, "model_not_found", "The model `o9` does not exist.")
    assert attribute(error, NOW, None, models).kind is kind
