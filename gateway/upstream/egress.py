"""How an account's connections leave the machine: straight or by a proxy, and with what TLS."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakValueDictionary

from twisted.internet.endpoints import HostnameEndpoint
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator, IStreamClientEndpoint

from gateway.upstream.proxy import Proxy
from gateway.upstream.proxy_endpoint import ProxyEndpoint
from gateway.upstream.proxy_health import ProxyHealth, UnavailableProxy
from gateway.upstream.tls import AccountTLS


class EgressPath:
    """The way out of one account.

    :param tls: whom the account trusts, and its client certificate.
    :param proxy: None to connect straight.
    :param health: of the proxy; shared by all accounts that use it.
    """

    def __init__(
        self,
        tls: AccountTLS | None = None,
        proxy: Proxy | None = None,
        health: ProxyHealth | None = None,
    ) -> None:
        assert (proxy is None) == (health is None), "a proxy and its health go together"
        self._tls = tls or AccountTLS()
        self.proxy = proxy
        self.health = health

    def unavailable(self) -> UnavailableProxy | None:
        """Why, and until when, no account behind its proxy can be used; None when it can."""
        return None if self.health is None else self.health.unavailable()

    def clear(self) -> None:
        """By word of the operator nothing is held against its proxy."""
        if self.health is not None:
            self.health.clear()

    def endpoint(
        self, reactor: Any, host: str, port: int, connect_seconds: float
    ) -> IStreamClientEndpoint:
        """TCP to an upstream, or a proxy's connection to it.

        :param connect_seconds: how long it may take, a proxy's handshake included.
        """
        if self.proxy is None or self.health is None:
            return HostnameEndpoint(reactor, host, port, timeout=connect_seconds)
        return ProxyEndpoint(reactor, self.proxy, self.health, host, port, connect_seconds)

    def tls(self, host: bytes, port: int) -> IOpenSSLClientConnectionCreator:
        """What goes over it for ``https``."""
        return self._tls.creatorForNetloc(host, port)


class EgressPaths:
    """Makes egresses; those with the same proxy share what is known of it.

    Credentials are part of a proxy: some sell a way out for each user name.

    :param now: unix seconds.
    :param cooldown_max_seconds: the longest that a broken proxy is left alone.
    """

    def __init__(self, now: Callable[[], float], cooldown_max_seconds: float) -> None:
        self._now = now
        self._cooldown_max_seconds = cooldown_max_seconds
        self._health: WeakValueDictionary[Proxy, ProxyHealth] = WeakValueDictionary()

    def cap_rests(self, cooldown_max_seconds: float) -> None:
        """Another bound on how long broken proxies are left alone."""
        self._cooldown_max_seconds = cooldown_max_seconds
        for health in self._health.values():
            health.cap_rests(cooldown_max_seconds)

    def egress(
        self,
        proxy: str | None = None,
        ca_file: str | None = None,
        client_cert_file: str | None = None,
        client_key_file: str | None = None,
    ) -> EgressPath:
        """The way out that these settings describe.

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
