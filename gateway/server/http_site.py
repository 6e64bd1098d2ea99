"""The clients' listener: the API's endpoints, and which requests are accepted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from twisted.internet.protocol import Factory

from gateway.api_keys.keys import KeyRing
from gateway.config import Settings
from gateway.protocol.errors import ApiError
from gateway.server.chat import ChatCompletions
from gateway.server.connections import ConnectionLimiter
from gateway.server.forwarding import InputEndpoints, StoredResponses
from gateway.server.http_channel import HttpSite
from gateway.server.http_request import ClientRequest, WireRequest
from gateway.server.models import Models
from gateway.server.responses import Responses
from gateway.server.routes import (
    PREFIXES,
    NoRoute,
    Route,
    RouteTable,
    nothing_served,
    parts_of,
    wrong_method,
)

#: Serves one request of a tenant: answers it now or later, or raises an ``ApiError``.
Handler = Callable[[ClientRequest, str], None]

#: The handlers of each path template, by method, without the API's prefixes.
Endpoints = Mapping[str, Mapping[str, Handler]]


def endpoints(
    responses: Responses,
    stored: StoredResponses,
    inputs: InputEndpoints,
    models: Models,
    chat: ChatCompletions,
) -> Endpoints:
    """What is served to clients."""
    return {
        "/responses": {"POST": responses.create},
        "/responses/compact": {"POST": inputs.compact},
        "/responses/input_tokens": {"POST": inputs.count},
        "/responses/{response_id}": {"GET": stored.retrieve, "DELETE": stored.delete},
        "/responses/{response_id}/cancel": {"POST": stored.cancel},
        "/responses/{response_id}/input_items": {"GET": stored.input_items},
        "/models": {"GET": models.index},
        "/models/{model}": {"GET": models.retrieve},
        "/chat/completions": {"POST": chat.complete},
    }


class ClientSite(HttpSite):
    """The factory of the clients' connections.

    :param table: what is served under each of the API's prefixes.
    :param websockets: the factory of the protocols that connections are upgraded to.
    """

    headers: Mapping[str, str] = {"server": "responses-gateway"}

    def __init__(
        self,
        reactor: Any,
        table: Endpoints,
        settings: Settings,
        keys: KeyRing,
        limiter: ConnectionLimiter,
        websockets: Factory,
    ) -> None:
        timeouts = settings.timeouts
        super().__init__(
            reactor,
            limiter,
            timeouts.handshake_seconds,
            timeouts.stall_seconds,
            settings.session.max_message_bytes,
        )
        self.websockets = websockets
        self._keys = keys
        self._routes = RouteTable(
            {prefix + path: methods for path, methods in table.items() for prefix in PREFIXES}
        )

    def reconfigure(self, settings: Settings) -> None:
        """Take these settings; those that bound a request need a restart."""
        self.stall_seconds = settings.timeouts.stall_seconds

    def find(self, method: str, path: str) -> Route[Handler]:
        """The route of a request.

        :param path: as it was sent, without the query.
        :raises ApiError: 404 for an unknown path, 405 with ``allow`` for a wrong method.
        """
        try:
            found = self._routes.find(method, parts_of(path))
        except NoRoute as error:
            if not error.allowed:
                raise nothing_served(path) from None
            raise wrong_method(method, path, error.allowed) from None
        parameters = {name: unquote(value) for name, value in found.parameters.items()}
        return Route(found.handler, parameters)

    def accept(self, request: WireRequest) -> Callable[[ClientRequest], None]:
        """Admit the connection, find the route, and authenticate the client.

        A connection without a valid key is closed after its answer, so that it does not count
        against the connections of clients with a key.
        """
        channel = request.channel
        try:
            channel.enter()
            route = self.find(request.method.decode("latin-1"), request.path.decode("latin-1"))
            peer = channel.transport.getPeer()
            address = str(getattr(peer, "host", peer))
            tenant = request.tenant = self._keys.tenant_of(request.headers, address)
            most = self._keys.max_connections(tenant, self.limiter.max_connections)
            self.limiter.claim(channel, tenant, most)
        except ApiError:
            if not request.tenant and self._keys.is_unknown(request.headers):
                channel.is_last = True
            raise

        def serve(client_request: ClientRequest) -> None:
            client_request.parameters = route.parameters
            route.handler(client_request, tenant)

        return serve
