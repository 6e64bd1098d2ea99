"""What the simulator refuses, and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import SimulatedAccount
from simulator.engine import AccountEngine
from simulator.items import CALLS_ANSWERED_BY, Item
from simulator.model import ScriptedModel
from simulator.validation import Refusal, check_context, check_parameters


def engine(mode: Any = "stateful", name: str = "a", **more: Any) -> AccountEngine:
    return AccountEngine(SimulatedAccount(name, mode=mode, **more), ScriptedModel())


def refusal(body: Any, of: AccountEngine | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        (of or engine()).answer({"model": "m", "input": [], **body})
    return caught.value


ACCEPTED = {
    "access_programs": {"cyber": "x"},
    "background": False,
    "client_metadata": {"session_id": "s"},
    "context_management": [],
    "include": ["reasoning.encrypted_content"],
    "input": "hi",
    "instructions": "be short",
    "max_output_tokens": 5,
    "metadata": {},
    "model": "m",
    "parallel_tool_calls": False,
    "previous_response_id": "resp_1",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"prewarm": False},
    "reasoning": {"effort": "high", "context": "all_turns"},
    "service_tier": "flex",
    "store": False,
    "stream": True,
    "stream_options": {"reasoning_summary_delivery": "sequential_cutoff"},
    "temperature": 1,
    "text": {"verbosity": "low"},
    "tool_choice": "auto",
    "tools": [{"type": "web_search"}, {"type": "function", "name": "f"}],
    "truncation": "auto",
    "user": "u",
}


def test_public_parameters_are_accepted() -> None:
    assert check_parameters(ACCEPTED) == ACCEPTED
    nothing = {name: None for name in ACCEPTED if name not in ("model", "input")}
    assert check_parameters({"model": "m", "input": [], **nothing})


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"type": "response.create"}, "unknown_parameter", "type"),
        ({"stream_id": "s"}, "unknown_parameter", "stream_id"),
        ({"generate": False}, "unsupported_parameter", "generate"),
        ({"background": True, "store": False}, None, "background"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 3}, "invalid_type", "model"),
        ({"input": 3}, "invalid_type", "input"),
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": ["text"]}, "invalid_type", "input[0]"),
        ({"input": [{"id": "msg_1"}]}, "missing_required_parameter", "input[0].type"),
        (
            {"input": [{"type": "function_call_output", "output": ""}]},
            "missing_required_parameter",
            "input[0].call_id",
        ),
        ({"store": "no"}, "invalid_type", "store"),
        ({"max_output_tokens": True}, "invalid_type", "max_output_tokens"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"include": [1]}, "invalid_type", "include[0]"),
        ({"client_metadata": {"n": 1}}, "invalid_type", "client_metadata.n"),
        (
            {"previous_response_id": "resp_1", "conversation": "conv_1"},
            "mutually_exclusive_parameters",
            None,
        ),
        ({"previous_response_id": "resp_1"}, "previous_response_not_found", "previous_response_id"),
    ],
)
def test_parameters_that_are_refused(change: Any, code: str, param: str | None) -> None:
    refused = refusal(change)
    assert refused.status == 400
    assert (refused.error["code"], refused.error["param"]) == (code, param)
    assert refused.error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [[], "text", None, 3])
def test_a_body_that_is_no_object(body: Any) -> None:
    with pytest.raises(Refusal):
        check_parameters(body)


def test_a_model_the_account_does_not_serve() -> None:
    refused = refusal({"model": "big"}, engine(models=("small",)))
    assert refused.error["code"] == "model_not_found"


def call(call_id: str, kind: str = "function_call", **more: Any) -> Item:
    return {"type": kind, "call_id": call_id, "name": "t", "arguments": "{}", **more}


def output(call_id: str, kind: str = "function_call_output") -> Item:
    return {"type": kind, "call_id": call_id, "output": "ok"}


@pytest.mark.parametrize(
    ("kind", "spoken"),
    [
        ("function_call_output", "function call output"),
        ("custom_tool_call_output", "custom tool call output"),
        ("tool_search_output", "tool search output"),
        ("shell_call_output", "shell call output"),
    ],
)
def test_an_orphan_output_is_named(kind: str, spoken: str) -> None:
    refused = refusal({"input": [output("call_7", kind)]})
    assert refused.status == 400
    assert refused.error["message"] == f"No tool call found for {spoken} with call_id call_7."
    assert (refused.error["code"], refused.error["param"]) == (None, "input")


def test_an_output_before_its_call_or_of_another_kind_is_an_orphan() -> None:
    assert "No tool call found" in str(refusal({"input": [output("c"), call("c")]}))
    other = [call("c", "custom_tool_call"), output("c")]
    assert "No tool call found" in str(refusal({"input": other}))


def test_a_call_without_its_output_is_named() -> None:
    refused = refusal({"input": [call("call_7"), {"role": "user", "content": "go on"}]})
    assert refused.error["message"] == "No tool output found for function call call_7."


def test_items_of_unknown_types_and_calls_without_ids_pass() -> None:
    check_context(
        [
            {"type": "from_the_future", "call_id": "x"},
            {"type": "tool_search_call", "call_id": None, "execution": "server"},
            {"type": "tool_search_output", "call_id": None},
            {"type": "agent_message", "author": "a"},
            call("c", "local_shell_call"),
            output("c"),
        ]
    )


def test_an_item_twice_is_named() -> None:
    message = {"type": "message", "role": "user", "content": "hi", "id": "msg_1"}
    assert "Duplicate item found with id msg_1" in str(refusal({"input": [message, message]}))


def test_a_compaction_trigger_comes_last() -> None:
    refused = refusal({"input": [{"type": "compaction_trigger"}, {"role": "user", "content": ""}]})
    assert "compaction_trigger" in str(refused)


@given(st.lists(st.sampled_from(sorted(CALLS_ANSWERED_BY)), min_size=1, max_size=6), st.data())
def test_a_paired_context_loses_its_validity_with_any_one_item(
    kinds: list[str], data: st.DataObject
) -> None:
    context: list[Item] = []
    for number, kind in enumerate(kinds):
        context.append(call(f"call_{number}", CALLS_ANSWERED_BY[kind][0]))
        context.append(output(f"call_{number}", kind))
    check_context(context)
    del context[data.draw(st.integers(0, len(context) - 1))]
    with pytest.raises(Refusal):
        check_context(context)


def test_reasoning_that_was_not_stored_needs_its_encrypted_content() -> None:
    bare = {"type": "reasoning", "id": "rs_1", "summary": []}
    for body in ({"store": False}, {"store": True}):
        refused = refusal({"input": [bare], **body})
        assert refused.status == 404
        assert refused.error["message"].startswith(
            "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false."
        )


def test_an_account_that_forgets_asks_for_no_stored_reasoning() -> None:
    bare = {"type": "reasoning", "id": "rs_1", "summary": []}
    engine("forgetful").answer({"model": "m", "input": [bare]})
    assert refusal({"input": [bare], "store": False}, engine("forgetful")).status == 404


def test_encrypted_content_is_the_accounts_own() -> None:
    ours, others = engine(), engine(name="b")
    request = {"model": "m", "reasoning": {}, "include": ["reasoning.encrypted_content"]}
    item = ours.answer({**request, "input": "hi"}).final["output"][0]
    assert item["type"] == "reasoning"
    ours.answer({**request, "input": [item], "store": False})
    refused = refusal({"input": [item]}, others)
    assert (refused.status, refused.error["code"]) == (400, "invalid_encrypted_content")
    nobody = {"type": "compaction", "encrypted_content": "gAAAAAnonsense"}
    assert refusal({"input": [nobody]}).error["code"] == "invalid_encrypted_content"


def test_an_item_reference_is_expanded_where_the_item_is_stored() -> None:
    ours = engine()
    answer = ours.answer({"model": "m", "input": "hi"})
    answer.keep()
    item = answer.final["output"][0]
    reference = {"type": "item_reference", "id": item["id"]}
    again = ours.answer({"model": "m", "input": [reference]})
    assert list(again.context) == [item]
    assert refusal({"input": [reference]}, engine(name="b")).status == 404


def test_conversations_are_not_found() -> None:
    assert refusal({"conversation": {"id": "conv_1"}}).status == 404


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.sampled_from(["", "call t", "rs_1", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "name", "type", "text", "tools"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)
ITEM_TYPES = [*CALLS_ANSWERED_BY, "function_call", "reasoning", "message", "additional_tools"]
ITEM = st.fixed_dictionaries(
    {"type": st.sampled_from(ITEM_TYPES)},
    optional={
        "id": JSON,
        "call_id": st.sampled_from(["c1", "c2"]) | JSON,
        "role": st.just("user") | JSON,
        "content": JSON,
        "output": JSON,
        "tools": JSON,
        "encrypted_content": JSON,
    },
)
BODY = st.fixed_dictionaries(
    {"model": st.just("m")},
    optional={
        "input": st.lists(ITEM, max_size=4) | JSON,
        "tools": JSON,
        "tool_choice": JSON,
        "reasoning": st.just({}) | JSON,
        "include": JSON,
        "store": JSON,
        "text": JSON,
    },
)


@settings(max_examples=600)
@given(BODY)
def test_any_body_is_answered_or_refused(body: Any) -> None:
    try:
        answer = engine().answer(body)
    except Refusal as refused:
        status = refused.status
    else:
        status = 200
        assert list(answer.events())[-1]["type"] == "response.completed"
    assert status in (200, 400, 404)
