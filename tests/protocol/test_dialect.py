"""What one service wants otherwise: tools at the top level (§10.30), and what else a body says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.request import read_create, read_members
from gateway.protocol.upstream_request import PLAIN, Dialect, build_body, hoist_tools
from tests.support.events import Json, user


def tool(name: str, **members: Any) -> Json:
    return {"type": "function", "name": name, **members}


def brings(*tools: Any) -> Json:
    return {"type": "additional_tools", "tools": list(tools)}


def hoisted(items: list[Any], tools: Any = None) -> tuple[list[Any], Any]:
    kept, merged = hoist_tools([json.dumps(item).encode() for item in items], dump(tools))
    return [json.loads(raw) for raw in kept], json.loads(merged)


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


def body(dialect: Dialect, *items: Json, **members: Any) -> Json:
    message = {"type": "response.create", "model": "gpt-5.5", "input": list(items), **members}
    payload = dump(message)
    request = read_create(read_members(payload), len(payload))
    return dict(json.loads(build_body(request, None, None, dialect)))


# --- tools ---------------------------------------------------------------------------


def test_tools_that_items_bring_become_the_requests_own() -> None:
    items, tools = hoisted([user("hi"), brings(tool("a")), user("go"), brings(tool("b"))])
    assert items == [user("hi"), user("go")]
    assert tools == [tool("a"), tool("b")]


def test_the_last_definition_of_a_name_counts_at_the_place_of_the_first() -> None:
    new = tool("a", description="new")
    _, tools = hoisted([brings(new, tool("c"))], [tool("a"), tool("b")])
    assert tools == [new, tool("b"), tool("c")]


def test_tools_of_different_kinds_may_share_a_name() -> None:
    custom = {"type": "custom", "name": "a"}
    assert hoisted([brings(custom)], [tool("a")])[1] == [tool("a"), custom]


def test_servers_are_told_apart_by_their_labels() -> None:
    servers = [
        {"type": "mcp", "server_label": label, "server_url": "http://x"} for label in ("one", "two")
    ]
    assert hoisted([brings(servers[1])], servers[:1])[1] == servers
    search = {"type": "web_search"}
    assert hoisted([brings(search)], [search, servers[0]])[1] == [search, servers[0]]


@pytest.mark.parametrize("tools", [None, [], [tool("a")]])
def test_without_such_items_nothing_is_touched(tools: Any) -> None:
    said = [user("an item of type additional_tools"), {"type": "x", "y": '"additional_tools"'}]
    raws = [dump(item) for item in said]
    assert hoist_tools(raws, dump(tools)) == (raws, dump(tools))


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "additional_tools", "tools": None},
        {"type": "additional_tools", "tools": "x"},
        {"type": 5, "note": "additional_tools"},
    ],
)
def test_items_of_another_shape_are_left_to_the_upstream(odd: Json) -> None:
    assert hoisted([odd], [tool("a")]) == ([odd], [tool("a")])


def test_tools_that_cannot_be_read_pass_as_they_are() -> None:
    strange = [5, "x", {"type": 1}, {"type": "function", "name": ["a"]}]
    assert hoisted([brings(*strange)], strange)[1] == [*strange, *strange]


def test_an_item_that_brings_none_disappears_all_the_same() -> None:
    items, tools = hoisted([brings(), user("hi")], [tool("a")])
    assert items == [user("hi")]
    assert tools == [tool("a")]


TOOLS = st.builds(tool, st.sampled_from("abcd"), description=st.integers(0, 3))


@given(st.lists(TOOLS, max_size=4), st.lists(st.lists(TOOLS, max_size=3), max_size=4))
def test_every_name_is_offered_once_in_its_last_form(
    own: list[Json], brought: list[list[Json]]
) -> None:
    items = [item for tools in brought for item in (user("x"), brings(*tools))]
    kept, tools = hoisted(items, own or None)
    everything = [*own, *(each for tools in brought for each in tools)]
    assert kept == [user("x")] * len(brought), "of the input nothing else is lost"
    if any(brought):
        assert {each["name"]: each for each in tools} == {each["name"]: each for each in everything}
        assert len(tools) == len({each["name"] for each in everything})


# --- whole bodies --------------------------------------------------------------------


def test_the_platforms_own_dialect_changes_nothing() -> None:
    said = body(PLAIN, user("hi"), brings(tool("a")), store=True, metadata={"a": "b"})
    assert (said["model"], said["store"]) == ("gpt-5.5", True)
    assert said["input"][1] == brings(tool("a"))
    assert "tools" not in said
    assert "prompt_cache_key" not in said


def test_an_account_gets_its_own_name_of_the_model_and_no_members_that_it_refuses() -> None:
    dialect = Dialect("gpt-5.5-2026", frozenset({"metadata", "truncation"}))
    said = body(dialect, user("hi"), metadata={"a": "b"}, truncation="auto", top_p=1)
    assert said["model"] == "gpt-5.5-2026"
    assert said["top_p"] == 1
    assert not {"metadata", "truncation"} & set(said)


@pytest.mark.parametrize("store", [True, False, None])
def test_an_account_that_may_not_store_is_told_so(store: bool | None) -> None:
    members = {} if store is None else {"store": store}
    assert body(Dialect(stores=False), user("hi"), **members)["store"] is False


def test_a_cache_key_is_added_where_there_is_none() -> None:
    dialect = Dialect(cache_key="derived")
    assert body(dialect, user("hi"))["prompt_cache_key"] == "derived"
    assert body(dialect, user("hi"), prompt_cache_key="own")["prompt_cache_key"] == "own"


def test_hoisted_tools_stand_beside_the_rest() -> None:
    said = body(Dialect(hoists_tools=True), brings(tool("b")), user("hi"), tools=[tool("a")])
    assert said["tools"] == [tool("a"), tool("b")]
    assert said["input"] == [user("hi")]
