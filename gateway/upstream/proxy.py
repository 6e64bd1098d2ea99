"""A proxy between the gateway and its upstreams: where it is, and what can be wrong with it."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from gateway.circuit_breaker import BreakerAttempt, BreakerState, CircuitBreaker

_WORDS = "expected http://[user:password@]host:port or socks5://[user:password@]host:port"

#: What RFC 1929 can carry, in bytes; Basic credentials have no such bound.
_MAX_CREDENTIAL = 255

#: Failures in a row that make the proxy rest.
_FAILURES = 3

#: How long its first rest is, in seconds.
_FIRST_REST = 1.0

#: How soon somebody who found it being probed may ask again, in seconds.
_PROBE_TAKES = 1.0


class ProxyCredentials(NamedTuple):
    """What the proxy wants to know of us."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Login(<hidden>)"


class Proxy(NamedTuple):
    """A proxy of either kind.

    :ivar host: a name or an IP address, the latter without brackets.
    """

    kind: Literal["http", "socks5"]
    host: str
    port: int
    login: ProxyCredentials | None = None

    @property
    def place(self) -> str:
        """Host and port, fit to be shown."""
        return netloc(self.host, self.port)

    @classmethod
    def from_url(cls, url: str) -> Proxy:
        """Read a proxy's URL; what it stands for is percent-decoded.

        :raises ValueError: saying what was expected, without a word of the URL.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:  # a bad port or a broken IPv6 address
            raise ValueError(_WORDS) from None
        kind = {"http": "http", "socks5": "socks5", "socks5h": "socks5"}.get(parts.scheme)
        beyond = parts.path.strip("/") or parts.query or parts.fragment
        if kind is None or not parts.hostname or not port or beyond:
            raise ValueError(_WORDS)
        login = None
        if parts.username is not None:
            login = ProxyCredentials(unquote(parts.username), unquote(parts.password or ""))
            _check(kind, login)
        return cls(kind, parts.hostname, port, login)  # type: ignore[arg-type]


def _check(kind: str, login: ProxyCredentials) -> None:
    if kind == "http" and ":" in login.user:
        raise ValueError("expected a user name without a colon for an http:// proxy (RFC 7617 §2)")
    lengths = [len(text.encode()) for text in login]
    if kind == "socks5" and not all(0 < length <= _MAX_CREDENTIAL for length in lengths):
        raise ValueError(
            f"expected a user name and a password of 1 to {_MAX_CREDENTIAL} bytes "
            "for a socks5:// proxy (RFC 1929 §2)"
        )


def netloc(host: str, port: int) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ProxyFault(enum.Enum):
    """Whose fault it is that a proxy gives no connection."""

    PROXY = "proxy"
    UPSTREAM = "upstream"


class ProxyRefused(Exception):
    """A proxy's answer to a handshake is no connection.

    :param why: goes on after the proxy's name; never a secret.
    """

    def __init__(self, why: str, blame: ProxyFault = ProxyFault.PROXY) -> None:
        super().__init__(why)
        self.why = why
        self.blame = blame


class ProxyError(Exception):
    """There is no way through a proxy.

    Its text is a sentence without its full stop; it names host and port, never credentials.
    """

    def __init__(self, proxy: Proxy, why: str, blame: ProxyFault = ProxyFault.PROXY) -> None:
        super().__init__(f"The proxy {proxy.place} {why}")
        self.blame = blame


class Handshake(Protocol):
    """What is said to a proxy before its connection is the upstream's; knows no transport."""

    def begin(self) -> bytes:
        """What we send first."""

    def receive(self, data: bytes) -> bytes:
        """Read what the proxy sent.

        :return: what we send next, perhaps nothing.
        :raises Refused: when it will not become a connection.
        """

    @property
    def rest(self) -> bytes | None:
        """None while it goes on; then what came after its end, from the upstream."""


class UnavailableProxy(NamedTuple):
    """Why, and until when (unix seconds), the proxy is not used."""

    why: str
    until: float


class ProxyHealth:
    """How one proxy has been of late; knows no Twisted.

    :param now: unix seconds.
    :param cooldown_max_seconds: the longest that the proxy is left alone.
    :param jitter: from 0 to 1.
    """

    def __init__(
        self,
        now: Callable[[], float],
        cooldown_max_seconds: float,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._now = now
        self._breaker = CircuitBreaker(now, _FAILURES, _FIRST_REST, cooldown_max_seconds, jitter)
        self._why = ""

    def unavailable(self) -> UnavailableProxy | None:
        """Why it cannot be used now; None when it can, be it for a probe."""
        if self._breaker.usable:
            return None
        if self._breaker.state is BreakerState.PROBING:
            return UnavailableProxy(f"{self._why}; it is being probed", self._now() + _PROBE_TAKES)
        return UnavailableProxy(self._why, self._breaker.until)

    def attempt(self) -> BreakerAttempt | None:
        """A connection attempt begins; None when none may.  It ends in one of the following."""
        return self._breaker.attempt() if self._breaker.usable else None

    def succeeded(self, attempt: BreakerAttempt) -> None:
        """The proxy did its part."""
        self._breaker.succeeded(attempt)

    def failed(self, attempt: BreakerAttempt, why: str) -> float | None:
        """The proxy is at fault.

        :return: for how long it rests, in seconds, when this is what makes it rest.
        """
        trips = self._breaker.trips
        self._why = why
        self._breaker.failed(attempt)
        return None if self._breaker.trips == trips else self._breaker.until - self._now()

    def dropped(self, attempt: BreakerAttempt) -> None:
        """Nobody wanted to know any more."""
        self._breaker.dropped(attempt)

    def cap_cooldowns(self, cooldown_max_seconds: float) -> None:
        """Another bound on how long the proxy is left alone."""
        self._breaker.max_seconds = cooldown_max_seconds

    def clear(self) -> None:
        """By word of the operator nothing is held against it."""
        self._breaker.close()
