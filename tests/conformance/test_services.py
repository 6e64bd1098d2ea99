"""What single services want otherwise (protocol.md §10.30, §10.77); a used up pool (§10.63)."""

from __future__ import annotations

import time

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import refusing
from tests.support.checks import assert_error, completed
from tests.support.events import error_body, user
from tests.support.gateway import account
from tests.support.upstream import Exchange, Script
from tests.support.websocket_upstream import WebSocketUpstream, remembering

pytestmark = pytest.mark.conformance

TOOL = {"type": "function", "name": "shell", "parameters": {"type": "object"}}
NEWER = {**TOOL, "description": "the later definition"}
OTHER = {"type": "custom", "name": "patch"}


def test_10_30_additional_tools_are_hoisted_for_engines_that_know_only_tools(
    stage: Stage,
) -> None:
    upstream = stage.upstream()
    gateway = stage.gateway(account("engine", upstream, tools="hoisted"))
    brought = {"type": "additional_tools", "id": "at_1", "tools": [NEWER, OTHER]}
    client = gateway.connect()
    completed(client.turn(model="m", input=[brought, user("x")], tools=[TOOL], store=True))
    sent = upstream.requests[0].body
    assert sent["input"] == [user("x")]
    assert sent["tools"] == [NEWER, OTHER], "of one name the last definition counts"


@pytest.mark.parametrize("resets", [[7200, 3600], [3600, 7200]])
def test_10_63_a_used_up_pool_answers_once_with_its_earliest_reset(
    stage: Stage, resets: list[int]
) -> None:
    now = int(time.time())

    def limited(seconds: int) -> Script:
        body = error_body(None, "The usage limit has been reached", kind="usage_limit_reached")
        body["error"].update(plan_type="plus", resets_at=now + seconds)
        return refusing(429, body)

    upstreams = [stage.upstream(limited(seconds)) for seconds in resets]
    gateway = stage.gateway(*(account(f"a{n}", each) for n, each in enumerate(upstreams)))
    for _ in range(2):  # the second turn finds both resting already
        client = gateway.connect()
        events = client.turn(model="m", input=[user("x")])
        assert len(events) == 1, f"the client expected one answer, got {events}"
        error = assert_error(events[0], 429)
        assert error["type"] == "usage_limit_reached"
        assert error["resets_at"] == now + 3600, "the earliest reset of all accounts"
    assert [len(each.requests) for each in upstreams] == [1, 1], "a limited account was asked again"


def test_10_77_the_chatgpt_backend_gets_what_it_takes(stage: Stage) -> None:
    def answer(exchange: Exchange) -> None:
        exchange.answer(empty_output=True)

    upstream = stage.upstream(answer)
    gateway = stage.gateway(account("chatgpt", upstream, preset="chatgpt", transport="http"))
    client = gateway.connect()
    first = completed(
        client.turn(
            model="m",
            input="hello",
            store=True,
            temperature=0.5,
            max_output_tokens=10,
            metadata={"a": "b"},
            user="someone",
        )
    )
    assert first["output"], "the items the client saw stand in for the empty output"
    second = completed(
        client.turn(model="m", input=[user("more")], previous_response_id=first["id"], store=True)
    )
    assert second["previous_response_id"] == first["id"], "what the client named"
    for request in upstream.requests:
        assert request.body["store"] is False
        assert request.body["stream"] is True
        assert "reasoning.encrypted_content" in request.body["include"]
        refused = {"temperature", "max_output_tokens", "metadata", "user", "previous_response_id"}
        assert not refused & set(request.body), "the backend refuses these"
        assert isinstance(request.body["input"], list)
    assert len(upstream.requests[1].input) == 3, "the whole transcript is replayed"


def test_10_77_it_gets_the_same_over_a_websocket(stage: Stage) -> None:
    upstream = WebSocketUpstream(remembering)
    try:
        gateway = stage.gateway(account("chatgpt", upstream, preset="chatgpt"))
        client = gateway.connect()
        members = {"temperature": 0.5, "max_output_tokens": 10, "user": "someone", "store": True}
        first = completed(client.turn(model="m", input="hello", **members))
        following = {"previous_response_id": first["id"], **members}
        completed(client.turn(model="m", input=[user("more")], **following))
        one, two = (request.body for request in upstream.requests)
        for body in (one, two):
            assert body["type"] == "response.create"
            assert body["store"] is False
            assert not {"temperature", "max_output_tokens", "user", "stream"} & set(body)
            assert isinstance(body["input"], list)
        assert two["previous_response_id"] == first["id"], "the socket continues its own response"
        assert two["input"] == [user("more")]
        beta = upstream.sockets[0].handshake.header("openai-beta")
        assert beta == "responses_websockets=2026-02-06"
    finally:
        upstream.stop()
