"""The HTTP door: protocol.md §7, §10.7, §10.67, §10.80, §10.81, §10.84."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.conformance.conftest import Rig, Stage
from tests.conformance.helpers import as_items, hung
from tests.conformance.test_back_pressure import BOUND, MIB, TOTAL, flood, settled
from tests.support.certificates import self_signed
from tests.support.checks import assert_strictly_increasing, completed, note, output_text
from tests.support.events import Json, call_item, call_output, error_body, text_item, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.ports import free_port
from tests.support.upstream import Exchange
from tests.support.wsclient import Refused

pytestmark = pytest.mark.conformance

ERROR_MEMBERS = {"type", "message", "param", "code"}


@contextlib.contextmanager
def http(gateway: Gateway, **options: object) -> Iterator[HttpClient]:
    client = HttpClient(gateway.port, **options)  # type: ignore[arg-type]
    try:
        yield client
    finally:
        client.drop()


@pytest.fixture
def client(rig: Rig) -> Iterator[HttpClient]:
    with http(rig.gateway) as client:
        yield client


# --- §10.7 ---------------------------------------------------------------------------------


def test_10_07_websocket_switched_off_is_426_and_http_goes_on(stage: Stage) -> None:
    gateway = stage.gateway(account("solo", stage.upstream()), session={"websocket": False})
    with pytest.raises(Refused) as refusal:
        gateway.connect()
    assert refusal.value.status == 426
    assert refusal.value.headers["upgrade"] == "websocket"
    assert set(json.loads(refusal.value.body)["error"]) == ERROR_MEMBERS
    with http(gateway) as client:
        assert client.create().json["status"] == "completed"


# --- §10.67 --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["completed", "failed", "incomplete"])
def test_10_67_the_stream_ends_right_after_its_terminal(
    rig: Rig, client: HttpClient, status: str
) -> None:
    """Even while the upstream keeps its own answer open."""
    release = threading.Event()
    details: Json = {
        "completed": {},
        "failed": {"error": {"code": "context_length_exceeded", "message": "Too long."}},
        "incomplete": {"incomplete_details": {"reason": "max_output_tokens"}},
    }[status]

    def dawdle(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn(status=status, **details))
        exchange.hold(release)
        exchange.end()

    rig.upstream.queue(dawdle)
    began = time.monotonic()
    answer = client.create(stream=True)
    note(f"whole after {1000 * (time.monotonic() - began):.1f} ms")
    assert answer.events[-1]["type"] == f"response.{status}"
    assert not release.is_set()
    release.set()


# --- §10.80 --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/responses", "/backend-api/codex/responses"])
def test_10_80_events_over_http(rig: Rig, client: HttpClient, path: str) -> None:
    body = json.dumps({"model": "gpt-5.5", "input": "hi", "stream": True}).encode()
    answer = client.ask(path=path, body=body)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert_strictly_increasing(answer.events)
    assert output_text(answer.events) == "hello"
    assert answer.headers["x-gateway-account"] == "solo"


def test_10_80_one_object_over_http(rig: Rig, client: HttpClient) -> None:
    answer = client.create()
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json["output"][0]["content"][0]["text"] == "hello"
    assert rig.upstream.requests[-1].body["stream"] is True, "the upstream always streams"


def test_10_80_both_doors_share_one_pool_and_one_memory(any_rig: Rig) -> None:
    """A conversation may go on by the other door, whether its account chains or not."""
    rig = any_rig
    socket_client = rig.connect()
    call = call_item()
    rig.upstream.queue(lambda exchange: exchange.answer([call]))
    first = completed(socket_client.turn(input=[user("one")]))
    with http(rig.gateway) as client:
        output = call_output(call["call_id"])
        second = client.create(previous_response_id=first["id"], input=[output]).json
        third = completed(socket_client.turn(previous_response_id=second["id"], input="three"))
        assert third["status"] == "completed"
    last = rig.upstream.requests[-1]
    if last.previous_response_id is not None:
        assert last.previous_response_id == second["id"]
    else:
        seen = [item.get("type") for item in as_items(last.input)]
        wanted = ["message", "function_call", "function_call_output", "message", "message"]
        assert seen == wanted, "the whole thread, in order"


def test_an_id_of_another_key_cannot_be_continued(rig: Rig, client: HttpClient) -> None:
    first = client.create().json
    with http(rig.gateway, key="key-desk") as other:
        answer = other.create(previous_response_id=first["id"])
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")


# --- §10.81 --------------------------------------------------------------------------------


def test_10_81_what_codex_sends_over_http(rig: Rig, client: HttpClient) -> None:
    tools = {"type": "additional_tools", "role": "developer", "tools": [{"type": "custom"}]}
    metadata = {"turn_id": "1", "x-codex-window-id": "w:0"}
    headers = [
        ("originator", "codex_exec"),
        ("session-id", "01a2"),
        ("x-openai-internal-codex-responses-lite", "true"),
        ("Accept", "text/event-stream"),
    ]
    answer = client.create(
        headers,
        input=[tools, user("hi")],
        stream=True,
        store=False,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="01a2",
        client_metadata=metadata,
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "medium"},
        text={"verbosity": "low"},
    )
    assert output_text(answer.events) == "hello"
    request = rig.upstream.requests[-1]
    assert request.input == [tools, user("hi")]
    assert request.header("x-openai-internal-codex-responses-lite") == "true"
    assert request.header("session-id") == "01a2"
    assert request.body["client_metadata"]["turn_id"] == "1"


# --- §10.84 --------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
def test_10_84_compressed_bodies(rig: Rig, client: HttpClient, encoding: str) -> None:
    text = "packed " * 20_000
    body = json.dumps({"model": "gpt-5.5", "input": text}).encode()
    packed = zstandard.compress(body) if encoding == "zstd" else gzip.compress(body)
    answer = client.ask(body=packed, headers=[("Content-Encoding", encoding)])
    assert answer.status == 200
    assert rig.upstream.requests[-1].input == text


@pytest.mark.parametrize("encoding", ["zstd", "gzip"])
def test_a_bomb_is_refused(stage: Stage, encoding: str) -> None:
    limit = MIB
    gateway = stage.gateway(account("solo", stage.upstream()), session={"max_message_bytes": limit})
    bomb = bytes(300 * MIB)
    packed = zstandard.compress(bomb) if encoding == "zstd" else gzip.compress(bomb, 9)
    assert len(packed) < limit
    before = memory_kib(gateway)
    with http(gateway) as client:
        answer = client.ask(body=packed, headers=[("Content-Encoding", encoding)])
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
    grown = memory_kib(gateway) - before
    note(f"{len(packed)} bytes that stand for 300 MiB: memory grew by {grown} KiB")
    assert grown < 64 * 1024


def memory_kib(gateway: Gateway) -> int:
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    return next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM"))


# --- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", [], 404),
        ("GET", "/v1/nothing", [], 404),
        ("POST", "/v2/responses", [], 404),
        ("GET", "/v1/responses", [], 405),
        ("PUT", "/v1/responses", [], 405),
        ("POST", "/v1/responses", [("Content-Encoding", "br")], 415),
        ("POST", "/v1/responses", [("Content-Encoding", "gzip")], 400),
        ("POST", "/v1/responses", [], 400),
    ],
)
def test_errors_are_json_of_the_apis_shape(
    rig: Rig,
    client: HttpClient,
    method: str,
    path: str,
    headers: list[tuple[str, str]],
    status: int,
) -> None:
    answer = client.ask(method, path, b"not json" if method != "GET" else None, headers)
    assert answer.status == status
    assert set(answer.error) == ERROR_MEMBERS
    assert isinstance(answer.error["message"], str)
    assert answer.headers["content-type"].startswith("application/json")
    if status == 405:
        assert answer.headers["allow"], "RFC 9110 15.5.6"
    assert rig.upstream.requests == []


def test_a_wrong_key_is_401(rig: Rig) -> None:
    with http(rig.gateway, key="wrong") as client:
        answer = client.create()
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert b"wrong" not in answer.body
    assert rig.upstream.requests == []


def test_a_body_that_is_too_large_is_413_and_its_sender_can_read_that(stage: Stage) -> None:
    gateway = stage.gateway(
        account("solo", stage.upstream()), session={"max_message_bytes": 100_000}
    )
    with http(gateway) as client:
        client.post(metadata={"pad": "x" * 5_000_000})
        answer = client.answer()
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")


@pytest.mark.parametrize("stream", [True, False])
def test_an_upstreams_refusal_is_a_status(rig: Rig, client: HttpClient, stream: bool) -> None:
    body = error_body("invalid_prompt", "bad prompt", param="input")
    rig.upstream.queue(lambda exchange: exchange.json(400, body))
    answer = client.create(stream=stream)
    assert (answer.status, answer.error) == (400, body["error"])


def test_an_orphan_output_is_the_clients_mistake(rig: Rig, client: HttpClient) -> None:
    message = "No tool call found for function call output with call_id call_x."
    rig.upstream.queue(lambda exchange: exchange.json(400, error_body(None, message)))
    answer = client.create(input=[call_output("call_x")])
    assert (answer.status, answer.error["message"]) == (400, message)


def test_an_upstream_that_breaks_in_its_output_fails_the_response(
    rig: Rig, client: HttpClient
) -> None:
    def breaks(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:5])
        exchange.close()

    rig.upstream.queue(breaks)
    last = client.create(stream=True).events[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["code"] == "server_error"


# --- connections ---------------------------------------------------------------------------


def test_a_connection_serves_many_requests(rig: Rig, client: HttpClient) -> None:
    ids = [client.create(stream=bool(number % 2)) for number in range(6)]
    assert {answer.status for answer in ids} == {200}


def test_pipelined_requests_are_answered_in_order(rig: Rig, client: HttpClient) -> None:
    for number in range(4):
        client.post(input=f"number {number}")
    answers = [client.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200] * 4
    assert [r.input for r in rig.upstream.requests] == [f"number {n}" for n in range(4)]


def test_a_body_may_come_in_chunks(rig: Rig, client: HttpClient) -> None:
    body = json.dumps({"model": "gpt-5.5", "input": "in pieces"}).encode()
    client.sock.sendall(client.head(headers=[("Transfer-Encoding", "chunked")]))
    for at in range(0, len(body), 7):
        piece = body[at : at + 7]
        client.sock.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
    client.sock.sendall(b"0\r\n\r\n")
    assert client.answer().status == 200
    assert rig.upstream.requests[-1].input == "in pieces"


def test_large_bodies_arrive_whole(rig: Rig, client: HttpClient) -> None:
    text = "x" * (32 * MIB)
    client.timeout = 60
    client.sock.settimeout(60)
    assert client.create(input=text).status == 200
    assert len(rig.upstream.requests[-1].input) == len(text)
    rig.upstream.reset()


def test_a_slow_head_is_cut_off(stage: Stage) -> None:
    gateway = stage.gateway(account("solo", stage.upstream()), timeouts={"handshake_seconds": 1})
    for warm in (False, True):
        with http(gateway) as client:
            if warm:
                assert client.create().status == 200
            began = time.monotonic()
            for byte in client.head():
                client.sock.sendall(bytes([byte]))
                if select.select([client.sock], [], [], 0.1)[0]:
                    break
            answer = client.answer()
            assert answer.status == 408, "the client is told why before the connection closes"
            assert set(answer.error) == ERROR_MEMBERS
            assert client.is_closed()
            assert time.monotonic() - began < 10


def test_a_slow_body_is_cut_off(stage: Stage) -> None:
    gateway = stage.gateway(account("solo", stage.upstream()), timeouts={"stall_seconds": 1})
    with http(gateway) as client:
        client.sock.sendall(client.head(length=1000))
        client.sock.settimeout(0.1)
        for _ in range(100):
            with contextlib.suppress(TimeoutError):
                client._more()
                break
            client.sock.sendall(b"x")
        client.sock.settimeout(15)
        answer = client.answer()
        assert answer.status == 408
        assert set(answer.error) == ERROR_MEMBERS


def test_an_idle_client_costs_nobody_anything(rig: Rig) -> None:
    """Half a head, a head without its body, and nothing at all: others are served."""
    with http(rig.gateway) as nothing, http(rig.gateway) as half, http(rig.gateway) as bodiless:
        half.sock.sendall(b"POST /v1/resp")
        bodiless.sock.sendall(bodiless.head(length=1000))
        with http(rig.gateway) as client:
            assert client.create().status == 200
        assert nothing.sock.fileno() >= 0


@pytest.mark.parametrize("how", ["drop", "reset"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["before the head", "in the output"])
def test_a_lost_client_cancels_its_upstream(
    rig: Rig, client: HttpClient, how: str, stream: bool, phase: str
) -> None:
    rig.upstream.queue(lambda e: hung(e, 5 if phase == "in the output" else 0))
    client.post(stream=stream)
    request = rig.upstream.wait_for(1)[0]
    if stream and phase == "in the output":
        client.begin()
        client.chunk()
    began = time.monotonic()
    getattr(client, how)()
    assert request.wait_gone(5), "the upstream expected to be cancelled when the client left"
    assert request.gone_at is not None
    note(f"{how} {phase}: upstream cancelled after {1000 * (request.gone_at - began):.1f} ms")
    with http(rig.gateway) as again:
        assert again.create().status == 200


def test_a_sign_of_life_while_the_upstream_is_silent(stage: Stage) -> None:
    release = threading.Event()

    def silent(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:5])
        exchange.hold(release)
        exchange.sse(*events[5:])
        exchange.end()

    gateway = stage.gateway(
        account("solo", stage.upstream(silent)), session={"keepalive_seconds": 0.2}
    )
    with http(gateway) as client:
        client.post(stream=True)
        client.begin()
        came = b""
        while came.count(b"keepalive") < 4:
            came += client.chunk()
        release.set()
        while piece := client.chunk():
            came += piece
    assert b"event: keepalive\n" in came


# --- back-pressure -------------------------------------------------------------------------


def test_a_slow_http_client_stops_its_own_upstream_only(stage: Stage) -> None:
    upstream = stage.upstream()
    upstream.queue(flood)
    gateway = stage.gateway(
        account("solo", upstream), timeouts={"idle_seconds": 60, "stall_seconds": 60}
    )
    with http(gateway, receive_buffer=65536, timeout=60) as slow, http(gateway) as other:
        slow.post(stream=True)
        request = upstream.wait_for(1)[0]
        taken = settled(request)
        note(f"upstream stopped after {taken / MIB:.1f} MiB of {TOTAL / MIB:.0f}")
        assert taken < BOUND, f"{taken / MIB:.1f} MiB were taken of a client that reads nothing"
        for _ in range(3):
            assert other.create().status == 200
        assert request.bytes_sent - taken < MIB, "and the pause holds"
        slow.begin()
        received, last = 0, b""
        while piece := slow.chunk():
            received, last = received + len(piece), piece
        assert received > 0.9 * TOTAL, "once the client reads on, everything arrives"
        assert b"response.completed" in last


def test_a_slow_http_client_that_leaves_cancels_its_upstream(stage: Stage) -> None:
    upstream = stage.upstream()
    upstream.queue(flood)
    gateway = stage.gateway(account("solo", upstream), timeouts={"stall_seconds": 60})
    with http(gateway, receive_buffer=65536, timeout=60) as slow:
        slow.post(stream=True)
        request = upstream.wait_for(1)[0]
        settled(request)
        slow.reset()
        assert request.wait_gone(5)


def test_an_http_client_that_never_reads_is_given_up(stage: Stage) -> None:
    upstream = stage.upstream()
    upstream.queue(flood)
    gateway = stage.gateway(account("solo", upstream), timeouts={"stall_seconds": 1})
    with http(gateway, receive_buffer=65536, timeout=60) as slow:
        slow.post(stream=True)
        assert upstream.wait_for(1)[0].wait_gone(30), "a stalled client holds its account"


# --- the stop ------------------------------------------------------------------------------


def test_a_stopping_gateway_finishes_http_turns_and_takes_no_more(stage: Stage) -> None:
    release = threading.Event()
    upstream = stage.upstream(lambda exchange: exchange.hold(release) and exchange.answer())
    gateway = stage.gateway(account("solo", upstream), timeouts={"shutdown_seconds": 15})
    with http(gateway) as busy, http(gateway) as idle:
        assert idle.ask("GET", "/v1/nothing").status == 404
        busy.post()
        upstream.wait_for(1)
        gateway.terminate()
        assert idle.is_closed(), "idle connections are closed at the stop"
        with http(gateway) as late:
            answer = late.create()
        assert (answer.status, answer.error["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert gateway.process.poll() is None, "a turn still runs"
        release.set()
        assert busy.answer().json["status"] == "completed"
        assert busy.is_closed()
    assert gateway.process.wait(15) in (0, -15)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stopping_gateway_tells_http_turns_that_outlast_it(stage: Stage, stream: bool) -> None:
    upstream = stage.upstream(lambda exchange: hung(exchange, 5))
    gateway = stage.gateway(account("solo", upstream), timeouts={"shutdown_seconds": 0.5})
    with http(gateway) as client:
        client.post(stream=stream)
        upstream.wait_for(1)
        gateway.terminate()
        answer = client.answer()
        if answer.status == 200:
            response = answer.events[-1]["response"] if stream else answer.json
            assert response["error"]["code"] == "server_error"
        else:
            assert answer.status in (502, 503), "nothing of the answer was there yet"


# --- other listeners -----------------------------------------------------------------------

UPGRADE = (
    b"GET /v1/responses HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Authorization: Bearer key-laptop\r\n\r\n"
)


class QuietGateway(Gateway):
    """One whose listener cannot be tried by a plain connection; its admin side starts with it."""

    def _wait_ready(self) -> None:
        self.port, port = self.admin_port, self.port
        super()._wait_ready()
        self.port = port


class Listening:
    """A gateway on a listener of some kind, and sockets to it."""

    def __init__(self, stage: Stage, kind: str, folder: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self.path = folder / "gateway.sock"
        address = f"{self.port}:interface=127.0.0.1"
        if kind == "tls":
            key, certificate = self_signed(folder)
            listen = f"ssl:{address}:privateKey={key}:certKey={certificate}"
            self.trust = ssl.create_default_context(cafile=str(certificate))
        elif kind == "unix":
            listen = f"unix:{self.path}"
        else:
            listen = f"haproxy:tcp:{address}"
        accounts = [account("solo", stage.upstream())]
        gateway = QuietGateway(folder, {"accounts": accounts, "listen": listen})
        stage.on_close(gateway.stop)

    def connect(self) -> HttpClient:
        """A client; the listener may come up a moment after the admin side."""
        deadline = time.monotonic() + 15
        while True:
            try:
                return self._connect()
            except (ConnectionRefusedError, FileNotFoundError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _connect(self) -> HttpClient:
        if self.kind == "unix":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(os.fspath(self.path))
            return HttpClient(self.port, sock=sock)
        sock = socket.create_connection(("127.0.0.1", self.port))
        if self.kind == "tls":
            return HttpClient(
                self.port, sock=self.trust.wrap_socket(sock, server_hostname="localhost")
            )
        if self.kind == "haproxy":
            sock.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 443\r\n")
        return HttpClient(self.port, sock=sock)


@pytest.mark.parametrize("kind", ["tls", "unix", "haproxy"])
def test_both_doors_on_every_kind_of_listener(stage: Stage, tmp_path: Path, kind: str) -> None:
    listening = Listening(stage, kind, tmp_path)
    client = listening.connect()
    assert output_text(client.create(stream=True).events) == "hello"
    assert client.create(input="x" * MIB).status == 200, "on the same connection"
    client.sock.sendall(UPGRADE)
    assert client.begin().status == 101, "and even an upgrade after that"
    client.sock.sendall(b"\x89\x85\x00\x00\x00\x00hello")  # a masked ping
    assert client.exactly(7) == b"\x8a\x05hello"
    client.drop()
    upgraded = listening.connect()
    upgraded.sock.sendall(UPGRADE)
    assert upgraded.begin().status == 101
    upgraded.drop()


def test_items_are_as_over_websocket(rig: Rig, client: HttpClient) -> None:
    """The same turn, whatever the door: byte for byte the upstream's events."""
    item = text_item("caf\u00e9 \U0001f98a \\u0000")
    rig.upstream.queue(lambda e: e.answer([item]), lambda e: e.answer([item]))
    over_http = client.create(stream=True).events
    over_websocket = rig.connect().turn()
    assert [e["type"] for e in over_http] == [e["type"] for e in over_websocket]
    assert over_http[-1]["response"]["output"] == over_websocket[-1]["response"]["output"] == [item]
