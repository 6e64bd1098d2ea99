"""Accounts reached over WebSocket: how turns, sockets and clients belong together (§8.6)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.sockets import (
    BEGUN,
    Conversation,
    assert_delta,
    assert_frame,
    assert_replay,
    lay,
    numbered_answer,
    said_in,
)
from tests.conformance.test_upstream_failures import self_signed
from tests.support.checks import assert_error, completed, note, output_text, types
from tests.support.events import Json, call_item, call_output, error_body, text_item, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange
from tests.support.websocket_upstream import (
    Handshake,
    ReceivedFrame,
    UpstreamSocket,
    WebSocketUpstream,
    frame,
    over,
)
from tests.support.wsclient import CONTINUATION, PING, PONG, TEXT

pytestmark = pytest.mark.conformance

KINDS = ["websocket", "auto"]
MIB = 1 << 20


# --- chains --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("store", [False, True])
def test_a_conversation_chains_on_one_socket(socket_stage: Stage, kind: str, store: bool) -> None:
    line = lay(socket_stage, kind=kind)
    talk = line.talk(store)
    sizes = []
    for number in range(6):
        last = talk.last
        talk.turn(f"question {number}")
        request = line.upstream.requests[-1]
        if last is not None:
            assert_delta(request, talk, last)
            sizes.append(len(request.raw))
        assert_frame(request)
        assert request.body["store"] is store
        assert "generate" not in request.body
    assert (line.dialled, len(line.upstream.requests)) == (1, 6)
    assert max(sizes) - min(sizes) < 16, f"a delta is not larger later on: {sizes}"


def test_a_tool_loop_chains_by_its_call(socket_stage: Stage) -> None:
    """A client that names nothing continues the response that made the call (law 7)."""
    line = lay(socket_stage)
    client = line.connect()
    call = call_item()
    line.upstream.queue(lambda exchange: exchange.answer([call]))
    first = completed(client.turn(store=False))
    output = [call_output(call["call_id"])]
    completed(client.turn(input=output, store=False))
    request = line.upstream.requests[-1]
    assert (request.previous_response_id, request.input) == (first["id"], output)


def test_an_older_response_is_replayed(socket_stage: Stage) -> None:
    """With `store: false` a socket knows its latest response only: a fork cannot be named."""
    line = lay(socket_stage)
    talk = line.talk()
    first = talk.turn("one")
    items = list(talk.said)
    talk.turn("two")
    fork = Conversation(talk.client, last=first["id"])
    fork.turn("another two")
    assert_replay(line.sent[-1], [*items, *fork.new])
    assert not [r for r in line.sent if r.response_id is None], "nothing was refused"


def test_a_full_input_is_a_root_on_the_same_socket(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    talk = line.talk()
    talk.turn()
    talk.start_over()
    talk.turn("something else")
    assert_replay(line.sent[-1], talk.new)
    last = talk.last
    talk.turn()
    assert last is not None
    assert_delta(line.sent[-1], talk, last)


@pytest.mark.parametrize("way", ["events", "object"])
def test_http_clients_are_served_over_websocket(socket_stage: Stage, way: str) -> None:
    line = lay(socket_stage)
    text, script = numbered_answer()
    line.upstream.queue(script)
    answer = line.post(stream=way == "events", store=True)
    response = answer.events[-1]["response"] if way == "events" else answer.json
    assert (answer.status, said_in(response)) == (200, text)
    named = line.post(stream=way == "events", previous_response_id=response["id"], input="more")
    assert named.status == 200
    first, second = line.sent
    assert (first.transport, second.transport) == ("websocket", "websocket")
    assert_frame(first)
    assert second.previous_response_id == response["id"] or len(second.input) == 3


def test_members_and_events_pass_verbatim(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    odd = '{ "type": "response.odd" ,\t"x": 1.10, "é": "\\u00e9\\/", "sequence_number":2}'

    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:2])
        over(exchange).text(odd)
        exchange.sse(*[{**event, "sequence_number": 9 + at} for at, event in enumerate(events[2:])])
        exchange.end()

    line.upstream.queue(script)
    client = line.connect()
    client.turn(store=False, unknown={"b": [1.50, None]}, instructions="é", stream=True)
    assert odd in client.texts, "the bytes of an event are the upstream's"
    body = line.sent[0].body
    assert (body["unknown"], body["instructions"]) == ({"b": [1.5, None]}, "é")
    assert b'"b": [1.5, null]' in line.sent[0].raw, "members are the client's bytes"


def test_pretty_printed_events_reach_http_clients_as_one_line(socket_stage: Stage) -> None:
    line = lay(socket_stage)

    def script(exchange: Exchange) -> None:
        for event in exchange.turn([text_item("hello")]):
            over(exchange).text(json.dumps(event, indent=2))
        exchange.end()

    line.upstream.queue(script)
    assert output_text(line.post(stream=True).events) == "hello"


# --- who shares a socket -------------------------------------------------------------------


def test_a_socket_serves_conversations_one_after_the_other(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    for number in range(4):
        talk = line.talk(store=True)
        talk.turn(f"talk {number}")
        talk.turn()
        talk.client.close()
    for peer in line.upstream.sockets:
        roots = [r for r in peer.turns if r.previous_response_id is None]
        assert all(len(r.input) == 1 for r in roots)
    assert len(line.sent) == 8
    assert line.dialled < 4, "what is stored needs no socket of its own"


@pytest.mark.parametrize("store", [False, True])
def test_tenants_never_share_a_socket(socket_stage: Stage, store: bool) -> None:
    line = lay(socket_stage)
    for number in range(3):
        for key in ("key-laptop", "key-desk"):
            talk = line.talk(store, key=key)
            talk.turn(f"{key} {number}")
            talk.client.close()
    keys = [{r.input[0]["content"][0]["text"][:7] for r in p.turns} for p in line.upstream.sockets]
    assert len(keys) >= 2
    assert all(len(each) == 1 for each in keys), f"a socket has one tenant: {keys}"


def test_parallel_turns_use_sockets_of_their_own(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    barrier = threading.Barrier(5)

    def together(exchange: Exchange) -> None:
        barrier.wait(10)
        exchange.answer()

    line.upstream.queue(*[together] * 5)
    talks = [line.talk() for _ in range(5)]
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda talk: talk.turn(), talks))
    assert len(line.upstream.sockets) == 5
    for talk in talks:
        last = talk.last
        talk.turn()
        assert last is not None
        assert_delta(line.sent[-1], talk, last)
    assert len(line.upstream.sockets) == 5, "each conversation keeps its own"


def test_lanes_of_a_client_run_in_parallel(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    barrier = threading.Barrier(3)

    def together(exchange: Exchange) -> None:
        barrier.wait(10)
        exchange.answer()

    line.upstream.queue(*[together] * 3)
    client = line.connect()
    lanes = ["a", "b", "c"]
    for lane in lanes:
        client.create(stream_id=lane, input=[user(lane)], store=False)
    ends: dict[str, Json] = {}
    while len(ends) < 3:
        event = client.event()
        assert event["stream_id"] in lanes, "every event carries its lane"
        if event["type"] == "response.completed":
            ends[event["stream_id"]] = event["response"]
    for lane in lanes:
        events = client.turn(
            stream_id=lane, input=[user("on")], store=False, previous_response_id=ends[lane]["id"]
        )
        completed(events)
        request = line.sent[-1]
        assert_frame(request)
        if request.previous_response_id is None:
            assert_replay(request, [user(lane), *ends[lane]["output"], user("on")])
        else:
            assert request.previous_response_id == ends[lane]["id"]
    assert len(line.sent) == 6


def test_a_busy_socket_makes_a_fork_wait_for_none(socket_stage: Stage) -> None:
    """Another lane continues what a running turn's socket knows: it is replayed at once."""
    line = lay(socket_stage)
    talk = line.talk()
    talk.turn("root")
    release = threading.Event()

    def slow(exchange: Exchange) -> None:
        exchange.hold(release)
        exchange.answer()

    line.upstream.queue(slow)
    root, items = talk.last, list(talk.said)
    talk.send("slow", stream_id="slow")
    line.upstream.wait_for(2)
    events = talk.client.turn(
        stream_id="quick", input=[user("quick")], store=False, previous_response_id=root
    )
    completed(events)
    assert_replay(line.sent[-1], [*items, user("quick")])
    release.set()
    completed(talk.client.until_terminal("slow"))


