"""Upstreams that refuse connections, fall silent or speak something else: the issue's list."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.helpers import hung, refusing, solo
from tests.support.checks import (
    assert_error,
    assert_failed,
    assert_failed_or_502,
    assert_one_terminal,
    note,
    output_text,
)
from tests.support.events import Json
from tests.support.gateway import account, free_port

pytestmark = pytest.mark.conformance


def failing_accounts(stage: Stage, kind: str) -> str:
    """A base URL where a connection fails this way."""
    if kind == "refused":
        return f"http://127.0.0.1:{free_port()}/v1"
    upstream = stage.upstream(lambda exchange: exchange.close())
    if kind == "tls":  # plain HTTP spoken where TLS is expected
        return upstream.base_url.replace("http:", "https:")
    return upstream.base_url


@pytest.mark.parametrize("kind", ["refused", "tls", "closed"])
def test_connection_failure_of_the_only_account_is_502(stage: Stage, kind: str) -> None:
    client = stage.gateway(account("solo", failing_accounts(stage, kind))).connect()
    for _ in range(2):
        events = client.turn()
        assert_failed_or_502(events)
    client.ping()
    client.wait_pong()


@pytest.mark.parametrize("kind", ["refused", "tls", "closed"])
def test_connection_failure_is_served_by_another_account(stage: Stage, kind: str) -> None:
    good = stage.upstream()
    gateway = stage.gateway(account("bad", failing_accounts(stage, kind)), account("good", good))
    for _ in range(3):
        assert output_text(gateway.connect().turn()) == "hello"


def test_a_base_url_without_listener_recovers(stage: Stage) -> None:
    """A lost connection never cools an account: the next turn finds it again."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        client = stage.gateway(account("solo", f"http://127.0.0.1:{port}/v1")).connect()
        assert_failed_or_502(client.turn())
        closed.listen()
        accepted: list[bytes] = []

        def serve() -> None:
            sock, _ = closed.accept()
            accepted.append(sock.recv(65536))
            sock.sendall(b"HTTP/1.1 400 No\r\nContent-Length: 2\r\n\r\n{}")
            sock.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert_error(client.turn()[-1], 400)
        thread.join(10)
        assert accepted


TIMEOUTS: Json = {"connect_seconds": 1, "first_byte_seconds": 0.6, "idle_seconds": 0.6}


@pytest.mark.parametrize("after", [0, 2, 5], ids=["first byte", "after created", "after output"])
def test_timeouts_of_a_silent_upstream(stage: Stage, after: int) -> None:
    upstream = stage.upstream(lambda exchange: hung(exchange, after))
    client = stage.gateway(account("solo", upstream), timeouts=TIMEOUTS).connect()
    began = time.monotonic()
    events = client.turn(timeout=20)
    note(f"gave up after {time.monotonic() - began:.2f} s")
    if after == 5:
        assert_failed(events[-1])
        assert len(upstream.requests) == 1
    else:
        assert_failed_or_502(events)
    assert upstream.requests[-1].wait_gone(5), "the upstream expected to be cancelled"
    client.assert_silent(0.2)


@pytest.mark.parametrize("after", [0, 2], ids=["first byte", "after created"])
def test_a_silent_account_is_replaced_before_output(stage: Stage, after: int) -> None:
    bad, good = stage.upstream(lambda exchange: hung(exchange, after)), stage.upstream()
    accounts = account("bad", bad), account("good", good)
    gateway = stage.gateway(*accounts, timeouts=TIMEOUTS, session={"hold_seconds": 10})
    for _ in range(2):
        events = gateway.connect().turn()
        assert output_text(events) == "hello"
    assert len(bad.requests) >= 1


def test_connect_timeout(stage: Stage) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = []  # fill the accept queue: the next connection hangs in the handshake
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
            waiting.append(sock)
        bad = f"http://127.0.0.1:{port}/v1"
        good = stage.upstream()
        alone = stage.gateway(account("solo", bad), timeouts=TIMEOUTS).connect()
        assert_failed_or_502(alone.turn(timeout=20))
        both = stage.gateway(account("bad", bad), account("good", good), timeouts=TIMEOUTS)
        for _ in range(2):
            assert output_text(both.connect().turn(timeout=20)) == "hello"
        for sock in waiting:
            sock.close()


def test_an_answer_that_is_no_event_stream_is_an_error(stage: Stage) -> None:
    html = refusing(200, b"<html>captive portal</html>", {"Content-Type": "text/html"})
    assert_failed_or_502(solo(stage, html).turn())


def test_max_attempts_bounds_the_tries(stage: Stage) -> None:
    upstreams = [stage.upstream(refusing(500, b"")) for _ in range(5)]
    accounts = [account(f"a{number}", up) for number, up in enumerate(upstreams)]
    client = stage.gateway(*accounts, routing={"max_attempts": 3}).connect()
    events = client.turn()
    assert_one_terminal(events)
    assert sum(len(upstream.requests) for upstream in upstreams) == 3
