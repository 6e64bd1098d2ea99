"""SOCKS 5 (RFC 1928) with user name and password (RFC 1929); the proxy resolves names."""

from __future__ import annotations

import enum
import ipaddress
import struct

from gateway.upstream.proxy import ProxyCredentials, ProxyFault, ProxyRefused, netloc

_VERSION = 5
_NO_AUTHENTICATION = 0
_USER_AND_PASSWORD = 2
_NONE_ACCEPTABLE = 0xFF
_CONNECT = 1
_IPV4, _NAME, _IPV6 = 1, 3, 4

#: Replies (RFC 1928 §6, field REP) that are faults of the upstream, and those of the proxy.
_FAULTS_OF_THE_UPSTREAM = {
    2: "connection not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
}
_FAULTS_OF_THE_PROXY = {
    1: "general failure",
    7: "command not supported",
    8: "address type not supported",
}


class _Awaits(enum.Enum):
    """The answer of the proxy that comes next."""

    METHOD = "method"
    AUTHENTICATION = "authentication"
    REPLY = "reply"
    NOTHING = "nothing"


class SocksHandshake:
    """The handshake of one CONNECT command, a :class:`~gateway.upstream.proxy.ProxyHandshake`.

    :param host: the upstream's name, at most 255 bytes of ASCII, or its address.
    """

    def __init__(self, host: str, port: int, credentials: ProxyCredentials | None) -> None:
        self._host = host
        self._port = port
        self._credentials = credentials
        self._awaits = _Awaits.METHOD
        self._received = b""

    @property
    def remaining(self) -> bytes | None:
        """None during the handshake; then the bytes after it."""
        return self._received if self._awaits is _Awaits.NOTHING else None

    def begin(self) -> bytes:
        """The methods that are offered (RFC 1928 §3)."""
        methods = [_NO_AUTHENTICATION]
        if self._credentials is not None:
            methods.append(_USER_AND_PASSWORD)
        return bytes([_VERSION, len(methods), *methods])

    def receive(self, data: bytes) -> bytes:
        """Read on; every answer of the proxy is shorter than 263 bytes."""
        self._received += data
        to_send = b""
        if self._awaits is _Awaits.METHOD:
            to_send += self._method()
        if self._awaits is _Awaits.AUTHENTICATION:
            to_send += self._authenticated()
        if self._awaits is _Awaits.REPLY:
            self._reply()
        return to_send

    def _method(self) -> bytes:
        """RFC 1928 §3: the method that the proxy chose."""
        if self._received[:1] not in (b"", bytes([_VERSION])):
            raise ProxyRefused("does not speak SOCKS 5")
        if len(self._received) < 2:
            return b""
        method = self._take(2)[1]
        if method == _NO_AUTHENTICATION:
            self._awaits = _Awaits.REPLY
            return self._request()
        if method == _USER_AND_PASSWORD and self._credentials is not None:
            self._awaits = _Awaits.AUTHENTICATION
            user, password = (text.encode() for text in self._credentials)
            return b"\x01%c%b%c%b" % (len(user), user, len(password), password)
        if method in (_NONE_ACCEPTABLE, _USER_AND_PASSWORD):
            raise ProxyRefused(
                "wants credentials" if self._credentials is None else "wants no password"
            )
        raise ProxyRefused("chose a method that was not offered")

    def _authenticated(self) -> bytes:
        """RFC 1929 §2: its version is not looked at, since some proxies send another."""
        if len(self._received) < 2:
            return b""
        if self._take(2)[1] != 0:
            raise ProxyRefused("does not accept the credentials")
        self._awaits = _Awaits.REPLY
        return self._request()

    def _request(self) -> bytes:
        """RFC 1928 §4."""
        try:
            address = ipaddress.ip_address(self._host)
        except ValueError:
            name = self._host.encode("ascii")
            where = b"%c%c%b" % (_NAME, len(name), name)
        else:
            where = bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed
        return bytes([_VERSION, _CONNECT, 0]) + where + struct.pack("!H", self._port)

    def _reply(self) -> None:
        """RFC 1928 §6; the address in it is of no use, but has a length."""
        received = self._received
        if received[:1] not in (b"", bytes([_VERSION])):
            raise ProxyRefused("does not speak SOCKS 5")
        if len(received) >= 2 and received[1] != 0:
            raise self._refused(received[1])
        if len(received) < 5:
            return
        sizes = {_IPV4: 4, _IPV6: 16, _NAME: 1 + received[4]}
        if received[3] not in sizes:
            raise ProxyRefused("sent a broken SOCKS 5 reply")
        length = 4 + sizes[received[3]] + 2
        if len(received) >= length:
            self._take(length)
            self._awaits = _Awaits.NOTHING

    def _refused(self, code: int) -> ProxyRefused:
        target = netloc(self._host, self._port)
        if code in _FAULTS_OF_THE_UPSTREAM:
            why = f"does not connect to {target} ({_FAULTS_OF_THE_UPSTREAM[code]})"
            return ProxyRefused(why, ProxyFault.UPSTREAM)
        words = _FAULTS_OF_THE_PROXY.get(code, f"SOCKS reply {code}")
        return ProxyRefused(f"does not connect to {target} ({words})")

    def _take(self, length: int) -> bytes:
        taken, self._received = self._received[:length], self._received[length:]
        return taken
