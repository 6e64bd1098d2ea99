"""Which output item is which: none is shown twice, and none is lost (§4.3)."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.output_items import OutputItems

Json = dict[str, Any]


def call(call_id: str | int | None = "call_1", id: str | None = "fc_1", **members: Any) -> Json:
    return {"type": "function_call", "id": id, "call_id": call_id, "arguments": "{}", **members}


def message(text: str, id: str | None = "msg_1", **members: Any) -> Json:
    content = [{"type": "output_text", "text": text}]
    return {"type": "message", "role": "assistant", "id": id, "content": content, **members}


def reasoning(id: str = "rs_1") -> Json:
    return {"type": "reasoning", "id": id, "summary": []}


def raw(item: Json) -> bytes:
    return json.dumps(item).encode()


def streamed(*items: Json) -> OutputItems:
    found = OutputItems()
    for index, item in enumerate(items):
        found.add(index, raw(item))
    return found


def missing(items: OutputItems, *listed: Json) -> list[Json]:
    return [json.loads(each) for _, each in items.compare(list(map(raw, listed))).missing]


# --- the terminal event's list -------------------------------------------------------


@pytest.mark.parametrize(
    "final",
    [
        call(id="fc_final"),
        call(id=None),
        {"type": "custom_tool_call", "id": "ctc_9", "call_id": "call_1"},
        call("call_9", "fc_1"),
        {"type": "browser_call", "id": "fc_1"},
        call("call_9", "fc_9"),
    ],
    ids=["other id", "no id", "other type", "other call id", "only the id", "same content"],
)
@pytest.mark.parametrize("more", [[], [reasoning()], [message("ho", "msg_9")]])
def test_a_call_that_was_shown_is_not_missing(final: Json, more: list[Json]) -> None:
    assert missing(streamed(call()), *more, final) == more
    assert missing(streamed(call()), final, *more) == more


@pytest.mark.parametrize("kind", ["function_call", "custom_tool_call", "shell_call", "new_call"])
def test_a_numbered_call_is_the_same_however_its_number_is_written(kind: str) -> None:
    shown = streamed({"type": kind, "id": "a", "call_id": 17})
    assert missing(shown, reasoning(), {"type": kind, "id": "b", "call_id": "17"}) == [reasoning()]


def test_a_message_is_the_same_by_its_text_or_its_place() -> None:
    late = call("call_2", "fc_2")
    assert missing(streamed(message("hi")), message("hi", "msg_9"), late) == [late]
    assert missing(streamed(message("hi")), message("hi!", "msg_9"), late) == [late]
    intro = message("before", "msg_8")
    assert missing(streamed(message("hi")), intro, message("hi", "msg_9")) == [intro]


def test_a_call_and_its_output_in_one_answer_are_two_items() -> None:
    made = {"type": "shell_call", "id": "sh_1", "call_id": "call_1"}
    answered = {"type": "shell_call_output", "id": "sho_1", "call_id": "call_1", "output": []}
    assert missing(streamed(made), made, answered) == [answered]
    assert missing(streamed(made, answered), answered, made, reasoning()) == [reasoning()]


def test_of_several_with_one_call_id_each_counts_once() -> None:
    first, second = call("poll:0", "fc_1"), call("poll:0", "fc_2")
    assert missing(streamed(first), first, second) == [second]
    assert missing(streamed(first, second), second, first) == []


def test_what_is_really_missing_is_found_in_a_list_of_any_length() -> None:
    calls = [call(f"call_{n}", f"fc_{n}") for n in range(9)]
    assert missing(streamed(*calls[:3], *calls[4:]), *calls) == [calls[3]]
    assert missing(streamed(*calls), calls[3]) == []
    new = call("call_new", "fc_new", arguments='{"x":1}')
    assert missing(streamed(*calls), *calls[1:], new) == [new]


def test_missing_items_get_a_place_of_their_own() -> None:
    listed = streamed(call()).compare([raw(reasoning()), raw(call(id="fc_final"))])
    assert listed.missing == [(1, raw(reasoning()))], "place 0 was the call's when it was shown"
    assert listed.items == [raw(reasoning()), raw(call())], "reasoning precedes what it led to"


def test_what_is_not_listed_stays_where_it_was() -> None:
    one, two, three = message("1", "a"), call(), message("3", "c")
    listed = streamed(one, two, three).compare([raw(three), raw(reasoning())])
    assert listed.items == list(map(raw, (one, two, three, reasoning())))


ITEMS = st.one_of(
    st.builds(call, st.sampled_from(["a", "b", None]), st.sampled_from(["1", "2", None])),
    st.builds(message, st.sampled_from("xy"), st.sampled_from(["1", "2", None])),
    st.builds(reasoning, st.sampled_from("12")),
)


@given(st.lists(ITEMS, max_size=6), st.lists(ITEMS, max_size=6))
def test_every_item_counts_exactly_once(shown: list[Json], final: list[Json]) -> None:
    items = streamed(*shown)
    listed = items.compare(list(map(raw, final)))
    known = items.raw
    announced = [each for _, each in listed.missing]
    assert sorted(listed.items) == sorted([*known, *announced])
    assert len(announced) >= len(final) - len(known)
    places = [index for index, _ in listed.missing]
    assert len(set(places)) == len(places)
    items.settle(listed.items)
    assert items.raw == listed.items


def test_what_comes_after_the_list_is_told_from_what_it_settled() -> None:
    items = streamed(message("hi"), call())
    items.settle([raw(call()), raw(message("hi"))])
    items.add(None, raw(call(arguments='{"a":1}')))
    assert [json.loads(each) for each in items.raw] == [call(arguments='{"a":1}'), message("hi")]
    items.add(None, raw(reasoning()))
    assert json.loads(items.raw[-1]) == reasoning()


# --- an item that is finished twice --------------------------------------------------


@pytest.mark.parametrize(
    "older",
    [
        call(status="in_progress"),
        call(status="in_progress", arguments=""),
        call(id="fc_9", arguments=""),
        call(call_id=None, arguments=""),
        {"type": "custom_tool_call", "id": "x", "call_id": "call_1"},
    ],
    ids=["status", "arguments", "other id", "no call id", "other type"],
)
def test_the_newer_state_of_an_item_counts(older: Json) -> None:
    assert streamed_at((0, older), (0, call())) == [call()]


@pytest.mark.parametrize("places", [(0, 1), (1, 0), (None, 0), (0, None), (None, None)])
def test_an_unfinished_item_is_replaced_wherever_it_stood(
    places: tuple[int | None, int | None],
) -> None:
    older, newer = (call(status=status) for status in ("in_progress", "completed"))
    assert streamed_at((places[0], older), (places[1], newer)) == [newer]
    older, newer = message("h", status="in_progress"), message("hi", status="completed")
    assert streamed_at((places[0], older), (places[1], newer)) == [newer]


def test_items_that_say_that_they_are_others_are_all_kept() -> None:
    one, two = call("call_1", "fc_1"), call("call_2", "fc_1")
    assert streamed_at((0, one), (0, two)) == [one, two]
    again = message("again", "msg_1")
    assert streamed_at((0, message("hi")), (1, call()), (2, again)) == [
        message("hi"),
        call(),
        again,
    ]


def streamed_at(*items: tuple[int | None, Json]) -> list[Json]:
    found = OutputItems()
    for index, item in items:
        found.add(index, raw(item))
    return [json.loads(each) for each in found.raw]


@pytest.mark.parametrize("index", [None, 0])
@pytest.mark.parametrize("alike", [False, True])
def test_many_items_are_kept_in_linear_time(index: int | None, alike: bool) -> None:
    items = OutputItems()
    began = time.process_time()
    for number in range(20_000):
        name = 0 if alike else number
        items.add(index, b'{"type":"message","id":"m%d","n":%d}' % (name, number))
    assert time.process_time() - began < 5
