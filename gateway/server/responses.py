"""``POST /v1/responses``: a turn for a client without a socket (protocol.md §7)."""

from __future__ import annotations

from gateway.conversations.records import Record
from gateway.protocol.errors import ApiError
from gateway.protocol.request import TurnRequest, client_metadata, read_members, read_post
from gateway.protocol.turn_state import TURN_STATE
from gateway.protocol.upstream_request import forwardable
from gateway.routing.affinity import http_affinity_keys
from gateway.server.connections import Admission
from gateway.server.event_sinks import (
    BackgroundDoor,
    BackgroundStreamDoor,
    Door,
    HttpDoor,
    ObjectDoor,
    StreamDoor,
)
from gateway.server.history import Lineage
from gateway.server.http_request import HttpRequest
from gateway.server.starting import start_turn
from gateway.turn.context import TurnContext, TurnEnvironment
from gateway.turn.turn import Turn


class Responses:
    """Runs the turns of HTTP clients.

    :param admission: keeps account of what goes on without a client.
    """

    def __init__(self, environment: TurnEnvironment, admission: Admission) -> None:
        self._environment = environment
        self._admission = admission
        self._running: set[HttpDoor] = set()

    @property
    def turns_running(self) -> int:
        """Turns in progress."""
        return len(self._running)

    def create(self, request: HttpRequest, tenant: str) -> None:
        """``POST /v1/responses``."""
        environment = self._environment
        accepted_at = environment.clock.seconds()
        turn_request = read_post(
            read_members(request.body), len(request.body), environment.seals.issuer_of
        )
        refusal: ApiError | None = None
        parent: Record | None = None
        continuation: str | None = None
        lineage = Lineage(environment, tenant, False)
        try:
            parent, continuation = lineage.parent_of(turn_request, None)
        except ApiError as error:
            refusal = error
        context = TurnContext(
            tenant=tenant,
            connection=request.connection,
            client_headers=forwardable(request.headers),
            affinity=http_affinity_keys(tenant, request.headers, turn_request),
            parent=parent,
            continuation=continuation,
            accepted_at=accepted_at,
            turn_state=request.headers.get(TURN_STATE)
            or client_metadata(turn_request.members).get(TURN_STATE),
        )
        door = self._door(request, turn_request, accepted_at)
        turn = Turn(environment, context, turn_request, door)
        door.opens(turn)
        self._running.add(door)
        start_turn(turn, refusal)

    def _door(self, request: HttpRequest, turn_request: TurnRequest, now: float) -> Door:
        if not turn_request.background:
            kind = StreamDoor if turn_request.stream else ObjectDoor
            return kind(request, now, self._turn_ended)
        detached = BackgroundStreamDoor if turn_request.stream else BackgroundDoor
        door = detached(request, now, self._turn_ended)
        self._admission.keep(door)
        return door

    def _turn_ended(self, door: HttpDoor, turn: Turn) -> None:
        """What was not to be stored ends with its request; nobody may continue it (§6.4)."""
        self._running.discard(door)
        if turn.recorded is not None and not turn.recorded.store:
            self._environment.ledger.evict(turn.recorded)
        if isinstance(door, (BackgroundDoor, BackgroundStreamDoor)):
            self._admission.leave(door)
