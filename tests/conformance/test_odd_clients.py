"""Clients that are a little odd, and get their answer all the same (protocol.md §2, §7)."""

from __future__ import annotations

import codecs
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import completed
from tests.support.events import Json, user
from tests.support.gateway import account
from tests.support.httpclient import Answer, HttpClient
from tests.support.upstream import Exchange
from tests.support.wsclient import Refused, WsClient

pytestmark = pytest.mark.conformance

Headers = Iterable[tuple[str, str]]
BOM = codecs.BOM_UTF8


def serve(exchange: Exchange) -> object:
    """Answers turns, and whatever is asked for by GET with the shape of a list."""
    if exchange.request.method == "GET":
        return exchange.json(200, {"object": "list", "data": []})
    return exchange.answer()


# --- headers -------------------------------------------------------------------------------


def by_websocket(rig: Rig, headers: Headers) -> None:
    completed(rig.connect(headers=headers).turn())


def by_http(rig: Rig, headers: Headers) -> None:
    client = HttpClient(rig.gateway.port)
    assert client.create(headers).status == 200
    client.drop()


def in_a_chat(rig: Rig, headers: Headers) -> None:
    rig.upstream.queue(lambda exchange: exchange.json(200, {"object": "chat.completion"}))
    client = HttpClient(rig.gateway.port)
    body = json.dumps({"model": "gpt-5.5", "messages": []}).encode()
    assert client.ask(path="/v1/chat/completions", body=body, headers=headers).status == 200
    client.drop()


@pytest.mark.parametrize("through", [by_websocket, by_http, in_a_chat])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-codex-turn-metadata", '{"workspaces":{"/home/ı/策略":{}}}'.encode()),
        ("x-codex-window-id", "Ångström … à".encode()),  # has bytes 0x85 and 0xA0
        ("x-openai-note", b"caf\xe9 \x85\xa0 \xff"),  # no UTF-8
        ("session-id", "séance-à".encode()),
        ("originator", "編集者".encode()),
        ("user-agent", "Éditeur/1.0 (naïf)".encode()),
    ],
)
def test_header_values_arrive_as_the_bytes_that_the_client_sent(
    rig: Rig, through: Callable[[Rig, Headers], None], name: str, value: bytes
) -> None:
    """In whatever encoding; the letters have bytes that some take for ends of lines."""
    through(rig, [(name, value.decode("latin-1"))])
    arrived = rig.upstream.requests[-1].header(name)
    assert arrived is not None
    assert arrived.encode("latin-1") == value
    rig.gateway.check_log()


def test_metadata_that_stands_for_a_header_arrives_in_utf_8(rig: Rig) -> None:
    said = '{"workspaces":{"/home/策略\u3000à…":{}}}'
    completed(rig.connect().turn(client_metadata={"x-codex-turn-metadata": said}))
    arrived = rig.upstream.requests[-1].header("x-codex-turn-metadata")
    assert arrived is not None
    assert arrived.encode("latin-1").decode() == said


def test_a_byte_0x85_ends_no_header(rig: Rig) -> None:
    """Autobahn would read a header of its own behind it, and miss the key for it."""
    headers = [("x-codex-a", "\x85Host: other"), ("x-codex-b", "\x1cAuthorization: Bearer wrong")]
    completed(rig.connect(headers=headers).turn())
    request = rig.upstream.requests[-1]
    assert request.header("x-codex-a") == "\x85Host: other"
    assert request.header("x-codex-b") is None, "control characters are in no header's value"


# --- keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["api-key", "x-api-key", "X-Api-Key"])
def test_a_key_in_the_header_of_another_service(rig: Rig, name: str) -> None:
    rig.upstream.script = serve
    header = [(name, "key-desk")]
    completed(rig.connect(key=None, headers=header).turn())
    client = HttpClient(rig.gateway.port, key=None)
    created = client.create(header, store=True)
    assert created.status == 200
    assert client.ask("GET", "/v1/models", headers=header).status == 200
    for request in rig.upstream.requests:
        said = [value for field, value in request.headers if field.lower() == name.lower()]
        assert said == [], "the client's key went to an upstream"
    response_id = created.json["id"]
    other = client.create([("api-key", "key-laptop")], previous_response_id=response_id)
    assert other.status == 400, "expected another key to be another tenant"
    client.drop()
    assert "key-desk" not in rig.gateway.log()


@pytest.mark.parametrize("name", ["api-key", "x-api-key"])
def test_a_wrong_key_in_such_a_header_is_refused_and_not_repeated(rig: Rig, name: str) -> None:
    header = [(name, "sk-of-somebody-else")]
    client = HttpClient(rig.gateway.port, key=None)
    refused = client.create(header)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert b"somebody" not in refused.body
    with pytest.raises(Refused) as caught:
        rig.connect(key=None, headers=header)
    assert caught.value.status == 401
    assert "somebody" not in rig.gateway.log()


