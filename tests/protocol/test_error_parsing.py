"""Every shape in which upstreams say that something went wrong (protocol.md §5.1)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.error_parsing import (
    from_event,
    from_failed_response,
    from_http,
    from_untyped,
)
from gateway.protocol.errors import NOT_THE_API, ApiError, error_event

TOO_DEEP = b"[" * 100_000

JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 1000) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
ERROR_MEMBERS = st.sampled_from(
    ["type", "code", "message", "param", "status", "status_code", "headers", "resets_at", "error"]
)
ERROR_OBJECTS = st.dictionaries(ERROR_MEMBERS, JSON_VALUES)
EVENTS = st.builds(
    lambda flat, nested: {"type": "error", **flat, **nested},
    ERROR_OBJECTS,
    st.just({}) | ERROR_OBJECTS.map(lambda error: {"error": error}),
)


def event_of(error: ApiError) -> dict[str, Any]:
    event = json.loads(error_event(error))
    assert isinstance(event, dict)
    return event


def read(event: object) -> ApiError:
    error = from_event(json.dumps(event).encode())
    assert error is not None, f"{event} tells of an error"
    return error


def assert_clients_understand(error: ApiError) -> None:
    """§5.1 by the letter: what makes Codex ignore an error is not there."""
    event = event_of(error)
    assert type(event["status"]) is int, "the status is an integer"
    assert 400 <= event["status"] <= 599, "the status is one of an error"
    assert "status_code" not in event, "status_code beside status makes Codex deaf"
    inner = event["error"]
    assert isinstance(inner["type"], str), "type is a string"
    assert inner["type"], "type is not empty"
    assert isinstance(inner["message"], str), "message is a string"
    assert inner["code"] is None or isinstance(inner["code"], str), "code is a string or null"
    assert inner["param"] is None or isinstance(inner["param"], str), "param is a string or null"
    for value in event.get("headers", {}).values():
        assert isinstance(value, str), "headers are strings"


# --- what upstreams send as an event ------------------------------------------------


def test_the_nested_event_of_websockets_is_read() -> None:
    error = read(
        {
            "type": "error",
            "status": 429,
            "error": {
                "type": "usage_limit_reached",
                "code": None,
                "message": "Usage limit reached.",
                "plan_type": "plus",
                "resets_at": 1795400000,
            },
            "headers": {"retry-after": 3, "x-codex-active-limit": "codex", "list": [1]},
        }
    )
    assert (error.status, error.type, error.code) == (429, "usage_limit_reached", None)
    assert error.details == {"plan_type": "plus", "resets_at": 1795400000}
    assert error.headers == {"retry-after": "3", "x-codex-active-limit": "codex"}


def test_the_flat_event_of_sse_gets_a_type_and_a_status() -> None:
    error = read({"type": "error", "code": "rate_limit_exceeded", "message": "Slow.", "param": "x"})
    assert (error.status, error.type) == (429, "invalid_request_error")
    assert (error.code, error.message, error.param) == ("rate_limit_exceeded", "Slow.", "x")


def test_a_flat_event_of_an_unknown_code_is_a_server_error() -> None:
    error = read({"type": "error", "code": None, "message": "Oops.", "sequence_number": 3})
    assert (error.status, error.type, error.message) == (500, "server_error", "Oops.")


def test_headers_within_the_error_count_too() -> None:
    event = {"type": "error", "status": 429, "error": {"code": "a", "headers": {"retry-after": 1}}}
    assert read(event).headers == {"retry-after": "1"}


@pytest.mark.parametrize("status", ["low", 200, 700, None, True, 429.0, [429]])
def test_a_status_that_is_none_is_inferred_from_the_code(status: object) -> None:
    assert read({"status": status, "error": {"code": "server_is_overloaded"}}).status == 503


def test_status_code_alone_is_read_as_the_status() -> None:
    assert read({"type": "error", "status_code": 403, "error": {"message": "No."}}).status == 403


def test_an_error_given_as_text_is_its_message() -> None:
    assert read({"type": "error", "error": "Out of memory."}).message == "Out of memory."


def test_a_numeric_code_becomes_a_string() -> None:
    assert read({"type": "error", "error": {"code": 42}}).code == "42"


@pytest.mark.parametrize(
    "data",
    [
        b'{"type":"error","error":{}}',
        b'{"type":"error"}',
        b'{"type":"error","error":null}',
        b'{"type":"error","error":{"code":null,"message":""}}',
        b"[]",
        b"null",
        b"\xff",
        TOO_DEEP,
    ],
    ids=lambda data: data[:40].decode(errors="replace"),
)
def test_an_event_that_says_nothing_is_no_error(data: bytes) -> None:
    assert from_event(data) is None


@given(EVENTS)
def test_whatever_an_event_holds_clients_understand_what_they_get(event: object) -> None:
    error = from_event(json.dumps(event).encode())
    if error is not None:
        assert_clients_understand(error)


# --- what upstreams send as an HTTP answer -------------------------------------------


def test_an_http_error_is_read_with_its_status() -> None:
    body = b'{"error":{"message":"No such model.","type":"x","param":"model","code":"y"}}'
    error = from_http(404, {}, body)
    assert (error.status, error.type, error.code, error.param) == (404, "x", "y", "model")
    assert error.message == "No such model."


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"detail":"Out of order: previous_response_id"}', "Out of order"),
        (b'{"detail":["body"]}', "body"),
        (b'{"error":"not allowed"}', "not allowed"),
        (b'{"message":"flat","code":"c"}', "flat"),
        (b"<html>busy</html>", "the status 503 and a page of HTML, not the API's answer"),
        (b"", "the status 503 and no message"),
        (b"\xff\xfe", "the status 503 and no text"),
        (b'{"error":{"message":null}}', "the status 503 and no message"),
        (TOO_DEEP, "the status 503 and no message"),
    ],
    ids=lambda value: value[:30].decode(errors="replace") if isinstance(value, bytes) else "",
)
def test_any_body_gives_a_message(body: bytes, message: str) -> None:
    error = from_http(503, {}, body)
    assert message in error.message
    assert error.status == 503


def test_only_headers_that_concern_the_client_travel() -> None:
    headers = {
        "retry-after": "7",
        "retry-after-ms": "7000",
        "x-request-id": "req_1",
        "x-codex-primary-used-percent": "100",
        "set-cookie": "secret",
        "openai-organization": "org-1",
    }
    assert set(from_http(429, headers, b"").headers) == {
        "retry-after",
        "retry-after-ms",
        "x-request-id",
        "x-codex-primary-used-percent",
    }


@pytest.mark.parametrize(
    "name", ["x-codex- a", "x-codex-é", "x-codex-\r\na", "x-codex-", "\nretry-after"]
)
def test_what_is_no_headers_name_does_not_travel(name: str) -> None:
    event = {"type": "error", "error": {"code": "a"}, "headers": {name: "1", "Retry-After": 2}}
    error = from_event(json.dumps(event).encode())
    assert error is not None
    assert error.headers == {"Retry-After": "2"}


@pytest.mark.parametrize("status", [100, 204, 302, 600])
def test_a_status_that_is_no_error_is_a_bad_gateway(status: int) -> None:
    error = from_http(status, {}, b"")
    assert (error.status, error.type) == (502, "server_error")
    assert f"{status}" in error.message


@given(st.integers(100, 999), ERROR_OBJECTS, st.sampled_from(["error", "detail", None]))
def test_whatever_http_answers_clients_understand_what_they_get(
    status: int, members: dict[str, Any], under: str | None
) -> None:
    body = members if under is None else {under: members}
    assert_clients_understand(from_http(status, {}, json.dumps(body).encode()))


# --- what headers say of limits ------------------------------------------------------

LIMIT_HEADERS = {
    "retry-after": "7",
    "retry-after-ms": "7000",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset": "1s",
    "x-codex-primary-used-percent": "100",
    "x-codex-active-limit": "codex",
    "x-other-secondary-reset-after-seconds": "5",
}


def test_hints_at_limits_are_kept_from_http() -> None:
    headers = {**LIMIT_HEADERS, "set-cookie": "secret", "x-request-id": "req_1", "date": "today"}
    assert from_http(429, headers, b"").hints == LIMIT_HEADERS


def test_hints_at_limits_are_kept_from_every_place_in_an_event() -> None:
    titled = {name.title(): value for name, value in LIMIT_HEADERS.items()}
    error = {"code": "a", "message": "b"}
    for event in (
        {"status": 429, "error": error, "headers": titled},
        {"status": 429, "error": {**error, "headers": titled}},
        {"status": 429, "error": {**error, "metadata": {"headers": titled}}},
        {**error, "headers": titled},
    ):
        assert read(event).hints == LIMIT_HEADERS, f"{event} tells of limits"
    assert from_failed_response({**error, "headers": titled}).hints == LIMIT_HEADERS


def test_the_headers_around_an_error_count_before_those_within() -> None:
    event = {
        "error": {"code": "a", "headers": {"retry-after": 1, "retry-after-ms": [20]}},
        "headers": {"retry-after": 3},
    }
    assert read(event).hints == {"retry-after": "3", "retry-after-ms": "20"}


def test_clients_never_see_hints() -> None:
    error = from_http(429, {"x-ratelimit-remaining-requests": "77"}, b"")
    assert error.hints
    for told in (error_event(error).decode(), str(error), repr(error), str(error.body())):
        assert "ratelimit" not in told


def test_hints_are_bounded() -> None:
    many = {f"x-ratelimit-reset-{n}": "1s" for n in range(1000)}
    assert len(from_http(429, many, b"").hints) == 64
    assert from_http(429, {"retry-after": "1" * 1000}, b"").hints == {}


@given(st.dictionaries(st.sampled_from(list(LIMIT_HEADERS)), JSON_VALUES), JSON_VALUES)
def test_whatever_stands_for_headers_hints_are_texts(headers: object, metadata: object) -> None:
    hints = read({"error": {"code": "a", "headers": headers, "metadata": metadata}}).hints
    assert all(isinstance(text, str) for pair in hints.items() for text in pair)


# --- response.failed, and statuses by code -------------------------------------------


def test_the_error_of_a_failed_response_is_read() -> None:
    error = from_failed_response(
        {"code": "rate_limit_exceeded", "message": "Wait.", "headers": {"retry-after": "2"}}
    )
    assert (error.status, error.code, error.message) == (429, "rate_limit_exceeded", "Wait.")
    assert error.headers == {"retry-after": "2"}


@pytest.mark.parametrize("error", [None, "", [], {}])
def test_a_failed_response_without_an_error_is_a_server_error(error: object) -> None:
    read = from_failed_response(error)
    assert (read.status, read.type) == (500, "server_error")
    assert "failed" in read.message


@given(JSON_VALUES | ERROR_OBJECTS)
def test_whatever_a_failed_response_holds_clients_understand_it(error: object) -> None:
    assert_clients_understand(from_failed_response(error))


@pytest.mark.parametrize(
    ("code", "type_", "status"),
    [
        ("previous_response_not_found", None, 400),
        ("context_length_exceeded", None, 400),
        ("unsupported_parameter", None, 400),
        ("invalid_encrypted_content", None, 400),
        ("invalid_api_key", None, 401),
        ("insufficient_quota", None, 429),
        ("credit_balance_exhausted", None, 429),
        ("organization_spend_limit_exceeded", None, 429),
        ("project_spend_limit_exceeded", None, 429),
        ("rate_limit_exceeded", None, 429),
        (None, "usage_limit_reached", 429),
        (None, "usage_not_included", 429),
        (None, "invalid_request_error", 400),
        ("server_is_overloaded", None, 503),
        ("slow_down", "invalid_request_error", 503),
        ("server_error", None, 500),
        ("unheard_of", "unheard_of", 500),
        (None, None, 500),
        (7, ["x"], 500),
    ],
)
def test_codes_and_types_have_their_status(code: object, type_: object, status: int) -> None:
    error = read({"error": {"message": "No.", "code": code, "type": type_}})
    assert error.status == status


# --- what an error means by itself, whoever passed it on ------------------------------


@pytest.mark.parametrize(
    ("data", "status", "message"),
    [
        (b'{"error":{"message":"m","type":"BadRequestError","code":400}}', 400, "m"),
        (b'{"error":{"message":"m","code":"429"}}', 429, "m"),
        (b'{"error":{"code":404,"status":"NOT_FOUND","message":"m"}}', 404, "m"),
        (b'{"error":"m","status":"403"}', 403, "m"),
        (b'{"error":"m"}', 500, "m"),
        (b'{"type":"error","code":429,"message":"m"}', 429, "m"),
        (b'{"type":"error","error":{"type":"overloaded_error","message":"m"}}', 503, "m"),
        (b'{"errors":[{"message":"m","code":400}]}', 400, "m"),
        (b'{"errors":["m","n"]}', 500, "m; n"),
        (b'{"detail":[{"loc":["body","input"],"msg":"Field required"}]}', 400, "input: "),
        (b'{"detail":[{"loc":["body","a"],"msg":"m"},{"loc":["body","b"]}]}', 400, "a: m; b"),
        (b'{"detail":{"error":{"message":"m","code":"invalid_prompt"}}}', 400, "m"),
        (b'{"detail":{"message":"m"}}', 500, "m"),
        (b'{"object":"error","message":"m","type":"BadRequestError","code":400}', 400, "m"),
        (b'{"title":"Bad Request","detail":"m","status":400}', 400, "m"),
        (b'[{"error":{"code":400,"message":"m"}}]', 400, "m"),
        (b'"m"', 500, "m"),
        (b"out of memory", 500, "out of memory"),
        (b'{"error":{"message":{"text":"t","message":"m"}}}', 500, "m"),
    ],
)
def test_an_event_of_any_shape_is_read(data: bytes, status: int, message: str) -> None:
    error = from_event(data)
    assert error is not None
    assert error.status == status
    assert error.message.startswith(message)


@pytest.mark.parametrize(
    ("message", "status", "code"),
    [
        ("context_length_exceeded: too many tokens", 400, "context_length_exceeded"),
        ("[context_length_exceeded] too many tokens", 400, "context_length_exceeded"),
        ("litellm.APIError: rate_limit_exceeded - later", 429, "rate_limit_exceeded"),
        ("Error: server_is_overloaded", 503, "server_is_overloaded"),
        ("some_new_code: it failed", 500, None),
        ("it failed: rate_limit_exceeded is no code here", 500, None),
    ],
)
@pytest.mark.parametrize("wrapped", [lambda said: said, lambda said: {"message": said}])
def test_a_known_code_before_the_words_counts_as_a_code(
    wrapped: Callable[[str], object], message: str, status: int, code: str | None
) -> None:
    error = read({"error": wrapped(message)})
    assert (error.status, error.code, error.message) == (status, code, message)
    assert from_failed_response(wrapped(message)).code == code


@pytest.mark.parametrize("data", [b'{"error":{"message":"m","code":400}}', b'{"detail":"m"}'])
def test_a_bare_error_needs_no_type(data: bytes) -> None:
    error = from_untyped(data)
    assert error is not None
    assert error.message == "m"


@pytest.mark.parametrize(
    "data",
    [
        b'{"message":"hello"}',
        b'{"error":null,"choices":[]}',
        b'{"error":{}}',
        b"hello",
        b"[1]",
        b'{"error":',
    ],
)
def test_what_is_no_error_is_none_for_want_of_a_type(data: bytes) -> None:
    assert from_untyped(data) is None


def answered(status: int, **error: object) -> ApiError:
    return from_http(status, {}, json.dumps({"error": error}).encode())


@pytest.mark.parametrize("status", [200, 500, 502, 503])
@pytest.mark.parametrize(
    ("error", "meant"),
    [
        ({"message": "m", "type": "BadRequestError", "code": 400}, 400),
        ({"message": "m", "code": "400"}, 400),
        ({"message": "m", "type": "invalid_request_error", "param": "tools"}, 400),
        ({"message": "m", "code": "context_length_exceeded"}, 400),
        ({"message": "Your input exceeds the context window of this model."}, 400),
        ({"message": "Vector store with id 'vs_1' not found."}, 400),
        ({"message": "m", "param": "tools[0].parameters", "code": "invalid_value"}, 400),
        ({"message": "m", "code": "rate_limit_exceeded"}, 429),
        ({"message": "m", "code": "invalid_api_key"}, 401),
        ({"message": "m", "code": "model_not_found"}, 404),
    ],
    ids=str,
)
def test_a_wrappers_status_does_not_hide_what_is_meant(
    status: int, error: dict[str, object], meant: int
) -> None:
    assert answered(status, **error).status == meant


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        ({"message": "Our servers are currently overloaded."}, 503),
        ({"message": "m", "type": "overloaded_error"}, 503),
        ({"message": "m", "code": "rate_limit_exceeded"}, 429),
        ({"message": "m", "type": "rate_limit_error"}, 429),
        ({"message": "m", "code": 429}, 429),
        ({"message": "m", "code": "insufficient_quota"}, 429),
        ({"message": "You exceeded your current quota."}, 429),
        ({"message": "m", "code": "invalid_api_key"}, 401),
        ({"message": "m", "code": 404}, 400),
        ({"message": "m", "code": "model_not_found"}, 400),
        ({"message": "m", "param": "input", "code": 400}, 400),
        ({"message": "Invalid value: overloaded"}, 400),
    ],
    ids=str,
)
def test_a_400_that_is_not_about_the_request_is_none(error: dict[str, object], meant: int) -> None:
    assert answered(400, **error).status == meant


@pytest.mark.parametrize("status", [401, 402, 403, 404, 409, 413, 422, 429])
def test_any_other_status_means_what_it_says(status: int) -> None:
    assert answered(status, message="context window", code=400).status == status


def test_a_code_that_is_a_status_is_no_code() -> None:
    assert answered(500, message="m", code="400", param="None").code is None
    assert answered(500, message="m", code="400", param="None").param is None


# --- what is not the API's ---------------------------------------------------------------

PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><title>Just a moment...</title>"


@pytest.mark.parametrize("status", [200, 302, 403, 404, 405, 409, 500, 501, 503, 520, 525, 530])
@pytest.mark.parametrize("body", [PAGE, b"upstream connect error", b"\xff\xfe"])
def test_a_page_speaks_of_nothing_that_the_api_knows(status: int, body: bytes) -> None:
    error = from_http(status, {}, body)
    assert error.code == NOT_THE_API
    assert error.status in (500, 502, 503, 520, 525, 530), "clients try again"
    assert f"the status {status}" in error.message
    assert "not the API's answer" in error.message
    assert ("a page of HTML" in error.message) == (body is PAGE)


@pytest.mark.parametrize("status", [400, 401, 402, 413, 422, 429, 431])
def test_some_statuses_need_no_words_of_the_api(status: int) -> None:
    error = from_http(status, {}, PAGE)
    assert (error.status, error.code) == (status, None)


@pytest.mark.parametrize("body", [b"", b"  ", b'{"detail":', b'["a'])
def test_an_answer_that_was_cut_off_is_no_page(body: bytes) -> None:
    error = from_http(404, {}, body)
    assert (error.status, error.code) == (404, None)


@pytest.mark.parametrize(("status", "meant"), [(200, 400), (500, 500), (503, 503)])
def test_a_type_that_services_give_to_every_error_says_little(status: int, meant: int) -> None:
    assert answered(status, message="m", type="invalid_request_error").status == meant
