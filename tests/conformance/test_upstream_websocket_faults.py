"""Everything that can go wrong on the way to an account over WebSocket, at every point of a turn.

The points: *idle* between two turns, *sent* without any event, *created* without output, *output*.
Before output a turn is sent again, unseen; after it never (law 4). Its end is always told once.
"""

from __future__ import annotations

import json
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conformance.conftest import Lease, Stage
from tests.conformance.sockets import (
    BEGUN,
    OPENING,
    Conversation,
    Line,
    assert_delta,
    assert_replay,
    lay,
    lay_first_fails,
    lay_first_refuses,
    numbered_answer,
)
from tests.conformance.test_back_pressure import settled
from tests.support.checks import (
    assert_error,
    assert_failed,
    completed,
    note,
    output_text,
)
from tests.support.events import Json, error_body, new_id, response_object, text_item, turn_events
from tests.support.gateway import account
from tests.support.strict import said
from tests.support.upstream import Exchange, Recorded, Script
from tests.support.websocket_upstream import (
    Handshake,
    ReceivedFrame,
    SocketExchange,
    UpgradeScript,
    UpstreamSocket,
    frame,
    frame_head,
    over,
    refused,
)
from tests.support.wsclient import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT

pytestmark = pytest.mark.conformance

MIB = 1 << 20
PHASES = {"sent": 0, "created": OPENING, "output": BEGUN}
Fault = Callable[[SocketExchange], object]

# --- a socket that is lost -----------------------------------------------------------------


def closing_without_a_code(exchange: SocketExchange) -> None:
    exchange.socket.close(None)
    exchange.close()


def cut_off(data: bytes) -> Fault:
    """The end behind these bytes, which are a part of something."""

    def fault(exchange: SocketExchange) -> None:
        exchange.raw(data)
        exchange.close()

    return fault


CODES = [*range(1000, 1016), 3000, 4000]
CLOSES: dict[str, Fault] = {
    f"close {code}": lambda exchange, code=code: exchange.close(code, "because")  # type: ignore[misc]
    for code in CODES
}
LOSSES: dict[str, Fault] = {
    **CLOSES,
    "close without a code": closing_without_a_code,
    "FIN": lambda exchange: exchange.close(),
    "RST": lambda exchange: exchange.reset(),
    "FIN within a frame": cut_off(frame_head(TEXT, 500) + b'{"type":'),
    "FIN within a message": cut_off(frame(TEXT, b'{"type":', fin=False)),
    "FIN within a head": cut_off(b"\x81"),
}


def read_up_to_here(exchange: Exchange) -> None:
    """Wait until the gateway has read, and relayed, what was sent: it answers a ping behind it."""
    peer = over(exchange).socket
    pongs = len(peer.pongs)
    peer.ping(b"read?")
    peer.wait_pongs(pongs + 1)


def losing(fault: Fault, after: int) -> Script:
    """A turn that is lost this way after so many events."""

    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn([text_item("lost")])[:after])
        read_up_to_here(exchange)
        fault(over(exchange))

    return script


def warm(line: Line) -> Conversation:
    """A conversation with one turn, so that the next one is a delta on a socket in use."""
    talk = line.talk()
    talk.turn("before")
    return talk


def assert_lost_after_output(line: Line, talk: Conversation, sent: int) -> None:
    """The client got one failure, the turn was not sent again, and it can go on."""
    events = talk.ask()
    assert_failed(events[-1])
    assert len(line.sent) == sent, "what the client saw is never sent again"
    assert_goes_on(line, talk)


def assert_goes_on(line: Line, talk: Conversation) -> None:
    """The account and the client are as good as new."""
    text, script = numbered_answer()
    line.upstream.queue(script)
    assert talk.text("after") == text
    talk.client.assert_silent(0.01)


def assert_unseen(line: Line, talk: Conversation, fault: Script) -> None:
    """The next turn meets this once, and the client sees a usual answer."""
    before, sent, last = list(talk.said), len(line.sent), talk.last
    text, script = numbered_answer()
    line.upstream.queue(fault, script)
    assert talk.text("unseen") == text
    tries = line.sent[sent:]
    assert len(tries) == 2, "it was sent once more"
    assert last is not None
    assert tries[0].previous_response_id == last
    assert_replay(tries[1], [*before, *talk.new])
    assert tries[0].connection != tries[1].connection
    assert_goes_on(line, talk)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("phase", ["sent", "created"])
def test_a_socket_lost_before_output_is_not_seen(
    socket_stage: Stage, loss: Fault, phase: str
) -> None:
    line = lay(socket_stage)
    assert_unseen(line, warm(line), losing(loss, PHASES[phase]))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_a_socket_lost_after_output_is_one_failure(socket_stage: Stage, loss: Fault) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    line.upstream.queue(losing(loss, BEGUN))
    assert_lost_after_output(line, talk, sent=2)


IDLE_ENDS: dict[str, Callable[[UpstreamSocket], object]] = {
    **{f"close {c}": lambda peer, c=c: peer.close(c, "because") for c in CODES},  # type: ignore[misc]
    "close without a code": lambda peer: peer.close(None),
    "FIN": lambda peer: peer.drop(),
    "RST": lambda peer: peer.reset(),
}


@pytest.mark.parametrize("end", IDLE_ENDS.values(), ids=IDLE_ENDS.keys())
def test_a_socket_lost_between_turns_is_not_seen(
    socket_stage: Stage, end: Callable[[UpstreamSocket], object]
) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    (peer,) = line.upstream.sockets
    end(peer)
    assert peer.wait_gone()
    talk.turn()
    replays = [request for request in line.sent[1:] if request.previous_response_id is None]
    assert len(replays) == 1, "it is replayed once, on a new socket"
    assert_replay(replays[0], [*talk.said[:2], *talk.new])
    assert line.dialled == 2
    last = talk.last
    talk.turn()
    assert last is not None
    assert_delta(line.sent[-1], talk, last)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("loss", ["close 1000", "close 1006", "close 1011", "close 1012", "RST"])
