"""Chat completions: any account that takes them, byte for byte, usage counted."""

from __future__ import annotations

import json

import pytest

from gateway.config import KeySettings
from gateway.protocol.errors import ApiError
from tests.server.handlers import DESK, Hall

PATH = "/chat/completions"
BODY = b'{ "model": "gpt-4o",\n "messages": [{"role":"user","content":"1.0 \\u00e9"}], "n":1.0}'
USAGE = {
    "prompt_tokens": 4,
    "completion_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 1},
}
ANSWER = b'{"id":"c-1", "choices":[],"usage": ' + json.dumps(USAGE).encode() + b' ,"x":null}'


def test_a_completion_passes_byte_for_byte() -> None:
    hall = Hall()
    asked = hall.asks("POST", PATH, BODY, session_id="s-1")
    (call,) = hall.calls()
    assert (call.call.method, call.call.path, call.call.body) == ("POST", PATH, BODY)
    assert call.call.headers["content-type"] == "application/json"
    assert call.call.headers["session-id"] == "s-1"
    call.answers(ANSWER)
    assert asked.wire.body == ANSWER
    assert asked.wire.headers["x-gateway-account"] == "a"
    record = hall.world.turn_log.latest()[-1]
    assert (record.input_tokens, record.cached_tokens, record.output_tokens) == (4, 1, 2)
    hall.check_rest()


def test_a_stream_passes_as_it_comes() -> None:
    hall = Hall()
    asked = hall.asks("POST", PATH, {"model": "gpt-4o", "stream": True, "messages": []})
    (call,) = hall.calls()
    assert call.call.headers["accept"] == "text/event-stream"
    call.begins(200, {"content-type": "text/event-stream"})
    pieces = [b'data: {"choices":[]', b',"usage":null}\n\n']
    pieces += [b'data: {"choices":[],"usage":' + json.dumps(USAGE).encode() + b"}\n\n"]
    for at, piece in enumerate(pieces):
        call.sends(piece)
        assert asked.wire.body == b"".join(pieces[: at + 1])
    call.sends(b"data: [DONE]\n\n")
    call.ends()
    assert asked.wire.completed
    assert hall.world.turn_log.latest()[-1].input_tokens == 4
    hall.check_rest()


def test_a_client_that_leaves_after_the_last_chunk_was_served() -> None:
    hall = Hall()
    for last in (b'data: {"choices":[]}\n\n', b"data: [DONE]\n\n"):
        asked = hall.asks("POST", PATH, {"model": "gpt-4o", "stream": True, "messages": []})
        call = hall.calls()[-1]
        call.begins(200, {"content-type": "text/event-stream"})
        call.sends(last)
        asked.leaves()
        assert call.state == "cancelled"
    assert [record.status for record in hall.world.turn_log.latest()] == ["cancelled", "completed"]
    assert len(hall.services.pool.bindings) == 0
    hall.check_rest()


def test_an_alias_changes_the_models_name_alone() -> None:
    hall = Hall(settings={"a": {"aliases": {"gpt-4o": "azure-4o"}, "models": ("x",)}})
    hall.asks("POST", PATH, BODY)
    (call,) = hall.calls()
    assert call.call.body is not None
    assert b'"messages":[{"role":"user","content":"1.0 \\u00e9"}]' in call.call.body
    assert json.loads(call.call.body) == {**json.loads(BODY), "model": "azure-4o"}
    call.answers(ANSWER)
    hall.check_rest()


def test_an_account_that_never_stores_is_not_asked_to() -> None:
    hall = Hall(settings={"a": {"store": "never"}})
    hall.asks("POST", PATH, {"model": "m", "store": True})
    hall.asks("POST", PATH, {"model": "m", "store": False})
    assert [call.body["store"] for call in hall.calls()] == [False, False]
    for call in hall.calls():
        call.answers(ANSWER)
    hall.check_rest()


def test_only_accounts_that_take_them_are_asked() -> None:
    hall = Hall(3, settings={"a": {"chat_completions": False}, "c": {"models": ("other",)}})
    for _ in range(3):
        hall.asks("POST", PATH, BODY)
        hall.calls("b")[-1].answers(ANSWER)
    assert len(hall.calls("b")) == 3
    hall.check_rest()


