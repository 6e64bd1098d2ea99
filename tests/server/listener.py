"""The clients' listener in memory, for both kinds of clients, on scripted upstreams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import txaio
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure

from gateway.api_keys.keys import KeyRing
from gateway.config import KeySettings, Settings
from gateway.server.connections import ConnectionLimiter
from gateway.server.http_site import ClientSite, Handler
from gateway.server.responses import Responses
from gateway.server.websocket import ResponsesFactory
from tests.server.websocket_client import Transport
from tests.support.events import Json
from tests.support.httpclient import Answer, read_events
from tests.turn.fakes import FakeExchange, World

KEYS = (KeySettings(name="laptop", key="sk-client"), KeySettings(name="desk", key="sk-desk"))


class House:
    """One listener; `more` adds endpoints to that of turns."""

    def __init__(
        self, more: Mapping[str, Mapping[str, Handler]] | None = None, **settings: Any
    ) -> None:
        self.world = World()
        self.reactor = txaio.config.loop = MemoryReactorClock()
        settings.setdefault("keys", KEYS)
        self.settings = Settings(**settings)
        limits = self.settings.limits
        self.limiter = ConnectionLimiter(limits.max_connections, limits.max_incoming_bytes)
        self.tenants = KeyRing(self.settings.keys, self.world.clock.seconds)
        self.websockets = ResponsesFactory(
            self.reactor, self.world.services, self.settings, self.tenants, self.limiter
        )
        self.responses = Responses(self.world.services, self.limiter)
        self.site = ClientSite(
            self.reactor,
            {"/responses": {"POST": self.responses.create}, **(more or {})},
            self.settings,
            self.tenants,
            self.limiter,
            self.websockets,
        )
        self.clients: list[Client] = []

    def client(self, key: str | None = "sk-client") -> Client:
        self.clients.append(Client(self, key))
        return self.clients[-1]

    def sent(self) -> FakeExchange:
        """The last request that reached the upstream."""
        return self.world.exchanges()[-1]

    def check_rest(self) -> None:
        for client in self.clients:
            client.is_lost()
        assert not len(self.limiter), "the door still counts clients"
        assert not self.responses.turns_running
        self.world.check_rest()
        self.reactor.advance(100)  # Autobahn's timers are in buckets that must run out
        calls = self.reactor.getDelayedCalls()
        assert not calls, f"timers outlived their connections: {calls}"


class Client:
    """One connection without a network."""

    def __init__(self, house: House, key: str | None) -> None:
        self.key = key
        self.transport = Transport()
        self.transport.protocol = house.site.buildProtocol(None)
        self.transport.protocol.makeConnection(self.transport)
        self.lost = False

    @property
    def protocol(self) -> Any:
        """Whoever has the connection now."""
        return self.transport.protocol

    def gives(self, data: bytes) -> None:
        """One read's worth of bytes."""
        self.protocol.dataReceived(data)

    def head(
        self,
        method: str = "POST",
        path: str = "/v1/responses",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        fields = {"Host": "gateway.test", **(headers or {})}
        if self.key is not None:
            fields.setdefault("Authorization", f"Bearer {self.key}")
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def request(
        self,
        method: str = "POST",
        path: str = "/v1/responses",
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        length = {"Content-Length": str(len(body))} if body or method == "POST" else {}
        return self.head(method, path, {**(headers or {}), **length}) + body

    def asks(self, *args: Any, **options: Any) -> Answer:
        self.gives(self.request(*args, **options))
        return self.answer()

    def creates(self, headers: Mapping[str, str] | None = None, **members: Any) -> None:
        body = json.dumps({"model": "gpt-5.5", "input": "hi", **members}).encode()
        self.gives(self.request(body=body, headers=headers))

    # ---- what came back

    @property
    def bytes_out(self) -> bytes:
        return bytes(self.transport.value())

    def answer(self) -> Answer:
        """The next answer, which must be whole; it is taken off what came back."""
        answer, rest = read_answer(self.bytes_out)
        self.transport.clear()
        self.transport.io.write(rest)
        return answer

    def stream(self) -> list[Json]:
        """The events of an answer so far; it need not be whole."""
        _, _, body = self.bytes_out.partition(b"\r\n\r\n")
        return read_events(unchunked(body)[0])

    def is_lost(self) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def is_closed(self) -> bool:
        """By the gateway."""
        return bool(self.transport.disconnecting or self.transport.disconnected)


def read_answer(data: bytes) -> tuple[Answer, bytes]:
    head, end, rest = data.partition(b"\r\n\r\n")
    assert end, f"no whole answer came, but {data!r}"
    lines = head.decode("latin-1").split("\r\n")
    headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
    answer = Answer(int(lines[0].split(" ")[1]), headers)
    if headers.get("transfer-encoding") == "chunked":
        answer.body, rest, whole = unchunked(rest)
        assert whole, f"the answer is not whole: {data!r}"
    else:
        length = int(headers.get("content-length", len(rest)))
        assert len(rest) >= length, f"the answer is not whole: {data!r}"
        answer.body, rest = rest[:length], rest[length:]
    return answer, rest


def unchunked(data: bytes) -> tuple[bytes, bytes, bool]:
    """The body in chunks, what follows it, and whether it was whole."""
    body = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return body, data.removeprefix(b"\r\n"), True
        body, data = body + data[:length], data[length + 2 :]
    return body, b"", False
