"""One WebSocket to an account, over bytes in memory: its handshake, what goes over it, its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from gateway.upstream import websocket_client
from gateway.upstream.websocket_client import (
    MAX_MESSAGE_BYTES,
    TRANSITIONS,
    ClosedSocket,
    SocketPhase,
    UpstreamSocket,
    dial,
)
from gateway.upstream.websocket_frames import FRAGMENT_BYTES
from gateway.upstream.websocket_upgrade import (
    UPGRADE_SECONDS,
    Handshake,
    UpgradeFailed,
    UpgradeRefused,
)
from tests.upstream.websocket_wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    MemoryEndpoint,
    Peer,
    closing,
    frame,
    messages,
)

PING_SECONDS = 25.0


pytestmark = pytest.mark.usefixtures("logged")


class Heard:
    """A listener that writes down; ``does`` is called with each batch."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.ends: list[ClosedSocket] = []
        self.silences = 0
        self.does: Callable[[], None] = lambda: None

    def socket_messages(self, payloads: list[bytes]) -> None:
        assert not self.ends, "messages after the end"
        self.texts += payloads
        self.does()

    def socket_closed(self, closed: ClosedSocket) -> None:
        self.ends.append(closed)
        assert len(self.ends) == 1, "a second end"

    def socket_is_silent(self) -> None:
        assert not self.ends, "silent after the end"
        self.silences += 1


class Dialled:
    """One dial: what became of it."""

    def __init__(self, handshake: Handshake | None = None) -> None:
        self.clock = Clock()
        self.endpoint = MemoryEndpoint()
        self.sockets: list[UpstreamSocket] = []
        self.failures: list[BaseException] = []
        self.heard = Heard()
        self.opening = dial(
            self.clock,
            self.endpoint,
            handshake or Handshake("http://upstream.test:81/v1/responses", {}),
            PING_SECONDS,
        )
        self.opening.addCallbacks(self._opened, lambda failed: self.failures.append(failed.value))

    def _opened(self, socket: UpstreamSocket) -> None:
        socket.listener = self.heard
        self.sockets.append(socket)

    @property
    def socket(self) -> UpstreamSocket:
        (socket,) = self.sockets
        return socket

    @property
    def failure(self) -> Any:
        (failure,) = self.failures
        return failure

    def check_rest(self, peer: Peer | None = None) -> None:
        """Everything has ended; nothing of it may be left."""
        if peer is not None:
            assert peer.closed, "the connection was left open"
            assert peer.transport.producer is None
            peer.loses()
        calls = self.clock.getDelayedCalls()
        assert not calls, f"timers outlived their socket: {calls}"


def connected(handshake: Handshake | None = None) -> tuple[Dialled, Peer]:
    dialled = Dialled(handshake)
    return dialled, dialled.endpoint.connects()


def opened() -> tuple[Dialled, Peer]:
    dialled, peer = connected()
    peer.accepts()
    assert dialled.socket._phase is SocketPhase.OPEN
    return dialled, peer


# --- the handshake -------------------------------------------------------------------------


def test_the_request_is_an_upgrade_and_nothing_more() -> None:
    headers = {"authorization": "Bearer sk", "x-name": "J\xfcrgen", "user-agent": "codex"}
    _, peer = connected(Handshake("http://upstream.test:81/v1/responses?a=b&c", headers))
    head, end, rest = peer.request.partition(b"\r\n\r\n")
    key = peer.headers["sec-websocket-key"].encode()
    assert (end, rest) == (b"\r\n\r\n", b"")
    assert head.split(b"\r\n") == [
        b"GET /v1/responses?a=b&c HTTP/1.1",
        b"host: upstream.test:81",
        b"upgrade: websocket",
        b"connection: Upgrade",
        b"authorization: Bearer sk",
        b"x-name: J\xfcrgen",
        b"user-agent: codex",
        b"sec-websocket-key: " + key,
        b"sec-websocket-version: 13",
    ]
    assert len(key) == 24


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("https://upstream.test", "GET / HTTP/1.1", "upstream.test"),
        ("http://[::1]:80/x", "GET /x HTTP/1.1", "[::1]:80"),
        ("https://user:hush@upstream.test/x", "GET /x HTTP/1.1", "upstream.test"),
    ],
)
def test_the_target_is_that_of_the_url(url: str, line: str, host: str) -> None:
    _, peer = connected(Handshake(url, {}))
    assert peer.request.startswith(line.encode() + b"\r\n")
    assert peer.headers["host"] == host
    assert b"hush" not in peer.request


