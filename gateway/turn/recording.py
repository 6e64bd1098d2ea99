"""Turns and forwarded requests that are recorded: the same ones, which also write what happens.

They take the place of the usual ones only where a rule asks for it, so that others cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from gateway.conversations.context import ContextPlan
from gateway.protocol.errors import ApiError
from gateway.protocol.request import TurnRequest
from gateway.protocol.response_stream import ResponseStream
from gateway.protocol.sse import Event, EventStreamParser, EventTooLarge
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.protocol.usage import Usage
from gateway.request_log.request_log import RecordingRule, TurnRecording
from gateway.request_log.writer import MAX_BODY_BYTES
from gateway.routing.account import Account
from gateway.routing.affinity import opaque_id
from gateway.turn.attempt import TurnAttempt
from gateway.turn.context import EventSink, Resolver, TurnContext, TurnServices
from gateway.turn.forwarding import (
    ForwardedResponseSink,
    Forwarding,
    ForwardingAttempt,
    RequestSpec,
)
from gateway.turn.routed_request import Attempt, RequestPhase, RoutedRequest
from gateway.turn.successor_wait import Following
from gateway.turn.turn import Turn
from gateway.turn.turn_log import TurnRecord
from gateway.upstream.interface import ForwardedRequest, Successor

_EVENT_STREAM = "text/event-stream"

#: A longer event of a forwarded answer is left out, in bytes.
_MAX_EVENT_BYTES = 1_048_576


class HttpCall(Protocol):
    """A client's HTTP request, as far as it is recorded."""

    method: str
    path: str
    query_string: str
    headers: Mapping[str, str]
    body: bytes

    def when_answered(self, call: Callable[[int, Mapping[str, str]], None]) -> None:
        """Call this with the status and the headers of the answer as it begins."""


def recorded_turn(
    services: TurnServices,
    context: TurnContext,
    request: TurnRequest,
    sink: EventSink,
    resolve: Resolver,
    call: HttpCall | None = None,
    follows: Following | None = None,
) -> Turn:
    """A turn, which is recorded if a rule asks for it.

    :param call: the client's request over HTTP; None over WebSocket.
    :param follows: its response, if that has begun already, without a request.
    """
    asking = _asking(services, context, request.model)
    if not asking:
        return Turn(services, context, request, sink, resolve, follows)
    turn = RecordedTurn(services, context, request, sink, resolve, asking, follows)
    body = _request_body(request) if call is None else call.body
    _record_request(turn.recording, turn.record, context, body, call)
    return turn


def recorded_forwarding(
    services: TurnServices,
    context: TurnContext,
    spec: RequestSpec,
    sink: ForwardedResponseSink,
    call: HttpCall,
) -> Forwarding:
    """A forwarded request, which is recorded if a rule asks for it."""
    asking = _asking(services, context, spec.model)
    if not asking:
        return Forwarding(services, context, spec, sink)
    forwarding = RecordedForwarding(services, context, spec, sink, asking)
    _record_request(forwarding.recording, forwarding.record, context, call.body or None, call)
    return forwarding


def _request_body(request: TurnRequest) -> bytes:
    """A client's message from its members."""
    members = {name: msgspec.Raw(value) for name, value in request.members.items()}
    return msgspec.json.encode(members)


def _asking(
    services: TurnServices, context: TurnContext, model: str | None
) -> Sequence[RecordingRule]:
    conversation = opaque_id(context.affinity[-1]) if context.affinity else None
    return services.request_log.asking(context.tenant, model, conversation)


def _record_request(
    recording: TurnRecording,
    record: TurnRecord,
    context: TurnContext,
    body: bytes | None,
    call: HttpCall | None,
) -> None:
    redactor = recording.redactor
    headers = context.client_headers if call is None else call.headers
    redactor.learn_headers(headers)
    fields: dict[str, Any] = {
        "at": round(context.accepted_at, 3),
        "turn": record.turn,
        "key": record.key,
        "model": record.model,
        "connection": record.connection,
        "lane": record.lane,
        "conversation": opaque_id(context.affinity[-1]) if context.affinity else None,
        "over": "websocket" if call is None else "http",
    }
    if call is not None:
        query = f"?{call.query_string}" if call.query_string else ""
        fields |= {"method": call.method, "path": redactor.path(call.path + query)}
        call.when_answered(
            lambda status, sent: recording.note(
                "head", {"status": status, "headers": redactor.headers(sent)}
            )
        )
    recording.request({**fields, "headers": redactor.headers(headers)}, body)


# --- attempts ------------------------------------------------------------------------------


