"""The WebSocket door in memory: a strict client's bytes in, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import txaio
from twisted.internet.error import ConnectionDone
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Message,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.extensions import PerMessageDeflate

from gateway.config import LimitSettings, SessionSettings, TimeoutSettings
from tests.server.websocket_client import KEY, Client, Door, Transport
from tests.support.events import text_item, turn_events


@pytest.fixture(autouse=True)
def autobahns_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autobahn's own timers run on one global reactor; each door puts its own there."""
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)


@pytest.fixture
def door() -> Iterator[Door]:
    """One door; after the test all connections end, and nothing of them may be left."""
    door = Door()
    yield door
    for client in door.clients:
        client.is_lost()
    door.check_rest()


# --- handshake -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/responses", "/backend-api/codex/responses"])
@pytest.mark.parametrize("query", ["", "?api-version=2026-02-06"])
def test_clients_get_in_on_both_paths(door: Door, path: str, query: str) -> None:
    client = door.client(path + query)
    assert client.is_open
    (accepted,) = client.events
    assert isinstance(accepted, AcceptConnection)
    assert (accepted.subprotocol, accepted.extensions) == (None, [])
    assert len(door.factory.connections) == 1


def test_long_and_unknown_headers_and_offers_do_not_matter(door: Door) -> None:
    headers = [
        *KEY,
        ("x-codex-turn-metadata", "x" * 20_000),
        ("openai-beta", "responses_websockets=2026-02-06"),
    ]
    client = door.client(headers=headers, extensions=[PerMessageDeflate()])
    assert client.is_open


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/v1/responses", [], 401, "invalid_api_key"),
        ("/v1/responses", [("authorization", "Bearer wrong")], 401, "invalid_api_key"),
        ("/v1/chat/completions", KEY, 404, "unknown_url"),
    ],
)
def test_a_refusal_is_an_http_answer_in_the_apis_shape(
    door: Door, path: str, headers: Any, status: int, code: str | None
) -> None:
    client = door.client(path, headers)
    found, fields, body = client.refusal
    assert (found, body["error"]["code"]) == (status, code)
    assert fields["content-type"] == "application/json"
    assert fields["connection"] == "close"
    assert client.transport.disconnecting
    client.is_lost()


def test_strangers_fill_no_log(door: Door) -> None:
    with capturedLogs() as logged:
        for _ in range(10):
            client = door.client(headers=[])
            assert client.refusal[0] == 401
            client.is_lost()
    told = [formatEvent(event) for event in logged if event["log_level"] > LogLevel.debug]
    assert told == ["a client at 192.168.1.1 was turned away: invalid_api_key"]


def test_a_gateway_that_stops_says_when_to_come_again(door: Door) -> None:
    emptied: list[bool] = []
    door.limiter.drain()
    door.limiter.call_when_empty(lambda: emptied.append(True))
    assert emptied == [True]
    client = door.client()
    status, fields, _ = client.refusal
    assert (status, fields["retry-after"]) == (503, "5")
    client.is_lost()


def test_a_full_gateway_says_so() -> None:
    door = Door(limits=LimitSettings(max_connections=1))
    first, second = door.client(), door.client()
    assert first.is_open
    assert second.refusal[0] == 503
    first.is_lost()
    assert door.client().is_open, "a place became free"


def test_without_keys_web_pages_stay_outside() -> None:
    door = Door(keys=())
    assert door.client(headers=[]).is_open
    assert door.client(headers=[("origin", "http://evil.test")]).refusal[0] == 403


def test_a_wrong_websocket_version_gets_426(door: Door) -> None:
    protocol, transport = door.factory.buildProtocol(None), Transport()
    protocol.makeConnection(transport)
    lines = [
        "GET /v1/responses HTTP/1.1",
        "host: x",
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version: 7",
    ]
    protocol.dataReceived("\r\n".join([*lines, "", ""]).encode())
    answer = transport.value().lower()
    assert answer.startswith(b"http/1.1 426 ")
    assert b"sec-websocket-version: 13" in answer
    protocol.connectionLost(Failure(ConnectionDone()))


