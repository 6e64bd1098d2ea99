"""The gateway as a whole: process, event loop, connections, keys, memory, configuration."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import InfoMetricFamily, Metric

from gateway import __version__
from gateway.admin.exposed.families import counter, gauge, number, times
from gateway.admin.running import Running
from gateway.admin.views.accounts import account
from gateway.admin.views.alarms import alarms
from gateway.admin.views.overview import ready
from gateway.metrics.collector import MetricsCollector

_LAGS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0)
_PAUSES = (0.1, 0.25, *_LAGS)

_GAUGES = {
    "connections": "Clients that are connected, and work that some left behind.",
    "websockets": "Clients that are connected by WebSocket.",
    "lanes": "Lanes of all WebSocket connections.",
    "turns_in_flight": "Turns that run.",
    "turns_queued": "Turns that wait for the one before them on their lane.",
    "turns_waiting": "Turns that wait for an account.",
    "turns_limited": "Turns that wait for a limit of their key.",
}


def whole_families(running: Running, collector: MetricsCollector) -> Iterator[Metric]:
    """What there is but once."""
    yield InfoMetricFamily("gateway_build", "The gateway's version.", {"version": __version__})
    yield number("gateway_start_time_seconds", "When the gateway started.", collector.started_at)
    yield number("gateway_ready", "1 while new work is welcome.", float(ready(running) is None))
    yield number("gateway_draining", "1 while it stops.", float(running.limiter.draining))
    configuration = running.configuration
    yield number(
        "gateway_config_generation",
        "Configurations that were in force.",
        configuration.generation(),
    )
    yield number(
        "gateway_config_last_reload_successful",
        "0 after a configuration was rejected.",
        float(configuration.last_rejected() is None),
    )
    accounts = [account(running, each) for each in running.services.pool.accounts]
    levels = [alarm["level"] for alarm in alarms(running, accounts)]
    yield gauge(
        "gateway_alarms",
        "Alarms that the page shows, by level: red where somebody should act.",
        ("level",),
        (((level,), levels.count(level)) for level in ("red", "amber")),
    )
    gauges = collector.gauges()
    for name, about in _GAUGES.items():
        yield number(f"gateway_{name}", about, gauges[name])
    yield from _process(collector)
    yield from _keys(running)
    yield from _strangers(running)
    yield from _registers(running, collector)


def _process(collector: MetricsCollector) -> Iterator[Metric]:
    looked = collector.looked
    yield number("process_resident_memory_bytes", "Memory that is resident.", looked.rss_bytes)
    yield number(
        "gateway_memory_budget_bytes",
        "Memory that the process's control groups leave it.",
        collector.memory_budget,
    )
    yield number("process_open_fds", "Open files, sockets among them.", looked.open_files)
    yield number("process_max_fds", "Files that may be open.", looked.open_files_limit)
    yield counter("process_cpu_seconds", "CPU time.", (), [((), looked.cpu_seconds)])
    yield times(
        "gateway_event_loop_lag_seconds",
        "How late the event loop calls, sampled four times a second.",
        (),
        [((), collector.loop_lag.lag)],
        _LAGS,
    )
    yield times(
        "gateway_gc_pause_seconds",
        "How long the garbage collector stopped everything, by generation.",
        ("generation",),
        (((str(n),), pauses) for n, pauses in enumerate(collector.garbage.pauses)),
        _PAUSES,
    )


def _keys(running: Running) -> Iterator[Metric]:
    keys = running.tenants.snapshot()
    yield gauge(
        "gateway_key_turns_in_flight",
        "Turns of a client key that run.",
        ("key",),
        (((key["name"],), key["turns_running"]) for key in keys),
    )
    limits = [(key["name"], name, use) for key in keys for name, use in key["limits"].items()]
    for which, about in (("used", "Use of a key's limit."), ("limit", "A key's limit.")):
        rows = (((key, name), use[which]) for key, name, use in limits)
        yield gauge(f"gateway_key_quota_{which}", about, ("key", "quota"), rows)
    yield counter(
        "gateway_key_refusals",
        "Turns of a key that were refused, by the limit that they met.",
        ("key", "limit"),
        (((key["name"], limit), n) for key in keys for limit, n in key["refusals"].items()),
    )


def _strangers(running: Running) -> Iterator[Metric]:
    yield counter(
        "gateway_clients_turned_away",
        "Clients without a key that is known here, by the error that they got.",
        ("code",),
        (((code,), n) for code, n in running.tenants.strangers.refusals.items()),
    )


def _registers(running: Running, collector: MetricsCollector) -> Iterator[Metric]:
    registers = collector.memory_registers.read()
    labels = ("register", "unit")
    yield gauge(
        "gateway_register_size",
        "What a bounded structure holds.",
        labels,
        (((each.name, each.unit), each.size) for each in registers),
    )
    yield gauge(
        "gateway_register_bound",
        "What it may hold.",
        labels,
        (((each.name, each.unit), each.bound) for each in registers if each.bound is not None),
    )
    ledger = running.services.ledger.figures()
    yield counter(
        "gateway_ledger_evicted_conversations",
        "Conversations that were forgotten for want of room.",
        (),
        [((), ledger.evicted_conversations)],
    )