def test_each_socket_has_a_key_of_its_own() -> None:
    keys = {connected()[1].headers["sec-websocket-key"] for _ in range(10)}
    assert len(keys) == 10


def test_subprotocols_are_offered_and_one_of_them_may_be_chosen() -> None:
    handshake = Handshake("http://upstream.test/", {}, ["a.v1", "b.v2"])
    dialled, peer = connected(handshake)
    assert peer.headers["sec-websocket-protocol"] == "a.v1, b.v2"
    peer.accepts(b"Sec-WebSocket-Protocol: b.v2")
    assert dialled.socket._phase is SocketPhase.OPEN


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_answer_may_come_in_any_pieces(size: int) -> None:
    dialled, peer = connected()
    interim = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    held: list[bytes] = []
    peer.sends = lambda *data: held.extend(data)  # type: ignore[method-assign]
    peer.accepts(b"x-codex-plan-type: plus", then=frame(b"early") + frame(b"second")[:3])
    whole = interim * 2 + b"".join(held)
    for at in range(0, len(whole), size):
        peer.protocol.dataReceived(whole[at : at + size])
    assert dialled.socket.head.status == 101
    assert dialled.socket.head.headers["x-codex-plan-type"] == "plus"
    assert "link" not in dialled.socket.head.headers
    assert dialled.heard.texts == [b"early"]
    peer.protocol.dataReceived(frame(b"second")[3:])
    assert dialled.heard.texts == [b"early", b"second"]


def test_headers_of_the_answer_may_have_any_bytes() -> None:
    dialled, peer = connected()
    peer.accepts(b"x-name: J\xfcrgen", b"x-name-2: \xe2\x82\xac")
    assert dialled.socket.head.headers["x-name"] == "J\xfcrgen"
    dialled.socket.drop()
    dialled.check_rest(peer)


REFUSAL = b"HTTP/1.1 429 Too Many\r\nRetry-After: 7\r\n"
BODY = b'{"error":{"code":"usage_limit_reached"}}'
CHUNKED = b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(BODY[:9]), BODY[:9])
CHUNKED += b"%X;x=y\r\n%s\r\n" % (len(BODY[9:]), BODY[9:])


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize(
    ("rest", "end"),
    [
        (b"content-length: 40\r\n\r\n" + BODY, "length"),
        (CHUNKED + b"0\r\n\r\n", "length"),
        (CHUNKED + b"0\r\nx-trailer: y\r\n\r\n", "length"),
        (b"\r\n" + BODY, "close"),
        (b"connection: close\r\n\r\n" + BODY, "close"),
        (b"\r\n" + BODY, "time"),
        (b"content-length: 41\r\n\r\n" + BODY, "close"),
        (b"content-length: 41\r\n\r\n" + BODY, "time"),
        (b"content-length: none\r\n\r\n" + BODY, "close"),
        (b"content-length: -1\r\n\r\n" + BODY, "close"),
        (b"content-length: " + b"9" * 5000 + b"\r\n\r\n" + BODY, "close"),
        (b"content-length: " + b"9" * 5000 + b"\r\n\r\n" + BODY, "time"),
    ],
)
def test_a_refusal_keeps_its_status_headers_and_body(
    rest: bytes, end: str, in_pieces: bool
) -> None:
    dialled, peer = connected()
    data = REFUSAL + rest
    peer.sends(*([data[at : at + 1] for at in range(len(data))] if in_pieces else [data]))
    if end == "close":
        assert not dialled.failures
        peer.loses()
    elif end == "time":
        dialled.clock.advance(4.9)
        assert not dialled.failures
        dialled.clock.advance(0.2)
    refused = dialled.failure
    assert isinstance(refused, UpgradeRefused)
    assert (refused.head.status, refused.head.headers["retry-after"]) == (429, "7")
    assert refused.body == BODY
    dialled.check_rest(None if end == "close" else peer)


