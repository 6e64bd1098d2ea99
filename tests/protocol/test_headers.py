"""What may be passed on as a header is one, and is of a bounded length."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.error_parsing import from_http
from gateway.protocol.headers import (
    MAX_VALUE,
    TurnState,
    TurnStates,
    counts_limits,
    forwardable,
    may_pass,
    without_limits,
)
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


# --- turn state -----------------------------------------------------------------------


STATES = TurnStates(b"a secret of the gateway")
MINE = STATES.wrap("laptop", TurnState("north", "upstream's own"))

#: JSON carries no lone surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT, TEXT, st.none() | TEXT)
def test_its_tenant_gets_back_what_was_said(
    tenant: str, account: str, upstream: str | None
) -> None:
    state = TurnState(account, upstream)
    value = STATES.wrap(tenant, state)
    assert STATES.unwrap(tenant, value) == state
    assert value.isascii(), "it travels in a header"
    assert not set(value) & set(" ,;\r\n\"'\\")


def test_gateways_that_share_a_secret_understand_each_other() -> None:
    assert TurnStates(b"a secret of the gateway").unwrap("laptop", MINE) is not None
    assert TurnStates(b"another secret").unwrap("laptop", MINE) is None


@given(TEXT)
def test_no_other_tenant_can_use_it(tenant: str) -> None:
    assert (STATES.unwrap(tenant, MINE) is None) == (tenant != "laptop")


@pytest.mark.parametrize(("owner", "thief"), [("1.a", "1"), ("", "0"), ("laptop", "laptop.")])
def test_names_that_look_alike_are_kept_apart(owner: str, thief: str) -> None:
    value = STATES.wrap(owner, TurnState("north", None))
    mark, said, signature = value.split(".")
    for forged in (value, f"{mark}.{said}.{signature}", f"{mark}.{owner}.{said}.{signature}"):
        assert STATES.unwrap(thief, forged) is None


@given(st.data())
def test_no_changed_value_passes(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(MINE) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != MINE[at]))
    assert STATES.unwrap("laptop", MINE[:at] + other + MINE[at + 1 :]) is None


@given(st.text() | st.from_regex(r"gw1\.[A-Za-z0-9_=-]*\.[0-9a-f]{32}", fullmatch=True))
def test_what_is_none_of_ours_says_nothing(value: str) -> None:
    assert STATES.unwrap("laptop", value) is None


@pytest.mark.parametrize("value", [None, "", "gw1", "gw1..", "x" * 100_000, MINE + "é"])
def test_oddities_say_nothing(value: str | None) -> None:
    assert STATES.unwrap("laptop", value) is None


@pytest.mark.parametrize("said", [b"[]", b"null", b'{"account":1}', b"[1,2]", b"\xff", b'["a"'])
def test_an_older_gateways_words_say_nothing(said: bytes) -> None:
    """Signed by us, and yet of another shape."""
    text = urlsafe_b64encode(said).decode()
    signed = f"gw1.{text}.{STATES._signature('laptop', text)}"
    assert STATES.unwrap("laptop", signed) is None


def test_a_value_that_would_not_come_back_is_short_enough_in_practice() -> None:
    long = STATES.wrap("laptop", TurnState("north", "u" * 4000))
    assert STATES.unwrap("laptop", long) == TurnState("north", "u" * 4000)
    longer = STATES.wrap("laptop", TurnState("north", "u" * 40_000))
    assert STATES.unwrap("laptop", longer) is None, "it is not read, rather than read at any cost"
