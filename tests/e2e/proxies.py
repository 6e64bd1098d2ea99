"""Proxies on loopback: threads and plain sockets, written from RFC 9110 §9.3.6 and RFC 1928/1929.

Names are resolved here, by a table of the test's own, so that a name which means nothing to the
gateway's machine proves who resolved it.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Callable, Mapping

#: What a proxy does instead of its work; True when the connection stays open.
Misbehaviour = Callable[[socket.socket], bool]


class LoopbackProxy:
    """One proxy; may be stopped and started again on its port.

    :param login: user and password that it wants, or None.
    :param names: where hosts are; others are looked up.
    :ivar misbehaviour: what it does instead of its work.
    :ivar targets: for what connections it was asked, by clients that it let in.
    :ivar accepted: how many connections came.
    """

    scheme = ""

    def __init__(
        self, login: tuple[str, str] | None = None, names: Mapping[str, str] | None = None
    ) -> None:
        self.login = login
        self.names = dict(names or {})
        self.misbehaviour: Misbehaviour | None = None
        self.targets: list[tuple[str, int]] = []
        self.accepted = 0
        self.port = 0
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.start()

    @property
    def url(self) -> str:
        return self.url_with(self.login)

    def url_with(self, login: tuple[str, str] | None) -> str:
        userinfo = f"{login[0]}:{login[1]}@" if login else ""
        return f"{self.scheme}://{userinfo}127.0.0.1:{self.port}"

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        listener = self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Die: nobody listens, and every connection breaks."""
        listener, self._listener = self._listener, None
        for sock in [*self._sockets, *([listener] if listener else [])]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self.accepted += 1
                self._sockets.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.misbehaviour is not None:
                if not self.misbehaviour(client):
                    client.close()
                return
            upstream = self.handshake(client)
            if upstream is None:
                client.close()
                return
            self._sockets.append(upstream)
            threading.Thread(target=_pipe, args=(client, upstream), daemon=True).start()
            _pipe(upstream, client)

    def handshake(self, client: socket.socket) -> socket.socket | None:
        """Speak to the client; returns the connection to the upstream, or None."""
        raise NotImplementedError

    def connect(self, host: str, port: int) -> socket.socket:
        self.targets.append((host, port))
        return socket.create_connection((self.names.get(host, host), port), timeout=10)


class ConnectProxy(LoopbackProxy):
    scheme = "http"

    def handshake(self, client: socket.socket) -> socket.socket | None:
        reader = client.makefile("rb")
        method, target, _ = reader.readline().decode().split(" ")
        fields = {}
        while line := reader.readline().decode().strip():
            name, _, value = line.partition(": ")
            fields[name.lower()] = value
        if method != "CONNECT" or fields.get("host") != target:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            return None
        if self.login is not None:
            wanted = "Basic " + base64.b64encode(":".join(self.login).encode()).decode()
            if fields.get("proxy-authorization") != wanted:
                client.sendall(
                    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
                    b'Proxy-Authenticate: Basic realm="proxy"\r\nContent-Length: 0\r\n\r\n'
                )
                return None
        host, _, port = target.rpartition(":")
        try:
            upstream = self.connect(host.strip("[]"), int(port))
        except OSError:
            client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            return None
        client.sendall(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n")
        return upstream


class SocksProxy(LoopbackProxy):
    scheme = "socks5"

    def handshake(self, client: socket.socket) -> socket.socket | None:
        reader = client.makefile("rb")
        version, count = reader.read(2)
        methods = reader.read(count)
        wanted = 0 if self.login is None else 2
        if version != 5 or wanted not in methods:
            client.sendall(b"\x05\xff")
            return None
        client.sendall(bytes([5, wanted]))
        if self.login is not None:
            assert reader.read(1) == b"\x01"
            user, password = (reader.read(reader.read(1)[0]).decode() for _ in range(2))
            if (user, password) != self.login:
                client.sendall(b"\x01\x01")
                return None
            client.sendall(b"\x01\x00")
        version, command, _, kind = reader.read(4)
        if (version, command) != (5, 1):
            client.sendall(b"\x05\x07\x00\x01" + bytes(6))
            return None
        if kind == 3:
            host = reader.read(reader.read(1)[0]).decode()
        else:
            family = socket.AF_INET if kind == 1 else socket.AF_INET6
            host = socket.inet_ntop(family, reader.read(4 if kind == 1 else 16))
        port = int.from_bytes(reader.read(2), "big")
        try:
            upstream = self.connect(host, port)
        except OSError:
            client.sendall(b"\x05\x05\x00\x01" + bytes(6))
            return None
        client.sendall(b"\x05\x00\x00\x01" + socket.inet_aton("127.0.0.1") + b"\x12\x34")
        return upstream


def _pipe(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for sock in (source, sink):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def hangs(client: socket.socket) -> bool:
    """Takes the connection and says nothing."""
    return True


def answers(data: bytes) -> Misbehaviour:
    """Reads something and answers with this."""

    def answer(client: socket.socket) -> bool:
        client.recv(65536)
        client.sendall(data)
        return False

    return answer


def hangs_up(client: socket.socket) -> bool:
    """Closes at once."""
    return False
