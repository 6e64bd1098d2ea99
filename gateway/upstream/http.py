"""One turn's POST and its event stream (protocol.md §8.1)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from gateway.compat import kept_connections
from gateway.credentials.interface import Credentials
from gateway.deadline import Deadline
from gateway.protocol.answer_body import AnswerBody, NotAnAnswer
from gateway.protocol.error_parsing import from_http
from gateway.protocol.errors import ApiError
from gateway.protocol.sse import Event, EventTooLarge
from gateway.protocol.upstream_request import UpstreamTurn, build_body, build_headers
from gateway.upstream.agent import connection_pool, http_client
from gateway.upstream.call import HttpCall, first_byte_seconds
from gateway.upstream.egress import EgressPath
from gateway.upstream.errors import log_bug, upstream_failure
from gateway.upstream.interface import BodyReceiver, EventReceiver, ForwardedRequest
from gateway.upstream.sending import HttpTimeouts, RequestSender, Sending, drop, headers_of

#: How much of a refusal's body is read, in bytes.
_MAX_REFUSAL_BYTES = 65_536

#: How long a refusal's body may take, in seconds; its status says most of it.
_REFUSAL_SECONDS = 5.0

#: How long an answer may go on after its terminal event before its connection is dropped.
_DRAIN_SECONDS = 2.0


class ExchangeState(enum.Enum):
    """The life of an exchange; every state but OVER may go to OVER."""

    IDLE = "idle"
    SENT = "sent"
    STREAMING = "streaming"
    REFUSED = "refused"
    DRAINING = "draining"
    OVER = "over"


class HttpExchange(Protocol):
    """One POST and its event stream; see :class:`~gateway.upstream.interface.UpstreamExchange`.

    It is also the protocol the response body is delivered to.
    """

    transport: Any = None

    def __init__(
        self,
        sender: RequestSender,
        turn: UpstreamTurn,
        receiver: EventReceiver,
        timeouts: HttpTimeouts,
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._timeouts = timeouts
        self._state = ExchangeState.IDLE
        self._deadline = Deadline(sender.reactor, self._timed_out)
        self._body = AnswerBody()
        body = build_body(turn.request, turn.items, turn.previous_response_id, turn.dialect)
        headers = build_headers(
            turn.request,
            turn.client_headers,
            turn.account_headers,
            turn.turn_state,
            turn.dialect.streams,
        )
        call = ForwardedRequest("POST", "/responses", headers, body)
        self.request_bytes = len(body)
        self._first_byte_seconds = first_byte_seconds(call, timeouts)
        self._sending: Sending | None = Sending(sender, call, self)
        self._paused = False
        self._response: IResponse | None = None
        self._refusal: list[bytes] = []
        self._refusal_bytes = 0

    # --- the turn's side -------------------------------------------------------------

    def start(self) -> None:
        """Send the request."""
        assert self._sending is not None
        self._state = ExchangeState.SENT
        self._deadline.start(self._first_byte_seconds)
        self._sending.start()

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

    def request_connected(self) -> None:
        """The request goes out."""
        self._receiver.upstream_connected()

    def request_answered(self, response: IResponse) -> None:
        """The answer begins."""
        self._sending = None  # with the request's body, which nobody needs any more
        self._response = response
        taken = 200 <= response.code < 300  # as what is for its body to tell
        self._state = ExchangeState.STREAMING if taken else ExchangeState.REFUSED
        if taken:
            self._receiver.upstream_answered(headers_of(response))
            if self._state is ExchangeState.OVER:
                return
        self._deadline.start(self._timeouts.idle if taken else _REFUSAL_SECONDS)
        response.deliverBody(self)
        if self._paused:
            self.pause()

    def request_failed(self, error: ApiError) -> None:
        """No answer came, or it could not be read."""
        if self._state is not ExchangeState.OVER:
            self._fail(error)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body."""
        if self._state is ExchangeState.STREAMING:
            self._give_out(self._body.feed, data)
        elif self._state is ExchangeState.REFUSED:
            self._refusal_bytes += len(data)
            self._refusal.append(data)
            if self._refusal_bytes > _MAX_REFUSAL_BYTES:
                self._fail(self._refused_with(b"".join(self._refusal)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is over."""
        state = self._state
        if state is ExchangeState.STREAMING:
            if reason.check(ResponseDone, PotentialDataLoss) is None:
                self._end(upstream_failure(reason))
                return
            self._give_out(self._body.finish)
            if self._state is ExchangeState.STREAMING:
                self._end(None)
                return
        elif state is ExchangeState.REFUSED:
            self._end(self._refused_with(b"".join(self._refusal)))
            return
        self._state = ExchangeState.OVER
        self._deadline.stop()

    def _give_out(self, read: Callable[..., list[Event]], *data: bytes) -> None:
        """Let the receiver have the events that ``read`` finds in the body."""
        try:
            events = read(*data)
            if not events:
                self._deadline.sign_of_life()  # a comment, or a piece of an event
            else:
                self._deadline.touch()
                self._receiver.upstream_events(events)
        except EventTooLarge as error:
            self._fail(ApiError.bad_gateway(f"The upstream sent {error}."))
        except NotAnAnswer as other:
            self._fail(self._refused_with(other.body))
        except Exception:  # Twisted would take it for the upstream's
            self._broken_inside(Failure())

    def _refused_with(self, body: bytes) -> ApiError:
        response = self._response
        assert response is not None
        said = self._sender.without_secrets(body[:_MAX_REFUSAL_BYTES])
        return from_http(response.code, headers_of(response), said)

    def _timed_out(self) -> None:
        if self._state is ExchangeState.SENT:
            waited, what = self._first_byte_seconds, "did not answer"
        elif self._state is ExchangeState.REFUSED:
            self._fail(self._refused_with(b"".join(self._refusal)))
            return
        elif self._state is ExchangeState.DRAINING:
            self._drop()
            return
        else:
            waited, what = self._timeouts.idle, "sent no event"
        error = ApiError.bad_gateway(
            f"The upstream {what} within {waited:g} seconds.", "upstream_timeout"
        )
        self._fail(error)

    def _broken_inside(self, failure: Failure) -> None:
        log_bug(failure)
        if self._state is not ExchangeState.OVER:
            self._fail(ApiError.gateway_failed())

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
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()
        elif self.transport is not None:
            self.transport.loseConnection()
        elif self._response is not None:
            drop(self._response)


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
