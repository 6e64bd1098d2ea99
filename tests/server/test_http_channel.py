"""HTTP connections: bounds, deadlines, kept connections, clients that are slow or refused."""

from __future__ import annotations

import gzip
import itertools
import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import txaio
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import LimitSettings, SessionSettings, Settings, TimeoutSettings
from gateway.protocol.errors import ApiError
from gateway.server.http_channel import IDLE_SECONDS
from gateway.server.http_request import ClientRequest, phrase_of
from tests.server.listener import Client, House
from tests.support.events import text_item, turn_events

BODY = json.dumps({"model": "gpt-5.5", "input": "hi"}).encode()

Build = Callable[..., House]


class Handler:
    """Keeps its requests; the test answers."""

    def __init__(self) -> None:
        self.requests: list[ClientRequest] = []
        self.tenants: list[str] = []
        self.gone: list[ClientRequest] = []

    def __call__(self, request: ClientRequest, tenant: str) -> None:
        self.requests.append(request)
        self.tenants.append(tenant)
        request.when_gone(lambda: self.gone.append(request))

    @property
    def last(self) -> ClientRequest:
        return self.requests[-1]


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def wired(build: Build, handler: Handler) -> House:
    return build({"/echo": {"POST": handler, "GET": handler}})


def answer_json(
    request: ClientRequest, status: int, answer: Any, headers: dict[str, str] | None = None
) -> None:
    headers = {"content-type": "application/json", **(headers or {})}
    request.answer(status, json.dumps(answer).encode(), headers)


def echo(client: Client, body: bytes = b"body", **options: Any) -> bytes:
    return client.request("POST", "/v1/echo", body, **options)


# --- what a handler gets -------------------------------------------------------------------


