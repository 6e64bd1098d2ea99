"""The bug this gateway was born from, as a test: no turn may lose the thread.

The recorded sequence is a warm-up (generate:false), the user's turn and three turns of tool
outputs, as Codex 0.118 and later send them, once with the ids sent, once null, once absent.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import LIMITED, failing, sealed_in
from tests.support.checks import completed, output_text, types
from tests.support.events import Json, call_item, call_output, developer, text_item, user
from tests.support.gateway import account
from tests.support.strict import Mode, Strict
from tests.support.upstream import Recorded
from tests.support.wsclient import WsClient

pytestmark = pytest.mark.conformance

TOOLS = [{"type": "function", "name": "shell", "parameters": {"type": "object"}}]
BASE = developer("base instructions", id="msg_base")
GO = user("rounds=3", id="msg_go")
ROUNDS = 3


class Conversation:
    """A client that runs the tool loop and remembers what it and the server said."""

    def __init__(self, client: WsClient, ids: str, store: bool) -> None:
        self.client = client
        self.ids = ids
        self.store = store
        self.finals: list[Json] = []  # completed responses, the warm-up first
        self.transcripts: list[list[Json]] = []  # what each real turn has to be answered from
        self.history: list[Json] = []

    def link(self) -> Json:
        if self.ids == "absent" or not self.finals:
            return {}
        return {"previous_response_id": self.finals[-1]["id"] if self.ids == "sent" else None}

    def turn(self, items: list[Json], **fields: Any) -> list[Json]:
        fields = {"tools": TOOLS, "store": self.store, "input": items, **self.link(), **fields}
        events = self.client.turn(**fields)
        final = completed(events)
        if fields.get("generate", True):
            self.transcripts.append([*self.history, *items])
        self.history = [*self.history, *items, *final["output"]]
        self.finals.append(final)
        return events

    def warm_up(self) -> None:
        self.turn([BASE], generate=False)
        if self.ids != "sent":
            self.history = []  # the user's turn without an id is a new, complete conversation

    def tool_loop(self) -> list[Json]:
        events = self.turn([GO])
        for _ in range(ROUNDS):
            calls = [item for item in self.finals[-1]["output"] if item["type"] == "function_call"]
            assert calls, f"the model was to call a tool, said {self.finals[-1]['output']}"
            number = len(self.finals)
            events = self.turn(
                [call_output(call["call_id"], f"out{number}", id=f"fco_{number}") for call in calls]
            )
        return events


def check_upstream_log(
    requests: list[Recorded], conversation: Conversation, mode: Mode, store: bool
) -> None:
    """Every accepted turn was chained to the response before, or replayed in full; never both."""
    real = conversation.finals[1:]
    assert len(requests) == len(real) == ROUNDS + 1
    chains = mode is Mode.STATEFUL or (mode is Mode.STORED_ONLY and store)
    for number, request in enumerate(requests):
        whole = conversation.transcripts[number]
        if number == 0:
            assert request.previous_response_id is None, "the upstream has no response yet"
            assert request.input == whole
        elif chains:
            assert request.previous_response_id == real[number - 1]["id"], (
                f"turn {number} has to name the response before it"
            )
            assert [i["type"] for i in request.input] == ["function_call_output"]
        else:
            assert request.previous_response_id is None, "never both"
            assert request.input == whole, f"turn {number} needs the whole transcript in order"
    assert [request.response_id for request in requests] == [final["id"] for final in real]


@pytest.mark.parametrize("ids", ["sent", "null", "absent"])
@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("store", [False, True], ids=["store false", "store true"])
def test_the_recorded_sequence_keeps_its_thread(
    stage: Stage, mode: Mode, ids: str, store: bool
) -> None:
    strict = stage.strict("s", mode)
    client = stage.serve(strict).connect()
    conversation = Conversation(client, ids, store)
    conversation.warm_up()
    assert strict.requests == [], "the warm-up is answered by the gateway"
    events = conversation.tool_loop()
    assert output_text(events) == "s done: rounds=3 out2 out3 out4"
    check_upstream_log(strict.accepted, conversation, mode, store)
    trials = len(strict.requests) - len(strict.accepted)
    assert trials <= 1, f"what an account refused once is not tried every turn: {trials} trials"
    assert not any("error" in text for text in types(events))


@pytest.mark.parametrize("continuity", ["chain", "replay"])
def test_fixed_continuity_needs_no_trial(stage: Stage, continuity: str) -> None:
    mode = Mode.STATEFUL if continuity == "chain" else Mode.STATELESS
    strict = stage.strict("s", mode)
    gateway = stage.gateway(account("solo", strict.server, continuity=continuity))
    conversation = Conversation(gateway.connect(), "sent", False)
    conversation.warm_up()
    conversation.tool_loop()
    assert len(strict.requests) == ROUNDS + 1
    check_upstream_log(strict.requests, conversation, mode, False)


@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.STATELESS], ids=lambda mode: mode.value)
@pytest.mark.parametrize("ids", ["null", "absent"])
def test_chaining_always_extends_to_every_turn_of_a_lane(
    stage: Stage, mode: Mode, ids: str
) -> None:
    strict = stage.strict("s", mode)
    session = {"chaining": "always"}
    client = stage.gateway(account("solo", strict.server), session=session).connect()
    conversation = Conversation(client, ids, False)
    conversation.turn([BASE], generate=False)
    conversation.tool_loop()
    check_upstream_log(strict.accepted, conversation, mode, False)
    events = conversation.turn([user("recall the rest", id="msg_rest")])
    assert output_text(events) == "rounds=3 | recall the rest"


def test_two_conversations_on_one_socket_do_not_mix(stage: Stage) -> None:
    strict = stage.strict("s")
    client = stage.serve(strict).connect()
    for number in range(2):
        conversation = Conversation(client, "absent", False)
        conversation.tool_loop()
        request = strict.accepted[number * (ROUNDS + 1)]
        assert request.previous_response_id is None
        assert request.input == [GO]


def test_a_call_id_used_twice_belongs_to_the_latest_response(stage: Stage) -> None:
    """Without an id, the output answers the response that made the call last."""

    def brain(transcript: list[Json], strict: Strict) -> list[Json]:
        if transcript[-1]["type"] == "function_call_output":
            return [text_item(" ".join(str(i.get("output", "")) for i in transcript).strip())]
        return [call_item("call_same")]

    strict = stage.strict("s", brain=brain)
    client = stage.serve(strict).connect()
    completed(client.turn(input=[user("one")], store=False))
    second = completed(client.turn(input=[user("two")], store=False))
    completed(client.turn(input=[call_output("call_same", "out")], store=False))
    assert strict.requests[-1].previous_response_id == second["id"]


@pytest.mark.parametrize("mode", Mode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("ids", ["sent", "absent"])
def test_the_sticky_account_refuses_turn_four_before_output(
    stage: Stage, mode: Mode, ids: str
) -> None:
    a, b = stage.strict("a", mode), stage.strict("b", mode)
    client = stage.serve(a, b).connect()
    conversation = Conversation(client, ids, False)
    conversation.warm_up()
    conversation.turn([GO])
    home, other = (a, b) if a.requests else (b, a)
    for number in (1, 2, 3):
        if number == 3:  # the fourth turn
            assert other.requests == [], "a conversation sticks to its account"
            home.before_answer = failing(429, LIMITED)
        call = conversation.finals[-1]["output"][-1]
        output = call_output(call["call_id"], f"out{number}", id=f"fco_{number}")
        events = conversation.turn([output])
        kinds = types(events)
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds.count("response.created") == 1
        assert "error" not in kinds
    assert output_text(events) == f"{other.name} done: rounds=3 out1 out2 out3"
    assert sealed_in(other.requests) == set(), "no encrypted_content reaches the other account"
    moved = other.accepted[0]
    assert moved.previous_response_id is None, "the other account knows none of the ids"
    expected = [i for i in conversation.transcripts[-1] if i["type"] != "reasoning"]
    assert moved.input == expected, "the whole transcript but for the sealed reasoning"
    assert len(other.requests) == 1
