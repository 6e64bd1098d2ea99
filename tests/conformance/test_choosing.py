"""Which accounts a turn gets while others are broken, and what is shown of them (§10.88-92)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import refusing
from tests.support.checks import completed
from tests.support.events import Json, error_body, text_item, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import Answer, HttpClient
from tests.support.upstream import Exchange, Script

pytestmark = pytest.mark.conformance

#: Rests end soon, and nobody waits for them.
HASTY = {"max_attempts": 3, "cooldown_max_seconds": 1, "queue_seconds": 0}

WRONG_KEY = refusing(401, error_body("invalid_api_key", "Incorrect API key provided."))
BROKEN = refusing(500, error_body("server_error", "boom"))
LIMITED = refusing(429, error_body("rate_limit_exceeded", "slow down"), {"retry-after": "1"})
CHAT: Json = {"model": "gpt-5.5", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def nobody() -> Iterator[str]:
    """A base URL where every connection is refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


def serving(exchange: Exchange) -> None:
    if exchange.request.target.endswith("/chat/completions"):
        exchange.json(200, {"object": "chat.completion", "choices": []})
    else:
        exchange.answer()


def shown(gateway: Gateway) -> Json:
    client = HttpClient(gateway.admin_port, None)
    status: Json = client.ask("GET", "/status").json
    client.drop()
    return status


def states(gateway: Gateway) -> dict[str, str]:
    return {each["name"]: each["state"] for each in shown(gateway)["accounts"]}


def readiness(gateway: Gateway) -> int:
    client = HttpClient(gateway.admin_port, None)
    status = client.ask("GET", "/readyz").status
    client.drop()
    return status


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def over(gateway: Gateway) -> None:
    """All rests are."""
    resting = {"cooling", "exhausted", "unauthorized"}
    until(lambda: not resting & set(states(gateway).values()), "an account still rests")


def post(gateway: Gateway, path: str, **members: Any) -> Answer:
    client = HttpClient(gateway.port, "key-laptop")
    headers = [("content-type", "application/json")]
    answer = client.ask("POST", path, json.dumps(members).encode(), headers)
    client.drop()
    return answer


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "priority"])
def test_10_88_broken_accounts_keep_no_turn_from_the_others(
    stage: Stage, nobody: str, strategy: str
) -> None:
    broken = {"a": stage.upstream(WRONG_KEY), "b": nobody, "c": stage.upstream(BROKEN)}
    whole = {name: stage.upstream(serving) for name in "de"}
    accounts = [account(name, each) for name, each in {**broken, **whole}.items()]
    gateway = stage.gateway(*accounts, routing={**HASTY, "strategy": strategy})
    for _ in range(3):
        completed(gateway.connect().turn())
        assert post(gateway, "/v1/responses", model="gpt-5.5", input="hi").status == 200
        assert post(gateway, "/v1/chat/completions", **CHAT).status == 200
        over(gateway)


def test_10_89_an_account_is_not_ready_before_it_answers_well_again(stage: Stage) -> None:
    works: list[Script] = []
    upstream = stage.upstream(lambda exchange: (works or [WRONG_KEY])[-1](exchange))
    gateway = stage.gateway(account("solo", upstream), routing=HASTY)
    assert (readiness(gateway), states(gateway)) == (200, {"solo": "ready"})
    gateway.connect().turn()
    over(gateway)
    status = shown(gateway)
    assert (readiness(gateway), states(gateway)) == (503, {"solo": "unproven"})
    assert (status["state"], status["ready"]) == ("unusable", False)
    whats = [each["what"] for each in status["alarms"]]
    assert whats[0].startswith("no account is usable: 401")
    works.append(serving)
    completed(gateway.connect().turn())
    assert (readiness(gateway), states(gateway)) == (200, {"solo": "ready"})


def test_10_90_a_conversation_is_at_home_where_it_was_answered_first(stage: Stage) -> None:
    first = stage.upstream(LIMITED)
    second = stage.upstream()
    routing = {**HASTY, "strategy": "fill-first"}
    gateway = stage.gateway(account("a", first), account("b", second), routing=routing)
    headers = [("session-id", "s-1")]
    completed(gateway.connect(headers=headers).turn())
    at_home = {each["name"]: each["pinned"] for each in shown(gateway)["accounts"]}
    assert at_home == {"a": 0, "b": 1}
    first.script = serving
    time.sleep(1.5)  # what was to be waited for
    completed(gateway.connect(headers=headers).turn())
    assert (len(first.requests), len(second.requests)) == (1, 2)


NOT_THERE = [
    (400, error_body("previous_response_not_found", "Previous response not found.")),
    (404, {"error": {"message": "Response with id '{}' not found.", "type": "x"}}),
    (422, {"detail": "no such response: {}"}),
]


@pytest.mark.parametrize(("status", "body"), NOT_THERE)
def test_10_91_an_unknown_response_is_asked_for_until_an_account_knows_it(
    stage: Stage, status: int, body: Json
) -> None:
    def keeping(name: str) -> Script:
        def answer(exchange: Exchange) -> None:
            named = exchange.request.previous_response_id
            if named in (None, f"resp_{name}"):
                exchange.answer([text_item(name)])
            else:
                exchange.json(status, json.loads(json.dumps(body).replace("{}", str(named))))

        return answer

    upstreams = {name: stage.upstream(keeping(name)) for name in "abc"}
    accounts = [account(name, each) for name, each in upstreams.items()]
    gateway = stage.gateway(*accounts, keys=[{"name": "laptop", "key": "key-laptop"}])
    for name in "cab":
        named = {"previous_response_id": f"resp_{name}"}
        final = completed(gateway.connect().turn(input=[user("go on")], **named))
        assert final["output"][0]["content"][0]["text"] == name
        answer = post(gateway, "/v1/responses", model="gpt-5.5", input="go on", **named)
        assert answer.json["output"][0]["content"][0]["text"] == name
        sent = [each.previous_response_id for each in upstreams[name].requests]
        assert sent[-2:] == [f"resp_{name}"] * 2
    before = sum(len(each.requests) for each in upstreams.values())
    lost = gateway.connect().turn(previous_response_id="resp_nobody")[-1]
    assert (lost["status"], lost["error"]["code"]) == (400, "previous_response_not_found")
    assert sum(len(each.requests) for each in upstreams.values()) == before + 3
    assert set(states(gateway).values()) == {"ready"}


def test_10_92_where_one_account_fails_another_lists_the_models(stage: Stage) -> None:
    shapes: list[Any] = [["m-1"], {"models": [{"name": "m-2"}]}, {"data": [{"id": "m-3"}]}]
    upstreams = [stage.upstream(refusing(200, each)) for each in shapes]
    broken = stage.upstream(
        lambda exchange: (
            refusing(200, {"data": [{"id": "m-0"}]})(exchange)
            if exchange.request.header("authorization") == "Bearer upstream-secret-b"
            else exchange.reply(404, b"<html>")
        )
    )
    accounts = [account(f"u{number}", each) for number, each in enumerate(upstreams)]
    gateway = stage.gateway(account("a", broken), account("b", broken), *accounts)
    client = HttpClient(gateway.port, "key-laptop")
    listed = client.ask("GET", "/v1/models").json["data"]
    client.drop()
    assert sorted(each["id"] for each in listed) == ["m-0", "m-1", "m-2", "m-3"]
