"""Which connections are admitted and closed first; clients that are slow, half-closed or gone."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import txaio
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gateway.api_keys.keys import KeyRing
from gateway.config import KeySettings, LimitSettings
from gateway.protocol.errors import ApiError
from gateway.server.connections import (
    MIN_BYTES_PER_SECOND,
    ConnectionLimiter,
    HalfClosedSocket,
    OpenFiles,
    WriteStallTimer,
    transfer_seconds,
)
from gateway.server.http_request import ClientRequest
from gateway.server.websocket import ResponsesProtocol
from tests.server.listener import Client, House

LAPTOP, DESK = "sk-client", "sk-desk"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Held:
    """A handler that answers nobody before it is told to."""

    def __init__(self) -> None:
        self.requests: list[ClientRequest] = []

    def __call__(self, request: ClientRequest, tenant: str) -> None:
        self.requests.append(request)


class Hotel(House):
    """A house of which connections ask for what they are told to, or wait."""

    def __init__(self, **settings: Any) -> None:
        self.held = Held()
        super().__init__({"/held": {"GET": self.held}}, **settings)

    def busy(self, key: str = LAPTOP) -> Client:
        """A connection whose request is not answered yet, if it is let in."""
        client = self.client(key)
        client.gives(client.request("GET", "/v1/held"))
        return client

    def resting(self, key: str = LAPTOP) -> Client:
        """A connection that waits for its next request."""
        client = self.busy(key)
        self.held.requests.pop().answer(200, b"", {})
        assert client.answer().status == 200
        return client

    def websocket(self, key: str = LAPTOP) -> Client:
        client = self.client(key)
        client.gives(client.request("GET", "/v1/responses", headers=UPGRADE))
        return client


def is_open(client: Client) -> bool:
    return client.bytes_out.startswith(b"HTTP/1.1 101")


def refused(client: Client) -> tuple[int, str]:
    answer = client.answer()
    assert int(answer.headers["retry-after"]) >= 1
    assert client.is_closed
    return answer.status, answer.error["code"]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Hotel]]:
    monkeypatch.setattr(txaio.config, "loop", txaio.config.loop)
    hotels: list[Hotel] = []

    def built(most: int = 4, keys: Any = None, **settings: Any) -> Hotel:
        if keys is not None:
            settings["keys"] = keys
        hotels.append(Hotel(limits=LimitSettings(max_connections=most), **settings))
        return hotels[-1]

    yield built
    for hotel in hotels:
        hotel.check_rest()


# --- one key among others ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["busy", "websocket"])
def test_no_key_keeps_the_others_out(build: Callable[..., Hotel], kind: str) -> None:
    hotel = build(most=4)
    connect = getattr(hotel, kind)
    mine = [connect() for _ in range(3)]
    assert refused(mine[2]) == (429, "too_many_connections")
    theirs = connect(DESK)
    assert is_open(theirs) or not theirs.is_closed
    mine[0].is_lost()
    assert not connect().is_closed, "a place of the key became free"


def test_both_kinds_count_together_and_a_connection_once(build: Callable[..., Hotel]) -> None:
    hotel = build(most=4)
    resting = hotel.resting()
    for _ in range(3):
        resting.gives(resting.request("GET", "/v1/held"))
        hotel.held.requests.pop().answer(200, b"", {})
        assert resting.answer().status == 200
    assert is_open(hotel.websocket())
    resting.gives(resting.request("GET", "/v1/responses", headers=UPGRADE))
    assert isinstance(resting.protocol, ResponsesProtocol), "it goes on as what it became"
    assert refused(hotel.websocket()) == (429, "too_many_connections")


def test_a_connection_belongs_to_the_key_that_asked_last(build: Callable[..., Hotel]) -> None:
    hotel = build(most=2)
    shared = hotel.resting(LAPTOP)
    shared.key = DESK
    shared.gives(shared.request("GET", "/v1/held"))
    assert not hotel.busy(LAPTOP).is_closed
    assert refused(hotel.busy(DESK)) == (503, "unavailable")


def test_the_operator_says_how_many_a_key_may_have(build: Callable[..., Hotel]) -> None:
    few = KeySettings(name="few", key=LAPTOP, max_connections=1)
    many = KeySettings(name="many", key=DESK, max_connections=9)
    hotel = build(most=8, keys=(few, many))
    assert is_open(hotel.websocket(LAPTOP))
    assert refused(hotel.websocket(LAPTOP)) == (429, "too_many_connections")
    assert all(is_open(hotel.websocket(DESK)) for _ in range(7))
    assert refused(hotel.websocket(DESK)) == (503, "unavailable")


@pytest.mark.parametrize(
    ("keys", "share"), [([], 9), (["a"], 9), (["a", "b"], 4), (["a", "b", "c"], 4)]
)
def test_by_default_a_key_may_have_half_of_all_unless_it_is_alone(
    keys: list[str], share: int
) -> None:
    tenants = KeyRing([KeySettings(name=name, key=name) for name in keys], lambda: 0.0)
    name = keys[0] if keys else "everybody"
    tenant = tenants.tenant_of({"authorization": f"Bearer {name}"}, "")
    assert tenants.max_connections(tenant, 9) == share
    assert tenants.max_connections(tenant, 1) == 1


# --- who goes first ------------------------------------------------------------------------


def test_who_rests_between_requests_goes_first(build: Callable[..., Hotel]) -> None:
    hotel = build(most=4)
    first, second = hotel.resting(LAPTOP), hotel.resting(LAPTOP)
    busy, websocket = hotel.busy(DESK), hotel.websocket(DESK)
    newcomer = hotel.busy(LAPTOP)
    assert (first.is_closed, second.is_closed) == (True, False)
    assert not newcomer.is_closed
    assert not busy.is_closed
    assert is_open(websocket)
    assert len(hotel.limiter) == 4


def test_at_its_own_bound_a_key_makes_room_for_itself(build: Callable[..., Hotel]) -> None:
    hotel = build(most=4)
    theirs = hotel.resting(DESK)
    mine = [hotel.resting(LAPTOP), hotel.resting(LAPTOP)]
    assert is_open(hotel.websocket(LAPTOP))
    assert [client.is_closed for client in (theirs, *mine)] == [False, True, False]


def test_connections_that_send_no_head_keep_nobody_out(
    build: Callable[..., Hotel], monkeypatch: pytest.MonkeyPatch
) -> None:
    hotel = build(most=4)
    hotel.limiter.max_silent = 10
    silent = [hotel.client() for _ in range(15)]
    assert [client.is_closed for client in silent] == [True] * 5 + [False] * 10
    silent[10].gives(b"GET /v1/h")
    assert not hotel.busy().is_closed
    silent[-1].gives(silent[-1].request("GET", "/v1/held"))
    assert len(hotel.held.requests) == 2


# --- files ---------------------------------------------------------------------------------


@pytest.fixture
def few_files(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A switch: with something in it, there are too few."""
    switch: list[bool] = []
    monkeypatch.setattr(OpenFiles, "suffice", lambda self, transport, reserved=4: not switch)
    return switch


