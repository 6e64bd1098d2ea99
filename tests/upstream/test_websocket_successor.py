"""A socket between a steered response and the one that follows it by itself."""

from __future__ import annotations

import json

import pytest

from gateway.protocol.errors import SOCKET_LOST, ApiError
from gateway.upstream.websocket_exchange import WebSocketExchange
from gateway.upstream.websocket_successor import SocketSuccessor
from tests.upstream.websocket_account import (
    COMPLETED,
    CREATED,
    DELTA,
    FIRST_BYTE,
    RATE_LIMITS,
    Listener,
    SocketAccount,
)
from tests.upstream.websocket_wire import Peer

STEERED = b'{"type":"response.incomplete","response":{"id":"resp_1"}}'
ACCEPTED = b'{"type":"response.steer.accepted","steer":{"previous_response_id":"resp_1"}}'
NEXT = CREATED.replace(b"resp_1", b"resp_2")
NEXT_DONE = COMPLETED.replace(b"resp_1", b"resp_2")


@pytest.fixture
def account() -> SocketAccount:
    return SocketAccount()


class Watcher:
    """Writes down; takes the response that begins, if it is given something that hears it."""

    def __init__(self, account: SocketAccount, successor: SocketSuccessor) -> None:
        self.account = account
        self.successor = successor
        self.answers: list[bytes] = []
        self.begun = 0
        self.lost: list[ApiError] = []
        self.heard: Listener | None = Listener()
        self.exchange: WebSocketExchange | None = None

    def successor_answered(self, name: bytes, data: bytes) -> None:
        self.answers.append(name)

    def successor_begins(self) -> None:
        self.begun += 1
        if self.heard is not None:
            self.take(self.heard)

    def take(self, heard: Listener) -> None:
        exchange = self.successor.exchange(self.account.turn(), heard)
        assert isinstance(exchange, WebSocketExchange)
        self.exchange = exchange
        assert (exchange.request_bytes, exchange.request) == (0, None), "nothing is sent"

        def finishes(step: str) -> None:
            if heard.names and heard.names[-1] == b"response.completed":
                heard.over = True
                exchange.finish()

        heard.does = finishes
        exchange.start()

    def successor_lost(self, error: ApiError) -> None:
        self.lost.append(error)


def steered(
    account: SocketAccount, *behind: bytes, starts: bool = True
) -> tuple[Watcher, Peer, WebSocketExchange]:
    """A response that was steered and has ended, with what came in the same read."""
    exchange, heard, peer = account.streaming()
    found: list[Watcher] = []

    def succeeds(step: str) -> None:
        heard.over = True
        successor = exchange.successor()
        assert successor is not None
        found.append(Watcher(account, successor))
        if starts:
            successor.start(found[0])

    heard.does = succeeds
    peer.says(STEERED, *behind)
    return found[0], peer, exchange


@pytest.mark.parametrize("in_one_read", [True, False])
def test_the_next_response_is_read_on_the_same_socket(
    account: SocketAccount, in_one_read: bool
) -> None:
    events = [ACCEPTED, RATE_LIMITS, NEXT, DELTA, NEXT_DONE]
    watcher, peer, first = steered(account, *(events if in_one_read else []))
    if not in_one_read:
        peer.says(*events)
    assert watcher.answers == [b"response.steer.accepted"]
    assert watcher.heard is not None
    assert watcher.exchange is not None
    assert watcher.heard.connected == 1
    assert watcher.heard.names == [
        b"codex.rate_limits",
        b"response.created",
        b"response.output_text.delta",
        b"response.completed",
    ]
    assert watcher.exchange.holder != first.holder, "it is the latest response now"
    assert watcher.exchange.holder is not None
    assert first.holder is not None
    assert account.access.holding(watcher.exchange.holder) is not None
    assert account.access.holding(first.holder) is None
    account.check_rest()