@pytest.mark.parametrize("status", [204, 304])
def test_some_refusals_have_no_body(status: int) -> None:
    dialled, peer = connected()
    peer.sends(b"HTTP/1.1 %d No Content\r\n\r\n" % status)
    assert (dialled.failure.head.status, dialled.failure.body) == (status, b"")
    dialled.check_rest(peer)


@pytest.mark.parametrize("head", [b"\r\n", b"transfer-encoding: chunked\r\n\r\nffffff\r\n"])
def test_no_more_than_64_kib_of_a_refusal_is_read(head: bytes) -> None:
    dialled, peer = connected()
    peer.sends(REFUSAL + head, *[b"x" * 1000] * 70)
    assert isinstance(dialled.failure, UpgradeRefused)
    assert len(dialled.failure.body) <= 65_536
    dialled.check_rest(peer)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/2 101\r\n\r\n",
        b"HTTP/1.1 600 What\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na b: c\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        b"HTTP/1.0 101 Switching\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"\r\n\r\n",
        b"x" * 65_537,
        b"HTTP/1.1 100 Continue\r\n\r\n" + b"x" * 65_537,
    ],
)
def test_a_broken_answer_fails_the_upgrade(answer: bytes) -> None:
    dialled, peer = connected()
    peer.sends(answer)
    assert isinstance(dialled.failure, UpgradeFailed)
    assert str(dialled.failure).startswith("did not accept the upgrade: ")
    dialled.check_rest(peer)


@pytest.mark.parametrize(
    "header",
    [
        b"Sec-WebSocket-Extensions: permessage-deflate",
        b"Sec-WebSocket-Extensions: x-of-ours",
        b"Sec-WebSocket-Protocol: not.offered",
        b"Sec-WebSocket-Accept: twice",
        b"x-bare: a\rb",
    ],
)
def test_a_101_that_was_not_asked_for_fails_the_upgrade(header: bytes) -> None:
    dialled, peer = connected()
    peer.accepts(header, then=frame(b"never read"))
    assert isinstance(dialled.failure, UpgradeFailed)
    assert not dialled.heard.texts
    dialled.check_rest(peer)


def test_a_wrong_key_fails_the_upgrade() -> None:
    dialled, peer = connected()
    peer.request = peer.request.replace(b"sec-websocket-key: ", b"sec-websocket-key: x")
    peer.accepts()
    assert isinstance(dialled.failure, UpgradeFailed)
    dialled.check_rest(peer)


def test_interim_answers_do_not_go_on_for_ever() -> None:
    dialled, peer = connected()
    for _ in range(int(UPGRADE_SECONDS)):
        peer.sends(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)
        assert not dialled.failures
        dialled.clock.advance(1)
    assert isinstance(dialled.failure, UpgradeFailed)
    dialled.check_rest(peer)


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101 Switching", b"HTTP/1.1 100 Go on\r\n\r\n"])
def test_a_head_that_never_ends_fails_the_upgrade_in_time(said: bytes) -> None:
    dialled, peer = connected()
    peer.sends(*([said] if said else []))
    dialled.clock.advance(UPGRADE_SECONDS - 0.1)
    assert not dialled.failures
    dialled.clock.advance(0.2)
    assert str(dialled.failure) == "did not answer the upgrade within 15 seconds"
    dialled.check_rest(peer)


def test_a_connection_that_cannot_be_made_fails_the_dial_as_it_failed() -> None:
    dialled = Dialled()
    dialled.endpoint.fails(ConnectionRefusedError())
    assert isinstance(dialled.failure, ConnectionRefusedError)
    dialled.check_rest()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101", b"HTTP/1.1 100 Go on\r\n\r\n"])
@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_a_connection_that_is_lost_without_an_answer_fails_the_dial(
    said: bytes, reason: Exception
) -> None:
    dialled, peer = connected()
    peer.sends(*([said] if said else []))
    peer.loses(reason)
    assert dialled.failure is reason
    dialled.check_rest()


def test_a_dial_is_cancelled_before_there_is_a_connection() -> None:
    dialled = Dialled()
    dialled.opening.cancel()
    assert isinstance(dialled.failure, CancelledError)
    assert dialled.endpoint.cancelled == 1
    dialled.check_rest()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101", REFUSAL + b"\r\nhalf a bo"])
