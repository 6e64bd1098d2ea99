"""The admin side over its real ``Site``, in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from twisted.internet.address import IPv4Address
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport

from gateway.admin.api import Api
from gateway.admin.auth import AccessControl
from gateway.admin.managed_gateway import ManagedProcess
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.site import AdminSite
from gateway.api_keys.keys import KeyRing
from gateway.config import KeySettings, Settings
from gateway.log import LogThreshold
from gateway.metrics.collector import MetricsCollector
from gateway.routing.model_catalog import ModelCatalog
from gateway.server.connections import ConnectionLimiter
from gateway.server.drain import Drain
from gateway.server.websocket import ResponsesFactory
from gateway.state.keeper import StateFigures
from gateway.state.write_behind import WriteFigures
from gateway.upstream.interface import SocketFigures
from gateway.upstream.proxy import UnavailableProxy
from tests.turn.fakes import World

TOKEN = "t0ken"
BEARER = f"authorization: Bearer {TOKEN}"
OWN = "origin: http://localhost:8081"


#: An account whose service takes no WebSocket at present.
SOCKETS = SocketFigures(
    in_use=2,
    idle=3,
    opening=1,
    most=50,
    most_of_all=1000,
    opened=20,
    lost={"age": 10, "closed 1006": 4},
    why_unavailable="it answered the upgrade with 426",
    unavailable_until=1_800_000_600.0,
    forgets_until=1_800_003_600.0,
)

#: A state that is kept well.
WRITES = WriteFigures(3, 900, 1 << 26, 40, 0, 5, 0.25, 1000.0, None, None)
KEPT = StateFigures("sqlite /var/lib/responses-gateway", WRITES, 8192, 0)


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def cookie(self) -> str:
        """The request header that brings the cookie back."""
        return "cookie: " + self.headers["set-cookie"].partition(";")[0]


class Transport(StringTransport):
    """Tells a connection that was aborted from one that was closed."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def unregisterProducer(self) -> None:
        """As forgiving as a socket's transport."""
        if self.producer is not None:
            super().unregisterProducer()


class Client:
    """One connection."""

    def __init__(self, site: AdminSite, address: str = "127.0.0.1") -> None:
        self.transport = Transport(
            hostAddress=IPv4Address("TCP", "127.0.0.1", 8081),
            peerAddress=IPv4Address("TCP", address, 40000),
        )
        self.channel: Any = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)

    def sends(self, data: bytes) -> None:
        self.channel.dataReceived(data)

    def leaves(self) -> None:
        self.channel.connectionLost(connectionDone)

    @property
    def received(self) -> bytes:
        return bytes(self.transport.value())

    @property
    def answer(self) -> Answer:
        head, _, body = self.received.partition(b"\r\n\r\n")
        assert head, "expected an answer, got nothing"
        status, *rest = head.decode().split("\r\n")
        fields = (line.split(": ", 1) for line in rest)
        return Answer(int(status.split()[1]), {n.lower(): value for n, value in fields}, body)

    @property
    def closed(self) -> bool:
        """By the gateway, at once or after what was written."""
        return bool(self.transport.disconnecting or self.transport.disconnected)


class Way:
    """How an account's connections leave; barred from the start."""

    def __init__(self, barred: UnavailableProxy | None) -> None:
        self._barred = barred

    def unavailable(self) -> UnavailableProxy | None:
        return self._barred

    def clear(self) -> None:
        self._barred = None


class Admin:
    """A gateway of a few accounts and its admin side.

    :param loopback: whether only this machine can reach it.
    """

    def __init__(
        self,
        token: str | None = None,
        accounts: int = 2,
        loopback: bool = True,
        hosts: tuple[str, ...] = (),
        world: World | None = None,
    ) -> None:
        self.reactor = MemoryReactorClock()
        self.world = world or World(accounts)
        self.limiter = ConnectionLimiter(100)
        self.clock = self.world.clock
        self.tenants = KeyRing([KeySettings(name="laptop", key="sk-gw-1")], self.clock.seconds)
        self.websockets = ResponsesFactory(
            self.reactor, self.world.services, Settings(), self.tenants, self.limiter
        )
        self.threshold = LogThreshold("info")
        self.kept: StateFigures | None = KEPT
        self.collector = MetricsCollector(
            self.clock,
            self.world.services,
            self.tenants,
            self.limiter,
            self.websockets,
            ModelCatalog(self.clock),
            lambda: self.kept,
        )
        self.running = RunningGateway(
            self.world.services,
            self.tenants,
            self.limiter,
            self.websockets,
            self.threshold,
            self.collector,
            lambda: 0,
            Drain(self.clock, self.limiter, self.websockets, self.world.services.turn_log),
            lambda: self.kept,
        )
        self.access = AccessControl(token, loopback, hosts, self.clock.seconds)
        self.managed = ManagedProcess(self.running, lambda _: ("text/plain", b""))
        self.api = Api(self.managed, self.access)
        self.site = AdminSite(self.api, self.reactor)
        self.site.startFactory()

    def client(self, address: str = "127.0.0.1") -> Client:
        return Client(self.site, address)

    def ask(
        self,
        path: str,
        *headers: str,
        method: str = "GET",
        body: bytes = b"",
        host: str = "localhost:8081",
        address: str = "127.0.0.1",
    ) -> Answer:
        client = self.client(address)
        length = f"content-length: {len(body)}"
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}", length, *headers, "", ""]
        client.sends("\r\n".join(lines).encode("latin-1") + body)
        answer = client.answer
        client.leaves()
        return answer

    def post(self, path: str, body: Any = None, *headers: str, **more: Any) -> Answer:
        if body is None:
            return self.ask(path, *headers, method="POST", **more)
        raw = json.dumps(body).encode()
        return self.ask(
            path, "content-type: application/json", *headers, method="POST", body=raw, **more
        )

    def form(self, path: str, body: str, *headers: str, **more: Any) -> Answer:
        kind = "content-type: application/x-www-form-urlencoded"
        return self.ask(path, kind, *headers, method="POST", body=body.encode(), **more)

    def json(self, path: str, *headers: str) -> Any:
        answer = self.ask(path, *headers)
        assert answer.status == 200, f"{path} answered {answer.status}: {answer.body!r}"
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        return answer.json

    def log_in(self, *headers: str) -> Answer:
        answer = self.form("/login", f"token={TOKEN}", OWN, *headers)
        assert answer.status == 303, f"the login answered {answer.status}: {answer.body!r}"
        return answer

    def check_nothing_was_done(self) -> None:
        """No account, no binding, no log level was touched, and nobody let in."""
        states = {name: each.health.state.value for name, each in self.world.accounts.items()}
        assert set(states.values()) == {"ready"}, f"something acted on the accounts: {states}"
        assert self.threshold.level == "info", "something changed the log level"
        assert not self.limiter.draining, "something drained the gateway"
        assert not len(self.access.logins), "somebody was logged in"
