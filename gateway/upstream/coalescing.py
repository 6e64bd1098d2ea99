"""Connections for ``Agent``: one HTTP chunk per read, and a TLS handshake that must end.

Measured: a burst of small chunks costs a third of what it costs without (see ``chunks``).
Twisted's connect timeout ends when TCP is up; a peer that never answers the TLS handshake
would hold a turn until its first-byte deadline.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHandshakeListener,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    ISSLTransport,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.web.client import URI
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from gateway.compat import is_reading_head
from gateway.upstream.chunk_coalescer import MAX_HEAD, ChunkCoalescer, HeadTooLarge


@implementer(IHandshakeListener)
class _CoalescingProtocol(Protocol):
    """Receives for an HTTP client protocol, which otherwise has the transport to itself."""

    _handshake: IDelayedCall | None = None

    def __init__(self, http: IProtocol, clock: IReactorTime, handshake_seconds: float) -> None:
        self.http = http
        self._clock = clock
        self._handshake_seconds = handshake_seconds
        self._chunks = ChunkCoalescer()
        self._feed = self._chunks.feed
        self._unwatched = 0
        self._refused: Failure | None = None
        self._receive = http.dataReceived

    def makeConnection(self, transport: ITransport) -> None:
        self.transport = transport
        self.connected = 1
        with suppress(AttributeError):  # only TCP has it
            transport.setTcpNoDelay(True)  # type: ignore[attr-defined]
        if ISSLTransport.providedBy(transport):
            abort = transport.abortConnection
            self._handshake = self._clock.callLater(self._handshake_seconds, abort)
        abrupt: Any = _AbruptTransport(transport)
        self.http.makeConnection(abrupt)

    def handshakeCompleted(self) -> None:
        """TLS is up."""
        self._stop_waiting()

    def dataReceived(self, data: bytes) -> None:
        if self._refused is not None:
            return
        try:
            coalesced = self._feed(data)
            if coalesced:
                self._receive(coalesced)
            if self._chunks.transparent:  # the parser alone knows whether this was a head
                self._unwatched = self._unwatched + len(data) if is_reading_head(self.http) else 0
                if self._unwatched > MAX_HEAD:
                    raise HeadTooLarge(f"more than {MAX_HEAD} bytes")
        except HeadTooLarge:
            self._refused = Failure()
            self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.connected = 0
        self._stop_waiting()
        self.http.connectionLost(self._refused or reason)

    def _stop_waiting(self) -> None:
        waiting, self._handshake = self._handshake, None
        if waiting is not None and waiting.active():
            waiting.cancel()


class _AbruptTransport:
    """A transport whose ``loseConnection`` does not wait for anybody.

    An HTTP client drops a connection because the answer is over or no longer wanted.  TLS
    would wait for the peer's goodbye and read on meanwhile, or for ever where it was paused.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def loseConnection(self) -> None:
        """Drop it now."""
        self._transport.abortConnection()


class _CoalescingFactory(Factory):
    noisy = False

    def __init__(self, factory: Any, clock: IReactorTime, handshake_seconds: float) -> None:
        self._factory = factory
        self._clock = clock
        self._handshake_seconds = handshake_seconds

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        http = self._factory.buildProtocol(addr)
        if http is None:
            return None
        return _CoalescingProtocol(http, self._clock, self._handshake_seconds)


def _http_protocol(protocol: Any) -> IProtocol:
    """What the connection pool wants: the protocol that sends requests."""
    http: IProtocol = protocol.http
    return http


@implementer(IStreamClientEndpoint)
class CoalescingEndpoint:
    """Connects as the endpoint that it wraps, TLS included.

    :param clock: for the deadline of the TLS handshake.
    :param handshake_seconds: how long that may take once TCP is up.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, clock: IReactorTime, handshake_seconds: float
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._handshake_seconds = handshake_seconds

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, and coalesce what the connection reads."""
        factory = _CoalescingFactory(protocolFactory, self._clock, self._handshake_seconds)
        connecting = self._endpoint.connect(factory)
        return connecting.addCallback(_http_protocol)


@implementer(IAgentEndpointFactory)
class CoalescingEndpointFactory:
    """Wraps every endpoint of another endpoint factory; for ``Agent.usingEndpointFactory``."""

    def __init__(
        self, factory: IAgentEndpointFactory, clock: IReactorTime, handshake_seconds: float
    ) -> None:
        self._factory = factory
        self._clock = clock
        self._handshake_seconds = handshake_seconds

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """The endpoint of the other factory, wrapped."""
        endpoint = self._factory.endpointForURI(uri)
        return CoalescingEndpoint(endpoint, self._clock, self._handshake_seconds)
