"""What all WebSocket connections share: paths, keys, bounds and times; one session for each.

``GET /v1/responses`` or ``/backend-api/codex/responses`` with an upgrade opens one
(protocol.md §2).
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory
from autobahn.websocket.types import ConnectionRequest

from gateway.api_keys.keys import KeyRing
from gateway.config import Settings
from gateway.protocol.errors import ApiError
from gateway.protocol.headers import forwardable
from gateway.server.connections import ConnectionLimiter
from gateway.server.deflate import accept_deflate
from gateway.server.routes import PREFIXES, nothing_served, parts_of
from gateway.server.session import ClientIdentity, ResponsesSession
from gateway.server.websocket import CLOSE_SECONDS, ResponsesProtocol
from gateway.turn.context import Told, TurnServices

PATHS = tuple(f"{prefix}/responses" for prefix in PREFIXES)

_PARTS = frozenset(map(parts_of, PATHS))

#: A client that sends this header is told the account and the route of each turn.
EXPLAIN = "x-gateway-explain"

#: Sent by every Codex that echoes turn states (protocol.md §2.2, §4.6).
_CODEX = "x-codex-turn-metadata"

#: Pings keep network devices awake; nobody is dropped for not answering them (§2.5).
_PING_SECONDS = 30


class ResponsesFactory(WebSocketServerFactory):
    """Lets clients in and knows who is there.

    :param services: what their turns work with.
    :param tenants: who they are.
    :param limiter: counts the clients of all doors.
    """

    protocol: Any = ResponsesProtocol

    def __init__(
        self,
        reactor: Any,
        services: TurnServices,
        settings: Settings,
        tenants: KeyRing,
        limiter: ConnectionLimiter,
    ) -> None:
        super().__init__(reactor=reactor, server="responses-gateway")
        self.reactor = reactor
        self.max_message_bytes = settings.session.max_message_bytes
        self.compresses = settings.session.compression
        self.stall_seconds = settings.timeouts.stall_seconds
        self._services = services
        self._settings = settings
        self._tenants = tenants
        self._numbers = itertools.count(1)
        self._start = secrets.token_hex(3)
        self._limiter = limiter
        self.incoming = limiter.incoming
        self.setProtocolOptions(
            versions=[13],
            allowNullOrigin=True,
            webStatus=False,
            utf8validateIncoming=False,
            maxMessagePayloadSize=settings.session.max_message_bytes,
            autoFragmentSize=0,
            failByDrop=False,
            openHandshakeTimeout=settings.timeouts.handshake_seconds,
            closeHandshakeTimeout=CLOSE_SECONDS,
            autoPingInterval=_PING_SECONDS,
            autoPingTimeout=0,
            perMessageCompressionAccept=accept_deflate,
        )

    def admit(
        self, protocol: ResponsesProtocol, request: ConnectionRequest, headers: Mapping[str, str]
    ) -> ResponsesSession:
        """Decide on an upgrade.

        :param headers: the request's as bytes; see
            :func:`~gateway.server.http_request.header_texts`.
        :raises ApiError: with the status and headers of the refusal (§2.4).
        """
        if parts_of(request.path) not in _PARTS:
            raise nothing_served(request.path)
        tenant = self._tenants.tenant_of(headers, _host(request.peer))
        if not self._settings.session.websocket or not self._tenants.allows_websocket(tenant):
            raise ApiError(
                426,  # what sends Codex to HTTP (§10.7)
                "invalid_request_error",
                "WebSocket is switched off here; send POST requests to the same URL.",
                "websocket_disabled",
            )
        limiter = self._limiter
        limiter.enter(protocol)
        most = self._tenants.max_connections(tenant, limiter.max_connections)
        limiter.claim(protocol, tenant, most)
        return ResponsesSession(
            self._services,
            self._settings.session,
            self._settings.limits,
            protocol,
            ClientIdentity(
                tenant,
                f"{self._start}-{next(self._numbers)}",
                forwardable(headers),
                _told(headers),
            ),
        )

    def reconfigure(self, settings: Settings) -> None:
        """Use these settings for new connections.

        The connections of a key that was removed or changed are closed after their running turns.
        """
        changed = set(self._settings.keys) - set(settings.keys)
        self._settings = settings
        self.stall_seconds = settings.timeouts.stall_seconds
        gone = {key.name for key in changed if not self._tenants.accepts(key)}
        for session in self.sessions():
            tenant = session.client.tenant
            if tenant in gone or not self._tenants.knows(tenant):
                session.drain()

    @property
    def max_queued_turns(self) -> int:
        """Turns that may wait on one lane."""
        return self._settings.limits.max_queued_turns

    def left(self, protocol: ResponsesProtocol) -> None:
        """A connection ended."""
        self._limiter.leave(protocol)

    @property
    def connections(self) -> list[ResponsesProtocol]:
        """The open ones."""
        return self._limiter.of_kind(ResponsesProtocol)

    def sessions(self) -> list[ResponsesSession]:
        """The sessions of all connections."""
        return [c.session for c in self.connections if c.session is not None]


def _host(peer: str) -> str:
    """The address in Autobahn's ``tcp4:192.0.2.7:40022``."""
    return peer.partition(":")[2].rpartition(":")[0] or peer


def _told(headers: Mapping[str, str]) -> Told:
    """What a client understands or asks for: turn states Codex, the route who sends the header."""
    told = Told.TURN_STATE if _CODEX in headers else Told.NOTHING
    return told | Told.ROUTE if EXPLAIN in headers else told
