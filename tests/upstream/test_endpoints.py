"""The way that an account's connections take, and what receives on them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.upstream.endpoints import (
    EgressEndpoints,
    EgressPath,
    EgressPaths,
    ReceivingEndpoint,
    UpstreamConnection,
)
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from gateway.upstream.tls import TLSFileError
from tests.upstream.wire import Reactor

PLACES = [(b"http", b"a.test", 80), (b"https", b"a.test", 443), (b"https", b"::1", 8443)]


class Receiver(Protocol):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.lost: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received.append(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.lost = reason


class Wire(StringTransport):
    """Remembers how it was set."""

    no_delay = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled


@implementer(ISSLTransport)
class SecureWire(Wire):
    pass


@pytest.fixture
def paths() -> EgressPaths:
    return EgressPaths(Clock().seconds, 60)


def breaks(egress: EgressPath) -> None:
    assert egress.health is not None
    for _ in range(3):
        attempt = egress.health.attempt()
        assert attempt is not None, "three failures are needed"
        egress.health.failed(attempt, "The proxy broke")


def test_accounts_behind_one_proxy_share_what_is_known_of_it(paths: EgressPaths) -> None:
    one, two = (paths.egress("http://u:p@proxy.test:3128") for _ in range(2))
    others = [
        paths.egress("http://v:p@proxy.test:3128"),
        paths.egress("http://proxy.test:3128"),
        paths.egress("socks5://u:p@proxy.test:3128"),
        paths.egress(),
        EgressPath(),
    ]
    breaks(one)
    barred = two.unavailable()
    assert barred is not None
    assert barred.why == "The proxy broke"
    assert 0 < barred.until <= 60
    assert [each.unavailable() for each in others] == [None] * len(others)


def test_a_proxy_that_nobody_uses_any_more_is_forgotten(paths: EgressPaths) -> None:
    first = paths.egress("http://proxy.test:3128")
    breaks(first)
    del first
    gc.collect()
    assert paths.egress("http://proxy.test:3128").unavailable() is None


def test_bad_settings_are_refused_without_being_shown(paths: EgressPaths) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        paths.egress("ftp://u:hush@proxy.test:1")
    assert "hush" not in str(caught.value)
    with pytest.raises(TLSFileError, match="ca_file"):
        paths.egress(ca_file="/nowhere/ca.pem")


@pytest.mark.parametrize("proxy", ["socks5://proxy.test:1080", None])
def test_endpoints_are_made_once_for_each_place(paths: EgressPaths, proxy: str | None) -> None:
    endpoints = EgressEndpoints(Reactor(), 10, paths.egress(proxy))
    made = [endpoints.endpoint(*place) for place in PLACES]
    assert len(set(made)) == len(PLACES)
    assert [endpoints.endpoint(*place) for place in PLACES] == made


def test_connections_go_by_the_proxy_or_directly(paths: EgressPaths) -> None:
    proxied, direct = paths.egress("socks5://proxy.test:1080"), EgressPath()
    for egress, kind in [(proxied, ProxyEndpoint), (direct, HostnameEndpoint)]:
        made = EgressEndpoints(Reactor(), 10, egress).endpoint(*PLACES[0])
        assert isinstance(made, ReceivingEndpoint)
        assert isinstance(made._endpoint, kind)


# --- connections ---------------------------------------------------------------------------


def dial(reactor: Reactor, transport: Wire, scheme: bytes, host: bytes, port: int) -> Any:
    """Connect; the wanted protocol, and what receives on the transport for it."""
    endpoint = EgressEndpoints(reactor, 10, EgressPath()).endpoint(scheme, host, port)
    dialled: list[Any] = []
    endpoint.connect(Factory.forProtocol(Receiver)).addBoth(dialled.append)
    outer = reactor.tcpClients[-1][2].buildProtocol(None)
    outer.makeConnection(transport)
    return dialled[0], outer


def test_a_connection_passes_everything_to_the_protocol_that_asked_for_it() -> None:
    transport = Wire()
    receiver, outer = dial(Reactor(), transport, *PLACES[0])
    assert isinstance(receiver, Receiver), "the one of the caller's factory"
    assert receiver.transport is transport
    assert transport.no_delay
    outer.dataReceived(b"one")
    outer.dataReceived(b"4\r\ntwo")
    assert receiver.received == [b"one", b"4\r\ntwo"], "nothing is coalesced"
    outer.connectionLost(Failure(ConnectionDone()))
    assert receiver.lost is not None


def test_https_is_tls_on_the_way() -> None:
    transport = Wire()
    receiver, _ = dial(Reactor(), transport, *PLACES[1])
    assert isinstance(receiver.transport, TLSMemoryBIOProtocol)
    assert transport.no_delay
    receiver.transport.write(b"hush")
    assert transport.value().startswith(b"\x16\x03"), "expected a ClientHello"
    assert b"hush" not in transport.value()


def test_a_server_that_never_answers_the_tls_handshake_is_given_up() -> None:
    reactor, transport = Reactor(), Wire()
    _, outer = dial(reactor, transport, *PLACES[1])
    reactor.advance(9.9)
    assert not transport.disconnected
    reactor.advance(0.2)
    assert transport.disconnected
    outer.connectionLost(Failure(ConnectionDone()))
    assert not reactor.getDelayedCalls()


@pytest.mark.parametrize("end", ["completed", "lost"])
def test_the_deadline_of_tls_ends_with_the_handshake_or_the_connection(end: str) -> None:
    clock, receiver = Clock(), Receiver()
    connection = UpstreamConnection(receiver, clock, 10)
    connection.makeConnection(SecureWire())
    assert clock.getDelayedCalls()
    if end == "completed":
        connection.handshakeCompleted()
    else:
        connection.connectionLost(Failure(ConnectionDone()))
    assert not clock.getDelayedCalls()


def test_a_factory_that_wants_no_connection_gets_none() -> None:
    class Nobody(Factory):
        def buildProtocol(self, addr: object) -> None:
            return None

    reactor = Reactor()
    dialled: list[Any] = []
    endpoint = EgressEndpoints(reactor, 10, EgressPath()).endpoint(*PLACES[0])
    endpoint.connect(Nobody()).addBoth(dialled.append)
    assert reactor.tcpClients[-1][2].buildProtocol(None) is None
