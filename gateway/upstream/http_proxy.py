"""CONNECT through an HTTP proxy (RFC 9110 §9.3.6), with Basic credentials (RFC 7617)."""

from __future__ import annotations

import base64
import re

from gateway.upstream.proxy import ProxyCredentials, ProxyFault, ProxyRefused, netloc

#: The largest head of an answer, in bytes.
MAX_HEAD = 16_384

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")

#: Statuses below 500 that are faults of the proxy, not of the upstream.
_FAULTS_OF_THE_PROXY = {
    402: "wants to be paid (status 402)",
    407: "wants credentials (status 407)",
    429: "has had too many requests (status 429)",
}


class ConnectHandshake:
    """One CONNECT and its answer: a :class:`~gateway.upstream.proxy.ProxyHandshake`.

    :param host: the upstream's name, which the proxy resolves, or address.
    """

    def __init__(self, host: str, port: int, credentials: ProxyCredentials | None) -> None:
        self._target = netloc(host, port)
        self._credentials = credentials
        self._received = b""
        self._open = False

    @property
    def remaining(self) -> bytes | None:
        """None during the handshake; then the bytes after it."""
        return self._received if self._open else None

    def begin(self) -> bytes:
        """The request."""
        lines = [f"CONNECT {self._target} HTTP/1.1", f"Host: {self._target}"]
        if self._credentials is not None:
            pair = ":".join(self._credentials)
            lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")

    def receive(self, data: bytes) -> bytes:
        """Read the head of the answer; a 2xx has no body, and a 1xx is not the last one."""
        self._received += data
        while (end := _END_OF_HEAD.search(self._received)) is not None and end.end() <= MAX_HEAD:
            status = self._status()
            self._received = self._received[end.end() :]
            if status >= 200:
                self._check(status)
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

    def _check(self, status: int) -> None:
        if status < 300:
            return
        if status == 407 and self._credentials is not None:
            raise ProxyRefused("does not accept the credentials (status 407)")
        if status in _FAULTS_OF_THE_PROXY:
            raise ProxyRefused(_FAULTS_OF_THE_PROXY[status])
        fault = ProxyFault.PROXY if status >= 500 else ProxyFault.UPSTREAM
        raise ProxyRefused(f"does not connect to {self._target} (status {status})", fault)