def test_for_want_of_files_the_silent_go_then_the_resting(
    build: Callable[..., Hotel], few_files: list[bool]
) -> None:
    hotel = build(most=9)
    silent, resting, busy = hotel.client(), hotel.resting(), hotel.busy()
    few_files.append(True)
    second = hotel.client()
    assert (silent.is_closed, resting.is_closed) == (True, False)
    second.gives(second.request("GET", "/v1/held"))
    third = hotel.busy()
    assert resting.is_closed
    assert not busy.is_closed
    assert not third.is_closed
    assert refused(hotel.busy()) == (503, "unavailable")
    few_files.clear()
    assert not hotel.busy().is_closed


def test_a_shortage_is_said_once_as_long_as_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    said: list[str] = []
    monkeypatch.setattr(
        "gateway.server.connections._log.error", lambda text, **_: said.append(text)
    )
    files = OpenFiles(lambda: now[0])
    for _ in range(300):
        files.report_shortage(100)
        now[0] += 1
    assert len(said) == 1
    now[0] += 100
    files.report_shortage(100)
    assert len(said) == 2, "a new one is said anew"


class Numbered:
    """A transport whose file has this number."""

    def __init__(self, number: int) -> None:
        self._number = number

    def fileno(self) -> int:
        return self._number


def test_a_quarter_of_the_files_is_kept_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gateway.server.connections.resource.getrlimit", lambda _: (100, 100))
    files = OpenFiles(lambda: now[0])
    assert files.suffice(object()), "a transport without a file takes none"
    assert files.suffice(Numbered(74))
    assert not files.are_short
    assert not files.suffice(Numbered(75))
    assert files.suffice(Numbered(93), 16), "the operator may have more"
    assert not files.suffice(Numbered(94), 16)
    assert files.are_short
    now[0] = 61.0
    assert not files.are_short


# --- the count -----------------------------------------------------------------------------


class FakeConnection:
    def __init__(self, limiter: ConnectionLimiter) -> None:
        self._limiter = limiter

    def drain(self) -> None:
        """It would close."""

    def abandon(self) -> None:
        """Likewise."""


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "claim a", "claim b", "rest", "wake", "leave"]),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(STEPS)
def test_whatever_connections_do_they_are_counted_as_what_they_are(
    steps: list[tuple[str, int]],
) -> None:
    limiter = ConnectionLimiter(4)
    connections = [FakeConnection(limiter) for _ in range(6)]
    inside = limiter.of_kind
    for step, number in steps:
        connection = connections[number]
        what, _, key = step.partition(" ")
        is_in = connection in inside(FakeConnection)
        with suppress(ApiError):
            if what == "enter":
                limiter.enter(connection)
            elif what == "claim" and is_in:
                limiter.claim(connection, key, 2)
            elif what == "rest" and is_in:
                limiter.mark_idle(connection)
            elif what == "wake":
                limiter.mark_busy(connection)
            elif what == "leave":
                limiter.leave(connection)
        of_key = limiter._of_key
        assert len(limiter) <= 4
        assert all(0 < count <= 2 for count in of_key.values())
        assert of_key.total() == len(limiter._key_of) <= len(limiter)
        assert {*limiter._key_of, *limiter._idle} <= set(inside(FakeConnection))


