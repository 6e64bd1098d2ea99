"""Requests to one account over HTTP, and their answers.

There are two kinds.  A turn is a POST to ``/responses``; its answer is read as events
(protocol.md §8.1).  Any other request is forwarded as it is, and its answer is streamed byte by
byte (design law 1).  Both are an :class:`HttpExchange`: it asks for credentials, sends the
request, waits for the head of the answer and reads its body, with a deadline for each step.

A request is sent a second time in two cases, each once: its kept-alive connection had gone stale,
or a 401 made the account's credentials change.  In neither case can the upstream have acted on it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, fail, gatherResults, maybeDeferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from gateway.compat import kept_connections
from gateway.credentials.interface import Credentials
from gateway.deadline import Deadline
from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.protocol.response_body import NotAResponse, ResponseBody
from gateway.protocol.sse import EventStreamParser, EventTooLarge
from gateway.protocol.upstream_request import UpstreamTurn, build_body, build_headers
from gateway.upstream.agent import abandon, connection_pool, headers_of, http_client
from gateway.upstream.endpoints import EgressPath
from gateway.upstream.errors import connection_went_stale, log_bug, upstream_failure
from gateway.upstream.interface import (
    BodyReceiver,
    EventReceiver,
    ForwardedRequest,
    OneWayExchange,
    UpstreamAnswer,
    UpstreamReceiver,
)

#: A request is sent again only this soon, in seconds: a kept connection that is closed already
#: fails at once, while an upstream that thought about the request may have done what it asks.
_RESEND_SECONDS = 1.0

#: How much of a refusal's body is read, in bytes, and how long that may take, in seconds; its
#: status says most of it.
_MAX_REFUSAL_BYTES = 65_536
_REFUSAL_SECONDS = 5.0

#: How long an answer may go on after its terminal event before its connection is dropped.
_DRAIN_SECONDS = 2.0

#: What counts as progress of a forwarded answer that is no event stream, and the longest event
#: that is waited for in one that is, in bytes.
_PROGRESS_BYTES = 65_536
_MAX_EVENT_BYTES = 1_048_576

_EVENT_STREAM = "text/event-stream"

_HIDDEN = "…".encode()


class HttpTimeouts(NamedTuple):
    """How long to wait, in seconds: for a connection, the first byte, the next bytes.

    The wait for the first byte includes all that comes before it, such as a fresh token.
    """

    connect: float
    first_byte: float
    idle: float


class HttpUpstream:
    """One account's HTTP side, with connections of its own.

    :param name: the account's.
    :param base_url: returns the base URL, without the trailing ``/responses``; called for each
        request, since a simulator's port is known only once it listens.
    :param credentials: what authorizes its requests; closed with it.
    :param egress: how its connections leave the machine; direct when left out.
    :param max_kept: idle connections that may be kept.
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
        self.reactor = reactor
        self.base_url = base_url
        self.credentials = credentials
        self.timeouts = timeouts
        self.max_kept = max_kept
        self._name = name
        self._pool = connection_pool(reactor, max_kept)
        self.client = http_client(reactor, self._pool, timeouts.connect, egress)

    #: Each request may take another connection, and over HTTP a prewarm is an answer of its own.
    warms = False

    @property
    def kept(self) -> int:
        """Idle connections that are kept; at most ``max_kept``."""
        return kept_connections(self._pool)

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> TurnExchange:
        """Encode a turn as a POST to ``/responses``."""
        request, dialect = turn.request, turn.dialect
        body = build_body(request, turn.items, turn.previous_response_id, dialect)
        headers = build_headers(
            request, turn.client_headers, turn.account_headers, turn.turn_state, dialect.streams
        )
        return TurnExchange(self, ForwardedRequest("POST", "/responses", headers, body), receiver)

    def forward(self, request: ForwardedRequest, receiver: BodyReceiver) -> ForwardedExchange:
        """Prepare a request that is sent as it is."""
        return ForwardedExchange(self, request, receiver)

    def continued(self, was: bool) -> None:
        """Connections keep no responses."""

    def holds(self, holder: str) -> bool:
        """Whether it is the account's name: its responses are found over any connection."""
        return holder == self._name

    def forget(self) -> None:
        """Nothing is learned of connections."""

    def sockets(self) -> None:
        """It has no WebSockets."""

    def secrets(self) -> Sequence[str]:
        """The current secrets of its credentials."""
        return self.credentials.secrets()

    def without_secrets(self, text: bytes) -> bytes:
        """What the account answered, without its secrets."""
        for secret in self.credentials.secrets():
            text = text.replace(secret.encode(), _HIDDEN)
        return text

    def close(self) -> Deferred[None]:
        """Close idle connections, and stop what the credentials run."""
        closed = [self._pool.closeCachedConnections(), maybeDeferred(self.credentials.close)]
        return gatherResults(closed).addCallback(lambda _: None)


