"""Connections through a proxy, as a Twisted endpoint.

The protocol of the handshake owns the transport first, and passes everything on to the wanted
protocol afterwards: TLS, for an ``https`` upstream.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import error
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from gateway.deadline import Deadline
from gateway.upstream.http_proxy import ConnectHandshake
from gateway.upstream.proxy import (
    Proxy,
    ProxyError,
    ProxyFault,
    ProxyHandshake,
    ProxyHealth,
    ProxyRefused,
)
from gateway.upstream.socks_proxy import SocksHandshake

_log = Logger(namespace="gateway.upstream")

_HANDSHAKES: dict[str, Callable[..., ProxyHandshake]] = {
    "http": ConnectHandshake,
    "socks5": SocksHandshake,
}


@implementer(IStreamClientEndpoint)
class ProxyEndpoint:
    """An upstream behind a proxy.

    :param health: of the proxy; may forbid to connect.
    :param seconds: how long TCP to the proxy and its handshake may take together.
    """

    def __init__(
        self,
        reactor: Any,
        proxy: Proxy,
        health: ProxyHealth,
        host: str,
        port: int,
        seconds: float,
    ) -> None:
        self._reactor = reactor
        self._proxy = proxy
        self._health = health
        self._target = host, port
        self._seconds = seconds
        self._endpoint = HostnameEndpoint(reactor, proxy.host, proxy.port, timeout=seconds)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with a :class:`ProxyError`."""
        health = self._health
        attempt = health.attempt()
        if attempt is None:
            return fail(ProxyError(self._proxy, "failed and is left alone for a while"))
        handshake = _HANDSHAKES[self._proxy.kind](*self._target, self._proxy.credentials)
        tunnel = _Tunnel(self._proxy, handshake, protocolFactory, self._reactor)

        def connected(protocol: IProtocol) -> IProtocol:
            health.succeeded(attempt)
            return protocol

        def failed(failure: Failure) -> Failure:
            problem = failure.value
            if not isinstance(problem, ProxyError):  # cancelled, or a bug
                health.dropped(attempt)
            elif problem.fault is ProxyFault.PROXY:
                seconds = health.failed(attempt, str(problem))
                if seconds is not None:
                    _log.warn(
                        "{why}; left alone for {seconds:.1f} s", why=str(problem), seconds=seconds
                    )
            else:
                health.succeeded(attempt)
            return failure

        return tunnel.open(self._endpoint, self._seconds).addCallbacks(connected, failed)


class _Tunnel(Protocol):
    """One connection to a proxy, and to the upstream behind it."""

    transport: Any = None

    def __init__(
        self,
        proxy: Proxy,
        handshake: ProxyHandshake,
        factory: IProtocolFactory,
        clock: IReactorTime,
    ) -> None:
        self._proxy = proxy
        self._handshake: ProxyHandshake | None = handshake
        self._factory = factory
        self._deadline = Deadline(clock, self._timed_out)
        self._opened: Deferred[IProtocol] | None = Deferred(self._cancelled)
        self._connecting: Deferred[IProtocol] | None = None
        self._inner: IProtocol | None = None

    def open(self, endpoint: IStreamClientEndpoint, seconds: float) -> Deferred[IProtocol]:
        """Connect; the Deferred has the wanted protocol, or fails and nothing is left."""
        opened = self._opened
        assert opened is not None, "a tunnel is opened once"
        self._deadline.start(seconds)
        factory: Any = _TunnelFactory(self, self._factory)
        connecting = self._connecting = endpoint.connect(factory)
        connecting.addErrback(self._not_connected)
        return opened

    # --- the transport's side --------------------------------------------------------

    def connectionMade(self) -> None:
        """TCP is up: begin the handshake."""
        if self._handshake is None:
            self.transport.abortConnection()  # given up while TCP came up
        else:
            self.transport.write(self._handshake.begin())

    def dataReceived(self, data: bytes) -> None:
        """The proxy's part of the handshake; what follows goes to the wanted protocol."""
        handshake = self._handshake
        if handshake is None:
            return  # given up
        try:
            to_send = handshake.receive(data)
        except ProxyRefused as refused:
            self._fail(ProxyError(self._proxy, refused.why, refused.fault))
            return
        if to_send:
            self.transport.write(to_send)
        if handshake.remaining is not None:
            self._hand_over(handshake.remaining)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The proxy, or the upstream behind it, closed the connection."""
        if self._inner is not None:
            self._inner.connectionLost(reason)
        else:
            self._fail(ProxyError(self._proxy, "closed the connection during its handshake"))

    # --- what comes of it ------------------------------------------------------------

    def _hand_over(self, remaining: bytes) -> None:
        inner = self._factory.buildProtocol(self.transport.getPeer())
        if inner is None:
            self._fail(error.NoProtocol())
            return
        opened = self._end_handshake()
        self._inner = inner
        self.dataReceived = inner.dataReceived  # type: ignore[method-assign]
        inner.makeConnection(self.transport)
        if opened is not None:
            opened.callback(inner)  # before the remaining bytes: the request is sent first
        if remaining:
            inner.dataReceived(remaining)

    def _not_connected(self, failure: Failure) -> None:
        if failure.check(error.DNSLookupError):
            why = "has a name that could not be resolved"
        elif failure.check(error.ConnectionRefusedError):
            why = "refused the connection"
        elif failure.check(error.TimeoutError, error.TCPTimedOutError):
            why = "could not be reached in time"
        else:
            why = "could not be reached"
        self._fail(ProxyError(self._proxy, why))

    def _timed_out(self) -> None:
        connected = self.transport is not None
        why = "did not connect in time" if connected else "could not be reached in time"
        self._fail(ProxyError(self._proxy, why))

    def _cancelled(self, _: Deferred[IProtocol]) -> None:
        self._fail(error.ConnectingCancelledError(self._proxy.address))

    def _fail(self, problem: Exception) -> None:
        opened = self._end_handshake()
        if self.transport is not None:
            self.transport.abortConnection()
        elif self._connecting is not None:
            self._connecting.cancel()
        if opened is not None:
            opened.errback(Failure(problem))

    def _end_handshake(self) -> Deferred[IProtocol] | None:
        """Return the Deferred that waits for the handshake; None when it was ended before."""
        self._deadline.stop()
        self._handshake = None
        opened, self._opened = self._opened, None
        return opened


class _TunnelFactory(Factory):
    noisy = False

    def __init__(self, tunnel: _Tunnel, factory: IProtocolFactory) -> None:
        self._tunnel: _Tunnel | None = tunnel
        self._factory = factory

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()

    def buildProtocol(self, addr: IAddress | None) -> _Tunnel | None:
        tunnel, self._tunnel = self._tunnel, None  # once, and no cycle is left
        return tunnel
