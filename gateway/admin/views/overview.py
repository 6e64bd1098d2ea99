"""Everything at a glance: is it ready, what runs now, and is there anything to be done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway import __version__
from gateway.admin.running import Running
from gateway.admin.views.accounts import account, conversations_by_account
from gateway.admin.views.alarms import alarms
from gateway.admin.views.keys import keys
from gateway.routing.wait_queue import WaitReason


def ready(running: Running) -> str | None:
    """Why no new work is welcome, or None when it is."""
    if running.limiter.draining:
        return "draining"
    if all(each.unready() for each in running.services.pool.accounts):
        return "no account is usable"
    return None


def overview(running: Running) -> dict[str, Any]:
    """What the page shows first, with the history of the last minutes."""
    return {**current(running), "history": running.figures.history()}


def current(running: Running) -> dict[str, Any]:
    """The overview as it is sent every second: without history, with its newest point."""
    services = running.services
    configuration = running.configuration
    pinned = conversations_by_account(services.pool)
    accounts = [
        {**account(running, each), "pinned": pinned[each.name]} for each in services.pool.accounts
    ]
    found = alarms(running, accounts)
    rejected = configuration.last_rejected()
    return {
        "version": __version__,
        "uptime_seconds": round(running.now() - running.started_at, 1),
        "state": _state(running, found),
        "ready": ready(running) is None,
        "generation": configuration.generation(),
        "last_rejected_reload": None if rejected is None else rejected._asdict(),
        "log_level": running.threshold.level,
        **running.figures.process(),
        "alarms": found,
        "now": at_present(running),
        "newest": running.figures.newest(),
        "turns": dict(services.turn_log.totals),
        "accounts": accounts,
        **keys(running),
        "ledger": msgspec.to_builtins(services.ledger.figures()),
        "bindings": len(services.pool.bindings),
        "seals": len(services.issuers),
    }


def at_present(running: Running) -> dict[str, Any]:
    """The counts of this moment and the rates of the last minute."""
    sessions, waiting = running.door.sessions(), running.services.waiting
    over_websockets = sum(session.turns_running for session in sessions)
    return {
        "connections": len(running.limiter),
        "websockets": len(running.door.connections),
        "lanes": sum(session.lanes for session in sessions),
        "turns_in_flight": over_websockets + running.http_turns(),
        "turns_queued": sum(session.turns_queued for session in sessions),
        "turns_waiting": waiting.waiting_for(WaitReason.ACCOUNT),
        "turns_limited": waiting.waiting_for(WaitReason.LIMIT),
        **running.figures.rates(),
    }


def _state(running: Running, alarms: Sequence[Mapping[str, Any]]) -> str:
    if running.limiter.draining:
        return "draining"
    if ready(running) is not None:
        return "unusable"
    return "degraded" if alarms else "ready"
