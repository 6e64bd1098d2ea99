"""Handshake and transport: protocol.md §2, §10.1-17; switched off (§10.7): test_http.py."""

from __future__ import annotations

import json
import threading
import time

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import (
    assert_error,
    assert_strictly_increasing,
    completed,
    note,
    output_text,
)
from tests.support.events import Json, text_item
from tests.support.gateway import account
from tests.support.upstream import Exchange, Script
from tests.support.wsclient import DEFLATE, TEXT, Refused, SocketClosed, WsClient, create

pytestmark = pytest.mark.conformance

BETA = ("OpenAI-Beta", "responses_websockets=2026-02-06")
MIB = 1024 * 1024


@pytest.mark.parametrize("path", ["/v1/responses", "/backend-api/codex/responses"])
def test_10_01_bearer_without_beta_header_is_accepted(rig: Rig, path: str) -> None:
    client = rig.connect(path=path)
    assert output_text(client.turn()) == "hello"


def test_10_02_beta_and_many_large_codex_headers_are_accepted(rig: Rig) -> None:
    metadata = json.dumps({"turn_id": "", "request_kind": "prewarm", "pad": "x" * 7000})
    headers = [BETA, ("x-codex-turn-metadata", metadata), ("originator", "codex_exec")]
    headers += [(f"x-codex-unknown-{number}", "v" * 50) for number in range(40)]
    client = rig.connect(headers=headers)
    completed(client.turn())


@pytest.mark.parametrize("names", [("session-id", "thread-id"), ("session_id", "conversation_id")])
def test_10_03_both_spellings_of_the_session_headers(rig: Rig, names: tuple[str, str]) -> None:
    client = rig.connect(headers=[BETA, *((name, "0199aa00-0000-7000") for name in names)])
    completed(client.turn())


@pytest.mark.parametrize("offer", [None, "permessage-deflate", DEFLATE])
def test_10_04_deflate_offered_or_not(rig: Rig, offer: str | None) -> None:
    client = rig.connect(extensions=offer)
    assert not client.compressed, "deflate is declined unless session.compression says so"
    completed(client.turn())


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        ("wrong", []),
        (None, []),
        ("", []),
        (None, [("Authorization", "Basic a2V5LWxhcHRvcA==")]),
        (None, [("Authorization", "key-laptop")]),
        ("key-laptop-and-more", []),
    ],
)
def test_10_05_bad_key_is_401_before_upgrade(
    rig: Rig, key: str | None, headers: list[tuple[str, str]]
) -> None:
    with pytest.raises(Refused) as refusal:
        rig.connect(key=key, headers=headers)
    assert refusal.value.status == 401, "the gateway has to refuse a bad key with 401"
    assert rig.upstream.requests == []


def test_10_05_the_401_says_invalid_api_key(rig: Rig) -> None:
    with pytest.raises(Refused) as refusal:
        rig.connect(key="wrong")
    error = json.loads(refusal.value.body)["error"]
    assert error["code"] == "invalid_api_key", "protocol.md §5.3"
    assert b"wrong" not in refusal.value.body, "a refusal must not repeat the key"


VALID: list[Json] = [
    {"path": "/v1/responses?api-version=2026&unknown=%20x"},
    {"headers": [("Sec-WebSocket-Protocol", "realtime, openai-insecure-api-key.x")]},
    {"headers": [("Origin", "https://example.test")]},
    {"headers": [("Origin", "null")]},
    {"headers": [("X-Forwarded-For", "10.0.0.1"), ("Via", "1.1 a"), ("Cookie", "a=b; c=d")]},
    {"headers": [("X-Twice", "1"), ("X-Twice", "2")]},
    {"headers": [("x-oai-attestation", "caf\xe9")]},
    {"host": "gateway.example"},
    {"host": "gateway.example:443"},
    {"host": "[::1]:8080"},
    {"connection": "keep-alive, Upgrade"},
    {"extensions": "permessage-deflate; client_max_window_bits=9; server_max_window_bits=9"},
    {"extensions": "permessage-deflate; unheard_of=1"},
    {"extensions": "x-webkit-deflate-frame, permessage-deflate"},
    {"headers": [("Accept", "application/json"), ("Content-Type", "application/json")]},
]


@pytest.mark.parametrize("options", VALID, ids=lambda options: str(options)[:60])
def test_10_06_a_valid_upgrade_is_never_answered_with_400(rig: Rig, options: Json) -> None:
    client = rig.connect(**options)
    completed(client.turn())


def test_10_06_an_old_websocket_version_gets_426(rig: Rig) -> None:
    with pytest.raises(Refused) as refusal:
        rig.connect(version="12")
    assert refusal.value.status == 426
    assert "13" in refusal.value.headers.get("sec-websocket-version", "")


def test_10_06_another_path_gets_404(rig: Rig) -> None:
    with pytest.raises(Refused) as refusal:
        rig.connect(path="/v1/nothing")
    assert refusal.value.status == 404