def test_of_several_keys_the_first_that_is_ours_counts(rig: Rig) -> None:
    made = HttpClient(rig.gateway.port).create(store=True).json["id"]  # laptop's

    def continues(key: str | None, *headers: tuple[str, str]) -> int:
        client = HttpClient(rig.gateway.port, key)
        status = client.create(headers, previous_response_id=made).status
        client.drop()
        return status

    assert continues("key-laptop", ("api-key", "key-desk")) == 200
    assert continues("unused", ("api-key", "key-laptop")) == 200
    assert continues(None, ("api-key", "unused"), ("x-api-key", "key-laptop")) == 200
    assert continues("key-desk", ("api-key", "key-laptop")) == 400


# --- paths and methods ---------------------------------------------------------------------


def served(rig: Rig, method: str, path: str, members: Json | None = None) -> Answer:
    client = HttpClient(rig.gateway.port)
    body = None if members is None else json.dumps(members).encode()
    client.send(method, path, body)
    answer = client.begin() if method == "HEAD" else client.answer()
    client.drop()
    return answer


TURN: Json = {"model": "gpt-5.5", "input": "hi"}


@pytest.mark.parametrize("prefix", ["/v1", "/backend-api/codex"])
@pytest.mark.parametrize("written", ["{}/", "{}//", "/{}"])
def test_slashes_too_many(rig: Rig, prefix: str, written: str) -> None:
    def path(rest: str) -> str:
        return prefix + written.format(rest)

    rig.upstream.script = serve
    assert served(rig, "POST", path("/responses"), TURN).json["status"] == "completed"
    assert rig.upstream.requests[-1].target == "/v1/responses"
    completed(rig.connect(path=path("/responses")).turn())
    assert served(rig, "GET", path("/models")).json["object"] == "list"
    rig.upstream.queue(lambda exchange: exchange.json(200, {"input_tokens": 3}))
    counted = served(rig, "POST", path("/responses/input_tokens"), TURN)
    assert counted.json == {"input_tokens": 3}
    assert rig.upstream.requests[-1].target == "/v1/responses/input_tokens"
    made = served(rig, "POST", path("/responses"), {**TURN, "store": True}).json["id"]
    rig.upstream.queue(lambda exchange: exchange.json(200, {"id": made}))
    assert served(rig, "GET", path(f"/responses/{made}")).json == {"id": made}
    assert rig.upstream.requests[-1].target == f"/v1/responses/{made}"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/", "/v1/models?client_version=1.0.0"])
def test_head_is_get_without_a_body(stage: Stage, path: str) -> None:
    listed = {"object": "list", "data": [{"id": "m"}], "models": [{"slug": "m"}]}
    upstream = stage.upstream(lambda exchange: exchange.json(200, listed))
    client = HttpClient(stage.gateway(account("solo", upstream)).port)
    client.send("HEAD", path)
    head = client.begin()
    got = client.ask("GET", path)  # on the same connection: no byte of a body came before
    assert head.status == got.status == 200
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == got.headers[name]
    client.drop()


def test_head_of_what_upstreams_keep_and_of_what_nobody_has(rig: Rig) -> None:
    client = HttpClient(rig.gateway.port)
    made = client.create(store=True).json["id"]
    rig.upstream.queue(lambda exchange: exchange.json(200, {"id": made}))
    client.send("HEAD", f"/v1/responses/{made}")
    assert client.begin().status == 200
    assert rig.upstream.requests[-1].method == "GET"
    client.send("HEAD", "/v1/nothing")
    assert client.begin().status == 404
    client.send("HEAD", "/v1/chat/completions")
    refused = client.begin()
    assert (refused.status, refused.headers["allow"]) == (405, "POST")
    assert client.create().json["status"] == "completed", "expected the connection to live on"
    client.drop()


# --- a byte order mark ---------------------------------------------------------------------


def test_a_byte_order_mark_before_a_body(rig: Rig) -> None:
    client = HttpClient(rig.gateway.port)
    body = json.dumps({**TURN, "input": [user("é")]}, ensure_ascii=False).encode()
    assert client.ask(body=BOM + body).json["status"] == "completed"
    rig.upstream.queue(lambda exchange: exchange.json(200, {"object": "chat.completion"}))
    chat = json.dumps({"model": "gpt-5.5", "messages": []}).encode()
    assert client.ask(path="/v1/chat/completions", body=BOM + chat).status == 200
    assert rig.upstream.requests[-1].raw == chat
    assert client.ask(body=BOM + BOM + body).status == 400
    assert client.ask(body=BOM).status == 400
    client.drop()


