"""Assertions that many conformance tests share; each says what was expected of whom."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tests.support.events import Json
from tests.support.wsclient import TERMINAL

HOUSEKEEPING = ("response.metadata", "codex.rate_limits")


def types(events: Iterable[Json]) -> list[str]:
    return [event["type"] for event in events]


def real(events: Iterable[Json]) -> list[Json]:
    """The events without keep-alives: unknown types, and repeated in_progress."""
    kept: list[Json] = []
    for event in events:
        kind = event["type"]
        if kind == "error" or (kind.startswith("response.") and "keepalive" not in kind):
            if kind == "response.in_progress" and "response.in_progress" in types(kept):
                continue
            kept.append(event)
    return kept


def response_of(events: list[Json]) -> Json:
    """The response object of the terminal event."""
    response = events[-1]["response"]
    assert isinstance(response, dict)
    return response


def completed(events: list[Json]) -> Json:
    """The response of a turn that has to have succeeded, with exactly one terminal."""
    assert events[-1]["type"] == "response.completed", (
        f"the client expected response.completed, got {events[-1]}"
    )
    assert_one_terminal(events)
    response = response_of(events)
    assert response["id"], "a completed response needs a non-empty id"
    return response


def output_text(events: list[Json]) -> str:
    """The text of a completed turn as output_item.done told it."""
    items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    parts = [part for item in items if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


def assert_one_terminal(events: list[Json]) -> None:
    terminals = [kind for kind in types(events) if kind in TERMINAL]
    assert len(terminals) == 1, f"a turn has exactly one terminal event, got {terminals}"
    assert events[-1]["type"] in TERMINAL, f"nothing follows the terminal, got {types(events)}"


def assert_error(
    event: Json,
    status: int | Iterable[int] | None = None,
    code: str | None = "any",
    param: str | None = "any",
) -> Json:
    """The one error shape that every client understands (protocol.md §5.1)."""
    assert event["type"] == "error", f"the client expected an error event, got {event}"
    found = event.get("status")
    assert type(found) is int, f"an error needs an integer status at the top: {event}"
    assert 400 <= found <= 599, f"status has to be 400-599: {event}"
    assert "status_code" not in event, f"status_code beside status hides the error: {event}"
    error = event.get("error")
    assert isinstance(error, dict), f"error has to be an object: {event}"
    assert isinstance(error.get("type"), str), f"error.type has to be a string: {event}"
    for name in ("code", "message", "param"):
        value = error.get(name)
        assert value is None or isinstance(value, str), f"error.{name}: string or null: {event}"
    for name in ("code", "message", "param"):
        assert name in error, f"the error object has type, code, message and param: {event}"
    assert error["message"], f"an error says what happened: {event}"
    headers = event.get("headers", {})
    assert isinstance(headers, dict), f"headers has to be an object: {event}"
    assert all(isinstance(value, (str, int, float)) for value in headers.values()), event
    if status is not None:
        wanted = [status] if isinstance(status, int) else list(status)
        assert found in wanted, f"expected status {wanted}: {event}"
    if code != "any":
        assert error["code"] == code, f"expected code {code!r}: {event}"
    if param != "any":
        assert error["param"] == param, f"expected param {param!r}: {event}"
    return error


def assert_failed(event: Json, code: str = "server_error") -> Json:
    """A response.failed as a retryable failure is told to clients (protocol.md §5.4)."""
    assert event["type"] == "response.failed", f"expected response.failed, got {event}"
    response = event["response"]
    assert isinstance(response, dict)
    assert response["status"] == "failed", f"status of a failed response: {response}"
    assert response["error"]["code"] == code, f"expected code {code}: {response}"
    assert isinstance(response["error"]["message"], str), response
    return response


def assert_failed_or_502(events: list[Json]) -> None:
    """A failure before any output: both forms make every client retry (§10.51, §10.64)."""
    assert_one_terminal(events)
    if events[-1]["type"] == "error":
        assert_error(events[-1], (502, 504))
    else:
        assert_failed(events[-1])


def assert_strictly_increasing(events: Iterable[Json]) -> None:
    numbers = [event["sequence_number"] for event in events if "sequence_number" in event]
    assert all(a < b for a, b in zip(numbers, numbers[1:])), (  # noqa: B905, RUF007
        f"sequence_number has to increase strictly, got {numbers}"
    )


def note(text: str) -> None:
    """A measured figure, shown by `pytest -rP` or `-s`."""
    sys.stdout.write(f"{text}\n")
