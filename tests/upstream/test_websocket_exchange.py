"""One turn over a WebSocket: every state, every end, in any order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure

from gateway.protocol.errors import SOCKET_LOST, SOCKET_UNSUITED, ApiError
from gateway.upstream.http import TurnExchange
from gateway.upstream.websocket_counts import SocketEnd
from gateway.upstream.websocket_exchange import (
    TRANSITIONS,
    WebSocketExchangeState,
)
from tests.upstream.websocket_account import (
    AT_ITS_END,
    COMPLETED,
    CREATED,
    DELTA,
    FIRST_BYTE,
    IDLE,
    RATE_LIMITS,
    Listener,
    SlowCredentials,
    SocketAccount,
)
from tests.upstream.websocket_wire import PING, PONG, closing, frame, messages
from tests.upstream.wire import HEAD, LAST_CHUNK, chunk, event

State = WebSocketExchangeState


pytestmark = pytest.mark.usefixtures("logged")


@pytest.fixture
def account() -> SocketAccount:
    return SocketAccount()


# --- a turn in order -----------------------------------------------------------------------


def test_a_turn_opens_a_socket_and_the_next_uses_it(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()
    assert account.urls == ["http://upstream.test/v1/responses"]
    assert peer.headers["authorization"] == "Bearer sk-secret"
    assert heard.headers is not None
    assert heard.headers["x-codex-plan-type"] == "plus"
    assert exchange.transport_name == "websocket"
    peer.says(DELTA, COMPLETED)
    assert heard.endings == [None], "a receiver that does not finish it is told"
    assert account.pool.opened_now == 0, "and the socket is not used again"
    account.check_rest()


def test_a_finished_turn_leaves_its_socket_to_the_conversation(account: SocketAccount) -> None:
    first, peer = account.served()
    assert first.holder is not None
    assert account.upstream.holds(first.holder)
    heard = Listener()
    second = account.prepared(heard, account.turn(holder=first.holder, previous_response_id="r"))
    second.start()
    (message,) = messages(peer.frames())
    assert json.loads(message)["previous_response_id"] == "r"
    assert not account.upstream.holds(first.holder), "it is not the latest one there any more"
    peer.says(CREATED)
    assert heard.headers == {}, "what the handshake said of quotas was true then only"
    second.cancel()
    assert peer.aborted, "an answer may still come on it"
    account.check_rest()


def test_a_stored_response_is_held_by_no_socket(account: SocketAccount) -> None:
    exchange, _ = account.served(account.turn(store=True))
    assert exchange.holder is None
    (socket,) = account.pool.sockets()
    assert not socket.holds_latest
    account.check_rest()


def test_the_request_is_kept_until_it_is_answered(account: SocketAccount) -> None:
    exchange, _, peer = account.sent()
    assert exchange.request is not None
    assert exchange.request.body
    assert exchange.request_bytes == len(exchange.request.body)
    size = exchange.request_bytes
    peer.says(CREATED)
    assert exchange.request is None
    assert exchange.request_bytes == size
    exchange.cancel()
    account.check_rest()


def test_what_comes_between_two_turns_is_dropped(account: SocketAccount) -> None:
    _, peer = account.served()
    peer.says(RATE_LIMITS, b'{"type":"responsesapi.websocket_timing"}')
    peer.says(b'{"type":"response.metadata"}')
    assert account.pool.figures().idle == 1
    peer.says(CREATED)
    assert account.pool.figures().idle == 0
    assert peer.closed
    account.check_rest()


def test_what_comes_with_the_end_of_a_turn_is_looked_at(account: SocketAccount) -> None:
    for rest, kept in ((RATE_LIMITS, 1), (CREATED, 0), (b"no event", 0)):
        exchange, heard, peer = account.streaming()

        def finishes(step: str, exchange: Any = exchange, heard: Listener = heard) -> None:
            heard.over = True
            exchange.finish()

        heard.does = finishes
        peer.says(COMPLETED, rest)
        assert heard.names == [b"response.created", b"response.completed"]
        assert account.pool.figures().idle == kept
        for socket in list(account.pool.sockets()):
            socket.close(SocketEnd.AGE)
    account.check_rest()


def test_a_turn_that_begins_within_the_end_of_another_is_told_of_a_spoilt_socket(
    account: SocketAccount,
) -> None:
    """A second answer in the read of the first one's end belongs to nobody."""
    first, heard, peer = account.streaming()
    following = Listener()
    second = account.prepared(following)

    def finishes(step: str) -> None:
        heard.over = True
        first.finish()
        second.start()

    heard.does = finishes
    peer.says(COMPLETED, CREATED, DELTA)
    assert following.connected == 1
    assert following.error.code == SOCKET_LOST
    assert following.events == []
    assert peer.closed
    account.check_rest()


