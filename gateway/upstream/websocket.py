"""The transport of an account that is reached over WebSocket (protocol.md §8.7).

What a WebSocket cannot carry goes over HTTP: forwarded requests, responses in the background, and
requests that are too large.
"""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred

from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.websocket_messages import create_message
from gateway.upstream.interface import (
    BodyReceiver,
    EventReceiver,
    ForwardedRequest,
    SocketFigures,
    UpstreamExchange,
)
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_exchange import WebSocketExchange


class WebSocketUpstream:
    """One account, reached over WebSocket.

    :param access: its sockets, and its side over HTTP.
    """

    def __init__(self, access: WebSocketAccess) -> None:
        self.access = access
        self._http = access.http

    @property
    def warms(self) -> bool:
        """Whether sockets can be opened now."""
        return self.access.unavailable() is None

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> UpstreamExchange:
        """Encode a turn; one that WebSocket cannot carry goes by HTTP."""
        access = self.access
        avoids = turn.avoids_websocket and access.falls_back
        over_http = turn.request.background or avoids or access.unavailable() is not None
        if over_http and turn.holder is None and not turn.request.prewarm:
            return self._http.exchange(turn, receiver)
        return WebSocketExchange(access, turn, create_message(turn), receiver)

    def forward(self, request: ForwardedRequest, receiver: BodyReceiver) -> UpstreamExchange:
        """Prepare a request that is sent as it is, over HTTP."""
        return self._http.forward(request, receiver)

    def holds(self, holder: str) -> bool:
        """Whether it is the account's name, or the token of a socket's latest response."""
        return self._http.holds(holder) or self.access.holding(holder) is not None

    def sockets(self) -> SocketFigures:
        """The counts of its WebSockets, and whether more can be had."""
        return self.access.figures()

    def forget(self) -> None:
        """Open WebSockets again, and let them continue what is not stored."""
        self.access.forget()

    def continued(self, was: bool) -> None:
        """Learn whether sockets continue what is not stored."""
        if was:
            self.access.continued()
        else:
            self.access.missed()

    def secrets(self) -> Sequence[str]:
        """The current secrets of its credentials."""
        return self._http.secrets()

    def without_secrets(self, text: bytes) -> bytes:
        """What the account answered, without its secrets."""
        return self._http.without_secrets(text)

    def close(self) -> Deferred[None]:
        """Close all sockets and connections."""
        return self.access.stop()