def test_a_socket_lost_each_time_ends_the_turn(socket_stage: Stage, loss: str, phase: str) -> None:
    """Not a loop: some tries, then one failure; and no cooldown for a lost transport."""
    line = lay(socket_stage, losing(LOSSES[loss], PHASES[phase]))
    talk = line.talk()
    events = talk.ask()
    if phase == "output":
        assert_failed(events[-1])
    else:
        assert_failed_or_5xx(events)
    assert 1 <= len(line.sent) <= (1 if phase == "output" else 4)
    assert_goes_on(line, talk)


def assert_failed_or_5xx(events: list[Json]) -> None:
    """A failure that every client retries."""
    if events[-1]["type"] == "error":
        assert_error(events[-1], (500, 502, 503, 504))
    else:
        assert_failed(events[-1])


@pytest.mark.parametrize("phase", ["sent", "created"])
@pytest.mark.parametrize("loss", ["close 1008", "close 1013", "FIN"])
def test_a_socket_lost_each_time_moves_the_turn(socket_stage: Stage, loss: str, phase: str) -> None:
    line = lay_first_fails(socket_stage, losing(LOSSES[loss], PHASES[phase]))
    events = line.talk().ask()
    assert output_text(events) == "hello"
    assert len(line.sent) <= 4


@pytest.mark.parametrize("phase", ["sent", "created"])
@pytest.mark.parametrize("loss", ["close 1001", "close 1011", "close 1012", "close 1013", "FIN"])
def test_sockets_that_are_always_lost_are_given_up_for_http(
    socket_stage: Stage, loss: str, phase: str
) -> None:
    line = lay(socket_stage, kind="auto")
    talk = warm(line)
    fault = losing(LOSSES[loss], PHASES[phase])
    text, script = numbered_answer()
    line.upstream.queue(fault, fault, script)
    assert talk.text() == text
    assert line.upstream.transports() == ["websocket"] * 3 + ["http"]
    assert_replay(line.sent[-1], talk.said[:-1])


def test_1000_before_any_event_refuses_the_input(socket_stage: Stage) -> None:
    """Over HTTP the service says why; no account is to blame, and none is asked in vain."""
    line = lay(socket_stage, kind="auto")
    why = error_body("invalid_function_parameters", "Invalid schema.", param="tools[0].parameters")
    line.upstream.queue(losing(CLOSES["close 1000"], 0), lambda e: e.json(400, why))
    assert_error(line.talk().ask()[-1], 400, "invalid_function_parameters")
    assert line.upstream.transports() == ["websocket", "http"]
    assert_goes_on(line, line.talk())


def test_1009_goes_by_http_with_the_same_account(socket_stage: Stage) -> None:
    line = lay(socket_stage, kind="auto")
    talk = warm(line)
    items = list(talk.said)
    line.upstream.queue(losing(CLOSES["close 1009"], 0))
    talk.turn("too large for it")
    assert line.upstream.transports() == ["websocket", "websocket", "http"]
    assert_replay(line.sent[-1], [*items, *talk.new])
    assert "type" not in line.sent[-1].body
    talk.start_over()
    talk.turn("small")
    assert line.sent[-1].transport == "websocket", "only that request goes by HTTP"


def test_1009_is_an_error_where_http_is_not_allowed(socket_stage: Stage) -> None:
    line = lay(socket_stage, losing(CLOSES["close 1009"], 0))
    assert_failed_or_5xx(line.talk().ask())
    assert len(line.sent) <= 3
    assert set(line.upstream.transports()) == {"websocket"}


# --- frames that are none ------------------------------------------------------------------

#: What no WebSocket may send (RFC 6455): the connection fails.
BROKEN: dict[str, bytes] = {
    "text that is not UTF-8": frame(TEXT, b'{"type":"response.odd","x":"\xff\xfe"}'),
    "half a character": frame(TEXT, b'{"type":"response.odd","x":"\xc3', fin=True),
    "a surrogate in UTF-8": frame(TEXT, b'{"type":"response.odd","x":"\xed\xa0\x80"}'),
    "bad UTF-8 in a fragment": frame(TEXT, b'{"type":"\xff', fin=False)
    + frame(CONTINUATION, b'"}'),
    "a reserved bit": frame(TEXT, b'{"type":"response.odd"}', rsv=4),
    "another reserved bit": frame(PING, b"", rsv=1),
    "an unknown opcode": frame(0x3, b'{"type":"response.odd"}'),
    "an unknown control opcode": frame(0xB, b""),
    "a masked frame": frame(TEXT, b'{"type":"response.odd"}', masked=True),
    "a continuation of nothing": frame(CONTINUATION, b'{"type":"response.odd"}'),
    "a message within a message": frame(TEXT, b"{", fin=False) + frame(TEXT, b"{}"),
    "a ping in fragments": frame(PING, b"", fin=False),
    "a ping of 126 bytes": frame_head(PING, 126) + bytes(126),
    "a close of one byte": frame(CLOSE, b"\x03"),
    "a close whose reason is not UTF-8": frame(CLOSE, struct.pack("!H", 1000) + b"\xff"),
    "a frame of 2^62 bytes": frame_head(TEXT, 1 << 62) + b"{",
    "a frame of 2^63 bytes and more": b"\x81\x7f" + b"\xff" * 8 + b"{",
    "a frame of 65 MiB": frame_head(TEXT, 65 * MIB) + b"{",
    "HTTP": b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
}
#: What a WebSocket may send, and the API does not.
ODD: dict[str, bytes] = {
    "a binary message": frame(BINARY, b"\0\1\2"),
    "binary JSON": frame(BINARY, b'{"type":"response.odd"}'),
    "a binary message in fragments": frame(BINARY, b"\0", fin=False) + frame(CONTINUATION, b"\1"),
    "no JSON": frame(TEXT, b"hello"),
    "no object": frame(TEXT, b"[1]"),
    "null": frame(TEXT, b"null"),
    "nothing": frame(TEXT, b""),
    "an object without a type": frame(TEXT, b'{"x":1}'),
    "a type that is no text": frame(TEXT, b'{"type":7}'),
    "[DONE]": frame(TEXT, b"[DONE]"),
}
HARMLESS: dict[str, bytes] = {
    "a ping": frame(PING, b"x"),
    "a pong": frame(PONG, b"unasked"),
    "an empty pong": frame(PONG, b""),
    "a ping of 125 bytes": frame(PING, b"x" * 125),
}