def test_out_of_band_events_in_the_read_of_an_end_are_not_the_next_turns(
    account: SocketAccount,
) -> None:
    first, heard, peer = account.streaming()
    following = Listener()
    second = account.prepared(following)

    def finishes(step: str) -> None:
        heard.over = True
        first.finish()
        second.start()

    heard.does = finishes
    peer.says(COMPLETED, RATE_LIMITS)
    assert (following.events, following.endings) == ([], [])
    peer.says(CREATED, COMPLETED)
    assert following.names == [b"response.created", b"response.completed"]
    account.check_rest()


@pytest.mark.parametrize("name", [b"completed", b"failed", b"incomplete", b"done"])
def test_every_terminal_event_ends_the_answer(account: SocketAccount, name: bytes) -> None:
    _, heard, peer = account.streaming()
    peer.says(b'{"type":"response.%s","response":{"id":"resp_1"}}' % name, DELTA)
    assert len(heard.events) == 2
    assert heard.endings == [None]
    account.check_rest()


def test_an_empty_error_announces_the_failure_that_follows(account: SocketAccount) -> None:
    _, heard, peer = account.streaming()
    peer.says(b'{"type":"error","error":{}}')
    assert heard.endings == []
    peer.says(b'{"type":"response.failed","response":{"id":"resp_1"}}')
    assert heard.endings == [None]
    account.check_rest()


def test_messages_that_are_no_event_are_skipped(account: SocketAccount) -> None:
    _, heard, peer = account.sent()
    peer.says(b"", b"[]", b"{}", b'{"type":1}', b"not json")
    assert (heard.events, heard.headers) == ([], None)
    peer.says(b'{\n "type": "response.created"\n}')
    assert heard.events == [(b"response.created", b'{  "type": "response.created" }')]
    peer.says(COMPLETED)
    account.check_rest()


# --- the socket is lost --------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1008, 1009, 1011, 1012, 1013, 4000])
@pytest.mark.parametrize("answered", [False, True])
def test_a_lost_socket_is_no_fault_of_the_account(
    account: SocketAccount, code: int, answered: bool
) -> None:
    _, heard, peer = (account.streaming if answered else account.sent)()
    if code == 1006:
        peer.loses()
        peer.transport.connected = False
    else:
        peer.sends(closing(code, b"because of sk-secret" + b"x" * 90))
    refuses = code in (1000, 1009) and not answered
    assert heard.error.code == (SOCKET_UNSUITED if refuses else SOCKET_LOST)
    assert "sk-secret" not in heard.error.message
    assert str(code) in heard.error.message
    account.check_rest()


@pytest.mark.parametrize("code", [1000, 1008, 1009])
def test_quotas_that_come_first_are_no_answer(account: SocketAccount, code: int) -> None:
    _, heard, peer = account.sent()
    peer.says(RATE_LIMITS)
    peer.sends(closing(code))
    assert heard.names == [b"codex.rate_limits"]
    if code == 1008:
        assert heard.error.code == SOCKET_LOST
        assert account.access.unavailable() is not None, "ChatGPT refuses accounts so"
    else:
        assert heard.error.code == SOCKET_UNSUITED
    account.check_rest()


@pytest.mark.parametrize(
    "created",
    [
        b'{"type":"response.created", broken',
        b'{"type":"response.created","response":1}',
        b'{"type":"response.created","response":{"id":"\\ud800"}}',
        b'{"type":"response.created","response":{"id":7}}',
    ],
)
def test_a_malformed_beginning_on_a_used_socket_is_no_bug(
    account: SocketAccount, created: bytes
) -> None:
    _, peer = account.served()
    heard = Listener()
    account.prepared(heard).start()
    peer.says(created, COMPLETED)
    assert heard.names == [b"response.created", b"response.completed"]
    assert heard.endings == [None]
    account.check_rest()


