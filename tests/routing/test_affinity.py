"""What identifies a conversation: its strongest key, or what its requests share (law 8)."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.request import TurnRequest, read_create, read_members
from gateway.routing.affinity import (
    affinity_keys,
    connection_key,
    derived_cache_key,
    derived_key,
    http_affinity_keys,
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


def test_keys_of_different_tenants_and_rules_differ() -> None:
    values = {
        connection_key("laptop", "x"),
        connection_key("desktop", "x"),
        *affinity_keys("laptop", {}, {"thread_id": "x"}, None, "c1"),
    }
    assert len(values) == 3


@given(st.text(), st.text())
def test_a_long_value_costs_no_more_and_is_still_its_own(one: str, other: str) -> None:
    first, second = ("a" * 200 + text for text in (one, other))
    assert len(connection_key("laptop", first).value) <= 100
    same = connection_key("laptop", first) == connection_key("laptop", second)
    assert same == (one == other)


# --- requests of their own -----------------------------------------------------------


def request(**members: object) -> TurnRequest:
    payload = msgspec.json.encode(members)
    return read_create(read_members(payload), len(payload))


def said(*texts: str) -> list[dict[str, str]]:
    """A conversation as far as the user and the model have come, in turn."""
    return [
        {"type": "message", "role": ("user", "assistant")[index % 2], "content": text}
        for index, text in enumerate(texts)
    ]


BEGINNING: dict[str, object] = {
    "model": "gpt-5",
    "instructions": "Be brief.",
    "tools": [{"type": "function", "name": "shell"}],
    "input": said("hello"),
}


def test_a_request_without_any_name_has_a_derived_key() -> None:
    [found] = http_affinity_keys("laptop", {}, request(**BEGINNING))
    assert found == derived_key("laptop", request(**BEGINNING))
    assert (found.rule, found.tenant) == ("derived from the request", "laptop")
    assert "hello" not in found.value


@pytest.mark.parametrize(
    ("headers", "members", "rule"),
    [
        ({"thread-id": "t"}, {}, "thread"),
        ({"session-id": "s"}, {}, "session"),
        ({}, {"client_metadata": {"thread_id": "t"}}, "thread"),
        ({}, {"prompt_cache_key": "k"}, "prompt_cache_key"),
        ({}, {"prompt_cache_key": ""}, "derived from the request"),
    ],
)
def test_a_name_is_better_than_a_derived_key(
    headers: dict[str, str], members: dict[str, object], rule: str
) -> None:
    found = http_affinity_keys("laptop", headers, request(**BEGINNING, **members))
    assert [each.rule for each in found] == [rule]


def test_a_turn_state_identifies_no_conversation() -> None:
    """It names an account itself, and is asked for that."""
    found = http_affinity_keys("laptop", {STATE: "x"}, request(**BEGINNING))
    assert [each.rule for each in found] == ["derived from the request"]
    assert affinity_keys("laptop", {STATE: "x"}, {}, None, None) == []


def test_a_conversation_that_goes_on_keeps_its_derived_key() -> None:
    later = {**BEGINNING, "input": said("hello", "hi", "what time is it?")}
    assert derived_key("laptop", request(**BEGINNING)) == derived_key("laptop", request(**later))


def test_an_input_of_mere_text_is_what_the_user_said() -> None:
    one, same, other = (request(input=text) for text in ("hello", "hello", "hello!"))
    assert derived_key("laptop", one) == derived_key("laptop", same)
    assert derived_key("laptop", one) != derived_key("laptop", other)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "gpt-5.5"},
        {"instructions": "Be thorough."},
        {"tools": []},
        {"input": said("good morning")},
    ],
)
def test_conversations_that_differ_in_their_beginning_differ(other: dict[str, object]) -> None:
    one = derived_key("laptop", request(**BEGINNING))
    assert one != derived_key("laptop", request(**{**BEGINNING, **other}))
    assert one != derived_key("desktop", request(**BEGINNING))


def test_developer_messages_before_the_user_do_not_count() -> None:
    briefed = [{"type": "message", "role": "developer", "content": "It is noon."}, *said("hello")]
    one = derived_key("laptop", request(**{**BEGINNING, "input": briefed}))
    assert one == derived_key("laptop", request(**BEGINNING))


def test_a_request_where_the_user_says_nothing_has_a_key_too() -> None:
    outputs = [
        [{"type": "function_call_output", "call_id": call, "output": "1"}] for call in ("c1", "c2")
    ]
    values = {derived_key("laptop", request(input=each)).value for each in (*outputs, [])}
    assert len(values) == 3


@given(st.text(), st.text())
def test_members_do_not_run_into_each_other(one: str, other: str) -> None:
    split = derived_key("laptop", request(model=one, instructions=other))
    merged = derived_key("laptop", request(model=one + other, instructions=""))
    assert (split == merged) == (not other)


# --- cache keys ----------------------------------------------------------------------


def test_a_conversation_has_one_cache_key() -> None:
    thread = affinity_keys("laptop", {"thread-id": "t"}, {}, None, "c1")
    with_state = affinity_keys("laptop", {"thread-id": "t", STATE: "x"}, {}, None, "c2")
    assert derived_cache_key(thread) == derived_cache_key(with_state)


def test_cache_keys_of_others_differ() -> None:
    found = {
        derived_cache_key(affinity_keys(tenant, headers, {}, None, "c1"))
        for tenant in ("laptop", "desktop")
        for headers in ({"thread-id": "x"}, {"session-id": "x"}, {"thread-id": "y"}, {})
    }
    assert len(found) == 8


def test_a_cache_key_is_stable_short_and_says_nothing() -> None:
    keys = affinity_keys("laptop", {"thread-id": "0199aa00-7000"}, {}, None, "c1")
    found = derived_cache_key(keys)
    assert found == "1156554a52c86750fc5673ee4cc3a510", "it must survive a restart, and an update"
    assert len(found) <= 64, "upstreams take no longer ones"
