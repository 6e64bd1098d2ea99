"""One POST and its event stream, through treq and Twisted's client, over bytes in memory."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost, ConnectionRefusedError, TimeoutError
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from gateway.config.endpoints import base_url
from gateway.protocol.error_classification import FaultKind, attribute, may_move
from gateway.protocol.response_body import ResponseBody
from gateway.upstream import http as http_module
from tests.support.sse import ServerSentEvent
from tests.upstream.wire import (
    HEAD,
    LAST_CHUNK,
    Heard,
    Wire,
    chunk,
    event,
    refusal,
)


@pytest.fixture
def wire() -> Wire:
    return Wire()


def test_the_request_is_one_post_that_asks_for_plain_events(wire: Wire) -> None:
    exchange, _, connection = wire.started()
    head, _, body = connection.request.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"post /v1/responses http/1.1"
    assert body == b'{"stream":true,"input":"hi"}'
    assert b"content-length: 28" in lines
    assert b"authorization: bearer sk-secret" in lines
    assert [line for line in lines if line.startswith(b"accept-encoding")] == [
        b"accept-encoding: identity"
    ]
    exchange.cancel()
    wire.check_rest()


@pytest.mark.parametrize(
    ("base", "host"),
    [
        ("http://[::1]:8000/v1", b"[::1]:8000"),
        ("http://[2001:db8::17]/v1", b"[2001:db8::17]"),
        ("http://[2001:DB8::17]:80/v1", b"[2001:DB8::17]"),
        ("http://[::ffff:127.0.0.1]:9/v1", b"[::ffff:127.0.0.1]:9"),
        ("http://127.0.0.1:8000/v1", b"127.0.0.1:8000"),
        ("http://API.example./v1", b"API.example."),
        ("http://xn--bcher-kva.example:81/v1", b"xn--bcher-kva.example:81"),
    ],
)
def test_every_host_that_a_configuration_may_have_is_asked(base: str, host: bytes) -> None:
    assert base_url(base, "base_url") == base
    wire = Wire(base=base)
    exchange, _, connection = wire.started()
    head, _, _ = connection.request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/responses HTTP/1.1\r\n")
    assert [line for line in head.split(b"\r\n") if line.startswith(b"Host:")] == [b"Host: " + host]
    exchange.cancel()
    wire.check_rest()


def test_an_answer_that_is_compressed_all_the_same_is_unpacked(wire: Wire) -> None:
    _, heard, connection = wire.started()
    packed = gzip.compress(event(b"response.created"))
    connection.sends(HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n"))
    connection.sends(chunk(packed[:30]), chunk(packed[30:]), LAST_CHUNK)
    assert [name for name, _ in heard.events] == [b"response.created"]
    assert heard.headers is not None
    assert "content-encoding" not in heard.headers
    assert heard.endings == [None]
    wire.check_rest()


def test_events_arrive_as_they_come_and_the_end_is_told_once(wire: Wire) -> None:
    _, heard, connection = wire.streaming()
    long = event(b"response.output_text.delta", b'{"delta":"x"}')
    connection.sends(chunk(long[:20]), chunk(long[20:] + event(b"response.completed")))
    assert [name for name, _ in heard.events][1:] == [
        b"response.output_text.delta",
        b"response.completed",
    ]
    assert heard.endings == []
    connection.sends(LAST_CHUNK)
    assert heard.endings == [None]
    wire.check_rest()


def test_a_finished_exchange_drains_and_its_connection_serves_the_next(wire: Wire) -> None:
    exchange, heard, connection = wire.streaming()
    exchange.finish()
    connection.sends(chunk(event(b"response.after_the_end")), LAST_CHUNK)
    assert (len(heard.events), heard.endings) == (1, []), "nothing is heard after finish"
    assert not connection.dropped
    following = Heard()
    wire.exchange(following).start()
    assert wire.attempts == 1, "the kept connection was not used again"
    connection.sends(HEAD, LAST_CHUNK)
    assert following.endings == [None]
    wire.check_rest()


def test_an_answer_that_goes_on_after_its_end_loses_its_connection(wire: Wire) -> None:
    exchange, heard, connection = wire.streaming()
    exchange.finish()
    for _ in range(3):
        assert not connection.dropped
        wire.reactor.advance(0.9)
        connection.sends(chunk(b": chatter\n\n"))
    assert connection.dropped
    connection.closes()
    assert heard.endings == []
    wire.check_rest()


def test_a_paused_answer_is_read_on_when_it_is_finished(wire: Wire) -> None:
    exchange, _, connection = wire.streaming()
    exchange.pause()
    assert connection.paused
    exchange.finish()
    assert not connection.paused, "a paused connection would never be free again"
    connection.sends(LAST_CHUNK)
    wire.check_rest()


def fail_to_connect(wire: Wire, error: Exception) -> None:
    wire.reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(error))
    wire.reactor.advance(1)  # no other address is tried


# --- refusals ------------------------------------------------------------------------------


def test_a_refusal_is_read_with_its_headers(wire: Wire) -> None:
    _, heard, connection = wire.started()
    body = b'{"error":{"message":"Slow down.","type":"x","code":"rate_limit_exceeded"}}'
    connection.sends(
        refusal(429, body, b"Retry-After: 7", b"x-codex-plan: plus", b"set-cookie: a=b")
    )
    error = heard.error
    assert (error.status, error.code, error.message) == (429, "rate_limit_exceeded", "Slow down.")
    assert error.headers == {"retry-after": "7", "x-codex-plan": "plus"}
    wire.check_rest()


def test_the_accounts_key_never_shows(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(refusal(401, b'{"error":{"message":"Incorrect key: sk-secret."}}'))
    assert heard.error.message == "Incorrect key: …."
    wire.check_rest()


def test_of_a_refusal_only_so_much_is_read(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(b"HTTP/1.1 500 Said\r\ncontent-length: 99999999\r\n\r\n")
    for _ in range(4):
        connection.sends(b"x" * 16_384)
        assert heard.endings == []
    connection.sends(b"x")
    assert heard.error.status == 500
    assert connection.dropped
    connection.closes()
    wire.check_rest()


def test_a_refusal_that_breaks_off_is_still_a_refusal(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(b'HTTP/1.1 404 Said\r\ncontent-length: 999\r\n\r\n{"detail":')
    connection.closes()
    assert heard.error.status == 404
    wire.check_rest()


@pytest.mark.parametrize("kind", [b"application/json", b"text/html; charset=utf-8"])
def test_a_success_that_is_no_event_stream_is_a_bad_gateway(wire: Wire, kind: bytes) -> None:
    _, heard, connection = wire.started()
    connection.sends(refusal(200, b"{}", b"content-type: " + kind))
    assert heard.error.status == 502
    assert "neither events nor a response" in heard.error.message
    wire.check_rest()


def test_redirects_are_not_followed_with_the_accounts_key(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(refusal(302, b"", b"location: http://elsewhere.test/"))
    assert heard.error.status == 502
    assert wire.attempts == 1
    wire.check_rest()


def test_parameters_of_the_content_type_do_not_matter(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(HEAD.replace(b"stream\r\n", b"stream; charset=utf-8\r\n"), LAST_CHUNK)
    assert heard.endings == [None]


# --- deadlines -----------------------------------------------------------------------------


def test_the_connection_has_a_deadline(wire: Wire) -> None:
    heard = Heard()
    wire.exchange(heard).start()
    assert wire.reactor.tcpClients[0][3] == 10
    fail_to_connect(wire, TimeoutError())
    assert heard.error.code == "upstream_timeout"
    wire.check_rest()


def test_the_first_byte_has_a_deadline(wire: Wire) -> None:
    _, heard, connection = wire.started()
    wire.reactor.advance(119)
    assert heard.endings == []
    wire.reactor.advance(1.1)
    assert (heard.error.code, heard.error.status) == ("upstream_timeout", 502)
    assert "did not answer within 120 seconds" in heard.error.message
    assert connection.dropped
    connection.closes()
    wire.check_rest()


def test_an_answer_in_one_piece_may_take_as_long_as_a_stream_may_be_silent(wire: Wire) -> None:
    heard = Heard()
    wire.exchange(heard, "application/json").start()
    connection = wire.accept()
    wire.reactor.advance(299)
    assert heard.endings == []
    wire.reactor.advance(1.1)
    assert "did not answer within 300 seconds" in heard.error.message
    connection.closes()
    wire.check_rest()


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 300 + b"\r\n", "256 header lines"),
        (b"HTTP/1.1 200 OK\r\n" + (b"a: " + b"b" * 9000 + b"\r\n") * 8, "65536 bytes"),
        (b"HTTP/1.1 200 " + b"b" * 17_000, "a line of more than 16000 bytes"),
        (b"HTTP/1.1 102 Processing\r\n\r\n" * 40, "32 interim responses"),
        (b"HTTP/1.1 102 Processing\n\n", "65536 bytes"),
    ],
)
def test_the_head_of_an_answer_is_bounded(wire: Wire, head: bytes, what: str) -> None:
    """Also where only Twisted's parser knows that it is one: behind lines that end with LF."""
    _, heard, connection = wire.started()
    connection.sends(head)
    for _ in range(12):
        if connection.dropped:
            break
        connection.sends(b"HTTP/1.1 102 Processing\n\n" * 300)
    assert connection.dropped
    connection.closes()
    assert (heard.error.status, heard.error.code) == (502, "upstream_error")
    assert what in heard.error.message
    assert wire.attempts == 1, "the upstream had begun to answer"
    wire.check_rest()


