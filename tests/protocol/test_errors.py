"""The one shape in which clients are told of errors (protocol.md §5.1)."""

from __future__ import annotations

import json
from typing import Any

from gateway.protocol.errors import ApiError, error_event


def event_of(error: ApiError) -> dict[str, Any]:
    event = json.loads(error_event(error))
    assert isinstance(event, dict)
    return event


def test_an_error_event_is_nested_and_has_an_integer_status() -> None:
    error = ApiError.previous_response_not_found("resp_1")
    assert event_of(error) == {
        "type": "error",
        "status": 400,
        "error": {
            "type": "invalid_request_error",
            "code": "previous_response_not_found",
            "message": "Previous response with id 'resp_1' not found.",
            "param": "previous_response_id",
        },
    }


def test_headers_stand_at_the_top_of_an_error_event() -> None:
    error = ApiError(429, "rate_limit_error", "Later.", None, None, {"retry-after": "3"})
    assert event_of(error)["headers"] == {"retry-after": "3"}


def test_an_error_is_named_by_its_code_or_else_its_type() -> None:
    assert ApiError.bad_gateway("No answer.").label == "upstream_error"
    assert ApiError.invalid_request("No.").label == "invalid_request_error"
    assert str(ApiError.bad_gateway("No answer.")) == "502 upstream_error: No answer."


def test_a_connection_limit_is_what_makes_clients_come_back() -> None:
    error = ApiError.connection_limit_reached("Old.")
    assert (error.status, error.code) == (400, "websocket_connection_limit_reached")