def test_a_handler_sees_the_request(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(
        client.request(
            "POST", "/v1/echo?a=1&b=%20&a=2", b"body", headers={"X-Two-Words": "caf\xe9"}
        )
    )
    request = handler.last
    assert (request.method, request.path, request.body) == ("POST", "/v1/echo", b"body")
    assert request.query == {"a": ["1", "2"], "b": [" "]}
    assert request.query_string == "a=1&b=%20&a=2"
    assert request.headers["x-two-words"] == "café"
    assert request.connection.startswith("http-")
    assert handler.tenants == ["laptop"]
    answer_json(request, 201, {"done": True}, {"x-more": "yes"})
    answer = client.answer()
    assert (answer.status, answer.json) == (201, {"done": True})
    assert answer.headers["x-more"] == "yes"
    assert answer.headers["content-type"] == "application/json"


def test_each_request_has_an_id_of_its_own(wired: House, handler: Handler) -> None:
    client = wired.client()
    for _ in range(2):
        client.gives(echo(client))
        answer_json(handler.last, 200, {})
    ids = {request.connection for request in handler.requests}
    assert len(ids) == 2


def test_an_answer_names_its_request_as_the_log_does(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    handler.last.refuse(ApiError.bad_gateway("No."))
    assert client.answer().headers["x-request-id"] == handler.last.connection
    client.gives(echo(client))
    answer_json(handler.last, 200, {}, {"x-request-id": "req_of_the_upstream"})
    assert client.answer().headers["x-request-id"] == "req_of_the_upstream"


def test_a_body_in_chunks_is_one_body(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(client.head("POST", "/v1/echo", {"Transfer-Encoding": "chunked"}))
    client.gives(b"3\r\nbod\r\n1\r\ny\r\n0\r\n\r\n")
    assert handler.last.body == b"body"
    answer_json(handler.last, 200, {})


def test_a_body_in_the_smallest_chunks_costs_no_more_memory(build: Build, handler: Handler) -> None:
    size = 300_000
    client = build({"/echo": {"POST": handler}}).client()
    client.gives(client.head("POST", "/v1/echo", {"Transfer-Encoding": "chunked"}))
    piece = b"1\r\nx\r\n" * 1000
    tracemalloc.start()
    try:
        for _ in range(size // 1000):
            client.gives(piece)
        client.gives(b"0\r\n\r\n")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(handler.last.body) == size
    assert peak < 10 * size, f"{peak} bytes for a body of {size}"
    answer_json(handler.last, 200, {})


def test_a_body_is_decoded(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client, gzip.compress(b"body"), headers={"Content-Encoding": "gzip"}))
    assert handler.last.body == b"body"
    answer_json(handler.last, 200, {})


def test_an_absolute_target_is_understood(wired: House, handler: Handler) -> None:
    """RFC 9112 3.2.2."""
    client = wired.client()
    client.gives(client.request("GET", "http://gateway.test/v1/echo?x=1"))
    assert (handler.last.path, handler.last.query_string) == ("/v1/echo", "x=1")
    answer_json(handler.last, 200, {})


def test_a_streamed_answer_is_in_chunks_and_ends(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    handler.last.start(200, {"content-type": "text/plain"})
    handler.last.write(b"one ")
    handler.last.write(b"two")
    handler.last.finish()
    answer = client.answer()
    assert answer.body == b"one two"
    assert not client.is_closed


@pytest.mark.parametrize("error", [ApiError(418, "tea", "No coffee."), RuntimeError("a bug")])
def test_what_a_handler_raises_is_answered(
    build: Build, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(request: ClientRequest, tenant: str) -> None:
        raise error

    reported: list[str] = []
    monkeypatch.setattr(
        "gateway.server.http_request._log.failure", lambda text, **_: reported.append(text)
    )
    client = build({"/fails": {"GET": fails}}).client()
    answer = client.asks("GET", "/v1/fails")
    if isinstance(error, ApiError):
        assert (answer.status, answer.error["type"], reported) == (418, "tea", [])
    else:
        assert (answer.status, answer.error["code"]) == (500, "gateway_failed")
        assert b"a bug" not in answer.body
        assert len(reported) == 1


def test_http_1_0_gets_its_answer_and_the_end(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client).replace(b"HTTP/1.1", b"HTTP/1.0"))
    handler.last.start(200, {})
    handler.last.write(b"whole")
    handler.last.finish()
    assert client.bytes_out.endswith(b"\r\n\r\nwhole"), "HTTP/1.0 knows no chunks"
    assert client.is_closed


# --- refusals ------------------------------------------------------------------------------


def test_unknown_paths_and_wrong_methods(house: House) -> None:
    client = house.client()
    answer = client.asks("GET", "/v2/responses")
    assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")
    assert set(answer.error) == {"type", "message", "param", "code"}
    answer = client.asks("GET", "/v1/responses")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert not client.is_closed, "nothing is wrong with the connection"


@pytest.mark.parametrize("key", [None, "sk-wrong"])
def test_a_wrong_key_is_refused_before_the_body(
    wired: House, handler: Handler, key: str | None
) -> None:
    client = wired.client(key)
    client.gives(client.head("POST", "/v1/echo", {"Content-Length": "1000000"}))
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["connection"] == "close"
    assert wired.tenants.unknown_keys.refusals == {"invalid_api_key": 1}, (
        "the operator sees it once"
    )
    assert not client.is_closed, "the rest is read for a moment, or a reset eats the answer"
    client.gives(b"x" * 1_000_000)
    assert client.is_closed
    assert client.bytes_out == b""
    assert handler.requests == []


def test_a_refused_body_that_never_ends_is_not_waited_for(wired: House) -> None:
    client = wired.client(None)
    client.gives(client.head("POST", "/v1/echo", {"Content-Length": "1000000"}))
    for _ in range(5):
        wired.reactor.advance(0.5)
        if not client.is_closed:
            client.gives(b"x")
    assert client.is_closed


def test_a_refused_request_without_a_body_keeps_the_connection(wired: House) -> None:
    client = wired.client()
    assert client.asks("PUT", "/v1/echo").status == 405
    assert not client.is_closed


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/nothing"])
def test_who_has_no_key_keeps_no_connection(wired: House, path: str) -> None:
    """Idle ones count, and would take the places of those who have."""
    client = wired.client(None)
    answer = client.asks("GET", path)
    assert (answer.status, answer.headers["connection"]) in [(401, "close"), (404, "close")]
    assert client.is_closed


def test_100_continue_only_for_who_is_welcome(wired: House, handler: Handler) -> None:
    expecting = {"Content-Length": "4", "Expect": "100-continue"}
    stranger = wired.client(None)
    stranger.gives(stranger.head("POST", "/v1/echo", expecting))
    assert stranger.answer().status == 401
    client = wired.client()
    client.gives(client.head("POST", "/v1/echo", expecting))
    assert client.answer().status == 100
    client.gives(b"body")
    assert handler.last.body == b"body"
    answer_json(handler.last, 200, {})


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_413(build: Build, handler: Handler, chunked: bool) -> None:
    house = build({"/echo": {"POST": handler}}, session=SessionSettings(max_message_bytes=2048))
    client = house.client()
    if chunked:
        client.gives(client.head("POST", "/v1/echo", {"Transfer-Encoding": "chunked"}))
        client.gives(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    else:
        client.gives(client.head("POST", "/v1/echo", {"Content-Length": "4096"}))
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    client.gives(b"0\r\n\r\n" if chunked else b"x" * 4096)
    assert client.is_closed
    assert handler.requests == []


def test_an_unknown_encoding_is_415_before_the_body(wired: House) -> None:
    client = wired.client()
    headers = {"Content-Encoding": "br", "Content-Length": "10"}
    client.gives(client.head("POST", "/v1/echo", headers))
    answer = client.answer()
    assert (answer.status, answer.headers["accept-encoding"]) == (415, "zstd, gzip")


def test_a_bomb_is_413(build: Build, handler: Handler) -> None:
    house = build({"/echo": {"POST": handler}}, session=SessionSettings(max_message_bytes=100_000))
    client = house.client()
    bomb = gzip.compress(b"x" * 10_000_000)
    client.gives(echo(client, bomb, headers={"Content-Encoding": "gzip"}))
    assert client.answer().status == 413
    assert handler.requests == []


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET /v1/echo HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET /v1/echo HTTP/1.1\r\nbad name: x\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nContent-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"POST /v1/echo HTTP/1.1\r\nContent-Length: " + b"1" * 5000 + b"\r\nx: y\r\n\r\nbody",
    ],
)
def test_what_is_no_http_gets_400_and_the_end(wired: House, handler: Handler, data: bytes) -> None:
    client = wired.client()
    client.gives(data)
    answer = client.answer()
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert client.is_closed
    assert handler.requests == []


def test_broken_chunks_end_the_connection(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(client.head("POST", "/v1/echo", {"Transfer-Encoding": "chunked"}))
    client.gives(b"nonsense\r\n")
    assert client.answer().status == 400
    assert client.is_closed
    assert handler.requests == []


@pytest.mark.parametrize("line", ["request", "header", "headers"])
def test_a_later_head_is_bounded_as_the_first_one(wired: House, line: str) -> None:
    client = wired.client()
    assert client.asks("GET", "/nothing").status == 404
    long = b"x" * 300_000
    data = {
        "request": b"GET /" + long,
        "header": b"GET / HTTP/1.1\r\nx: " + long,
        "headers": b"GET / HTTP/1.1\r\n" + b"x: yyyyyyyyyyyyyyyyyyyy\r\n" * 15_000,
    }[line]
    for start in range(0, len(data), 65536):
        if not client.is_closed:
            client.gives(data[start : start + 65536])
    assert client.answer().status == 431
    assert client.is_closed


# --- kept connections ----------------------------------------------------------------------


def test_requests_follow_each_other_on_one_connection(wired: House, handler: Handler) -> None:
    client = wired.client()
    for number in range(3):
        client.gives(echo(client, b"%d" % number))
        answer_json(handler.last, 200, number)
        assert client.answer().json == number
    assert len(wired.limiter) == 1


def test_pipelined_requests_are_served_one_after_the_other(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client, b"0") + echo(client, b"1") + echo(client, b"2"))
    for number in range(3):
        assert len(handler.requests) == number + 1, "the next one waits for its turn"
        answer_json(handler.last, 200, int(handler.last.body))
    assert [client.answer().json for _ in range(3)] == [0, 1, 2]


@given(cuts=st.lists(st.integers(0, 500), max_size=20))
def test_where_the_network_cuts_does_not_matter(cuts: list[int]) -> None:
    handler = Handler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(txaio.config, "loop", None)
        house = House({"/echo": {"POST": handler}})
    client = house.client()
    chunked = client.head("POST", "/v1/echo", {"Transfer-Encoding": "chunked"})
    data = echo(client, b"first") + chunked + b"3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n"
    data += client.request("GET", "/v1/nothing") + echo(client, b"third")
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(places):
        client.gives(data[start:end])
    for request in handler.requests:  # grows as each answer lets the next request in
        answer_json(request, 200, request.body.decode())
    answers = [client.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 404, 200]
    assert [answers[n].json for n in (0, 1, 3)] == ["first", "second", "third"]
    house.check_rest()


def test_a_client_may_ask_for_the_end(wired: House, handler: Handler) -> None:
    for wish in ("close", "keep-alive, Close"):
        client = wired.client()
        client.gives(echo(client, headers={"Connection": wish}))
        answer_json(handler.last, 200, {})
        assert client.answer().headers["connection"] == "close"
        assert client.is_closed


def test_an_idle_connection_is_closed(wired: House) -> None:
    client = wired.client()
    client.asks("GET", "/nothing")
    wired.reactor.advance(IDLE_SECONDS - 0.1)
    assert not client.is_closed
    wired.reactor.advance(0.2)
    assert client.is_closed


def test_a_request_that_takes_long_is_no_idle_connection(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    wired.reactor.advance(3600)
    assert not client.is_closed
    answer_json(handler.last, 200, {})
    assert client.answer().status == 200


# --- slow clients --------------------------------------------------------------------------


def test_a_later_head_may_not_take_for_ever(build: Build) -> None:
    house = build(timeouts=TimeoutSettings(handshake_seconds=10))
    client = house.client()
    client.asks("GET", "/nothing")
    head = client.head("GET", "/nothing")
    for byte in head[:15]:
        if not client.is_closed:
            client.gives(bytes([byte]))
        house.reactor.advance(1)
    assert client.is_closed, "a byte a second is no way to ask"


def test_a_body_that_trickles_is_408(build: Build, handler: Handler) -> None:
    house = build({"/echo": {"POST": handler}}, timeouts=TimeoutSettings(stall_seconds=60))
    client = house.client()
    client.gives(client.head("POST", "/v1/echo", {"Content-Length": "1000000"}))
    for _ in range(63):
        house.reactor.advance(1)
        client.gives(b"x")
        if client.bytes_out:
            break
    assert client.answer().status == 408
    house.reactor.advance(3)
    assert client.is_closed
    assert handler.requests == []


def test_a_large_body_on_a_slow_line_is_waited_for(build: Build, handler: Handler) -> None:
    house = build({"/echo": {"POST": handler}}, timeouts=TimeoutSettings(stall_seconds=60))
    client = house.client()
    client.gives(client.head("POST", "/v1/echo", {"Content-Length": "4000000"}))
    for _ in range(200):
        house.reactor.advance(1)
        client.gives(b"x" * 20_000)
    assert len(handler.last.body) == 4_000_000
    answer_json(handler.last, 200, {})


def test_a_client_that_reads_slowly_holds_its_producer_back(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    calls: list[str] = []
    handler.last.when_slow(lambda: calls.append("pause"), lambda: calls.append("resume"))
    handler.last.start(200, {})
    for _ in range(3):
        client.transport.producer.pauseProducing()
    client.transport.producer.resumeProducing()
    client.transport.producer.resumeProducing()
    assert calls == ["pause", "resume"], "each is told once"
    handler.last.finish()
    wired.reactor.advance(60)
    assert client.answer().status == 200


def test_a_producer_that_begins_while_the_client_is_behind_hears_of_it(
    wired: House, handler: Handler
) -> None:
    client = wired.client()
    client.asks("GET", "/nothing")
    client.transport.producer.pauseProducing()
    client.gives(echo(client))
    calls: list[str] = []
    handler.last.when_slow(lambda: calls.append("pause"), lambda: calls.append("resume"))
    assert calls == ["pause"]
    client.transport.producer.resumeProducing()
    answer_json(handler.last, 200, {})


def test_a_client_that_reads_nothing_is_dropped(build: Build, handler: Handler) -> None:
    house = build({"/echo": {"POST": handler}}, timeouts=TimeoutSettings(stall_seconds=60))
    client = house.client()
    client.gives(echo(client))
    handler.last.start(200, {})
    handler.last.write(b"x")
    client.transport.producer.pauseProducing()
    house.reactor.advance(59)
    assert not client.is_closed
    house.reactor.advance(2)
    assert client.is_closed
    client.is_lost()
    assert handler.gone == [handler.last]


def test_a_reload_changes_how_long_a_slow_client_is_waited_for(
    wired: House, handler: Handler
) -> None:
    client = wired.client()
    wired.site.reconfigure(Settings(timeouts=TimeoutSettings(stall_seconds=5)))
    client.gives(echo(client))
    client.transport.producer.pauseProducing()
    wired.reactor.advance(5.1)
    assert client.is_closed


def test_an_answer_may_end_while_its_client_is_dropped(build: Build, handler: Handler) -> None:
    house = build({"/echo": {"POST": handler}}, timeouts=TimeoutSettings(stall_seconds=60))
    client = house.client()
    client.gives(echo(client))
    handler.last.start(200, {})
    client.transport.producer.pauseProducing()
    house.reactor.advance(61)
    assert client.is_closed
    handler.last.write(b"too late")
    handler.last.finish()
    assert handler.last._wire is None


def test_a_client_that_reads_a_large_answer_slowly_may_take_its_time(
    build: Build, handler: Handler
) -> None:
    house = build({"/echo": {"POST": handler}}, timeouts=TimeoutSettings(stall_seconds=60))
    client = house.client()
    client.gives(echo(client))
    handler.last.answer(200, b"x" * 10_000_000, {})
    client.transport.producer.pauseProducing()
    house.reactor.advance(1000)
    assert not client.is_closed
    house.reactor.advance(100)
    assert client.is_closed


def test_who_reads_no_answer_is_not_read_for_ever(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    handler.last.start(200, {})
    client.transport.producer.pauseProducing()
    client.gives(b"x" * 10_000)
    assert client.transport.producerState == "producing", "its leaving must be noticed"
    client.gives(b"x" * 10_000)
    assert client.transport.producerState == "paused"
    client.transport.producer.resumeProducing()
    assert client.transport.producerState == "paused", "there is enough to do"
    handler.last.finish()
    assert client.transport.producerState == "producing"


def test_the_next_request_waits_until_the_answer_was_read(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client, b"1") + echo(client, b"2") + echo(client, b"3"))
    client.transport.producer.pauseProducing()
    handler.last.answer(200, b"x" * 1_000_000, {})
    assert len(handler.requests) == 1
    client.transport.producer.resumeProducing()
    assert [request.body for request in handler.requests] == [b"1", b"2"]
    handler.last.answer(200, b"", {})
    assert [request.body for request in handler.requests] == [b"1", b"2", b"3"]
    handler.last.answer(200, b"", {})
    assert [client.answer().status for _ in range(3)] == [200, 200, 200]


@pytest.mark.parametrize("how", ["lost", "drained", "abandoned"])
def test_an_answer_that_was_not_read_may_be_the_last(
    wired: House, handler: Handler, how: str
) -> None:
    client = wired.client()
    client.gives(echo(client, b"1") + echo(client, b"2"))
    client.transport.producer.pauseProducing()
    handler.last.answer(200, b"x" * 1_000_000, {})
    if how == "lost":
        client.is_lost()
    elif how == "drained":
        wired.limiter.drain()
        client.transport.producer.resumeProducing()
        assert client.is_closed
    else:
        wired.limiter.abandon()
        assert client.is_closed
    assert len(handler.requests) == 1
    assert handler.gone == []


# --- clients that leave --------------------------------------------------------------------


def test_the_handler_hears_when_its_client_leaves(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    client.is_lost()
    assert handler.gone == [handler.last]
    assert handler.last._wire is None
    handler.last.start(200, {})  # too late, and harmless
    handler.last.write(b"x")
    handler.last.finish()


def test_nobody_leaves_after_the_answer(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    answer_json(handler.last, 200, {})
    client.is_lost()
    assert handler.gone == []


def test_an_error_after_the_head_breaks_the_answer_off(wired: House, handler: Handler) -> None:
    client = wired.client()
    client.gives(echo(client))
    handler.last.start(200, {})
    handler.last.write(b"half")
    handler.last.refuse(ApiError.bad_gateway("It broke."))
    assert client.is_closed
    assert not client.bytes_out.endswith(b"0\r\n\r\n"), "it must not look whole"


# --- limits and the stop -------------------------------------------------------------------


def test_connections_of_both_kinds_count(build: Build, handler: Handler) -> None:
    house = build({"/echo": {"POST": handler}}, limits=LimitSettings(max_connections=1))
    first, second = house.client(), house.client()
    first.gives(echo(first))
    answer = second.asks("GET", "/nothing")
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert second.is_closed
    answer_json(handler.last, 200, "who is in stays in")
    assert first.answer().status == 200
    first.is_lost()
    assert house.client().asks("GET", "/nothing").status == 404


def test_at_the_stop_idle_connections_go_and_running_requests_finish(
    wired: House, handler: Handler
) -> None:
    idle, busy, half = wired.client(), wired.client(), wired.client()
    idle.asks("GET", "/nothing")
    half.asks("GET", "/nothing")
    half.gives(b"POST /v1")
    busy.gives(echo(busy))
    emptied: list[bool] = []
    wired.limiter.drain()
    wired.limiter.call_when_empty(lambda: emptied.append(True))
    assert (idle.is_closed, busy.is_closed, half.is_closed) == (True, False, False)
    idle.is_lost()
    half.gives(echo(half).removeprefix(b"POST /v1"))
    answer = half.answer()
    assert (answer.status, answer.error["code"]) == (503, "unavailable")
    assert half.is_closed
    half.is_lost()
    answer_json(handler.last, 200, "done")
    answer = busy.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert busy.is_closed
    assert emptied == []
    busy.is_lost()
    assert emptied == [True]


def test_a_new_client_at_the_stop_is_told_to_come_later(wired: House, handler: Handler) -> None:
    busy = wired.client()
    busy.gives(echo(busy))
    wired.limiter.drain()
    late = wired.client()
    answer = late.asks("GET", "/v1/echo")
    assert (answer.status, answer.headers["retry-after"]) == (503, "5")
    assert late.is_closed
    answer_json(handler.last, 200, {})


def test_who_was_connected_before_another_process_took_over_asks_once(
    wired: House, handler: Handler
) -> None:
    silent, done = wired.client(), wired.client()
    wired.limiter.drain(lambda: None, refuse=False)
    silent.gives(echo(silent))
    answer_json(handler.last, 200, "done")
    assert silent.answer().status == 200
    assert silent.is_closed
    assert done.asks("GET", "/nothing").status == 404
    assert done.is_closed


def test_when_time_is_up_requests_are_refused(wired: House, handler: Handler) -> None:
    waiting, streaming = wired.client(), wired.client()
    waiting.gives(echo(waiting))
    streaming.gives(echo(streaming))
    handler.last.start(200, {})
    wired.limiter.drain()
    wired.limiter.abandon()
    answer = waiting.answer()
    assert (answer.status, answer.error["code"]) == (503, "gateway_restart")
    assert waiting.is_closed
    assert streaming.is_closed
    assert not streaming.bytes_out.endswith(b"0\r\n\r\n")


def test_a_turn_by_http_outlives_the_drain(house: House) -> None:
    client = house.client()
    client.creates()
    house.limiter.drain()
    house.sent().sends(*turn_events([text_item()], "resp_1"))
    assert client.answer().json["id"] == "resp_1"
    assert client.is_closed


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "phrase"), [(429, "Too Many Requests"), (426, "Upgrade Required"), (599, "Refused")]
)
def test_every_status_has_a_phrase(status: int, phrase: str) -> None:
    assert phrase_of(status) == phrase
