"""An account's connections under a real ``Agent`` and its pool."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI, Agent, HTTPConnectionPool, ResponseDone, ResponseFailed
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from gateway.upstream.agent import CoalescingConnection, http_client
from gateway.upstream.endpoints import ReceivingEndpoint
from tests.upstream.body import Body
from tests.upstream.wire import Connection, Reactor

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@implementer(IAgentEndpointFactory)
class Endpoints:
    def __init__(self, reactor: MemoryReactorClock) -> None:
        self.reactor = reactor

    def endpointForURI(self, uri: URI) -> ReceivingEndpoint:
        tcp = TCP4ClientEndpoint(self.reactor, "127.0.0.1", uri.port)
        return ReceivingEndpoint(tcp, lambda http: CoalescingConnection(http, self.reactor, 10))


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
