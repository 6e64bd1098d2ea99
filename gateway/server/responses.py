"""``POST /v1/responses``: turns over HTTP (protocol.md §7)."""

from __future__ import annotations

from gateway.protocol.headers import forwardable
from gateway.protocol.request import TurnRequest, read_members, read_post
from gateway.protocol.turn_state import TURN_STATE
from gateway.routing.affinity import http_affinity_keys
from gateway.server.connections import ConnectionLimiter
from gateway.server.event_sinks import (
    BackgroundSink,
    BackgroundStreamSink,
    HttpEventSink,
    ObjectSink,
    StreamSink,
)
from gateway.server.history import ConnectionHistory
from gateway.server.http_request import ClientRequest
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.recording import recorded_turn
from gateway.turn.turn import Turn


class Responses:
    """Runs the turns of HTTP clients.

    :param limiter: counts background turns, which outlive their connections.
    """

    def __init__(self, services: TurnServices, limiter: ConnectionLimiter) -> None:
        self._services = services
        self._limiter = limiter
        self._running: set[HttpEventSink] = set()

    @property
    def turns_running(self) -> int:
        """Turns in progress."""
        return len(self._running)

    def create(self, request: ClientRequest, tenant: str) -> None:
        """``POST /v1/responses``."""
        services = self._services
        accepted_at = services.clock.seconds()
        turn_request = read_post(read_members(request.body), len(request.body))
        context = TurnContext(
            tenant=tenant,
            connection=request.connection,
            client_headers=forwardable(request.headers),
            affinity=http_affinity_keys(tenant, request.headers, turn_request),
            accepted_at=accepted_at,
            turn_state=request.headers.get(TURN_STATE)
            or turn_request.client_metadata.get(TURN_STATE),
        )
        sink = self._sink(request, turn_request, accepted_at)
        history = ConnectionHistory(services, tenant, False)
        turn: Turn
        if services.request_log.rules:
            turn = recorded_turn(services, context, turn_request, sink, history.resolve, request)
        else:
            turn = Turn(services, context, turn_request, sink, history.resolve)
        sink.attach(turn)
        self._running.add(sink)
        turn.start()

    def _sink(self, request: ClientRequest, turn_request: TurnRequest, now: float) -> HttpEventSink:
        if not turn_request.background:
            kind = StreamSink if turn_request.stream else ObjectSink
            return kind(request, now, self._turn_ended)
        detached = BackgroundStreamSink if turn_request.stream else BackgroundSink
        sink = detached(request, now, self._turn_ended)
        self._limiter.keep(sink)
        return sink

    def _turn_ended(self, sink: HttpEventSink, turn: Turn) -> None:
        """Forget a response with ``store: false``: it cannot be continued after its request."""
        self._running.discard(sink)
        if turn.recorded is not None and not turn.recorded.record.store:
            self._services.conversations.evict(turn.recorded)
        if isinstance(sink, (BackgroundSink, BackgroundStreamSink)):
            self._limiter.leave(sink)
