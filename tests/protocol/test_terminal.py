"""The terminal event: verbatim, or mended where a client would be harmed (§4.3, §10.38-43)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.events import TERMINALS, MalformedEvent
from gateway.protocol.output_items import OutputItems, finish_terminal
from gateway.protocol.usage import mend_usage

USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 7,
}
ITEMS = [b'{"type":"message", "id":"msg_1"}', b'{"type":"function_call","id":"fc_1"}']


def terminal(kind: str = "response.completed", number: int | None = 9, **response: Any) -> bytes:
    response = {"id": "resp_1", "status": kind.removeprefix("response."), **response}
    event: dict[str, Any] = {"type": kind, "response": response, "new": 1}
    if number is not None:
        event["sequence_number"] = number
    return json.dumps(event).encode()


def shown(response_id: str) -> dict[str, msgspec.Raw]:
    """What the client saw in ``response.created``."""
    return {"id": msgspec.Raw(json.dumps(response_id).encode())} if response_id else {}


def streamed(items: list[bytes]) -> OutputItems:
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
        for event in finish_terminal(data, kind, shown(response_id), streamed(items or [])).events
    ]


@pytest.mark.parametrize("items", [[], ITEMS])
@pytest.mark.parametrize("usage", [None, USAGE])
def test_a_sound_terminal_passes_verbatim(items: list[bytes], usage: object) -> None:
    output = [json.loads(item) for item in items]
    data = terminal(output=output, usage=usage, x=[1.50])
    ending = finish_terminal(data, b"response.completed", shown("resp_1"), streamed(items))
    assert ending == ([data], items)


@pytest.mark.parametrize("empty", [b"[]", b"[ ]", b"null", b""])
def test_an_empty_output_is_filled_with_what_was_seen(empty: bytes) -> None:
    output = b',"output":' + empty if empty else b""
    data = b'{"type":"response.completed","response":{"id":"resp_1"' + output + b',"n":1.50}}'
    given = finish_terminal(data, b"response.completed", shown("resp_1"), streamed(ITEMS))
    (ending,) = given.events
    assert b"[" + b",".join(ITEMS) + b"]" in ending, "the items are those bytes the client saw"
    assert b'"n":1.50' in ending, "what needs no change keeps its bytes"
    assert json.loads(ending)["response"]["output"] == [json.loads(item) for item in ITEMS]


def test_an_output_that_lacks_what_was_seen_gets_it() -> None:
    seen = [json.loads(item) for item in ITEMS]
    other = {"type": "reasoning", "id": "rs_1"}
    announced, ending = finish(terminal(output=[seen[1], other]), ITEMS)
    assert announced["item"] == other
    assert ending["response"]["output"] == [*seen, other]


def test_an_output_that_was_never_seen_is_announced_first() -> None:
    output = [json.loads(item) for item in ITEMS]
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
    answer = mend_usage(json.dumps(usage).encode())
    assert (None if answer is None else json.loads(answer)) == mended


@pytest.mark.parametrize("raw", [b"7", b"[]", b'"free"', b'{"input_tokens":1e999}'])
def test_a_usage_that_is_no_object_is_none(raw: bytes) -> None:
    assert mend_usage(raw) == b"null"


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
    st.none() | st.lists(st.sampled_from(ITEMS).map(json.loads), max_size=3),
    st.lists(st.sampled_from(ITEMS), max_size=3),
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
