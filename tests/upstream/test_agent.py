"""An account's connections under a real ``Agent`` and its pool, and the way that they take."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from gateway.upstream.agent import (
    CoalescingEndpoint,
    EgressPath,
    EgressPaths,
    UpstreamEndpoints,
    http_client,
)
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from gateway.upstream.tls import TLSFileError
from tests.upstream.body import Body
from tests.upstream.wire import Connection, Reactor

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@implementer(IAgentEndpointFactory)
class Endpoints:
    def __init__(self, reactor: MemoryReactorClock) -> None:
        self.reactor = reactor

    def endpointForURI(self, uri: URI) -> CoalescingEndpoint:
        tcp = TCP4ClientEndpoint(self.reactor, "127.0.0.1", uri.port)
        return CoalescingEndpoint(tcp, self.reactor, 10)


class CoalescingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        pool = HTTPConnectionPool(self.reactor)
        self.agent = Agent.usingEndpointFactory(self.reactor, Endpoints(self.reactor), pool)

    def post(self) -> Deferred[object]:
        return self.agent.request(b"POST", b"http://127.0.0.1:1/v1/responses")

    def accept(self) -> tuple[Protocol, StringTransport]:
        factory = self.reactor.tcpClients[-1][2]
        protocol = factory.buildProtocol(None)
        transport = StringTransport()
        transport.abortConnection = transport.loseConnection
        protocol.makeConnection(transport)
        return protocol, transport

    def test_one_delivery_per_read_and_the_connection_is_used_again(self) -> None:
        requested = self.post()
        wire, transport = self.accept()
        for turn in range(2):
            if turn:
                requested = self.post()
            assert transport.value().startswith(b"POST /v1/responses HTTP/1.1\r\n")
            transport.clear()
            wire.dataReceived(HEAD)
            body = Body()
            self.successResultOf(requested).deliverBody(body)
            wire.dataReceived(b"3\r\none\r\n3\r\ntwo\r\n5")
            wire.dataReceived(b"\r\nthree\r\n1\r\n!")
            assert body.received == [b"onetwo", b"three!"]
            wire.dataReceived(b"\r\n0\r\n\r\n")
            assert body.end is not None
            assert body.end.check(ResponseDone)
        assert len(self.reactor.tcpClients) == 1

    def test_back_pressure_reaches_the_transport(self) -> None:
        requested = self.post()
        wire, transport = self.accept()
        wire.dataReceived(HEAD)
        assert transport.producerState == "paused"
        body = Body()
        self.successResultOf(requested).deliverBody(body)
        assert transport.producerState == "producing"
        body.transport.pauseProducing()
        assert transport.producerState == "paused"

    def test_a_lost_connection_ends_the_body(self) -> None:
        requested = self.post()
        wire, _ = self.accept()
        wire.dataReceived(HEAD + b"3\r\none\r\n")
        body = Body()
        self.successResultOf(requested).deliverBody(body)
        wire.connectionLost(Failure(ConnectionLost()))
        assert body.received == [b"one"]
        assert body.end is not None
        assert body.end.check(ResponseFailed)

    def test_malformed_framing_ends_the_body_and_the_connection(self) -> None:
        requested = self.post()
        wire, transport = self.accept()
        wire.dataReceived(HEAD + b"3\r\none\r\n")
        body = Body()
        self.successResultOf(requested).deliverBody(body)
        wire.dataReceived(b"3\r\ntwo3\r\nsix\r\n0\r\n\r\n")
        assert body.received == [b"one", b"two"]
        assert body.end is not None
        assert body.end.check(ResponseFailed)
        assert transport.disconnecting

    def test_a_refused_connection_is_reported(self) -> None:
        requested = self.post()
        factory = self.reactor.tcpClients[-1][2]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
        self.failureResultOf(requested, ConnectionRefusedError)

    def test_a_cancelled_connection_attempt_stops(self) -> None:
        requested = self.post()
        requested.cancel()
        self.failureResultOf(requested)
        assert self.reactor.connectors[-1].stoppedConnecting


# --- the way out ---------------------------------------------------------------------------


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


def test_endpoints_are_made_once_for_each_place(paths: EgressPaths) -> None:
    egress = paths.egress("socks5://proxy.test:1080")
    endpoints = UpstreamEndpoints(Reactor(), 10, egress)
    urls = [b"http://a.test/v1/x", b"https://a.test/v1/x", b"https://[::1]:8443/", b"http://b.test"]
    made = [endpoints.endpointForURI(URI.fromBytes(url)) for url in urls]
    assert len(set(made)) == len(urls)
    assert endpoints.endpointForURI(URI.fromBytes(b"https://a.test/v1/other")) is made[1]


def test_connections_go_by_the_proxy_or_directly(paths: EgressPaths) -> None:
    proxied, direct = paths.egress("socks5://proxy.test:1080"), EgressPath()
    for egress, kind in [(proxied, ProxyEndpoint), (direct, HostnameEndpoint)]:
        endpoints = UpstreamEndpoints(Reactor(), 10, egress)
        made = endpoints.endpointForURI(URI.fromBytes(b"http://a.test"))
        assert isinstance(made, CoalescingEndpoint)
        assert isinstance(made._endpoint, kind)


@pytest.mark.parametrize(
    "option", [{"json": {}}, {"cookies": {"a": "b"}}, {"auth": ("a", "b")}, {"unbuffered": False}]
)
def test_options_of_treq_that_have_no_effect_are_refused(option: dict[str, Any]) -> None:
    reactor = Reactor()
    client = http_client(reactor, HTTPConnectionPool(reactor), 10)
    with pytest.raises((TypeError, ValueError)):
        client.post("http://auth.test/token", headers={}, data=b"grant", **option)
    assert not reactor.tcpClients, "nothing is sent"


def test_what_treq_asks_for_goes_the_same_way() -> None:
    """The token endpoint is asked by ``post``, as of any client of treq."""
    reactor = Reactor()
    client = http_client(reactor, HTTPConnectionPool(reactor), 10)
    client.post(
        "http://auth.test/token?a=ü",
        headers={"content-type": "text/plain"},
        data=b"grant",
        allow_redirects=False,
        unbuffered=True,
        reactor=reactor,
    )
    connection = Connection(reactor.tcpClients[-1][2])
    head, _, body = connection.request.lower().partition(b"\r\n\r\n")
    assert head.startswith(b"post /token?a=%c3%bc http/1.1\r\n")
    assert {b"content-type: text/plain", b"accept-encoding: identity", b"content-length: 5"} <= {
        *head.split(b"\r\n")
    }
    assert b"cookie" not in head
    assert body == b"grant"
