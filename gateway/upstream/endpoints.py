"""How an account's connections are made: direct or through a proxy, with its TLS settings.

HTTP and WebSockets have the same endpoints; what receives on a connection differs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
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
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.upstream.proxy import Proxy, ProxyHealth, UnavailableProxy
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from gateway.upstream.tls import AccountTLS

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


@implementer(IHandshakeListener)
class UpstreamConnection(Protocol):
    """Receives for another protocol, without Nagle's delay, and bounds the TLS handshake.

    Twisted's connect timeout ends when TCP is up, and a peer that never answers would hold a turn
    until its first-byte deadline.

    :param clock: for the deadline of the handshake.
    :param handshake_seconds: how long that may take once TCP is up.
    :ivar receiver: the other protocol.
    """

    _handshake: IDelayedCall | None = None

    def __init__(self, receiver: IProtocol, clock: IReactorTime, handshake_seconds: float) -> None:
        self.receiver = receiver
        self._clock = clock
        self._handshake_seconds = handshake_seconds

    def makeConnection(self, transport: ITransport) -> None:
        """TCP is up, and a proxy has let it through."""
        self.transport = transport
        self.connected = 1
        with suppress(AttributeError):  # only TCP has it
            transport.setTcpNoDelay(True)  # type: ignore[attr-defined]
        if ISSLTransport.providedBy(transport):
            abort = transport.abortConnection
            self._handshake = self._clock.callLater(self._handshake_seconds, abort)
        self.hand_over(transport)

    def hand_over(self, transport: ITransport) -> None:
        """Give the transport to the other protocol."""
        self.receiver.makeConnection(transport)

    def handshakeCompleted(self) -> None:
        """TLS is up."""
        self._stop_waiting()

    def dataReceived(self, data: bytes) -> None:
        """Pass on what the upstream sent."""
        self.receiver.dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is closed."""
        self.connected = 0
        self._stop_waiting()
        self.receiver.connectionLost(reason)

    def _stop_waiting(self) -> None:
        waiting, self._handshake = self._handshake, None
        if waiting is not None and waiting.active():
            waiting.cancel()


class EgressEndpoints:
    """The endpoints of one account, with verified TLS for ``https``.

    :param connect_seconds: how long TCP and a proxy's handshake may take, and TLS after it.
    :param connection: receives on each connection for the protocol that asked for it.
    """

    def __init__(
        self,
        reactor: Any,
        connect_seconds: float,
        egress: EgressPath,
        connection: type[UpstreamConnection] = UpstreamConnection,
    ) -> None:
        self._reactor = reactor
        self._connect_seconds = connect_seconds
        self._egress = egress
        self._connection = connection
        self._endpoints: dict[tuple[bytes, bytes, int], IStreamClientEndpoint] = {}

    def endpoint(self, scheme: bytes, host: bytes, port: int) -> IStreamClientEndpoint:
        """The endpoint of a server; made once, since a TLS one takes 80 µs.

        :param scheme: ``http`` or ``https``.
        :param host: its name or address, without brackets.
        """
        key = scheme, host, port
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
        return ReceivingEndpoint(
            endpoint, lambda receiver: self._connection(receiver, self._reactor, seconds)
        )


@implementer(IStreamClientEndpoint)
class ReceivingEndpoint:
    """Connects as the endpoint that it wraps.

    :param connection: makes what receives on a connection for the wanted protocol.
    """

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        connection: Callable[[IProtocol], UpstreamConnection],
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; the Deferred has the protocol of ``protocolFactory``."""
        factory: Any = _ReceivingFactory(protocolFactory, self._connection)
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(lambda connection: connection.receiver)


class _ReceivingFactory(Factory):
    noisy = False

    def __init__(self, factory: Any, connection: Callable[[IProtocol], UpstreamConnection]) -> None:
        self._factory = factory
        self._connection = connection
        self.doStart = factory.doStart  # type: ignore[method-assign]
        self.doStop = factory.doStop  # type: ignore[method-assign]

    def buildProtocol(self, addr: IAddress | None) -> Protocol | None:
        receiver = self._factory.buildProtocol(addr)
        return None if receiver is None else self._connection(receiver)
