"""The simulator's small parts: encrypted content, store, pieces of text, tool arguments."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.engine import Record, ResponseStore
from simulator.events import sse
from simulator.items import ContentCipher, estimated_tokens, input_items, pieces, text_of, tools_of
from simulator.model import custom_input, function_arguments, quoted_values
from simulator.request_log import LoggedRequest, RequestLog


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text
    assert all(pieces(text))


def test_pieces_are_words() -> None:
    assert pieces("one two  three ") == ["one", " two", "  three "]


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists))
def test_encrypted_content_is_decrypted(value: Any) -> None:
    assert ContentCipher("key").decrypt(ContentCipher("key").encrypt(value)) == value


@given(st.data())
def test_altered_content_is_refused(data: st.DataObject) -> None:
    text = ContentCipher("key").encrypt({"a": 1})
    index = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(codec="ascii").filter(lambda one: one != text[index]))
    altered = text[:index] + character + text[index + 1 :]
    assert not ContentCipher("key").issued(altered)


@pytest.mark.parametrize("text", ["", "gAAAAA", "gAAAAA====", "nonsense", "gAAAAAé", "\ud800"])
def test_content_that_was_not_issued_is_refused(text: str) -> None:
    assert not ContentCipher("key").issued(text)


def test_content_has_only_one_spelling() -> None:
    text = next(
        text for text in (ContentCipher("k").encrypt("x" * n) for n in range(3)) if "=" in text
    )
    head, last = text.rstrip("=")[:-1], text.rstrip("=")[-1]
    others = {head + chr(ord(last) + step) + "=" * text.count("=") for step in (-1, 1)}
    assert not any(ContentCipher("k").issued(other) for other in others)


def test_content_of_another_account_is_refused() -> None:
    assert not ContentCipher("other").issued(ContentCipher("key").encrypt(1))


def record(name: str, parent: Record | None = None, size: int = 1) -> Record:
    said = {"type": "message", "role": "user", "content": name, "id": f"msg_{name}"}
    return Record(
        f"resp_{name}", parent, [said], [{"type": "reasoning", "id": f"rs_{name}"}], {}, size
    )


def test_a_context_runs_from_the_root_to_the_response() -> None:
    root = record("a")
    child = record("b", root)
    assert [item["id"] for item in child.context()] == ["msg_a", "rs_a", "msg_b", "rs_b"]
    assert len(root.context()) == 2


def test_the_store_forgets_the_oldest_and_its_items() -> None:
    store = ResponseStore(max_count=2)
    a = record("a")
    for one in (a, record("b", a), record("c")):
        store.keep(one)
    assert store.get("resp_a") is None
    assert store.item("rs_a") is None
    kept = store.get("resp_b")
    assert kept is not None
    assert len(kept.context()) == 4, "a kept response must not lose the root of its chain"
    assert store.item("rs_c") == {"type": "reasoning", "id": "rs_c"}


def test_the_store_is_bounded_in_bytes() -> None:
    store = ResponseStore(max_bytes=100)
    for name in "abcd":
        store.keep(record(name, size=40))
    assert len(store) == 2
    store.keep(record("huge", size=1000))
    assert store.get("resp_huge") is not None, "the newest response is always kept"
    assert len(store) == 1


def test_the_request_log_is_bounded() -> None:
    log = RequestLog(max_count=3, max_bytes=100)
    for size in (10, 10, 10, 10):
        log.add(LoggedRequest("a", {}, {}, size))
    assert len(log) == 3
    log.add(LoggedRequest("b", {}, {}, 95))
    assert [entry.account for entry in log] == ["b"]
    assert log.of("a") == []


def test_input_is_a_list_of_items() -> None:
    assert text_of(input_items("hi")[0]["content"]) == "hi"
    assert input_items([]) == []
    assert input_items(None) == []


def test_tokens_grow_with_the_text() -> None:
    assert estimated_tokens(["a" * 400, {"k": "b" * 400}]) == 200


def test_tools_are_those_of_the_request_and_of_additional_tools_items() -> None:
    first = {"type": "function", "name": "a", "description": "old"}
    again = {"type": "function", "name": "a", "description": "new"}
    group = {"type": "namespace", "name": "ns", "tools": [{"type": "custom", "name": "b"}]}
    context = [{"type": "additional_tools", "tools": [again, group, {"type": "web_search"}]}]
    tools = tools_of([first], context)
    assert tools == [again, {"type": "custom", "name": "b", "namespace": "ns"}]


def test_an_event_is_two_lines_and_an_empty_one() -> None:
    text = sse({"type": "response.created", "text": "a\nb"})
    assert text == b'event: response.created\ndata: {"type":"response.created","text":"a\\nb"}\n\n'


def test_quotes_of_every_kind() -> None:
    assert quoted_values("say \"a b\", 'c', `d` and “e”; it's John's") == ["a b", "c", "d", "e"]


STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "asked", "expected"),
    [
        (None, "", {}),
        ({"type": "object", "properties": {"x": STRING}}, "", {}),
        ({"properties": {"x": STRING}, "required": ["x"]}, 'find "y"', {"x": "y"}),
        (
            {"properties": {"city": STRING}, "required": ["city"]},
            "in New York",
            {"city": "New York"},
        ),
        ({"properties": {"cmd": STRING}, "required": ["cmd"]}, "", {"cmd": "echo round 2"}),
        ({"properties": {"n": {"type": "integer"}}, "required": ["n"]}, "take 7", {"n": 7}),
        (
            {"properties": {"n": {"type": "number", "maximum": 3}}, "required": ["n"]},
            "take 7.5",
            {"n": 3},
        ),
        ({"properties": {"b": {"type": "boolean"}}, "required": ["b"]}, "", {"b": True}),
        (
            {"properties": {"u": {"enum": ["c", "kelvin"]}}, "required": ["u"]},
            "Kelvin",
            {"u": "kelvin"},
        ),
        (
            {"properties": {"l": {"type": "array", "items": STRING}}, "required": ["l"]},
            "'z'",
            {"l": ["z"]},
        ),
        ({"properties": {"o": {"type": ["null", "string"]}}, "required": ["o"]}, "'z'", {"o": "z"}),
        (
            {"properties": {"o": {"anyOf": [{"type": "null"}, STRING]}}, "required": ["o"]},
            "'z'",
            {"o": "z"},
        ),
        (
            {
                "$defs": {"P": {"properties": {"q": STRING}, "required": ["q"]}},
                "properties": {"p": {"$ref": "#/$defs/P"}},
                "required": ["p"],
            },
            "'z'",
            {"p": {"q": "z"}},
        ),
        (
            {
                "properties": {"r": {"$ref": "#"}},
                "required": ["r"],
            },
            "",
            None,
        ),
    ],
)
def test_arguments_fill_what_is_required(schema: Any, asked: str, expected: Any) -> None:
    arguments = json.loads(function_arguments({"name": "t", "parameters": schema}, asked, 2))
    assert isinstance(arguments, dict), "arguments must be a JSON object"
    if expected is not None:
        assert arguments == expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["type", "properties", "required", "items", "anyOf", "enum", "$ref", "x"]
                ),
                inner,
            )
        ),
        max_leaves=20,
    )
)
def test_any_schema_gets_valid_json(schema: Any) -> None:
    json.loads(function_arguments({"name": "t", "parameters": schema}, "use 'it' 3 times", 1))


def test_rounds_take_one_quoted_value_after_the_other() -> None:
    tool = {"name": "t", "parameters": {"properties": {"k": STRING}, "required": ["k"]}}
    asked = "look up 'a', then 'b'"
    assert [json.loads(function_arguments(tool, asked, n))["k"] for n in (1, 2, 3)] == [
        "a",
        "b",
        "a",
    ]


def test_custom_tools_get_text_and_shells_in_javascript_a_script() -> None:
    assert custom_input({"name": "note"}, "note 'milk'", 1) == "milk"
    script = custom_input({"name": "exec", "description": "tools.exec_command"}, "run `ls`", 1)
    assert script == 'const r = await tools.exec_command({cmd: "ls"}); text(r.output)'
