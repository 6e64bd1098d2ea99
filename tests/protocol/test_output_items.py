"""Which output item is which: none is shown twice, and none is lost (§4.3)."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.events import TERMINALS, MalformedEvent
from gateway.protocol.output_items import OutputItems, finish_terminal
from gateway.protocol.usage import complete_usage

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


# --- terminal -------------------------------------------------------------------------


USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 7,
}
SHOWN = [b'{"type":"message", "id":"msg_1"}', b'{"type":"function_call","id":"fc_1"}']


def terminal(kind: str = "response.completed", number: int | None = 9, **response: Any) -> bytes:
    response = {"id": "resp_1", "status": kind.removeprefix("response."), **response}
    event: dict[str, Any] = {"type": kind, "response": response, "new": 1}
    if number is not None:
        event["sequence_number"] = number
    return json.dumps(event).encode()


def shown(response_id: str) -> dict[str, msgspec.Raw]:
    """What the client saw in ``response.created``."""
    return {"id": msgspec.Raw(json.dumps(response_id).encode())} if response_id else {}


def given_out(items: list[bytes]) -> OutputItems:
    found = OutputItems()
    for index, item in enumerate(items):
        found.add(index, item)
    return found


def finish(
    data: bytes, items: list[bytes] | None = None, response_id: str = "resp_1"
) -> list[dict[str, Any]]:
    kind = json.loads(data)["type"].encode()
    return [
        json.loads(event)
        for event in finish_terminal(data, kind, shown(response_id), given_out(items or [])).events
    ]


@pytest.mark.parametrize("items", [[], SHOWN])
@pytest.mark.parametrize("usage", [None, USAGE])
def test_a_sound_terminal_passes_verbatim(items: list[bytes], usage: object) -> None:
    output = [json.loads(item) for item in items]
    data = terminal(output=output, usage=usage, x=[1.50])
    ending = finish_terminal(data, b"response.completed", shown("resp_1"), given_out(items))
    assert ending == ([data], items)


@pytest.mark.parametrize("empty", [b"[]", b"[ ]", b"null", b""])
def test_an_empty_output_is_filled_with_what_was_seen(empty: bytes) -> None:
    output = b',"output":' + empty if empty else b""
    data = b'{"type":"response.completed","response":{"id":"resp_1"' + output + b',"n":1.50}}'
    given = finish_terminal(data, b"response.completed", shown("resp_1"), given_out(SHOWN))
    (ending,) = given.events
    assert b"[" + b",".join(SHOWN) + b"]" in ending, "the items are those bytes the client saw"
    assert b'"n":1.50' in ending, "what needs no change keeps its bytes"
    assert json.loads(ending)["response"]["output"] == [json.loads(item) for item in SHOWN]


def test_an_output_that_lacks_what_was_seen_gets_it() -> None:
    seen = [json.loads(item) for item in SHOWN]
    other = {"type": "reasoning", "id": "rs_1"}
    announced, ending = finish(terminal(output=[seen[1], other]), SHOWN)
    assert announced["item"] == other
    assert ending["response"]["output"] == [*seen, other]


def test_an_output_that_was_never_seen_is_announced_first() -> None:
    output = [json.loads(item) for item in SHOWN]
    *announced, ending = finish(terminal(output=output, number=9))
    assert [event["type"] for event in announced] == ["response.output_item.done"] * 2
    assert [event["item"] for event in announced] == output
    assert [event["output_index"] for event in announced] == [0, 1]
    assert [event["sequence_number"] for event in (*announced, ending)] == [9, 10, 11]
    assert ending["response"]["output"] == output


def test_events_without_numbers_are_numbered_from_zero() -> None:
    events = finish(terminal(output=[{"type": "message"}], number=None))
    assert [event["sequence_number"] for event in events] == [0, 1]


def test_the_terminal_has_the_id_the_client_knows() -> None:
    (ending,) = finish(terminal(output=[], id="resp_other"))
    assert ending["response"]["id"] == "resp_1"
    (ending,) = finish(terminal(output=[]), response_id="")
    assert ending["response"]["id"] == "resp_1"


@pytest.mark.parametrize(
    ("kind", "becomes", "status"),
    [
        ("response.done", "response.completed", "completed"),
        ("response.cancelled", "response.incomplete", "incomplete"),
    ],
)
def test_terminals_no_client_knows_become_ones_they_do(
    kind: str, becomes: str, status: str
) -> None:
    (ending,) = finish(terminal(kind, output=[], status="x"))
    assert (ending["type"], ending["response"]["status"]) == (becomes, status)


def test_a_cancelled_response_was_interrupted() -> None:
    (ending,) = finish(terminal("response.cancelled", output=[]))
    assert ending["response"]["incomplete_details"] == {"reason": "interrupted"}


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"response":null}',
        b'{"response":[]}',
        b"nonsense",
        b'{"response":' + b"[" * 99_999 + b"]" * 99_999 + b"}",
    ],
    ids=lambda data: data[:40].decode(),
)
def test_a_terminal_that_cannot_be_read_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEvent):
        finish_terminal(data, b"response.completed", {}, OutputItems())


# --- usage ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "mended"),
    [
        (None, None),
        (USAGE, None),
        ({"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}, None),
        (
            {"input_tokens": 1, "output_tokens": 2},
            {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        ),
        ({}, {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}),
        (
            {**USAGE, "input_tokens_details": {}},
            {**USAGE, "input_tokens_details": {"cached_tokens": 0}},
        ),
        (
            {**USAGE, "output_tokens_details": {"reasoning_tokens": None, "x": 1}},
            {**USAGE, "output_tokens_details": {"reasoning_tokens": 0, "x": 1}},
        ),
        ({**USAGE, "cost": 1.5, "total_tokens": "7"}, {**USAGE, "cost": 1.5}),
        ({**USAGE, "input_tokens": 5.0, "total_tokens": False}, USAGE),
    ],
)
def test_a_usage_that_would_repeat_the_turn_is_completed(usage: object, mended: object) -> None:
    answer = complete_usage(json.dumps(usage).encode())
    assert (None if answer is None else json.loads(answer)) == mended


@pytest.mark.parametrize("raw", [b"7", b"[]", b'"free"', b'{"input_tokens":1e999}'])
def test_a_usage_that_is_no_object_is_none(raw: bytes) -> None:
    assert complete_usage(raw) == b"null"


NUMBERS = st.none() | st.integers(0, 9) | st.text(max_size=2) | st.floats(0, 9) | st.booleans()
DETAILS = (
    st.none()
    | NUMBERS
    | st.dictionaries(st.sampled_from(["cached_tokens", "reasoning_tokens", "x"]), NUMBERS)
)
USAGES = st.fixed_dictionaries(
    {},
    optional={
        "input_tokens": NUMBERS,
        "output_tokens": NUMBERS,
        "total_tokens": NUMBERS,
        "input_tokens_details": DETAILS,
        "output_tokens_details": DETAILS,
    },
)


@given(
    st.sampled_from(sorted(TERMINALS)),
    st.none() | USAGES | NUMBERS,
    st.none() | st.lists(st.sampled_from(SHOWN).map(json.loads), max_size=3),
    st.lists(st.sampled_from(SHOWN), max_size=3),
)
def test_whatever_an_upstream_ends_with_no_client_is_harmed(
    kind: bytes, usage: object, output: object, items: list[bytes]
) -> None:
    data = terminal(kind.decode(), usage=usage, output=output)
    *announced, ending = finish(data, items)
    response = ending["response"]
    assert ending["type"] in ("response.completed", "response.failed", "response.incomplete")
    assert response["id"] == "resp_1"
    seen = [json.loads(item) for item in items] + [event["item"] for event in announced]
    assert bool(response["output"]) == bool(seen), "the output is empty only when nothing was seen"
    if response["usage"] is not None:
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert type(response["usage"][name]) is int, f"clients need {name}"
        for name, needed in (
            ("input_tokens_details", "cached_tokens"),
            ("output_tokens_details", "reasoning_tokens"),
        ):
            details = response["usage"].get(name)
            if isinstance(details, dict):
                assert type(details[needed]) is int, f"clients need {name}.{needed}"
    assert ending["new"] == 1, "members nobody knows stay"
