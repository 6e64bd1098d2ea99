"""What may be passed on as a header is one, and is of a bounded length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.error_parsing import from_http
from gateway.protocol.headers import MAX_VALUE, counts_limits, forwardable, may_pass, without_limits
from gateway.turn.response_metadata import passed_headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", "req_0199-aa/b=="),
        ("retry-after", "Wed, 21 Oct 2026 07:28:00 GMT"),
        ("x-codex-turn-metadata", '{"workspaces":{"/home/\u0131/\u7b56\u7565":{}}}'),
        ("x-codex-turn-metadata", "x" * MAX_VALUE),
        ("openai-model", "tab\there"),
    ],
)
def test_what_is_a_header_passes(name: str, value: str) -> None:
    assert may_pass(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", "two words"),
        ("x-request-id", "r" * 257),
        ("x-request-id", "r\u00e9q"),
        ("x-client-request-id", "a\x7f"),
        ("cf-ray", ""),
        ("cf-ray", "a\r\nset-cookie: b"),
        ("cf-ray", "a\x00"),
        ("cf-ray", "x" * (MAX_VALUE + 1)),
        ("cf ray", "a"),
        ("", "a"),
        ("x" * 129, "a"),
    ],
)
def test_what_is_none_is_dropped(name: str, value: str) -> None:
    assert not may_pass(name, value)


@given(st.text(), st.text())
def test_nothing_that_passes_ends_a_line(name: str, value: str) -> None:
    if may_pass(name, value):
        assert not {"\r", "\n", "\x00"} & {*name, *value}
        assert ":" not in name
        assert " " not in name


@pytest.mark.parametrize("value", ["a\x01b", "r" * 300])
def test_no_way_lets_a_wrong_one_through(value: str) -> None:
    assert passed_headers({"x-request-id": value}, limits=True) == {}
    assert from_http(400, {"x-request-id": value}, b"").headers == {}
    assert forwardable({"x-client-request-id": value}) == {}


def test_a_turn_state_of_an_upstream_is_in_no_error() -> None:
    headers = {"x-codex-turn-state": "theirs", "X-Codex-Turn-State": "theirs", "retry-after": "1"}
    assert from_http(429, headers, b"").headers == {"retry-after": "1"}


def test_headers_that_count_limits_are_told_apart() -> None:
    assert counts_limits("X-Codex-Primary-Used-Percent")
    assert counts_limits("x-ratelimit-remaining-tokens")
    assert without_limits({"x-codex-plan-type": "pro", "retry-after": "1"}) == {"retry-after": "1"}
