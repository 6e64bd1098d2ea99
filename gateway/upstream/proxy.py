"""An egress proxy: its address, its errors, and its circuit breaker."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from gateway.circuit_breaker import BreakerAttempt, BreakerState, CircuitBreaker

_EXPECTED = "expected http://[user:password@]host:port or socks5://[user:password@]host:port"

#: What RFC 1929 can carry, in bytes; Basic credentials have no such bound.
_MAX_CREDENTIAL_BYTES = 255

#: Failures in a row that open the proxy's circuit breaker.
_FAILURES = 3

#: Its first cooldown, in seconds.
_FIRST_COOLDOWN_SECONDS = 1.0

#: When to ask again while the proxy is being probed, in seconds.
_PROBE_SECONDS = 1.0


class ProxyCredentials(NamedTuple):
    """User name and password for a proxy."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "ProxyCredentials(<hidden>)"


class Proxy(NamedTuple):
    """A proxy of either kind.

    :ivar host: a name or an IP address, the latter without brackets.
    """

    kind: Literal["http", "socks5"]
    host: str
    port: int
    credentials: ProxyCredentials | None = None

    @property
    def address(self) -> str:
        """Host and port, without credentials."""
        return netloc(self.host, self.port)

    @classmethod
    def from_url(cls, url: str) -> Proxy:
        """Read a proxy's URL; its credentials are percent-decoded.

        :raises ValueError: saying what was expected, without quoting the URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # a bad port or a broken IPv6 address
            raise ValueError(_EXPECTED) from None
        kind = {"http": "http", "socks5": "socks5", "socks5h": "socks5"}.get(parts.scheme)
        beyond = parts.path.strip("/") or parts.query or parts.fragment
        if kind is None or not parts.hostname or not port or beyond:
            raise ValueError(_EXPECTED)
        credentials = None
        if parts.username is not None:
            credentials = ProxyCredentials(unquote(parts.username), unquote(parts.password or ""))
            _check(kind, credentials)
        return cls(kind, parts.hostname, port, credentials)  # type: ignore[arg-type]


def _check(kind: str, credentials: ProxyCredentials) -> None:
    if kind == "http" and ":" in credentials.user:
        raise ValueError("expected a user name without a colon for an http:// proxy (RFC 7617 §2)")
    lengths = [len(text.encode()) for text in credentials]
    if kind == "socks5" and not all(0 < length <= _MAX_CREDENTIAL_BYTES for length in lengths):
        raise ValueError(
            f"expected a user name and a password of 1 to {_MAX_CREDENTIAL_BYTES} bytes "
            "for a socks5:// proxy (RFC 1929 §2)"
        )


def netloc(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ProxyFault(enum.Enum):
    """The party at fault when a proxy gives no connection."""

    PROXY = "proxy"
    UPSTREAM = "upstream"


class ProxyRefused(Exception):
    """A proxy refused a handshake.

    :param why: continues a sentence that begins with the proxy; holds no secret.
    """

    def __init__(self, why: str, fault: ProxyFault = ProxyFault.PROXY) -> None:
        super().__init__(why)
        self.why = why
        self.fault = fault


class ProxyError(Exception):
    """A connection through a proxy failed.

    Its text is a sentence without its full stop; it names host and port, never credentials.
    """

    def __init__(self, proxy: Proxy, why: str, fault: ProxyFault = ProxyFault.PROXY) -> None:
        super().__init__(f"The proxy {proxy.address} {why}")
        self.fault = fault


class ProxyHandshake(Protocol):
    """The exchange with a proxy before its connection is the upstream's; knows no transport."""

    def begin(self) -> bytes:
        """The bytes that are sent first."""

    def receive(self, data: bytes) -> bytes:
        """Read what the proxy sent.

        :return: what is sent next, perhaps nothing.
        :raises ProxyRefused: when there will be no connection.
        """

    @property
    def remaining(self) -> bytes | None:
        """None during the handshake; after it, the bytes that the upstream sent already."""


class UnavailableProxy(NamedTuple):
    """Why, and until when (unix seconds), the proxy is not used."""

    why: str
    until: float


class ProxyHealth:
    """The circuit breaker of one proxy, shared by all accounts behind it.

    :param now: unix seconds.
    :param cooldown_max_seconds: the longest cooldown.
    :param jitter: from 0 to 1.
    """

    def __init__(
        self,
        now: Callable[[], float],
        cooldown_max_seconds: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._breaker = CircuitBreaker(
            now, _FAILURES, _FIRST_COOLDOWN_SECONDS, cooldown_max_seconds, jitter
        )
        self._why = ""

    def unavailable(self) -> UnavailableProxy | None:
        """Why the proxy cannot be used now; None when it can, be it for a probe."""
        if self._breaker.usable:
            return None
        if self._breaker.state is BreakerState.PROBING:
            until = self._now() + _PROBE_SECONDS
            return UnavailableProxy(f"{self._why}; it is being probed", until)
        return UnavailableProxy(self._why, self._breaker.until)

    def attempt(self) -> BreakerAttempt | None:
        """Begin a connection attempt; None when none is allowed.

        Its end is reported to ``succeeded``, ``failed`` or ``dropped``.
        """
        return self._breaker.attempt() if self._breaker.usable else None

    def succeeded(self, attempt: BreakerAttempt) -> None:
        """The proxy did its part."""
        self._breaker.succeeded(attempt)

    def failed(self, attempt: BreakerAttempt, why: str) -> float | None:
        """The proxy is at fault.

        :return: its cooldown, in seconds, if this failure opened the circuit breaker.
        """
        trips = self._breaker.trips
        self._why = why
        self._breaker.failed(attempt)
        return None if self._breaker.trips == trips else self._breaker.until - self._now()

    def dropped(self, attempt: BreakerAttempt) -> None:
        """The attempt was cancelled and shows nothing."""
        self._breaker.dropped(attempt)

    def cap_cooldowns(self, cooldown_max_seconds: float) -> None:
        """Change the longest cooldown, in seconds."""
        self._breaker.max_seconds = cooldown_max_seconds

    def clear(self) -> None:
        """Reset the circuit breaker (operator action)."""
        self._breaker.close()