# --- the handshake -------------------------------------------------------------------------

CLIENT_HEADERS = [
    ("session-id", "session-7"),
    ("session_id", "session-7"),
    ("thread-id", "thread-7"),
    ("conversation_id", "session-7"),
    ("x-client-request-id", "session-7"),
    ("x-codex-turn-metadata", '{"session_id":"session-7"}'),
    ("x-codex-window-id", "session-7:0"),
    ("cookie", "a=b"),
    ("accept-encoding", "br"),
    ("origin", "http://127.0.0.1"),
    ("x-private", "1"),
    ("originator", "codex_cli_rs"),
    ("user-agent", "codex/1"),
]


def test_the_handshake_has_the_accounts_credentials_only(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    line.talk(headers=CLIENT_HEADERS).turn()
    (upgrade,) = line.upstream.upgrades
    assert upgrade.method == "GET"
    assert upgrade.target == "/v1/responses"
    sent = [value for name, value in upgrade.headers if name == "authorization"]
    assert len(sent) == 1
    assert sent[0].startswith("Bearer upstream-secret-model-websocket-1-")
    for name in ("cookie", "origin", "x-private", "content-length", "content-type"):
        assert upgrade.header(name) is None, f"{name} is not for the upstream"
    assert upgrade.header("sec-websocket-version") == "13"
    assert upgrade.header("sec-websocket-protocol") is None
    names = [name for name, _ in upgrade.headers]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"each header stands there once: {twice}"


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize(
    "chosen",
    [lambda name: True, lambda name: name.startswith("x-codex"), lambda name: "thread" in name],
    ids=["all headers", "x-codex headers", "thread"],
)
def test_a_shared_socket_has_no_clients_session(
    socket_stage: Stage, chosen: Callable[[str], bool], store: bool
) -> None:
    """Where a handshake names a session, the socket serves nobody else."""
    line = lay(socket_stage)
    for number in range(3):
        session = f"session-{number}"
        headers = [(name, value.replace("-7", f"-{number}")) for name, value in CLIENT_HEADERS]
        talk = line.talk(store, headers=[pair for pair in headers if chosen(pair[0])])
        talk.turn(session)
        talk.client.close()
    for peer in line.upstream.sockets:
        head = str(peer.handshake.headers)
        named = {f"session-{n}" for n in range(3) if f"session-{n}" in head or f"ad-{n}" in head}
        served = {r.input[0]["content"][0]["text"] for r in peer.turns}
        assert not named or served <= named, f"named {named}, served {served}"


PROTOCOLS = ["openai-beta.responses.v1", "second"]


@dataclass
class Special:
    """A gateway whose accounts have settings of their own, each under a model of its name."""

    gateway: Gateway
    upstream: WebSocketUpstream
    over_tls: WebSocketUpstream

    def talk(self, model: str, **options: Any) -> Conversation:
        talk = Conversation(self.gateway.connect(**options))
        talk.client.defaults["model"] = model
        return talk


@pytest.fixture(scope="module")
def special(module_stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Special:
    folder = tmp_path_factory.mktemp("tls")
    upstream = module_stage.websocket_upstream()
    over_tls = module_stage.websocket_upstream(tls=self_signed(folder))
    handshake = {
        "headers": {"originator": "the-operator", "OpenAI-Project": "p1"},
        "websocket": {"path": "/responses/ws", "subprotocols": PROTOCOLS},
    }
    trust = {"ca_file": str(folder / "self-signed.pem")}
    over = {"transport": "websocket"}
    gateway = module_stage.gateway(
        account("handshake", upstream, models=["handshake"], **over, **handshake),
        account("trusted", over_tls, models=["trusted"], **over, **trust),
        account("untrusted", over_tls, models=["untrusted"], **over),
    )
    return Special(gateway, upstream, over_tls)


def test_headers_path_and_subprotocols_of_an_account(special: Special) -> None:
    special.talk("handshake", headers=CLIENT_HEADERS).turn()
    (upgrade,) = special.upstream.upgrades
    assert upgrade.target == "/v1/responses/ws"
    offered = [each.strip() for each in (upgrade.header("sec-websocket-protocol") or "").split(",")]
    assert offered == PROTOCOLS
    assert upgrade.header("originator") == "the-operator", "the account's headers win"
    assert upgrade.header("openai-project") == "p1"
    assert special.upstream.transports() == ["websocket"]


def test_tls_is_verified_and_used(special: Special) -> None:
    talk = special.talk("trusted")
    talk.turn()
    last = talk.last
    talk.turn("x" * 100_000)
    assert last is not None
    assert_delta(special.over_tls.requests[-1], talk, last)
    assert_error(special.talk("untrusted").ask()[-1], (502, 503, 504))
    assert len(special.over_tls.upgrades) == 1


@pytest.mark.parametrize("step", [1, 50])
def test_an_answer_to_the_upgrade_may_come_in_pieces(socket_stage: Stage, step: int) -> None:
    line = lay(socket_stage)

    def slowly(handshake: Handshake) -> None:
        handshake.accept({"x-models-etag": "1", "set-cookie": "a=b"}, step=step)

    line.upstream.queue_upgrades(slowly)
    talk = line.talk()
    talk.turn()
    talk.turn()
    assert line.dialled == 1


def test_frames_right_behind_the_101_are_read(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    early = json.dumps({"type": "codex.rate_limits", "rate_limits": {}}).encode()

    def eager(handshake: Handshake) -> None:
        handshake.accept(then=frame(PING, b"early") + frame(TEXT, early))

    line.upstream.queue_upgrades(eager)
    line.talk().turn()
    assert line.upstream.sockets[0].wait_pongs(1) == [b"early"]
    assert line.dialled == 1


# --- frames --------------------------------------------------------------------------------


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def framings() -> dict[str, object]:
    ping, pong = frame(PING, b"between"), frame(PONG, b"unasked")

    def fragments(peer: UpstreamSocket, messages: list[bytes]) -> None:
        for message in messages:
            peer.fragments(*cut(message, 7), b"", between=ping + pong)

    def empty_first(peer: UpstreamSocket, messages: list[bytes]) -> None:
        for message in messages:
            peer.fragments(b"", message, b"")

    def byte_by_byte(peer: UpstreamSocket, messages: list[bytes]) -> None:
        for message in messages:
            peer.dribble(frame(TEXT, message), 3)

    def one_write(peer: UpstreamSocket, messages: list[bytes]) -> None:
        peer.raw(b"".join(frame(TEXT, message) + ping for message in messages))

    def odd_cuts(peer: UpstreamSocket, messages: list[bytes]) -> None:
        peer.dribble(b"".join(frame(TEXT, message) for message in messages), 97)

    return {
        "fragments with pings and pongs between": fragments,
        "empty fragments": empty_first,
        "a few bytes at a time": byte_by_byte,
        "all in one write": one_write,
        "writes that end anywhere": odd_cuts,
    }


@pytest.mark.parametrize("write", framings().values(), ids=framings().keys())
def test_frames_may_be_cut_in_any_way(socket_stage: Stage, write: object) -> None:
    line = lay(socket_stage)
    text = "grüße 🙂 " * 20

    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item(text)])
        raw = [json.dumps(event, ensure_ascii=False).encode() for event in events]
        over(exchange).socket.busy = None
        write(over(exchange).socket, raw)  # type: ignore[operator]
        exchange.end()

    line.upstream.queue(script)
    talk = line.talk()
    assert talk.text() == text
    talk.turn()
    assert line.dialled == 1


@pytest.mark.parametrize("size", [125, 126, 65535, 65536, 3 * MIB, 20 * MIB])
@pytest.mark.parametrize("fragments", [1, 4])
def test_events_of_any_size(socket_stage: Stage, size: int, fragments: int) -> None:
    line = lay(socket_stage)
    filler = {"type": "response.odd", "x": ""}

    def script(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:2])
        short = json.dumps(filler).encode()
        whole = json.dumps({**filler, "x": "y" * (size - len(short))}).encode()
        assert len(whole) == size
        over(exchange).socket.fragments(*cut(whole, -(-size // fragments)))
        exchange.sse(*events[2:])
        exchange.end()

    line.upstream.queue(script)
    talk = line.talk()
    events = talk.ask()
    completed(events)
    assert size in [len(each) for each in talk.client.texts]
    assert all(each.length <= 16 * MIB for each in talk.client.tap.frames)


def test_ten_thousand_events_stay_in_order(socket_stage: Stage) -> None:
    def script(exchange: Exchange) -> None:
        exchange.answer([text_item("0123456789" * 1000)], pieces=10_000)

    line = lay(socket_stage, script)
    events = line.talk().ask()
    assert output_text(events) == "0123456789" * 1000
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(events)))


# --- pings ---------------------------------------------------------------------------------


def test_pings_are_answered_between_turns(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    talk = line.talk()
    talk.turn()
    (peer,) = line.upstream.sockets
    for payload in (b"", b"one", b"x" * 125):
        peer.ping(payload)
    assert peer.wait_pongs(3) == [b"", b"one", b"x" * 125]
    last = talk.last
    talk.turn()
    assert last is not None
    assert_delta(line.sent[-1], talk, last)


def test_pings_are_answered_while_a_turn_is_silent(socket_stage: Stage) -> None:
    line = lay(socket_stage)

    def script(exchange: Exchange) -> None:
        peer = over(exchange).socket
        peer.ping(b"before")
        peer.wait_pongs(1)
        events = exchange.turn()
        exchange.sse(*events[:BEGUN])
        peer.ping(b"within")
        peer.wait_pongs(2)
        exchange.sse(*events[BEGUN:])
        exchange.end()

    line.upstream.queue(script)
    line.talk().turn()
    assert line.upstream.sockets[0].pongs == [b"before", b"within"]


def test_a_pong_does_not_wait_behind_a_large_request(socket_stage: Stage) -> None:
    """15 MiB leave in fragments, and a ping in the middle of them is answered in between."""
    line = lay(socket_stage)
    pinged = threading.Event()

    def on_frame(peer: UpstreamSocket, received: ReceivedFrame) -> None:
        if received.opcode == TEXT and not received.fin and not pinged.is_set():
            pinged.set()
            peer.ping(b"hurry")
            threading.Event().wait(0.3)  # as a slow link: what was written fills its buffers

    line.upstream.on_frame = on_frame
    line.talk().turn("x" * (15 * MIB))
    (peer,) = line.upstream.sockets
    assert line.sent[0].transport == "websocket"
    order = [received.opcode for received in peer.frames]
    sizes = [r.length for r in peer.frames if r.opcode in (TEXT, CONTINUATION)]
    note(f"{len(sizes)} fragments of at most {max(sizes)} bytes, pong is frame {order.index(PONG)}")
    assert max(sizes) <= MIB, "a large request leaves in fragments"
    before = sum(r.length for r in peer.frames[: order.index(PONG)])
    assert before < 12 * MIB, "the pong comes long before the end of the request"
    assert peer.pongs == [b"hurry"]


# --- what goes by HTTP ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_10_78_large_requests_go_by_http_with_the_same_account(
    socket_stage: Stage, kind: str
) -> None:
    """Sixteen MiB and more do not fit into a message."""
    line = lay(socket_stage, kind=kind)
    line.talk().turn()
    line.talk().turn("x" * (16 * MIB + 1000))
    large = line.sent[-1]
    assert large.transport == "http"
    assert "type" not in large.body
    assert large.header("authorization") == line.sent[0].header("authorization")
    line.talk().turn()
    assert line.upstream.transports() == ["websocket", "http", "websocket"]


def test_a_chain_goes_on_around_a_request_that_went_by_http(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    talk = line.talk()
    talk.turn("small")
    items = list(talk.said)
    talk.turn("x" * (17 * MIB))
    assert line.sent[-1].transport == "http"
    assert_replay(line.sent[-1], [*items, *talk.new])


def test_forwarded_requests_go_by_http(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    line.upstream.queue(lambda exchange: exchange.json(200, {"object": "x", "choices": []}))
    client = HttpClient(line.lease.gateway.port)
    body = json.dumps({"model": line.lease.model, "messages": []}).encode()
    assert client.ask(path="/v1/chat/completions", body=body).status == 200
    client.drop()
    assert line.upstream.transports() == ["http"]
    assert line.dialled == 0


# --- out of band ---------------------------------------------------------------------------

OUT_OF_BAND: dict[str, Json] = {
    "quotas": {
        "type": "codex.rate_limits",
        "rate_limits": {"primary": {"used_percent": 12, "window_minutes": 300}},
    },
    "another of codex": {"type": "codex.something_new", "x": 1},
    "timing": {"type": "responsesapi.websocket_timing", "timing": {"total": 1}},
    "metadata": {"type": "response.metadata", "metadata": {}, "headers": {"x-a": "b"}},
}


@pytest.mark.parametrize("event", OUT_OF_BAND.values(), ids=OUT_OF_BAND.keys())
def test_events_out_of_band_between_turns_are_dropped(socket_stage: Stage, event: Json) -> None:
    line = lay(socket_stage)

    def trailing(exchange: Exchange) -> None:
        events = exchange.turn()
        exchange.sse(*events[:-1])
        over(exchange).socket.busy = None
        last = json.dumps(events[-1]).encode()
        exchange.raw(frame(TEXT, last) + frame(TEXT, json.dumps(event).encode()))
        exchange.end()

    line.upstream.queue(trailing)
    talk = line.talk()
    talk.turn()
    (peer,) = line.upstream.sockets
    peer.text(event)
    peer.ping(b"read?")
    peer.wait_pongs(1)
    last = talk.last
    texts = len(talk.client.texts)
    talk.turn()
    assert last is not None
    assert_delta(line.sent[-1], talk, last)
    assert line.dialled == 1
    assert json.loads(talk.client.texts[texts])["type"] == "response.created"


@pytest.mark.parametrize("event", OUT_OF_BAND.values(), ids=OUT_OF_BAND.keys())
def test_events_out_of_band_are_no_output(socket_stage: Stage, event: Json) -> None:
    """What comes before `response.created` decides nothing: the turn can still move."""
    line = lay(socket_stage)

    def refusing(exchange: Exchange) -> None:
        exchange.sse(event)
        exchange.close()

    line.upstream.queue(refusing)
    talk = line.talk()
    talk.turn()
    assert len(line.sent) == 2


BETWEEN: dict[str, bytes] = {
    "an error": json.dumps({"type": "error", "status": 500, "error": {}}).encode(),
    "a late delta": b'{"type":"response.output_text.delta","delta":"x","output_index":0}',
    "a beginning": b'{"type":"response.created","response":{"id":"resp_foreign"}}',
    "a second end": b'{"type":"response.completed","response":{"id":"resp_foreign","output":[]}}',
    "no JSON": b"hello",
    "no object": b"[]",
    "nothing": b"",
}


@pytest.mark.parametrize("message", BETWEEN.values(), ids=BETWEEN.keys())
def test_anything_else_between_turns_ends_the_socket(socket_stage: Stage, message: bytes) -> None:
    line = lay(socket_stage)
    talk = line.talk()
    talk.turn()
    (peer,) = line.upstream.sockets
    peer.text(message)
    assert peer.wait_gone(), "such a socket must not be used again"
    text, script = numbered_answer()
    line.upstream.queue(script)
    assert talk.text() == text
    assert_replay(line.sent[-1], talk.said[:-1])
    assert (len(line.sent), line.dialled) == (2, 2)


# --- clients that leave --------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["cancel", "interrupt", "close", "reset"])
@pytest.mark.parametrize("after", [0, 2, BEGUN], ids=["sent", "created", "output"])
def test_10_79_an_abandoned_answer_never_reaches_the_next_turn(
    socket_stage: Stage, leave: str, after: int
) -> None:
    line = lay(socket_stage)
    left = threading.Event()

    def abandoned(exchange: Exchange) -> None:
        events = exchange.turn([text_item("abandoned")])
        exchange.sse(*events[:after])
        exchange.hold(left)
        exchange.sse(*events[after:])  # a service may go on for a while
        exchange.end()

    line.upstream.queue(abandoned)
    talk = line.talk()
    talk.send()
    request = line.upstream.wait_for(1)[0]
    if after == BEGUN:
        event = talk.client.until("response.output_text.delta")
        created = event[0]["response"]["id"]
    if leave == "interrupt" and after != BEGUN:
        leave = "cancel"  # a client cannot name what it has not seen
    if leave == "interrupt":
        talk.client.send({"type": "response.interrupt", "response_id": created})
    elif leave == "cancel":
        talk.client.send({"type": "response.cancel"})
    elif leave == "close":
        talk.client.close()
    else:
        talk.client.reset()
    if leave in ("interrupt", "cancel"):
        events = talk.client.until_terminal()
        assert types(events)[-1] == "response.incomplete"
        following = Conversation(talk.client)
    else:
        following = line.talk()
    text, script = numbered_answer()
    line.upstream.queue(script)
    left.set()
    assert following.text("next") == text
    assert line.sent[-1].input[-1] == user("next")
    assert request.finished.wait(10), "the abandoned turn is over, drained or dropped"
    assert len(line.sent) == 2
    text, script = numbered_answer()
    line.upstream.queue(script)
    assert following.text() == text
    following.client.assert_silent(0.05)


def test_an_interrupted_turn_can_be_continued(socket_stage: Stage) -> None:
    line = lay(socket_stage)

    def interrupted(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:BEGUN])
        exchange.hold()

    talk = line.talk()
    talk.turn("one")
    items = list(talk.said)
    line.upstream.queue(interrupted)
    talk.send("two")
    events = talk.client.until("response.output_text.delta")
    broken = events[0]["response"]["id"]
    talk.client.send({"type": "response.interrupt", "response_id": broken})
    assert talk.client.until_terminal()[-1]["response"]["id"] == broken
    talk.last = broken
    before = talk.new
    talk.turn("three")
    request = line.sent[-1]
    assert request.previous_response_id is None
    assert request.input == [*items, *before, *talk.new]


def test_a_second_answer_never_reaches_the_next_turn(socket_stage: Stage) -> None:
    line = lay(socket_stage)

    def twice(exchange: Exchange) -> None:
        events = exchange.turn([text_item("first")])
        more = exchange.turn([text_item("second")])
        whole = b"".join(frame(TEXT, json.dumps(event).encode()) for event in [*events, *more])
        over(exchange).socket.busy = None
        exchange.raw(whole)
        exchange.end()

    line.upstream.queue(twice)
    talk = line.talk()
    assert talk.text() == "first"
    assert line.upstream.sockets[0].wait_gone(), "such a socket is not used again"
    text, script = numbered_answer()
    line.upstream.queue(script)
    assert talk.text() == text
    talk.client.assert_silent(0.05)


# --- the end of the gateway and of clients -------------------------------------------------


def test_error_frames_of_one_turn_do_not_reach_the_next(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    talk = line.talk()
    talk.turn()
    body = error_body("context_length_exceeded", "Too long.", param="input")
    line.upstream.queue(lambda exchange: exchange.json(400, body))
    assert_error(talk.ask()[-1], 400, "context_length_exceeded")
    talk.start_over()
    text, script = numbered_answer()
    line.upstream.queue(script)
    assert talk.text() == text


def test_sockets_close_when_the_gateway_stops(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    try:
        upstream: WebSocketUpstream = stage.websocket_upstream()
        gateway = stage.gateway(account("solo", upstream, transport="websocket"))
        completed(gateway.connect().turn())
        gateway.stop()
        assert upstream.sockets[0].wait_gone(5)
    finally:
        stage.close()
