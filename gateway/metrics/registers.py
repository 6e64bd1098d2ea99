"""The memory register: every structure that grows with use, its size and its bound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from gateway.api_keys.keys import Tenants
from gateway.api_keys.strangers import MAX_ADDRESSES as MAX_STRANGERS
from gateway.metrics.history import STEPS, History
from gateway.metrics.turns import MAX_MODELS, MAX_NAMES, Tally
from gateway.routing.health import MAX_MODELS as MAX_RESTING_MODELS
from gateway.routing.model_catalog import MAX_CATALOGUES, Catalogues
from gateway.routing.pool import MAX_MODELS as MAX_POOL_MODELS
from gateway.server.connections import MAX_SILENT, Admission
from gateway.server.websocket_site import ResponsesFactory
from gateway.turn.context import TurnEnvironment
from gateway.turn.turn_log import RING
from gateway.upstream.http import HttpUpstream

#: What one entry takes, in bytes: measured, see where each structure says it.
_BINDING_BYTES = 290
_OWNER_BYTES = 130
_SEAL_BYTES = 150


class Register(NamedTuple):
    """One structure.

    :ivar bound: None where other registers' bounds bound it.
    :ivar bytes: about what it takes, or None when nobody knows.
    """

    name: str
    size: int
    bound: int | None
    unit: str
    bytes: int | None = None


class Registers:
    """Reads them all.

    :param catalogues: which models upstreams offer.
    """

    def __init__(
        self,
        environment: TurnEnvironment,
        tenants: Tenants,
        admission: Admission,
        door: ResponsesFactory,
        catalogues: Catalogues,
        tally: Tally,
        history: History,
    ) -> None:
        self._environment = environment
        self._tenants = tenants
        self._admission = admission
        self._door = door
        self._catalogues = catalogues
        self._tally = tally
        self._history = history

    def read(self) -> list[Register]:
        """All of them."""
        return [*self._remembered(), *self._clients(), *self._accounts(), *self._measured()]

    def shown(self) -> list[dict[str, Any]]:
        """The same for JSON."""
        return [register._asdict() for register in self.read()]

    def _remembered(self) -> Iterator[Register]:
        environment = self._environment
        ledger = environment.ledger.figures()
        yield Register("ledger", ledger.bytes, ledger.max_bytes, "bytes", ledger.bytes)
        yield Register("ledger conversations", ledger.conversations, None, "conversations")
        yield Register("ledger responses", ledger.responses, None, "responses")
        seals, owners = environment.seals, environment.owners
        yield _counted("seals", len(seals), seals.max_seals, "seals", _SEAL_BYTES)
        yield _counted("owners", len(owners), owners.max_responses, "responses", _OWNER_BYTES)
        bindings = environment.pool.bindings
        yield _counted(
            "bindings", len(bindings), bindings.max_bindings, "conversations", _BINDING_BYTES
        )
        yield Register("journal", len(environment.journal), RING, "turns")

    def _clients(self) -> Iterator[Register]:
        sessions = self._door.sessions()
        lanes = sum(session.lanes for session in sessions)
        queued = sum(session.turns_queued for session in sessions)
        waiting = self._environment.waiting
        yield Register(
            "connections", len(self._admission), self._admission.max_connections, "connections"
        )
        silent = self._admission.silent
        yield Register("silent connections", len(silent), MAX_SILENT, "connections")
        incoming = self._admission.incoming
        yield Register("incoming", incoming.bytes, incoming.max_bytes, "bytes", incoming.bytes)
        yield Register("queued turns", queued, lanes * self._door.max_queued_turns, "turns")
        yield Register("waiting room", len(waiting), waiting.max_waiting, "turns")
        windows = [limit for key in self._tenants.snapshot() for limit in key["limits"]]
        strangers = self._tenants.strangers
        yield Register("strangers", len(strangers), MAX_STRANGERS, "addresses")
        yield Register("key limits", len(windows), None, "windows")

    def _accounts(self) -> Iterator[Register]:
        pool = self._environment.pool
        accounts = pool.accounts
        resting = sum(len(account.health.snapshot()["models"]) for account in accounts)
        yield Register(
            "models at rest", resting, MAX_RESTING_MODELS * len(accounts), "models of accounts"
        )
        upstreams = [
            account.upstream for account in accounts if isinstance(account.upstream, HttpUpstream)
        ]
        kept = sum(upstream.kept for upstream in upstreams)
        most = sum(upstream.max_kept for upstream in upstreams)
        yield Register("idle upstream connections", kept, most, "connections")
        yield Register("models of the pool", pool.models_remembered, MAX_POOL_MODELS, "models")
        yield Register("model catalogues", len(self._catalogues), MAX_CATALOGUES, "catalogues")

    def _measured(self) -> Iterator[Register]:
        tally = self._tally
        yield Register("models counted", len(tally.models), MAX_MODELS + 2, "models")
        yield Register("accounts counted", len(tally.accounts), MAX_NAMES + 1, "accounts")
        yield Register("keys and models counted", len(tally.uses), None, "pairs")
        yield Register("history", len(self._history), STEPS, "points")


def _counted(name: str, size: int, bound: int, unit: str, each: int) -> Register:
    return Register(name, size, bound, unit, size * each)