# --- clients that take nothing -------------------------------------------------------------


class Slow:
    """A client, and when it was lost."""

    def __init__(self, last_write: int = 0) -> None:
        self.clock = Clock()
        self.lost: list[float] = []
        self.stall = WriteStallTimer(self.clock)
        self.stall.last_write = last_write

    def fills(self, stall_seconds: float = 10) -> None:
        self.stall.begin(stall_seconds, lambda: self.lost.append(self.clock.seconds()))


def test_a_client_that_was_never_slow_costs_no_timer() -> None:
    slow = Slow()
    assert not slow.stall.is_stalled
    slow.stall.end()
    slow.stall.stop()
    assert slow.clock.getDelayedCalls() == []


def test_one_that_takes_nothing_is_lost_once() -> None:
    slow = Slow()
    slow.fills(10)
    assert slow.stall.is_stalled
    slow.clock.advance(9.9)
    assert slow.lost == []
    slow.clock.advance(0.1)
    slow.clock.advance(100)
    assert slow.lost == [10]


def test_a_large_write_may_take_its_time() -> None:
    slow = Slow(last_write=5 * MIN_BYTES_PER_SECOND)
    slow.fills(10)
    slow.clock.advance(14.9)
    assert slow.lost == []
    slow.clock.advance(0.1)
    assert slow.lost == [15] == [transfer_seconds(5 * MIN_BYTES_PER_SECOND, 10)]


def test_one_that_takes_everything_is_kept_and_may_be_slow_again() -> None:
    slow = Slow()
    slow.fills()
    slow.clock.advance(9)
    slow.stall.end()
    assert not slow.stall.is_stalled
    assert slow.clock.getDelayedCalls() == []
    slow.clock.advance(9)
    slow.fills()
    slow.clock.advance(9)
    assert slow.lost == []
    slow.clock.advance(1)
    assert slow.lost == [28]


def test_after_the_end_of_the_connection_nobody_is_lost_but_the_buffers_stay_full() -> None:
    slow = Slow()
    slow.fills()
    slow.stall.stop()
    assert slow.stall.is_stalled
    assert slow.clock.getDelayedCalls() == []


# --- clients that send no more -------------------------------------------------------------


class FakeSocket:
    """A socket, and the transport over it."""

    def __init__(self) -> None:
        self.error: int | OSError = 0

    def getHandle(self) -> FakeSocket:
        return self

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        if isinstance(self.error, OSError):
            raise self.error
        return self.error


class Watched:
    def __init__(self) -> None:
        self.clock = Clock()
        self.socket = FakeSocket()
        self.probes: list[float] = []
        self.gone = 0
        self.watch = HalfClosedSocket(self.clock, self.socket, self._probe, self._is_gone)

    def _probe(self) -> None:
        self.probes.append(round(self.clock.seconds()))

    def _is_gone(self) -> None:
        self.gone += 1

    def waits(self, seconds: float) -> None:
        self.clock.pump([0.1] * round(10 * seconds))


def test_a_client_that_stays_is_sent_few_probes_ever_more_apart() -> None:
    watched = Watched()
    assert watched.probes == [0], "expected the first look at once"
    watched.waits(1000)
    assert watched.probes == [0, 1, 3, 10, 30, 60, 120, 300]
    assert len(watched.probes) <= len(b"HTTP/1.1"), "a head has no more to be sent ahead"
    watched.watch.stop()
    assert not watched.clock.getDelayedCalls()


def test_a_reset_is_seen_soon_and_told_once() -> None:
    watched = Watched()
    watched.waits(50)
    watched.socket.error = 32
    watched.waits(0.3)
    assert watched.gone == 1
    watched.waits(10)
    assert watched.gone == 1
    assert not watched.clock.getDelayedCalls()


def test_a_socket_that_is_closed_already_has_nobody_at_its_end() -> None:
    watched = Watched()
    watched.socket.error = OSError(9, "Bad file descriptor")
    watched.waits(0.3)
    assert watched.gone == 1


def test_nothing_is_heard_after_the_end() -> None:
    watched = Watched()
    watched.watch.stop()
    watched.watch.stop()
    watched.socket.error = 32
    watched.waits(10)
    assert (watched.gone, watched.probes) == (0, [0])
