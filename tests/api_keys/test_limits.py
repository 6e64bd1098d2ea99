"""What a key may use: nothing that its clients leave out, or leave early, is free."""

from __future__ import annotations

import pytest

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.limits import LimitReached
from gateway.config import KeySettings
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage
from tests.server.handlers import DESK, Hall
from tests.server.session_stage import Stage
from tests.support.events import text_item, turn_events

DELTA = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"delta":{"content":"x"}}]}\n\n'
)


def stage_of(key: KeySettings) -> tuple[Stage, KeyRing]:
    """A connection of a key."""
    stage = Stage()
    tenants = KeyRing((key, DESK), stage.world.clock.seconds)
    object.__setattr__(stage.world.services, "limits", tenants)
    return stage, tenants


def tokens(tenants: KeyRing) -> int:
    used = tenants.snapshot()[0]["tokens"]
    assert isinstance(used, int)
    return used


def test_a_prewarm_is_a_request() -> None:
    stage, tenants = stage_of(KeySettings(name="laptop", key="k", requests_per_minute=2))
    for _ in range(2):
        stage.create(generate=False)
        assert stage.channel.last["type"] == "response.completed"
    stage.create(generate=False)
    assert stage.channel.last["error"]["code"] == "rate_limit_exceeded"
    assert stage.world.conversations.figures().responses == 2, "the flood costs no memory"
    assert tenants.snapshot()[0]["turns_running"] == 0
    assert tenants.snapshot()[0]["refusals"] == {"requests_per_minute": 1}


def test_who_is_at_a_limit_is_shown_until_when() -> None:
    stage, tenants = stage_of(KeySettings(name="laptop", key="k", requests_per_minute=2))
    shown = []
    for _ in range(3):
        shown.append(tenants.snapshot()[0]["limits"]["requests_per_minute"])
        stage.create(generate=False)
    assert [each["free_at"] for each in shown[:2]] == [None, None]
    free_at = shown[2]["free_at"]
    assert 0 < free_at - stage.world.clock.seconds() <= 61
    stage.world.clock.advance(free_at - stage.world.clock.seconds() + 0.001)
    assert tenants.snapshot()[0]["limits"]["requests_per_minute"]["free_at"] is None


def test_a_prewarm_has_a_model_that_the_key_may_use() -> None:
    stage, _ = stage_of(KeySettings(name="laptop", key="k", models=("gpt-4*",)))
    stage.create(generate=False)
    assert stage.channel.last["error"]["code"] == "model_not_found"


def test_a_key_with_models_of_its_own_must_name_one() -> None:
    """Prompts of the platform bring a model along, which may be any."""
    tenants = KeyRing((KeySettings(name="laptop", key="k", models=("gpt-4*",)), DESK), lambda: 0.0)
    with pytest.raises(ApiError, match="must name its model"):
        tenants.acquire("laptop", None)
    assert not isinstance(tenants.acquire("desk", None), LimitReached)


@pytest.mark.parametrize("how", ["response.interrupt", "close"])
def test_who_leaves_before_the_usage_is_told_has_used_something(how: str) -> None:
    stage, tenants = stage_of(KeySettings(name="laptop", key="k", tokens_per_minute=10_000))
    stage.create("word " * 800)
    stage.sent().sends(*turn_events([text_item("x" * 5000)], "resp_1")[:-1])
    if how == "close":
        stage.session.closed()
    else:
        stage.says(type=how)
    assert 1000 < tokens(tenants) < 2000


def test_what_was_never_taken_up_used_nothing() -> None:
    stage, tenants = stage_of(KeySettings(name="laptop", key="k"))
    stage.create("word " * 800)
    stage.session.closed()
    assert tokens(tenants) == 0


def test_an_answer_that_says_what_it_took_is_counted_as_it_says() -> None:
    stage, tenants = stage_of(KeySettings(name="laptop", key="k"))
    stage.create("word " * 800)
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    stage.answer("resp_1", usage=usage)
    assert tokens(tenants) == 7


def test_a_chat_stream_without_usage_is_not_free() -> None:
    """Services tell it only to who asks with ``stream_options``."""
    hall = Hall(keys=(KeySettings(name="laptop", key="k"), DESK))
    hall.asks("POST", "/chat/completions", {"model": "gpt-4o", "stream": True, "messages": []})
    (call,) = hall.calls()
    call.begins(200, {"content-type": "text/event-stream"})
    for _ in range(100):
        call.sends(DELTA)
    call.sends(b"data: [DONE]\n\n")
    call.ends()
    assert 30 < tokens(hall.tenants) < 100
    hall.check_rest()


def test_a_response_that_runs_already_is_counted_also_beyond_a_limit() -> None:
    """A service lets it follow a steered one by itself: it cannot be refused any more."""
    key = KeySettings(name="laptop", key="k", requests_per_minute=1, tokens_per_minute=1000)
    tenants = KeyRing((key, DESK), lambda: 1_800_000_000.0)
    first = tenants.follow("laptop", "gpt-5.5")
    assert isinstance(tenants.acquire("laptop", "gpt-5.5"), LimitReached)
    second = tenants.follow("laptop", "gpt-5.5")
    for lease in (first, second):
        lease.used(Usage(10, 0, 5))
        lease.release()
        lease.release()
    assert tokens(tenants) == 30
    assert tenants.snapshot()[0]["turns_running"] == 0
