"""Connections through a proxy over a reactor in memory: what they carry, how they end."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectingCancelledError,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    DNSLookupError,
    NoProtocol,
    NoRouteError,
    TCPTimedOutError,
    TimeoutError,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure

from gateway.protocol.error_classification import FaultKind, attribute
from gateway.upstream.errors import upstream_failure
from gateway.upstream.proxy import Proxy, ProxyCredentials, ProxyError, ProxyFault, ProxyHealth
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from tests.upstream.wire import Connection, Reactor

GRANTED = b"HTTP/1.1 200 OK\r\n\r\n"
HTTP = Proxy("http", "proxy.test", 3128, ProxyCredentials("mole", "s3cret"))
SOCKS = Proxy("socks5", "proxy.test", 1080)


class Wanted(Protocol):
    """What is to be connected; writes down what comes."""

    def __init__(self) -> None:
        self.received = b""
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        assert self.lost is None, "lost twice"
        self.lost = reason


class Way:
    """One endpoint behind a proxy, and what came of its connections."""

    def __init__(self, proxy: Proxy = HTTP) -> None:
        self.reactor = Reactor()
        self.health = ProxyHealth(self.reactor.seconds, 60, jitter=lambda: 0.0)
        self.endpoint = ProxyEndpoint(self.reactor, proxy, self.health, "api.test", 443, 10)
        self.connected: list[Wanted] = []
        self.failures: list[BaseException] = []

    def connect(self, factory: Any = None) -> Deferred[Any]:
        connecting = self.endpoint.connect(factory or Factory.forProtocol(Wanted))
        connecting.addCallbacks(self.connected.append, lambda f: self.failures.append(f.value))
        return connecting

    def accept(self) -> Connection:
        return Connection(self.reactor.tcpClients[-1][2])

    def begun(self, factory: Any = None) -> Connection:
        """A connection to the proxy, which was asked."""
        self.connect(factory)
        connection = self.accept()
        assert connection.request, "the proxy should have been asked for something"
        connection.transport.clear()
        return connection

    def fail_to_connect(self, reason: Exception) -> None:
        self.reactor.tcpClients[-1][2].clientConnectionFailed(None, Failure(reason))
        self.reactor.advance(0.5)  # no other address is tried

    @property
    def problem(self) -> ProxyError:
        (problem,) = self.failures
        assert isinstance(problem, ProxyError), problem
        return problem

    def check_rest(self) -> None:
        calls = self.reactor.getDelayedCalls()
        assert not calls, f"timers outlived the attempt: {calls}"


@pytest.fixture
def way() -> Way:
    return Way()


def aborted(connection: Connection) -> bool:
    return bool(connection.transport.disconnected or connection.transport.disconnecting)


# --- connected -----------------------------------------------------------------------------


def test_the_proxy_is_connected_to_and_then_carries_bytes_both_ways(way: Way) -> None:
    connection = way.begun()
    connection.sends(GRANTED)
    (wanted,) = way.connected
    wanted.transport.write(b"up")
    connection.sends(b"down")
    assert (connection.request, wanted.received) == (b"up", b"down")
    connection.closes(ConnectionLost())
    assert wanted.lost is not None
    assert wanted.lost.check(ConnectionLost)
    way.check_rest()


@given(st.binary(min_size=1, max_size=50), st.lists(st.integers(1, 20), max_size=10))
def test_no_byte_of_the_upstream_is_lost_or_comes_too_early(
    rest: bytes, lengths: list[int]
) -> None:
    way = Way(SOCKS)
    connection = way.begun()
    stream = b"\x05\x00" + b"\x05\x00\x00\x01\x7f\x00\x00\x01\x01\xbb" + rest
    at = 0
    for length in [*lengths, len(stream)]:
        if stream[at : at + length]:
            connection.sends(stream[at : at + length])
        at += length
        if at < 12:
            assert way.connected == []
    assert way.connected[0].received == rest


def test_who_waits_for_the_connection_is_told_before_the_rest_comes(way: Way) -> None:
    order: list[str] = []

    class Ordered(Wanted):
        def connectionMade(self) -> None:
            order.append("made")

        def dataReceived(self, data: bytes) -> None:
            order.append("data")

    way.connect(Factory.forProtocol(Ordered)).addCallback(lambda _: order.append("told"))
    way.accept().sends(GRANTED + b"early")
    assert order == ["made", "told", "data"]


def test_back_pressure_reaches_the_transport(way: Way) -> None:
    connection = way.begun()
    connection.sends(GRANTED)
    way.connected[0].transport.pauseProducing()
    assert connection.paused


# --- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (ConnectionRefusedError(), "refused the connection"),
        (TimeoutError(), "in time"),
        (TCPTimedOutError(), "in time"),
        (NoRouteError(), "could not be reached"),
        (DNSLookupError(), "could not be resolved"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_proxy_that_is_not_there(way: Way, reason: Exception, words: str) -> None:
    way.connect()
    way.fail_to_connect(reason)
    assert words in str(way.problem)
    assert way.problem.fault is ProxyFault.PROXY
    way.check_rest()


def test_a_proxy_that_hangs_up(way: Way) -> None:
    connection = way.begun()
    connection.sends(b"HTTP/1.1 200")
    connection.closes(ConnectionDone())
    assert "closed the connection during its handshake" in str(way.problem)
    assert way.problem.fault is ProxyFault.PROXY
    way.check_rest()


def test_a_refusal_ends_the_connection_at_once(way: Way) -> None:
    connection = way.begun()
    connection.sends(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    assert "status 502" in str(way.problem)
    assert aborted(connection)
    connection.sends(b"more")
    connection.closes()
    way.check_rest()


def test_tcp_and_handshake_have_one_deadline(way: Way) -> None:
    way.connect()
    way.reactor.advance(6)
    connection = way.accept()
    way.reactor.advance(3.9)
    assert way.failures == []
    way.reactor.advance(0.2)
    assert "did not connect in time" in str(way.problem)
    assert aborted(connection)
    connection.closes()
    way.check_rest()


def test_tcp_alone_has_the_deadline(way: Way) -> None:
    way.connect()
    way.reactor.advance(10)
    assert "could not be reached in time" in str(way.problem)
    assert way.reactor.connectors[-1].stoppedConnecting
    way.check_rest()


@pytest.mark.parametrize("when", ["while TCP comes up", "in the handshake"])
def test_a_cancel_leaves_nothing_behind(way: Way, when: str) -> None:
    connecting = way.connect()
    connection = way.accept() if when == "in the handshake" else None
    connecting.cancel()
    (problem,) = way.failures
    assert isinstance(problem, ConnectingCancelledError)
    if connection is None:
        assert way.reactor.connectors[-1].stoppedConnecting
    else:
        assert aborted(connection)
        connection.sends(GRANTED)
        connection.closes()
    assert way.connected == []
    way.check_rest()


def test_a_factory_that_wants_nothing_gets_nothing(way: Way) -> None:
    class Picky(Factory):
        def buildProtocol(self, addr: object) -> None:
            return None

    connection = way.begun(Picky())
    connection.sends(GRANTED)
    (problem,) = way.failures
    assert isinstance(problem, NoProtocol)
    assert aborted(connection)


# --- what clients and accounts hear --------------------------------------------------------


@pytest.mark.parametrize(
    ("blame", "code", "kind"),
    [
        (ProxyFault.PROXY, "egress_proxy_error", FaultKind.PROXY),
        (ProxyFault.UPSTREAM, "upstream_error", FaultKind.SERVICE),
    ],
)
def test_the_fault_is_laid_where_it_belongs(blame: ProxyFault, code: str, kind: FaultKind) -> None:
    with capturedLogs() as logged:
        told = upstream_failure(Failure(ProxyError(HTTP, "does not work", blame)))
    assert (told.status, told.code) == (502, code)
    assert "proxy.test" not in told.message, "where the proxy is does not concern clients"
    assert attribute(told, 0.0).kind is kind
    (line,) = [formatEvent(event) for event in logged if event["log_level"] is LogLevel.warn]
    assert line == "The proxy proxy.test:3128 does not work"


# --- the breaker ---------------------------------------------------------------------------


def broken(way: Way) -> None:
    for _ in range(3):
        assert way.health.unavailable() is None, "three failures are needed"
        way.begun().sends(b"HTTP/1.1 503 Down\r\n\r\n")


def test_the_log_tells_once_of_each_rest(way: Way) -> None:
    with capturedLogs() as logged:
        for _ in range(6):
            way.connect()
        for client in way.reactor.tcpClients[:]:
            Connection(client[2]).sends(b"HTTP/1.1 503 Down\r\n\r\n")
    (line,) = [formatEvent(event) for event in logged if event["log_level"] is LogLevel.warn]
    assert line == (
        "The proxy proxy.test:3128 does not connect to api.test:443 (status 503); "
        "left alone for 1.0 s"
    )


def test_a_broken_proxy_is_left_alone_and_then_probed_once(way: Way) -> None:
    broken(way)
    barred = way.health.unavailable()
    assert barred is not None
    assert "proxy.test:3128" in barred.why
    assert "status 503" in barred.why
    assert barred.until == pytest.approx(way.reactor.seconds() + 1)
    asked = len(way.reactor.tcpClients)
    way.connect()
    assert "left alone" in str(way.failures[-1])
    assert len(way.reactor.tcpClients) == asked, "a barred proxy must not be connected to"
    way.reactor.advance(1)
    assert way.health.unavailable() is None
    probe = way.begun()
    assert way.health.unavailable() is not None, "one probe is enough"
    way.connect()
    assert len(way.reactor.tcpClients) == asked + 1
    probe.sends(GRANTED)
    assert way.health.unavailable() is None
    way.begun().sends(GRANTED)
    assert len(way.connected) == 2


def test_a_failed_probe_doubles_the_rest(way: Way) -> None:
    broken(way)
    for rest in (2, 4, 8, 16, 32, 60, 60):
        barred = way.health.unavailable()
        assert barred is not None
        way.reactor.advance(barred.until - way.reactor.seconds())
        way.begun().sends(b"HTTP/1.1 407 No\r\n\r\n")
        barred = way.health.unavailable()
        assert barred is not None
        assert barred.until == pytest.approx(way.reactor.seconds() + rest)


def test_a_cancelled_probe_leaves_it_to_another(way: Way) -> None:
    broken(way)
    way.reactor.advance(1)
    way.connect().cancel()
    assert way.health.unavailable() is None


def test_an_upstream_that_cannot_be_reached_is_not_the_proxys_fault(way: Way) -> None:
    for _ in range(10):
        way.begun().sends(b"HTTP/1.1 403 Forbidden\r\n\r\n")
        assert way.health.unavailable() is None


def test_a_success_between_failures_counts(way: Way) -> None:
    for answer in (b"HTTP/1.1 503 x\r\n\r\n", b"HTTP/1.1 503 x\r\n\r\n", GRANTED) * 3:
        way.begun().sends(answer)
        assert way.health.unavailable() is None


def test_the_operator_may_clear_it(way: Way) -> None:
    broken(way)
    way.health.clear()
    assert way.health.unavailable() is None
