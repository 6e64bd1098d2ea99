"""What turns and forwarded requests share, and the context of each."""

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
from gateway.protocol.items import Item
from gateway.protocol.request import TurnRequest
from gateway.protocol.turn_state import TurnStateSigner
from gateway.request_log.request_log import RequestLog
from gateway.routing.affinity import AffinityKey
from gateway.routing.router import AccountPool
from gateway.routing.wait_queue import WaitQueue
from gateway.turn.turn_log import TurnLog


class Recaller(Protocol):
    """Reads into memory what a turn needs and another process, or an earlier one, has written."""

    def recall(
        self, tenant: str, response_id: str | None, items: Sequence[Item]
    ) -> Deferred[None] | None:
        """Read a response and the issuers of encrypted items.

        :return: None when memory has all of it.  The Deferred fails with :class:`ApiError` when
            the turn cannot go on without it.
        """


@dataclass(frozen=True)
class TurnServices:
    """The parts of the gateway that turns share.

    :ivar owners: which account keeps a stored response.
    :ivar recall: where else conversations are.
    :ivar waiting: where turns wait while no account is free.
    :ivar limits: what each tenant may use.
    :ivar request_log: which turns are recorded with all that they say.
    :ivar hold_seconds: how long the preamble is held back, in case a refusal follows.
    :ivar keepalive_seconds: silence after which the client gets a keep-alive; 0: never.
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
    request_log: RequestLog
    recall: Recaller
    hold_seconds: float
    keepalive_seconds: float


class MetadataFields(enum.Flag):
    """The fields of the ``response.metadata`` events that a WebSocket client gets."""

    NONE = 0
    TURN_STATE = enum.auto()
    ROUTE = enum.auto()


class TurnContext(msgspec.Struct, frozen=True):
    """The client of one request.

    :ivar tenant: name of the client key.
    :ivar client_headers: the client's headers that are forwarded; names in lower case.
    :ivar affinity: the keys the request is routed by, the strongest first.
    :ivar accepted_at: when the request was read, unix seconds.
    :ivar turn_state: ``x-codex-turn-state`` as the client echoed it, or None.
    :ivar metadata: what the client gets in ``response.metadata`` events.
    """

    tenant: str
    connection: str
    client_headers: Mapping[str, str]
    affinity: Sequence[AffinityKey]
    accepted_at: float
    turn_state: str | None = None
    metadata: MetadataFields = MetadataFields.NONE


class Resolution(NamedTuple):
    """A request, and the response that it continues.

    :ivar request: with the issuers of its encrypted items.
    :ivar parent: the response it continues, or None for a new conversation.
    :ivar continuation: how the parent was found: the client named it, or the session did.
    :ivar issued_here: whether this connection issued the parent.
    :ivar steered: steering input that the account of the parent will put before the request's.
    """

    request: TurnRequest
    parent: Transcript | None = None
    continuation: str | None = None
    issued_here: bool = False
    steered: Sequence[Item] = ()


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
        """Send a keep-alive that clients ignore."""

    def turn_ended(self) -> None:
        """The turn is over; its terminal event was sent."""