def spoilt(data: bytes, after: int) -> Script:
    """A turn with these bytes after so many events; it goes on as if nothing had been."""

    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item("spoilt")])
        exchange.sse(*events[:after])
        read_up_to_here(exchange)
        exchange.raw(data)
        exchange.request.gone.wait(0.3)
        exchange.sse(*events[after:])
        exchange.end()

    return script


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("phase", ["sent", "created"])
def test_a_broken_frame_before_output_is_not_seen(
    socket_stage: Stage, data: bytes, phase: str
) -> None:
    line = lay(socket_stage)
    assert_unseen(line, warm(line), spoilt(data, PHASES[phase]))


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_frame_after_output_is_one_failure(socket_stage: Stage, data: bytes) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    line.upstream.queue(spoilt(data, BEGUN))
    assert_lost_after_output(line, talk, sent=2)
    assert line.upstream.sockets[0].wait_gone()


@pytest.mark.parametrize("data", {**BROKEN, **ODD}.values(), ids={**BROKEN, **ODD}.keys())
def test_a_bad_frame_between_turns_ends_the_socket(socket_stage: Stage, data: bytes) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    (peer,) = line.upstream.sockets
    peer.raw(data)
    assert peer.wait_gone(), "such a socket must not be used again"
    items = list(talk.said)
    talk.turn()
    assert_replay(line.sent[-1], [*items, *talk.new])
    assert (len(line.sent), line.dialled) == (2, 2)


