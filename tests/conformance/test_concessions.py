"""What an account refuses and nobody misses is given up, and learned (protocol.md §8.1)."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import refusing
from tests.support.checks import assert_error, completed
from tests.support.events import Json, error_body, user
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange, Script

pytestmark = pytest.mark.conformance

SEALS = "reasoning.encrypted_content"
DOORS = pytest.mark.parametrize("door", ["ws", "sse", "json"])


def asks(lease: Any, door: str, **members: Any) -> None:
    """One turn through this door, to its good end."""
    if door == "ws":
        completed(lease.connect().turn(**members))
        return
    client = HttpClient(lease.gateway.port)
    answer = client.create(model=lease.model, stream=door == "sse", **members)
    assert answer.status == 200, answer.body
    response = answer.events[-1]["response"] if door == "sse" else answer.json
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


REASONING: Json = {"type": "reasoning", "id": "rs_elsewhere", "summary": []}

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
        error_body(None, "Item with id 'rs_elsewhere' not found. Items are not persisted."),
        {"input": [user("a"), REASONING, user("b")]},
    ),
]


@DOORS
@pytest.mark.parametrize(
    ("accepted", "status", "body", "members"), CASES, ids=lambda v: str(v)[:40]
)
def test_10_85_what_is_refused_and_not_missed_is_given_up_unseen_once(
    stage: Stage, door: str, accepted: Any, status: int, body: Any, members: Json
) -> None:
    script = unless(accepted, status, body)
    upstreams = [stage.upstream(script), stage.upstream(script)]
    lease = stage.serve(*upstreams)
    for _ in range(3):
        asks(lease, door, **{"input": [user("hi")], **members})
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
