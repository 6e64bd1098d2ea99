"""The HTTP client of one account: its connections, its egress and its TLS settings.

Connections are direct or go through a proxy.  The HTTP chunks of one read are coalesced (see
:mod:`~gateway.upstream.chunk_coalescer`), which cuts the cost of a burst of small chunks to a
third.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

from hyperlink import EncodedURL
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
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
from twisted.web.client import URI, Agent, GzipDecoder, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from gateway.compat import is_reading_head
from gateway.upstream.chunk_coalescer import MAX_HEAD, ChunkCoalescer, HeadTooLarge
from gateway.upstream.proxy import Proxy, ProxyHealth, UnavailableProxy
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from gateway.upstream.tls import AccountTLS

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
    endpoints = UpstreamEndpoints(reactor, connect_seconds, egress or EgressPath())
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
            method.encode("ascii"), _encoded_url(url), Headers(sent), producer
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
def _encoded_url(url: str) -> bytes:
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


# --- egress --------------------------------------------------------------------------------


class EgressPath:
    """How one account's connections leave the machine.

    :param tls: the trusted certificates, and the client certificate.
    :param proxy: None to connect directly.
    :param health: of the proxy; shared by all accounts that use it.
    """

    def __init__(
        self,
        tls: AccountTLS | None = None,
        proxy: Proxy | None = None,
        health: ProxyHealth | None = None,
    ) -> None:
        assert (proxy is None) == (health is None), "a proxy and its health go together"
        self.tls = tls or AccountTLS()
        self.proxy = proxy
        self.health = health

    def unavailable(self) -> UnavailableProxy | None:
        """Why, and until when, its proxy is unavailable; None when the path can be used."""
        return None if self.health is None else self.health.unavailable()

    def clear(self) -> None:
        """Reset the proxy's circuit breaker (operator action)."""
        if self.health is not None:
            self.health.clear()


class EgressPaths:
    """Makes egress paths; those with the same proxy share its health.

    Credentials are part of a proxy's identity, because some proxies use another exit for each user
    name.

    :param now: unix seconds.
    :param cooldown_max_seconds: the longest cooldown of a broken proxy.
    """

    def __init__(self, now: Callable[[], float], cooldown_max_seconds: float) -> None:
        self._now = now
        self._cooldown_max_seconds = cooldown_max_seconds
        self._health: WeakValueDictionary[Proxy, ProxyHealth] = WeakValueDictionary()

    def cap_cooldowns(self, cooldown_max_seconds: float) -> None:
        """Change the longest cooldown of a broken proxy, in seconds."""
        self._cooldown_max_seconds = cooldown_max_seconds
        for health in self._health.values():
            health.cap_cooldowns(cooldown_max_seconds)

    def egress(
        self,
        proxy: str | None = None,
        ca_file: str | None = None,
        client_cert_file: str | None = None,
        client_key_file: str | None = None,
    ) -> EgressPath:
        """The path that these settings describe.

        :param proxy: a URL, see :meth:`Proxy.from_url`.
        :raises ValueError: for a URL that describes no proxy; does not quote it.
        :raises TLSFileError: when a file cannot be used.
        """
        tls = AccountTLS(ca_file, client_cert_file, client_key_file)
        if proxy is None:
            return EgressPath(tls)
        found = Proxy.from_url(proxy)
        health = self._health.get(found)
        if health is None:
            health = ProxyHealth(self._now, self._cooldown_max_seconds)
            self._health[found] = health
        return EgressPath(tls, found, health)


# --- connections ---------------------------------------------------------------------------


@implementer(IAgentEndpointFactory)
class UpstreamEndpoints:
    """The endpoints of one account, with verified TLS for ``https``.

    :param connect_seconds: how long TCP and a proxy's handshake may take, and TLS after it.
    """

    def __init__(self, reactor: Any, connect_seconds: float, egress: EgressPath) -> None:
        self._reactor = reactor
        self._connect_seconds = connect_seconds
        self._egress = egress
        self._endpoints: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = {}

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """The endpoint of a URL; made once, since a TLS one takes 80 µs."""
        key = uri.scheme, uri.host, uri.port
        if key not in self._endpoints:
            self._endpoints[key] = self._make(*key)
        return self._endpoints[key]

    def _make(self, scheme: bytes, host: bytes, port: int) -> IStreamClientEndpoint:
        seconds, egress, name = self._connect_seconds, self._egress, host.decode("ascii")
        endpoint: IStreamClientEndpoint
        if egress.proxy is None or egress.health is None:
            endpoint = HostnameEndpoint(self._reactor, name, port, timeout=seconds)
        else:
            endpoint = ProxyEndpoint(
                self._reactor, egress.proxy, egress.health, name, port, seconds
            )
        if scheme == b"https":
            endpoint = wrapClientTLS(egress.tls.creatorForNetloc(host, port), endpoint)
        return CoalescingEndpoint(endpoint, self._reactor, seconds)


@implementer(IStreamClientEndpoint)
class CoalescingEndpoint:
    """Connects as the endpoint that it wraps; its connections coalesce HTTP chunks.

    :param clock: for the deadline of the TLS handshake.
    :param handshake_seconds: how long that may take once TCP is up.  Twisted's connect timeout
        ends there, and a peer that never answers would hold a turn until its first-byte deadline.
    """

    def __init__(
        self, endpoint: IStreamClientEndpoint, clock: IReactorTime, handshake_seconds: float
    ) -> None:
        self._endpoint = endpoint
        self._clock = clock
        self._handshake_seconds = handshake_seconds

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; the Deferred has the protocol of ``protocolFactory``."""
        factory = _CoalescingFactory(protocolFactory, self._clock, self._handshake_seconds)
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(lambda protocol: protocol.http)


class _CoalescingFactory(Factory):
    noisy = False

    def __init__(self, factory: Any, clock: IReactorTime, handshake_seconds: float) -> None:
        self._factory = factory
        self._clock = clock
        self._handshake_seconds = handshake_seconds
        self.doStart = factory.doStart  # type: ignore[method-assign]
        self.doStop = factory.doStop  # type: ignore[method-assign]

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        http = self._factory.buildProtocol(addr)
        if http is None:
            return None
        return _CoalescingProtocol(http, self._clock, self._handshake_seconds)


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
