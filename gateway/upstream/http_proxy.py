"""CONNECT through an HTTP proxy (RFC 9110 §9.3.6), with Basic credentials (RFC 7617)."""

from __future__ import annotations

import base64
import re

from gateway.upstream.proxy import ProxyCredentials, ProxyFault, ProxyRefused, netloc

#: How large the heads of the proxy's answers may be, in bytes.
MAX_HEAD = 16_384

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")

#: Answers below 500 that say something of the proxy rather than of the upstream.
_OF_THE_PROXY = {
    402: "wants to be paid (status 402)",
    407: "wants credentials (status 407)",
    429: "has had too many requests (status 429)",
}


class ConnectHandshake:
    """One CONNECT and its answer; see :class:`~gateway.upstream.proxy.Handshake`.

    :param host: the upstream's name, which the proxy resolves, or address.
    """

    def __init__(self, host: str, port: int, login: ProxyCredentials | None) -> None:
        self._target = netloc(host, port)
        self._login = login
        self._received = b""
        self._open = False

    @property
    def rest(self) -> bytes | None:
        """None while it goes on; then what came after its end."""
        return self._received if self._open else None

    def begin(self) -> bytes:
        """The request."""
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._login is not None:
            pair = f"{self._login.user}:{self._login.password}"
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def receive(self, data: bytes) -> bytes:
        """Read the head of the answer; a 2xx has no body, and a 1xx is not the last one."""
        self._received += data
        while (end := _END_OF_HEAD.search(self._received)) is not None and end.end() <= MAX_HEAD:
            status = self._status()
            self._received = self._received[end.end() :]
            if status >= 200:
                self._judge(status)
                self._open = True
                return b""
        if self._received[:7] != b"HTTP/1."[: len(self._received)]:
            raise ProxyRefused("does not speak HTTP")
        if len(self._received) > MAX_HEAD:
            raise ProxyRefused("sent an endless answer to CONNECT")
        return b""

    def _status(self) -> int:
        line = _STATUS_LINE.match(self._received)
        if line is None:
            raise ProxyRefused("does not speak HTTP")
        return int(line[1])

    def _judge(self, status: int) -> None:
        if status < 300:
            return
        if status == 407 and self._login is not None:
            raise ProxyRefused("does not accept the credentials (status 407)")
        if status in _OF_THE_PROXY:
            raise ProxyRefused(_OF_THE_PROXY[status])
        blame = ProxyFault.PROXY if status >= 500 else ProxyFault.UPSTREAM
        raise ProxyRefused(f"does not connect to {self._target} (status {status})", blame)