def test_who_connects_and_says_nothing_is_dropped_and_who_is_in_may_be_silent(door: Door) -> None:
    silent, transport = door.factory.buildProtocol(None), Transport()
    silent.makeConnection(transport)
    client = door.client()
    for _ in range(120):
        door.reactor.advance(10)
    assert transport.disconnecting or transport.disconnected
    silent.connectionLost(Failure(ConnectionDone()))
    client.read()
    assert client.is_open
    assert client.close_code is None
    assert any(isinstance(event, Ping) for event in client.events)


# --- messages ------------------------------------------------------------------------------


def test_a_turn_runs_from_frame_to_frames(door: Door) -> None:
    client = door.client()
    client.create()
    events = turn_events([text_item("größer 🜨")], "resp_1")
    door.world.exchanges()[-1].sends(*events)
    client.read()
    assert client.frames == events


def test_a_message_may_come_in_pieces_between_pings(door: Door) -> None:
    client = door.client()
    text = json.dumps({"type": "response.create", "model": "é", "input": "hi"}, ensure_ascii=False)
    data = client.wire.send(Message(data=text[:20], message_finished=False))
    data += client.wire.send(Ping(payload=b"now"))
    data += client.wire.send(Message(data=text[20:], message_finished=True))
    for byte in data:
        client.protocol.dataReceived(bytes([byte]))
    client.read()
    assert [event.payload for event in client.events if isinstance(event, Pong)] == [b"now"]
    assert door.world.exchanges()[-1].body["model"] == "é"


def test_a_binary_message_is_answered(door: Door) -> None:
    client = door.client()
    client.sends(BytesMessage(data=b'{"type":"response.create"}'))
    assert client.frames[-1]["status"] == 400
    assert client.is_open


def test_a_message_that_is_too_long_is_answered_and_the_next_one_is_read() -> None:
    door = Door(session=SessionSettings(max_message_bytes=2048))
    client = door.client()
    client.create(metadata={"x": "x" * 2048})
    assert client.frames[-1]["error"]["code"] == "message_too_long"
    half = TextMessage(data="x" * 1500, message_finished=False)
    client.protocol.dataReceived(client.wire.send(half))
    client.sends(TextMessage(data="x" * 1500, message_finished=True))
    assert [frame["error"]["code"] for frame in client.frames] == ["message_too_long"] * 2
    client.create()
    assert len(door.world.exchanges()) == 1
    assert client.is_open


def test_compression_is_declined_unless_the_operator_wants_it() -> None:
    assert door_with(False).client(extensions=[PerMessageDeflate()]).is_open
    client = door_with(True).client(extensions=[PerMessageDeflate()])
    (accepted,) = client.events
    assert isinstance(accepted, AcceptConnection)
    assert len(accepted.extensions) == 1
    client.create(metadata={"x": "x" * 5000})
    client.says(type="response.steer")
    assert client.frames[-1]["type"] == "response.steer.failed", "frames go out uncompressed"


def door_with(compression: bool, **session: Any) -> Door:
    return Door(session=SessionSettings(compression=compression, **session))


def test_a_compressed_message_counts_with_its_whole_length() -> None:
    """A few kilobytes may unfold to gigabytes."""
    client = door_with(True, max_message_bytes=4096).client(extensions=[PerMessageDeflate()])
    client.create(metadata={"x": "x" * 1_000_000})
    assert client.events[1:], "it was read whole"
    if client.frames:
        assert client.frames[-1]["error"]["code"] == "message_too_long"
    else:
        assert client.close_code == 1009


# --- back-pressure -------------------------------------------------------------------------


def running(door: Door) -> Client:
    client = door.client()
    client.create()
    return client


def test_a_slow_client_pauses_its_upstream_however_often_it_is_told(door: Door) -> None:
    client = running(door)
    producer = client.transport.producer
    assert client.transport.streaming
    for _ in range(5):
        producer.pauseProducing()
    (exchange,) = door.world.exchanges()
    assert exchange.paused
    producer.resumeProducing()
    producer.resumeProducing()
    assert not exchange.paused
    door.reactor.advance(1000)
    client.read()
    assert client.is_open, "a client that caught up must not be dropped"


def test_a_slow_client_pauses_nobody_else(door: Door) -> None:
    slow = running(door)
    running(door)
    slow.transport.producer.pauseProducing()
    assert [exchange.paused for exchange in door.world.exchanges()] == [True, False]


