"""What a refusal wants taken back, in the words of many services (protocol.md §8.1)."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.concessions import (
    Concession,
    ConcessionKind,
    SentRequest,
    concessions_to,
    depends_on_the_request,
    is_of_the_model,
    may_be_left_out,
    sent_references,
)
from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.protocol.items import read_input

ITEM_404 = (
    "Item with id 'rs_1' not found. Items are not persisted when `store` is set to false."
    " Try again with `store` set to true, or remove this item from your input."
)


def refusal(body: Any, status: int = 400) -> ApiError:
    """As it comes over HTTP; a string is the message of the usual shape."""
    if isinstance(body, str):
        body = {"error": {"message": body, "type": "invalid_request_error"}}
    return from_http(status, {}, json.dumps(body).encode())


def says(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, "invalid_request_error", message, code, param)


def sent(**about: Any) -> SentRequest:
    members = {name: msgspec.Raw(json.dumps(value).encode()) for name, value in MEMBERS.items()}
    return SentRequest(members, **about)


MEMBERS = {
    "model": "gpt-5.5",
    "input": "hi",
    "client_metadata": {"thread_id": "t"},
    "metadata": {"a": "b"},
    "user": "u-1",
    "stream_options": {"include_obfuscation": False},
    "prompt_cache_retention": "24h",
    "service_tier": "flex",
    "safety_identifier": "s-1",
    "temperature": 1.0,
    "top_p": 0.5,
    "tools": [{"type": "function"}],
    "text": {"format": {"type": "json_schema"}},
    "max_output_tokens": 100,
    "truncation": None,
}


def without(*names: str) -> list[Concession]:
    return [Concession(ConcessionKind.MEMBER, name) for name in names]


def fastapi(*names: str, kind: str, said: str) -> dict[str, Any]:
    return {"detail": [{"loc": ["body", name], "msg": said, "type": kind} for name in names]}


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (says("Unknown parameter: 'client_metadata'.", "client_metadata", "unknown_parameter"), 1),
        (says("Unsupported parameter: 'client_metadata'"), 1),
        (refusal({"detail": "Unsupported parameter: client_metadata"}), 1),
        (says("Unrecognized request argument supplied: client_metadata"), 1),
        (says("Unrecognized request arguments supplied: client_metadata, metadata"), 2),
        (says("Unexpected keyword argument 'client_metadata'"), 1),
        (says('json: unknown field "client_metadata"'), 1),
        (
            says(
                "Failed to deserialize the JSON body into the target type: unknown field"
                " `client_metadata`, expected one of `model`, `input`, `user` at line 1"
            ),
            1,
        ),
        (says("Argument not supported on this model: client_metadata"), 1),
        (says("property 'client_metadata' is unsupported"), 1),
        (says("Additional properties are not allowed ('client_metadata' was unexpected)"), 1),
        (says('Invalid JSON payload received. Unknown name "client_metadata": no field.'), 1),
        (says("client_metadata: Extra inputs are not permitted"), 1),
        (says("The `client_metadata` parameter is not supported."), 1),
        (says("The 'client_metadata' parameter is only allowed when 'store' is enabled."), 1),
        (refusal(fastapi("client_metadata", kind="extra_forbidden", said="Extra inputs"), 422), 1),
        (
            refusal(
                fastapi(
                    *("client_metadata", "metadata"),
                    kind="value_error.extra",
                    said="extra fields not permitted",
                ),
                422,
            ),
            2,
        ),
        (
            refusal(
                "[{'type': 'extra_forbidden', 'loc': ('body', 'client_metadata'),"
                " 'msg': 'Extra inputs are not permitted', 'input': {'thread_id': 't'}}]"
            ),
            1,
        ),
        (says("Unsupported parameter: 'client_metadata.thread_id'"), 1),
        (says("no", "client_metadata.thread_id", "unsupported_parameter"), 1),
    ],
)
def test_members_that_change_nothing_are_left_out(error: ApiError, names: int) -> None:
    assert concessions_to(error, sent()) == without(*("client_metadata", "metadata")[:names])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stream_options", "Unsupported parameter: 'stream_options.include_obfuscation'"),
        ("prompt_cache_retention", "prompt_cache_retention is not supported on this model"),
        ("service_tier", "Unsupported value: 'service_tier' does not support 'flex'"),
        ("temperature", "Unsupported parameter: 'temperature' is not supported with this model."),
        ("truncation", "Unknown parameter: 'truncation'."),
    ],
)
def test_each_has_its_reason(name: str, message: str) -> None:
    assert concessions_to(says(message, name, "unsupported_parameter"), sent()) == without(name)
    assert concessions_to(says(message), sent()) == without(name)


@pytest.mark.parametrize(
    "error",
    [
        says("Unsupported parameter: 'top_p' is not supported with this model.", "top_p"),
        says("Unsupported parameter: max_output_tokens"),
        says("Unknown parameter: 'tools[0].strict'.", "tools[0].strict", "unknown_parameter"),
        says("Unsupported parameter: 'text.format'", "text.format", "unsupported_parameter"),
        says("Unknown parameter: 'x_new'.", "x_new", "unknown_parameter"),
        says("Unknown parameter: 'safety'."),
        says("Invalid 'metadata': too many properties.", "metadata", "invalid_value"),
        says("Your user message is too long", "input"),
        says("The user has no access to metadata"),
        says("", "user"),
        ApiError(429, "x", "Unsupported parameter: user"),
        ApiError(401, "x", "Unsupported parameter: user"),
        says("Unsupported parameter: user", code="content_policy_violation"),
    ],
    ids=str,
)
def test_what_changes_the_answer_is_not_taken_back(error: ApiError) -> None:
    assert concessions_to(error, sent()) == []


@pytest.mark.parametrize(
    "error",
    [
        says("Encrypted content is not supported with this model.", "include"),
        says("Encrypted content is not supported with this model."),
        says("encrypted_content is unsupported"),
        says("Invalid value: 'reasoning.encrypted_content'.", "include[0]", "invalid_value"),
        says("Unsupported value", "include[0]", "unsupported_value"),
        refusal({"detail": "Unsupported parameter: include"}),
        says("Unknown parameter: 'include'.", "include", "unknown_parameter"),
        refusal({"detail": [{"loc": ["body", "include", 0], "msg": "Input should be 'a'"}]}, 422),
    ],
    ids=str,
)
def test_an_include_of_the_gateways_own_is_taken_back(error: ApiError) -> None:
    assert concessions_to(error, sent(added_include=True)) == [
        Concession(ConcessionKind.ENCRYPTED_REASONING)
    ]
    assert is_of_the_model(Concession(ConcessionKind.ENCRYPTED_REASONING), error)
    assert concessions_to(error, sent()) == [], "the client asked for it"


def test_a_seal_that_does_not_open_is_no_include() -> None:
    error = says("The encrypted content gAAA could not be verified.", None)
    assert concessions_to(error, sent(added_include=True)) == []
    error.code = "invalid_encrypted_content"
    assert concessions_to(error, sent(added_include=True)) == []


@pytest.mark.parametrize(
    "error",
    [
        refusal({"detail": "Store must be set to false"}),
        refusal("Store must be set to false"),
        says("'store' must be false for this organization."),
        says("The store parameter has to be false."),
        says("store=true is not supported"),
        says("Unsupported value: 'store' does not support true.", "store", "unsupported_value"),
        says("Invalid literal value, expected false", "store"),
        refusal({"detail": [{"loc": ["body", "store"], "msg": "Input should be False"}]}, 422),
        says("Storing responses is not enabled here."),
    ],
    ids=str,
)
def test_a_service_may_insist_on_storing_nothing(error: ApiError) -> None:
    assert concessions_to(error, sent(stores=True)) == [Concession(ConcessionKind.STORAGE)]
    assert concessions_to(error, sent()) == [], "it was told so already"


@pytest.mark.parametrize(
    "error",
    [
        says("Your organization must be verified to stream this model.", "stream"),
        says("stream must be false"),
        says("Streaming is not supported for this model."),
        says("This model does not support streaming."),
        says("Unsupported value: 'stream' does not support true with this model.", "stream"),
        says("Unsupported parameter: stream"),
        says("Unsupported parameter", "stream", "unsupported_parameter"),
    ],
    ids=str,
)
def test_a_service_may_not_stream(error: ApiError) -> None:
    assert concessions_to(error, sent(streams=True)) == [Concession(ConcessionKind.STREAM)]
    assert concessions_to(error, sent(streams=False)) == []
    assert concessions_to(error, sent()) == []


@pytest.mark.parametrize(
    "error",
    [
        refusal({"detail": "Stream must be set to true"}),
        says("Only streaming requests are supported."),
        says("must be true", "stream"),
        says("stream=false is not supported"),
    ],
    ids=str,
)
def test_a_service_may_do_nothing_but_stream(error: ApiError) -> None:
    assert concessions_to(error, sent(streams=False)) == [Concession(ConcessionKind.ONE_OBJECT)]
    assert concessions_to(error, sent(streams=True)) == []


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("message", [ITEM_404, "No such item: rs_1", "Item 'rs_1' does not exist"])
def test_items_that_were_not_kept_are_not_named(status: int, message: str) -> None:
    error = refusal(message, status)
    about = {"references": frozenset({"rs_1", "msg_1"}), "stores": True}
    assert concessions_to(error, sent(**about)) == [Concession(ConcessionKind.STORED_ITEMS)]
    assert concessions_to(error, sent(stores=True)) == [], "none was sent by its id"


@pytest.mark.parametrize(
    ("message", "given_up"),
    [
        (ITEM_404, [Concession(ConcessionKind.STORED_ITEMS)]),
        ("Store must be set to false", [Concession(ConcessionKind.STORAGE)]),
        ("Unsupported parameter: user", without("user")),
        ("Your prompt was flagged: rs_1 is not allowed.", []),
        ("Invalid prompt: it may violate our usage policy.", []),
    ],
)
def test_a_failed_response_says_what_it_wants_in_words_alone(
    message: str, given_up: list[Concession]
) -> None:
    """Another gateway before the service has one code for all of it (protocol.md §5.4)."""
    error = says(message, code="invalid_prompt")
    assert concessions_to(error, sent(references=frozenset({"rs_1"}), stores=True)) == given_up


def test_only_references_and_bare_reasoning_stand_by_their_ids() -> None:
    items = [
        {"type": "item_reference", "id": "msg_1"},
        {"id": "msg_2"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x"},
        {"type": "function_call", "id": "fc_1", "call_id": "c"},
        {"role": "user", "id": "msg_3", "content": "hi"},
    ]
    assert sent_references(read_input(json.dumps(items).encode())) == {"msg_1", "msg_2", "rs_1"}


def test_text_becomes_a_list_where_only_that_is_taken() -> None:
    for error in (
        refusal({"detail": "Input must be a list"}),
        says("Input should be a valid list", "input"),
        says("'input' must be an array"),
    ):
        assert concessions_to(error, sent(text_input=True)) == [
            Concession(ConcessionKind.TEXT_INPUT)
        ]
        assert concessions_to(error, sent()) == []


def test_tools_among_the_items_go_to_the_top_where_they_are_no_items() -> None:
    for error in (
        refusal({"error": "data did not match any variant of untagged enum ModelInput"}, 422),
        says("Invalid value: 'additional_tools'.", "input[0].type"),
        says("unknown input item type", "input"),
        refusal({"detail": [{"loc": ["body", "input", 0], "msg": "Input should be a str"}]}, 422),
    ):
        assert concessions_to(error, sent(tool_items=True)) == [
            Concession(ConcessionKind.TOOL_ITEMS)
        ]
        assert concessions_to(error, sent()) == []
    other = says("Invalid 'input[3].content': the image is too large.", "input[3].content")
    assert concessions_to(other, sent(tool_items=True)) == []


@pytest.mark.parametrize(
    ("message", "model"),
    [
        ("Unsupported parameter: 'temperature' is not supported with this model.", True),
        ("This model does not support streaming.", True),
        ("Unsupported parameter: user", False),
        ("unknown field `user`, expected one of `model`, `input`", False),
    ],
)
def test_some_refusals_are_the_models(message: str, model: bool) -> None:
    assert is_of_the_model(Concession(ConcessionKind.MEMBER, "user"), says(message)) is model


@pytest.mark.parametrize("words", ["store must be false", "stream must be false"])
def test_words_that_a_client_wrote_into_another_member_are_not_believed(words: str) -> None:
    error = says(
        f"Unknown parameter: 'metadata.{words}'.", f"metadata.{words}", "unknown_parameter"
    )
    assert concessions_to(error, sent(stores=True, streams=True)) == without("metadata")


@pytest.mark.parametrize(
    ("message", "depends"),
    [
        ("Encrypted content is not supported with this model.", False),
        ("Storing is not allowed with your current organization", False),
        ("Store must be set to false", False),
        ("Streaming is not supported when tools are given.", True),
        ("stream must be false with logprobs", True),
    ],
)
def test_some_refusals_depend_on_what_else_is_asked(message: str, depends: bool) -> None:
    assert depends_on_the_request(Concession(ConcessionKind.STREAM), says(message)) is depends
    assert not depends_on_the_request(Concession(ConcessionKind.MEMBER, "user"), says(message))


@pytest.mark.parametrize(
    ("name", "value", "spare"),
    [
        ("temperature", 1, True),
        ("temperature", 1.0, True),
        ("temperature", None, True),
        ("temperature", True, False),
        ("temperature", 0.2, False),
        ("parallel_tool_calls", True, True),
        ("parallel_tool_calls", 1, False),
        ("parallel_tool_calls", False, False),
        ("tool_choice", "required", False),
        ("store", False, False),
        ("include", [], True),
        ("max_output_tokens", 1, False),
        ("user", "x", True),
        ("x_new", None, False),
    ],
)
def test_a_member_may_be_spare_at_its_default(name: str, value: Any, spare: bool) -> None:
    assert may_be_left_out(name, json.dumps(value).encode()) is spare


@given(st.text(max_size=60), st.none() | st.text(max_size=10), st.none() | st.text(max_size=10))
def test_any_words_can_be_read(message: str, param: str | None, code: str | None) -> None:
    error = says(message, param, code)
    about = sent(added_include=True, stores=True, streams=True, text_input=True, tool_items=True)
    assert isinstance(concessions_to(error, about), list)


@pytest.mark.parametrize("words", ["a, ", "unknown ", "stream ", "'", "store not "])
def test_long_words_are_read_in_no_time(words: str) -> None:
    about = sent(added_include=True, stores=True, streams=True, text_input=True)
    concessions_to(says(words * 20_000), about)


@pytest.mark.parametrize("quoted", ["a" * 2000, "9" * 2000, "'a', " * 400, "a.b and " * 250])
def test_a_long_word_in_a_refusal_costs_next_to_nothing(quoted: str) -> None:
    """Services quote images in base64; each of its letters is the beginning of no name."""
    began = time.process_time()
    assert concessions_to(says(f"Bad image: {quoted}"), sent()) == []
    assert concessions_to(says(quoted), sent()) == []
    assert time.process_time() - began < 0.5