def test_10_08_sockets_with_the_same_session_are_independent(rig: Rig) -> None:
    headers = [("session-id", "same"), ("thread-id", "same")]
    first, second = rig.connect(headers=headers), rig.connect(headers=headers)
    release = threading.Event()
    warm_first = completed(first.turn(generate=False, input=[], store=False))
    warm_second = completed(second.turn(generate=False, input=[], store=False))
    assert warm_first["id"] != warm_second["id"], "each socket has responses of its own"
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    first.create(input="held", store=False, previous_response_id=warm_first["id"])
    rig.upstream.wait_for(1)
    events = second.turn(input="free", store=False, previous_response_id=warm_second["id"])
    assert output_text(events) == "hello", "one socket must not wait for the other"
    release.set()
    completed(first.until_terminal())
    held, free = (json.dumps(request.input) for request in rig.upstream.requests)
    assert "held" in held
    assert "held" not in free, "nothing of one socket reaches the other"


def test_10_09_a_silent_socket_stays(stage: Stage) -> None:
    upstream = stage.upstream()
    gateway = stage.gateway(
        account("solo", upstream),
        timeouts={"handshake_seconds": 2, "first_byte_seconds": 0.5, "idle_seconds": 0.5},
        session={"keepalive_seconds": 0.3},
    )
    client = gateway.connect()
    client.assert_silent(3.5)
    completed(client.turn())


def test_10_10_pings_are_answered_while_the_upstream_is_blocked(rig: Rig) -> None:
    release = threading.Event()
    rig.upstream.queue(lambda exchange: exchange.hold(release) and exchange.answer())
    client = rig.connect()
    client.create()
    rig.upstream.wait_for(1)
    began = time.monotonic()
    for number in range(3):
        client.ping(b"p%d" % number)
        client.wait_pong(number + 1, timeout=10)
    note(f"3 pongs within {time.monotonic() - began:.3f} s")
    assert client.pongs == [b"p0", b"p1", b"p2"]
    release.set()
    completed(client.until_terminal())


@pytest.mark.parametrize("size", [16 * MIB - 1, 64 * MIB], ids=["16MiB-1", "64MiB"])
def test_10_11_large_client_messages_arrive_whole(rig: Rig, size: int) -> None:
    client = rig.connect(timeout=60)
    frame = json.dumps(create(input="@")).encode()
    text = b"x" * (size - len(frame) + 1)
    client.send_frame(TEXT, frame.replace(b"@", text))
    completed(client.until_terminal())
    request = rig.upstream.wait_for(1)[0]
    whole = text in request.raw
    assert whole, f"the upstream expected the whole {size} byte message"
    rig.upstream.reset()


def test_10_12_server_frames_stay_below_16_mib(rig: Rig) -> None:
    text = "y" * (17 * MIB)

    def large(exchange: Exchange) -> None:
        exchange.answer([text_item(text)], pieces=1)

    rig.upstream.queue(large)
    client = rig.connect(timeout=60)
    events = client.turn()
    assert output_text(events) == text
    longest = max(frame.length for frame in client.tap.frames)
    assert longest < 16 * MIB, f"a frame of {longest} bytes ends the connection of a client"


def test_10_13_only_text_frames(rig: Rig) -> None:
    client = rig.connect()
    client.turn()
    client.send_binary(b"\x00\x01")
    assert_error(client.event(), 400)
    opcodes = {frame.opcode for frame in client.tap.frames}
    assert opcodes == {TEXT}, f"only text frames are expected, got opcodes {opcodes}"


def test_10_14_no_subprotocol_is_selected(rig: Rig) -> None:
    client = rig.connect(headers=[("Sec-WebSocket-Protocol", "responses, other")])
    assert "sec-websocket-protocol" not in client.headers


@pytest.mark.parametrize("how", ["drop", "reset", "close"])
@pytest.mark.parametrize("phase", ["before the head", "after created", "in the output"])
def test_10_15_a_lost_client_cancels_its_upstream(rig: Rig, how: str, phase: str) -> None:
    def hang(exchange: Exchange) -> None:
        if phase != "before the head":
            events = exchange.turn()
            exchange.sse(*(events[:2] if phase == "after created" else events[:5]))
        exchange.hold()

    rig.upstream.queue(hang)
    client = rig.connect()
    client.create()
    request = rig.upstream.wait_for(1)[0]
    if phase == "in the output":
        client.until("response.output_text.delta")
    else:
        time.sleep(0.1)  # let the head pass; nothing tells from outside when it did
    began = time.monotonic()
    getattr(client, how)()
    assert request.wait_gone(2.0), "the upstream expected to be cancelled when the client left"
    assert request.gone_at is not None
    note(f"{how} {phase}: upstream cancelled after {1000 * (request.gone_at - began):.1f} ms")
    completed(rig.connect().turn())  # the account is not to blame


def keepalive_gateway(stage: Stage, script: Script, **session: object) -> WsClient:
    upstream = stage.upstream(script)
    options = {"keepalive_seconds": 0.2, "hold_seconds": 0.3, **session}
    return stage.gateway(account("solo", upstream), session=options).connect()


