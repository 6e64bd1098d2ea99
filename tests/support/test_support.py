"""The support library by itself: a test tool that lies is worse than none."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.support.events import Json, call_output, new_id, text_item, turn_events, user
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import FrameTap


def post(upstream: Upstream, **body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    connection.request("POST", "/v1/responses", json.dumps({"stream": True, **body}))
    response = connection.getresponse()
    return response.status, response.read()


def events_of(body: bytes) -> list[Json]:
    lines = body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    server = Upstream()
    yield server
    server.stop()


def test_turn_events_are_complete_and_numbered() -> None:
    events = turn_events([text_item("hello")], "resp_x")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created"
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "hello"


def test_the_upstream_answers_and_logs(upstream: Upstream) -> None:
    status, body = post(upstream, input="hello", previous_response_id="resp_9")
    assert status == 200
    assert events_of(body)[0]["response"]["previous_response_id"] == "resp_9"
    assert upstream.requests[0].previous_response_id == "resp_9"
    assert upstream.requests[0].header("host") == f"127.0.0.1:{upstream.port}"


def test_the_upstream_sees_a_peer_leave(upstream: Upstream) -> None:
    def hang(exchange: Exchange) -> None:
        exchange.start()
        exchange.hold()

    upstream.queue(hang)
    with socket.create_connection(("127.0.0.1", upstream.port)) as sock:
        sock.sendall(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
        assert sock.recv(10)
    assert upstream.wait_for(1)[0].wait_gone(5)


def test_the_upstream_can_end_in_the_middle(upstream: Upstream) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.sse({"type": "response.created"})
        exchange.close()

    upstream.queue(cut, lambda exchange: exchange.reset())
    with pytest.raises(http.client.IncompleteRead):
        post(upstream)
    with pytest.raises(ConnectionError):
        post(upstream)


def test_a_kept_connection_serves_several_requests(upstream: Upstream) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    for _ in range(2):
        connection.request("POST", "/v1/responses", json.dumps({"input": "x"}))
        assert connection.getresponse().read()
    assert upstream.connections == 1


@pytest.mark.parametrize("mode", Mode)
def test_the_strict_upstream_knows_its_own_parents_only(mode: Mode) -> None:
    strict = Strict("s", mode)
    server = strict.server
    _, body = post(server, input=[user("rounds=1")], store=False)
    first = events_of(body)[-1]["response"]
    call_id = first["output"][-1]["call_id"]
    chained = {"previous_response_id": first["id"], "input": [call_output(call_id)]}
    status, body = post(server, store=False, **chained)
    if mode is Mode.STATEFUL:
        assert status == 200
        assert events_of(body)[0]["response"]["previous_response_id"] == first["id"]
    else:
        assert status == 400
        wanted = {
            Mode.STATELESS: b"Unsupported parameter",
            Mode.FORGETFUL: b"No tool call found for function call output with call_id",
            Mode.STORED_ONLY: b"previous_response_not_found",
        }
        assert wanted[mode] in body
    replay = [user("rounds=1"), *first["output"], call_output(call_id)]
    assert post(server, input=replay, store=False)[0] == 200
    server.stop()


def test_the_strict_upstream_refuses_other_peoples_secrets_and_duplicates() -> None:
    server = Strict("s").server
    foreign = {"type": "reasoning", "id": new_id("rs"), "encrypted_content": "sealed:t:1"}
    assert b"invalid_encrypted_content" in post(server, input=[foreign])[1]
    twice = [user("a", id="msg_1"), user("a", id="msg_1")]
    assert b"Duplicate item" in post(server, input=twice)[1]
    assert b"Unsupported parameter: generate" in post(server, input=[], generate=False)[1]
    server.stop()


def test_a_silent_script_is_released(upstream: Upstream) -> None:
    release = threading.Event()
    upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    release.set()
    assert post(upstream)[0] == 200


def test_frames_are_told_apart_at_any_boundary() -> None:
    stream = b"\x81\x02{}" + b"\xc1\x7e\x01\x00" + bytes(256) + b"\x89\x00"
    for size in (1, 2, 7, 1000):
        tap = FrameTap()
        for at in range(0, len(stream), size):
            tap.feed(stream[at : at + size])
        assert [(f.opcode, f.rsv1, f.length) for f in tap.frames] == [
            (1, False, 2),
            (1, True, 256),
            (9, False, 0),
        ]
