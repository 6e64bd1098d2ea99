"""What the admin side shows, gathered when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .. import __version__
from ..accounts.account import Account
from ..downstream.websocket import ResponsesFactory
from ..turn.environment import TurnEnvironment


class Status:
    """Reads the running gateway.

    :param now: seconds, of any origin.
    """

    def __init__(
        self, environment: TurnEnvironment, door: ResponsesFactory, now: Callable[[], float]
    ) -> None:
        self._environment = environment
        self._door = door
        self._now = now
        self._started = now()

    def ready(self) -> bool:
        """Whether new connections are let in."""
        return not self._door.draining

    def overview(self) -> dict[str, Any]:
        """Everything at a glance."""
        sessions = self._door.sessions()
        environment = self._environment
        return {
            "version": __version__,
            "uptime_seconds": round(self._now() - self._started, 1),
            "ready": self.ready(),
            "connections": len(self._door.connections),
            "turns_in_flight": sum(session.turns_running for session in sessions),
            "turns_queued": sum(session.turns_queued for session in sessions),
            "turns": dict(environment.journal.totals),
            "accounts": [_account(account) for account in environment.pool.accounts],
            "ledger": msgspec.to_builtins(environment.ledger.figures()),
            "bindings": len(environment.pool.bindings),
            "seals": len(environment.seals),
        }

    def turns(self) -> dict[str, Any]:
        """The last turns, the newest last."""
        return {"turns": [record.as_dict() for record in self._environment.journal.latest()]}


def _account(account: Account) -> dict[str, Any]:
    return {
        "name": account.name,
        "in_flight": account.in_flight,
        "turns": account.turns,
        "failures": account.failures,
        "continuity": {
            "setting": account.settings.continuity,
            "learned": account.learned.shown(),
        },
    }