class ExchangeState(enum.Enum):
    """The states of an exchange, named by what it waits for."""

    IDLE = "to be started"
    SENT = "the head of the answer, and all that comes before it"
    STREAMING = "the body of an answer of 2xx"
    REFUSED = "the body of any other answer"
    DRAINING = "the end of an answer that is ignored"
    OVER = "nothing"


TRANSITIONS = {
    ExchangeState.IDLE: {ExchangeState.SENT, ExchangeState.OVER},
    ExchangeState.SENT: {ExchangeState.STREAMING, ExchangeState.REFUSED, ExchangeState.OVER},
    ExchangeState.STREAMING: {ExchangeState.DRAINING, ExchangeState.OVER},
    ExchangeState.REFUSED: {ExchangeState.OVER},
    ExchangeState.DRAINING: {ExchangeState.OVER},
    ExchangeState.OVER: set(),
}


class HttpExchange(Protocol, OneWayExchange):
    """One request and its answer; also the protocol that the answer's body is delivered to.

    Subclasses say what becomes of the head (``_head_received``), of a piece of the body
    (``_read``), of its end (``_body_complete``) and of a refusal (``_refusal_received``).
    """

    transport: Any = None
    _receiver: UpstreamReceiver

    #: Of :class:`~gateway.upstream.interface.UpstreamExchange`.
    transport_name = "http"
    holder: str | None = None

    #: Completes "The upstream … within 5 seconds." for an answer that stops.
    _SILENCE = ""

    def __init__(
        self, upstream: HttpUpstream, request: ForwardedRequest, receiver: UpstreamReceiver
    ) -> None:
        self._upstream = upstream
        self.request: ForwardedRequest | None = request
        self._receiver = receiver
        self.request_bytes = len(request.body or b"")
        timeouts = upstream.timeouts
        self._idle_seconds = timeouts.idle
        # An answer in a single piece begins only when the model is done: that may take as long
        # as a stream may be silent.  What is looked up or streamed begins sooner.
        self._first_byte_seconds = timeouts.first_byte
        if request.method == "POST" and not request.headers.get("accept", "").startswith(
            _EVENT_STREAM
        ):
            self._first_byte_seconds = max(timeouts.first_byte, timeouts.idle)
        self._state = ExchangeState.IDLE
        self._deadline = Deadline(upstream.reactor, self._timed_out)
        self._waiting: Deferred[Any] | None = None
        self._authorization: Mapping[str, str] = {}
        self._reauthorized = False
        self._sent_at = 0.0
        self._resent = False
        self._response: IResponse | None = None
        self._headers: Mapping[str, str] = {}
        self._refusal = bytearray()
        self._paused = False

    # --- commands --------------------------------------------------------------------

    def start(self) -> None:
        """Send the request."""
        self._enter(ExchangeState.SENT)
        self._deadline.start(self._first_byte_seconds)
        self._authorize()

    def cancel(self) -> None:
        """Drop the request or its answer now; the receiver is not called any more."""
        if self._state is not ExchangeState.OVER:
            self._drop()

    def finish(self) -> None:
        """Read the answer to its end, for a bounded time, without calling the receiver."""
        if self._state is ExchangeState.STREAMING:
            self._enter(ExchangeState.DRAINING)
            self._deadline.start(_DRAIN_SECONDS)
            self.resume()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True
        if self._state is ExchangeState.STREAMING and self.transport is not None:
            self._deadline.stop()
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on; the wait for what comes next starts anew."""
        if not self._paused:
            return
        self._paused = False
        if self.transport is not None and self._state is not ExchangeState.OVER:
            if self._state is ExchangeState.STREAMING:
                self._deadline.start(self._idle_seconds)
            self.transport.resumeProducing()

    def answer(self) -> UpstreamAnswer | None:
        """What is known of the answer."""
        if self._response is None:
            return None
        refusal = self._upstream.without_secrets(bytes(self._refusal[:_MAX_REFUSAL_BYTES]))
        return UpstreamAnswer(self._response.code, self._headers, refusal)

    # --- until the head of the answer ------------------------------------------------

    def _authorize(self) -> None:
        try:
            headers = self._upstream.credentials.headers()
        except Exception:
            self._fail_inside(Failure())
            return
        if isinstance(headers, Deferred):
            self._wait(headers, self._send, self._fail_before_answer)
        else:  # the usual case does without a Deferred
            self._send(headers)

    def _send(self, authorization: Mapping[str, str]) -> None:
        """Send the request once; the headers of ``authorization`` win over its own."""
        upstream, request = self._upstream, self.request
        assert request is not None, "a request is not sent after its answer"
        self._authorization = authorization
        self._sent_at = upstream.reactor.seconds()
        method, path, headers, body = request
        try:
            url = upstream.base_url() + path
            headers = {**headers, **authorization}
            connected = self._receiver.upstream_connected
            sent = upstream.client.send(method, url, headers, body, connected)
        except Exception:
            sent = fail()
        self._wait(sent, self._answered, self._not_answered)
        if self._state is ExchangeState.OVER:  # the receiver cancelled it as it connected
            sent.cancel()

    def _wait(
        self,
        waiting: Deferred[Any],
        callback: Callable[[Any], None],
        errback: Callable[[Failure], None],
    ) -> None:
        self._waiting = waiting  # it may be over already
        waiting.addCallbacks(callback, errback)
        waiting.addErrback(self._fail_inside)

    def _answered(self, response: IResponse) -> None:
        self._waiting = None
        self._response = response
        if response.code != 401 or self._reauthorized:
            self._begin_body(response)
            return
        self._reauthorized = True
        changed = self._upstream.credentials.refused(self._authorization)
        if isinstance(changed, Deferred):
            self._wait(changed, self._reauthorize, self._fail_before_answer)
        else:
            self._reauthorize(changed)

    def _reauthorize(self, changed: bool) -> None:
        """Send the request again if the credentials changed because of a 401."""
        self._waiting = None
        response = self._response
        assert response is not None
        if changed:
            self._response = None
            abandon(response)
            self._authorize()
        else:
            self._begin_body(response)

    def _not_answered(self, failure: Failure) -> None:
        soon = self._upstream.reactor.seconds() - self._sent_at < _RESEND_SECONDS
        waits = self._state is ExchangeState.SENT
        if waits and soon and not self._resent and connection_went_stale(failure):
            self._resent = True
            self._send(self._authorization)
        else:
            self._fail_before_answer(failure)

    def _fail_before_answer(self, failure: Failure) -> None:
        self._waiting = None
        if self._state is not ExchangeState.OVER:  # cancelled
            error = failure.value
            self._fail(error if isinstance(error, ApiError) else upstream_failure(failure))

    # --- the answer ------------------------------------------------------------------

    def _begin_body(self, response: IResponse) -> None:
        self.request = None  # its body is not needed any more
        self._headers = headers_of(response)
        if 200 <= response.code < 300:
            self._enter(ExchangeState.STREAMING)
            self._deadline.start(self._idle_seconds)
        else:
            self._enter(ExchangeState.REFUSED)
            self._deadline.start(_REFUSAL_SECONDS)
        self._head_received(response.code)
        if self._state is ExchangeState.OVER:
            return
        response.deliverBody(self)
        if self._paused:
            self.pause()

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body."""
        try:
            if self._state is ExchangeState.STREAMING:
                self._read(data)
            elif self._state is ExchangeState.REFUSED:
                self._refusal += data
                if len(self._refusal) > _MAX_REFUSAL_BYTES:
                    self._drop()
                    self._tell_refusal()
        except Exception:  # Twisted would take it for the upstream's
            self._fail_reading(Failure())

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is over."""
        try:
            if self._state is ExchangeState.STREAMING:
                if reason.check(ResponseDone, PotentialDataLoss) is None:
                    self._end(upstream_failure(reason))
                    return
                self._body_complete()
                if self._state is ExchangeState.STREAMING:
                    self._end(None)
            elif self._state is ExchangeState.REFUSED:
                self._stop()
                self._tell_refusal()
            if self._state is not ExchangeState.OVER:
                self._stop()
        except Exception:
            self._fail_reading(Failure())

    def _tell_refusal(self) -> None:
        body = bytes(self._refusal[:_MAX_REFUSAL_BYTES])
        self._refusal_received(self._upstream.without_secrets(body))

    def _head_received(self, status: int) -> None:
        raise NotImplementedError

    def _read(self, data: bytes) -> None:
        raise NotImplementedError

    def _body_complete(self) -> None:
        """The answer of 2xx is whole."""

    def _refusal_received(self, body: bytes) -> None:
        """As much as there is of a refusal's body, without secrets; the exchange is over."""
        raise NotImplementedError

    # --- the end ---------------------------------------------------------------------

    def _timed_out(self) -> None:
        if self._state is ExchangeState.REFUSED:
            self._drop()
            self._tell_refusal()
        elif self._state is ExchangeState.DRAINING:
            self._drop()
        else:
            waited, what = self._idle_seconds, self._SILENCE
            if self._state is ExchangeState.SENT:
                waited, what = self._first_byte_seconds, "did not answer"
            message = f"The upstream {what} within {waited:g} seconds."
            self._fail(ApiError.bad_gateway(message, "upstream_timeout"))

    def _fail_reading(self, failure: Failure) -> None:
        """What was raised while the answer was read."""
        self._fail_inside(failure)

    def _fail_inside(self, failure: Failure) -> None:
        """A bug of the gateway ends the exchange, which would wait for ever otherwise."""
        log_bug(failure)
        if self._state is not ExchangeState.OVER:
            self._fail(ApiError.gateway_failed())

    def _fail(self, error: ApiError) -> None:
        self._drop()
        self._receiver.upstream_ended(error)

    def _end(self, error: ApiError | None) -> None:
        self._stop()
        self._receiver.upstream_ended(error)

    def _drop(self) -> None:
        self._stop()
        self.request = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
        if self.transport is not None:
            self.transport.loseConnection()
        elif self._response is not None:
            abandon(self._response)

    def _stop(self) -> None:
        self._enter(ExchangeState.OVER)
        self._deadline.stop()

    def _enter(self, state: ExchangeState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"an exchange cannot go from {self._state} to {state}")
        self._state = state