def test_a_dial_is_cancelled_during_the_handshake(said: bytes) -> None:
    dialled, peer = connected()
    peer.sends(*([said] if said else []))
    dialled.opening.cancel()
    assert isinstance(dialled.failure, CancelledError)
    assert peer.aborted
    peer.protocol.dataReceived(b"anything\r\n\r\n")
    dialled.check_rest(peer)


def test_a_dial_that_is_cancelled_when_it_is_over_changes_nothing() -> None:
    dialled, peer = opened()
    dialled.opening.cancel()
    assert dialled.socket._phase is SocketPhase.OPEN
    assert not peer.closed


def test_an_endpoint_may_fail_after_the_connection_was_lost() -> None:
    """As one does that reports a failure of TLS by both ways."""
    endpoint = MemoryEndpoint()
    failures: list[Any] = []
    opening: Deferred[Any] = dial(Clock(), endpoint, Handshake("http://u/", {}), 25)
    opening.addErrback(failures.append)
    factory, connecting = endpoint.connecting[0]
    peer = Peer(factory.buildProtocol(None))
    peer.loses(ConnectionLost())
    connecting.errback(ConnectionRefusedError())
    assert [failed.type for failed in failures] == [ConnectionLost]


def test_a_connection_may_be_lost_after_the_endpoint_has_failed() -> None:
    endpoint = MemoryEndpoint()
    failures: list[Any] = []
    clock = Clock()
    opening: Deferred[Any] = dial(clock, endpoint, Handshake("http://u/", {}), 25)
    opening.addErrback(failures.append)
    factory, connecting = endpoint.connecting[0]
    for opens in (False, True):
        peer = Peer(factory.buildProtocol(None))
        if not connecting.called:
            connecting.errback(ConnectionRefusedError())
        if opens:
            peer.accepts()
            assert peer.aborted, "nobody wants it any more"
        peer.loses(ConnectionLost())
        assert [failed.type for failed in failures] == [ConnectionRefusedError]
        assert not clock.getDelayedCalls()


# --- messages out --------------------------------------------------------------------------


def test_messages_go_out_masked_and_in_order() -> None:
    dialled, peer = opened()
    sent = [b"{}", b"x" * 126, b"y" * FRAGMENT_BYTES]
    for each in sent:
        dialled.socket.send_message(each)
    assert peer.transport.producer is None
    assert messages(peer.frames()) == sent


def test_a_fragment_waits_until_the_one_before_has_left() -> None:
    dialled, peer = opened()
    payload = bytes(range(256)) * 128 * 5  # five fragments
    dialled.socket.send_message(payload)
    seen = peer.frames()
    assert len(seen) == 2, "one on its way, one that waits behind it"
    assert peer.transport.streaming is False
    for number in range(3, 6):
        peer.transport.producer.resumeProducing()
        seen += peer.frames()
        assert len(seen) == number
    peer.transport.producer.resumeProducing()
    assert peer.transport.producer is None
    assert messages(seen) == [payload]


def test_a_pong_goes_out_between_two_fragments() -> None:
    dialled, peer = opened()
    payload = bytes(10 * FRAGMENT_BYTES)
    dialled.socket.send_message(payload)
    peer.transport.producer.resumeProducing()
    peer.sends(frame(b"now", PING))
    dialled.clock.advance(PING_SECONDS)
    peer.drain()
    seen = peer.frames()
    assert [each.opcode for each in seen[:6]] == [TEXT, CONTINUATION, CONTINUATION, PONG, PING, 0]
    assert seen[3].payload == b"now"
    assert messages(seen) == [payload]


def test_messages_wait_behind_one_that_is_still_leaving() -> None:
    dialled, peer = opened()
    sent = [bytes(3 * FRAGMENT_BYTES), b"second", b"z" * (2 * FRAGMENT_BYTES + 1), b"last"]
    for each in sent:
        dialled.socket.send_message(each)
    peer.drain()
    assert messages(peer.frames()) == sent


# --- messages in ---------------------------------------------------------------------------


def test_a_read_is_delivered_as_one_batch() -> None:
    dialled, peer = opened()
    batches: list[int] = []
    dialled.heard.does = lambda: batches.append(len(dialled.heard.texts))
    peer.says(b"a", b"b", b"c")
    assert batches == [3]


