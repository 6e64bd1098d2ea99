"""Compactions and token counts: bodies per account, and what is read of the answers."""

from __future__ import annotations

import json

import pytest

from gateway.protocol.request import TurnRequest, read_members, read_post
from gateway.protocol.response_body import read_compaction
from gateway.protocol.upstream_request import PLAIN, Dialect, build_input_body
from gateway.protocol.usage import Usage


def request(body: bytes) -> TurnRequest:
    return read_post(read_members(body), len(body))


def test_members_keep_the_clients_bytes() -> None:
    body = b'{"model":"m","input":[ {"role":"user","content":"\\u00e9"} ],"n": 1.0}'
    built = build_input_body(request(body), None, None, PLAIN)
    assert json.loads(built) == json.loads(body)
    assert b'[ {"role":"user","content":"\\u00e9"} ]' in built
    assert b'"n":1.0' in built


def test_the_clients_previous_response_never_goes_along_by_itself() -> None:
    body = b'{"model":"m","previous_response_id":"resp_1"}'
    assert json.loads(build_input_body(request(body), None, None, PLAIN)) == {"model": "m"}
    chained = json.loads(build_input_body(request(body), None, "resp_1", PLAIN))
    assert chained == {"model": "m", "previous_response_id": "resp_1"}
    sent_along = json.loads(build_input_body(request(body), [b"1", b"2"], None, PLAIN))
    assert sent_along == {"model": "m", "input": [1, 2]}


def test_an_account_gets_its_own_words() -> None:
    dialect = Dialect("own", frozenset({"truncation"}), cache_key="k")
    body = b'{"model":"m","truncation":"auto","input":"hi"}'
    built = json.loads(build_input_body(request(body), None, None, dialect))
    assert built == {"model": "own", "input": "hi", "prompt_cache_key": "k"}
    body = b'{"model":"m","prompt_cache_key":"mine"}'
    assert (
        json.loads(build_input_body(request(body), None, None, dialect))["prompt_cache_key"]
        == "mine"
    )


def test_a_compaction_is_read_without_touching_its_items() -> None:
    raw = b'{"output":[ {"type":"compaction" ,"encrypted_content":"x"}],"usage":{"input_tokens":1}}'
    compacted = read_compaction(raw)
    assert compacted.items == (b'{"type":"compaction" ,"encrypted_content":"x"}',)
    assert compacted.usage == Usage(1, 0, 0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"output":5}', b'{"usage":5}', b"\xff"])
def test_an_answer_of_another_shape_holds_nothing(body: bytes) -> None:
    assert read_compaction(body) == ((), None)
