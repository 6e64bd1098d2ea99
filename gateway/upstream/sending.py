"""A request on its way to an account: its credentials, its connection, the head of its answer.

Exchanges and calls share this.  A request is sent a second time in two cases, each once: its
connection had gone stale, or a 401 made the account's credentials change.  Neither reached
anybody who could have acted on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Protocol as BodyProtocol
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from gateway.credentials.interface import Credentials
from gateway.protocol.errors import ApiError
from gateway.upstream.agent import WholeBodyProducer
from gateway.upstream.errors import connection_went_stale, log_bug, upstream_failure
from gateway.upstream.interface import ForwardedRequest

#: A request is sent again only this soon: a kept connection that is closed already fails at
#: once, while an upstream that thought about the request may have done what it asks.
_RESEND_SECONDS = 1.0

_HIDDEN = "…".encode()


class HttpTimeouts(NamedTuple):
    """How long to wait, in seconds: for a connection, the first byte, the next bytes.

    The wait for the first byte includes all that comes before it, such as a fresh token.
    """

    connect: float
    first_byte: float
    idle: float


class AnswerReceiver(Protocol):
    """Who sent a request.  Nothing is told after the answer, the failure, or a cancel."""

    def request_connected(self) -> None:
        """It goes out on a connection; told again when it is sent again."""

    def request_answered(self, response: IResponse) -> None:
        """Its head is here, of whatever status; the body waits for ``deliverBody``."""

    def request_failed(self, error: ApiError) -> None:
        """No answer came; or :meth:`request_answered` itself failed, which is a bug."""


class RequestSender:
    """What all requests to one account share.

    :param base_url: asked for each request, since a simulator's port is known only once it
        listens.
    """

    def __init__(
        self,
        reactor: Any,
        client: HTTPClient,
        base_url: Callable[[], str],
        credentials: Credentials,
    ) -> None:
        self.reactor = reactor
        self.credentials = credentials
        self._client = client
        self._base_url = base_url

    def request(
        self,
        call: ForwardedRequest,
        authorization: Mapping[str, str],
        connected: Callable[[], None],
    ) -> Deferred[Any]:
        """Send it once.

        :param authorization: headers that win over those of ``call``.
        :param connected: called when its body is written to a connection.
        """
        headers = Headers(
            {name.encode(): [value.encode("latin-1")] for name, value in call.headers.items()}
        )
        for name, value in authorization.items():
            headers.setRawHeaders(name, [value])
        return self._client.request(
            call.method,
            f"{self._base_url()}{call.path}",
            headers=headers,
            data=None if call.body is None else WholeBodyProducer(call.body, connected),
            allow_redirects=False,
            unbuffered=True,
            reactor=self.reactor,
        )

    def without_secrets(self, said: bytes) -> bytes:
        """See :class:`~gateway.upstream.interface.Upstream`."""
        for secret in self.credentials.secrets():
            said = said.replace(secret.encode(), _HIDDEN)
        return said


class Sending:
    """One request up to the head of its answer.

    :param receiver: hears of it until it was answered, failed or was cancelled.
    """

    def __init__(
        self, sender: RequestSender, call: ForwardedRequest, receiver: AnswerReceiver
    ) -> None:
        self._sender = sender
        self._call = call
        self._receiver = receiver
        self._waiting: Deferred[Any] | None = None
        self._over = False
        self._used: Mapping[str, str] = {}
        self._sent_at = 0.0
        self._sent_again = False
        self._refusal: IResponse | None = None
        self._refused = False

    def start(self) -> None:
        """Send it.  The receiver may hear of it before this returns."""
        self._authorize()

    def cancel(self) -> None:
        """Drop it now."""
        self._over = True
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        self._drop_refusal()

    def _authorize(self) -> None:
        try:
            headers = self._sender.credentials.headers()
        except Exception:
            self._broken_inside(Failure())
            return
        if isinstance(headers, Deferred):
            self._wait(headers, self._send, self._failed)
        else:  # the usual case does without a Deferred
            self._send(headers)

    def _send(self, authorization: Mapping[str, str]) -> None:
        self._used = authorization
        self._sent_at = self._sender.reactor.seconds()
        request = maybeDeferred(
            self._sender.request, self._call, authorization, self._receiver.request_connected
        )
        self._wait(request, self._answered, self._not_answered)

    def _wait(
        self,
        waiting: Deferred[Any],
        callback: Callable[[Any], None],
        errback: Callable[[Failure], None],
    ) -> None:
        self._waiting = waiting  # it may be over already
        waiting.addCallbacks(callback, errback)
        waiting.addErrback(self._broken_inside)

    def _answered(self, response: IResponse) -> None:
        self._waiting = None
        if response.code != 401 or self._refused:
            self._receiver.request_answered(response)
            return
        self._refused = True
        self._refusal = response
        changed = self._sender.credentials.refused(self._used)
        if isinstance(changed, Deferred):
            self._wait(changed, self._judged, self._failed)
        else:
            self._judged(changed)

    def _judged(self, changed: bool) -> None:
        """The credentials changed because of the 401, or stand by themselves."""
        self._waiting = None
        if changed:
            self._drop_refusal()
            self._authorize()
            return
        response, self._refusal = self._refusal, None
        assert response is not None
        self._receiver.request_answered(response)

    def _not_answered(self, failure: Failure) -> None:
        soon = self._sender.reactor.seconds() - self._sent_at < _RESEND_SECONDS
        if self._over or self._sent_again or not soon or not connection_went_stale(failure):
            self._failed(failure)
            return
        self._sent_again = True
        self._send(self._used)

    def _failed(self, failure: Failure) -> None:
        self._waiting = None
        self._drop_refusal()
        if not self._over:
            self._over = True
            error = failure.value
            self._receiver.request_failed(
                error if isinstance(error, ApiError) else upstream_failure(failure)
            )

    def _broken_inside(self, failure: Failure) -> None:
        """A bug of ours must end the turn, not leave it waiting."""
        log_bug(failure)
        self._waiting = None
        self._drop_refusal()
        if not self._over:
            self._over = True
            self._receiver.request_failed(ApiError.gateway_failed())

    def _drop_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            drop(refusal)


def drop(response: IResponse) -> None:
    """Give up a response whose body was not delivered: its connection closes."""
    unread = BodyProtocol()
    response.deliverBody(unread)
    assert unread.transport is not None
    unread.transport.loseConnection()


def headers_of(response: IResponse) -> dict[str, str]:
    """A response's headers: names in lower case, of several values the last."""
    return {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in response.headers.getAllRawHeaders()
    }