def test_the_socket_is_nobody_elses_meanwhile(account: SocketAccount) -> None:
    watcher, peer, first = steered(account)
    assert account.pool.busy == 1
    assert first.holder is not None
    assert account.access.holding(first.holder) is None
    watcher.successor.finish()
    assert account.pool.busy == 0
    assert account.access.holding(first.holder) is not None, "its response is still the latest"
    watcher.successor.cancel()
    assert not peer.closed, "once it is over there is nothing to give up"
    account.check_rest()


def test_what_comes_behind_a_refusal_is_judged_as_between_responses(
    account: SocketAccount,
) -> None:
    watcher, peer, _ = steered(account, starts=False)
    peer.says(RATE_LIMITS)
    watcher.successor.finish()
    assert not peer.closed
    watcher, peer, _ = steered(SocketAccount(), DELTA, starts=False)
    watcher.successor.finish()
    assert peer.closed
    account.check_rest()


def test_a_response_begins_while_its_turn_is_prepared(account: SocketAccount) -> None:
    watcher, peer, _ = steered(account)
    watcher.heard = None
    peer.says(NEXT, DELTA)
    peer.says(NEXT_DONE)
    heard = Listener()
    watcher.take(heard)
    assert heard.names[0] == b"response.created"
    assert heard.names[-1] == b"response.completed"
    assert watcher.begun == 1
    account.check_rest()


def test_a_response_whose_socket_is_lost_before_its_turn_takes_it(account: SocketAccount) -> None:
    watcher, peer, _ = steered(account)
    watcher.heard = None
    peer.says(NEXT)
    peer.loses()
    heard = Listener()
    watcher.take(heard)
    assert heard.error.code == SOCKET_LOST
    account.check_rest()


@pytest.mark.parametrize("how", ["loses", "refuses", "waits"])
def test_no_response_will_follow_any_more(account: SocketAccount, how: str) -> None:
    watcher, peer, _ = steered(account)
    if how == "loses":
        peer.says(ACCEPTED)
        peer.loses()
    elif how == "refuses":
        error = {"type": "server_error", "code": None, "message": "no"}
        peer.says(json.dumps({"type": "error", "status": 500, "error": error}).encode())
    else:
        account.reactor.advance(FIRST_BYTE)
    (error_seen,) = watcher.lost
    assert error_seen.code == SOCKET_LOST
    assert watcher.begun == 0
    account.check_rest()


def test_nothing_is_read_for_a_client_that_does_not_read(account: SocketAccount) -> None:
    watcher, peer, _ = steered(account)
    watcher.successor.pause()
    peer.says(ACCEPTED, NEXT)
    assert (watcher.answers, watcher.begun) == ([], 0)
    large = json.dumps({"type": "response.x", "x": "x" * 1_100_000}).encode()
    peer.says(large)
    watcher.successor.resume()
    assert (watcher.answers, watcher.begun) == ([b"response.steer.accepted"], 1)
    assert watcher.heard is not None
    assert watcher.heard.names == [b"response.created", b"response.x"]
    peer.says(NEXT_DONE)
    assert watcher.heard.names[-1] == b"response.completed", "the socket is read again"
    account.check_rest()


def test_a_held_back_end_keeps_what_comes_behind_it(account: SocketAccount) -> None:
    exchange, heard, peer = account.streaming()
    exchange.pause()
    peer.says(STEERED, ACCEPTED)
    peer.says(NEXT)
    found: list[Watcher] = []

    def succeeds(step: str) -> None:
        heard.over = True
        successor = exchange.successor()
        assert successor is not None
        found.append(Watcher(account, successor))
        successor.start(found[0])

    heard.does = succeeds
    exchange.resume()
    assert found[0].answers == [b"response.steer.accepted"]
    assert found[0].begun == 1
    peer.says(NEXT_DONE)
    account.check_rest()


def test_only_a_response_that_has_ended_has_a_successor(account: SocketAccount) -> None:
    exchange, _, _ = account.streaming()
    assert exchange.successor() is None
    exchange.cancel()
    assert exchange.successor() is None
    account.check_rest()