@pytest.mark.parametrize("phase", ["head", "created", "output"])
def test_10_16_text_events_while_the_upstream_is_silent(stage: Stage, phase: str) -> None:
    release = threading.Event()

    def silent(exchange: Exchange) -> None:
        events = exchange.turn()
        at = {"head": 0, "created": 2, "output": 5}[phase]
        if at:
            exchange.sse(*events[:at])
        exchange.hold(release)
        exchange.sse(*events[at:])
        exchange.end()

    client = keepalive_gateway(stage, silent)
    client.create()
    if phase == "created":
        client.until("response.in_progress")
    elif phase == "output":
        client.until("response.output_text.delta")
    alive = [client.event(10) for _ in range(4)]
    for event in alive:
        assert isinstance(event.get("type"), str), "a keep-alive is an event like others"
        assert event["type"] not in ("error", "response.completed", "response.failed"), event
        if phase != "head" and event["type"] == "response.in_progress":
            assert event["response"]["status"] == "in_progress"
    release.set()
    rest = client.until_terminal()
    final = completed(rest)
    repeated = [e["response"]["id"] for e in alive if "response" in e]
    assert set(repeated) <= {final["id"]}, "a repeated in_progress has the id of its response"
    events = [json.loads(text) for text in client.texts]
    assert_strictly_increasing(events)


def test_10_16_keepalives_while_a_turn_is_queued(stage: Stage) -> None:
    release = threading.Event()
    client = keepalive_gateway(stage, lambda e: e.hold(release) and e.answer())
    client.create()
    client.create()
    assert len([client.event(10) for _ in range(5)]) == 5
    release.set()
    completed(client.until_terminal())
    completed(client.until_terminal())


def test_10_17_age_limit_ends_the_connection_between_responses(stage: Stage) -> None:
    release = threading.Event()
    upstream = stage.upstream(lambda exchange: exchange.hold(release) and exchange.answer())
    gateway = stage.gateway(account("solo", upstream), session={"max_age_minutes": 0.02})
    client = gateway.connect()
    client.create()
    upstream.wait_for(1)
    time.sleep(1.6)  # 0.02 minutes are 1.2 s
    release.set()
    completed(client.until_terminal())
    try:
        client.create()
        error = client.event()
    except (SocketClosed, OSError):
        pytest.fail("the client expected websocket_connection_limit_reached before the close")
    assert_error(error, 400, "websocket_connection_limit_reached")
    client.wait_closed()
    assert len(upstream.requests) == 1, "nothing is sent upstream for the refused turn"
    completed(gateway.connect().turn())


def test_10_98_an_idle_connection_rolls_over_before_its_age_limit(stage: Stage) -> None:
    upstream = stage.upstream()
    gateway = stage.gateway(account("solo", upstream), session={"max_age_minutes": 0.05})
    client = gateway.connect()
    completed(client.turn())
    assert client.wait_closed() == 1001, "SDKs reconnect after 1001, not after 1000"
    completed(gateway.connect().turn())


@pytest.mark.parametrize("offer", ["permessage-deflate", DEFLATE])
def test_compression_is_accepted_when_configured(stage: Stage, offer: str) -> None:
    upstream = stage.upstream()
    gateway = stage.gateway(account("solo", upstream), session={"compression": True})
    client = gateway.connect(extensions=offer)
    assert client.compressed, "session.compression: true has to accept permessage-deflate"
    for word in ("first", "second", "third"):  # context takeover: later frames refer to earlier
        completed(client.turn(input=word * 500))
        assert word * 500 in upstream.requests[-1].raw.decode()
    frames = [frame for frame in client.tap.frames if frame.opcode == TEXT]
    assert not any(frame.rsv1 for frame in frames), "small event frames go out uncompressed"
    completed(gateway.connect().turn())


def test_10_99_a_stopping_gateway_closes_between_turns_and_refuses_upgrades(stage: Stage) -> None:
    release = threading.Event()
    upstream = stage.upstream(lambda exchange: exchange.hold(release) and exchange.answer())
    gateway = stage.gateway(account("solo", upstream), timeouts={"shutdown_seconds": 15})
    busy, idle = gateway.connect(), gateway.connect()
    busy.create()
    upstream.wait_for(1)
    gateway.terminate()
    assert idle.wait_closed() == 1012, "idle sockets are closed with 1012 on shutdown"
    with pytest.raises(Refused) as refusal:
        gateway.connect()
    assert refusal.value.status == 503
    assert int(refusal.value.headers["retry-after"]) >= 1
    release.set()
    completed(busy.until_terminal())
    assert busy.wait_closed() == 1012
    assert gateway.process.wait(15) in (0, -15), "twistd passes SIGTERM on after a clean stop"


def test_stopping_gateway_tells_turns_that_outlast_it(stage: Stage) -> None:
    def hang(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:5])
        exchange.hold()

    upstream = stage.upstream(hang)
    gateway = stage.gateway(account("solo", upstream), timeouts={"shutdown_seconds": 0.5})
    client = gateway.connect()
    client.create()
    client.until("response.output_text.delta")
    gateway.terminate()
    last = client.until_terminal()[-1]
    assert last["type"] == "response.failed", "no silent close: the turn has to be told"
    assert last["response"]["error"]["code"] == "server_error"
    assert client.wait_closed() == 1012