def test_a_client_that_reads_nothing_is_dropped_in_the_end() -> None:
    door = Door(timeouts=TimeoutSettings(stall_seconds=60))
    client = running(door)
    client.transport.producer.pauseProducing()
    door.reactor.advance(59)
    assert not client.transport.disconnected
    door.reactor.advance(2)
    assert client.transport.disconnected
    client.is_lost()
    assert door.world.exchanges()[0].state == "cancelled"
    door.check_rest()


def test_pongs_that_nobody_asked_for_leave_no_trace(door: Door) -> None:
    client = door.client()
    with capturedLogs() as logged:
        door.reactor.advance(35)
        client.read()
        (ping,) = [event for event in client.events if isinstance(event, Ping)]
        for _ in range(10):
            client.sends(Pong(payload=b"unasked"))
        assert not [event for event in logged if event["log_level"] >= LogLevel.warn]
        client.sends(ping.response())
        client.sends(ping.response())
        assert not [event for event in logged if event["log_level"] >= LogLevel.warn]
    client.events.clear()
    door.reactor.advance(35)
    client.read()
    assert [type(event) for event in client.events] == [Ping], "the pings go on"


def test_a_client_that_reads_nothing_gets_one_pong_for_all_its_pings(door: Door) -> None:
    """The pongs would fill the memory (RFC 6455 §5.5.3 asks for the last one only)."""
    client = running(door)
    client.transport.producer.pauseProducing()
    for number in range(1000):
        client.protocol.dataReceived(client.wire.send(Ping(payload=str(number).encode())))
    assert client.transport.value() == b""
    client.transport.producer.resumeProducing()
    client.read()
    pongs = [event.payload for event in client.events if isinstance(event, Pong)]
    assert pongs == [b"999"]
    client.sends(Ping(payload=b"and now"))
    assert isinstance(client.events[-1], Pong)


# --- the end -------------------------------------------------------------------------------


def test_a_lost_connection_cancels_at_once_and_leaves_nothing(door: Door) -> None:
    client = running(door)
    client.is_lost()
    assert door.world.exchanges()[0].state == "cancelled"
    assert not door.factory.connections


def test_a_client_may_say_goodbye(door: Door) -> None:
    client = running(door)
    client.sends(CloseConnection(code=1000))
    assert client.transport.disconnecting
    client.is_lost()
    assert door.world.exchanges()[0].state == "cancelled"


def test_events_after_the_close_are_not_written(door: Door) -> None:
    client = running(door)
    client.sends(CloseConnection(code=1000))
    client.transport.clear()
    door.world.exchanges()[0].sends(*turn_events([text_item()], "resp_1"))
    assert client.transport.value() == b""


def test_when_the_gateway_stops_idle_clients_go_first(door: Door) -> None:
    idle, busy = door.client(), running(door)
    emptied: list[bool] = []
    door.limiter.drain()
    door.limiter.call_when_empty(lambda: emptied.append(True))
    idle.read()
    busy.read()
    assert (idle.close_code, busy.close_code) == (1012, None)
    idle.is_lost()
    door.world.exchanges()[0].sends(*turn_events([text_item()], "resp_1"))
    busy.read()
    assert busy.frames[-1]["type"] == "response.completed"
    assert busy.close_code == 1012
    assert emptied == []
    busy.is_lost()
    assert emptied == [True]


def test_an_idle_connection_closes_towards_its_greatest_age(door: Door) -> None:
    client = door.client()
    door.world.clock.advance(3600 * 0.84)
    client.read()
    assert client.close_code is None
    door.world.clock.advance(3600 * 0.12)
    client.read()
    assert client.close_code == 1001, "SDKs reconnect after it"
    client.is_lost()
    assert door.factory.moved == 1


def test_when_time_is_up_all_clients_are_told_to_come_again(door: Door) -> None:
    client = running(door)
    door.limiter.drain()
    door.limiter.abandon()
    client.read()
    assert client.frames[-1]["error"]["code"] == "gateway_restart"
    assert client.close_code == 1012


def test_a_client_that_never_answers_the_close_is_dropped(door: Door) -> None:
    client = door.client()
    door.limiter.drain()
    door.reactor.advance(2.1)
    door.reactor.advance(2.1)
    assert client.transport.disconnecting or client.transport.disconnected