class AttemptRecording:
    """Writes what happens in one attempt."""

    def __init__(self, owner: RecordedTurn | RecordedForwarding, attempt: Attempt) -> None:
        self._recording = recording = owner.recording
        self._attempt = attempt
        number = len(owner.record.attempts) + 1
        self._number = {"attempt": number, "account": attempt.account.name}
        recording.wants(attempt.account.name)
        self._learn()
        request = attempt.exchange.request
        if request is None:  # the response has begun by itself
            recording.note("attempt", {**self._number, "route": attempt.route})
            return
        redactor = recording.redactor
        account = attempt.account.settings
        own = [account.auth_header, *account.headers]
        redactor.learn_headers(request.headers, own)
        fields = {
            **self._number,
            "route": attempt.route,
            "method": request.method,
            "path": redactor.path(request.path),
            "headers": redactor.headers({**request.headers, account.auth_header.lower(): ""}, own),
        }
        recording.note("attempt", fields, *(() if request.body is None else (request.body,)))

    def connected(self) -> None:
        """The request goes out."""
        self._learn()
        self._recording.note("sent", self._number)

    def answered(self) -> None:
        """The answer begins."""
        self._learn()
        answer = self._attempt.exchange.answer()
        if answer is not None:
            headers = self._recording.redactor.headers(answer.headers)
            self._recording.redactor.learn_headers(answer.headers)
            fields = {**self._number, "status": answer.status, "headers": headers}
            self._recording.note("answer", fields)

    def said(self, bodies: Sequence[bytes]) -> None:
        """The account sent these events, or this body."""
        if bodies:
            self._recording.note("from_account", self._number, *bodies)

    def cut(self, size: int) -> None:
        """The account sent something that is too long to be written."""
        self._recording.note("from_account", {**self._number, "cut_bytes": size})

    def ended(self, error: ApiError | None, has_body: bool = False) -> None:
        """The answer is over.

        :param has_body: whether its body was written already.
        """
        if error is None:
            self._recording.note("attempt_ended", self._number)
            return
        answer = self._attempt.exchange.answer()
        if not has_body and answer is not None and answer.status >= 300:
            self.answered()
            self.said([answer.refusal])
        fields = {**self._number, "status": error.status, "error": error.label}
        self._recording.note("attempt_ended", fields, _encoded(error.body()))

    def _learn(self) -> None:
        """The account's secrets, which it may get anew at any time."""
        self._recording.redactor.learn(self._attempt.account.upstream.secrets())


class RecordedTurnAttempt(TurnAttempt):
    """One attempt of a turn that is recorded."""

    def __init__(
        self,
        turn: RoutedRequest[TurnAttempt],
        account: Account,
        plan: ContextPlan,
        sent: UpstreamTurn,
        response: ResponseStream,
        hold_seconds: float,
        clock: IReactorTime,
        follows: Successor | None = None,
    ) -> None:
        super().__init__(turn, account, plan, sent, response, hold_seconds, clock, follows)
        assert isinstance(turn, RecordedTurn)
        self._recording = AttemptRecording(turn, self)

    def upstream_connected(self) -> None:
        """The request goes out."""
        self._recording.connected()
        super().upstream_connected()

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        """The upstream's event stream begins."""
        self._recording.answered()
        super().upstream_answered(headers)

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events arrived."""
        self._recording.said([data for _, data in events])
        super().upstream_events(events)

    def upstream_ended(self, error: ApiError | None) -> None:
        """The upstream's answer is over."""
        self._recording.ended(error)
        super().upstream_ended(error)