class TurnExchange(HttpExchange):
    """A turn's POST; its answer is read as events."""

    _receiver: EventReceiver
    _body: ResponseBody
    _SILENCE = "sent no event"

    def _head_received(self, status: int) -> None:
        if self._state is ExchangeState.STREAMING:
            self._body = ResponseBody()
            self._receiver.upstream_answered(self._headers)

    def _read(self, data: bytes) -> None:
        events = self._body.feed(data)
        if events:
            self._deadline.touch()
            self._receiver.upstream_events(events)
        else:
            self._deadline.sign_of_life()  # a comment, or a piece of an event

    def _body_complete(self) -> None:
        events = self._body.finish()
        if events:
            self._receiver.upstream_events(events)

    def _fail_reading(self, failure: Failure) -> None:
        problem = failure.value
        if isinstance(problem, EventTooLarge):
            self._fail(ApiError.bad_gateway(f"The upstream sent {problem}."))
        elif isinstance(problem, NotAResponse):
            body = self._upstream.without_secrets(problem.body[:_MAX_REFUSAL_BYTES])
            self._fail(self._refusal_of(body))
        else:
            super()._fail_reading(failure)

    def _refusal_received(self, body: bytes) -> None:
        self._receiver.upstream_ended(self._refusal_of(body))

    def _refusal_of(self, body: bytes) -> ApiError:
        assert self._response is not None
        return from_http(self._response.code, self._headers, body)


