"""The memory register: every structure that grows with use, its size and its bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.strangers import MAX_ADDRESSES as MAX_STRANGERS
from gateway.metrics.history import STEPS, History
from gateway.metrics.turns import MAX_MODELS, MAX_NAMES, TurnMetrics
from gateway.routing.health import MAX_MODELS as MAX_RESTING_MODELS
from gateway.routing.model_catalog import MAX_CATALOGUES, ModelCatalog
from gateway.routing.router import MAX_MODELS as MAX_POOL_MODELS
from gateway.server.connections import MAX_SILENT, ConnectionLimiter
from gateway.server.websocket_site import ResponsesFactory
from gateway.turn.context import TurnServices
from gateway.turn.turn_log import RING
from gateway.upstream.http import HttpUpstream

#: What one entry takes, in bytes: measured, see where each structure says it.
_BINDING_BYTES = 290
_OWNER_BYTES = 130
_SEAL_BYTES = 150


class BoundedStructure(NamedTuple):
    """One structure.

    :ivar bound: None where other registers' bounds bound it.
    :ivar bytes: about what it takes, or None when nobody knows.
    """

    name: str
    size: int
    bound: int | None
    unit: str
    bytes: int | None = None


class BoundedStructures:
    """Reads them all.

    :param catalogues: which models upstreams offer.
    """

    def __init__(
        self,
        services: TurnServices,
        tenants: KeyRing,
        limiter: ConnectionLimiter,
        door: ResponsesFactory,
        catalogues: ModelCatalog,
        tally: TurnMetrics,
        history: History,
    ) -> None:
        self._services = services
        self._tenants = tenants
        self._limiter = limiter
        self._door = door
        self._catalogues = catalogues
        self._tally = tally
        self._history = history

    def read(self) -> list[BoundedStructure]:
        """All of them."""
        return [*self._remembered(), *self._clients(), *self._accounts(), *self._measured()]

    def shown(self) -> list[dict[str, Any]]:
        """The same for JSON."""
        return [register._asdict() for register in self.read()]

    def _remembered(self) -> Iterator[BoundedStructure]:
        services = self._services
        ledger = services.ledger.figures()
        yield BoundedStructure("ledger", ledger.bytes, ledger.max_bytes, "bytes", ledger.bytes)
        yield BoundedStructure("ledger conversations", ledger.conversations, None, "conversations")
        yield BoundedStructure("ledger responses", ledger.responses, None, "responses")
        issuers, owners = services.issuers, services.owners
        yield _counted("seals", len(issuers), issuers.max_entries, "seals", _SEAL_BYTES)
        yield _counted("owners", len(owners), owners.max_responses, "responses", _OWNER_BYTES)
        bindings = services.pool.bindings
        yield _counted(
            "bindings", len(bindings), bindings.max_bindings, "conversations", _BINDING_BYTES
        )
        yield BoundedStructure("journal", len(services.turn_log), RING, "turns")

    def _clients(self) -> Iterator[BoundedStructure]:
        sessions = self._door.sessions()
        lanes = sum(session.lanes for session in sessions)
        queued = sum(session.turns_queued for session in sessions)
        waiting = self._services.waiting
        yield BoundedStructure(
            "connections", len(self._limiter), self._limiter.max_connections, "connections"
        )
        silent = self._limiter.silent
        yield BoundedStructure("silent connections", len(silent), MAX_SILENT, "connections")
        incoming = self._limiter.incoming
        yield BoundedStructure(
            "incoming", incoming.bytes, incoming.max_bytes, "bytes", incoming.bytes
        )
        yield BoundedStructure("queued turns", queued, lanes * self._door.max_queued_turns, "turns")
        yield BoundedStructure("waiting room", len(waiting), waiting.max_waiting, "turns")
        windows = [limit for key in self._tenants.snapshot() for limit in key["limits"]]
        strangers = self._tenants.strangers
        yield BoundedStructure("strangers", len(strangers), MAX_STRANGERS, "addresses")
        yield BoundedStructure("key limits", len(windows), None, "windows")

    def _accounts(self) -> Iterator[BoundedStructure]:
        pool = self._services.pool
        accounts = pool.accounts
        resting = sum(len(account.health.snapshot()["models"]) for account in accounts)
        yield BoundedStructure(
            "models at rest", resting, MAX_RESTING_MODELS * len(accounts), "models of accounts"
        )
        upstreams = [
            account.upstream for account in accounts if isinstance(account.upstream, HttpUpstream)
        ]
        kept = sum(upstream.kept for upstream in upstreams)
        most = sum(upstream.max_kept for upstream in upstreams)
        yield BoundedStructure("idle upstream connections", kept, most, "connections")
        yield BoundedStructure(
            "models of the pool", pool.models_remembered, MAX_POOL_MODELS, "models"
        )
        yield BoundedStructure(
            "model catalogues", len(self._catalogues), MAX_CATALOGUES, "catalogues"
        )

    def _measured(self) -> Iterator[BoundedStructure]:
        tally = self._tally
        yield BoundedStructure("models counted", len(tally.models), MAX_MODELS + 2, "models")
        yield BoundedStructure("accounts counted", len(tally.accounts), MAX_NAMES + 1, "accounts")
        yield BoundedStructure("keys and models counted", len(tally.uses), None, "pairs")
        yield BoundedStructure("history", len(self._history), STEPS, "points")


def _counted(name: str, size: int, bound: int, unit: str, each: int) -> BoundedStructure:
    return BoundedStructure(name, size, bound, unit, size * each)