def test_nothing_is_delivered_after_a_close_from_within_a_batch() -> None:
    for end in ("drop", "close"):
        dialled, peer = opened()
        dialled.heard.does = getattr(dialled.socket, end)
        peer.sends(frame(b"a") + frame(b"", PING) + frame(b"b") + frame(b"c", fin=False))
        peer.protocol.dataReceived(frame(b"d", 0) + frame(b"e"))
        assert dialled.heard.texts == [b"a"]
        assert dialled.heard.ends == []
        dialled.check_rest(peer)


def test_a_close_from_within_a_message_that_autobahn_read_is_the_end() -> None:
    dialled, peer = opened()
    dialled.heard.does = dialled.socket.drop
    peer.sends(frame(b"a", fin=False) + frame(b"b", 0) + frame(b"c", fin=False) + frame(b"d", 0))
    assert dialled.heard.texts == [b"ab"]
    dialled.check_rest(peer)


def test_the_beginning_of_a_message_is_forgotten_when_the_socket_closes() -> None:
    dialled, peer = opened()
    peer.sends(frame(b"half a message")[:5])
    dialled.socket.close()
    peer.protocol.dataReceived(frame(b"half a message")[5:])
    assert dialled.heard.texts == []
    dialled.check_rest(peer)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(b"x", BINARY), 1003),
        (frame(b"\xff"), 1007),
        (frame("…".encode()[:2]), 1007),
        (frame(b"\xe2\x80", fin=False) + frame(b"", 0), 1007),
        (b"\x81\x7f" + (MAX_MESSAGE_BYTES + 1).to_bytes(8, "big"), 1009),
        (b"\x81\x7f" + (2**63 - 1).to_bytes(8, "big") + b"x", 1009),
    ],
)
def test_what_cannot_be_read_ends_the_socket(data: bytes, code: int) -> None:
    dialled, peer = opened()
    peer.sends(data)
    (end,) = dialled.heard.ends
    assert end.code == code
    (said,) = peer.frames()
    assert (said.opcode, said.payload[:2]) == (CLOSE, code.to_bytes(2, "big"))
    assert not peer.aborted, "the Close frame has to leave"
    dialled.clock.advance(2)
    assert peer.aborted
    dialled.check_rest(peer)


def test_fragments_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket_client, "MAX_MESSAGE_BYTES", 1000)
    dialled, peer = opened()
    peer.sends(frame(bytes(500), fin=False), frame(bytes(500), 0), frame(bytes(1000)))
    assert [len(text) for text in dialled.heard.texts] == [1000, 1000]
    peer.sends(frame(bytes(500), fin=False), frame(bytes(501), 0, fin=False))
    assert [end.code for end in dialled.heard.ends] == [1009]
    dialled.check_rest(peer)


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_a_message_has_no_endless_fragments(
    monkeypatch: pytest.MonkeyPatch, payload: bytes
) -> None:
    """Empty ones add nothing to its length, and each takes memory."""
    monkeypatch.setattr(websocket_client, "MAX_FRAGMENTS", 100)
    dialled, peer = opened()
    for _ in range(2):
        peer.sends(frame(payload, fin=False) + frame(payload, 0, fin=False) * 98, frame(b"", 0))
    assert dialled.heard.texts == [payload * 99] * 2
    peer.sends(frame(payload, fin=False) + frame(payload, 0, fin=False) * 100)
    assert [end.code for end in dialled.heard.ends] == [1009]
    dialled.check_rest(peer)


def test_a_listener_that_fails_ends_the_socket() -> None:
    dialled, peer = opened()

    def fails() -> None:
        raise ValueError("a bug")

    dialled.heard.does = fails
    logged: list[Any] = []
    observer = logged.append
    globalLogPublisher.addObserver(observer)
    publisher: Any = globalLogPublisher
    try:
        others = [each for each in publisher._observers if each is not observer]
        for each in others:
            globalLogPublisher.removeObserver(each)
        peer.says(b"a", b"b")
    finally:
        globalLogPublisher.removeObserver(observer)
        for each in others:
            globalLogPublisher.addObserver(each)
    assert [event["log_failure"].type for event in logged] == [ValueError]
    assert [str(end) for end in dialled.heard.ends] == ["1011 the gateway failed"]
    dialled.check_rest(peer)


# --- pings ---------------------------------------------------------------------------------


