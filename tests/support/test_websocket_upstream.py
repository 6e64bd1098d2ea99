"""The scripted WebSocket upstream by itself: a test tool that lies is worse than none."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.support.checks import assert_error, completed
from tests.support.upstream import Exchange, Script
from tests.support.websocket_upstream import (
    Handshake,
    WebSocketUpstream,
    frame,
    over,
    refused,
    unmasked,
)
from tests.support.wsclient import (
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Refused,
    Silence,
    SocketClosed,
    WsClient,
)


@pytest.fixture
def upstream() -> Iterator[WebSocketUpstream]:
    server = WebSocketUpstream()
    yield server
    server.stop()


@pytest.fixture
def client(upstream: WebSocketUpstream) -> Iterator[WsClient]:
    client = WsClient(upstream.port)
    yield client
    client.drop()


def test_turns_chain_on_their_socket_only(upstream: WebSocketUpstream, client: WsClient) -> None:
    first = completed(client.turn(store=False))["id"]
    second = completed(client.turn(store=False, previous_response_id=first))
    assert second["previous_response_id"] == first
    for stale in (first, "resp_unknown"):
        last = client.turn(store=False, previous_response_id=stale)[-1]
        assert_error(last, 400, "previous_response_not_found")
    other = WsClient(upstream.port)
    assert_error(other.turn(store=False, previous_response_id=second["id"])[-1], 400)
    stored = completed(client.turn(store=True))["id"]
    completed(other.turn(previous_response_id=stored))
    assert [len(each.turns) for each in upstream.sockets] == [5, 2]
    assert set(upstream.transports()) == {"websocket"}
    other.drop()


def test_both_transports_share_port_log_and_scripts(
    upstream: WebSocketUpstream, client: WsClient
) -> None:
    upstream.queue(Exchange.answer, Exchange.answer)
    completed(client.turn(store=False))
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    connection.request("POST", "/v1/responses", json.dumps({"input": "x"}))
    assert b"response.completed" in connection.getresponse().read()
    assert upstream.transports() == ["websocket", "http"]
    assert upstream.requests[0].header("authorization") == "Bearer key-laptop"


@pytest.mark.parametrize("status", [400, 403, 426, 429, 503])
def test_refused_upgrades(upstream: WebSocketUpstream, status: int) -> None:
    upstream.queue_upgrades(refused(status, {"error": {}}, {"retry-after": "7"}))
    with pytest.raises(Refused) as refusal:
        WsClient(upstream.port)
    assert (refusal.value.status, refusal.value.body) == (status, b'{"error": {}}')
    assert refusal.value.headers["retry-after"] == "7"
    WsClient(upstream.port).drop()
    assert len(upstream.upgrades) == 2


def test_upgrades_in_pieces_and_none_at_all(upstream: WebSocketUpstream) -> None:
    upstream.queue_upgrades(lambda handshake: handshake.accept({"x-a": "b"}, step=1))
    client = WsClient(upstream.port)
    assert client.headers["x-a"] == "b"
    completed(client.turn())
    client.drop()
    upstream.queue_upgrades(Handshake.hold, Handshake.reset)
    with pytest.raises(TimeoutError):
        WsClient(upstream.port, timeout=0.2)
    with pytest.raises((SocketClosed, ConnectionError)):
        WsClient(upstream.port)


@pytest.mark.parametrize("code", [1000, 1009, 1013, 4000, None])
@pytest.mark.parametrize("running", [False, True])
def test_close_codes(
    upstream: WebSocketUpstream, client: WsClient, code: int | None, running: bool
) -> None:
    if running:
        upstream.queue(lambda exchange: over(exchange).close(code or 1000, "because"))
        client.create()
        code = code or 1000
    else:
        completed(client.turn())
        threading.Thread(target=upstream.sockets[0].close, args=(code,)).start()
    assert client.wait_closed() == (code or 1005)
    assert upstream.sockets[0].wait_gone()
    assert upstream.sockets[0].close_code == (code or 1005)


def test_ends_without_a_close_frame(upstream: WebSocketUpstream) -> None:
    ends: list[Script] = [lambda exchange: exchange.close(), lambda exchange: exchange.reset()]
    for end in ends:
        upstream.queue(end)
        client = WsClient(upstream.port)
        client.create()
        assert client.wait_closed() == 1006
    for method in ("drop", "reset"):
        client = WsClient(upstream.port)
        completed(client.turn())
        getattr(upstream.sockets[-1], method)()
        assert client.wait_closed() == 1006


def test_pings_and_pongs(upstream: WebSocketUpstream, client: WsClient) -> None:
    client.ping(b"one")
    client.wait_pong()
    peer = upstream.wait_sockets(1)[0]
    assert peer.wait_pings(1) == [b"one"]
    peer.ping(b"two")
    with pytest.raises(Silence):
        client.text(0.1)
    assert peer.wait_pongs(1) == [b"two"]
    peer.answers_pings = False
    client.ping(b"three")
    peer.wait_pings(2)
    with pytest.raises(Silence):
        client.wait_pong(2, timeout=0.1)


def test_fragments_both_ways(upstream: WebSocketUpstream, client: WsClient) -> None:
    def script(exchange: Exchange) -> None:
        whole = b'{"type":"response.completed","text":"gr\xc3\xbc\xc3\x9fe"}'
        over(exchange).socket.fragments(whole[:37], whole[37:], between=frame(PING, b"p"))
        over(exchange).socket.busy = None
        over(exchange).socket.dribble(frame(TEXT, whole))

    upstream.queue(script)
    text = json.dumps({"type": "response.create", "input": "x"})
    client.send_fragments(text[:5], text[5:9], text[9:])
    for _ in range(2):
        assert client.event()["text"] == "grüße"
    peer = upstream.sockets[0]
    peer.wait_pongs(1)
    sent = [(each.opcode, each.fin, each.length) for each in peer.frames if each.opcode != PONG]
    size = len(text)
    assert sent == [(TEXT, False, 5), (CONTINUATION, False, 4), (CONTINUATION, True, size - 9)]


def test_a_second_turn_in_between_is_noticed(upstream: WebSocketUpstream, client: WsClient) -> None:
    upstream.queue(lambda exchange: exchange.hold())
    client.create()
    client.create()
    assert upstream.wait_sockets(1)[0].wait_gone()
    assert "second turn" in str(upstream.errors.pop())


def test_a_frozen_peer_reads_nothing_and_sees_the_end(
    upstream: WebSocketUpstream, client: WsClient
) -> None:
    upstream.queue(lambda exchange: over(exchange).freeze())
    client.create()
    request = upstream.wait_for(1)[0]
    upstream.wait(lambda: not upstream.sockets[0].reading.is_set(), "a frozen socket")
    client.ping()
    with pytest.raises(Silence):
        client.wait_pong(timeout=0.2)
    client.drop()
    assert request.wait_gone(5)
    assert not upstream.sockets[0].pings


def test_masks() -> None:
    data = bytes(range(7))
    assert unmasked(b"\1\2\3\4", unmasked(b"\1\2\3\4", data)) == data
    assert unmasked(b"\1\2\3\4", b"\1\2\3\4\1") == bytes(5)
    assert unmasked(b"\1\2\3\4", b"") == b""


def test_a_large_message_is_read_quickly(upstream: WebSocketUpstream, client: WsClient) -> None:
    began = time.monotonic()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    text = json.dumps({"type": "response.create", "input": "x" * (15 << 20)})
    client.send_frame(TEXT, text.encode())
    completed(client.until_terminal())
    assert time.monotonic() - began < 5
    assert upstream.requests[0].raw == text.encode()
