"""The bounded structures: everything that grows with use, its size and its bound.

The status page and the metrics show them as the *memory register*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from gateway.api_keys.keys import MAX_ADDRESSES as MAX_UNKNOWN_CLIENTS
from gateway.api_keys.keys import KeyRing
from gateway.metrics.turns import MAX_MODELS, MAX_NAMES, TurnMetrics
from gateway.routing.account import Account
from gateway.routing.health import MAX_MODELS as MAX_LIMITED_MODELS
from gateway.routing.model_catalog import MAX_CATALOGUES, ModelCatalog
from gateway.routing.router import MAX_MODELS as MAX_POOL_MODELS
from gateway.server.connections import MAX_SILENT, ConnectionLimiter
from gateway.server.websocket import ResponsesFactory
from gateway.state.keeper import StateFigures, nothing_kept
from gateway.turn.context import TurnServices
from gateway.turn.turn_log import RING
from gateway.upstream.http import HttpUpstream
from gateway.upstream.websocket import WebSocketUpstream

#: The memory of one entry in bytes, as measured where each structure is defined.
_BINDING_BYTES = 290
_OWNER_BYTES = 130
_ISSUER_BYTES = 150


class BoundedStructure(NamedTuple):
    """One structure.

    :ivar bound: None if the bounds of other structures bound it.
    :ivar bytes: its approximate memory, or None when that is not known.
    """

    name: str
    size: int
    bound: int | None
    unit: str
    bytes: int | None = None


class BoundedStructures:
    """Reads the sizes of all bounded structures.

    :param websockets: the factory of WebSocket connections.
    :param catalogues: which models upstreams offer.
    :param kept: called for how the state is kept.
    """

    def __init__(
        self,
        services: TurnServices,
        keys: KeyRing,
        limiter: ConnectionLimiter,
        websockets: ResponsesFactory,
        catalogues: ModelCatalog,
        turns: TurnMetrics,
        kept: Callable[[], StateFigures | None] = nothing_kept,
    ) -> None:
        self._services = services
        self._keys = keys
        self._limiter = limiter
        self._websockets = websockets
        self._catalogues = catalogues
        self._turns = turns
        self._kept = kept

    def read(self) -> list[BoundedStructure]:
        """All of them."""
        return [*self._remembered(), *self._clients(), *self._accounts(), *self._measured()]

    def _remembered(self) -> Iterator[BoundedStructure]:
        services = self._services
        figures = services.conversations.figures()
        yield BoundedStructure("ledger", figures.bytes, figures.max_bytes, "bytes", figures.bytes)
        yield BoundedStructure("ledger conversations", figures.conversations, None, "conversations")
        yield BoundedStructure("ledger responses", figures.responses, None, "responses")
        issuers, owners = services.issuers, services.owners
        yield _counted("seals", len(issuers), issuers.max_entries, "seals", _ISSUER_BYTES)
        yield _counted("owners", len(owners), owners.max_responses, "responses", _OWNER_BYTES)
        bindings = services.pool.bindings
        yield _counted(
            "bindings", len(bindings), bindings.max_bindings, "conversations", _BINDING_BYTES
        )
        yield BoundedStructure("journal", len(services.turn_log), RING, "turns")
        log = services.request_log
        waits = log.queued_bytes
        yield BoundedStructure("request log", waits, log.max_queued_bytes, "bytes", waits)
        kept = self._kept()
        if kept is not None:
            waits, bound = kept.writes.bytes, kept.writes.max_bytes
            yield BoundedStructure("unwritten state", waits, bound, "bytes", waits)

    def _clients(self) -> Iterator[BoundedStructure]:
        sessions = self._websockets.sessions()
        limiter, waiting = self._limiter, self._services.waiting
        yield BoundedStructure("connections", len(limiter), limiter.max_connections, "connections")
        yield BoundedStructure("silent connections", len(limiter.silent), MAX_SILENT, "connections")
        unread = limiter.incoming
        yield BoundedStructure("incoming", unread.bytes, unread.max_bytes, "bytes", unread.bytes)
        queued = sum(session.turns_queued for session in sessions)
        most = sum(session.lanes for session in sessions) * self._websockets.max_queued_turns
        yield BoundedStructure("queued turns", queued, most, "turns")
        yield BoundedStructure("waiting room", len(waiting), waiting.max_waiting, "turns")
        unknown = self._keys.unknown_keys
        yield BoundedStructure("strangers", len(unknown), MAX_UNKNOWN_CLIENTS, "addresses")
        windows = sum(len(key["limits"]) for key in self._keys.snapshot())
        yield BoundedStructure("key limits", windows, None, "windows")

    def _accounts(self) -> Iterator[BoundedStructure]:
        pool = self._services.pool
        accounts = pool.accounts
        limited = sum(len(account.health.snapshot()["models"]) for account in accounts)
        most = MAX_LIMITED_MODELS * len(accounts)
        yield BoundedStructure("models at rest", limited, most, "models of accounts")
        by_http = map(_over_http, accounts)
        upstreams = [upstream for upstream in by_http if upstream is not None]
        kept = sum(upstream.kept for upstream in upstreams)
        most = sum(upstream.max_kept for upstream in upstreams)
        yield BoundedStructure("idle upstream connections", kept, most, "connections")
        by_socket = [account.upstream.sockets() for account in accounts]
        sockets = [figures for figures in by_socket if figures is not None]
        opened = sum(each.in_use + each.idle + each.opening for each in sockets)
        most = min(
            sum(each.most for each in sockets),
            max((each.most_of_all for each in sockets), default=0),
        )
        yield BoundedStructure("upstream websockets", opened, most, "sockets")
        models, catalogues = pool.models_remembered, len(self._catalogues)
        yield BoundedStructure("models of the pool", models, MAX_POOL_MODELS, "models")
        yield BoundedStructure("model catalogues", catalogues, MAX_CATALOGUES, "catalogues")

    def _measured(self) -> Iterator[BoundedStructure]:
        turns = self._turns
        yield BoundedStructure("models counted", len(turns.models), MAX_MODELS + 2, "models")
        yield BoundedStructure("accounts counted", len(turns.accounts), MAX_NAMES + 1, "accounts")
        yield BoundedStructure("keys and models counted", len(turns.uses), None, "pairs")


def _over_http(account: Account) -> HttpUpstream | None:
    """The account's side over HTTP, which it has beside its WebSockets, too."""
    upstream = account.upstream
    if isinstance(upstream, WebSocketUpstream):
        return upstream.access.http
    return upstream if isinstance(upstream, HttpUpstream) else None


def _counted(name: str, size: int, bound: int, unit: str, each: int) -> BoundedStructure:
    return BoundedStructure(name, size, bound, unit, size * each)