def test_pings_are_answered_in_every_state_of_a_message() -> None:
    dialled, peer = opened()
    peer.sends(frame(b"1", PING), frame(b"a", fin=False) + frame(b"2", PING))
    peer.sends(frame(b"b", 0) + frame(b"3", PING) + frame(b"c")[:1], frame(b"c")[1:])
    assert [each.payload for each in peer.frames() if each.opcode == PONG] == [b"1", b"2", b"3"]
    assert dialled.heard.texts == [b"ab", b"c"]


def test_a_ping_without_a_pong_is_reported_at_the_next_one() -> None:
    dialled, peer = opened()
    for _ in range(3):
        dialled.clock.advance(PING_SECONDS)
        (ping,) = peer.frames()
        assert ping.opcode == PING
        peer.sends(frame(ping.payload, PONG))
    dialled.clock.advance(PING_SECONDS)
    assert dialled.heard.silences == 0
    dialled.clock.advance(PING_SECONDS)
    assert dialled.heard.silences == 1
    dialled.clock.advance(PING_SECONDS)
    assert dialled.heard.silences == 2
    peer.says(b"a message is as good as a pong")
    dialled.clock.advance(PING_SECONDS)
    assert dialled.heard.silences == 2
    dialled.socket.drop()
    dialled.check_rest(peer)


def test_a_socket_that_is_dropped_for_its_silence_pings_no_more() -> None:
    dialled, peer = opened()
    dialled.heard.socket_is_silent = dialled.socket.drop  # type: ignore[method-assign]
    dialled.clock.advance(PING_SECONDS)
    peer.frames()
    dialled.clock.advance(PING_SECONDS)
    assert peer.aborted
    assert peer.frames() == []
    dialled.check_rest(peer)


def test_a_peer_that_floods_and_does_not_read_fills_no_buffer() -> None:
    dialled, peer = opened()
    peer.sends(frame(b"x", PING) * 1000, frame(b"", PONG), frame(b"x", PING) * 1000)
    assert len(peer.frames()) == 2000
    peer.sends(frame(b"x", PING) * 3)
    assert [end.code for end in dialled.heard.ends] == [1002]
    assert peer.frames() == []
    dialled.check_rest(peer)


# --- back-pressure -------------------------------------------------------------------------


def test_a_socket_is_paused_and_read_on() -> None:
    dialled, peer = opened()
    dialled.socket.pause()
    assert peer.paused
    dialled.socket.resume()
    assert not peer.paused
    dialled.socket.drop()
    dialled.socket.pause()
    dialled.socket.resume()
    dialled.check_rest(peer)


# --- the end -------------------------------------------------------------------------------

CODES = [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014]
CODES += [1015, 3000, 4000, 0, 999, 5000, 65_535]


@pytest.mark.parametrize("code", CODES)
def test_the_peers_close_is_reported_and_answered(code: int) -> None:
    dialled, peer = opened()
    peer.sends(frame(b"before") + closing(code, b"because") + frame(b"after"))
    assert dialled.heard.texts == [b"before"]
    assert dialled.heard.ends == [ClosedSocket(code, "because")]
    (answer,) = peer.frames()
    assert answer.opcode == CLOSE
    assert int.from_bytes(answer.payload, "big") not in (1005, 1006, 1015), "RFC 6455 §7.4.1"
    dialled.check_rest(peer)


def test_a_close_may_have_no_code_and_any_reason() -> None:
    dialled, peer = opened()
    peer.sends(closing())
    assert dialled.heard.ends == [ClosedSocket(1005, "")]
    dialled.check_rest(peer)
    dialled, peer = opened()
    peer.sends(closing(1011, b"\xff\xfe"))
    assert dialled.heard.ends == [ClosedSocket(1011, "��")]
    dialled.check_rest(peer)


def test_a_close_of_one_byte_is_a_violation() -> None:
    dialled, peer = opened()
    peer.sends(frame(b"x", CLOSE))
    assert [end.code for end in dialled.heard.ends] == [1002]
    dialled.check_rest(peer)


def test_a_close_amid_fragments_leaves_no_producer() -> None:
    dialled, peer = opened()
    dialled.socket.send_message(bytes(200_000))
    before = len(peer.frames())
    assert before == 2
    peer.sends(closing(1009, b"too big"))
    assert dialled.heard.ends == [ClosedSocket(1009, "too big")]
    assert peer.frames() == [], "a Close frame amid a message means that the message is whole"
    dialled.check_rest(peer)