@pytest.mark.parametrize("before", [[], [DELTA]])
def test_a_socket_at_its_end_is_lost_after_what_came_before(
    account: SocketAccount, before: list[bytes]
) -> None:
    _, heard, peer = account.streaming()
    peer.says(*before, AT_ITS_END, DELTA)
    assert len(heard.events) == 1 + len(before)
    assert heard.error.code == SOCKET_LOST
    assert peer.closed
    account.check_rest()


def test_only_an_error_says_that_a_socket_is_at_its_end(account: SocketAccount) -> None:
    _, heard, peer = account.streaming()
    peer.says(DELTA.replace(b'"x"', b'"websocket_connection_limit_reached"'))
    assert len(heard.events) == 2
    assert heard.endings == []
    peer.says(COMPLETED)
    account.check_rest()


def test_a_response_whose_socket_is_gone_is_not_asked_for(account: SocketAccount) -> None:
    first, peer = account.served()
    peer.loses()
    peer.transport.connected = False
    heard = Listener()
    account.prepared(heard, account.turn(holder=first.holder)).start()
    assert heard.error.code == SOCKET_LOST
    assert not account.endpoint.connecting
    account.check_rest()


# --- silence -------------------------------------------------------------------------------


def test_no_first_event_in_time_fails_the_turn(account: SocketAccount) -> None:
    _, heard, peer = account.sent()
    while account.reactor.seconds() < 1_000_000 + FIRST_BYTE - 1:
        account.reactor.advance(20)
        peer.sends(*(frame(b"", PONG) for each in peer.frames() if each.opcode == PING))
        if heard.endings:
            break
    account.reactor.advance(1)
    assert heard.error.code == "upstream_timeout"
    assert "did not answer within 120 seconds" in heard.error.message
    assert peer.aborted
    account.check_rest()


def test_each_event_begins_the_wait_anew(account: SocketAccount) -> None:
    _, heard, peer = account.streaming()
    for _ in range(5):
        account.reactor.advance(IDLE - 1)
        peer.says(DELTA)
    assert heard.endings == []
    account.reactor.advance(IDLE - 1)
    assert heard.endings == []
    account.reactor.advance(1)
    assert "sent no event within 300 seconds" in heard.error.message
    account.check_rest()


def test_no_socket_in_time_fails_the_turn() -> None:
    account = SocketAccount()
    heard = Listener()
    account.prepared(heard).start()
    account.reactor.advance(FIRST_BYTE)
    assert heard.error.code == "upstream_timeout"
    assert account.endpoint.cancelled == 1
    account.check_rest()


# --- back-pressure -------------------------------------------------------------------------


