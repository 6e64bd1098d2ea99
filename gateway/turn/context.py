"""What turns and passed-through requests work with, and what each of them belongs to."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from gateway.api_keys.keys import KeyRing
from gateway.conversations.owners import ContentIssuers, ResponseOwners
from gateway.conversations.store import ConversationStore, Transcript
from gateway.protocol.errors import ApiError
from gateway.protocol.request import TurnRequest
from gateway.protocol.turn_state import TurnStateSigner
from gateway.routing.affinity import AffinityKey
from gateway.routing.router import AccountPool
from gateway.routing.wait_queue import WaitQueue
from gateway.turn.turn_log import TurnLog


@dataclass(frozen=True)
class TurnServices:
    """The parts of the gateway that turns share.

    :ivar owners: which account keeps a stored response.
    :ivar waiting: where turns wait while no account is free.
    :ivar limits: what each tenant may use.
    :ivar hold_seconds: how long the preamble of an answer is held back for a refusal.
    :ivar keepalive_seconds: silence after which the client gets a sign of life; 0: never.
    """

    clock: IReactorTime
    conversations: ConversationStore
    issuers: ContentIssuers
    owners: ResponseOwners
    pool: AccountPool
    waiting: WaitQueue
    limits: KeyRing
    turn_states: TurnStateSigner
    turn_log: TurnLog
    hold_seconds: float
    keepalive_seconds: float


class Told(enum.Flag):
    """What a WebSocket client is told in a ``response.metadata`` event."""

    NOTHING = 0
    TURN_STATE = enum.auto()
    ROUTE = enum.auto()


class TurnContext(msgspec.Struct, frozen=True):
    """The client of one request.

    :ivar tenant: name of the client key.
    :ivar client_headers: those of the handshake that matter to upstreams, in lower case.
    :ivar affinity: the keys the request is routed by, the strongest first.
    :ivar accepted_at: when the request was read, unix seconds.
    :ivar turn_state: ``x-codex-turn-state`` as the client echoed it, or None.
    :ivar told: what the client wants to be told beside the answer.
    """

    tenant: str
    connection: str
    client_headers: Mapping[str, str]
    affinity: Sequence[AffinityKey]
    accepted_at: float
    turn_state: str | None = None
    told: Told = Told.NOTHING


class Resolution(NamedTuple):
    """A request with everything that had to be looked up for it.

    :ivar request: with the issuers of its encrypted items.
    :ivar parent: the response it continues, or None for a new conversation.
    :ivar continuation: how the parent was found: the client named it, or the session did.
    :ivar given_here: whether this very connection gave the parent out.
    """

    request: TurnRequest
    parent: Transcript | None = None
    continuation: str | None = None
    given_here: bool = False


#: Looks up what a request needs: at once, or later from a store outside of this process.
#: Raises, or fails with, :class:`ApiError` when the request cannot be continued.
Resolver = Callable[[TurnRequest], "Resolution | Deferred[Resolution]"]


class EventSink(Protocol):
    """Where a turn's events go: a lane of a WebSocket, or an HTTP response."""

    def relay(self, payloads: Sequence[bytes]) -> None:
        """Send events, each one JSON text, in order."""

    def refuse(self, error: ApiError) -> None:
        """Send the error that ends the turn, in the client's own format."""

    def keep_alive(self) -> None:
        """Send a sign of life that means nothing."""

    def turn_ended(self) -> None:
        """The turn is over; its terminal event was sent."""
