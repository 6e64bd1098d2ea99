"""What a conversation sticks to: its strongest key, for a while, within bounds (law 8)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.affinity import (
    AffinityKey,
    Bindings,
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


# --- bindings ------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def key(value: str, tenant: str = "laptop") -> AffinityKey:
    return AffinityKey("thread", tenant, value)


def test_a_bound_key_has_its_account(clock: Clock) -> None:
    bindings = Bindings(10, 60.0, clock)
    bindings.bind(key("t"), "a")
    assert bindings.account_of(key("t")) == "a"
    assert bindings.account_of(key("t", "desktop")) is None
    assert bindings.account_of(connection_key("laptop", "t")) is None
    bindings.bind(key("t"), "b")
    assert (bindings.account_of(key("t")), len(bindings)) == ("b", 1)


def test_an_unused_binding_ends(clock: Clock) -> None:
    bindings = Bindings(10, 60.0, clock)
    bindings.bind(key("t"), "a")
    clock.now += 59
    assert bindings.account_of(key("t")) == "a"
    bindings.bind(key("t"), "a")
    clock.now += 59
    assert bindings.account_of(key("t")) == "a"
    clock.now += 1
    assert bindings.account_of(key("t")) is None
    assert len(bindings) == 0, "what has ended takes no room"


def test_the_least_recently_bound_makes_room(clock: Clock) -> None:
    bindings = Bindings(2, 60.0, clock)
    for value in ("t1", "t2", "t1", "t3"):
        bindings.bind(key(value), "a")
    assert len(bindings) == 2
    assert [value for value in ("t1", "t2", "t3") if bindings.account_of(key(value))] == [
        "t1",
        "t3",
    ]


def test_a_released_key_is_forgotten(clock: Clock) -> None:
    bindings = Bindings(2, 60.0, clock)
    bindings.bind(key("t"), "a")
    bindings.release(key("t"))
    bindings.release(key("t"))
    assert (bindings.account_of(key("t")), len(bindings)) == (None, 0)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("ab"), st.integers(0, 30)), max_size=40),
    st.integers(1, 4),
)
def test_bindings_never_outgrow_their_bound_nor_their_age(
    steps: list[tuple[int, str, int]], bound: int
) -> None:
    clock = Clock()
    bindings = Bindings(bound, 60.0, clock)
    model: dict[int, tuple[str, float]] = {}
    for value, account, wait in steps:
        clock.now += wait
        bindings.bind(key(str(value)), account)
        model.pop(value, None)
        model[value] = (account, clock.now)
        while len(model) > bound:
            del model[next(iter(model))]
        assert len(bindings) <= bound
    for value in range(7):
        name, used_at = model.get(value, (None, 0.0))
        expected = name if used_at + 60 > clock.now else None
        assert bindings.account_of(key(str(value))) == expected
