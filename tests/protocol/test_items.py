"""Items: opaque, but for what decides how they may travel (§3.4, §8.3)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.items import (
    MODEL_MADE,
    Item,
    brings_history,
    encrypted_content,
    item_content,
    missing_calls,
    read_input,
    read_item,
    with_issuers,
)


def item(**members: Any) -> Item:
    return read_item(json.dumps(members).encode())


def test_an_item_tells_what_routing_needs() -> None:
    call = item(type="function_call", id="fc_1", call_id="call_1", name="f", arguments="{}")
    assert (call.type, call.id, call.call_id, call.role) == (
        "function_call",
        "fc_1",
        "call_1",
        None,
    )
    assert not call.encrypted


def test_a_message_may_leave_its_type_out() -> None:
    assert item(role="user", content="hi").type == "message"
    assert item(content="hi").type == ""


@pytest.mark.parametrize(
    "raw", [b"7", b'"x"', b"null", b"[]", b'{"type":7}', b'{"type":"x","id":[1]}', b"[" * 99_999]
)
def test_an_item_that_cannot_be_read_passes_as_it_is(raw: bytes) -> None:
    assert read_item(raw) == Item(raw)


@given(st.binary())
def test_any_bytes_stay_what_they_are(raw: bytes) -> None:
    assert read_item(raw).raw == raw


# --- seals ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["gAAA", "x y"])
def test_reasoning_with_a_content_is_sealed(value: str) -> None:
    assert item(type="reasoning", id="rs_1", encrypted_content=value).encrypted


@pytest.mark.parametrize("kind", ["reasoning", "compaction", "message"])
def test_an_empty_seal_is_none(kind: str) -> None:
    assert not item(type=kind, id="x_1", encrypted_content="").encrypted
    assert not item(type=kind, id="x_1", encrypted_content=None).encrypted
    assert not item(type=kind, id="x_1", summary=[]).encrypted


def test_talk_of_a_seal_is_no_seal() -> None:
    assert not item(role="user", content='{"encrypted_content":"gAAA"}').encrypted
    assert not item(role="user", content="encrypted_content", x="gAAA").encrypted


def test_only_what_cannot_be_dropped_opens_nowhere_else() -> None:
    assert item(type="compaction", encrypted_content="gAAA").needs_issuer
    assert item(type="agent_message", content=[{"encrypted_content": "g"}]).needs_issuer
    assert not item(type="reasoning", encrypted_content="gAAA").needs_issuer
    assert not item(type="message", role="user").needs_issuer


def test_only_sealed_items_are_asked_for_their_issuer() -> None:
    asked: list[bytes] = []

    def issuer_of(raw: bytes) -> str:
        asked.append(raw)
        return "primary"

    sealed = b'{"type":"reasoning","encrypted_content":"gAAA"}'
    items = tuple(map(read_item, (sealed, b'{"type":"message","role":"user"}')))
    assert [item.issuer for item in with_issuers(items, issuer_of)] == ["primary", None]
    assert asked == [sealed]


SEALS = st.text("ABCxyz019+/=_-", min_size=1, max_size=20)
OTHERS = st.dictionaries(st.sampled_from(["id", "summary", "status", "a"]), st.text(max_size=4))


@given(SEALS, OTHERS, OTHERS, OTHERS, st.sampled_from([None, 1]))
def test_a_seal_is_the_same_whatever_stands_around_it(
    seal: str, before: dict[str, str], after: dict[str, str], other: dict[str, str], indent: int
) -> None:
    ours = json.dumps({**before, "encrypted_content": seal, "z": after}).encode()
    echoed = json.dumps({**other, "encrypted_content": seal}, indent=indent).encode()
    assert encrypted_content(ours) == encrypted_content(echoed) == seal.encode()


@pytest.mark.parametrize(
    "raw", [b"{}", b'{"encrypted_content":null}', b'{"encrypted_content":"', b'"encrypted_content"']
)
def test_what_holds_no_seal_names_none(raw: bytes) -> None:
    assert encrypted_content(raw) is None


# --- input ---------------------------------------------------------------------------


def test_an_input_is_a_list_a_text_or_nothing() -> None:
    assert [one.raw for one in read_input(b'[{"type":"a"}, 7]')] == [b'{"type":"a"}', b"7"]
    assert json.loads(read_input(b'"hi"')[0].raw)["content"] == "hi"
    assert read_input(b"null") == ()


@pytest.mark.parametrize("raw", [b"7", b"true", b"{}", b""])
def test_any_other_input_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="a string or a list"):
        read_input(raw)


# --- calls and history ---------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "function_call",
        "custom_tool_call",
        "tool_search",
        "local_shell_call",
        "shell_call",
        "apply_patch_call",
        "computer_call",
        "program",
        "browser_call",
    ],
)
def test_an_output_of_any_kind_without_its_call_is_unanswered(kind: str) -> None:
    output = item(type=f"{kind}_output", call_id="call_1")
    call = item(type=kind, call_id="call_1")
    assert missing_calls([output]) == {"call_1"}
    assert missing_calls([call, output]) == set()
    assert missing_calls([call]) == set()


@pytest.mark.parametrize(
    ("call", "answer", "name"),
    [
        (
            {"type": "mcp_approval_request", "id": "mcpr_1"},
            {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
            "mcpr_1",
        ),
        (
            {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_1"},
            {"type": "local_shell_call_output", "id": "lsh_1", "output": "ok"},
            "lsh_1",
        ),
        (
            {"type": "function_call", "id": "fc_1", "call_id": 17},
            {"type": "function_call_output", "call_id": 17, "output": "ok"},
            "17",
        ),
        (
            {"type": "function_call", "id": 3, "call_id": "17"},
            {"type": "function_call_output", "id": "fco_1", "call_id": 17, "output": "ok"},
            "17",
        ),
        (
            {"type": "function_call", "id": 3, "call_id": "17"},
            {"type": "function_call_output", "id": 3, "output": "ok"},
            "3",
        ),
    ],
)
def test_an_answer_names_its_call_in_one_of_several_ways(call: Any, answer: Any, name: str) -> None:
    assert missing_calls([item(**answer)]) == {name}
    assert missing_calls([item(**call), item(**answer)]) == set()


def test_a_message_answers_no_call() -> None:
    assert missing_calls([item(role="user", id="msg_1", content="hi")]) == set()


def test_each_output_needs_its_own_call() -> None:
    items = [
        item(type="function_call", call_id="call_1"),
        item(type="function_call_output", call_id="call_1"),
        item(type="custom_tool_call_output", call_id="call_2"),
        item(role="user", content="hi"),
    ]
    assert missing_calls(items) == {"call_2"}


@pytest.mark.parametrize("kind", [*sorted(MODEL_MADE), "function_call", "browser_call"])
def test_what_only_models_make_is_history(kind: str) -> None:
    assert brings_history([item(role="user", content="hi"), item(type=kind)])


def test_an_assistants_message_is_history() -> None:
    assert brings_history([item(role="assistant", content="hello")])


def test_users_tools_and_developers_make_no_history() -> None:
    assert not brings_history(
        [
            item(role="developer", content="be brief"),
            item(role="user", content="hi"),
            item(type="function_call_output", call_id="call_1", output="ok"),
            item(type="additional_tools", tools=[]),
            item(type="compaction_trigger"),
        ]
    )
    assert not brings_history([])


# --- what an item says ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"content": "hi"}, {"content": [{"type": "input_text", "text": "hi"}]}),
        ({"id": "a", "status": "completed", "content": "hi"}, {"id": "b", "content": "hi"}),
        ({"content": "hi", "phase": None}, {"content": "hi"}),
        (
            {"content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}]},
            {"content": [{"type": "output_text", "text": "hi"}]},
        ),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    ],
)
def test_the_same_may_be_written_in_several_ways(one: Any, other: Any) -> None:
    assert item_content(json.dumps(one).encode()) == item_content(json.dumps(other).encode())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"content": "hi"}, {"content": "ho"}),
        ({"action": {"type": "click"}}, {"action": {"type": "screenshot"}}),
        ({"arguments": "{}"}, {"arguments": '{"a":1}'}),
    ],
)
def test_what_says_something_else_is_told_apart(one: Any, other: Any) -> None:
    assert item_content(json.dumps(one).encode()) != item_content(json.dumps(other).encode())


@pytest.mark.parametrize("raw", [b"nonsense", b"7", b"[]", b'{"a":1e999}', b"[" * 99_999])
def test_what_cannot_be_read_says_its_own_bytes(raw: bytes) -> None:
    assert item_content(raw) == raw
    assert not read_item(raw).unfinished


def test_an_item_says_whether_more_is_to_come() -> None:
    assert read_item(b'{"type":"function_call","status":"in_progress"}').unfinished
    assert not read_item(b'{"type":"function_call","status":"completed"}').unfinished
    assert not read_item(b'{"type":"function_call"}').unfinished
