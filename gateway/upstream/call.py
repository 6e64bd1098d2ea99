"""One request that is passed as it is, and its answer, streamed byte by byte (design law 1).

An answer of 2xx goes on as it comes.  Any other is short: it is read whole, up to a bound, so
that an account's secret which it quotes can be struck out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from treq.response import _Response as TreqResponse
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss

from ..deadline import Deadline
from ..protocol.errors import ApiError
from .failures import log_bug, upstream_failure
from .interface import CallReceiver, UpstreamCall

#: How much of a refusal's body is read, in bytes, and for how long, in seconds.
_MAX_REFUSAL_BYTES = 65_536
_REFUSAL_SECONDS = 5.0

_HIDDEN = "…".encode()


class CallState(enum.Enum):
    """The life of a call."""

    IDLE = "idle"
    SENT = "sent"
    ANSWERED = "answered"
    REFUSED = "refused"
    OVER = "over"


TRANSITIONS = {
    CallState.IDLE: {CallState.SENT, CallState.OVER},
    CallState.SENT: {CallState.ANSWERED, CallState.REFUSED, CallState.OVER},
    CallState.ANSWERED: {CallState.OVER},
    CallState.REFUSED: {CallState.OVER},
    CallState.OVER: set(),
}


class HttpCall(Protocol):
    """See :class:`~gateway.upstream.interface.Call`.

    It is also the protocol the answer's body is delivered to.

    :param send: sends the request, with what authorizes it.
    :param first_byte_seconds: how long the answer may take to begin.
    :param idle_seconds: how long it may be silent.
    :param secrets: what must never be shown.
    """

    transport: Any = None

    def __init__(
        self,
        clock: IReactorTime,
        send: Callable[[], Deferred[TreqResponse]],
        receiver: CallReceiver,
        first_byte_seconds: float,
        idle_seconds: float,
        secrets: Callable[[], Sequence[str]],
    ) -> None:
        self._send = send
        self._receiver = receiver
        self._first_byte_seconds = first_byte_seconds
        self._idle_seconds = idle_seconds
        self._secrets = secrets
        self._state = CallState.IDLE
        self._deadline = Deadline(clock, self._timed_out)
        self._request: Deferred[Any] | None = None
        self._paused = False
        self._refusal = bytearray()

    # --- the caller's side -----------------------------------------------------------

    def start(self) -> None:
        """Send the request."""
        self._enter(CallState.SENT)
        self._deadline.start(self._first_byte_seconds)
        request = self._request = maybeDeferred(self._send)  # it may be over already
        request.addCallbacks(self._answered, self._not_answered)
        request.addErrback(self._broken_inside)

    def cancel(self) -> None:
        """Drop the request or its answer now; the receiver hears nothing more."""
        if self._state is not CallState.OVER:
            self._drop()

    def pause(self) -> None:
        """Stop reading."""
        self._paused = True
        if self._state is CallState.ANSWERED and self.transport is not None:
            self._deadline.stop()
            self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on; the wait for the next byte starts anew."""
        paused, self._paused = self._paused, False
        if paused and self._state is CallState.ANSWERED and self.transport is not None:
            self._deadline.start(self._idle_seconds)
            self.transport.resumeProducing()

    # --- the connection's side -------------------------------------------------------

    def _answered(self, response: TreqResponse) -> None:
        self._request = None
        self._send = _spent
        if 200 <= response.code < 300:
            self._enter(CallState.ANSWERED)
            self._deadline.start(self._idle_seconds)
        else:
            self._enter(CallState.REFUSED)
            self._deadline.start(_REFUSAL_SECONDS)
        self._receiver.call_answered(response.code, _headers_of(response))
        response.deliverBody(self)
        if self._paused:
            self.pause()

    def connectionMade(self) -> None:
        """The body begins; it may not be wanted any more."""
        if self._state is CallState.OVER:
            self.transport.loseConnection()

    def _not_answered(self, failure: Failure) -> None:
        self._request = None
        if self._state is CallState.SENT:
            self._end(upstream_failure(failure))

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body."""
        with self._guarded():
            if self._state is CallState.ANSWERED:
                self._deadline.touch()
                self._receiver.call_data(data)
            elif self._state is CallState.REFUSED:
                self._refusal += data
                if len(self._refusal) > _MAX_REFUSAL_BYTES:
                    self._drop()
                    self._tell_refusal()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The body is over."""
        with self._guarded():
            if self._state is CallState.ANSWERED:
                complete = reason.check(ResponseDone, PotentialDataLoss)
                self._end(None if complete else upstream_failure(reason))
            elif self._state is CallState.REFUSED:
                self._enter(CallState.OVER)
                self._deadline.stop()
                self._tell_refusal()

    def _tell_refusal(self) -> None:
        body = bytes(self._refusal[:_MAX_REFUSAL_BYTES])
        for secret in self._secrets():
            body = body.replace(secret.encode(), _HIDDEN)
        self._receiver.call_data(body)
        self._receiver.call_ended(None)

    def _timed_out(self) -> None:
        if self._state is CallState.REFUSED:
            self._drop()
            self._tell_refusal()
            return
        if self._state is CallState.SENT:
            waited, what = self._first_byte_seconds, "did not answer"
        else:
            waited, what = self._idle_seconds, "sent nothing"
        self._fail(
            ApiError.bad_gateway(
                f"The upstream {what} within {waited:g} seconds.", "upstream_timeout"
            )
        )

    def _fail(self, error: ApiError) -> None:
        self._drop()
        self._receiver.call_ended(error)

    def _end(self, error: ApiError | None) -> None:
        self._enter(CallState.OVER)
        self._deadline.stop()
        self._receiver.call_ended(error)

    def _drop(self) -> None:
        self._enter(CallState.OVER)
        self._deadline.stop()
        request, self._request = self._request, None
        if request is not None:
            request.cancel()
        elif self.transport is not None:
            self.transport.loseConnection()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Twisted's client would lose an exception of ours, and the call would hang."""
        try:
            yield
        except Exception:
            self._broken_inside(Failure())

    def _broken_inside(self, failure: Failure) -> None:
        """A bug of ours must end the call, not leave it waiting."""
        log_bug(failure)
        if self._state is not CallState.OVER:
            self._fail(ApiError.bad_gateway("The gateway failed while reading the upstream."))

    def _enter(self, state: CallState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"a call cannot go from {self._state} to {state}")
        self._state = state


def first_byte_seconds(call: UpstreamCall, first_byte: float, idle: float) -> float:
    """How long the answer to ``call`` may take to begin, in seconds.

    One in a single piece begins only when the model is done: that may take as long as a
    stream may be silent.  What is only looked up or streamed begins sooner.
    """
    streams = call.headers.get("accept", "").startswith("text/event-stream")
    return max(first_byte, idle) if call.method == "POST" and not streams else first_byte


def _headers_of(response: TreqResponse) -> Mapping[str, str]:
    return {
        name.decode("latin-1").lower(): values[-1].decode("latin-1")
        for name, values in response.headers.getAllRawHeaders()
    }


def _spent() -> Deferred[TreqResponse]:
    """Stands for a request that was answered, so that its body is not kept."""
    raise AssertionError("a request that was answered is not sent again")