class RecordedForwardingAttempt(ForwardingAttempt):
    """One attempt of a forwarded request that is recorded; its answer is written by events."""

    def __init__(
        self, owner: Forwarding, account: Account, spec: RequestSpec, call: ForwardedRequest
    ) -> None:
        super().__init__(owner, account, spec, call)
        assert isinstance(owner, RecordedForwarding)
        self._recording = AttemptRecording(owner, self)
        self._events: EventStreamParser | None = None
        self._body = bytearray()
        self._size = 0

    def upstream_connected(self) -> None:
        """The request goes out."""
        self._recording.connected()
        super().upstream_connected()

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins."""
        self._recording.answered()
        if headers.get("content-type", "").lower().startswith(_EVENT_STREAM):
            self._events = EventStreamParser(_MAX_EVENT_BYTES)
        super().upstream_answered(status, headers)

    def upstream_data(self, data: bytes) -> None:
        """A piece of its body; one without events is written when it is whole."""
        if self._events is not None:
            try:
                self._recording.said([event for _, event in self._events.feed(data)])
            except EventTooLarge:
                self._recording.cut(_MAX_EVENT_BYTES)
                self._events = EventStreamParser(_MAX_EVENT_BYTES)
        else:
            self._size += len(data)
            if self._size <= MAX_BODY_BYTES:
                self._body += data
        super().upstream_data(data)

    def upstream_ended(self, error: ApiError | None) -> None:
        """The answer is over."""
        self._write_body()
        self._recording.ended(error, has_body=True)
        super().upstream_ended(error)

    def cancel(self) -> None:
        """Drop the attempt; what came of its answer is written."""
        self._write_body()
        super().cancel()

    def _write_body(self) -> None:
        size, body = self._size, bytes(self._body)
        self._size, self._body = 0, bytearray()
        if size > MAX_BODY_BYTES:
            self._recording.cut(size)
        elif size:
            self._recording.said([body])


# --- turns ---------------------------------------------------------------------------------


class RecordingSink:
    """An :class:`~gateway.turn.context.EventSink` that also writes what the client gets."""

    def __init__(self, sink: EventSink, recording: TurnRecording) -> None:
        self._sink = sink
        self._recording = recording

    def relay(self, payloads: Sequence[bytes]) -> None:
        """Send events, each one JSON text, in order."""
        if payloads:
            self._recording.note("to_client", {}, *payloads)
        self._sink.relay(payloads)

    def refuse(self, error: ApiError) -> None:
        """Send the error that ends the turn."""
        self._recording.note("to_client", {"status": error.status}, _error_body(error))
        self._sink.refuse(error)

    def keep_alive(self) -> None:
        """Send a keep-alive that clients ignore."""
        self._recording.note("keep_alive", {})
        self._sink.keep_alive()

    def turn_ended(self) -> None:
        """The turn is over; its terminal event was sent."""
        self._sink.turn_ended()


class RecordedTurn(Turn):
    """A turn that is recorded.

    :param asking: the rules that ask for it.
    :ivar recording: what is written of it.
    """

    attempt_class = RecordedTurnAttempt

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        request: TurnRequest,
        sink: EventSink,
        resolve: Resolver,
        asking: Sequence[RecordingRule],
        follows: Following | None = None,
    ) -> None:
        super().__init__(services, context, request, sink, resolve, follows)
        self.recording = services.request_log.recording(
            asking, self.record.turn, context.tenant, context.accepted_at
        )
        self._sink = RecordingSink(sink, self.recording)

    def _close(self, status: str, error_code: str | None) -> None:
        if self.recording.is_written:
            self.record.recording = self.recording.name
        super()._close(status, error_code)
        _note_end(self.recording, self.record)


class RecordingResponseSink:
    """A :class:`ForwardedResponseSink` that tells when the client has its answer."""

    def __init__(self, sink: ForwardedResponseSink) -> None:
        self._sink = sink
        self.ended: Callable[[ApiError | None], None] = lambda _: None
        self.response_started = sink.response_started
        self.response_data = sink.response_data

    def response_usage(self) -> Usage | None:
        """The usage in the answer, or None."""
        return self._sink.response_usage()

    def response_ended(self, error: ApiError | None) -> None:
        """The answer is complete, or it broke off or was never given."""
        self._sink.response_ended(error)
        self.ended(error)


class RecordedForwarding(Forwarding):
    """A forwarded request that is recorded.

    :param asking: the rules that ask for it.
    :ivar recording: what is written of it.
    """

    attempt_class = RecordedForwardingAttempt

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        spec: RequestSpec,
        sink: ForwardedResponseSink,
        asking: Sequence[RecordingRule],
    ) -> None:
        recording_sink = RecordingResponseSink(sink)
        super().__init__(services, context, spec, recording_sink)
        self.recording = services.request_log.recording(
            asking, self.record.turn, context.tenant, context.accepted_at
        )
        recording_sink.ended = self._answered

    def cancel(self, satisfied: bool = False) -> None:
        """The client is gone."""
        if self._phase is not RequestPhase.ENDED:
            super().cancel(satisfied)
            _note_end(self.recording, self.record)

    def _close(self, status: str, error_code: str | None) -> None:
        if self.recording.is_written:
            self.record.recording = self.recording.name
        super()._close(status, error_code)

    def _answered(self, error: ApiError | None) -> None:
        if error is not None:
            self.recording.note("to_client", {"status": error.status}, _error_body(error))
        _note_end(self.recording, self.record)


def _error_body(error: ApiError) -> bytes:
    """An error as it is written."""
    return _encoded({"error": error.body()})


def _encoded(value: Any) -> bytes:
    """A value of the gateway's own as JSON; what cannot be written ends no turn."""
    try:
        return msgspec.json.encode(value, enc_hook=str)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return b"null"


def _note_end(recording: TurnRecording, record: TurnRecord) -> None:
    """The end of a turn, with its record."""
    fields = {"status": record.status, "error": record.error_code}
    recording.note("end", fields, _encoded(record.as_dict()))
