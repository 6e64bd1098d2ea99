"""What of an input is new, and what a client only sends again (§8.3.4-5)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.conversations.deduplication import without_resent_history
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.items import Item, read_item
from tests.support.steps import steps_of


def item(**members: Any) -> Item:
    return read_item(json.dumps(members).encode())


def user(text: str, id: str | None = "msg_user") -> Item:
    content = [{"type": "input_text", "text": text}]
    return item(type="message", role="user", content=content, **({"id": id} if id else {}))


def assistant(text: str, id: str = "msg_0") -> Item:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return item(type="message", role="assistant", id=id, status="completed", content=content)


def poll(id: str | None = "fc_1", call_id: str = "functions.poll:0") -> Item:
    return item(type="function_call", id=id, call_id=call_id, name="poll", arguments="{}")


def output(text: str = "pending", call_id: str = "functions.poll:0") -> Item:
    return item(type="function_call_output", call_id=call_id, output=text)


def reasoning(id: str = "rs_1") -> Item:
    return item(type="reasoning", id=id, summary=[])


Turn = tuple[Sequence[Item], Sequence[Item]]


def conversation(*turns: Turn) -> Transcript | None:
    parent: Transcript | None = None
    for number, (sent, made) in enumerate(turns):
        key = None if parent is None else parent.record.key
        record = ResponseRecord(
            "laptop", f"r{number}", key, tuple(sent), tuple(made), "a", True, True, "m", 0.0
        )
        parent = Transcript(record, parent)
    return parent


POLLING = conversation(
    ([user("wait")], [reasoning(), poll()]), ([output()], [poll()]), ([output()], [poll()])
)
SPOKEN = conversation(
    ([user("continue")], [assistant("one")]), ([user("go")], [assistant("two", "msg_1")])
)


@pytest.mark.parametrize(
    ("parent", "new"),
    [
        (None, [user("hi")]),
        (POLLING, [output()]),
        (POLLING, [output(), user("continue")]),
        (SPOKEN, [user("continue")]),
        (SPOKEN, [user("go"), user("continue")]),
        (SPOKEN, [user("continue"), assistant("one"), user("go")]),
        (SPOKEN, [assistant("one")]),
        (conversation(([user("again")], [])), [user("again")]),
        (conversation(([output()], [])), [output()]),
        (SPOKEN, []),
    ],
)
def test_what_is_sent_as_new_is_new(parent: Transcript | None, new: list[Item]) -> None:
    assert list(without_resent_history(parent, new)) == new


@pytest.mark.parametrize(
    "again",
    [
        [user("continue"), assistant("one"), user("go"), assistant("two")],
        [user("continue", None), assistant("one", "x"), user("go", "y"), assistant("two")],
        [user("go"), assistant("two")],
        [assistant("two")],
        [
            item(role="user", content="continue"),
            item(role="assistant", content="one"),
            item(role="user", content="go"),
            item(role="assistant", content=[{"type": "output_text", "text": "two"}]),
        ],
        [user("continue"), item(type="item_reference", id="msg_0"), user("go"), assistant("two")],
    ],
    ids=["all", "under other ids", "the last turn", "the last answer", "short", "by reference"],
)
@pytest.mark.parametrize("new", [[], [user("three")], [user("continue")], [assistant("two")]])
def test_a_history_that_is_sent_again_is_not_new(again: list[Item], new: list[Item]) -> None:
    assert list(without_resent_history(SPOKEN, [*again, *new])) == new


def test_a_history_may_lack_reasoning() -> None:
    with_it = [user("wait"), reasoning(), poll(), output(), poll(), output(), poll()]
    without_it = [each for each in with_it if each.type != "reasoning"]
    for again in (with_it, without_it):
        assert list(without_resent_history(POLLING, [*again, output()])) == [output()]


def test_what_ends_the_history_without_counting_is_not_new_either() -> None:
    search = item(type="web_search_call", id="ws_1", action={"type": "search", "query": "x"})
    parent = conversation(([user("a")], [assistant("b"), reasoning(), search]))
    again = [user("a"), assistant("b"), reasoning(), search]
    assert list(without_resent_history(parent, [*again, user("c")])) == [user("c")]
    other = item(type="web_search_call", id="ws_2", action={"type": "search", "query": "y"})
    assert list(without_resent_history(parent, [*again, other])) == [other]


def test_what_a_client_puts_before_a_history_is_not_lost() -> None:
    tools = item(type="additional_tools", tools=[])
    new = [tools, user("continue"), assistant("one"), user("go"), assistant("two")]
    assert list(without_resent_history(SPOKEN, new)) == new


def test_references_into_the_conversation_fall_away() -> None:
    known, unknown = (item(type="item_reference", id=name) for name in ("fc_1", "x"))
    assert list(without_resent_history(POLLING, [known, unknown])) == [unknown]


def test_items_that_cannot_be_read_are_compared_as_they_are() -> None:
    odd = read_item(b'{"type":"function_call","call_id":"c","n":1e999}')
    parent = conversation(([user("a")], [odd]))
    assert list(without_resent_history(parent, [odd, output()])) == [output()]
    other = read_item(b'{"type":"function_call","call_id":"c", "n":1e999}')
    assert list(without_resent_history(parent, [other])) == [other]


ITEMS = st.sampled_from(
    [user("a"), user("b"), assistant("x"), poll(), poll("fc_2"), output(), output("done")]
)
MADE = st.lists(st.sampled_from([assistant("x"), poll(), reasoning()]), min_size=1, max_size=2)
TURNS = st.lists(st.tuples(st.lists(ITEMS, max_size=2), MADE), min_size=1, max_size=5)


@given(TURNS, st.lists(ITEMS, max_size=3), st.integers(0, 5))
def test_a_history_from_any_turn_on_is_recognised(
    turns: list[Turn], new: list[Item], skipped: int
) -> None:
    again = [each for sent, made in turns[skipped:] for each in (*sent, *made)]
    left = list(without_resent_history(conversation(*turns), [*again, *new]))
    if any(each.type != "reasoning" for each in again):
        assert len(left) <= len(new)
        assert left == new[len(new) - len(left) :], "only the beginning can be a history"


@given(TURNS, st.lists(st.sampled_from([user("a"), output(), user("c")]), max_size=4))
def test_nothing_is_taken_from_what_no_model_made(turns: list[Turn], new: list[Item]) -> None:
    assert list(without_resent_history(conversation(*turns), new)) == new


def test_repetition_does_not_make_it_slow() -> None:
    def steps(times: int) -> float:
        same = [assistant("x")] * times
        parent = conversation(([user("a")], same))
        return steps_of(lambda: without_resent_history(parent, [user("b"), *same]), 1)

    assert steps(400) < 3 * steps(200)
