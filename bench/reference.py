"""The two references that every figure stands beside, each a process of its own.

``relay``: a bare TCP relay, Twisted protocols that hand bytes from one transport to the other.
``sendmessage``: the naive gateway, a treq streaming POST per WebSocket message, a simple split of
the server-sent events, and one Autobahn ``sendMessage`` per event.
"""

from __future__ import annotations

import sys
from typing import Any

import treq
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.web.client import Agent, HTTPConnectionPool

MAX_MESSAGE = 64 * 1024 * 1024


class RelayEnd(Protocol):
    """One side of the relay: writes what it receives to its peer."""

    transport: Any
    peer: Any = None

    def dataReceived(self, data: bytes) -> None:
        self.peer.transport.write(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        if self.peer is not None:
            self.peer.transport.loseConnection()


class RelayFront(RelayEnd):
    """The client's side: opens the upstream side first."""

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.pauseProducing()
        back = RelayEnd()
        back.peer = self
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.factory.upstream_port)
        connectProtocol(endpoint, back).addCallbacks(
            self.connected_upstream, lambda failure: self.transport.loseConnection()
        )

    def connected_upstream(self, back: RelayEnd) -> None:
        self.peer = back
        back.transport.setTcpNoDelay(True)
        self.transport.registerProducer(back.transport, True)
        back.transport.registerProducer(self.transport, True)
        self.transport.resumeProducing()


class EventSplitter(Protocol):
    """The body of an upstream response: one message to the client per event."""

    transport: Any

    def __init__(self, client: Any) -> None:
        self.client = client
        self.buffer = b""

    def connectionMade(self) -> None:
        self.client.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        *events, self.buffer = (self.buffer + data).split(b"\n\n")
        for event in events:
            self.client.sendMessage(event[event.index(b"data: ") + 6 :])

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.client.transport.unregisterProducer()


class NaiveGateway(WebSocketServerProtocol):
    """One WebSocket: each message becomes a POST, its events become messages."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.factory.http.post(
            self.factory.url,
            data=payload,
            headers={"Content-Type": "application/json"},
            unbuffered=True,
        ).addCallback(self.relay)

    def relay(self, response: Any) -> None:
        response.deliverBody(EventSplitter(self))


def main(kind: str, port: int, upstream_port: int) -> None:
    """Serve one reference on a loopback port until killed."""
    factory: Any
    if kind == "relay":
        factory = Factory.forProtocol(RelayFront)
        factory.upstream_port = upstream_port
    else:
        factory = WebSocketServerFactory(f"ws://127.0.0.1:{port}")
        factory.protocol = NaiveGateway
        factory.setProtocolOptions(
            maxFramePayloadSize=MAX_MESSAGE, maxMessagePayloadSize=MAX_MESSAGE
        )
        pool = HTTPConnectionPool(reactor)
        pool.maxPersistentPerHost = 10_000
        factory.http = treq.client.HTTPClient(Agent(reactor, pool=pool))
        factory.url = f"http://127.0.0.1:{upstream_port}/v1/responses"
    factory.noisy = False
    TCP4ServerEndpoint(reactor, port, backlog=1024, interface="127.0.0.1").listen(factory)
    reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
