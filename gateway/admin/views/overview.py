"""Everything at a glance: is it ready, what runs now, and is there anything to be done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ... import __version__
from ...accounts.health import AccountState
from ..running import Running
from .accounts import account, conversations_by_account, usable
from .keys import keys

#: Alarms that are shown one by one.
_MAX_ALARMS = 50

#: States in which an account waits for somebody.
_LOST = {AccountState.UNAUTHORIZED: "red", AccountState.EXHAUSTED: "amber"}


def ready(running: Running) -> str | None:
    """Why no new work is welcome, or None when it is."""
    if running.admission.draining:
        return "draining"
    if not any(map(usable, running.environment.pool.accounts)):
        return "no account is usable"
    return None


def overview(running: Running) -> dict[str, Any]:
    """What the page shows first, with the history of the last minutes."""
    return {**current(running), "history": running.figures.history()}


def current(running: Running) -> dict[str, Any]:
    """The overview as it is sent every second: without history, with its newest point."""
    environment = running.environment
    configuration = running.configuration
    pinned = conversations_by_account(environment.pool)
    now = at_present(running)
    alarms = _alarms(running)
    rejected = configuration.last_rejected()
    return {
        "version": __version__,
        "uptime_seconds": round(running.now() - running.started_at, 1),
        "state": _state(running, alarms),
        "ready": ready(running) is None,
        "generation": configuration.generation(),
        "last_rejected_reload": None if rejected is None else rejected._asdict(),
        "log_level": running.threshold.level,
        **running.figures.process(),
        "alarms": alarms,
        "now": now,
        "newest": running.figures.newest(),
        "connections": now["websockets"],
        "turns_in_flight": now["turns_in_flight"],
        "turns_queued": now["turns_queued"],
        "turns": dict(environment.journal.totals),
        "accounts": [
            {**account(running, each), "pinned": pinned[each.name]}
            for each in environment.pool.accounts
        ],
        **keys(running),
        "ledger": msgspec.to_builtins(environment.ledger.figures()),
        "bindings": len(environment.pool.bindings),
        "seals": len(environment.seals),
    }


def at_present(running: Running) -> dict[str, Any]:
    """The counts of this moment and the rates of the last minute."""
    sessions = running.door.sessions()
    over_websockets = sum(session.turns_running for session in sessions)
    return {
        "connections": len(running.admission),
        "websockets": len(running.door.connections),
        "lanes": sum(session.lanes for session in sessions),
        "turns_in_flight": over_websockets + running.http_turns(),
        "turns_queued": sum(session.turns_queued for session in sessions),
        "turns_waiting": len(running.environment.waiting),
        **running.figures.rates(),
    }


def _state(running: Running, alarms: list[Mapping[str, Any]]) -> str:
    if running.admission.draining:
        return "draining"
    return "degraded" if alarms else "ready"


def _alarms(running: Running) -> list[Mapping[str, Any]]:
    """What somebody should look at; red where somebody should act."""
    pool = running.environment.pool
    alarms: list[Mapping[str, Any]] = [*running.figures.alarms()]
    if not any(map(usable, pool.accounts)):
        since = max((each.health.snapshot()["since"] for each in pool.accounts), default=None)
        alarms.append(_alarm("red", "no account is usable", since))
    for each in pool.accounts:
        level = _LOST.get(each.health.state)
        if level is not None:
            since = each.health.snapshot()["since"]
            alarms.append(_alarm(level, f"{each.name} is {each.health.state.value}", since))
    rejected = running.configuration.last_rejected()
    if rejected is not None:
        alarms.append(
            _alarm("amber", f"a configuration was rejected: {rejected.error}", rejected.at)
        )
    return alarms[:_MAX_ALARMS]


def _alarm(level: str, what: str, since: float | None) -> Mapping[str, Any]:
    return {"level": level, "what": what, "since": since}