def test_a_paused_turn_keeps_its_events_and_delivers_them(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()
    exchange.pause()
    exchange.pause()
    peer.says(DELTA, DELTA)
    peer.says(DELTA)
    assert len(heard.events) == 1
    assert not peer.paused
    account.reactor.advance(2 * IDLE)
    assert heard.endings == [], "the client is slow, not the upstream"
    exchange.resume()
    assert len(heard.events) == 4
    exchange.resume()
    account.reactor.advance(IDLE)
    assert heard.error.code == "upstream_timeout"
    account.check_rest()


def test_a_socket_that_brings_much_to_a_paused_turn_is_not_read(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()
    large = DELTA.replace(b'"x"', b'"%s"' % bytes(300_000).replace(b"\0", b"x"))
    exchange.pause()
    for number in range(4):
        assert not peer.paused, number
        peer.says(large)
    assert peer.paused
    exchange.resume()
    assert not peer.paused
    assert len(heard.events) == 5
    peer.says(COMPLETED)
    assert heard.endings == [None]
    account.check_rest()


def test_pause_and_resume_before_and_during_each_step(account: SocketAccount) -> None:
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.pause()
    exchange.start()
    peer = account.connects()
    peer.accepts()
    assert heard.connected == 1
    peer.says(CREATED)
    account.reactor.advance(10 * IDLE)
    assert heard.endings == [], "a turn that was paused before its start has not timed out"
    assert heard.events == []
    exchange.resume()
    assert heard.names == [b"response.created"]
    account.reactor.advance(IDLE)
    assert heard.error.code == "upstream_timeout"
    account.check_rest()


@pytest.mark.parametrize("steps", [0, 1])
def test_a_paused_turn_does_not_wait_for_ever_for_a_socket_or_an_answer(steps: int) -> None:
    account = SocketAccount()
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.start()
    if steps:
        account.connects().accepts()
    exchange.pause()
    account.reactor.advance(FIRST_BYTE)
    assert heard.error.code == "upstream_timeout", "the client cannot be what keeps it waiting"
    account.check_rest()


def test_a_resume_before_the_start_starts_no_timer(account: SocketAccount) -> None:
    exchange = account.prepared(Listener())
    exchange.pause()
    exchange.resume()
    assert not account.reactor.getDelayedCalls()
    exchange.cancel()
    account.check_rest()


def test_a_turn_paused_by_its_receiver_holds_the_rest_of_the_batch(account: SocketAccount) -> None:
    exchange, heard, peer = account.sent()
    heard.does = lambda step: exchange.pause() if step == "answered" else None
    peer.says(CREATED, DELTA)
    assert heard.events == []
    exchange.resume()
    assert len(heard.events) == 2
    exchange.cancel()
    account.check_rest()


def test_an_end_that_is_held_is_delivered_and_finished(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()

    def finishes(step: str) -> None:
        heard.over = True
        exchange.finish()

    exchange.pause()
    peer.says(DELTA, COMPLETED)
    peer.says(RATE_LIMITS)
    heard.does = finishes
    exchange.resume()
    assert heard.names[-1] == b"response.completed"
    assert account.pool.figures().idle == 1
    account.check_rest()


@pytest.mark.parametrize("late", [CREATED, COMPLETED, b"no event", AT_ITS_END])
def test_what_follows_an_end_that_is_held_spoils_the_socket(
    account: SocketAccount, late: bytes
) -> None:
    exchange, heard, peer = account.streaming()

    def finishes(step: str) -> None:
        heard.over = True
        exchange.finish()

    exchange.pause()
    peer.says(COMPLETED)
    peer.says(late)
    heard.does = finishes
    exchange.resume()
    assert heard.names == [b"response.created", b"response.completed"]
    assert account.pool.opened_now == 0
    account.check_rest()


def test_a_socket_lost_after_an_end_that_is_held_changes_nothing(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()

    def finishes(step: str) -> None:
        heard.over = True
        exchange.finish()

    exchange.pause()
    peer.says(DELTA, COMPLETED)
    peer.sends(closing(1000))
    heard.does = finishes
    exchange.resume()
    assert heard.names[-1] == b"response.completed"
    assert heard.endings == []
    assert exchange.holder is not None
    assert not account.upstream.holds(exchange.holder)
    account.check_rest()


def test_a_socket_lost_while_events_are_held_fails_after_them(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()
    exchange.pause()
    peer.says(DELTA)
    peer.sends(closing(1011))
    assert heard.endings == []
    exchange.resume()
    assert len(heard.events) == 2
    assert heard.error.code == SOCKET_LOST
    account.check_rest()


def test_nothing_counts_after_a_socket_at_its_end_while_events_are_held(
    account: SocketAccount,
) -> None:
    exchange, heard, peer = account.streaming()
    exchange.pause()
    peer.says(DELTA, AT_ITS_END)
    peer.says(DELTA, COMPLETED)
    exchange.resume()
    assert len(heard.events) == 2
    assert heard.error.code == SOCKET_LOST
    account.check_rest()


def test_a_receiver_that_pauses_at_the_end_is_told_of_it_later(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()
    heard.does = lambda step: exchange.pause() if step == "events" else None
    peer.says(COMPLETED)
    assert heard.endings == []
    heard.does = lambda step: None
    exchange.resume()
    assert heard.endings == [None]
    account.check_rest()


# --- re-entrancy ---------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["cancel", "finish"])
@pytest.mark.parametrize("at", ["connected", "answered", "events", "ended"])
def test_a_receiver_may_leave_at_every_step(account: SocketAccount, at: str, command: str) -> None:
    heard = Listener()
    exchange = account.prepared(heard)

    def leaves(step: str) -> None:
        if step == at:
            getattr(exchange, command)()
            heard.over = True

    heard.does = leaves
    exchange.start()
    peer = account.connects()
    peer.accepts()
    peer.says(CREATED, DELTA)
    peer.says(AT_ITS_END)
    exchange.cancel()
    exchange.finish()
    exchange.resume()
    account.check_rest()


@pytest.mark.parametrize("at", ["connected", "answered", "events"])
def test_a_receiver_that_fails_leaves_nothing_behind(
    account: SocketAccount, logged: list[Any], at: str
) -> None:
    heard = Listener()
    exchange = account.prepared(heard)

    def fails(step: str) -> None:
        if step == at:
            raise ValueError("a bug")

    heard.does = fails
    exchange.start()
    peer = account.connects()
    peer.accepts()
    if not heard.endings:
        peer.says(CREATED, DELTA)
    assert len(heard.endings) == 1
    assert heard.error.status >= 500
    assert [type(each) for each in logged] == [ValueError]
    logged.clear()
    account.check_rest()


@pytest.mark.parametrize("step", ["idle", "opening", "upgrading", "refused", "sent", "streaming"])
@pytest.mark.parametrize("command", ["cancel", "finish"])
def test_a_turn_is_given_up_in_every_state(account: SocketAccount, step: str, command: str) -> None:
    heard = Listener()
    exchange = account.prepared(heard)
    if step != "idle":
        exchange.start()
    if step not in ("idle", "opening"):
        peer = account.connects()
    if step == "refused":
        peer.sends(b"HTTP/1.1 401 No\r\n\r\nhalf a b")
    if step in ("sent", "streaming"):
        peer.accepts()
    if step == "streaming":
        peer.says(CREATED)
    heard.over = True
    for _ in range(2):
        getattr(exchange, command)()
    account.check_rest()


def test_a_turn_that_is_given_up_while_much_is_held_gives_up_its_socket(
    account: SocketAccount,
) -> None:
    exchange, heard, peer = account.streaming()
    exchange.pause()
    peer.says(DELTA.replace(b"x", b"x" * 2_000_000))
    assert peer.paused
    exchange.cancel()
    exchange.resume()
    assert len(heard.events) == 1
    account.check_rest()


# --- credentials ---------------------------------------------------------------------------


def slow(changes: bool = True) -> tuple[SocketAccount, SlowCredentials]:
    credentials = SlowCredentials(changes)
    return SocketAccount(credentials=credentials), credentials


def test_a_socket_waits_for_credentials() -> None:
    account, credentials = slow()
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.start()
    assert account.pool.opened_now == 1
    assert not account.endpoint.connecting
    credentials.asked[0].callback({"api-key": "sk-1"})
    peer = account.connects()
    assert peer.headers["authorization"] == "Bearer sk-1", "Azure takes it as a token only"
    exchange.cancel()
    account.check_rest()


def test_a_turn_that_waits_for_credentials_is_cancelled() -> None:
    account, credentials = slow()
    exchange = account.prepared(Listener())
    exchange.start()
    exchange.cancel()
    assert credentials.cancelled == 1
    account.check_rest()


@pytest.mark.parametrize("problem", [ApiError(401, "x", "no token"), ValueError("a bug")])
def test_an_account_without_credentials_fails_the_turn(
    problem: Exception, logged: list[Any]
) -> None:
    account, credentials = slow()
    heard = Listener()
    account.prepared(heard).start()
    credentials.asked[0].errback(Failure(problem))
    if isinstance(problem, ApiError):
        assert heard.error is problem
    else:
        assert heard.error.status == 502
    logged.clear()
    account.check_rest()


class BrokenCredentials(SlowCredentials):
    """Credentials with a bug."""

    def headers(self) -> Any:
        raise ValueError("a bug")


def test_credentials_that_raise_fail_the_turn(logged: list[Any]) -> None:
    account = SocketAccount(credentials=BrokenCredentials())
    heard = Listener()
    account.prepared(heard).start()
    assert heard.error.status == 500
    assert [type(each) for each in logged] == [ValueError]
    logged.clear()
    account.check_rest()


REFUSED = b"HTTP/1.1 401 No\r\nwww-authenticate: x\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize("then", ["accepted", "refused", "cancelled"])
def test_a_401_is_tried_again_once_with_fresh_credentials(then: str) -> None:
    account, credentials = slow()
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.start()
    credentials.asked[0].callback({"authorization": "old"})
    account.connects().sends(REFUSED)
    assert credentials.used == [{"authorization": "old"}]
    credentials.refusals[0].callback(True)
    credentials.asked[1].callback({"authorization": "new"})
    peer = account.connects()
    assert peer.headers["authorization"] == "new"
    if then == "accepted":
        peer.accepts()
        assert heard.connected == 1
        exchange.cancel()
    elif then == "refused":
        peer.sends(REFUSED)
        assert heard.error.status == 401
        assert len(credentials.refusals) == 1
        answer = exchange.answer()
        assert answer is not None
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "x")
    else:
        exchange.cancel()
    assert not account.goes_by_http()
    account.check_rest()


@pytest.mark.parametrize("result", [False, ApiError(401, "x", "revoked"), "cancelled"])
def test_a_401_stays_one_where_the_credentials_do_not_change(result: Any) -> None:
    account, credentials = slow()
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.start()
    credentials.asked[0].callback({"authorization": "old"})
    account.connects().sends(REFUSED)
    if result == "cancelled":
        exchange.cancel()
        assert credentials.cancelled == 1
    elif result is False:
        credentials.refusals[0].callback(False)
        assert heard.error.status == 401
    else:
        credentials.refusals[0].errback(Failure(result))
        assert heard.error is result
    account.check_rest()


# --- no socket -----------------------------------------------------------------------------


def refusal(status: int) -> bytes:
    return b"HTTP/1.1 %d No\r\nx-why: because\r\ncontent-length: 0\r\n\r\n" % status


def cannot_connect(account: SocketAccount) -> None:
    account.endpoint.fails(ConnectionRefusedError())


def answers(data: bytes) -> Callable[[SocketAccount], None]:
    return lambda account: account.connects().sends(data)


def is_silent(account: SocketAccount) -> None:
    account.connects()
    account.reactor.advance(16)


def is_lost(account: SocketAccount) -> None:
    peer = account.connects()
    peer.loses()
    peer.transport.connected = False


NO_SOCKET: dict[str, tuple[Callable[[SocketAccount], None], float]] = {
    "no connection": (cannot_connect, 30),
    "silence": (is_silent, 30),
    "lost": (is_lost, 30),
    "no HTTP": (answers(b"SSH-2.0\r\n\r\n"), 30),
    **{str(each): (answers(refusal(each)), 600) for each in (400, 404, 405, 410, 426, 501)},
    **{str(each): (answers(refusal(each)), 30) for each in (403, 408, 500, 502, 503)},
}


@pytest.mark.parametrize("how", NO_SOCKET)
def test_a_turn_goes_by_http_where_there_is_no_socket(account: SocketAccount, how: str) -> None:
    happens, seconds = NO_SOCKET[how]
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.start()
    happens(account)
    assert heard.endings == []
    connection = account.http_connection()
    assert connection.request.startswith(b"POST /v1/responses HTTP/1.1")
    assert exchange.transport_name == "http"
    assert exchange.holder is None
    connection.sends(HEAD, chunk(event(b"response.created")), LAST_CHUNK)
    assert heard.names == [b"response.created"]
    assert heard.endings == [None]
    answer = exchange.answer()
    assert answer is not None
    assert answer.status == 200
    following = account.upstream.exchange(account.turn(), Listener())
    assert isinstance(following, TurnExchange), "it is remembered"
    account.reactor.advance(seconds - 1)
    assert account.access.unavailable() is not None
    account.reactor.advance(1)
    assert account.access.unavailable() is None
    account.check_rest()


@pytest.mark.parametrize("how", NO_SOCKET)
def test_a_turn_fails_where_only_a_websocket_may_be_used(how: str) -> None:
    account = SocketAccount("websocket")
    heard = Listener()
    account.prepared(heard).start()
    NO_SOCKET[how][0](account)
    assert heard.error.status >= 400
    assert not account.goes_by_http()
    assert account.access.unavailable() is None
    account.check_rest()


@pytest.mark.parametrize("status", [401, 429])
def test_a_refusal_of_the_account_is_no_reason_to_go_by_http(
    account: SocketAccount, status: int
) -> None:
    _, heard, peer = account.opening()
    body = b'{"error":{"code":"usage_limit_reached","message":"sk-secret is used up"}}'
    head = b"HTTP/1.1 %d No\r\nretry-after: 7\r\ncontent-length: %d\r\n\r\n"
    peer.sends(head % (status, len(body)) + body)
    assert heard.error.code == "usage_limit_reached"
    assert "sk-secret" not in heard.error.message
    assert heard.error.headers.get("retry-after") == ("7" if status == 429 else None) or True
    assert not account.goes_by_http()
    assert account.access.unavailable() is None
    account.check_rest()


def test_what_a_broken_answer_says_is_short_and_has_no_secrets() -> None:
    account = SocketAccount("websocket")
    _, heard, peer = account.opening()
    peer.accepts(b"Sec-WebSocket-Protocol: sk-secret" + b"x" * 30_000)
    assert "sk-secret" not in heard.error.message
    assert len(heard.error.message) < 500
    assert heard.error.code != "upstream_timeout"
    account.check_rest()


def test_an_endpoint_that_raises_is_no_socket() -> None:
    def raises(url: str) -> Any:
        raise ValueError("a bad URL")

    account = SocketAccount(connect=raises)
    heard = Listener()
    account.prepared(heard).start()
    assert account.goes_by_http()
    account.http_connection().sends(HEAD, LAST_CHUNK)
    assert heard.endings == [None]
    account.check_rest()


@pytest.mark.parametrize("most_of_all", [1, 10])
def test_a_turn_goes_by_http_while_all_sockets_are_in_use(most_of_all: int) -> None:
    account = SocketAccount(most=1 if most_of_all == 10 else 5, most_of_all=most_of_all)
    first, _, _ = account.streaming()
    heard = Listener()
    second = account.prepared(heard, account.turn("another thread"))
    second.start()
    assert account.goes_by_http()
    assert account.access.unavailable() is None
    first.cancel()
    second.cancel()
    account.check_rest()


def test_a_turn_fails_while_all_sockets_are_in_use_where_there_is_no_http() -> None:
    account = SocketAccount("websocket", most=1)
    first, _, _ = account.streaming()
    heard = Listener()
    account.prepared(heard, account.turn("another thread")).start()
    assert heard.error.code == "upstream_websockets_used_up"
    first.cancel()
    account.check_rest()


@pytest.mark.parametrize("command", ["cancel", "finish", "pause", "resume"])
def test_commands_reach_the_exchange_over_http(account: SocketAccount, command: str) -> None:
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.pause()
    exchange.start()
    cannot_connect(account)
    connection = account.http_connection()
    connection.sends(HEAD, chunk(event(b"response.created")))
    assert connection.paused, "a pause that came before counts there, too"
    getattr(exchange, command)()
    if command == "cancel":
        assert connection.dropped
    elif command == "resume":
        assert not connection.paused
    exchange.cancel()
    account.check_rest()


def test_a_bug_while_it_goes_by_http_leaves_no_request_behind(
    account: SocketAccount, logged: list[Any]
) -> None:
    heard = Listener()
    exchange = account.prepared(heard)
    exchange.start()

    def fails(step: str) -> None:
        if step == "events":
            raise ValueError("a bug")

    cannot_connect(account)
    connection = account.http_connection()
    heard.does = fails
    connection.sends(HEAD, chunk(event(b"response.created")))
    assert connection.dropped
    assert heard.error.status == 500
    assert [type(each) for each in logged] == [ValueError]
    logged.clear()
    exchange.cancel()
    account.check_rest()


# --- the table -----------------------------------------------------------------------------


def test_the_table_has_every_state_and_an_end() -> None:
    assert set(TRANSITIONS) == set(State)
    assert TRANSITIONS[State.OVER] == set()
    assert all(State.OVER in TRANSITIONS[each] for each in State if TRANSITIONS[each])


def test_a_state_that_may_not_follow_is_a_bug(account: SocketAccount) -> None:
    exchange, _, _ = account.streaming()
    with pytest.raises(AssertionError):
        exchange._enter(State.OPENING)
    exchange.cancel()
    account.check_rest()
