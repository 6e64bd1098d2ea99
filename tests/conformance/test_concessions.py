"""What an account refuses and nobody misses is given up, and learned (protocol.md §8.1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import refusing
from tests.support.checks import assert_error, completed
from tests.support.events import Json, error_body, reasoning_item, response_object, user
from tests.support.gateway import Gateway
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange, Script

pytestmark = pytest.mark.conformance

SEALS = "reasoning.encrypted_content"
DOORS = pytest.mark.parametrize("door", ["ws", "sse", "json"])


class Turns:
    """Turns of one client through one door, each to its good end."""

    def __init__(self, gateway: Gateway, door: str, key: str = "key-laptop") -> None:
        self.gateway = gateway
        self.door = door
        self.key = key

    def completes(self, **members: Any) -> None:
        if self.door == "ws":
            completed(self.gateway.connect().turn(**members))
            return
        client = HttpClient(self.gateway.port, self.key)
        answer = client.create(stream=self.door == "sse", **members)
        assert answer.status == 200, answer.body
        response = answer.events[-1]["response"] if self.door == "sse" else answer.json
        assert response["status"] == "completed"
        client.drop()


def unless(accepted: Any, status: int, body: Any) -> Script:
    """Refuses what ``accepted`` does not like, and answers the rest."""

    def script(exchange: Exchange) -> None:
        if accepted(exchange.request.body):
            exchange.answer()
        else:
            exchange.json(status, body)

    return script


def no_seals(body: Json) -> bool:
    return SEALS not in (body.get("include") or [])


def stores_nothing(body: Json) -> bool:
    return body.get("store") is False


def no_user(body: Json) -> bool:
    return "user" not in body


def no_bare_reasoning(body: Json) -> bool:
    return not any(item.get("type") == "reasoning" for item in body["input"])


CASES: list[Any] = [
    (
        no_seals,
        400,
        error_body(None, "Encrypted content is not supported with this model.", param="include"),
        {"store": False},
    ),
    (stores_nothing, 400, {"detail": "Store must be set to false"}, {}),
    (
        no_user,
        422,
        {"detail": [{"loc": ["body", "user"], "msg": "extra fields not permitted", "type": "x"}]},
        {"user": "u-1"},
    ),
    (
        no_bare_reasoning,
        404,
        error_body(None, "Item with id 'rs_…' not found. Items are not persisted."),
        {},
    ),
]


@DOORS
@pytest.mark.parametrize(
    ("accepted", "status", "body", "members"),
    CASES,
    ids=lambda v: getattr(v, "__name__", str(v)[:40]),
)
def test_10_85_what_is_refused_and_not_missed_is_given_up_unseen_once(
    stage: Stage, door: str, accepted: Any, status: int, body: Any, members: Json
) -> None:
    bare = accepted is no_bare_reasoning
    script = unless(accepted, status, body)
    upstreams = [stage.upstream(script), stage.upstream(script)]
    lease = stage.serve(*upstreams)
    turns = Turns(lease.gateway, door)
    for _ in range(3):
        given = [user("a"), *(reasoning_item(None) for _ in range(bare)), user("b")]
        turns.completes(**{"model": lease.model, "input": given, **members})
    seen = [[accepted(request.body) for request in each.requests] for each in upstreams]
    for each in seen:
        assert each[:1] in ([], [False])
        assert all(each[1:]), f"it is tried once at each account: {seen}"
    assert sum(map(len, seen)) == 3 + sum(1 for each in seen if each), "one trial an account"


@DOORS
@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"include": [SEALS], "store": False},
            "Encrypted content is not supported with this model.",
        ),
        ({"temperature": 0.3}, "Unsupported parameter: 'temperature'"),
        ({"max_output_tokens": 9}, "Unsupported parameter: max_output_tokens"),
    ],
)
def test_10_86_what_the_client_insists_on_is_its_refusal(
    stage: Stage, door: str, members: Json, message: str
) -> None:
    upstreams = [stage.upstream(refusing(400, error_body(None, message))) for _ in range(2)]
    lease = stage.serve(*upstreams)
    if door == "ws":
        error = assert_error(lease.connect().turn(input=[user("x")], **members)[-1], 400)
    else:
        client = HttpClient(lease.gateway.port)
        answer = client.create(model=lease.model, stream=door == "sse", **members)
        assert answer.status == 400
        error = answer.error
        client.drop()
    assert error["message"] == message
    assert sum(len(each.requests) for each in upstreams) == 1


REFUSED = "Store must be set to false"
TELLINGS: dict[str, list[Json]] = {
    "error": [{"type": "error", "code": None, "message": REFUSED, "param": None}],
    "failed": [
        {"type": "response.created", "response": response_object("resp_1")},
        {
            "type": "response.failed",
            "response": response_object(
                "resp_1", status="failed", error={"code": "invalid_prompt", "message": REFUSED}
            ),
        },
    ],
}


@DOORS
@pytest.mark.parametrize("telling", TELLINGS)
def test_a_refusal_that_comes_as_a_stream_is_one(stage: Stage, door: str, telling: str) -> None:
    """As a gateway between us and the service tells what the service refused."""

    def script(exchange: Exchange) -> None:
        if stores_nothing(exchange.request.body):
            exchange.answer()
        else:
            exchange.sse(*TELLINGS[telling])
            exchange.end()

    upstream = stage.upstream(script)
    lease = stage.serve(upstream)
    turns = Turns(lease.gateway, door)
    for _ in range(2):
        turns.completes(model=lease.model, input="hi")
    assert [request.body.get("store") for request in upstream.requests] == [None, False, False]
