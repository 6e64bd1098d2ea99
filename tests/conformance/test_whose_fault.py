"""Whose fault an upstream's refusal is, from outside: protocol.md §5.1-§5.2, design law 13."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import refusing
from tests.support.checks import assert_error, completed, output_text, types
from tests.support.events import Json, error_body
from tests.support.upstream import Exchange, Script

pytestmark = pytest.mark.conformance

PAGE = b"<!DOCTYPE html><title>Just a moment...</title>"
BAD = "bad"


def bare(exchange: Exchange) -> None:
    exchange.sse(*exchange.turn()[:2], {"type": "error", "code": 400, "message": "Too long."})
    exchange.end()


THEIRS: list[Any] = [
    pytest.param(refusing(404, error_body(None, "Prompt with id 'pmpt_1' not found.")), id="404"),
    pytest.param(refusing(403, error_body(None, "No access to file file-1.")), id="403"),
    pytest.param(refusing(409, error_body(None, "The conversation is locked.")), id="409"),
    pytest.param(refusing(500, {"error": {"message": "No.", "code": 400}}), id="500"),
    pytest.param(refusing(502, {"detail": "The maximum context is 9 tokens."}), id="502"),
    pytest.param(refusing(200, {"error": {"message": "No.", "code": "400"}}), id="200"),
    pytest.param(bare, id="in the stream"),
]


def turns_of(script: Script) -> Script:
    """Answers well, but for turns that say that they are bad."""

    def answer(exchange: Exchange) -> None:
        if BAD in str(exchange.request.body.get("input")):
            script(exchange)
        else:
            exchange.answer()

    return answer


@pytest.mark.parametrize("script", THEIRS)
def test_what_one_client_does_wrong_takes_nothing_from_others(stage: Stage, script: Script) -> None:
    upstreams = [stage.upstream(turns_of(script)) for _ in range(2)]
    gateway = stage.serve(*upstreams)
    for number in range(4):
        before = sum(len(each.requests) for each in upstreams)
        events = gateway.connect().turn(input=f"{BAD} {number}")
        assert types(events) == ["error"]
        assert 400 <= events[0]["status"] < 500
        assert sum(len(each.requests) for each in upstreams) == before + 1
    for _ in range(4):
        completed(gateway.connect().turn(input="well"))
    assert all(len(each.requests) > 2 for each in upstreams), "both get new conversations"


def test_a_request_that_every_account_breaks_on_takes_nobody_down(stage: Stage) -> None:
    upstreams = [stage.upstream(turns_of(refusing(500, {"error": "boom"}))) for _ in range(2)]
    gateway = stage.serve(*upstreams)
    for _ in range(5):
        assert_error(gateway.connect().turn(input=BAD)[-1], 500)
    assert all(len(each.requests) == 5 for each in upstreams), "nobody rests"
    completed(gateway.connect().turn(input="well"))


@pytest.mark.parametrize("status", [403, 404, 503, 520])
@pytest.mark.parametrize("chained", [False, True])
def test_a_page_moves_the_turn_and_refuses_nothing(
    stage: Stage, status: int, chained: bool
) -> None:
    page = refusing(status, PAGE, {"content-type": "text/html"})
    down: list[Any] = []

    def answer(exchange: Exchange) -> None:
        if exchange.upstream in down:
            page(exchange)
        else:
            exchange.answer()

    upstreams = [stage.upstream(answer) for _ in range(2)]
    client = stage.serve(*upstreams).connect()
    about: Json = {}
    if chained:
        about = {"previous_response_id": completed(client.turn(input="one"))["id"]}
        down += [each for each in upstreams if each.requests]
    else:
        down[:] = upstreams[:1]
    asked = [len(each.requests) for each in upstreams]
    assert output_text(client.turn(input="two", **about)) == "hello"
    more = [len(each.requests) - n for each, n in zip(upstreams, asked, strict=True)]
    assert sorted(more) in ([0, 1], [1, 1]), f"each is asked once at most, not {more}"
    down[:] = upstreams
    error = assert_error(client.turn(input="three", **about)[-1], (502, 503, 520))
    assert error["code"] == "upstream_not_the_api"
