"""Calls between a worker and its supervisor: answers, deadlines, bounds, the end of the peer."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, capturedLogs, formatEvent
from twisted.python.failure import Failure

from gateway import worker_link
from gateway.worker_link import (
    CallFailed,
    Handler,
    Link,
    LinkBusy,
    LinkClosed,
    LinkError,
    LinkTimeout,
    connect_link,
)

HANDLERS: dict[str, Handler] = {
    "upper": lambda payload: payload.upper(),
    "nothing": lambda payload: None,
}


class Pair:
    """The two ends of a link in memory; `pump` carries what they say."""

    def __init__(self, handlers: dict[str, Handler] | None = None) -> None:
        self.clock = Clock()
        self.worker = Link(self.clock)
        self.supervisor = Link(self.clock)
        for method, handler in (HANDLERS if handlers is None else handlers).items():
            self.supervisor.handle(method, handler)
        self.transports = [StringTransport(), StringTransport()]
        for end, transport in zip(self.ends, self.transports, strict=True):
            end.makeConnection(transport)

    @property
    def ends(self) -> tuple[Link, Link]:
        return self.worker, self.supervisor

    def pump(self, size: int = 65_536) -> None:
        moved = True
        while moved:
            moved = False
            for transport, peer in zip(self.transports, reversed(self.ends), strict=True):
                data = transport.value()
                transport.clear()
                for start in range(0, len(data), size):
                    moved = True
                    peer.dataReceived(data[start : start + size])

    def end(self) -> None:
        for end in self.ends:
            end.connectionLost(Failure(ConnectionDone()))


def result(deferred: Deferred[Any]) -> list[Any]:
    """What it has by now: nothing, its result, or its error in place of it."""
    results: list[Any] = []
    deferred.addCallbacks(results.append, lambda failure: results.append(failure.value))
    return results


def messages(events: list[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


def test_a_call_has_its_answer() -> None:
    pair = Pair()
    answers = [result(pair.worker.call("upper", b"one")), result(pair.worker.call("nothing"))]
    assert answers == [[], []]
    pair.pump()
    assert answers == [[b"ONE"], [b""]]
    assert pair.worker.calls_waiting == 0
    assert not pair.clock.getDelayedCalls(), "its deadline is gone"


def test_both_sides_call() -> None:
    pair = Pair()
    pair.worker.handle("lower", lambda payload: succeed(payload.lower()))
    answer = result(pair.supervisor.call("lower", b"TWO"))
    pair.pump()
    assert answer == [b"two"]


def test_answers_come_in_any_order() -> None:
    waiting: dict[bytes, Deferred[bytes]] = {b"a": Deferred(), b"b": Deferred()}
    pair = Pair({"wait": lambda payload: waiting[payload]})
    first, second = (result(pair.worker.call("wait", each)) for each in (b"a", b"b"))
    pair.pump()
    waiting[b"b"].callback(b"B")
    pair.pump()
    assert (first, second) == ([], [b"B"])
    waiting[b"a"].callback(b"A")
    pair.pump()
    assert first == [b"A"]


def test_a_message_is_told_without_an_answer() -> None:
    told: list[bytes] = []
    pair = Pair({"note": told.append})
    assert pair.worker.tell("note", b"here")
    pair.pump()
    assert told == [b"here"]
    assert pair.transports[1].value() == b""


@given(size=st.integers(0, 600_000), reads=st.integers(1000, 70_000))
def test_a_payload_of_any_size_arrives_as_it_was(size: int, reads: int) -> None:
    payload = os.urandom(size)
    pair = Pair({"echo": lambda payload: payload})
    answer = result(pair.worker.call("echo", payload))
    pair.pump(reads)
    assert answer == [payload]


# --- what goes wrong -----------------------------------------------------------------------


def test_a_handler_that_fails_fails_the_call() -> None:
    def broken(_: bytes) -> bytes:
        raise ValueError("no such thing")

    pair = Pair({"broken": broken})
    answer = result(pair.worker.call("broken"))
    with capturedLogs() as events:
        pair.pump()
    assert [type(each) for each in answer] == [CallFailed]
    assert str(answer[0]) == "broken: no such thing"
    assert messages(events) == ["broken failed"]


def test_a_method_that_nobody_handles_fails_the_call() -> None:
    pair = Pair()
    answer = result(pair.worker.call("missing"))
    pair.pump()
    assert [str(each) for each in answer] == ["missing: there is no missing"]


def test_a_message_whose_handler_fails_is_logged() -> None:
    def broken(_: bytes) -> bytes:
        raise ValueError

    pair = Pair({"broken": broken})
    pair.worker.tell("broken")
    with capturedLogs() as events:
        pair.pump()
    assert messages(events) == ["broken failed"]


def test_an_answer_that_is_late_is_none() -> None:
    slow: Deferred[bytes] = Deferred()
    pair = Pair({"slow": lambda _: slow})
    answer = result(pair.worker.call("slow", seconds=2))
    pair.pump()
    pair.clock.advance(2)
    assert [type(each) for each in answer] == [LinkTimeout]
    slow.callback(b"too late")
    pair.pump()
    assert len(answer) == 1


def test_a_call_may_be_cancelled() -> None:
    slow: Deferred[bytes] = Deferred()
    pair = Pair({"slow": lambda _: slow})
    call = pair.worker.call("slow")
    answer = result(call)
    call.cancel()
    pair.pump()
    slow.callback(b"")
    pair.pump()
    assert len(answer) == 1
    assert pair.worker.calls_waiting == 0
    assert not pair.clock.getDelayedCalls()


def test_the_end_of_the_peer_fails_what_waits_and_what_comes() -> None:
    pair = Pair({"slow": lambda _: Deferred()})
    ended = result(pair.worker.closed)
    answer = result(pair.worker.call("slow"))
    pair.pump()
    pair.end()
    assert ended == [pair.worker]
    assert [type(each) for each in answer] == [LinkClosed]
    assert [type(each) for each in result(pair.worker.call("upper"))] == [LinkClosed]
    assert not pair.worker.tell("upper")
    assert not pair.clock.getDelayedCalls()


def test_before_it_is_connected_there_is_no_peer() -> None:
    link = Link(Clock())
    assert [type(each) for each in result(link.call("upper"))] == [LinkClosed]
    assert not link.tell("upper")
    link.close()


# --- bounds --------------------------------------------------------------------------------


def test_calls_without_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "MAX_CALLS", 2)
    pair = Pair({"slow": lambda _: Deferred()})
    answers = [result(pair.worker.call("slow")) for _ in range(3)]
    assert [[type(each) for each in answer] for answer in answers] == [[], [], [LinkBusy]]


def test_a_message_that_is_too_long_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "MAX_MESSAGE_BYTES", 100)
    pair = Pair({"long": lambda _: b"x" * 200})
    assert [type(each) for each in result(pair.worker.call("long", b"x" * 200))] == [LinkBusy]
    assert not pair.worker.tell("long", b"x" * 200)
    answer = result(pair.worker.call("long"))
    pair.pump()
    assert [type(each) for each in answer] == [CallFailed]


def test_what_waits_for_a_peer_that_does_not_read_is_bounded_and_sent_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_link, "MAX_WAITING_BYTES", 1000)
    told: list[bytes] = []
    pair = Pair({"note": told.append})
    pair.worker.pauseProducing()
    taken = [pair.worker.tell("note", b"%d" % number * 300) for number in range(5)]
    assert taken == [True, True, True, False, False]
    assert pair.transports[0].value() == b""
    assert 900 < pair.worker.waiting_bytes <= 1000
    pair.worker.resumeProducing()
    pair.pump()
    assert [payload[:1] for payload in told] == [b"0", b"1", b"2"]
    assert pair.worker.waiting_bytes == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x02\x00\xc1",
        b"\x00\x00\x00\x05\x00\x93\x09\x01\xa0",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x01\x00",
    ],
    ids=["no msgpack", "no message", "too long", "empty"],
)
def test_a_peer_that_sends_something_else_is_left(data: bytes) -> None:
    pair = Pair()
    with capturedLogs() as events:
        pair.worker.dataReceived(data)
    assert pair.transports[0].disconnecting
    assert len(events) == 1
    assert "other process sent" in messages(events)[0]


def test_pieces_without_an_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_link, "MAX_MESSAGE_BYTES", 100)
    pair = Pair()
    with capturedLogs() as events:
        for _ in range(3):
            pair.worker.dataReceived(b"\x00\x00\x00\x33\x01" + b"x" * 50)
    assert pair.transports[0].disconnecting
    assert len(events) == 1


def test_errors_of_the_link_are_of_one_kind() -> None:
    assert all(issubclass(each, LinkError) for each in (CallFailed, LinkBusy, LinkClosed))


# --- a real socket pair --------------------------------------------------------------------


def test_it_runs_on_a_socket_pair() -> None:
    from twisted.internet import reactor

    ends = [end.detach() for end in socket.socketpair()]
    told: list[bytes] = []
    worker, supervisor = Link(reactor), Link(reactor)  # type: ignore[arg-type]
    supervisor.handle("note", told.append)
    for end, link in zip(ends, (worker, supervisor), strict=True):
        connect_link(reactor, end, link)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)
    assert worker.is_open
    assert supervisor.is_open
    assert worker.tell("note", b"x" * 1000)
    for link in (worker, supervisor):
        link.transport.abortConnection()
