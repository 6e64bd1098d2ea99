"""What all HTTP connections share: routes, keys, bounds and deadlines."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

from twisted.internet.protocol import Factory

from gateway.api_keys.keys import KeyRing
from gateway.config import Settings
from gateway.server.connections import ConnectionLimiter
from gateway.server.http_channel import ClientChannel
from gateway.server.routes import RouteTable


class HttpSite(Factory):
    """The factory of the clients' connections.

    :param websockets: what a connection becomes that asks for an upgrade.
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        routes: RouteTable,
        settings: Settings,
        tenants: KeyRing,
        limiter: ConnectionLimiter,
        websockets: Factory,
    ) -> None:
        self.reactor = reactor
        self.routes = routes
        self.limiter = limiter
        self.websockets = websockets
        self.tenants = tenants
        self.max_body_bytes = settings.session.max_message_bytes
        self.head_seconds = settings.timeouts.handshake_seconds
        self.stall_seconds = settings.timeouts.stall_seconds
        self._numbers = itertools.count(1)
        self._start = secrets.token_hex(3)

    def reconfigure(self, settings: Settings) -> None:
        """Take these settings; those that bound a request need a restart."""
        self.stall_seconds = settings.timeouts.stall_seconds

    def buildProtocol(self, addr: Any) -> ClientChannel:
        """A protocol for a client at ``addr``."""
        return ClientChannel(self)

    def next_connection(self) -> str:
        """What journals call the next request: each is a connection of its own."""
        return f"http-{self._start}-{next(self._numbers)}"
