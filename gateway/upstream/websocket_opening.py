"""Opening a WebSocket for one turn: credentials, the handshake, and what its refusal means.

A 401 is followed by one more try if the credentials have changed by then, as over HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.websocket_messages import UpgradeRefusal, refusal_of_upgrade
from gateway.upstream.errors import upstream_failure
from gateway.upstream.interface import UpstreamAnswer
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_client import UpstreamSocket
from gateway.upstream.websocket_upgrade import UpgradeFailed, UpgradeRefused, UpgradeTimedOut

#: Statuses below 500 that speak of the account, also in answer to an upgrade.
_ABOUT_THE_ACCOUNT = frozenset({401, 402, 403, 429})


class OpeningReceiver(Protocol):
    """Gets the socket, or the reason why there is none: one of the first three is called."""

    def socket_opened(self, socket: UpstreamSocket, is_private: bool) -> None:
        """It is open.

        :param is_private: whether its handshake named a client's session.
        """

    def opening_refused(self, error: ApiError) -> None:
        """The account is at fault."""

    def no_socket(self, error: ApiError) -> None:
        """There is none, and the account is not to blame."""

    def opening_broke(self, failure: Failure) -> None:
        """A bug of the gateway."""


class SocketOpening:
    """The opening of one socket.

    :ivar answer: the refusal of the handshake, or None.
    """

    def __init__(
        self, access: WebSocketAccess, turn: UpstreamTurn, receiver: OpeningReceiver
    ) -> None:
        self._access = access
        self._turn = turn
        self._receiver = receiver
        self._waiting: Deferred[Any] | None = None
        self._is_over = False
        self._authorization: Mapping[str, str] = {}
        self._reauthorized = False
        self.answer: UpstreamAnswer | None = None

    def start(self) -> None:
        """Ask for credentials, then for the socket."""
        try:
            headers = self._access.http.credentials.headers()
        except Exception:
            self._receiver.opening_broke(Failure())
            return
        if isinstance(headers, Deferred):
            self._wait(headers, self._open, self._not_authorized)
        else:
            self._open(headers)

    def cancel(self) -> None:
        """Give it up; the receiver is not called any more."""
        self._is_over = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()

    def _open(self, authorization: Mapping[str, str]) -> None:
        self._authorization = authorization
        private = False
        try:
            opening, private = self._access.open(self._turn, authorization)
        except Exception:
            opening = fail()
        self._wait(opening, lambda socket: self._opened(socket, private), self._not_opened)

    def _wait(
        self,
        waiting: Deferred[Any],
        callback: Callable[[Any], None],
        errback: Callable[[Failure], None],
    ) -> None:
        self._waiting = waiting

        def done(result: Any) -> None:
            self._waiting = None
            if not self._is_over:
                callback(result)

        def failed(failure: Failure) -> None:
            self._waiting = None
            if not self._is_over:
                errback(failure)

        waiting.addCallbacks(done, failed)
        waiting.addErrback(self._receiver.opening_broke)

    def _opened(self, socket: UpstreamSocket, is_private: bool) -> None:
        self._is_over = True
        self._receiver.socket_opened(socket, is_private)

    def _not_authorized(self, failure: Failure) -> None:
        error = failure.value
        self._is_over = True
        self._receiver.opening_refused(
            error if isinstance(error, ApiError) else upstream_failure(failure)
        )

    def _not_opened(self, failure: Failure) -> None:
        problem = failure.value
        if isinstance(problem, UpgradeFailed):
            said = self._access.without_secrets(str(problem))
            error = ApiError.bad_gateway(f"The upstream {said}.")
            if isinstance(problem, UpgradeTimedOut):
                error.code = "upstream_timeout"
            self._no_socket(None, error)
            return
        if not isinstance(problem, UpgradeRefused):
            self._no_socket(None, upstream_failure(failure))
            return
        head = problem.head
        body = self._access.http.without_secrets(problem.body)
        self.answer = UpstreamAnswer(head.status, head.headers, body)
        if head.status == 401 and not self._reauthorized:
            self._reauthorized = True
            changed = self._access.http.credentials.refused(self._authorization)
            if isinstance(changed, Deferred):
                self._wait(changed, self._reauthorize, self._not_authorized)
            else:
                self._reauthorize(changed)
            return
        self._refused(self.answer)

    def _reauthorize(self, changed: bool) -> None:
        if changed:
            self.start()
            return
        assert self.answer is not None
        self._refused(self.answer)

    def _refused(self, answer: UpstreamAnswer) -> None:
        refusal = refusal_of_upgrade(answer.status)
        error = from_http(answer.status, answer.headers, answer.refusal)
        if refusal is UpgradeRefusal.ACCOUNT:
            self._is_over = True
            self._receiver.opening_refused(error)
            return
        lasting = refusal is UpgradeRefusal.NO_WEBSOCKET
        if lasting or (answer.status < 500 and answer.status not in _ABOUT_THE_ACCOUNT):
            # The client asked for no upgrade: a 4xx would blame its request.
            what = "takes no WebSocket" if lasting else "refused a WebSocket"
            error = ApiError.bad_gateway(
                f"The upstream {what}: it answered the upgrade with {answer.status}.",
                "upstream_websocket_refused",
            )
        self._no_socket(refusal, error)

    def _no_socket(self, refusal: UpgradeRefusal | None, error: ApiError) -> None:
        self._is_over = True
        self._access.could_not_open(refusal, str(error))
        self._receiver.no_socket(error)
