"""Lists of models, in whichever shape a service gives them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.model_lists import read_model_list

NAMES = st.one_of(st.none(), st.integers(), st.text(max_size=5))
ENTRIES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.dictionaries(st.sampled_from(["id", "slug", "name", "object"]), NAMES, max_size=4),
)
LISTS = st.none() | st.lists(ENTRIES, max_size=4)


@given(st.one_of(st.lists(ENTRIES), st.fixed_dictionaries({}, optional={"data": LISTS})))
def test_whatever_a_list_holds_each_named_entry_is_found(body: Any) -> None:
    given_list = body if isinstance(body, list) else body.get("data")
    written = json.dumps(body).encode()
    if given_list is None:
        with pytest.raises(ValueError, match="no list"):
            read_model_list(written)
        return
    found = read_model_list(written)
    assert all(isinstance(name, str) and name for name in found)
    names = {each for each in given_list if isinstance(each, str) and each}
    assert names <= set(found)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"5", b"null", b'"m"', b"{}", b'{"data": {"id": "m"}}', b'{"data": 1}']
)
def test_what_is_no_list_says_so(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^it (cannot be read|has no list)"):
        read_model_list(body)


def test_an_entry_is_kept_as_it_was_written_in_each_shape() -> None:
    body = b'{"data": [{"id":"m",  "x":1}], "models": [{"slug":"m","y":2}, {"slug":"m","z":3}]}'
    (model,) = read_model_list(body).values()
    assert model.platform is not None
    assert model.codex is not None
    assert (bytes(model.platform), bytes(model.codex)) == (
        b'{"id":"m",  "x":1}',
        b'{"slug":"m","y":2}',
    )
