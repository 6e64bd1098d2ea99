"""Upstreams that refuse connections, fall silent or speak something else: the issue's list."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

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
from tests.support.gateway import account
from tests.support.httpclient import HttpClient
from tests.support.ports import free_port
from tests.support.upstream import Exchange, Script

pytestmark = pytest.mark.conformance


IN_ORDER: Json = {"strategy": "fill-first"}
TIMEOUTS: Json = {"connect_seconds": 1, "first_byte_seconds": 0.6, "idle_seconds": 0.6}
KINDS = ["refused", "closed", "no tls", "untrusted", "silent tls"]


def failing_accounts(stage: Stage, kind: str) -> str:
    """A base URL where a connection fails this way."""
    if kind == "refused":
        return f"http://127.0.0.1:{free_port()}/v1"
    if kind == "closed":
        return stage.upstream(lambda exchange: exchange.close()).base_url
    if kind == "untrusted":
        return stage.upstream(tls=self_signed(stage.folder)).base_url
    return f"https://127.0.0.1:{plain_text_server(stage, answers=kind == 'no tls')}/v1"


def plain_text_server(stage: Stage, answers: bool) -> int:
    """A port where no TLS is spoken: either a plain HTTP error comes, or nothing at all."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                open_sockets.append(sock)
                if answers and sock.recv(65536):
                    sock.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    sock.close()

    threading.Thread(target=serve, daemon=True).start()

    def stop() -> None:
        for sock in [listener, *open_sockets]:
            sock.close()

    stage.on_close(stop)
    return int(listener.getsockname()[1])


def self_signed(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.public_key(key.public_key()).not_valid_before(now)
    builder = builder.not_valid_after(now + datetime.timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    path = folder / "self-signed.pem"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    secret = key.private_bytes(pem, form, serialization.NoEncryption())
    path.write_bytes(secret + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@pytest.mark.parametrize("kind", KINDS)
def test_connection_failure_of_the_only_account_is_502(stage: Stage, kind: str) -> None:
    url = failing_accounts(stage, kind)
    client = stage.gateway(account("solo", url), timeouts=TIMEOUTS).connect()
    for _ in range(2):
        assert_failed_or_502(client.turn())
    client.ping()
    client.wait_pong()


@pytest.mark.parametrize("kind", KINDS)
def test_connection_failure_is_served_by_another_account(stage: Stage, kind: str) -> None:
    bad, good = failing_accounts(stage, kind), stage.upstream()
    gateway = stage.gateway(account("bad", bad), account("good", good), timeouts=TIMEOUTS)
    for _ in range(3):
        assert output_text(gateway.connect().turn()) == "hello"


def test_the_connect_timeout_covers_tls(stage: Stage) -> None:
    """A peer that accepts and then says nothing is found out before the first-byte timeout."""
    url = failing_accounts(stage, "silent tls")
    timeouts = {"connect_seconds": 1, "first_byte_seconds": 30}
    client = stage.gateway(account("solo", url), timeouts=timeouts).connect()
    assert_failed_or_502(client.turn(timeout=12))


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


def commenting(after: int) -> Script:
    """An upstream that after so many events says nothing but that it is there."""

    def script(exchange: Exchange) -> None:
        exchange.start()
        exchange.sse(*exchange.turn()[:after])
        while not exchange.hold(timeout=0.1) and not exchange.request.gone.is_set():
            exchange.chunks(b": still there\n\n")

    return script


@pytest.mark.parametrize("way", ["websocket", "events", "object"])
def test_comments_do_not_keep_a_turn_from_another_account(stage: Stage, way: str) -> None:
    silent, other = stage.upstream(commenting(0)), stage.upstream()
    gateway = stage.gateway(
        account("a", silent), account("b", other), timeouts=TIMEOUTS, routing=IN_ORDER
    )
    if way == "websocket":
        assert output_text(gateway.connect().turn())
        return
    answer = HttpClient(gateway.port).create(stream=way == "events")
    assert answer.status == 200
    assert other.requests


@pytest.mark.parametrize("after", [1, 4])
def test_comments_do_not_keep_a_turn_alive(stage: Stage, after: int) -> None:
    """Nor do the gateway's own signs of life to the client depend on them."""
    upstream = stage.upstream(commenting(after))
    gateway = stage.gateway(
        account("a", upstream), timeouts=TIMEOUTS, session={"hold_seconds": 0.1}
    )
    events = gateway.connect().turn()
    assert_failed(events[-1], "server_error")
    assert upstream.requests[0].wait_gone()


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


def test_the_request_body_does_not_wait_for_the_head(stage: Stage) -> None:
    """Nagle's algorithm and delayed acknowledgements would add 40 ms to every turn."""
    upstream = stage.upstream()
    client = stage.serve(upstream).connect()
    client.turn()
    took: list[float] = []
    for _ in range(10):  # on the kept connection
        began = time.monotonic()
        client.turn(input="x" * 2000)
        took.append(time.monotonic() - began)
    note(f"turns took {1000 * min(took):.1f} to {1000 * max(took):.1f} ms")
    # A turn may begin before the end of the answer before it has freed the connection.
    assert upstream.connections < len(took), "the connection to the account is kept"
    assert min(took) < 0.035, "a turn on a kept connection must not wait for a delayed ACK"
