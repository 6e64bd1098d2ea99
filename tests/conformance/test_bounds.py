"""What one client, or one upstream, can make the gateway do at most (protocol.md §9)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import assert_error, completed, output_text
from tests.support.gateway import account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange

pytestmark = pytest.mark.conformance

# --- requests ------------------------------------------------------------------------------

MANY = ",".join(f'"a{number}":1' for number in range(100_000))
INTRICATE = {
    "members": f'{{"type":"response.create","model":"m","input":"x",{MANY}}}',
    "the same member": '{"type":"response.create",' + '"a":1,' * 100_000 + '"model":"m"}',
    "nested lists": '{"type":"response.create","input":' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested objects": '{"type":"response.create","metadata":' + '{"a":' * 100_000 + "1"
    "" + "}" * 100_000 + "}",
}
PATHS = ["/responses", "/responses/compact", "/responses/input_tokens", "/chat/completions"]


@pytest.mark.parametrize("payload", INTRICATE.values(), ids=INTRICATE.keys())
def test_what_is_too_intricate_is_one_400_at_every_door(rig: Rig, payload: str) -> None:
    client = rig.connect()
    client.send(payload)
    assert_error(client.event(), 400)
    completed(client.turn())
    http = HttpClient(rig.gateway.port)
    for path in PATHS:
        answer = http.ask(path=f"/v1{path}", body=payload.encode())
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), path
    http.drop()
    assert len(rig.upstream.requests) == 1, "none of it went to an upstream"


# --- answers -------------------------------------------------------------------------------


Flood = Callable[[], Iterator[bytes]]


def endless_lines() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"x-a: b\r\n" * 100


def endless_line() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nx-a: "
    while True:
        yield b"b" * 1000


def endless_status() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 "
    while True:
        yield b"b" * 1000


def endless_interim() -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 10


FLOODS = [endless_lines, endless_line, endless_status, endless_interim]


@pytest.mark.parametrize("flood", FLOODS)
def test_a_head_without_end_is_dropped_and_the_turn_moves(stage: Stage, flood: Flood) -> None:
    def script(exchange: Exchange) -> None:
        for piece in flood():
            exchange.raw(piece)

    hostile, honest = stage.upstream(script), stage.upstream()
    gateway = stage.gateway(
        account("a", hostile), account("b", honest), routing={"strategy": "fill-first"}
    )
    assert output_text(gateway.connect().turn()) == "hello"
    (request,) = hostile.requests
    assert request.wait_gone(), "the connection was not dropped"
    assert len(gateway.log()) < 50_000, "each piece of it was logged"
