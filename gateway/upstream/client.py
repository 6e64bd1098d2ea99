"""How treq's client is set up for one account: connections, encoding, bodies."""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IAgentEndpointFactory, IBodyProducer, IResponse
from zope.interface import implementer

from .coalescing import CoalescingEndpointFactory

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


def http_client(reactor: Any, pool: HTTPConnectionPool, connect_seconds: float) -> HTTPClient:
    """A client with connections and cookies of its own.

    :param connect_seconds: how long TCP may take, and TLS after it.
    """
    direct = DirectEndpoints(reactor, connect_seconds)
    endpoints = CoalescingEndpointFactory(direct, reactor, connect_seconds)
    agent = Agent.usingEndpointFactory(reactor, endpoints, pool)
    return HTTPClient(IdentityEncodingAgent(agent), data_to_body_producer=WholeBodyProducer)


@implementer(IAgentEndpointFactory)
class DirectEndpoints:
    """TCP for ``http``, verified TLS over TCP for ``https``.

    :param connect_seconds: how long TCP may take.
    """

    def __init__(self, reactor: Any, connect_seconds: float) -> None:
        self._reactor = reactor
        self._connect_seconds = connect_seconds
        self._tls = BrowserLikePolicyForHTTPS()
        self._made: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = {}

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See ``IAgentEndpointFactory``; made once, since TLS ones take 80 us."""
        key = uri.scheme, uri.host, uri.port
        if key not in self._made:
            self._made[key] = self._make(uri)
        return self._made[key]

    def _make(self, uri: URI) -> IStreamClientEndpoint:
        tcp = HostnameEndpoint(
            self._reactor, uri.host.decode("ascii"), uri.port, timeout=self._connect_seconds
        )
        if uri.scheme == b"https":
            return wrapClientTLS(self._tls.creatorForNetloc(uri.host, uri.port), tcp)
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
    """Writes the whole body at once: it is in memory anyway."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See ``IBodyProducer``."""
        body, self._body = self._body, b""  # the request outlives its sending
        consumer.write(body)
        return succeed(None)

    def pauseProducing(self) -> None:
        """Nothing is left to pause."""

    def resumeProducing(self) -> None:
        """Nothing is left to resume."""

    def stopProducing(self) -> None:
        """Nothing is left to stop."""
