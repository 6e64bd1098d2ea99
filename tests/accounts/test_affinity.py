"""What identifies a conversation: its strongest key, or what its requests share (law 8)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.affinity import (
    affinity_keys,
    connection_key,
    turn_state_key,
)

STATE = "x-codex-turn-state"


def keys(
    headers: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    prompt_cache_key: str | None = None,
) -> list[tuple[str, str]]:
    found = affinity_keys("laptop", headers or {}, metadata or {}, prompt_cache_key, "c1")
    assert {key.tenant for key in found} == {"laptop"}
    return [(key.rule, key.value) for key in found]


def test_without_anything_better_the_connection_counts() -> None:
    assert keys() == [("connection", "c1")]


@pytest.mark.parametrize(
    ("headers", "metadata", "cache_key", "rule"),
    [
        ({"thread-id": "t"}, {}, None, "thread"),
        ({"thread-id": "t", "session-id": "s"}, {"session_id": "s"}, "k", "thread"),
        ({"session-id": "s"}, {"thread_id": "t"}, None, "thread"),
        ({"session-id": "s"}, {}, "k", "session"),
        ({"session_id": "s"}, {}, "k", "session"),
        ({"conversation_id": "s"}, {}, "k", "session"),
        ({}, {"session_id": "s"}, "k", "session"),
        ({}, {}, "k", "prompt_cache_key"),
        ({"thread-id": "", "session-id": ""}, {"thread_id": ""}, "", "connection"),
    ],
)
def test_the_strongest_key_counts_alone(
    headers: dict[str, str], metadata: dict[str, str], cache_key: str | None, rule: str
) -> None:
    assert [name for name, _ in keys(headers, metadata, cache_key)] == [rule]


def test_the_turn_knows_its_thread_better_than_the_handshake() -> None:
    assert keys({"thread-id": "old"}, {"thread_id": "new"}) == [("thread", "new")]


@pytest.mark.parametrize(("headers", "metadata"), [({STATE: "x"}, {}), ({}, {STATE: "x"})])
def test_a_turn_state_comes_before_what_outlasts_the_turn(
    headers: dict[str, str], metadata: dict[str, str]
) -> None:
    assert keys(headers, metadata, "k") == [("turn state", "x"), ("prompt_cache_key", "k")]


def test_keys_of_different_tenants_and_rules_differ() -> None:
    values = {
        turn_state_key("laptop", "x"),
        turn_state_key("desktop", "x"),
        connection_key("laptop", "x"),
        *affinity_keys("laptop", {}, {"thread_id": "x"}, None, "c1"),
    }
    assert len(values) == 4


@given(st.text(), st.text())
def test_a_long_value_costs_no_more_and_is_still_its_own(one: str, other: str) -> None:
    first, second = ("a" * 200 + text for text in (one, other))
    assert len(turn_state_key("laptop", first).value) <= 100
    same = turn_state_key("laptop", first) == turn_state_key("laptop", second)
    assert same == (one == other)
