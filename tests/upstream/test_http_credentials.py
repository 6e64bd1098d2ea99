"""A request's credentials on the wire: where they come from, what a 401 does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail

from gateway.credentials.static import KeyCredentials
from gateway.protocol.errors import ApiError
from tests.upstream.wire import HEAD, LAST_CHUNK, Connection, Heard, Wire, chunk, event, refusal

UNAUTHORIZED = refusal(401, b'{"error":{"message":"Bad key.","code":"invalid_api_key"}}')


class Scripted:
    """Credentials that a test plays; keys are ``key-1``, ``key-2``, ...

    :ivar answer: what ``refused`` returns; a True brings the next key.
    :ivar waiting: what ``headers`` returns instead of the key, once.
    """

    def __init__(self) -> None:
        self.number = 1
        self.answer: bool | Deferred[bool] = False
        self.waiting: Deferred[Mapping[str, str]] | None = None
        self.asked: list[Mapping[str, str]] = []
        self.closed = 0

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            return waiting
        return {"authorization": f"Bearer key-{self.number}"}

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        self.asked.append(used)
        if self.answer is True:
            self.number += 1
        return self.answer

    def secrets(self) -> Sequence[str]:
        return [f"key-{number}" for number in range(1, self.number + 1)]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def credentials() -> Scripted:
    return Scripted()


@pytest.fixture
def wire(credentials: Scripted) -> Wire:
    return Wire(credentials)


def authorization(connection: Connection) -> list[str]:
    """The values of the header in the last request."""
    head = connection.request.rpartition(b"POST /")[2].partition(b"\r\n\r\n")[0].decode()
    lines = [line.partition(": ") for line in head.split("\r\n")[1:]]
    return [value for name, _, value in lines if name.lower() == "authorization"]


# --- the request -------------------------------------------------------------------------


def test_the_credentials_win_over_the_headers_of_the_request(wire: Wire) -> None:
    exchange, _, connection = wire.started()
    assert authorization(connection) == ["Bearer key-1"]
    exchange.cancel()
    wire.check_rest()


def test_a_key_may_have_a_header_of_its_own() -> None:
    wire = Wire(KeyCredentials("sk-secret", "Api-Key"))
    exchange, _, connection = wire.started()
    assert b"\r\napi-key: sk-secret\r\n" in connection.request.lower()
    exchange.cancel()
    wire.check_rest()


def test_the_receiver_hears_when_the_request_goes_out_and_how_it_is_answered(wire: Wire) -> None:
    heard = Heard()
    exchange = wire.exchange(heard)
    exchange.start()
    assert heard.connected == 0, "there is no connection yet"
    connection = wire.accept()
    assert (heard.connected, heard.headers) == (1, None)
    connection.sends(HEAD.replace(b"content-type", b"X-Codex-Plan: plus\r\nContent-Type"))
    assert heard.headers is not None
    assert heard.headers["x-codex-plan"] == "plus"
    assert heard.headers["content-type"] == "text/event-stream"
    exchange.cancel()
    wire.check_rest()


def test_a_refusal_is_no_answer(wire: Wire) -> None:
    _, heard, connection = wire.started()
    connection.sends(refusal(429, b"{}"))
    assert (heard.headers, heard.error.status) == (None, 429)
    wire.check_rest()


def test_a_receiver_may_leave_when_it_sees_the_headers(wire: Wire) -> None:
    class Leaves(Heard):
        def upstream_answered(self, headers: Mapping[str, str]) -> None:
            super().upstream_answered(headers)
            exchange.cancel()

    heard = Leaves()
    exchange = wire.exchange(heard)
    exchange.start()
    connection = wire.accept()
    connection.sends(HEAD + chunk(event(b"response.created")))
    assert (heard.events, heard.endings) == ([], [])
    assert connection.dropped
    wire.check_rest()


def test_the_upstream_closes_its_credentials(wire: Wire, credentials: Scripted) -> None:
    wire.upstream.close()
    assert credentials.closed == 1


# --- waiting for a token -----------------------------------------------------------------


def test_nothing_is_sent_before_there_is_a_token(wire: Wire, credentials: Scripted) -> None:
    token = credentials.waiting = Deferred()
    heard = Heard()
    wire.exchange(heard).start()
    assert wire.attempts == 0
    token.callback({"authorization": "Bearer late"})
    connection = wire.accept()
    assert authorization(connection) == ["Bearer late"]
    connection.sends(HEAD, LAST_CHUNK)
    assert heard.endings == [None]
    wire.check_rest()


def test_without_a_token_the_exchange_ends(wire: Wire, credentials: Scripted) -> None:
    credentials.waiting = fail(ApiError.bad_gateway("Log in.", "upstream_unauthorized"))
    heard = Heard()
    wire.exchange(heard).start()
    assert (heard.error.code, wire.attempts) == ("upstream_unauthorized", 0)
    wire.check_rest()


def test_waiting_for_a_token_is_waiting_for_the_first_byte(
    wire: Wire, credentials: Scripted
) -> None:
    credentials.waiting = token = Deferred()
    heard = Heard()
    wire.exchange(heard).start()
    wire.reactor.advance(100)
    token.callback({"authorization": "Bearer late"})
    connection = wire.accept()
    wire.reactor.advance(19)
    assert heard.endings == []
    wire.reactor.advance(1.1)
    assert heard.error.code == "upstream_timeout"
    assert connection.dropped
    wire.check_rest()


def test_whoever_waits_for_a_token_can_leave(wire: Wire, credentials: Scripted) -> None:
    left: list[object] = []
    credentials.waiting = Deferred(left.append)
    heard = Heard()
    exchange = wire.exchange(heard)
    exchange.start()
    exchange.cancel()
    assert len(left) == 1, "nobody told the credentials"
    assert (wire.attempts, heard.endings) == (0, [])
    wire.check_rest()


# --- a 401 -------------------------------------------------------------------------------


def test_a_401_that_changes_the_credentials_sends_the_request_again(
    wire: Wire, credentials: Scripted
) -> None:
    credentials.answer = True
    _, heard, first = wire.started()
    first.sends(UNAUTHORIZED)
    assert credentials.asked == [{"authorization": "Bearer key-1"}]
    assert heard.endings == []
    second = first if wire.attempts == 1 else wire.accept()
    assert authorization(second) == ["Bearer key-2"]
    assert second.request.endswith(b'{"stream":true,"input":"hi"}')
    second.sends(HEAD, chunk(event(b"response.created")), LAST_CHUNK)
    assert (heard.connected, len(heard.events), heard.endings) == (2, 1, [None])
    wire.check_rest()


def test_a_second_401_is_the_answer(wire: Wire, credentials: Scripted) -> None:
    credentials.answer = True
    _, heard, first = wire.started()
    first.sends(UNAUTHORIZED)
    second = first if wire.attempts == 1 else wire.accept()
    second.sends(refusal(401, b'{"error":{"message":"Neither key-1 nor key-2."}}'))
    assert len(credentials.asked) == 1
    assert (heard.error.status, heard.error.message) == (401, "Neither … nor ….")
    wire.check_rest()


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_a_401_that_changes_nothing_is_the_answer(
    wire: Wire, credentials: Scripted, later: bool
) -> None:
    answer: Deferred[bool] = Deferred()
    credentials.answer = answer
    _, heard, connection = wire.started()
    if not later:
        answer.callback(False)
    connection.sends(UNAUTHORIZED)
    if later:
        assert heard.endings == []
        answer.callback(False)
    assert (heard.error.status, heard.error.code) == (401, "invalid_api_key")
    assert wire.attempts == 1
    wire.check_rest()


def test_a_401_may_end_in_the_credentials_own_error(wire: Wire, credentials: Scripted) -> None:
    credentials.answer = fail(ApiError.bad_gateway("Log in.", "upstream_unauthorized"))
    _, heard, connection = wire.started()
    connection.sends(UNAUTHORIZED)
    assert (heard.error.status, heard.error.code) == (502, "upstream_unauthorized")
    wire.check_rest()


def test_the_deadline_goes_on_while_the_credentials_think(
    wire: Wire, credentials: Scripted
) -> None:
    credentials.answer = Deferred()
    _, heard, connection = wire.started()
    connection.sends(b"HTTP/1.1 401 Said\r\ncontent-length: 999\r\n\r\n")
    wire.reactor.advance(121)
    assert heard.error.code == "upstream_timeout"
    assert connection.dropped
    wire.check_rest()


def test_it_can_be_cancelled_while_the_credentials_think(wire: Wire, credentials: Scripted) -> None:
    left: list[object] = []
    credentials.answer = Deferred(left.append)
    exchange, heard, connection = wire.started()
    connection.sends(b"HTTP/1.1 401 Said\r\ncontent-length: 999\r\n\r\n")
    exchange.cancel()
    assert len(left) == 1, "nobody told the credentials"
    assert connection.dropped
    assert heard.endings == []
    wire.check_rest()


def test_a_stale_connection_is_replaced_with_the_same_credentials(
    wire: Wire, credentials: Scripted
) -> None:
    exchange, _, stale = wire.started()
    credentials.number = 7
    stale.closes()
    assert authorization(wire.accept()) == ["Bearer key-1"]
    exchange.cancel()
    wire.check_rest()


def test_a_bug_in_the_credentials_ends_the_exchange(
    wire: Wire, credentials: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(credentials, "headers", broken)
    heard = Heard()
    wire.exchange(heard).start()
    assert "The gateway failed" in heard.error.message
    monkeypatch.undo()
    monkeypatch.setattr(credentials, "refused", broken)
    _, heard, connection = wire.started()
    connection.sends(UNAUTHORIZED)
    assert "The gateway failed" in heard.error.message
    wire.check_rest()