def test_no_cookie_of_an_upstream_is_kept(wire: Wire) -> None:
    """All keys would share it."""
    _, heard, connection = wire.started()
    connection.sends(refusal(429, b"{}", b"set-cookie: a=b; Path=/"))
    assert heard.error.status == 429
    exchange = wire.exchange(Heard())
    exchange.start()
    assert connection.request.count(b"POST /v1/responses") == 2
    assert b"cookie" not in connection.request.lower()
    exchange.cancel()
    wire.check_rest()


def test_the_next_event_has_a_deadline(wire: Wire) -> None:
    _, heard, connection = wire.streaming()
    for _ in range(3):
        wire.reactor.advance(299)
        connection.sends(chunk(event(b"response.in_progress")))
    assert heard.endings == []
    wire.reactor.advance(300)
    assert "sent no event within 300 seconds" in heard.error.message
    assert connection.dropped
    connection.closes()
    wire.check_rest()


@pytest.mark.parametrize(
    "piece", [b": still there\n\n", b"d", b"\n", b"retry: 1\n\n", b"data: {"], ids=repr
)
@pytest.mark.parametrize("begun", [False, True])
def test_what_is_no_event_moves_the_deadline_only_so_far(
    wire: Wire, piece: bytes, begun: bool
) -> None:
    """Twice the time between two events is all that comments and dripped bytes get."""
    _, heard, connection = wire.started()
    connection.sends(HEAD)
    if begun:
        connection.sends(chunk(event(b"response.created")))
    for _ in range(3):
        wire.reactor.advance(190)
        connection.sends(chunk(piece))
        assert heard.endings == []
    wire.reactor.advance(29)
    assert heard.endings == [], "expected a sign of life to count up to the second bound"
    wire.reactor.advance(1)
    assert heard.error.code == "upstream_timeout"
    assert connection.dropped
    connection.closes()
    wire.check_rest()


