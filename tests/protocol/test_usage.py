"""Token counts as upstreams write them (§4.3)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.usage import Usage, read_usage

RESPONSE = {
    "input_tokens": 100,
    "input_tokens_details": {"cached_tokens": 64},
    "output_tokens": 20,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 120,
}
CHAT = {
    "prompt_tokens": 100,
    "prompt_tokens_details": {"cached_tokens": 64, "audio_tokens": 0},
    "completion_tokens": 20,
    "total_tokens": 120,
}


@pytest.mark.parametrize("usage", [RESPONSE, CHAT])
def test_responses_and_chat_completions_count_alike(usage: Any) -> None:
    assert read_usage(usage) == Usage(input_tokens=100, cached_tokens=64, output_tokens=20)


@pytest.mark.parametrize("usage", [None, [], "100", 100, True])
def test_what_is_no_usage_is_none(usage: object) -> None:
    assert read_usage(usage) is None


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"input_tokens": None, "input_tokens_details": None},
        {"input_tokens": -1, "input_tokens_details": {"cached_tokens": -5}},
        {"input_tokens": True, "output_tokens": "many", "input_tokens_details": [1]},
        {"input_tokens": 1.5, "prompt_tokens_details": {"cached_tokens": "6.4"}},
    ],
)
def test_what_is_no_count_counts_nothing(usage: object) -> None:
    assert read_usage(usage) == Usage(0, 0, 0)


def test_a_count_may_be_written_as_a_text_or_a_fraction() -> None:
    odd = {"input_tokens": "10", "output_tokens": 5.0}
    assert read_usage({**odd, "input_tokens_details": {"cached_tokens": "4"}}) == Usage(10, 4, 5)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*RESPONSE, *CHAT, "cached_tokens"]), inner, max_size=5)
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_gives_counts_or_nothing(usage: object) -> None:
    read = read_usage(usage)
    assert (read is not None) == isinstance(usage, dict)
    assert read is None or all(type(count) is int and count >= 0 for count in read)
