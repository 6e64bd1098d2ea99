"""How treq's client is set up for one account: connections, encoding, bodies."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any

from hyperlink import EncodedURL
from treq.client import HTTPClient
from treq.cookies import IndexableCookieJar
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from gateway.upstream.coalescing import CoalescingEndpointFactory
from gateway.upstream.egress import EgressPath

#: How long an idle kept-alive connection is trusted: below what load balancers allow.
_IDLE_CONNECTION_SECONDS = 45.0


def connection_pool(reactor: Any, max_kept: int) -> HTTPConnectionPool:
    """The kept-alive connections of one account; nothing is resent behind our back.

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
) -> HTTPClient:
    """A client with connections of its own that keeps no cookies.

    Cookies would be shared by all clients of an account, and tell their upstream what they
    have in common.

    :param connect_seconds: how long TCP and a proxy's handshake may take, and TLS after it.
    :param egress: how connections leave the machine; straight when left out.
    """
    paths = EgressEndpoints(reactor, connect_seconds, egress or EgressPath())
    endpoints = CoalescingEndpointFactory(paths, reactor, connect_seconds)
    agent = Agent.usingEndpointFactory(reactor, endpoints, pool)
    return LiteralHostClient(IdentityEncodingAgent(agent))


class LiteralHostClient(HTTPClient):
    """treq's client, which asks for the host as it is written."""

    def __init__(self, agent: IAgent) -> None:
        self._jar = IndexableCookieJar(DefaultCookiePolicy(allowed_domains=()))
        super().__init__(agent, self._jar, _body_producer)

    def request(self, method: str, url: str, **options: Any) -> Deferred[Any]:  # type: ignore[override]
        """See ``HTTPClient``; its own jar is given along, or it would make one each time."""
        options.setdefault("cookies", self._jar)
        return super().request(method, _ready_url(url), **options)


class _ReadyURL(EncodedURL):
    """A URL in the form in which it is sent."""

    def to_uri(self) -> EncodedURL:
        """See ``EncodedURL``."""
        return self


@lru_cache(256)
def _ready_url(url: str) -> EncodedURL:
    """Encode path and query; an account's URLs are few, and this takes 100 us.

    The host needs no encoding: the configuration takes no other.  hyperlink takes every host
    for a name that needs IDNA, and fails with IPv6 addresses.
    """
    parsed = EncodedURL.from_text(url)
    encoded = parsed.replace(host="").to_uri().replace(host=parsed.host)
    return _ReadyURL.from_text(encoded.to_text())


@implementer(IAgentEndpointFactory)
class EgressEndpoints:
    """Endpoints by an account's way out, with verified TLS for ``https``.

    :param connect_seconds: how long a connection may take, TLS not counted.
    """

    def __init__(self, reactor: Any, connect_seconds: float, egress: EgressPath) -> None:
        self._reactor = reactor
        self._connect_seconds = connect_seconds
        self._egress = egress
        self._made: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = {}

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See ``IAgentEndpointFactory``; made once, since TLS ones take 80 us."""
        key = uri.scheme, uri.host, uri.port
        if key not in self._made:
            self._made[key] = self._make(uri)
        return self._made[key]

    def _make(self, uri: URI) -> IStreamClientEndpoint:
        host = uri.host.decode("ascii")
        tcp = self._egress.endpoint(self._reactor, host, uri.port, self._connect_seconds)
        if uri.scheme == b"https":
            return wrapClientTLS(self._egress.tls(uri.host, uri.port), tcp)
        return tcp


@implementer(IAgent)
class IdentityEncodingAgent:
    """Asks for uncompressed answers: treq always offers gzip, which delays small events."""

    def __init__(self, agent: IAgent) -> None:
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """See ``IAgent``."""
        headers = Headers() if headers is None else headers.copy()
        headers.setRawHeaders(b"accept-encoding", [b"identity"])
        return self._agent.request(method, uri, headers, bodyProducer)


@implementer(IBodyProducer)
class WholeBodyProducer:
    """Writes the whole body at once: it is in memory anyway.

    :param connected: called when it is written, which is when a connection is there.
    """

    def __init__(self, body: bytes, connected: Callable[[], None] | None = None) -> None:
        self._body = body
        self._connected = connected
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``."""
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


def _body_producer(body: bytes | WholeBodyProducer) -> WholeBodyProducer:
    """What treq makes of ``data``; forms and JSON come as bytes."""
    return body if isinstance(body, WholeBodyProducer) else WholeBodyProducer(body)
