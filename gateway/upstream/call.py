"""One request that is passed as it is, and its answer, streamed byte by byte (design law 1).

An answer of 2xx goes on as it comes.  Any other is short: it is read whole, up to a bound, so
that an account's secret which it quotes can be struck out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.iweb import IResponse

from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.protocol.sse import EventStreamParser, EventTooLarge
from gateway.upstream.errors import log_bug, upstream_failure
from gateway.upstream.interface import BodyReceiver, ForwardedRequest
from gateway.upstream.sending import HttpTimeouts, RequestSender, Sending, drop, headers_of

#: How much of a refusal's body is read, in bytes, and for how long, in seconds.
_MAX_REFUSAL_BYTES = 65_536
_REFUSAL_SECONDS = 5.0

#: What counts as progress of an answer that is no event stream, and the longest event that is
#: waited for in one that is, in bytes.
_PROGRESS_BYTES = 65_536
_MAX_EVENT_BYTES = 1_048_576

_EVENT_STREAM = "text/event-stream"


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
    """See :class:`~gateway.upstream.interface.UpstreamExchange`.

    It is also the protocol the answer's body is delivered to.
    """

    transport: Any = None

    def __init__(
        self,
        sender: RequestSender,
        call: ForwardedRequest,
        receiver: BodyReceiver,
        timeouts: HttpTimeouts,
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._first_byte_seconds = first_byte_seconds(call, timeouts)
        self._idle_seconds = timeouts.idle
        self._state = CallState.IDLE
        self._deadline = Deadline(sender.reactor, self._timed_out)
        self._sending: Sending | None = Sending(sender, call, self)
        self._response: IResponse | None = None
        self._paused = False
        self._refusal = bytearray()
        self._events: EventStreamParser | None = None
        self._unnoted = 0
        self.request_bytes = len(call.body or b"")

    # --- the caller's side -----------------------------------------------------------

    def start(self) -> None:
        """Send the request."""
        self._enter(CallState.SENT)
        self._deadline.start(self._first_byte_seconds)
        assert self._sending is not None
        self._sending.start()

    def cancel(self) -> None:
        """Drop the request or its answer now; the receiver hears nothing more."""
        if self._state is not CallState.OVER:
            self._drop()

    def finish(self) -> None:
        """Its connection could be reused; calls are cancelled instead."""
        self.cancel()

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

    def request_connected(self) -> None:
        """The request goes out."""
        self._receiver.upstream_connected()

    def request_answered(self, response: IResponse) -> None:
        """The answer begins."""
        self._sending = None  # with the request's body, which nobody needs any more
        self._response = response
        headers = headers_of(response)
        if 200 <= response.code < 300:
            self._enter(CallState.ANSWERED)
            if headers.get("content-type", "").lower().startswith(_EVENT_STREAM):
                self._events = EventStreamParser(_MAX_EVENT_BYTES)
            self._deadline.start(self._idle_seconds)
        else:
            self._enter(CallState.REFUSED)
            self._deadline.start(_REFUSAL_SECONDS)
        self._receiver.upstream_answered(response.code, headers)
        if self._state is CallState.OVER:
            return
        response.deliverBody(self)
        if self._paused:
            self.pause()

    def request_failed(self, error: ApiError) -> None:
        """No answer came, or it could not be read."""
        if self._state is not CallState.OVER:
            self._fail(error)

    def dataReceived(self, data: bytes) -> None:
        """Bytes of the body."""
        with self._guarded():
            if self._state is CallState.ANSWERED:
                self._note_progress(data)
                self._receiver.upstream_data(data)
            elif self._state is CallState.REFUSED:
                self._refusal += data
                if len(self._refusal) > _MAX_REFUSAL_BYTES:
                    self._drop()
                    self._tell_refusal()

    def _note_progress(self, data: bytes) -> None:
        """A whole event is progress, elsewhere so many bytes; all else is a sign of life."""
        if self._events is None:
            self._unnoted += len(data)
            progress = self._unnoted >= _PROGRESS_BYTES
        else:
            try:
                progress = bool(self._events.feed(data))
            except EventTooLarge:
                self._events, progress = EventStreamParser(_MAX_EVENT_BYTES), True
        if progress:
            self._unnoted = 0
            self._deadline.touch()
        else:
            self._deadline.sign_of_life()

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
        self._receiver.upstream_data(self._sender.without_secrets(body))
        self._receiver.upstream_ended(None)

    def _timed_out(self) -> None:
        if self._state is CallState.REFUSED:
            self._drop()
            self._tell_refusal()
            return
        if self._state is CallState.SENT:
            waited, what = self._first_byte_seconds, "did not answer"
        else:
            waited, what = self._idle_seconds, "sent nothing of its answer"
        self._fail(
            ApiError.bad_gateway(
                f"The upstream {what} within {waited:g} seconds.", "upstream_timeout"
            )
        )

    def _fail(self, error: ApiError) -> None:
        self._drop()
        self._receiver.upstream_ended(error)

    def _end(self, error: ApiError | None) -> None:
        self._enter(CallState.OVER)
        self._deadline.stop()
        self._receiver.upstream_ended(error)

    def _drop(self) -> None:
        self._enter(CallState.OVER)
        self._deadline.stop()
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.cancel()
        elif self.transport is not None:
            self.transport.loseConnection()
        elif self._response is not None:
            drop(self._response)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Twisted's client would lose an exception of ours, and the call would hang."""
        try:
            yield
        except Exception:
            log_bug(Failure())
            if self._state is not CallState.OVER:
                self._fail(ApiError.gateway_failed())

    def _enter(self, state: CallState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"a call cannot go from {self._state} to {state}")
        self._state = state


def first_byte_seconds(call: ForwardedRequest, timeouts: HttpTimeouts) -> float:
    """How long the answer to ``call`` may take to begin, in seconds.

    One in a single piece begins only when the model is done: that may take as long as a
    stream may be silent.  What is only looked up or streamed begins sooner.
    """
    streams = call.headers.get("accept", "").startswith("text/event-stream")
    if call.method != "POST" or streams:
        return timeouts.first_byte
    return max(timeouts.first_byte, timeouts.idle)