@pytest.mark.parametrize("is_sending", [False, True])
@pytest.mark.parametrize("reason", [ConnectionDone(), ConnectionLost()])
def test_a_connection_that_is_lost_is_reported(reason: Exception, is_sending: bool) -> None:
    dialled, peer = opened()
    if is_sending:
        dialled.socket.send_message(bytes(200_000))
    peer.loses(reason)
    assert dialled.heard.ends == [ClosedSocket(1006, "the connection was lost")]
    dialled.check_rest()


def test_a_goodbye_has_its_time_and_the_listener_hears_nothing() -> None:
    dialled, peer = opened()
    dialled.socket.close()
    (said,) = peer.frames()
    assert (said.opcode, said.payload) == (CLOSE, b"\x03\xe8")
    assert not peer.aborted
    peer.sends(frame(b"late") + closing(1000))
    dialled.clock.advance(1.9)
    assert not peer.aborted
    dialled.clock.advance(0.2)
    assert peer.aborted
    assert (dialled.heard.texts, dialled.heard.ends) == ([], [])
    dialled.check_rest(peer)


def test_a_goodbye_that_is_answered_leaves_no_timer() -> None:
    dialled, peer = opened()
    dialled.socket.close()
    peer.loses()
    dialled.check_rest()


@pytest.mark.parametrize("end", ["drop", "close", "cancel"])
def test_a_large_message_on_its_way_is_given_up(end: str) -> None:
    dialled, peer = opened()
    dialled.socket.send_message(bytes(1_000_000))
    dialled.socket.send_message(b"behind it")
    peer.frames()
    getattr(dialled.socket, end)()
    assert peer.aborted
    assert peer.frames() == []
    dialled.check_rest(peer)


PHASES = {
    SocketPhase.OPENING: lambda peer: None,
    SocketPhase.REFUSED: lambda peer: peer.sends(REFUSAL + b"\r\nhalf"),
    SocketPhase.OPEN: lambda peer: peer.accepts(),
    SocketPhase.CLOSED: lambda peer: peer.sends(b"\r\n\r\n"),
}
ENDS: dict[str, Callable[[Any, Peer], object]] = {
    "drop": lambda socket, peer: socket.drop(),
    "close": lambda socket, peer: socket.close(),
    "cancel": lambda socket, peer: socket.cancel(),
    "lost": lambda socket, peer: peer.loses(),
    "violation": lambda socket, peer: socket.violated(1002, "broken"),
    "broken": lambda socket, peer: socket.failHandshake("broken"),
    "time": lambda socket, peer: socket._reactor.advance(100),
    "bytes": lambda socket, peer: socket.dataReceived(closing(1000) + b"\r\n\r\n"),
}


@pytest.mark.parametrize("first", ENDS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_end_in_every_phase_and_another_after_it(phase: SocketPhase, first: str) -> None:
    for second in ENDS:
        ends_twice(phase, first, second)


def ends_twice(phase: SocketPhase, first: str, second: str) -> None:
    dialled, peer = connected()
    PHASES[phase](peer)
    assert peer.protocol._phase is phase
    for end in (first, second):
        if not (end in ("lost", "bytes") and not peer.protocol.transport.connected):
            ENDS[end](peer.protocol, peer)
    if not peer.closed:
        peer.protocol.drop()
    peer.loses()
    assert peer.protocol._phase is SocketPhase.CLOSED
    assert len(dialled.failures) + len(dialled.sockets) <= 1, "one outcome of a dial"
    assert len(dialled.heard.ends) <= 1
    assert not dialled.clock.getDelayedCalls()
    assert peer.protocol.listener is None


def test_the_table_has_every_phase_and_an_end() -> None:
    assert set(TRANSITIONS) == set(SocketPhase)
    assert TRANSITIONS[SocketPhase.CLOSED] == set()
    assert all(SocketPhase.CLOSED in TRANSITIONS[each] for each in SocketPhase if TRANSITIONS[each])


def test_a_phase_that_may_not_follow_is_a_bug() -> None:
    dialled, peer = opened()
    with pytest.raises(AssertionError):
        dialled.socket._enter(SocketPhase.OPENING)
    dialled.socket.drop()
    dialled.check_rest(peer)