def test_a_byte_order_mark_before_a_message(rig: Rig) -> None:
    client = rig.connect()
    client.send(BOM.decode() + json.dumps({"type": "response.create", **TURN}))
    completed(client.until_terminal())


# --- a client that ends its side -----------------------------------------------------------


def delayed(release: threading.Event) -> Callable[[Exchange], object]:
    """Answers once it is released; the first half of it at once."""

    def answer(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:5])
        exchange.hold(release)
        exchange.sse(*events[5:])
        exchange.end()

    return answer


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seconds", [0.0, 1.5])
def test_a_client_that_ends_its_side_gets_its_answer(
    rig: Rig, stream: bool, version: str, seconds: float
) -> None:
    """Byte for byte one whole answer, also after the gateway has looked whether it is there."""
    release = threading.Event()
    rig.upstream.queue(delayed(release))
    client = HttpClient(rig.gateway.port)
    body = json.dumps({**TURN, "stream": stream}).encode()
    client.sock.sendall(client.head(length=len(body)).replace(b"HTTP/1.1", version.encode()) + body)
    client.sock.shutdown(socket.SHUT_WR)
    rig.upstream.wait_for(1)
    time.sleep(seconds)
    release.set()
    answer = client.answer()
    assert answer.status == 200
    if stream:
        assert answer.events[-1]["type"] == "response.completed"
    else:
        assert answer.json["status"] == "completed"
    assert client.is_closed(), "nobody could ask for more"


def test_all_requests_of_a_client_that_ends_its_side_are_answered(rig: Rig) -> None:
    client = HttpClient(rig.gateway.port)
    for _ in range(3):
        client.post()
    client.sock.sendall(b"POST /v1/resp")
    client.sock.shutdown(socket.SHUT_WR)
    for _ in range(3):
        assert client.answer().json["status"] == "completed"
    assert client.is_closed()


def test_a_passed_request_of_a_client_that_ends_its_side(rig: Rig) -> None:
    release = threading.Event()

    def chat(exchange: Exchange) -> None:
        exchange.start()
        exchange.chunks(b'data: {"object":"chat.completion.chunk"}\n\n')
        exchange.hold(release)
        exchange.chunks(b"data: [DONE]\n\n")
        exchange.end()

    rig.upstream.queue(chat)
    client = HttpClient(rig.gateway.port)
    members = {"model": "gpt-5.5", "messages": [], "stream": True}
    client.send(path="/v1/chat/completions", body=json.dumps(members).encode())
    client.sock.shutdown(socket.SHUT_WR)
    assert client.begin().status == 200
    first = client.chunk()
    time.sleep(1.5)
    release.set()
    rest = b"".join(iter(client.chunk, b""))
    assert first + rest == b'data: {"object":"chat.completion.chunk"}\n\ndata: [DONE]\n\n'


def test_a_websocket_client_that_ends_its_side_gets_its_answers(rig: Rig) -> None:
    release = threading.Event()
    rig.upstream.queue(delayed(release))
    client = rig.connect()
    client.create()
    client.create()  # waits for the first
    rig.upstream.wait_for(1)
    client.sock.shutdown(socket.SHUT_WR)
    client.auto_pong = False
    time.sleep(0.5)
    release.set()
    completed(client.until_terminal())
    completed(client.until_terminal())
    assert client.wait_closed() == 1000


def test_a_websocket_client_that_ends_its_side_between_turns_is_let_go(rig: Rig) -> None:
    client = rig.connect()
    completed(client.turn())
    client.auto_pong = False
    client.sock.shutdown(socket.SHUT_WR)
    assert client.wait_closed() == 1000


@pytest.mark.parametrize("way", ["one object", "events", "websocket"])
def test_a_client_that_ends_its_side_and_then_leaves_cancels_its_upstream(
    rig: Rig, way: str
) -> None:
    """It never resets the connection by itself: what the gateway sends shows that it is gone."""
    rig.upstream.queue(lambda exchange: exchange.hold())
    client: HttpClient | WsClient
    if way == "websocket":
        client = rig.connect()
        client.create()
    else:
        client = HttpClient(rig.gateway.port)
        client.post(stream=way == "events")
    request = rig.upstream.wait_for(1)[0]
    client.sock.shutdown(socket.SHUT_WR)
    assert not request.wait_gone(0.5), "expected it to be waited for"
    client.drop()
    assert request.wait_gone(5), "expected the upstream to be cancelled"
