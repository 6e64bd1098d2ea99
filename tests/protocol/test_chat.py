"""Chat completions: the model's name is changed, the usage found, everything else kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.request import read_chat
from gateway.protocol.upstream_request import build_chat_body
from gateway.protocol.usage import Usage, usage_in_tail

ANSWER = b'{"id":"c-1","usage": {"prompt_tokens":4,"completion_tokens":2} ,"x":null}'
READ = frozenset({"model", "stream", "store", "prompt_cache_key"})


@given(
    text=st.text(max_size=40),
    usage=st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99)}),
)
def test_what_a_model_says_is_never_taken_for_usage(text: str, usage: dict[str, Any]) -> None:
    said = f'"usage": {{"prompt_tokens": 1}} {text}'
    answer = json.dumps({"choices": [said], "usage": usage, "more": [said]}).encode()
    assert usage_in_tail(answer) == Usage(usage["prompt_tokens"], 0, 0)
    assert usage_in_tail(json.dumps({"choices": [said]}).encode()) is None


@given(tail=st.binary(max_size=80), cut=st.integers(0, 60))
def test_any_tail_can_be_searched(tail: bytes, cut: int) -> None:
    usage_in_tail(tail)
    usage_in_tail(b'{"usage":{"prompt_tokens":[[[' + tail)
    usage_in_tail(ANSWER[cut:])
    usage_in_tail(b'"usage":' + b'{"a":' * 20_000)


@given(
    members=st.dictionaries(
        st.text(max_size=5).filter(lambda name: name.lower() != "model"),
        st.integers() | st.text(max_size=5).filter(lambda text: text != "model"),
        max_size=5,
    )
)
def test_a_changed_body_keeps_every_other_member(members: dict[str, Any]) -> None:
    members = {
        "model": "m",
        **{
            k: v
            for k, v in members.items()
            if k not in ("model", "stream", "store", "prompt_cache_key")
        },
    }
    request = read_chat(json.dumps(members).encode())
    assert json.loads(build_chat_body(request, "other", True)) == {**members, "model": "other"}
    assert build_chat_body(request, None, True) == request.body


@pytest.mark.parametrize("second", [b'"model"', b'"mod\\u0065l"'])
def test_a_model_that_is_named_twice_is_sent_once(second: bytes) -> None:
    """The key's models were compared with the last one; some services read the first."""
    chat = read_chat(b'{"model":"forbidden",%b:"allowed"}' % second)
    assert chat.model == "allowed"
    assert build_chat_body(chat, None, True) == b'{"model":"allowed"}'
