"""A proxy between the gateway and its upstreams: where it is, and what can be wrong with it."""

from __future__ import annotations

import enum
from typing import Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

_WORDS = "expected http://[user:password@]host:port or socks5://[user:password@]host:port"

#: What RFC 1929 can carry, in bytes; Basic credentials have no such bound.
_MAX_CREDENTIAL = 255


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
