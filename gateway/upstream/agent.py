"""The HTTP client of one account, on connections of :mod:`~gateway.upstream.endpoints`.

The HTTP chunks of one read are coalesced (see :mod:`~gateway.upstream.chunk_coalescer`), which cuts
the cost of a burst of small chunks to a third.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IConsumer,
    IProtocol,
    IReactorTime,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, GzipDecoder, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from gateway.compat import is_reading_head
from gateway.upstream.chunk_coalescer import MAX_HEAD, ChunkCoalescer, HeadTooLarge
from gateway.upstream.endpoints import EgressEndpoints, EgressPath, UpstreamConnection

#: How long an idle connection is kept, in seconds: shorter than load balancers allow.
_IDLE_CONNECTION_SECONDS = 45.0


# --- the client ----------------------------------------------------------------------------


def connection_pool(reactor: Any, max_kept: int) -> HTTPConnectionPool:
    """The kept-alive connections of one account; it sends no request again by itself.

    :param max_kept: idle connections that are kept.
    """
    pool = HTTPConnectionPool(reactor)
    pool.maxPersistentPerHost = max_kept
    pool.cachedConnectionTimeout = _IDLE_CONNECTION_SECONDS  # type: ignore[assignment]
    pool.retryAutomatically = False
    return pool


def http_client(
    reactor: Any,
    pool: HTTPConnectionPool,
    connect_seconds: float,
    egress: EgressPath | None = None,
) -> UpstreamClient:
    """A client with connections of its own.

    :param connect_seconds: how long TCP and a proxy's handshake may take, and TLS after it.
    :param egress: how connections leave the machine; direct when left out.
    """
    endpoints = CoalescingEndpoints(reactor, connect_seconds, egress or EgressPath())
    return UpstreamClient(Agent.usingEndpointFactory(reactor, endpoints, pool))


class UpstreamClient(HTTPClient):
    """treq's client for one account, without what treq does for each request.

    It follows no redirects, and asks for uncompressed answers: treq always offers gzip, which
    delays small events.  It keeps no cookies, because all clients of an account would
    share them.
    """

    def __init__(self, agent: IAgent) -> None:
        super().__init__(agent)
        self._direct = agent

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        connected: Callable[[], None] | None = None,
    ) -> Deferred[IResponse]:
        """Send a request; the body of its response waits for ``deliverBody``.

        :param headers: each character of a value stands for one byte.
        :param connected: called when the body is written to a connection.
        """
        sent = {name.encode(): [value.encode("latin-1")] for name, value in headers.items()}
        sent[b"accept-encoding"] = [b"identity"]
        producer = None if body is None else WholeBodyProducer(body, connected)
        response = self._direct.request(
            method.encode("ascii"), encoded_url(url), Headers(sent), producer
        )
        return response.addCallback(_uncompressed)

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        data: bytes | None = None,
        allow_redirects: bool = False,
        unbuffered: bool = True,
        reactor: Any = None,
        _stacklevel: int = 0,
    ) -> Deferred[Any]:
        """Send a request by treq's interface.

        :raises TypeError: for options that this client does not have.
        :raises ValueError: when redirects or a buffered response are asked for.
        """
        if allow_redirects or not unbuffered:
            raise ValueError("this client follows no redirects and buffers no responses")
        return self.send(method, url, headers, data)


@lru_cache(256)
def encoded_url(url: str) -> bytes:
    """A URL as it is sent, path and query encoded; remembered, since encoding takes 0.1 ms.

    The host needs no encoding: the configuration takes no other.  hyperlink takes every host
    for a name that needs IDNA, and fails with IPv6 addresses.
    """
    parsed = EncodedURL.from_text(url)
    encoded = parsed.replace(host="").to_uri().replace(host=parsed.host)
    return encoded.to_text().encode("ascii")


def _uncompressed(response: IResponse) -> IResponse:
    """Unpack an answer that is compressed although that was not asked for."""
    if response.headers.getRawHeaders(b"content-encoding") != [b"gzip"]:
        return response
    response.headers.removeHeader(b"content-encoding")
    unpacked: IResponse = GzipDecoder(response)
    return unpacked


@implementer(IBodyProducer)
class WholeBodyProducer:
    """Writes the whole body at once: it is in memory anyway.

    :param connected: called when it is written, which is when there is a connection.
    """

    def __init__(self, body: bytes, connected: Callable[[], None] | None = None) -> None:
        self._body = body
        self._connected = connected
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Write the body."""
        body, self._body = self._body, b""  # the request outlives its sending
        consumer.write(body)
        if self._connected is not None:
            self._connected()
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing is left to pause."""

    def resumeProducing(self) -> None:
        """Nothing is left to resume."""

    def stopProducing(self) -> None:
        """Nothing is left to stop."""


def headers_of(response: IResponse) -> dict[str, str]:
    """A response's headers: names in lower case, of several values the last."""
    return {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in response.headers.getAllRawHeaders()
    }


def abandon(response: IResponse) -> None:
    """Drop a response before its body was delivered, and close its connection."""
    unread = Protocol()
    response.deliverBody(unread)
    assert unread.transport is not None
    unread.transport.loseConnection()


# --- connections ---------------------------------------------------------------------------


@implementer(IAgentEndpointFactory)
class CoalescingEndpoints:
    """The endpoints of one account for an Agent; its connections coalesce HTTP chunks.

    :param connect_seconds: how long TCP and a proxy's handshake may take, and TLS after it.
    """

    def __init__(self, reactor: Any, connect_seconds: float, egress: EgressPath) -> None:
        self._endpoints = EgressEndpoints(reactor, connect_seconds, egress, CoalescingConnection)

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """The endpoint of a URL."""
        return self._endpoints.endpoint(uri.scheme, uri.host, uri.port)


class CoalescingConnection(UpstreamConnection):
    """Receives for an HTTP client protocol, which otherwise has the transport to itself."""

    def __init__(self, receiver: IProtocol, clock: IReactorTime, handshake_seconds: float) -> None:
        super().__init__(receiver, clock, handshake_seconds)
        self._chunks = ChunkCoalescer()
        self._feed = self._chunks.feed
        self._unwatched = 0
        self._refused: Failure | None = None
        self._receive = receiver.dataReceived

    def hand_over(self, transport: ITransport) -> None:
        """Give the HTTP client a transport that closes at once."""
        abrupt: Any = _AbruptTransport(transport)
        self.receiver.makeConnection(abrupt)

    def dataReceived(self, data: bytes) -> None:
        """Pass on what the upstream sent, the chunks in it as one."""
        if self._refused is not None:
            return
        try:
            coalesced = self._feed(data)
            if coalesced:
                self._receive(coalesced)
            if self._chunks.transparent:  # the parser alone knows whether this was a head
                reading = is_reading_head(self.receiver)
                self._unwatched = self._unwatched + len(data) if reading else 0
                if self._unwatched > MAX_HEAD:
                    raise HeadTooLarge(f"more than {MAX_HEAD} bytes")
        except HeadTooLarge:
            self._refused = Failure()
            self.transport.abortConnection()  # type: ignore[union-attr]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is closed."""
        super().connectionLost(self._refused or reason)


class _AbruptTransport:
    """A transport with a ``loseConnection`` that does not wait for the peer.

    An HTTP client closes a connection because the answer is over or no longer needed.  TLS would
    wait for the peer's close alert and read on meanwhile, or for ever if it was paused.
    """

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.write = transport.write
        self.writeSequence = transport.writeSequence

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def loseConnection(self) -> None:
        """Drop it now."""
        self._transport.abortConnection()