def test_while_paused_nobody_waits_for_the_upstream(wire: Wire) -> None:
    exchange, heard, connection = wire.streaming()
    exchange.pause()
    exchange.pause()
    wire.reactor.advance(1000)
    assert heard.endings == []
    exchange.resume()
    exchange.resume()
    assert not connection.paused
    wire.reactor.advance(299)
    assert heard.endings == []
    wire.reactor.advance(1)
    assert heard.error.code == "upstream_timeout"
    wire.check_rest()


def test_an_exchange_paused_before_its_answer_reads_only_the_headers(wire: Wire) -> None:
    exchange, heard, connection = wire.started()
    exchange.pause()
    assert not connection.paused, "the headers must be read to know what to pause"
    connection.sends(HEAD)
    assert connection.paused
    exchange.resume()
    assert not connection.paused
    connection.sends(chunk(event(b"response.created")))
    assert len(heard.events) == 1
    exchange.cancel()
    wire.check_rest()


# --- broken connections --------------------------------------------------------------------


def test_a_connection_that_went_stale_is_replaced_once(wire: Wire) -> None:
    _, heard, stale = wire.started()
    stale.closes()
    assert (wire.attempts, heard.endings) == (2, [])
    fresh = wire.accept()
    assert fresh.request == stale.request
    fresh.sends(HEAD, LAST_CHUNK)
    assert heard.endings == [None]
    wire.check_rest()