def test_requests_are_spread_and_leave_no_bindings() -> None:
    hall = Hall(3)
    for _ in range(6):
        hall.asks("POST", PATH, BODY)
    assert [len(hall.calls(name)) for name in "abc"] == [2, 2, 2]
    for call in hall.world.all_calls:
        call.answers(ANSWER)
    assert len(hall.services.pool.bindings) == 0
    hall.check_rest()


def test_a_cache_key_keeps_to_its_account() -> None:
    hall = Hall(3)
    for _ in range(4):
        hall.asks("POST", PATH, {"model": "m", "prompt_cache_key": "k"})
        hall.world.all_calls[-1].answers(ANSWER)
    assert sorted(len(hall.calls(name)) for name in "abc") == [0, 0, 4]
    hall.check_rest()


@pytest.mark.parametrize("status", [401, 404, 405, 429, 500])
def test_a_refusal_moves_before_the_first_byte(status: int) -> None:
    hall = Hall(2)
    asked = hall.asks("POST", PATH, BODY)
    hall.calls("a")[0].refuses(status)
    hall.calls("b")[0].answers(ANSWER)
    assert asked.wire.body == ANSWER
    hall.check_rest()


def test_a_broken_answer_is_broken_for_the_client() -> None:
    hall = Hall(2)
    asked = hall.asks("POST", PATH, BODY)
    call = hall.calls("a")[0]
    call.begins()
    call.sends(b'{"id"')
    call.ends(ApiError.bad_gateway("reset"))
    assert asked.wire.was_cut
    assert not hall.calls("b")
    hall.check_rest()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{}", "model"),
        (b'{"model":1}', "model"),
        (b"[", None),
        (b'{"model":"m","stream":1}', None),
    ],
)
def test_what_cannot_be_read_is_answered(body: bytes, param: str | None) -> None:
    hall = Hall()
    asked = hall.asks("POST", PATH, body)
    assert asked.wire.status == 400
    assert param is None or asked.wire.error["param"] == param
    assert not hall.world.all_calls
    hall.check_rest()


def test_a_key_is_held_to_its_models_and_limits() -> None:
    keys = [KeySettings(name="laptop", key="k", models=("gpt-4*",), max_concurrent_turns=1), DESK]
    hall = Hall(keys=keys)
    first = hall.asks("POST", PATH, BODY)
    assert hall.asks("POST", PATH, {"model": "o3"}).wire.status in (400, 403, 404)
    assert len(hall.calls()) == 1
    hall.asks("POST", PATH, BODY)
    assert len(hall.calls()) == 1, "expected the second to wait for the first or be refused"
    hall.calls()[0].answers(ANSWER)
    assert first.wire.body == ANSWER
    for call in hall.calls()[1:]:
        call.answers(ANSWER)
    hall.check_rest()


def test_what_an_account_refuses_and_nobody_misses_is_left_out_and_learned() -> None:
    hall = Hall()
    body = {"model": "gpt-4o", "messages": [], "user": "u-1", "store": True, "temperature": 0.2}
    asked = hall.asks("POST", PATH, body)
    hall.calls()[0].refuses(400, None, "Unrecognized request argument supplied: user")
    hall.calls()[1].refuses(400, None, "store must be false")
    hall.calls()[2].answers(ANSWER)
    assert asked.wire.body == ANSWER
    kept = {"model": "gpt-4o", "messages": [], "temperature": 0.2, "store": False}
    assert hall.calls()[2].body == kept
    hall.asks("POST", PATH, body)
    assert hall.calls()[3].body == kept, "once learned it is not tried again"
    hall.calls()[3].answers(ANSWER)
    asked = hall.asks("POST", PATH, body)
    hall.calls()[4].refuses(400, "unsupported_value", "Unsupported value: temperature")
    assert asked.wire.status == 400
    assert hall.world.accounts["a"].failures == 0
    hall.check_rest()