@pytest.mark.parametrize("data", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("phase", PHASES)
def test_an_odd_message_is_dropped_or_ends_the_socket(
    socket_stage: Stage, data: bytes, phase: str
) -> None:
    """Either will do, as long as the client gets one whole answer or one failure."""
    line = lay(socket_stage)
    talk = warm(line)
    line.upstream.queue(spoilt(data, PHASES[phase]))
    talk.send()
    events = talk.answer()
    if events[-1]["type"] == "response.completed":
        assert output_text(events) in ("spoilt", "hello")
    else:
        assert phase == "output", "before output it is sent again"
        assert_failed(events[-1])
        assert len(line.sent) == 2
    assert_goes_on(line, talk)


@pytest.mark.parametrize("data", HARMLESS.values(), ids=HARMLESS.keys())
@pytest.mark.parametrize("phase", PHASES)
def test_pings_and_pongs_change_nothing(socket_stage: Stage, data: bytes, phase: str) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    line.upstream.sockets[0].raw(data)

    def script(exchange: Exchange) -> None:
        events = exchange.turn([text_item("fine")])
        exchange.sse(*events[: PHASES[phase]])
        exchange.raw(data)
        exchange.sse(*events[PHASES[phase] :])
        exchange.end()

    line.upstream.queue(script)
    assert talk.text() == "fine"
    assert (len(line.sent), line.dialled) == (2, 1)


@pytest.mark.parametrize("fragments", [1, 100])
@pytest.mark.parametrize("phase", PHASES)
def test_a_message_of_70_megabytes(socket_stage: Stage, phase: str, fragments: int) -> None:
    """More than an event may have: the socket ends, the gateway does not."""
    line = lay(socket_stage)
    talk = warm(line)
    size = 70_000_000

    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[: PHASES[phase]])
        read_up_to_here(exchange)
        piece = b"x" * (size // fragments)
        for number in range(fragments):
            opcode = CONTINUATION if number else TEXT
            over(exchange).socket.frame(opcode, piece, fin=number == fragments - 1)
        exchange.hold(timeout=5)

    before = memory(line)
    if phase == "output":
        line.upstream.queue(script)
        assert_lost_after_output(line, talk, sent=2)
    else:
        assert_unseen(line, talk, script)
    note(f"memory rose by {(memory(line) - before) / MIB:.0f} MiB at most")
    assert memory(line) - before < 200 * MIB


def memory(line: Line) -> int:
    """The most memory that the gateway has had so far, in bytes."""
    status = Path(f"/proc/{line.lease.gateway.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# --- while a large request goes up ---------------------------------------------------------

LARGE = 8 * MIB


@pytest.mark.parametrize("end", ["FIN", "RST", "close 1011", "close 1009"])
def test_a_socket_lost_within_a_request_is_not_seen(socket_stage: Stage, end: str) -> None:
    """The peer goes after some fragments; it has no turn, so that sending it again is free."""
    line = lay(socket_stage, kind="auto")
    talk = warm(line)
    items = list(talk.said)
    ended = threading.Event()

    def on_frame(peer: UpstreamSocket, received: ReceivedFrame) -> None:
        if received.opcode == CONTINUATION and not ended.is_set():
            ended.set()
            if end.startswith("close"):
                peer.frame(CLOSE, struct.pack("!H", int(end[6:])))
            elif end == "RST":
                peer.reset()
            else:
                peer.drop()

    line.upstream.on_frame = on_frame
    talk.turn("x" * LARGE)
    assert ended.is_set()
    assert len(line.sent) == 2, "only the second attempt arrived"
    assert_replay(line.sent[-1], [*items, *talk.new])
    assert line.sent[-1].transport == ("http" if end == "close 1009" else "websocket")


@pytest.mark.parametrize("refused_early", [True, False])
def test_an_answer_may_come_before_the_end_of_its_request(
    socket_stage: Stage, refused_early: bool
) -> None:
    """The rest of the request still goes up before the next one, or the socket is dropped."""
    line = lay(socket_stage)
    talk = line.talk()
    early = threading.Event()

    def on_frame(peer: UpstreamSocket, received: ReceivedFrame) -> None:
        if received.opcode != TEXT or received.fin or early.is_set():
            return
        early.set()
        if refused_early:
            error = error_body("context_length_exceeded", "Too long.", param="input")
            peer.text({"type": "error", "status": 400, **error})
        else:
            for event in turn_events([text_item("early")], new_id("resp"), store=False):
                peer.text(event)

    def script(exchange: Exchange) -> None:
        if len(exchange.request.raw) > MIB:  # it was answered before
            exchange.end()
        else:
            exchange.answer([text_item(f"echo of {said(exchange.request.input[-1])}")])

    line.upstream.on_frame = on_frame
    line.upstream.script = script
    line.upstream.lanes = True  # the next turn is right behind one that was answered long ago
    events = talk.ask("x" * LARGE)
    if refused_early:
        assert_error(events[-1], 400, "context_length_exceeded")
    else:
        assert output_text(events) == "early"
    assert early.is_set()
    talk.start_over()
    assert talk.text("next") == "echo of next"
    assert line.talk().text("another") == "echo of another"
    assert talk.text("last") == "echo of last"


def test_a_client_that_leaves_frees_a_request_that_nobody_reads(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    (peer,) = line.upstream.sockets
    peer.reading.clear()
    talk.send("x" * (15 * MIB))
    time.sleep(0.2)
    talk.client.reset()
    peer.upstream.wait(lambda: peer.gone.is_set(), "the socket to be given up")
    line.talk().turn()


# --- floods --------------------------------------------------------------------------------


FLOODS: dict[str, tuple[bytes, bytes]] = {
    "empty fragments": (frame(TEXT, b"{", fin=False), frame(CONTINUATION, b"", fin=False) * 5000),
    "fragments": (frame(TEXT, b"{", fin=False), frame(CONTINUATION, b" " * 60, fin=False) * 2000),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS.keys())
def test_a_message_without_an_end_is_bounded(
    socket_stage: Stage, flood: tuple[bytes, bytes]
) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    first, more = flood
    before = memory(line)

    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:OPENING])
        exchange.raw(first)
        while not exchange.request.gone.is_set():
            exchange.raw(more)

    assert_unseen(line, talk, script)
    assert memory(line) - before < 200 * MIB


def test_a_flood_of_pings_costs_nobody_anything(socket_stage: Stage) -> None:
    """Whose pongs are not read: they are not kept without a bound, and others go on."""
    line = lay(socket_stage)
    talk = warm(line)
    before = memory(line)

    def script(exchange: Exchange) -> None:
        over(exchange).socket.reading.clear()
        events = exchange.turn([text_item("behind pings")])
        exchange.sse(*events[:BEGUN])
        for _ in range(100):
            exchange.raw(frame(PING, b"x" * 125) * 1000)
        exchange.sse(*events[BEGUN:])
        exchange.end()
        over(exchange).socket.reading.set()

    line.upstream.queue(script)
    talk.send()
    assert line.talk().text() == "hello"
    events = talk.answer()
    assert output_text(events) in ("behind pings", "")
    assert memory(line) - before < 100 * MIB


# --- refused upgrades ----------------------------------------------------------------------

NO_WEBSOCKET: dict[str, UpgradeScript] = {
    "400": refused(400, error_body(None, "Bad request.")),
    "403, empty": refused(403),
    "404": refused(404, b"<html>not found</html>"),
    "405": refused(405, b"", {"allow": "POST"}),
    "426": refused(426, b"", {"upgrade": "HTTP/1.1"}),
    "501": refused(501),
}


@pytest.mark.parametrize("refusal", NO_WEBSOCKET.values(), ids=NO_WEBSOCKET.keys())
def test_auto_goes_by_http_and_remembers_it(socket_stage: Stage, refusal: UpgradeScript) -> None:
    line = lay(socket_stage, kind="auto")
    line.upstream.upgrade = refusal
    talk = line.talk()
    talk.turn("one")
    talk.turn("two")
    assert_replay(line.sent[-1], [*talk.said[:2], *talk.new])
    line.talk().turn("three")
    assert line.upstream.transports() == ["http"] * 3
    assert line.dialled <= 3, "at most some tries, and none for the later turns"
    dialled = line.dialled
    line.talk().turn("four")
    assert line.dialled == dialled


@pytest.mark.parametrize("refusal", NO_WEBSOCKET.values(), ids=NO_WEBSOCKET.keys())
def test_websocket_never_goes_by_http(socket_stage: Stage, refusal: UpgradeScript) -> None:
    line = lay(socket_stage)
    line.upstream.upgrade = refusal
    events = line.talk().ask()
    assert_failed_or_5xx(events)
    assert line.sent == []
    assert 1 <= line.dialled <= 4


@pytest.mark.parametrize("kind", ["websocket", "auto"])
@pytest.mark.parametrize(
    "status", [301, 302, 307, 402, 403, 407, 408, 418, 429, 500, 502, 503, 504, 520]
)
def test_any_refused_upgrade_ends_or_goes_another_way(
    socket_stage: Stage, kind: str, status: int
) -> None:
    line = lay(socket_stage, kind=kind)
    secret = "Bearer upstream-secret"
    body = error_body(None, f"No: {secret}")
    line.upstream.upgrade = refused(status, body, {"location": "http://127.0.0.1:1/v1/responses"})
    events = line.talk().ask()
    if events[-1]["type"] == "response.completed":
        assert (kind, line.upstream.transports()) == ("auto", ["http"])
    else:
        assert_error(events[-1], (402, 429, 500, 502, 503, 504, 520))
    assert line.dialled <= 4


@pytest.mark.parametrize("kind", ["websocket", "auto"])
@pytest.mark.parametrize(
    "refusal",
    [
        refused(401, error_body("invalid_api_key", "Incorrect API key.")),
        refused(401),
        refused(403, error_body("account_deactivated", "Deactivated.")),
        refused(429, error_body("rate_limit_exceeded", "Slow down."), {"retry-after": "30"}),
        refused(503, b"", {"retry-after": "5"}),
        refused(500),
        refused(404),
    ],
    ids=["401", "401, empty", "403", "429", "503", "500", "404"],
)
def test_another_account_serves_where_an_upgrade_is_refused(
    socket_stage: Stage, refusal: UpgradeScript, kind: str
) -> None:
    line = lay_first_refuses(socket_stage, refusal, kind)
    for _ in range(3):
        line.talk().turn()
    assert len(line.sent) == 3


def test_an_empty_403_passes(socket_stage: Stage) -> None:
    """ChatGPT's backend sends it now and then; the same credentials work a moment later."""
    line = lay(socket_stage)
    line.upstream.queue_upgrades(refused(403))
    line.talk().ask()
    line.talk().turn()
    assert set(line.upstream.transports()) == {"websocket"}


@pytest.mark.parametrize("kind", ["websocket", "auto"])
def test_401_is_about_credentials(socket_stage: Stage, kind: str) -> None:
    line = lay(socket_stage, kind=kind)
    line.upstream.upgrade = refused(401, error_body("invalid_api_key", "Incorrect API key."))
    assert_error(line.talk().ask()[-1], 502, "upstream_unauthorized")
    assert line.sent == [], "another transport does not make the key a better one"
    assert line.dialled <= 2
    dialled = line.dialled
    last = line.talk().ask()[-1]
    assert_error(last)
    assert line.dialled == dialled, "the account has a cooldown"


SPENT: Json = {
    "error": {
        "type": "usage_limit_reached",
        "message": "The usage limit has been reached",
        "plan_type": "plus",
        "resets_at": int(time.time()) + 5000,
        "resets_in_seconds": 5000,
    }
}


def assert_spent(line: Line) -> None:
    """The client hears of the limit with its reset; the account is left alone until then."""
    for _ in range(2):
        error = assert_error(line.talk().ask()[-1], 429)
        assert "usage_limit_reached" in (error["type"], error["code"])
        assert abs(error["resets_at"] - SPENT["error"]["resets_at"]) < 60
    assert line.dialled <= 1
    assert len(line.sent) <= 1


@pytest.mark.parametrize("kind", ["websocket", "auto"])
def test_an_exhausted_account_refuses_the_upgrade(socket_stage: Stage, kind: str) -> None:
    line = lay(socket_stage, kind=kind)
    line.upstream.upgrade = refused(429, SPENT, {"retry-after": "5000"})
    assert_spent(line)
    assert line.sent == []


def test_the_next_account_serves_for_an_exhausted_one(socket_stage: Stage) -> None:
    line = lay_first_refuses(socket_stage, refused(429, SPENT))
    for _ in range(4):
        line.talk().turn()
    spent = [upstream for upstream in line.upstreams if not upstream.requests]
    assert len(spent) == 1
    assert len(spent[0].upgrades) == 1, "it is not asked again"


def endless(handshake: Handshake) -> None:
    handshake.raw(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handshake.raw(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def endless_head(handshake: Handshake) -> None:
    handshake.raw(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        handshake.raw(b"x-a: b\r\n" * 100)


def answering(data: bytes) -> UpgradeScript:
    """These bytes in place of an answer, and the end."""

    def upgrade(handshake: Handshake) -> None:
        handshake.raw(data)
        handshake.close()

    return upgrade


ODD_UPGRADES: dict[str, UpgradeScript] = {
    "another key": lambda handshake: handshake.accept(key="AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
    "a subprotocol that was not offered": lambda handshake: handshake.accept(protocol="x"),
    "an extension that was not offered": lambda handshake: handshake.accept(
        {"Sec-WebSocket-Extensions": "permessage-x"}
    ),
    "no Upgrade": answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
    "200": refused(200, b"hello"),
    "204": refused(204),
    "no HTTP": answering(b"hello\r\n\r\n"),
    "FIN": lambda handshake: handshake.close(),
    "RST": lambda handshake: handshake.reset(),
    "FIN within the head": answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgr"),
    "an endless body": endless,
    "an endless head": endless_head,
}


@pytest.mark.parametrize("kind", ["websocket", "auto"])
@pytest.mark.parametrize("upgrade", ODD_UPGRADES.values(), ids=ODD_UPGRADES.keys())
def test_an_upgrade_that_is_none_ends_or_goes_another_way(
    impatient_stage: Stage, upgrade: UpgradeScript, kind: str
) -> None:
    line = lay(impatient_stage, kind=kind)
    line.upstream.upgrade = upgrade
    events = line.talk().ask()
    if events[-1]["type"] == "response.completed":
        assert (kind, line.upstream.transports()) == ("auto", ["http"])
    else:
        assert_failed_or_5xx(events)
    assert line.dialled <= 4


def test_a_101_that_is_closed_at_once(socket_stage: Stage) -> None:
    """1008 right behind the 101 is a refusal in disguise."""
    line = lay(socket_stage)
    line.upstream.upgrade = lambda handshake: handshake.accept(
        then=frame(CLOSE, struct.pack("!H", 1008))
    )
    events = line.talk().ask()
    assert_failed_or_5xx(events)
    assert line.dialled <= 4


def test_a_101_that_is_closed_once_is_not_seen(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    closing = frame(CLOSE, struct.pack("!H", 1008))
    line.upstream.queue_upgrades(lambda handshake: handshake.accept(then=closing))
    line.talk().turn()
    assert line.dialled == 2


# --- error frames --------------------------------------------------------------------------

OVERLOAD: Json = {
    "type": "service_unavailable_error",
    "code": "server_is_overloaded",
    "message": "Our servers are currently overloaded.",
}
FAILED: Json = {
    "type": "response.failed",
    "response": response_object("resp_x", status="failed", error={**OVERLOAD}, usage=None),
}


def sending(*messages: Json, after: int = 0) -> Script:
    """An answer of these messages, after so many events of a usual one."""

    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[:after])
        exchange.request.response_id = None
        read_up_to_here(exchange)
        exchange.sse(*messages)
        exchange.end()

    return script


#: Refusals that are about the account, in their shapes: another one serves, alone it is an error.
ACCOUNT_ERRORS: dict[str, tuple[list[Json], int, str | None]] = {
    "status": (
        [{"type": "error", "status": 429, **error_body("rate_limit_exceeded", "Slow down.")}],
        429,
        "any",
    ),
    "status_code and headers": (
        [{"type": "error", "status_code": 429, **SPENT, "headers": {"X-Codex-Plan-Type": "plus"}}],
        429,
        "any",
    ),
    "no status": ([{"type": "error", **SPENT}], 429, "any"),
    "overload without a status": ([{"type": "error", "error": OVERLOAD}, FAILED], 503, "any"),
    "overload without response.failed": ([{"type": "error", "error": OVERLOAD}], 503, "any"),
    "empty, then response.failed": ([{"type": "error", "error": {}}, FAILED], 503, "any"),
    "no type": ([{"error": {"message": "An internal error.", "type": "api_error"}}], 500, "any"),
    "flat": (
        [{"type": "error", "code": "server_error", "message": "Failed.", "param": None}],
        500,
        "any",
    ),
    "revoked": (
        [{"type": "error", "error": {"code": "token_revoked", "message": "Revoked."}}],
        502,
        "any",
    ),
    "401": ([{"type": "error", "status": 401, **error_body("invalid_api_key", "No.")}], 502, "any"),
}


@pytest.mark.parametrize("case", ACCOUNT_ERRORS.values(), ids=ACCOUNT_ERRORS.keys())
@pytest.mark.parametrize("after", [0, OPENING], ids=["sent", "created"])
def test_an_accounts_refusal_moves_the_turn(
    socket_stage: Stage, case: tuple[list[Json], int, str | None], after: int
) -> None:
    line = lay_first_fails(socket_stage, sending(*case[0], after=after))
    talk = line.talk()
    assert talk.text() == "hello"
    assert talk.text() == "hello"
    assert len(line.sent) <= 4


@pytest.mark.parametrize("case", ACCOUNT_ERRORS.values(), ids=ACCOUNT_ERRORS.keys())
@pytest.mark.parametrize("after", [0, OPENING], ids=["sent", "created"])
def test_an_only_accounts_refusal_is_one_error(
    socket_stage: Stage, case: tuple[list[Json], int, str | None], after: int
) -> None:
    messages, status, code = case
    line = lay(socket_stage, sending(*messages, after=after))
    talk = line.talk()
    events = talk.ask()
    if events[-1]["type"] == "error":
        wanted = (429,) if status == 429 else range(500, 600)
        assert_error(events[-1], wanted, code)
    else:
        assert events[-1]["type"] == "response.failed"
    talk.client.assert_silent(0.05)


#: Refusals that are about the request: the client gets them, at once.
REQUEST_ERRORS: dict[str, Json] = {
    "status": {"type": "error", "status": 400, **error_body("invalid_prompt", "Bad prompt.")},
    "status_code": {"type": "error", "status_code": 400, **error_body("invalid_prompt", "Bad.")},
    "no status": {"type": "error", **error_body("context_length_exceeded", "Too long.")},
    "flat": {"type": "error", "code": "invalid_prompt", "message": "Bad.", "param": "input"},
    "no type": {"error": {"message": "Too long.", "code": "context_length_exceeded"}},
    "detail": {"type": "error", "status": 400, "error": {"detail": "Unsupported parameter: q"}},
    "detail alone": {"detail": "Unsupported parameter: q"},
}


@pytest.mark.parametrize("message", REQUEST_ERRORS.values(), ids=REQUEST_ERRORS.keys())
def test_a_refused_request_is_one_error(socket_stage: Stage, message: Json) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    line.upstream.queue(sending(message))
    assert_error(talk.ask()[-1], 400)
    assert len(line.sent) == 2
    talk.start_over()
    assert_goes_on(line, talk)


@pytest.mark.parametrize("name", [*ACCOUNT_ERRORS, *REQUEST_ERRORS])
def test_an_error_after_output_is_one_failure(socket_stage: Stage, name: str) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    messages = ACCOUNT_ERRORS[name][0] if name in ACCOUNT_ERRORS else [REQUEST_ERRORS[name]]
    line.upstream.queue(sending(*messages, after=BEGUN))
    events = talk.ask()
    assert events[-1]["type"] in ("response.failed", "error")
    assert len(line.sent) == 2, "what the client saw is never sent again"
    talk.client.assert_silent(0.02)


def test_an_error_below_body_is_read(impatient_stage: Stage) -> None:
    line = lay(impatient_stage)
    body = error_body("invalid_prompt", "Bad prompt.")
    line.upstream.queue(sending({"type": "error", "status": 400, "body": body}))
    assert_error(line.talk().ask()[-1], 400, "invalid_prompt")


def test_an_empty_error_is_not_waited_on_for_long(socket_stage: Stage) -> None:
    """It announces a `response.failed`; a socket without one does not end by itself."""
    line = lay(socket_stage)
    line.upstream.queue(sending({"type": "error", "error": {}}, after=BEGUN))
    assert_failed(line.talk().ask()[-1])  # well before timeouts.idle_seconds


def test_what_follows_an_error_never_reaches_the_next_turn(socket_stage: Stage) -> None:
    """An error frame and its `response.failed` in one write, the next turn at once."""
    line = lay(socket_stage)
    talk = warm(line)
    error = {"type": "error", "status": 400, **error_body("invalid_prompt", "Bad prompt.")}
    failed = {**FAILED, "response": {**FAILED["response"], "error": error["error"]}}
    line.upstream.queue(
        lambda exchange: exchange.raw(
            b"".join(frame(TEXT, json.dumps(each).encode()) for each in (error, failed))
        )
    )
    assert_error(talk.ask()[-1], 400, "invalid_prompt")
    talk.start_over()
    assert_goes_on(line, talk)


# --- what belongs to the socket ------------------------------------------------------------

LIMIT: Json = {
    "type": "error",
    "status": 400,
    "error": {
        "type": "invalid_request_error",
        "code": "websocket_connection_limit_reached",
        "message": "Responses websocket connection limit reached (60 minutes).",
    },
}


@pytest.mark.parametrize("message", [LIMIT, {k: v for k, v in LIMIT.items() if k != "status"}])
def test_the_age_limit_is_not_seen(socket_stage: Stage, message: Json) -> None:
    """A proof that nothing ran: the whole conversation goes up at once on a new socket."""
    line = lay(socket_stage)
    talk = warm(line)
    assert_unseen(line, talk, sending(message))
    assert line.dialled == 2
    assert line.upstream.sockets[0].wait_gone(), "the old one is of no use"


def test_the_age_limit_of_a_root(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    line.upstream.queue(sending(LIMIT))
    line.talk().turn()
    assert (len(line.sent), line.dialled) == (2, 2)


def test_repeated_age_limits_end_in_an_error(socket_stage: Stage) -> None:
    line = lay(socket_stage, sending(LIMIT))
    events = line.talk().ask()
    assert_error(events[-1])
    assert 2 <= len(line.sent) <= 3, "once more, and no loop"
    assert_goes_on(line, line.talk())


NOT_FOUND: dict[str, Json] = {
    "canonical": {
        "type": "error",
        "status": 400,
        **error_body(
            "previous_response_not_found",
            "Previous response with id 'resp_x' not found.",
            param="previous_response_id",
        ),
    },
    "no status": {
        "type": "error",
        **error_body("previous_response_not_found", "Previous response not found."),
    },
    "uncoded": {
        "type": "error",
        "status": 400,
        "error": {
            "type": "invalid_request_error",
            "message": "Invalid `previous_response_id`.",
            "code": None,
            "param": None,
        },
    },
    "uncoded, without a dot": {
        "type": "error",
        "status": 400,
        "error": {"type": "invalid_request_error", "message": "Invalid `previous_response_id`"},
    },
    "uncoded, without a status": {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "Invalid `previous_response_id`."},
    },
    "xAI": {"error": {"message": "Response with id=resp_x not found", "type": "api_error"}},
}


@pytest.mark.parametrize("message", NOT_FOUND.values(), ids=NOT_FOUND.keys())
def test_a_response_that_is_not_found_is_replayed(socket_stage: Stage, message: Json) -> None:
    line = lay(socket_stage)
    talk = warm(line)
    items = list(talk.said)
    text, script = numbered_answer()
    named = json.loads(json.dumps(message).replace("resp_x", str(talk.last)))
    line.upstream.queue(sending(named), script)
    assert talk.text() == text
    assert_replay(line.sent[-1], [*items, *talk.new])
    assert len(line.sent) == 3
    last = talk.last
    talk.turn()
    assert last is not None
    assert_delta(line.sent[-1], talk, last)


@pytest.mark.parametrize("message", [LIMIT, NOT_FOUND["canonical"]])
def test_a_socket_error_after_created_is_not_seen(socket_stage: Stage, message: Json) -> None:
    line = lay(socket_stage)
    assert_unseen(line, warm(line), sending(message, after=OPENING))


# --- silence -------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["silent", "half-open"])
@pytest.mark.parametrize("phase", PHASES)
def test_silence_ends_the_turn(impatient_stage: Stage, how: str, phase: str) -> None:
    line = lay(impatient_stage)
    talk = warm(line)

    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[: PHASES[phase]])
        if how == "half-open":
            over(exchange).freeze()
        exchange.hold()

    line.upstream.script = script
    began = time.monotonic()
    events = talk.ask()
    note(f"gave up after {time.monotonic() - began:.2f} s")
    if phase == "output":
        assert_failed(events[-1])
        assert len(line.sent) == 2
    else:
        assert_failed_or_5xx(events)
    lost: Recorded = line.sent[1]
    assert lost.wait_gone(5), "the socket of a silent turn is dropped"
    line.upstream.script = Exchange.answer
    talk.start_over()
    assert_goes_on(line, talk)


@pytest.mark.parametrize("phase", ["sent", "created"])
def test_a_silent_account_is_replaced(impatient_stage: Stage, phase: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.sse(*exchange.turn()[: PHASES[phase]])
        exchange.hold()

    line = lay_first_fails(impatient_stage, script)
    assert line.talk().text() == "hello"


def test_pings_do_not_keep_a_silent_turn_alive(impatient_stage: Stage) -> None:
    def script(exchange: Exchange) -> None:
        while not exchange.hold(timeout=0.1) and not exchange.request.gone.is_set():
            over(exchange).socket.ping()

    line = lay(impatient_stage, script)
    assert_failed_or_5xx(line.talk().ask())


@pytest.mark.parametrize("kind", ["websocket", "auto"])
def test_a_silent_upgrade_has_a_deadline(impatient_stage: Stage, kind: str) -> None:
    """Nothing was sent, so that every other way is safe."""
    line = lay(impatient_stage, kind=kind)
    line.upstream.upgrade = Handshake.hold
    events = line.talk().ask()
    if kind == "websocket":
        assert_failed_or_5xx(events)
    elif events[-1]["type"] == "response.completed":
        assert line.upstream.transports() == ["http"]
    assert line.upstream.upgrades[0].wait_gone(5)
    assert line.dialled <= 4


def test_a_slow_upgrade_is_waited_for(socket_stage: Stage) -> None:
    line = lay(socket_stage)

    def slow(handshake: Handshake) -> None:
        time.sleep(0.3)
        handshake.accept()

    line.upstream.queue_upgrades(slow)
    line.talk().turn()
    assert line.dialled == 1


def test_a_client_may_leave_while_an_upgrade_is_silent(socket_stage: Stage) -> None:
    line = lay(socket_stage)
    line.upstream.queue_upgrades(Handshake.hold)
    talk = line.talk()
    talk.send()
    line.upstream.wait_upgrades(1)
    talk.client.reset()
    line.talk().turn()
    assert len(line.sent) == 1, "the turn of who left is not sent"


def test_a_request_that_nobody_reads_has_a_deadline(impatient_stage: Stage) -> None:
    line = lay(impatient_stage)
    talk = warm(line)
    (peer,) = line.upstream.sockets
    peer.reading.clear()
    line.upstream.upgrade = refused(500)
    events = talk.ask("x" * (15 * MIB))
    assert_failed_or_5xx(events)
    peer.reading.set()
    assert peer.wait_gone(5)


# --- accounts with settings of their own ---------------------------------------------------

SPECIAL: dict[str, Json] = {
    "lively": {"ping_seconds": 1},
    "deaf": {"ping_seconds": 1},
    "aging": {"max_age_minutes": 0.01},
    "narrow": {"max_sockets": 1},
    "slow": {},
    "left": {},
}


@pytest.fixture(scope="module")
def special(module_stage: Stage) -> dict[str, Line]:
    """Lines of one gateway whose accounts have these settings."""
    upstreams = {name: module_stage.websocket_upstream() for name in SPECIAL}
    accounts = [
        account(name, upstreams[name], transport="websocket", models=[name], websocket=settings)
        for name, settings in SPECIAL.items()
    ]
    gateway = module_stage.gateway(*accounts, timeouts={"idle_seconds": 60})
    return {name: Line([upstreams[name]], Lease(gateway, name)) for name in SPECIAL}


# --- liveness ------------------------------------------------------------------------------


def test_a_dead_idle_socket_is_found_out_by_pings(special: dict[str, Line]) -> None:
    line = special["lively"]
    talk = warm(line)
    (peer,) = line.upstream.sockets
    peer.wait_pings(2)
    assert not peer.gone.is_set(), "who answers is kept"
    peer.answers_pings = False
    assert peer.wait_gone(15), "who does not is given up"
    items = list(talk.said)
    talk.turn()
    assert_replay(line.sent[-1], [*items, *talk.new])


def test_a_missed_pong_does_not_end_a_turn_that_goes_on(special: dict[str, Line]) -> None:
    line = special["deaf"]

    def script(exchange: Exchange) -> None:
        over(exchange).socket.answers_pings = False
        for event in exchange.turn():
            exchange.sse(event)
            exchange.hold(timeout=0.3)
        exchange.end()

    line.upstream.queue(script)
    talk = line.talk()
    talk.turn()
    assert len(line.sent) == 1
    assert line.upstream.sockets[0].wait_gone(5), "but its socket is not used again"
    talk.turn()
    assert line.dialled == 2


def test_an_old_socket_gets_no_turn(special: dict[str, Line]) -> None:
    """Make before break: its age is looked at when it is used, and nobody sees it."""
    line = special["aging"]
    talk = warm(line)
    time.sleep(0.8)
    items = list(talk.said)
    talk.turn()
    assert_replay(line.sent[-1], [*items, *talk.new])
    assert line.dialled == 2


def test_the_bound_of_an_account_holds(special: dict[str, Line]) -> None:
    """An idle socket makes room; a busy one does not, and the turn fails without a dial."""
    line = special["narrow"]
    first, second = warm(line), line.talk()
    second.turn()
    assert line.upstream.sockets[0].wait_gone(5), "it made room"
    release = threading.Event()

    def slow(exchange: Exchange) -> None:
        exchange.hold(release)
        exchange.answer()

    line.upstream.queue(slow)
    second.send()
    line.upstream.wait_for(3)
    assert_failed_or_5xx(first.ask())
    assert line.dialled == 2
    release.set()
    second.finish()
    first.turn()


# --- back-pressure -------------------------------------------------------------------------

TOTAL, BOUND = 96 * MIB, 48 * MIB


def flood(exchange: Exchange) -> None:
    """A turn of many large deltas, far more than all buffers hold."""
    events = exchange.turn([text_item("x")])
    exchange.sse(*events[:4])
    data = json.dumps({**events[4], "delta": "z" * 64000}).encode()
    for _ in range(TOTAL // len(data)):
        over(exchange).text(data)
    exchange.sse(*events[5:])
    exchange.end()


def test_a_slow_client_stops_its_own_upstream_only(special: dict[str, Line]) -> None:
    line = special["slow"]
    line.upstream.queue(flood)
    slow = line.connect(receive_buffer=65536, timeout=60)
    slow.create(store=False)
    taken = settled(line.upstream.wait_for(1)[0])
    note(f"upstream stopped after {taken / MIB:.1f} MiB of {TOTAL / MIB:.0f}")
    assert taken < BOUND
    for _ in range(5):
        assert line.talk().text() == "hello"
    events = slow.until_terminal(timeout=60)
    completed(events)
    assert sum(len(text) for text in slow.texts) > 0.9 * TOTAL


def test_a_client_that_leaves_while_paused_frees_its_socket(special: dict[str, Line]) -> None:
    line = special["left"]
    line.upstream.queue(flood)
    slow = line.connect(receive_buffer=65536, timeout=60)
    slow.create(store=False)
    request = line.upstream.wait_for(1)[0]
    settled(request)
    slow.reset()
    assert line.upstream.sockets[0].wait_gone(5), "what runs for nobody is given up"
    line.talk().turn()
