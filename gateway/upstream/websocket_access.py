"""How turns of one account get WebSockets: free ones, new ones, and when none can be had.

A service that takes no WebSocket is remembered for minutes, so that turns go over HTTP at once, and
so are sockets that forget what they should hold (protocol.md §8.7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import AccountSettings
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.websocket_messages import (
    UpgradeRefusal,
    handshake_authorization,
    handshake_headers,
    names_a_session,
)
from gateway.upstream.agent import encoded_url
from gateway.upstream.errors import log_bug
from gateway.upstream.http import HttpUpstream
from gateway.upstream.interface import SocketFigures
from gateway.upstream.websocket_client import (
    POLICY_VIOLATION,
    ClosedSocket,
    UpstreamSocket,
    dial,
)
from gateway.upstream.websocket_pool import PooledSocket, SocketKey, WebSocketPool
from gateway.upstream.websocket_upgrade import Handshake

#: How long a service that takes no WebSocket is not asked again, and one that could not be
#: reached by it, in seconds.
_NO_WEBSOCKET_SECONDS = 600.0
_UNREACHABLE_SECONDS = 30.0

#: Sockets in a row that may be lost before HTTP is used for a while.
_MOST_LOSSES = 3

#: Misses in a row on sockets that should have known the response, after which their responses are
#: not continued for a while, in seconds.
_MOST_MISSES = 3
_MISSES_SECONDS = 3600.0

#: How much of a service's own words an error has, in characters.
_MAX_SAID = 200

_log = Logger(namespace="gateway.upstream")


class WebSocketAccess:
    """The sockets of one account, and what was learned of them.

    :param http: the same account over HTTP; its credentials and timeouts hold for both.
    :param connect: makes the endpoint for a URL with the scheme ``http`` or ``https``.
    :param pool: the account's sockets.
    :ivar falls_back: whether turns may go over HTTP in place of a WebSocket.
    """

    def __init__(
        self,
        reactor: Any,
        settings: AccountSettings,
        http: HttpUpstream,
        connect: Callable[[str], IStreamClientEndpoint],
        pool: WebSocketPool,
    ) -> None:
        self.reactor = reactor
        self.http = http
        self.pool = pool
        self.falls_back = settings.transport == "auto"
        self._settings = settings
        self._connect = connect
        self._unavailable_until = 0.0
        self._why_unavailable: str | None = None
        self._misses = 0
        self._losses = 0
        self._mistrusted_until = 0.0
        self._filling: Deferred[Any] | None = None

    # --- whether sockets can be opened -----------------------------------------------

    def unavailable(self) -> str | None:
        """Why no socket is opened now, where HTTP is used in its place; None if one may be."""
        if not self.falls_back or self._unavailable_until <= self.reactor.seconds():
            return None
        return self._why_unavailable

    def could_not_open(self, refusal: UpgradeRefusal | None, why: str) -> None:
        """Remember that no socket could be opened.

        :param refusal: how the upgrade was refused; None if there was no answer to it.
        """
        lasting = refusal is UpgradeRefusal.NO_WEBSOCKET
        seconds = _NO_WEBSOCKET_SECONDS if lasting else _UNREACHABLE_SECONDS
        self._unavailable_until = self.reactor.seconds() + seconds
        self._why_unavailable = why
        if self.falls_back:
            _log.info(
                "account {account} is reached over HTTP for {seconds:g} seconds: {why}",
                account=self._settings.name,
                seconds=seconds,
                why=why,
            )

    def figures(self) -> SocketFigures:
        """The counts of the sockets, and whether more can be had."""
        why, forgets_until = self.unavailable(), self._mistrusted_until
        return self.pool.figures()._replace(
            why_unavailable=why,
            unavailable_until=None if why is None else self._unavailable_until,
            forgets_until=forgets_until if forgets_until > self.reactor.seconds() else None,
        )

    def forget(self) -> None:
        """Try everything again: the service may have changed."""
        self._unavailable_until = self._mistrusted_until = 0.0
        self._misses = self._losses = 0

    def lost(self, closed: ClosedSocket, answered: bool) -> None:
        """A socket was lost while a response ran on it.

        Several in a row, with no response between them, mean that sockets do not work now.  So does
        a first one with 1008: ChatGPT's backend refuses accounts by that after it has answered 101.

        :param answered: whether an event had come.
        """
        self._losses += 1
        refused = closed.code == POLICY_VIOLATION and not answered
        if refused or self._losses >= _MOST_LOSSES:
            self._losses = 0
            self.could_not_open(None, f"WebSockets are closed while they are used ({closed})")

    def served(self) -> None:
        """A response has ended in order."""
        self._losses = 0

    def without_secrets(self, said: str) -> str:
        """The beginning of what the service said, without the account's secrets."""
        return self.http.without_secrets(said.encode()).decode(errors="replace")[:_MAX_SAID]

    # --- what sockets continue -------------------------------------------------------

    def is_held_by_socket(self, turn: UpstreamTurn) -> bool:
        """Whether the response to ``turn`` can be continued on its socket only."""
        settings = self._settings.websocket
        return settings.reuses_ids if turn.is_stored else settings.continues_unstored

    def holding(self, token: str) -> PooledSocket | None:
        """The socket that can continue the response of ``token``, and has shown that it does."""
        trusted = self._mistrusted_until <= self.reactor.seconds()
        return self.pool.holding(token) if trusted else None

    def continued(self) -> None:
        """A socket continued its latest response."""
        self._misses = 0

    def missed(self) -> None:
        """A socket did not know its latest response.  Some services forget all of them."""
        self._misses += 1
        if self._misses >= _MOST_MISSES:
            self._misses = 0
            self._mistrusted_until = self.reactor.seconds() + _MISSES_SECONDS

    # --- sockets ---------------------------------------------------------------------

    def key_of(self, turn: UpstreamTurn) -> SocketKey:
        """Whose sockets a turn may use; each lane of a conversation has its own."""
        return SocketKey(turn.tenant, (turn.affinity, turn.request.stream_id))

    def open(
        self, turn: UpstreamTurn | None, authorization: Mapping[str, str]
    ) -> tuple[Deferred[UpstreamSocket], bool]:
        """Open a socket.

        :param turn: the first one on it; None for a spare socket, which names no client.
        :return: the socket, and whether it names a client's session.
        """
        settings = self._settings
        headers = handshake_headers(turn, list(settings.headers.items()), settings.websocket.beta)
        url = encoded_url(self.http.base_url() + settings.websocket.path).decode("ascii")
        handshake = Handshake(
            url,
            {**headers, **handshake_authorization(authorization)},
            settings.websocket.subprotocols,
        )
        opening = dial(self.reactor, self._connect(url), handshake, settings.websocket.ping_seconds)
        return opening, names_a_session(headers)

    def fill_spares(self) -> None:
        """Open a spare socket, if one is missing; the next after it."""
        wanted = self._settings.websocket.spare_sockets
        if not wanted or self._filling is not None or self.pool.spares >= wanted:
            return
        if self.unavailable() is not None:
            return
        if not self.pool.has_room:
            return
        try:
            headers = self.http.credentials.headers()
            if isinstance(headers, Deferred):
                headers.addErrback(lambda _: None)
                return  # a turn will bring a fresh token
            filling = self.open(None, headers)[0]
        except Exception:  # a turn meets it, too, and reports it
            return
        self.pool.reserve()
        self._filling = filling
        filling.addCallbacks(self._filled, self._not_filled)
        filling.addErrback(log_bug)

    def _filled(self, socket: UpstreamSocket) -> None:
        self._filling = None
        self.pool.add(socket, None, is_private=False)
        self.fill_spares()

    def _not_filled(self, failure: Failure) -> None:
        self._filling = None
        self.pool.give_up()

    def stop(self) -> Deferred[None]:
        """Close all sockets, and the account's connections over HTTP."""
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.cancel()
        self.pool.close()
        return self.http.close()
