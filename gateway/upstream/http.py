"""Accounts reached over HTTP: each turn is one streaming POST by treq (protocol.md §8.1)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from treq.response import _Response as TreqResponse
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse

from ..deadline import Deadline
from ..protocol.errors import ApiError, from_http
from ..protocol.sse import EventStreamParser, EventTooLarge
from ..protocol.upstream_request import UpstreamRequest
from .call import HttpCall, first_byte_seconds
from .client import connection_pool, http_client
from .failures import connection_went_stale, log_bug, upstream_failure
from .interface import CallReceiver, Receiver, UpstreamCall

#: How much of a refusal's body is read, in bytes.
_MAX_REFUSAL_BYTES = 65_536

#: How long a refusal's body may take, in seconds; its status says most of it.
_REFUSAL_SECONDS = 5.0

#: A request is sent again only this soon: a kept connection that is closed already fails at
#: once, while an upstream that thought about the request may have done what it asks.
_RESEND_SECONDS = 1.0

#: How long an answer may go on after its terminal event before its connection is dropped.
_DRAIN_SECONDS = 2.0

_EVENT_STREAM = "text/event-stream"


class HttpTimeouts:
    """How long to wait, in seconds: for a connection, the first byte, the next event."""

    def __init__(self, connect: float, first_byte: float, idle: float) -> None:
        self.connect = connect
        self.first_byte = first_byte
        self.idle = idle


class HttpUpstream:
    """One account's HTTP side: its own connections, its own cookies.

    :param base_url: tells the base URL, without the trailing ``/responses``; asked for each
        request, since a simulator's port is known only once it listens.
    :param secret: the account's key, kept out of refusals that quote it.
    """

    def __init__(
        self,
        reactor: Any,
        base_url: Callable[[], str],
        secret: str,
        timeouts: HttpTimeouts,
        max_kept: int = 1000,
    ) -> None:
        self._pool = connection_pool(reactor, max_kept)
        self._client = http_client(reactor, self._pool, timeouts.connect)
        self._reactor = reactor
        self._base_url = base_url
        self._secret = secret
        self._timeouts = timeouts

    def exchange(self, request: UpstreamRequest, receiver: Receiver) -> HttpExchange:
        """See :class:`~gateway.upstream.interface.Upstream`."""
        return HttpExchange(
            self._reactor, lambda: self._post(request), receiver, self._timeouts, self._secret
        )

    def call(self, call: UpstreamCall, receiver: CallReceiver) -> HttpCall:
        """See :class:`~gateway.upstream.interface.Upstream`."""
        timeouts = self._timeouts
        return HttpCall(
            self._reactor,
            lambda: self._send(call),
            receiver,
            first_byte_seconds(call, timeouts.first_byte, timeouts.idle),
            timeouts.idle,
            lambda: [self._secret],
        )

    def close(self) -> Deferred[None]:
        """Close idle connections."""
        closed: Deferred[None] = self._pool.closeCachedConnections()
        return closed

    def _send(self, call: UpstreamCall) -> Deferred[TreqResponse]:
        return self._client.request(
            call.method,
            f"{self._base_url()}{call.path}",
            headers=Headers({name: [value] for name, value in call.headers.items()}),
            data=call.body,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )

    def _post(self, request: UpstreamRequest) -> Deferred[TreqResponse]:
        headers = Headers({name: [value] for name, value in request.headers.items()})
        return self._client.post(
            f"{self._base_url()}/responses",
            headers=headers,
            data=request.body,
            allow_redirects=False,
            unbuffered=True,
            reactor=self._reactor,
        )


class ExchangeState(enum.Enum):
    """The life of an exchange; every state but OVER may go to OVER."""

    IDLE = "idle"
    SENT = "sent"
    STREAMING = "streaming"
    REFUSED = "refused"
    DRAINING = "draining"
    OVER = "over"


class HttpExchange(Protocol):
    """One POST and its event stream; see :class:`~gateway.upstream.interface.Exchange`.

    It is also the protocol the response body is delivered to.
    """

    transport: Any = None

    def __init__(
        self,
        clock: IReactorTime,
        post: Callable[[], Deferred[TreqResponse]],
        receiver: Receiver,
        timeouts: HttpTimeouts,
        secret: str,
    ) -> None:
        self._clock = clock
        self._post = post
        self._receiver = receiver
        self._timeouts = timeouts
        self._secret = secret
        self._state = ExchangeState.IDLE
        self._deadline = Deadline(clock, self._timed_out)
        self._parser = EventStreamParser()
        self._request: Deferred[Any] | None = None
        self._paused = False
        self._retried = False
        self._sent_at = 0.0
        self._response: IResponse | None = None
        self._refusal: list[bytes] = []
        self._refusal_bytes = 0

    # --- the turn's side -------------------------------------------------------------

    def start(self) -> None:
        """Send the request."""
        self._state = ExchangeState.SENT
        self._sent_at = self._clock.seconds()
        self._deadline.start(self._timeouts.first_byte)
        self._send()

    def cancel(self) -> None:
        """Drop the request or its answer now; the receiver hears nothing more."""
        if self._state is not ExchangeState.OVER:
            self._drop()

    def finish(self) -> None:
        """Let the rest drain for a while; the receiver hears nothing more."""
        if self._state is ExchangeState.STREAMING:
            self._state = ExchangeState.DRAINING
            self._deadline.start(_DRAIN_SECONDS)
            self.resume()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True
        if self._state is ExchangeState.STREAMING and self.transport is not None:
            self._deadline.stop()
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on; the wait for the next event starts anew."""
        if not self._paused:
            return
        self._paused = False
        if self.transport is not None and self._state is not ExchangeState.OVER:
            if self._state is ExchangeState.STREAMING:
                self._deadline.start(self._timeouts.idle)
            self.transport.resumeProducing()

    # --- the connection's side -------------------------------------------------------

    def _send(self) -> None:
        request = self._request = maybeDeferred(self._post)  # it may be over already
        request.addCallbacks(self._answered, self._not_answered)
        request.addErrback(self._broken_inside)

    def _answered(self, response: TreqResponse) -> None:
        self._request = None
        self._post = _spent
        self._response = response
        kind = (response.headers.getRawHeaders("content-type") or [_EVENT_STREAM])[0]
        streams = response.code == 200 and kind.partition(";")[0].strip().lower() == _EVENT_STREAM
        self._state = ExchangeState.STREAMING if streams else ExchangeState.REFUSED
        self._deadline.start(self._timeouts.idle if streams else _REFUSAL_SECONDS)
        response.deliverBody(self)
        if self._paused:
            self.pause()

    def _not_answered(self, failure: Failure) -> None:
        self._request = None
        if self._state is ExchangeState.OVER:
            return
        if connection_went_stale(failure) and self._just_sent():
            self._retried = True
            self._send()
            return
        self._end(upstream_failure(failure))

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body."""
        if self._state is ExchangeState.STREAMING:
            self._deadline.touch()
            try:
                events = self._parser.feed(data)
            except EventTooLarge as error:
                self._fail(ApiError.bad_gateway(f"The upstream sent {error}."))
                return
            if events:
                self._receiver.upstream_events(events)
        elif self._state is ExchangeState.REFUSED:
            self._refusal_bytes += len(data)
            self._refusal.append(data)
            if self._refusal_bytes > _MAX_REFUSAL_BYTES:
                self._fail(self._refused_with())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is over."""
        state = self._state
        if state is ExchangeState.STREAMING:
            complete = reason.check(ResponseDone, PotentialDataLoss)
            self._end(None if complete else upstream_failure(reason))
        elif state is ExchangeState.REFUSED:
            self._end(self._refused_with())
        else:
            self._state = ExchangeState.OVER
            self._deadline.stop()

    def _just_sent(self) -> bool:
        return not self._retried and self._clock.seconds() - self._sent_at < _RESEND_SECONDS

    def _refused_with(self) -> ApiError:
        response = self._response
        assert response is not None
        if response.code == 200:
            return ApiError.bad_gateway("The upstream's answer is not an event stream.")
        headers = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in response.headers.getAllRawHeaders()
        }
        error = from_http(response.code, headers, b"".join(self._refusal)[:_MAX_REFUSAL_BYTES])
        if self._secret:
            error.message = error.message.replace(self._secret, "…")
        return error

    def _timed_out(self) -> None:
        if self._state is ExchangeState.SENT:
            waited, what = self._timeouts.first_byte, "did not answer"
        elif self._state is ExchangeState.REFUSED:
            self._fail(self._refused_with())
            return
        elif self._state is ExchangeState.DRAINING:
            self._drop()
            return
        else:
            waited, what = self._timeouts.idle, "sent nothing"
        error = ApiError.bad_gateway(
            f"The upstream {what} within {waited:g} seconds.", "upstream_timeout"
        )
        self._fail(error)

    def _fail(self, error: ApiError) -> None:
        self._drop()
        self._receiver.upstream_ended(error)

    def _end(self, error: ApiError | None) -> None:
        self._state = ExchangeState.OVER
        self._deadline.stop()
        self._receiver.upstream_ended(error)

    def _drop(self) -> None:
        self._state = ExchangeState.OVER
        self._deadline.stop()
        request, self._request = self._request, None
        if request is not None:
            request.cancel()
        elif self.transport is not None:
            self.transport.loseConnection()

    def _broken_inside(self, failure: Failure) -> None:
        """A bug of ours must end the turn, not leave it waiting."""
        log_bug(failure)
        if self._state is not ExchangeState.OVER:
            self._fail(ApiError.bad_gateway("The gateway failed while reading the upstream."))


def _spent() -> Deferred[TreqResponse]:
    """Stands for a request that was answered, so that its body is not kept."""
    raise AssertionError("a request that was answered is not sent again")
