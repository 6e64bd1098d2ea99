"""The whole gateway: whether it is ready, its load and alarms, its configuration and memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway import __version__
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.views.accounts import accounts
from gateway.admin.views.recordings import rules
from gateway.metrics.alarms import Alarm, all_alarms
from gateway.state.keeper import StateFigures


def ready(running: RunningGateway) -> str | None:
    """Why no new work is accepted, or None when it is."""
    if running.limiter.draining:
        return "draining"
    if all(each.unready() for each in running.services.pool.accounts):
        return "no account is usable"
    return None


def readiness(running: RunningGateway) -> dict[str, Any]:
    """``{why_not}``: why no new work is accepted, or None."""
    return {"why_not": ready(running)}


def overview(running: RunningGateway) -> dict[str, Any]:
    """What the page shows first, with the history of the last minutes."""
    return {**current(running), "history": running.metrics.history()}


def current(running: RunningGateway) -> dict[str, Any]:
    """The overview as it is sent every second: without history, with its newest point."""
    services = running.services
    shown = accounts(running)
    found = alarms(running, shown)
    return {
        "version": __version__,
        "uptime_seconds": round(running.now() - running.started_at, 1),
        "state": _state(running, found),
        "ready": ready(running) is None,
        "drain": _drain(running),
        "generation": running.configuration.generation(),
        "last_rejected_reload": _last_rejected(running),
        "log_level": running.threshold.level,
        **running.metrics.process(),
        "alarms": found,
        "now": _now(running),
        "newest": running.metrics.newest(),
        "turns": dict(services.turn_log.totals),
        "transports": running.metrics.transports(),
        "accounts": shown,
        **keys(running),
        "ledger": msgspec.to_builtins(services.conversations.figures()),
        "store": store(running.kept()),
        "recordings": rules(running),
        "bindings": len(services.pool.bindings),
        "seals": len(services.issuers),
    }


def part(running: RunningGateway) -> dict[str, Any]:
    """The overview of a process that is a part of the gateway.

    It comes with the process's CPU time, and with what rates and percentiles are made of; see
    :meth:`~gateway.metrics.collector.MetricsCollector.counted`.
    """
    metrics = running.metrics
    return {
        **current(running),
        "cpu_seconds": metrics.process_figures.cpu_seconds,
        "counted": metrics.counted(),
    }


def alarms(running: RunningGateway, shown: Sequence[Mapping[str, Any]]) -> list[Alarm]:
    """All alarms, the red ones first.

    :param shown: the accounts as they are shown.
    """
    return all_alarms(
        running.metrics.alarms(),
        running.services.pool.accounts,
        shown,
        running.configuration.last_rejected(),
        running.now(),
    )


def store(kept: StateFigures | None) -> dict[str, Any] | None:
    """How the state is kept; None for a gateway that keeps none."""
    if kept is None:
        return None
    writes = kept.writes
    return {
        "where": kept.where,
        "reachable": writes.why is None,
        "why": writes.why,
        "since": writes.since,
        "written_at": writes.written_at,
        "pending_rows": writes.rows,
        "pending_bytes": writes.bytes,
        "rows_written": writes.written,
        "rows_dropped": writes.dropped,
        "file_bytes": kept.file_bytes,
        "unreadable": kept.unreadable,
    }


def memory(running: RunningGateway, own: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """All bounded structures, each with its size and its bound.

    :param own: those of the admin side itself.
    """
    return {"registers": [*running.metrics.bounded_structures(), *own]}


def keys(running: RunningGateway) -> dict[str, Any]:
    """The client keys, and what they have used."""
    running.api_keys.refresh()
    return {"keys": running.api_keys.snapshot()}


def configuration(running: RunningGateway) -> dict[str, Any]:
    """The configuration in force, each value with its origin; secrets are masked."""
    in_force = running.configuration
    return {
        "generation": in_force.generation(),
        "source": in_force.source,
        "last_rejected_reload": _last_rejected(running),
        "can_reload": in_force.reload is not None,
        "log_level": running.threshold.level,
        "settings": [setting._asdict() for setting in in_force.settings()],
    }


def _now(running: RunningGateway) -> dict[str, Any]:
    """The current counts and the rates of the last minute."""
    sessions = running.websockets.sessions()
    over_websockets = sum(session.turns_running for session in sessions)
    return {
        **running.metrics.gauges(),
        "turns_in_flight": over_websockets + running.http_turns(),
        **running.metrics.rates(),
    }


def _drain(running: RunningGateway) -> dict[str, Any] | None:
    figures = running.drain.figures
    return None if figures is None else figures._asdict()


def _last_rejected(running: RunningGateway) -> dict[str, Any] | None:
    rejected = running.configuration.last_rejected()
    return None if rejected is None else rejected._asdict()


def _state(running: RunningGateway, alarms: Sequence[Alarm]) -> str:
    if running.limiter.draining:
        return "draining"
    if ready(running) is not None:
        return "unusable"
    return "degraded" if alarms else "ready"
