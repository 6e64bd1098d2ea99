"""One listener for both kinds of clients: what becomes a WebSocket, and when."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import txaio
from twisted.internet.interfaces import IHandshakeListener
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Ping, Pong, Request

from gateway.config import SessionSettings, TimeoutSettings
from gateway.server.http_channel import HttpChannel
from gateway.server.websocket import ResponsesProtocol
from tests.server.listener import KEYS, House
from tests.support.events import text_item, turn_events

KEY = [("authorization", "Bearer sk-client")]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., House]]:
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)
    houses: list[House] = []

    def built(**settings: Any) -> House:
        houses.append(House(**settings))
        return houses[-1]

    yield built
    for house in houses:
        house.check_rest()


@pytest.fixture
def house(build: Callable[..., House]) -> House:
    return build()


def upgrade(wire: WSConnection | None = None) -> bytes:
    wire = wire or WSConnection(ConnectionType.CLIENT)
    return wire.send(Request(host="gateway.test", target="/v1/responses", extra_headers=KEY))


# --- deciding ------------------------------------------------------------------------------


def test_an_upgrade_becomes_a_websocket(house: House) -> None:
    client = house.client()
    wire = WSConnection(ConnectionType.CLIENT)
    client.gives(upgrade(wire))
    assert isinstance(client.protocol, ResponsesProtocol)
    wire.receive_data(client.bytes_out)
    assert isinstance(next(wire.events()), AcceptConnection)


def test_anything_else_becomes_http(house: House) -> None:
    client = house.client()
    assert client.asks("GET", "/v1/nothing").status == 404
    assert isinstance(client.protocol, HttpChannel)


@pytest.mark.parametrize("what", ["websocket", "http"])
def test_a_head_may_come_byte_by_byte(house: House, what: str) -> None:
    client = house.client()
    data = upgrade() if what == "websocket" else client.request("GET", "/v1/nothing")
    for byte in data:
        client.gives(bytes([byte]))
    status = b"101" if what == "websocket" else b"404"
    assert client.bytes_out.startswith(b"HTTP/1.1 " + status)


def test_what_follows_the_head_in_one_read_is_not_lost(house: House) -> None:
    client = house.client()
    body = b'{"model":"gpt-5.5","input":"hi"}'
    client.gives(client.request(body=body) + client.request("GET", "/v1/nothing"))
    house.sent().sends(*turn_events([text_item()], "resp_1"))
    assert client.answer().json["id"] == "resp_1"
    assert client.answer().status == 404


@pytest.mark.parametrize(
    ("header", "protocol"),
    [
        ("Upgrade: websocket", ResponsesProtocol),
        ("UPGRADE:   WebSocket  ", ResponsesProtocol),
        ("upgrade: foo, websocket", ResponsesProtocol),
        ("Upgrade: h2c", HttpChannel),
        ("X-Upgrade: websocket", HttpChannel),
        ("X: Upgrade: websocket", HttpChannel),
    ],
)
def test_the_upgrade_header_decides(house: House, header: str, protocol: type) -> None:
    client = house.client()
    client.gives(f"GET /v1/responses HTTP/1.1\r\n{header}\r\n\r\n".encode())
    assert isinstance(client.protocol, protocol)


def test_only_get_can_upgrade(house: House) -> None:
    client = house.client()
    client.gives(client.request(body=b"{}", headers={"Upgrade": "websocket"}))
    assert isinstance(client.protocol, HttpChannel)


def test_the_http_channel_is_gone_after_an_upgrade(house: House) -> None:
    """Ten thousand idle WebSockets must not keep ten thousand channels."""
    client = house.client()
    channel = weakref.ref(client.protocol)
    assert isinstance(channel(), HttpChannel)
    client.gives(upgrade())
    gc.collect()
    assert isinstance(client.protocol, ResponsesProtocol)
    assert channel() is None, "something still holds the channel"


class Wrapper(ProtocolWrapper):
    """As TLS and the PROXY protocol are: between socket and protocol."""


def test_a_wrapped_connection_is_handed_over_within_its_wrapper(house: House) -> None:
    for data, protocol in (
        (upgrade(), ResponsesProtocol),
        (b"GET / HTTP/1.1\r\n\r\n", HttpChannel),
    ):
        client = house.client()
        client.transport.unregisterProducer()
        wrapper = Wrapper(WrappingFactory(house.site), house.site.buildProtocol(None))
        client.transport.protocol = wrapper
        wrapper.makeConnection(client.transport)
        client.gives(data)
        assert client.protocol is wrapper, "the wrapper has to stay next to the socket"
        assert isinstance(wrapper.wrappedProtocol, protocol)
        assert not IHandshakeListener.providedBy(wrapper.wrappedProtocol)


# --- bounds --------------------------------------------------------------------------------


def test_an_endless_head_is_refused(house: House) -> None:
    client = house.client()
    client.gives(b"GET /v1/responses HTTP/1.1\r\nx: ")
    for _ in range(70):
        if not client.is_closed:
            client.gives(b"x" * 4096)
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (431, "headers_too_long")
    assert client.is_closed


@pytest.mark.parametrize("said", [b"", b"GET /v1/resp"])
def test_a_client_that_does_not_say_what_it_wants_is_dropped(
    build: Callable[..., House], said: bytes
) -> None:
    house = build(timeouts=TimeoutSettings(handshake_seconds=10))
    client = house.client()
    if said:
        client.gives(said)
    house.reactor.advance(9.9)
    assert not client.is_closed
    house.reactor.advance(0.2)
    assert client.is_closed


def test_a_client_may_leave_without_a_word(house: House) -> None:
    client = house.client()
    assert len(house.limiter.silent) == 1
    client.is_lost()
    assert not house.limiter.silent


@pytest.mark.parametrize("before", [0, 1])
def test_an_unfinished_head_is_counted_until_it_is_whole(house: House, before: int) -> None:
    """Of the first request and of a later one; each byte once, however it comes."""
    client, incoming = house.client(), house.limiter.incoming
    for _ in range(before):
        assert client.asks("GET", "/v1/nothing").status == 404
    head = client.request("GET", "/v1/nothing")
    for at, byte in enumerate(head[:-1], start=1):
        client.gives(bytes([byte]))
        ends = head[:at].count(b"\r\n")
        assert at - 2 * ends <= incoming.bytes <= at
    client.gives(head[-1:])
    assert incoming.bytes == 0
    assert client.answer().status == 404


@pytest.mark.parametrize("how", ["lost", "too slow", "malformed"])
def test_an_unfinished_head_takes_no_room_after_its_end(house: House, how: str) -> None:
    client = house.client()
    client.gives(b"GET /v1/nothing HTTP/1.1\r\nx: yyyy")
    assert house.limiter.incoming.bytes
    assert len(house.limiter.silent) == 1
    if how == "lost":
        client.is_lost()
    elif how == "too slow":
        house.reactor.advance(61)
        assert client.answer().status == 408
    else:
        client.gives(b"\r\nno colon\r\n\r\n")
        assert client.answer().status == 400
    assert house.limiter.incoming.bytes == 0
    assert not house.limiter.silent


def test_a_pipelined_head_that_is_not_whole_is_counted_after_the_answer(house: House) -> None:
    client, incoming = house.client(), house.limiter.incoming
    client.creates()
    client.gives(b"GET /v1/nothing HTTP/1.1\r\nx: ")
    assert incoming.bytes == 0, "it is bounded by what is read ahead"
    house.sent().sends(*turn_events([text_item()], "resp_1"))
    assert client.answer().status == 200
    assert incoming.bytes == len(b"GET /v1/nothing HTTP/1.1x: ")
    client.gives(b"y\r\n\r\n")
    assert client.answer().status == 404
    assert incoming.bytes == 0


# --- an upgrade on a kept connection -------------------------------------------------------


def test_an_upgrade_may_follow_requests_on_the_same_connection(house: House) -> None:
    """As behind a proxy that keeps its connections."""
    client = house.client()
    assert client.asks("GET", "/v1/nothing").status == 404
    wire = WSConnection(ConnectionType.CLIENT)
    client.gives(upgrade(wire))
    assert isinstance(client.protocol, ResponsesProtocol)
    wire.receive_data(client.bytes_out)
    assert isinstance(next(wire.events()), AcceptConnection)
    assert len(house.limiter) == 1, "it is one connection, not two"
    client.transport.clear()
    client.gives(wire.send(Ping(payload=b"there?")))
    wire.receive_data(client.bytes_out)
    assert [event.payload for event in wire.events() if isinstance(event, Pong)] == [b"there?"]


def test_an_upgrade_may_be_pipelined_with_its_first_frame(house: House) -> None:
    client = house.client()
    wire = WSConnection(ConnectionType.CLIENT)
    eager = upgrade(wire)
    frame = b"\x89\x85\x00\x00\x00\x00hello"  # a masked ping
    client.gives(client.request("GET", "/v1/nothing") + eager + frame)
    assert client.answer().status == 404
    wire.receive_data(client.bytes_out)
    accepted, pong = wire.events()
    assert isinstance(accepted, AcceptConnection)
    assert isinstance(pong, Pong)
    assert pong.payload == b"hello"


def test_a_refused_upgrade_on_a_kept_connection_ends_it(house: House) -> None:
    client = house.client()
    assert client.asks("GET", "/v1/nothing").status == 404
    client.gives(upgrade().replace(b"sk-client", b"sk-wrong"))
    assert client.answer().status == 401
    assert client.is_closed


# --- WebSocket switched off ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["for all", "for a key"])
def test_10_07_switched_off_is_426(build: Callable[..., House], how: str) -> None:
    if how == "for all":
        house = build(session=SessionSettings(websocket=False))
    else:
        house = build(keys=[type(key)(name=key.name, key=key.key, websocket=False) for key in KEYS])
    client = house.client()
    client.gives(upgrade())
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (426, "websocket_disabled")
    assert answer.headers["upgrade"] == "websocket", "RFC 9110 15.5.22"
    assert client.is_closed


def test_switched_off_still_asks_for_a_key(build: Callable[..., House]) -> None:
    house = build(session=SessionSettings(websocket=False))
    client = house.client()
    client.gives(upgrade().replace(b"sk-client", b"sk-wrong"))
    assert client.answer().status == 401
