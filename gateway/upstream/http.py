"""Accounts reached over HTTP by treq: what their requests share, and what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred

from gateway.compat import kept_connections
from gateway.credentials.interface import Credentials
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.upstream.agent import connection_pool, http_client
from gateway.upstream.call import HttpCall
from gateway.upstream.egress import EgressPath
from gateway.upstream.exchange import HttpExchange
from gateway.upstream.interface import BodyReceiver, EventReceiver, ForwardedRequest
from gateway.upstream.sending import HttpTimeouts, RequestSender

__all__ = ["HttpTimeouts", "HttpUpstream"]


class HttpUpstream:
    """One account's HTTP side, with connections of its own.

    :param name: the account's.
    :param base_url: tells the base URL, without the trailing ``/responses``.
    :param credentials: what authorizes its requests; closed with it.
    :param egress: how its connections leave the machine; straight when left out.
    :ivar max_kept: idle connections that may be kept.
    """

    def __init__(
        self,
        reactor: Any,
        name: str,
        base_url: Callable[[], str],
        credentials: Credentials,
        timeouts: HttpTimeouts,
        egress: EgressPath | None = None,
        max_kept: int = 1000,
    ) -> None:
        self.max_kept = max_kept
        self._name = name
        self._pool = connection_pool(reactor, max_kept)
        client = http_client(reactor, self._pool, timeouts.connect, egress)
        self._credentials = credentials
        self._sender = RequestSender(reactor, client, base_url, credentials)
        self._timeouts = timeouts

    @property
    def kept(self) -> int:
        """Idle connections that are kept; at most ``max_kept``."""
        return kept_connections(self._pool)

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> HttpExchange:
        """See :class:`~gateway.upstream.interface.Upstream`."""
        return HttpExchange(self._sender, turn, receiver, self._timeouts)

    def forward(self, call: ForwardedRequest, receiver: BodyReceiver) -> HttpCall:
        """See :class:`~gateway.upstream.interface.Upstream`."""
        return HttpCall(self._sender, call, receiver, self._timeouts)

    def holds(self, holder: str) -> bool:
        """Over HTTP any connection will do: the account keeps its responses."""
        return holder == self._name

    def without_secrets(self, said: bytes) -> bytes:
        """See :class:`~gateway.upstream.interface.Upstream`."""
        return self._sender.without_secrets(said)

    def close(self) -> Deferred[None]:
        """Close idle connections, and stop what the credentials run."""
        closed = [self._pool.closeCachedConnections(), maybeDeferred(self._credentials.close)]
        return gatherResults(closed).addCallback(lambda _: None)