class ForwardedExchange(HttpExchange):
    """A request that is forwarded as it is.

    An answer of 2xx is passed on as it arrives.  Any other is short: it is read whole, up to a
    bound, so that the account's secrets can be removed from it.
    """

    _receiver: BodyReceiver
    _SILENCE = "sent nothing of its answer"
    _events: EventStreamParser | None = None
    _unnoted_bytes = 0

    def _head_received(self, status: int) -> None:
        if self._headers.get("content-type", "").lower().startswith(_EVENT_STREAM):
            self._events = EventStreamParser(_MAX_EVENT_BYTES)
        self._receiver.upstream_answered(status, self._headers)

    def _read(self, data: bytes) -> None:
        if self._makes_progress(data):
            self._unnoted_bytes = 0
            self._deadline.touch()
        else:
            self._deadline.sign_of_life()
        self._receiver.upstream_data(data)

    def _makes_progress(self, data: bytes) -> bool:
        """Whether an event is complete, or enough bytes of what is no event stream came."""
        if self._events is None:
            self._unnoted_bytes += len(data)
            return self._unnoted_bytes >= _PROGRESS_BYTES
        try:
            return bool(self._events.feed(data))
        except EventTooLarge:
            self._events = EventStreamParser(_MAX_EVENT_BYTES)
            return True

    def _refusal_received(self, body: bytes) -> None:
        self._receiver.upstream_data(body)
        self._receiver.upstream_ended(None)
