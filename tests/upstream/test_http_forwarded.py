"""Requests that are forwarded as they are, through Twisted's client, over bytes in memory."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost

from gateway.protocol.errors import ApiError
from gateway.upstream.http import ForwardedExchange
from gateway.upstream.interface import ForwardedRequest
from tests.upstream.wire import LAST_CHUNK, Connection, Wire, chunk, refusal

GET = ForwardedRequest(
    "GET", "/responses/resp_1?include=a&include=b", {"accept": "application/json"}
)
POST = ForwardedRequest(
    "POST", "/chat/completions", {"content-type": "application/json"}, b'{"a": 1}'
)
STREAM = POST._replace(headers={"accept": "text/event-stream"})

JSON_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req_1\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


class Changing:
    """Credentials that get a new key when the old one is refused, once."""

    def __init__(self) -> None:
        self.key = "old"
        self.asked = 0

    def headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def refused(self, used: Mapping[str, str]) -> bool:
        self.asked += 1
        changed, self.key = self.key == "old", "new"
        return changed

    def secrets(self) -> Sequence[str]:
        return [self.key]

    def close(self) -> None:
        """Nothing runs."""


class HeardCall:
    """A receiver that writes down."""

    def __init__(self) -> None:
        self.connected = 0
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.pieces: list[bytes] = []
        self.endings: list[ApiError | None] = []

    def upstream_connected(self) -> None:
        self.connected += 1

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.status, "answered twice"
        self.status, self.headers = status, headers

    def upstream_data(self, data: bytes) -> None:
        assert self.status, "data before the answer"
        assert not self.endings, f"data after the end: {data!r}"
        self.pieces.append(data)

    def upstream_ended(self, error: ApiError | None) -> None:
        self.endings.append(error)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def error(self) -> ApiError:
        (error,) = self.endings
        assert error is not None, "expected an error, the answer ended in order"
        return error


@pytest.fixture
def wire() -> Wire:
    return Wire()


def start(
    wire: Wire, call: ForwardedRequest = GET
) -> tuple[ForwardedExchange, HeardCall, Connection]:
    heard = HeardCall()
    sent = wire.upstream.forward(call, heard)
    sent.start()
    return sent, heard, wire.accept()


def test_a_get_goes_out_as_it_is_with_the_accounts_credentials(wire: Wire) -> None:
    call, _, connection = start(wire)
    lines = connection.request.lower().split(b"\r\n")
    assert lines[0] == b"get /v1/responses/resp_1?include=a&include=b http/1.1"
    assert b"authorization: bearer sk-secret" in lines
    assert [line for line in lines if line.startswith(b"accept-encoding")] == [
        b"accept-encoding: identity"
    ]
    call.cancel()
    wire.check_rest()


def test_a_body_goes_out_byte_for_byte(wire: Wire) -> None:
    call, heard, connection = start(wire, POST)
    assert heard.connected == 1
    head, _, body = connection.request.partition(b"\r\n\r\n")
    assert body == b'{"a": 1}'
    assert b"content-length: 8" in head.lower()
    call.cancel()
    wire.check_rest()


@given(body=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=6))
def test_an_answer_comes_back_byte_for_byte(body: bytes, cuts: list[int]) -> None:
    wire = Wire()
    _, heard, connection = start(wire)
    connection.sends(JSON_HEAD)
    assert heard.status == 200
    assert heard.headers["x-request-id"] == "req_1"
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    for begin, end in itertools.pairwise(edges):
        connection.sends(chunk(body[begin:end]))
        assert heard.body == body[:end], "expected the upstream's bytes as soon as they arrived"
    connection.sends(LAST_CHUNK)
    assert heard.body == body
    assert heard.endings == [None]
    wire.check_rest()


def test_a_deleted_thing_may_be_answered_with_nothing(wire: Wire) -> None:
    _, heard, connection = start(wire, GET._replace(method="DELETE"))
    connection.sends(b"HTTP/1.1 204 Gone\r\n\r\n")
    assert (heard.status, heard.body, heard.endings) == (204, b"", [None])
    wire.check_rest()


def test_a_refusal_is_an_answer_in_one_piece_without_the_accounts_secret(wire: Wire) -> None:
    _, heard, connection = start(wire)
    answer = refusal(400, b'{"error":{"message":"bad key sk-secret"}}')
    connection.sends(answer[:-20], answer[-20:])
    assert heard.status == 400
    assert heard.pieces == ['{"error":{"message":"bad key …"}}'.encode()]
    assert heard.endings == [None]
    wire.check_rest()


@pytest.mark.parametrize("how", ["too long", "too slow", "broken off"])
def test_what_there_is_of_a_refusal_must_do(wire: Wire, how: str) -> None:
    _, heard, connection = start(wire)
    connection.sends(b"HTTP/1.1 500 No\r\ncontent-length: 1000000\r\n\r\n", b"x" * 10)
    if how == "too long":
        connection.sends(b"x" * 100_000)
    elif how == "too slow":
        wire.reactor.advance(5.1)
    else:
        connection.closes(ConnectionLost())
    assert heard.status == 500
    assert set(heard.body) == set(b"x")
    assert len(heard.body) <= 65_536
    assert heard.endings == [None]
    assert how == "broken off" or connection.dropped
    wire.check_rest()


def test_an_answer_that_breaks_off_says_so(wire: Wire) -> None:
    _, heard, connection = start(wire)
    connection.sends(JSON_HEAD, chunk(b"[1,"))
    connection.closes(ConnectionLost())
    assert heard.body == b"[1,"
    assert heard.error.status == 502
    wire.check_rest()


def test_a_connection_that_cannot_be_had_is_a_bad_gateway(wire: Wire) -> None:
    _, heard, connection = start(wire)
    wire.reactor.advance(1.5)  # not a kept connection that had gone stale
    connection.closes(ConnectionLost())
    assert heard.error.status == 502
    assert not heard.status
    wire.check_rest()


@pytest.mark.parametrize(("call", "seconds"), [(GET, 120), (STREAM, 120), (POST, 300)])
def test_an_answer_in_one_piece_may_take_longer_to_begin(
    wire: Wire, call: ForwardedRequest, seconds: float
) -> None:
    _, heard, connection = start(wire, call)
    wire.reactor.advance(seconds - 1)
    assert not heard.endings, "expected to wait on"
    wire.reactor.advance(2)
    assert heard.error.code == "upstream_timeout"
    assert connection.dropped
    wire.check_rest()


def test_silence_within_an_answer_ends_it(wire: Wire) -> None:
    _, heard, connection = start(wire)
    connection.sends(JSON_HEAD, chunk(b"["))
    for _ in range(3):
        wire.reactor.advance(299)
        connection.sends(chunk(b" " * 65_536))
    wire.reactor.advance(299)
    assert not heard.endings, "expected much of the answer to move the deadline"
    wire.reactor.advance(2)
    assert heard.error.code == "upstream_timeout"
    assert connection.dropped
    wire.check_rest()


STREAM_HEAD = JSON_HEAD.replace(b"application/json", b"text/event-stream; charset=utf-8")


@pytest.mark.parametrize(
    ("head", "piece"),
    [(JSON_HEAD, b" "), (STREAM_HEAD, b": ping\n\n"), (STREAM_HEAD, b"data: {")],
)
def test_signs_of_life_within_an_answer_count_only_so_far(
    wire: Wire, head: bytes, piece: bytes
) -> None:
    _, heard, connection = start(wire)
    connection.sends(head)
    for _ in range(3):
        wire.reactor.advance(190)
        connection.sends(chunk(piece))
    wire.reactor.advance(29)
    assert not heard.endings, "expected a sign of life to count up to the second bound"
    wire.reactor.advance(1)
    assert heard.error.code == "upstream_timeout"
    assert connection.dropped
    wire.check_rest()


def test_events_of_a_passed_stream_move_the_deadline(wire: Wire) -> None:
    _, heard, connection = start(wire)
    connection.sends(STREAM_HEAD)
    for _ in range(9):
        wire.reactor.advance(299)
        connection.sends(chunk(b"data: {}\n\n"))
    assert not heard.endings
    connection.sends(LAST_CHUNK)
    assert heard.endings == [None]
    wire.check_rest()


def test_a_paused_call_stops_reading_and_forgives_its_silence(wire: Wire) -> None:
    call, heard, connection = start(wire)
    connection.sends(JSON_HEAD, chunk(b"["))
    call.pause()
    call.pause()
    assert connection.paused
    wire.reactor.advance(1000)
    assert not heard.endings
    call.resume()
    assert not connection.paused
    connection.sends(chunk(b"]"), LAST_CHUNK)
    assert (heard.body, heard.endings) == (b"[]", [None])
    wire.check_rest()


def test_a_call_paused_before_its_answer_reads_the_head_alone(wire: Wire) -> None:
    call, heard, connection = start(wire)
    call.pause()
    connection.sends(JSON_HEAD)
    assert heard.status == 200
    assert connection.paused
    call.resume()
    connection.sends(chunk(b"[]"), LAST_CHUNK)
    assert (heard.body, heard.endings) == (b"[]", [None])
    wire.check_rest()


@pytest.mark.parametrize("sent", [[], [JSON_HEAD], [JSON_HEAD, chunk(b"[")]])
def test_a_cancelled_call_closes_its_connection_and_is_silent(
    wire: Wire, sent: list[bytes]
) -> None:
    call, heard, connection = start(wire)
    connection.sends(*sent)
    heard_before = heard.body
    call.cancel()
    call.cancel()
    assert connection.dropped
    connection.closes()
    assert (heard.body, heard.endings) == (heard_before, [])
    wire.check_rest()


def test_a_receiver_may_cancel_as_it_hears_the_status(wire: Wire) -> None:
    call, heard, connection = start(wire)

    def cancel(status: int, headers: Mapping[str, str]) -> None:
        call.cancel()

    heard.upstream_answered = cancel  # type: ignore[method-assign]
    connection.sends(JSON_HEAD, chunk(b"["))
    assert connection.dropped
    assert (heard.body, heard.endings) == (b"", [])
    wire.check_rest()


def test_a_receiver_that_fails_ends_its_call(wire: Wire) -> None:
    _, heard, connection = start(wire)

    def fail(data: bytes) -> None:
        raise ValueError("a bug")

    heard.upstream_data = fail  # type: ignore[method-assign]
    connection.sends(JSON_HEAD, chunk(b"["))
    assert heard.error.code == "gateway_failed"
    assert connection.dropped
    wire.check_rest()


def test_a_connection_is_used_again_after_a_whole_answer(wire: Wire) -> None:
    _, heard, connection = start(wire)
    connection.sends(JSON_HEAD, chunk(b"[]"), LAST_CHUNK)
    assert heard.endings == [None]
    second = HeardCall()
    wire.upstream.forward(GET, second).start()
    connection.sends(JSON_HEAD, chunk(b"{}"), LAST_CHUNK)
    assert second.body == b"{}"
    assert wire.attempts == 1, "expected one connection for two calls"
    wire.check_rest()


def test_a_refused_key_is_changed_once() -> None:
    credentials = Changing()
    wire = Wire(credentials)
    _, heard, first = start(wire)
    first.sends(refusal(401, b"{}"))
    second = wire.accept() if wire.attempts > 1 else first
    assert b"Bearer new" in second.request
    assert not heard.status, "expected nobody to hear of the first key"
    second.sends(refusal(401, b"{}"))
    assert (heard.status, heard.endings) == (401, [None])
    assert credentials.asked == 1
    wire.check_rest()
