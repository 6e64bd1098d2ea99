"""A door over scripted upstreams and its clients, joined in memory by a strict client's bytes."""

from __future__ import annotations

import json
from typing import Any

import txaio
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    CloseConnection,
    Event,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from gateway.api_keys.keys import KeyRing
from gateway.config import KeySettings, Settings
from gateway.server.connections import ConnectionLimiter
from gateway.server.websocket import ResponsesFactory
from tests.support.events import Json
from tests.turn.fakes import World

KEY = [("authorization", "Bearer sk-client")]


class Transport(StringTransport):
    """As forgiving as a socket's transport."""

    def unregisterProducer(self) -> None:
        if self.producer is not None:
            super().unregisterProducer()


class Door:
    """The factory over scripted upstreams."""

    def __init__(self, **settings: Any) -> None:
        self.world = World()
        self.reactor = txaio.config.loop = MemoryReactorClock()
        settings.setdefault("keys", (KeySettings(name="laptop", key="sk-client"),))
        self.settings = Settings(**settings)
        limits = self.settings.limits
        self.limiter = ConnectionLimiter(limits.max_connections, limits.max_incoming_bytes)
        self.factory = ResponsesFactory(
            self.reactor,
            self.world.services,
            self.settings,
            KeyRing(self.settings.keys, self.world.clock.seconds),
            self.limiter,
        )
        self.clients: list[Client] = []

    def client(self, path: str = "/v1/responses", headers: Any = KEY, **about: Any) -> Client:
        self.clients.append(Client(self, path, headers, **about))
        return self.clients[-1]

    def check_rest(self) -> None:
        assert not self.factory.connections
        assert not len(self.limiter), "the door still counts clients"
        self.world.check_rest()
        self.reactor.advance(100)  # Autobahn's timers are in buckets that must run out
        calls = self.reactor.getDelayedCalls()
        assert not calls, f"timers outlived their connections: {calls}"


class Client:
    """A client by wsproto, joined to the server's protocol without a network."""

    def __init__(self, door: Door, path: str, headers: Any, extensions: Any = ()) -> None:
        self.transport = Transport()
        self.protocol = door.factory.buildProtocol(None)
        self.protocol.makeConnection(self.transport)
        self.wire = WSConnection(ConnectionType.CLIENT)
        self.events: list[Event] = []
        self.frames: list[Json] = []
        self.lost = False
        request = Request(
            host="gateway.test", target=path, extra_headers=headers, extensions=list(extensions)
        )
        self.protocol.dataReceived(self.wire.send(request))
        self.read()

    def read(self) -> None:
        data = self.transport.value()
        self.transport.clear()
        if not data:
            return
        self.wire.receive_data(data)
        text = ""
        for event in self.wire.events():
            self.events.append(event)
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    self.frames.append(json.loads(text))
                    text = ""

    def sends(self, event: Event) -> None:
        self.protocol.dataReceived(self.wire.send(event))
        self.read()

    def says(self, **message: Any) -> None:
        self.sends(TextMessage(data=json.dumps(message)))

    def create(self, **members: Any) -> None:
        self.says(type="response.create", model="gpt-5.5", input="hi", **members)

    def is_lost(self) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    @property
    def is_open(self) -> bool:
        return self.wire.state is ConnectionState.OPEN

    @property
    def refusal(self) -> tuple[int, dict[str, str], Json]:
        rejected = next(event for event in self.events if isinstance(event, RejectConnection))
        body = b"".join(event.data for event in self.events if isinstance(event, RejectData))
        headers = {name.decode(): value.decode() for name, value in rejected.headers}
        return rejected.status_code, headers, json.loads(body)

    @property
    def close_code(self) -> int | None:
        closes = [event for event in self.events if isinstance(event, CloseConnection)]
        return int(closes[0].code) if closes else None
