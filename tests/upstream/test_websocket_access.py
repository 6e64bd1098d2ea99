"""What is learned of an account's WebSockets, and the spare ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionRefusedError

from gateway.protocol.errors import SOCKET_UNSUITED, ApiError
from gateway.protocol.request import read_members, read_post
from gateway.protocol.websocket_messages import UpgradeRefusal
from gateway.upstream.http import TurnExchange
from gateway.upstream.websocket_client import ClosedSocket
from gateway.upstream.websocket_exchange import WebSocketExchange
from tests.upstream.websocket_account import (
    COMPLETED,
    CREATED,
    Listener,
    SlowCredentials,
    SocketAccount,
)

POLICY = ClosedSocket(1008, "no")
LOST = ClosedSocket(1006, "")


pytestmark = pytest.mark.usefixtures("logged")


# --- what was learned ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refusal", "seconds"),
    [(UpgradeRefusal.NO_WEBSOCKET, 600), (UpgradeRefusal.TRANSIENT, 30), (None, 30)],
)
def test_that_no_socket_could_be_opened_is_remembered_for_a_while(
    refusal: UpgradeRefusal | None, seconds: float
) -> None:
    account = SocketAccount()
    account.access.could_not_open(refusal, "because")
    assert account.access.unavailable() == "because"
    assert not account.upstream.warms
    figures = account.upstream.sockets()
    assert (figures.why_unavailable, figures.unavailable_until) == ("because", 1_000_000 + seconds)
    account.reactor.advance(seconds - 1)
    assert isinstance(account.upstream.exchange(account.turn(), Listener()), TurnExchange)
    account.reactor.advance(1)
    assert account.access.unavailable() is None
    assert isinstance(account.upstream.exchange(account.turn(), Listener()), WebSocketExchange)
    assert account.upstream.sockets().why_unavailable is None


def test_an_account_with_websockets_only_goes_on_trying() -> None:
    account = SocketAccount("websocket")
    account.access.could_not_open(UpgradeRefusal.NO_WEBSOCKET, "because")
    assert account.access.unavailable() is None
    assert account.upstream.warms


def test_what_was_learned_is_forgotten_when_it_is_asked_for() -> None:
    account = SocketAccount()
    first, _ = account.served()
    account.access.could_not_open(UpgradeRefusal.NO_WEBSOCKET, "because")
    for _ in range(3):
        account.access.missed()
    assert first.holder is not None
    assert not account.upstream.holds(first.holder)
    for _ in range(2):
        account.access.lost(LOST, answered=True)
    account.access.forget()
    account.access.lost(LOST, answered=True)
    assert account.access.unavailable() is None, "losses from before were not forgotten"
    assert account.upstream.holds(first.holder)
    account.check_rest()


def test_three_misses_in_a_row_and_no_socket_is_trusted_for_an_hour() -> None:
    account = SocketAccount()
    for was in (False, False, True, False, False):
        account.upstream.continued(was)
    first, peer = account.served()
    assert first.holder is not None
    assert account.upstream.holds(first.holder), "they were not in a row"
    account.upstream.continued(False)
    assert not account.upstream.holds(first.holder)
    assert account.access.pool.holding(first.holder) is not None
    account.reactor.advance(3600)
    peer.loses()
    peer.transport.connected = False
    second, _ = account.served()
    assert second.holder is not None
    assert account.upstream.holds(second.holder)
    account.upstream.continued(False)
    assert account.upstream.holds(second.holder), "it is counted from the beginning"
    account.check_rest()


def test_several_losses_in_a_row_mean_that_sockets_do_not_work() -> None:
    account = SocketAccount()
    count = 0
    while account.access.unavailable() is None:
        account.access.lost(LOST, answered=True)
        count += 1
    assert count > 1
    account.access.forget()
    for _ in range(3 * count):
        account.access.lost(LOST, answered=True)
        account.access.served()
    assert account.access.unavailable() is None
    account.access.lost(POLICY, answered=True)
    assert account.access.unavailable() is None
    account.access.served()
    account.access.lost(POLICY, answered=False)
    assert account.access.unavailable() is not None, "the account was refused after the 101"


# --- whose sockets -------------------------------------------------------------------------


def test_a_key_tells_tenants_conversations_and_lanes_apart() -> None:
    account = SocketAccount()
    turns = [
        account.turn(affinity, tenant, **lane)
        for affinity in ("thread", "other")
        for tenant in ("ann", "bob")
        for lane in ({}, {"stream_id": "1"}, {"stream_id": "2"})
    ]
    keys = [account.access.key_of(turn) for turn in turns]
    assert len(set(keys)) == len(keys)
    assert keys == [account.access.key_of(turn) for turn in turns]


@pytest.mark.parametrize("header", ["session-id", "thread-id", "conversation_id", "session_id"])
def test_a_socket_that_names_a_session_serves_no_other_conversation(header: str) -> None:
    account = SocketAccount()
    _, peer = account.served(account.turn("one", client_headers={header: "s-1"}, store=True))
    assert peer.headers[header] == "s-1"
    (socket,) = account.pool.sockets()
    assert socket.is_private
    account.served(account.turn("two", store=True))
    assert account.pool.opened_now == 2
    third = account.prepared(Listener(), account.turn("three", store=True))
    third.start()
    assert account.pool.opened_now == 2, "the other one names nobody"
    third.cancel()
    account.check_rest()


def test_tenants_share_no_socket() -> None:
    account = SocketAccount()
    account.served(account.turn("same", "ann", store=True))
    account.served(account.turn("same", "bob", store=True))
    assert account.pool.opened_now == 2
    account.check_rest()


@pytest.mark.parametrize(
    ("reuses_ids", "continues_unstored", "store", "holds"),
    [
        (False, True, True, False),
        (False, True, False, True),
        (False, False, False, False),
        (True, False, True, True),
        (True, False, False, False),
    ],
)
def test_what_a_socket_alone_continues_is_a_setting(
    reuses_ids: bool, continues_unstored: bool, store: bool, holds: bool
) -> None:
    account = SocketAccount(reuses_ids=reuses_ids, continues_unstored=continues_unstored)
    exchange, _ = account.served(account.turn(store=store))
    assert (exchange.holder is not None) == holds
    account.check_rest()


# --- the handshake -------------------------------------------------------------------------


def test_the_handshake_is_as_the_settings_say() -> None:
    account = SocketAccount(subprotocols=("a.v1",), beta="websockets=1", path="/ws?v=2")
    turn = account.turn(client_headers={"openai-beta": "responses=experimental, other=1"})
    exchange, _, peer = account.opening(turn)
    assert account.urls == ["http://upstream.test/v1/ws?v=2"]
    assert peer.request.startswith(b"GET /v1/ws?v=2 HTTP/1.1\r\n")
    assert peer.headers["openai-beta"] == "other=1, websockets=1"
    assert peer.headers["sec-websocket-protocol"] == "a.v1"
    assert not {"accept", "content-type"} & set(peer.headers)
    exchange.cancel()
    account.check_rest()


# --- spare sockets -------------------------------------------------------------------------


def test_spare_sockets_are_opened_once_there_is_a_turn() -> None:
    account = SocketAccount(spare_sockets=2)
    turn = account.turn(client_headers={"session-id": "s-1"})
    exchange, _, peer = account.opening(turn)
    assert len(account.endpoint.connecting) == 1, "one dial at a time"
    spare = account.connects()
    assert "session-id" not in spare.headers
    assert spare.headers["authorization"] == "Bearer sk-secret"
    spare.accepts()
    account.connects().accepts()
    assert not account.endpoint.connecting
    peer.accepts()
    assert account.pool.spares == 2
    exchange.cancel()
    account.check_rest()


def test_a_spare_socket_serves_any_tenant_and_is_replaced() -> None:
    account = SocketAccount(spare_sockets=1)
    first, _, _ = account.opening()
    account.connects().accepts()
    heard = Listener()
    second = account.prepared(heard, account.turn("other", "bob"))
    second.start()
    assert heard.connected == 1, "it was there"
    assert account.pool.spares == 0
    account.connects().accepts()
    assert account.pool.spares == 1
    first.cancel()
    second.cancel()
    account.check_rest()


def test_a_spare_socket_that_cannot_be_opened_waits_for_the_next_turn() -> None:
    account = SocketAccount("websocket", spare_sockets=2)
    exchange, _, peer = account.opening()
    account.endpoint.fails(ConnectionRefusedError())
    assert not account.endpoint.connecting
    assert account.pool.opened_now == 1
    peer.accepts()
    assert len(account.endpoint.connecting) == 1
    account.connects().accepts()
    account.connects().accepts()
    exchange.cancel()
    account.check_rest()


def test_no_spare_socket_takes_the_place_of_another() -> None:
    account = SocketAccount(spare_sockets=2, most=2)
    account.served()
    account.connects().accepts()
    assert (account.pool.opened_now, account.pool.spares) == (2, 1)
    assert not account.endpoint.connecting
    account.check_rest()


def test_no_spare_socket_is_opened_while_none_can_be_had() -> None:
    account = SocketAccount(spare_sockets=1)
    account.access.could_not_open(None, "because")
    account.access.fill_spares()
    assert not account.endpoint.connecting


def test_a_spare_socket_that_is_being_opened_is_given_up_with_the_account() -> None:
    account = SocketAccount(spare_sockets=1)
    account.access.fill_spares()
    account.connects()
    account.upstream.close()
    account.check_rest()
    account.access.fill_spares()
    assert not account.endpoint.connecting


def failing() -> Deferred[Any]:
    return fail(ApiError(401, "x", "no token"))


def raising() -> Any:
    raise ValueError("a bug")


@pytest.mark.parametrize("headers", [failing, raising, Deferred])
def test_a_spare_socket_needs_credentials_at_once(headers: Callable[[], Any]) -> None:
    credentials = SlowCredentials()
    credentials.headers = headers  # type: ignore[method-assign]
    account = SocketAccount(credentials=credentials, spare_sockets=1)
    account.access.fill_spares()
    assert not account.endpoint.connecting
    account.check_rest()


def test_a_url_that_cannot_be_used_keeps_no_room() -> None:
    def raises(url: str) -> Any:
        raise ValueError("a bad URL")

    account = SocketAccount(connect=raises, spare_sockets=1)
    account.access.fill_spares()
    account.access.fill_spares()
    assert account.pool.opened_now == 0
    account.check_rest()


# --- what is sent how ----------------------------------------------------------------------


def test_what_a_websocket_cannot_carry_goes_by_http() -> None:
    account = SocketAccount()
    large = account.turn(input="x" * (16 * 1024 * 1024))
    exchange = account.upstream.exchange(large, Listener())
    exchange.start()
    assert exchange.transport_name == "http"
    exchange.cancel()
    body = b'{"input":"hi","background":true,"store":true}'
    background = account.turn()._replace(request=read_post(read_members(body), len(body)))
    for turn in (background, account.turn(avoids_websocket=True)):
        assert isinstance(account.upstream.exchange(turn, Listener()), TurnExchange)
    heard = Listener()
    account.prepared(heard, background._replace(holder="x-1/1")).start()
    assert heard.error.code == SOCKET_UNSUITED
    account.check_rest()


def test_a_turn_avoids_no_websocket_where_there_is_no_http() -> None:
    account = SocketAccount("websocket")
    exchange = account.upstream.exchange(account.turn(avoids_websocket=True), Listener())
    assert isinstance(exchange, WebSocketExchange)


def test_the_account_itself_holds_what_is_stored() -> None:
    account = SocketAccount()
    assert account.upstream.holds("main")
    assert not account.upstream.holds("other")
    assert account.upstream.secrets() == ("sk-secret",)
    assert account.upstream.without_secrets(b"a sk-secret") == "a …".encode()


def test_a_turn_on_an_account_that_closes_is_told() -> None:
    account = SocketAccount()
    _, heard, peer = account.streaming()
    account.upstream.close()
    assert heard.error.status == 502
    assert peer.aborted
    account.check_rest()


def test_a_turn_that_waits_for_its_socket_outlives_the_close_of_the_account() -> None:
    account = SocketAccount()
    exchange, heard, peer = account.opening()
    account.upstream.close()
    peer.accepts()
    heard.does = lambda step: exchange.finish() if len(heard.events) == 2 else None
    peer.says(CREATED, COMPLETED)
    assert heard.endings == []
    assert peer.closed
    account.check_rest()
