"""Where the events of HTTP turns go: a stream, one object, or the background."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Mapping, Sequence

from gateway.protocol.error_classification import for_the_client
from gateway.protocol.errors import UNREADABLE, ApiError
from gateway.protocol.events import (
    LINE_FEED,
    TERMINALS,
    decode_members,
    event_type,
    sequence_number,
)
from gateway.protocol.synthetic_events import (
    created_event,
    failed_event,
    new_response_id,
    synthetic_response,
)
from gateway.server.http_request import UNBUFFERED, ClientRequest
from gateway.turn.turn import Turn

_JSON = {"content-type": "application/json"}
_STREAM_HEADERS = {"content-type": "text/event-stream; charset=utf-8", **UNBUFFERED}

#: As the platform sends it; of no known type, so that it needs no ``sequence_number``.
_KEEP_ALIVE = b'event: keepalive\ndata: {"type":"keepalive"}\n\n'

#: For typed clients, which expect ``response.created`` before any other event.
_COMMENT = b": keepalive\n\n"

#: The events that carry the response object.
_WITH_RESPONSE = {
    b"response.created",
    b"response.queued",
    b"response.in_progress",
    *TERMINALS,
}

#: What an error that comes too late for a status becomes in ``response.failed``, where its
#: own code says nothing: clients give up on the first two, and retry the last.
_CODE_OF_STATUS = {400: "invalid_prompt", 422: "invalid_prompt", 429: "rate_limit_exceeded"}


def event_stream(payloads: Iterable[bytes]) -> bytes:
    """The server-sent events of ``payloads``, one JSON text each, joined for one write.

    Each payload goes out as the bytes that it came in.
    """
    parts: list[bytes] = []
    for payload in payloads:
        parts += b"event: ", event_type(payload), b"\ndata: "
        if LINE_FEED in payload:  # in JSON between values only: each line has a field of its own
            payload = payload.replace(b"\n", b"\ndata: ")
        parts += payload, b"\n\n"
    return b"".join(parts)


class HttpEventSink(abc.ABC):
    """An :class:`~gateway.turn.context.EventSink` that answers an HTTP request.

    :param request: the client's; the turn answers it.
    :param created_at: unix seconds.
    :param ended: called when the turn is over.
    """

    def __init__(
        self,
        request: ClientRequest,
        created_at: float,
        ended: Callable[[HttpEventSink, Turn], None],
    ) -> None:
        self._request = request
        self._created_at = created_at
        self._ended = ended
        self._turn: Turn | None = None

    def attach(self, turn: Turn) -> None:
        """Connect the request to its turn, before the turn starts."""
        self._turn = turn
        self._request.when_gone(self.client_gone)
        self._request.when_abandoned(turn.abandon)
        self._request.when_slow(turn.pause, turn.resume)

    def client_gone(self) -> None:
        """The client left: end the turn."""
        if self._turn is not None:
            self._turn.cancel()

    @abc.abstractmethod
    def relay(self, payloads: Sequence[bytes]) -> None:
        """Send events, each one JSON text, in order."""

    def refuse(self, error: ApiError) -> None:
        """Answer with ``error``."""
        self._request.refuse(error)

    def keep_alive(self) -> None:
        """Do nothing: before its single answer HTTP has no keep-alive."""
        return

    def turn_ended(self) -> None:
        """Forget the turn, and call ``ended``."""
        turn, self._turn = self._turn, None
        if turn is not None:
            self._ended(self, turn)

    def headers(self) -> Mapping[str, str]:
        """The headers of the answer that describe the turn."""
        return self._turn.answer_headers() if self._turn is not None else {}


class StreamSink(HttpEventSink):
    """``stream: true``: server-sent events, and the end right after the terminal one."""

    _last = b""

    def relay(self, payloads: Sequence[bytes]) -> None:
        """Write server-sent events."""
        if payloads:
            self._last = payloads[-1]
            self._write(event_stream(payloads))

    def refuse(self, error: ApiError) -> None:
        """Answer with ``error``; after the head it becomes a response that failed.

        Codex reads no ``error`` events over HTTP.
        """
        turn = self._turn
        if not self._request.started or turn is None:
            self._request.refuse(error)
            return
        response = synthetic_response(
            new_response_id(),
            turn.request,
            int(self._created_at),
            turn.request.previous_response_id,
        )
        code = error.code or _CODE_OF_STATUS.get(error.status, "server_error")
        number = sequence_number(self._last)
        before = [] if self._last else [created_event(response)]
        failed = failed_event(response, [], number + 1 + len(before), code, error.message)
        self.relay([*before, failed])

    def keep_alive(self) -> None:
        """Write a comment, or an event that means nothing."""
        self._write(_KEEP_ALIVE if self._last else _COMMENT)

    def turn_ended(self) -> None:
        """End the stream."""
        self._request.finish()
        super().turn_ended()

    def _write(self, data: bytes) -> None:
        if not self._request.started:
            self._request.start(200, {**_STREAM_HEADERS, **self.headers()})
        self._request.write(data)


class ObjectSink(HttpEventSink):
    """``stream: false``: the response object of the terminal event."""

    _terminal = b""
    _headers: Mapping[str, str] | None = None

    def relay(self, payloads: Sequence[bytes]) -> None:
        """Keep the terminal event."""
        if self._headers is None:
            self._headers = self.headers()  # at its end the turn has left its upstream
        for payload in payloads:
            if event_type(payload) in TERMINALS:
                self._terminal = payload

    def turn_ended(self) -> None:
        """Answer with the response object.

        A turn that broke off is answered with an error, not with a failed response: the client
        has seen nothing of it yet, and SDKs retry errors by themselves.
        """
        turn = self._turn
        if self._terminal and not self._request.started:
            if turn is not None and turn.broken_off and turn.error is not None:
                self._request.refuse(for_the_client(turn.error))
            else:
                _answer_with_response(self._request, self._terminal, self._headers or {})
        super().turn_ended()


class _DetachedSink(HttpEventSink):
    """A :class:`~gateway.server.connections.Drainable` that outlasts its client's connection."""

    def drain(self) -> None:
        """Do nothing: it ends when its turn does."""

    def abandon(self) -> None:
        """The gateway can wait no longer."""
        if self._turn is not None:
            self._turn.abandon(ApiError.gateway_restarts())


class BackgroundSink(_DetachedSink):
    """``background: true``: answers with the object of the first events; the turn runs on."""

    def relay(self, payloads: Sequence[bytes]) -> None:
        """Answer with the last of the first events that carries the response object."""
        for payload in reversed(payloads):
            if not self._request.started and event_type(payload) in _WITH_RESPONSE:
                _answer_with_response(self._request, payload, self.headers())


class BackgroundStreamSink(_DetachedSink, StreamSink):
    """``background: true`` with ``stream: true``: the turn outlives its connection."""

    def client_gone(self) -> None:
        """Let the turn run on; the client can read the response later."""
        if self._turn is not None:
            self._turn.resume()


def _answer_with_response(request: ClientRequest, event: bytes, headers: Mapping[str, str]) -> None:
    try:
        response = decode_members(event)["response"]
    except (KeyError, *UNREADABLE):
        request.refuse(ApiError.bad_gateway("The upstream answered without a response object."))
        return
    request.answer(200, bytes(response), {**_JSON, **headers})
