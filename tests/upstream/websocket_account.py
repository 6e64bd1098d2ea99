"""One account that is reached over WebSocket, in memory; the test plays its service."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from twisted.internet.defer import Deferred

from gateway.config import AccountSettings
from gateway.credentials.interface import Credentials
from gateway.credentials.static import KeyCredentials
from gateway.protocol.request import read_create, read_members
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.upstream.http import HttpTimeouts, HttpUpstream
from gateway.upstream.websocket import WebSocketUpstream
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_exchange import WebSocketExchange
from gateway.upstream.websocket_pool import SocketBudget, WebSocketPool
from tests.upstream.websocket_wire import MemoryEndpoint, Peer, messages
from tests.upstream.wire import Connection, Heard, Reactor

FIRST_BYTE, IDLE = 120.0, 300.0

CREATED = b'{"type":"response.created","response":{"id":"resp_1"}}'
DELTA = b'{"type":"response.output_text.delta","delta":"x"}'
COMPLETED = b'{"type":"response.completed","response":{"id":"resp_1"}}'
RATE_LIMITS = b'{"type":"codex.rate_limits"}'
AT_ITS_END = (
    b'{"type":"error","status":400,"error":{"type":"invalid_request_error",'
    b'"code":"websocket_connection_limit_reached","message":"60 minutes"}}'
)


class Listener(Heard):
    """A receiver that writes down; ``does`` is called at each step, with its name."""

    def __init__(self, does: Callable[[str], None] = lambda step: None) -> None:
        super().__init__()
        self.does = does
        self.over = False

    def check(self) -> None:
        assert not self.over, "called after it had cancelled or finished"

    def upstream_connected(self) -> None:
        self.check()
        super().upstream_connected()
        self.does("connected")

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        self.check()
        super().upstream_answered(headers)
        self.does("answered")

    def upstream_events(self, events: list[Any]) -> None:
        self.check()
        super().upstream_events(events)
        self.does("events")

    def upstream_ended(self, error: Any) -> None:
        self.check()
        assert not self.endings, "ended twice"
        super().upstream_ended(error)
        self.does("ended")

    @property
    def names(self) -> list[bytes]:
        return [name for name, _ in self.events]


class SocketAccount:
    """The transport of an account over a reactor in memory.

    :param transport: ``auto`` or ``websocket``.
    :param most: sockets that the account may have.
    """

    def __init__(
        self,
        transport: str = "auto",
        most: int = 5,
        most_of_all: int = 10,
        credentials: Credentials | None = None,
        connect: Callable[[str], Any] | None = None,
        **websocket: Any,
    ) -> None:
        self.reactor = Reactor()
        self.reactor.advance(1_000_000)
        settings = AccountSettings(
            name="main",
            base_url="http://upstream.test/v1",
            key="sk-secret",
            transport=transport,  # type: ignore[arg-type]
        )
        section = msgspec.structs.replace(settings.websocket, **websocket)
        settings = msgspec.structs.replace(settings, websocket=section)
        self.http = HttpUpstream(
            self.reactor,
            "main",
            lambda: "http://upstream.test/v1",
            credentials or KeyCredentials("sk-secret"),
            HttpTimeouts(10, FIRST_BYTE, IDLE),
        )
        self.endpoint = MemoryEndpoint()
        self.urls: list[str] = []

        def connects(url: str) -> Any:
            self.urls.append(url)
            return self.endpoint

        self.budget = SocketBudget(most_of_all)
        self.pool = WebSocketPool(self.reactor, most, 3300.0, 1800.0, self.budget)
        self.access = WebSocketAccess(
            self.reactor, settings, self.http, connect or connects, self.pool
        )
        self.upstream = WebSocketUpstream(self.access)
        self.peers: list[Peer] = []

    def turn(self, affinity: str = "thread", tenant: str = "laptop", **members: Any) -> Any:
        """A turn; members of :class:`UpstreamTurn` among ``members`` are its own."""
        own = {name: members.pop(name) for name in UpstreamTurn._fields if name in members}
        body = {"type": "response.create", "input": "hi", "store": False, **members}
        raw = json.dumps(body).encode()
        request = read_create(read_members(raw), len(raw))
        return UpstreamTurn(request, **{"affinity": affinity, "tenant": tenant, **own})

    def prepared(self, heard: Listener, turn: Any = None) -> WebSocketExchange:
        exchange = self.upstream.exchange(turn or self.turn(), heard)
        assert isinstance(exchange, WebSocketExchange)
        return exchange

    def opening(self, turn: Any = None) -> tuple[WebSocketExchange, Listener, Peer]:
        """An exchange whose upgrade is not answered yet."""
        heard = Listener()
        exchange = self.prepared(heard, turn)
        exchange.start()
        return exchange, heard, self.connects()

    def connects(self) -> Peer:
        self.peers.append(self.endpoint.connects())
        return self.peers[-1]

    def sent(self, turn: Any = None) -> tuple[WebSocketExchange, Listener, Peer]:
        """An exchange whose request is sent over a new socket."""
        exchange, heard, peer = self.opening(turn)
        peer.accepts(b"x-codex-plan-type: plus")
        assert heard.connected == 1
        assert len(messages(peer.frames())) == 1
        return exchange, heard, peer

    def streaming(self, turn: Any = None) -> tuple[WebSocketExchange, Listener, Peer]:
        exchange, heard, peer = self.sent(turn)
        peer.says(CREATED)
        assert heard.names == [b"response.created"]
        return exchange, heard, peer

    def served(self, turn: Any = None) -> tuple[WebSocketExchange, Peer]:
        """An exchange that has ended in order."""
        exchange, heard, peer = self.streaming(turn)

        def finishes(step: str) -> None:
            if heard.names[-1] == b"response.completed":
                heard.over = True
                exchange.finish()

        heard.does = finishes
        peer.says(COMPLETED)
        assert heard.endings == []
        return exchange, peer

    def http_connection(self) -> Connection:
        """The connection of the latest request over HTTP."""
        return Connection(self.reactor.tcpClients[-1][2])

    def goes_by_http(self) -> bool:
        return bool(self.reactor.tcpClients)

    def check_rest(self) -> None:
        """Nothing runs any more: no timer is left but those of idle sockets, no room is kept."""
        assert self.pool.opened_now == len(list(self.pool.sockets())), "room is kept for nobody"
        assert self.pool.busy == 0, "a socket is in use, and nobody uses it"
        self.upstream.close()
        assert self.pool.opened_now == 0
        for peer in self.peers:
            assert peer.closed, "a socket was left open"
            if peer.transport.connected:
                peer.transport.connected = False
                peer.loses()
        calls = self.reactor.getDelayedCalls()
        assert not calls, f"timers outlived their exchange: {calls}"


class SlowCredentials:
    """Credentials that come later, and change when they are refused if ``changes``."""

    def __init__(self, changes: bool = True) -> None:
        self.asked: list[Deferred[Mapping[str, str]]] = []
        self.refusals: list[Deferred[bool]] = []
        self.used: list[Mapping[str, str]] = []
        self.cancelled = 0

    def _cancelled(self, _: Any) -> None:
        self.cancelled += 1

    def headers(self) -> Deferred[Mapping[str, str]]:
        self.asked.append(Deferred(self._cancelled))
        return self.asked[-1]

    def refused(self, used: Mapping[str, str]) -> Deferred[bool]:
        self.used.append(used)
        self.refusals.append(Deferred(self._cancelled))
        return self.refusals[-1]

    def secrets(self) -> list[str]:
        return ["sk-secret"]

    def close(self) -> None:
        """Nothing runs."""