def test_a_second_stale_connection_is_a_failure(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.closes()
    wire.accept().closes(ConnectionLost())
    assert wire.attempts == 2
    assert heard.error.status == 502
    wire.check_rest()


def test_after_the_first_byte_nothing_is_sent_again(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(b"HTTP/1.1 2")
    connection.closes()
    assert wire.attempts == 1
    assert "closed the connection" in heard.error.message
    wire.check_rest()


def test_a_stream_that_breaks_off_is_a_failure(wire: Wire) -> None:
    _, heard, connection = wire.streaming()
    connection.closes(ConnectionLost())
    assert "closed the connection before it had finished" in heard.error.message
    wire.check_rest()


def test_a_refused_connection_is_a_failure(wire: Wire) -> None:
    heard = Heard()
    wire.exchange(heard).start()
    fail_to_connect(wire, ConnectionRefusedError())
    assert "refused the connection" in heard.error.message
    wire.check_rest()


def test_a_base_url_that_is_not_known_yet_is_a_failure(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A simulator's port is known once it listens."""
    monkeypatch.setattr(wire.upstream, "base_url", {}.popitem)
    heard = Heard()
    wire.exchange(heard).start()
    assert heard.error.status == 502
    wire.check_rest()


def test_an_event_beyond_all_bounds_is_a_failure(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_module, "ResponseBody", lambda: ResponseBody(1000))
    _, heard, connection = wire.streaming()
    connection.sends(chunk(b"data: " + b"x" * 1000))
    assert heard.error.status == 502
    assert "an event of more than 1000 bytes" in heard.error.message
    assert connection.dropped
    wire.check_rest()


@pytest.mark.parametrize(
    "body",
    [
        event(b"response.completed", b"{}").rstrip(),
        event(b"error", b'{"error":{"message":"No."}}').rstrip(),
        b'{"error":{"message":"No."}}',
        b'{"object":"response","id":"resp_1","output":[]}',
        b"Internal error",
    ],
)
@pytest.mark.parametrize("cancels", [False, True])
def test_an_answer_that_only_its_end_completes_keeps_its_connection(
    wire: Wire, body: bytes, cancels: bool
) -> None:
    exchange, heard, connection = wire.started()
    if cancels:
        heard.upstream_events = lambda _: exchange.cancel()  # type: ignore[method-assign]
    connection.sends(refusal(200, body))
    assert not connection.dropped
    following = Heard()
    wire.exchange(following).start()
    assert wire.attempts == 1, "the kept connection was not used again"
    connection.sends(HEAD, LAST_CHUNK)
    assert following.endings == [None]
    wire.check_rest()


def test_a_stream_that_was_cut_has_no_last_event(wire: Wire) -> None:
    _, heard, connection = wire.streaming()
    connection.sends(chunk(event(b"response.completed").rstrip()))
    connection.closes()
    assert len(heard.events) == 1
    assert heard.error.status == 502
    wire.check_rest()


class BreaksAtTheHead(Heard):
    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        raise RuntimeError("a bug")


class BreaksAtTheEvents(Heard):
    def upstream_events(self, events: list[ServerSentEvent]) -> None:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("heard", [BreaksAtTheHead(), BreaksAtTheEvents()], ids=["head", "events"])
def test_a_bug_of_ours_ends_the_turn_is_logged_and_blames_nobody(wire: Wire, heard: Heard) -> None:
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        wire.exchange(heard).start()
        connection = wire.accept()
        connection.sends(HEAD + chunk(b'data: {"type":"response.created"}\n\n'))
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert (heard.error.status, heard.error.code) == (500, "gateway_failed")
    assert attribute(heard.error, 0.0).kind is FaultKind.REQUEST
    assert not may_move(heard.error)
    assert any("log_failure" in each for each in logged)
    assert connection.dropped
    wire.check_rest()


# --- cancelling ----------------------------------------------------------------------------


def test_it_can_be_cancelled_before_it_is_connected(wire: Wire) -> None:
    heard = Heard()
    exchange = wire.exchange(heard)
    exchange.start()
    exchange.cancel()
    exchange.cancel()
    wire.reactor.advance(1000)
    assert heard.endings == []
    wire.check_rest()


def test_a_receiver_may_cancel_as_the_request_goes_out(wire: Wire) -> None:
    class Leaves(Heard):
        def upstream_connected(self) -> None:
            super().upstream_connected()
            exchange.cancel()

    _, first, connection = wire.streaming()
    connection.sends(LAST_CHUNK)
    assert first.endings == [None]
    heard = Leaves()
    exchange = wire.exchange(heard)
    exchange.start()
    assert (heard.connected, wire.attempts) == (1, 1)
    assert connection.dropped
    connection.closes()
    assert (heard.headers, heard.endings) == (None, [])
    wire.check_rest()


def test_it_can_be_cancelled_before_it_is_answered(wire: Wire) -> None:
    exchange, heard, connection = wire.started()
    exchange.cancel()
    assert connection.dropped, "the upstream must see at once that nobody waits"
    connection.closes()
    assert (wire.attempts, heard.endings) == (1, []), "a cancelled request was sent again"
    wire.check_rest()


def test_it_can_be_cancelled_within_its_answer(wire: Wire) -> None:
    exchange, heard, connection = wire.streaming()
    exchange.cancel()
    assert connection.dropped
    connection.sends(chunk(event(b"response.late")))
    connection.closes()
    assert (len(heard.events), heard.endings) == (1, [])
    wire.check_rest()


def test_a_paused_answer_can_be_cancelled(wire: Wire) -> None:
    exchange, heard, connection = wire.streaming()
    exchange.pause()
    exchange.cancel()
    assert connection.dropped
    connection.closes()
    exchange.resume()
    assert heard.endings == []
    wire.check_rest()


@pytest.mark.parametrize("how", ["cancel", "finish", "pause", "resume"])
def test_after_the_end_nothing_happens(wire: Wire, how: str) -> None:
    exchange, heard, connection = wire.streaming()
    connection.sends(LAST_CHUNK)
    getattr(exchange, how)()
    wire.reactor.advance(10)
    assert heard.endings == [None]
    assert not connection.dropped, "the connection belongs to the pool again"
    wire.check_rest()


def test_a_receiver_may_cancel_from_within_an_event(wire: Wire) -> None:
    class Leaves(Heard):
        def upstream_events(self, events: list[Any]) -> None:
            super().upstream_events(events)
            exchange.cancel()

    heard = Leaves()
    exchange = wire.exchange(heard)
    exchange.start()
    connection = wire.accept()
    connection.sends(HEAD + chunk(event(b"response.created")) + LAST_CHUNK)
    assert (len(heard.events), heard.endings) == (1, [])
    wire.check_rest()
