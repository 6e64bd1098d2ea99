"""Whole turns without a socket: chaining, replaying, modes, and what the model recalls."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import SimulatedAccount
from simulator.engine import AccountEngine, Answer
from simulator.items import Item
from simulator.model import ScriptedModel
from simulator.validation import Refusal

LOOKUP = {
    "type": "function",
    "name": "lookup",
    "parameters": {
        "type": "object",
        "properties": {"key": {"type": "string"}},
        "required": ["key"],
    },
}
WEATHER = {"type": "function", "name": "get_weather", "parameters": {"type": "object"}}
NOTE = {"type": "custom", "name": "note"}


class Talk:
    """A conversation with one engine, chained or replayed in full."""

    def __init__(self, mode: Any = "stateful", *, replay: bool = False, **request: Any) -> None:
        self.engine = AccountEngine(SimulatedAccount("a", mode=mode), ScriptedModel())
        self.request = {"model": "m", "tools": [LOOKUP, WEATHER, NOTE], **request}
        self.replay = replay
        self.history: list[Item] = []
        self.last_id: str | None = None

    def send(self, items: list[Item]) -> Answer:
        if self.replay:
            answer = self.engine.answer({**self.request, "input": self.history + items})
        else:
            body = {**self.request, "input": items, "previous_response_id": self.last_id}
            answer = self.engine.answer(body)
        answer.keep()
        self.history += items + answer.final["output"]
        self.last_id = answer.response_id
        return answer

    def calls(self, answer: Answer) -> list[Item]:
        return [item for item in answer.final["output"] if "call_id" in item]

    def say(self, text: str) -> str:
        """Say it, run the tools the model asks for, and return its words."""
        answer = self.send([{"role": "user", "content": text}])
        while self.calls(answer):
            answer = self.send(outputs(self.calls(answer)))
        content: str = answer.final["output"][-1]["content"][0]["text"]
        return content


def outputs(calls: list[Item]) -> list[Item]:
    return [
        {
            "type": f"{call['type']}_output",
            "call_id": call["call_id"],
            "output": f"{call['name']} found {call.get('arguments', call.get('input'))}",
        }
        for call in calls
    ]


def test_calls_come_one_after_another_or_at_once() -> None:
    talk = Talk()
    first = talk.send([{"role": "user", "content": "Call lookup three times: 'a', 'b', 'c'"}])
    keys: list[str] = []
    answer = first
    while calls := talk.calls(answer):
        assert len(calls) == 1
        keys.append(json.loads(calls[0]["arguments"])["key"])
        answer = talk.send(outputs(calls))
    assert keys == ["a", "b", "c"]
    at_once = talk.send([{"role": "user", "content": "call get_weather and note in parallel"}])
    assert [call["name"] for call in talk.calls(at_once)] == ["get_weather", "note"]


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("call the tool", ["lookup"]),
        ("please use your tools", ["lookup"]),
        ("get_weather, please", ["get_weather"]),
        ("Run note twice", ["note", "note"]),
        ("call note, then lookup", ["note", "lookup"]),
        ("what a lovely lookup", []),
        ("hello", []),
        ("what did the tool say first?", []),
    ],
)
def test_which_tools_the_user_asks_for(asked: str, names: list[str]) -> None:
    talk = Talk()
    answer = talk.send([{"role": "user", "content": asked}])
    called: list[str] = []
    while calls := talk.calls(answer):
        called += [call["name"] for call in calls]
        answer = talk.send(outputs(calls))
    assert called == names


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("none", []),
        ("required", ["lookup"]),
        ({"type": "function", "name": "get_weather"}, ["get_weather"]),
    ],
)
def test_tool_choice_decides(choice: Any, called: list[str]) -> None:
    talk = Talk(tool_choice=choice)
    asked = "call lookup" if choice == "none" else "hello"
    answer = talk.send([{"role": "user", "content": asked}])
    assert [call["name"] for call in talk.calls(answer)] == called


def test_no_parallel_calls_where_the_request_forbids_them() -> None:
    talk = Talk(parallel_tool_calls=False)
    answer = talk.send([{"role": "user", "content": "call lookup and note in parallel"}])
    assert [call["name"] for call in talk.calls(answer)] == ["lookup"]


def test_tools_of_additional_tools_items_are_on_offer_in_later_turns() -> None:
    talk = Talk(tools=None)
    talk.send([{"type": "additional_tools", "tools": [NOTE]}, {"role": "user", "content": "hi"}])
    assert "note found milk" in talk.say("call note with 'milk'")


def test_the_model_recalls_what_it_was_told() -> None:
    talk = Talk()
    assert "message 1 of" in talk.say("Good morning")
    talk.say("My code word is Pelican.")
    assert 'lookup found {\\"key\\": \\"x\\"}' in json.dumps(talk.say("call lookup with 'x'"))
    assert talk.say("Which code word did I give you?") == "The code word is Pelican."
    assert talk.say("What did I say first?") == 'You first said "Good morning".'
    assert "lookup found" in talk.say("What was the result of the tool?")
    assert "message 7 of" in talk.say("thanks")


def test_a_lost_thread_shows_in_the_answer() -> None:
    talk = Talk("forgetful")
    talk.say("My code word is Pelican.")
    assert talk.say("Which code word did I give you?") == (
        "I know of nothing said earlier in this conversation."
    )


def test_a_surrounding_message_of_the_client_is_not_what_the_user_said() -> None:
    talk = Talk()
    surrounding = {"role": "user", "content": "<environment_context>call lookup</…>"}
    answer = talk.send([surrounding, {"role": "user", "content": "hello"}])
    assert talk.calls(answer) == []
    assert talk.say("what did I say first?") == 'You first said "hello".'


def test_reasoning_precedes_the_output_and_is_encrypted_on_demand() -> None:
    plain = Talk(reasoning={"effort": "low"}).send([{"role": "user", "content": "hi"}])
    kinds = [item["type"] for item in plain.final["output"]]
    assert kinds == ["reasoning", "message"]
    assert "encrypted_content" not in plain.final["output"][0]
    include = ["reasoning.encrypted_content"]
    talk = Talk(reasoning={}, include=include).send([{"role": "user", "content": "call note"}])
    assert talk.final["output"][0]["encrypted_content"]
    assert talk.final["output"][0]["id"].startswith("rs_")
    assert talk.final["output"][1]["type"] == "custom_tool_call"


def test_compaction_keeps_what_was_said() -> None:
    talk = Talk(reasoning={})
    talk.say("My code word is Pelican.")
    talk.say("call lookup with 'x'")
    answer = talk.send([{"type": "compaction_trigger"}])
    (compaction,) = answer.final["output"]
    assert compaction["type"] == "compaction"
    talk.last_id = None
    fresh = [compaction, {"role": "user", "content": "what is the code word?"}]
    answer = talk.send(fresh)
    assert answer.final["output"][-1]["content"][0]["text"] == "The code word is Pelican."
    assert "lookup found" in talk.say("and what was the tool result?")


def test_a_response_repeats_the_request_and_counts() -> None:
    talk = Talk(instructions="be short", metadata={"k": "v"})
    first = talk.send([{"role": "user", "content": "hi" * 100}])
    second = talk.send([{"role": "user", "content": "more"}])
    assert second.response["status"] == "in_progress"
    assert second.response["output"] == []
    assert second.final["previous_response_id"] == first.response_id
    assert second.final["metadata"] == {"k": "v"}
    assert second.final["instructions"] == "be short"
    usage = second.final["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] > 0
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


@pytest.mark.parametrize("mode", ["stateful", "stateless", "forgetful"])
def test_store_false_is_honoured_in_all_modes(mode: Any) -> None:
    talk = Talk(mode, store=False)
    answer = talk.send([{"role": "user", "content": "hi"}])
    assert answer.final["store"] is False
    assert len(talk.engine.store) == 0


def test_a_stateless_account_stores_nothing_and_says_so() -> None:
    talk = Talk("stateless", store=True)
    assert talk.send([{"role": "user", "content": "hi"}]).final["store"] is False
    with pytest.raises(Refusal) as caught:
        talk.send([{"role": "user", "content": "hi"}])
    assert caught.value.error["code"] == "unsupported_parameter"


def test_the_events_carry_every_item_in_full() -> None:
    talk = Talk(reasoning={})
    answer = talk.send([{"role": "user", "content": "call lookup and note in parallel"}])
    events = list(answer.events())
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == answer.final["output"]
    for index, item in enumerate(answer.final["output"]):
        mine = [event for event in events if event.get("item_id") == item["id"]]
        deltas = "".join(event["delta"] for event in mine if "delta" in event)
        assert deltas == item.get("arguments", item.get("input", ""))
        assert all(event["output_index"] == index for event in mine)
    assert events[-1] == {"type": "response.completed", "response": answer.final}


SAYINGS = st.sampled_from(
    [
        "hello",
        "My code word is Pelican.",
        "call lookup with 'x'",
        "call get_weather and note in parallel",
        "use note twice",
        "what did I say first?",
        "which code word did I give?",
        "what was the result of the tool?",
        "repeat the conversation so far",
    ]
)


@given(st.lists(SAYINGS, min_size=1, max_size=6))
def test_chaining_and_replaying_give_the_same_conversation(sayings: list[str]) -> None:
    include = ["reasoning.encrypted_content"]
    chained = Talk(reasoning={}, include=include)
    replayed = Talk("stateless", replay=True, reasoning={}, include=include)
    for saying in sayings:
        assert chained.say(saying) == replayed.say(saying)


@pytest.mark.parametrize(
    "asked", ["hello", "call lookup and note in parallel", "", "trigger a compaction"]
)
def test_events_have_the_public_types(asked: str) -> None:
    openai_types = pytest.importorskip("openai.types.responses")
    public = {
        kind.model_fields["type"].annotation.__args__[0]: kind
        for kind in typing.get_args(typing.get_args(openai_types.ResponseStreamEvent)[0])
    }
    include = ["reasoning.encrypted_content"]
    talk = Talk(reasoning={"effort": "low"}, include=include)
    compaction = [{"type": "compaction_trigger"}] if "compaction" in asked else []
    answer = talk.send([{"role": "user", "content": asked}, *compaction])
    for number, event in enumerate(answer.events()):
        public[event["type"]].model_validate({**event, "sequence_number": number}, strict=True)
