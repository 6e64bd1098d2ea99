"""Stopping and draining a running gateway: who may finish, who is turned away, what is counted."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.checks import completed
from tests.support.events import Json
from tests.support.gateway import Gateway, account
from tests.support.httpclient import Answer, HttpClient
from tests.support.ports import free_port
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import Refused, WsClient

pytestmark = pytest.mark.e2e

TOKEN = "token-of-the-operator"


def hang(exchange: Exchange) -> None:
    """Begin an answer that has no end."""
    exchange.sse(*exchange.turn()[:5])
    exchange.hold()


def test_a_second_signal_ends_what_the_first_one_waits_for(tmp_path: Path) -> None:
    upstream = Upstream(hang)
    patience = {"shutdown_seconds": 600}
    gateway = Gateway(tmp_path, {"accounts": [account("solo", upstream)], "timeouts": patience})
    try:
        client, idle = gateway.connect(), gateway.connect()
        client.create()
        client.until("response.output_text.delta")
        gateway.terminate()
        assert idle.wait_closed() == 1012, "the first one was heard"
        gateway.process.send_signal(signal.SIGTERM)
        last = client.until_terminal()[-1]
        assert last["type"] == "response.failed"
        assert last["response"]["error"]["code"] == "server_error"
        assert client.wait_closed() == 1012
        assert gateway.process.wait(30) in (0, -signal.SIGTERM)
        assert "a second signal" in gateway.log()
    finally:
        gateway.stop()  # and looks for errors in the log: Twisted's own would be one
        upstream.stop()


def operate(gateway: Gateway, method: str, path: str) -> Answer:
    client = HttpClient(gateway.admin_port, TOKEN)
    try:
        return client.ask(method, path, body=b"" if method == "POST" else None)
    finally:
        client.sock.close()


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[tuple[Gateway, Upstream]]:
    upstream = Upstream()
    listen = f"tcp:{free_port()}:interface=127.0.0.1"
    config: Json = {
        "accounts": [account("solo", upstream)],
        "admin": {"listen": listen, "token": TOKEN},
        "timeouts": {"shutdown_seconds": 15},
    }
    gateway = Gateway(tmp_path, config)
    gateway.admin_port = int(listen.split(":")[1])
    yield gateway, upstream
    gateway.stop()
    upstream.stop()


def test_a_drained_gateway_turns_clients_away_until_it_is_resumed(
    gateway: tuple[Gateway, Upstream],
) -> None:
    drained, upstream = gateway
    release = threading.Event()

    def held(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:5])
        exchange.hold(release)
        exchange.sse(*events[5:])
        exchange.end()

    upstream.queue(held, held)
    idle, streaming = HttpClient(drained.port), HttpClient(drained.port)
    quiet, busy = drained.connect(), drained.connect()
    streaming.post(stream=True)
    upstream.wait_for(1)
    busy.create()
    upstream.wait_for(2)
    assert idle.ask("GET", "/v1/nothing").status == 404

    assert operate(drained, "GET", "/readyz").status == 200
    assert operate(drained, "POST", "/admin/drain").status == 200
    ready = operate(drained, "GET", "/readyz")
    assert (ready.status, ready.json) == (503, {"status": "draining"})
    assert operate(drained, "GET", "/livez").status == 200
    assert idle.sock.recv(1) == b"", "an idle connection is closed"
    assert quiet.wait_closed() == 1012
    with pytest.raises(Refused) as refusal:
        drained.connect()
    post = HttpClient(drained.port).create()
    for status, headers in (
        (refusal.value.status, refusal.value.headers),
        (post.status, post.headers),
    ):
        assert status == 503
        assert int(headers["retry-after"]) >= 1
    shown = operate(drained, "GET", "/status").json
    assert (shown["state"], shown["ready"]) == ("draining", False)
    figures = shown["drain"]
    assert (figures["turns_left"], figures["websockets_left"], figures["moved"]) == (1, 1, 1)
    assert figures["connections_left"] == 2

    release.set()
    completed(busy.until_terminal())
    assert streaming.answer().events[-1]["type"] == "response.completed"
    assert streaming.sock.recv(1) == b"", "and a busy one after its answer"
    assert busy.wait_closed() == 1012
    metrics = operate(drained, "GET", "/metrics").body.decode()
    assert 'gateway_drained_total{outcome="completed"} 2' in metrics
    assert 'gateway_drained_total{outcome="moved"} 2' in metrics
    assert "drained in" in drained.log()

    assert operate(drained, "POST", "/admin/resume").status == 200
    assert operate(drained, "GET", "/readyz").status == 200
    completed(drained.connect().turn())
    assert HttpClient(drained.port).create().status == 200


def test_idle_sockets_close_one_after_the_other(gateway: tuple[Gateway, Upstream]) -> None:
    stopping, _ = gateway
    clients = [stopping.connect() for _ in range(20)]
    stopping.terminate()
    closed: list[float] = []

    def watch(client: WsClient) -> None:
        assert client.wait_closed(30) == 1012
        closed.append(time.monotonic())

    with ThreadPoolExecutor(len(clients)) as pool:
        list(pool.map(watch, clients))
    # Twenty take two seconds; a busy machine only makes it longer.
    assert max(closed) - min(closed) > 1
    assert stopping.process.wait(30) in (0, -signal.SIGTERM)
    assert ": 0 turns completed, 20 connections moved, 0 turns cut" in stopping.log()
