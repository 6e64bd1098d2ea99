"""``/metrics``: everything that is counted, as Prometheus and OpenMetrics read it.

The client library makes the text; its own resource for Twisted would run in a thread.  Labels are
bounded: names of accounts and keys come from the configuration, models and errors are counted up
to a number (see :mod:`~gateway.metrics.turns`), and no label holds anything of a session, a
conversation or a response.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.views.accounts import account, state, used_share
from gateway.admin.views.overview import alarms, ready
from gateway.metrics.collector import MetricsCollector
from gateway.metrics.histogram import Histogram
from gateway.metrics.process import ProcessFigures
from gateway.metrics.turns import AccountMetrics, ModelMetrics, TurnMetrics
from gateway.request_log.request_log import RequestLog
from gateway.routing.account import Account
from gateway.routing.health import AccountState
from gateway.state.keeper import StateFigures

#: Label values and a number.
Row = tuple[Sequence[str], float]

_MILLISECONDS = 1000.0

#: Upper ends of the buckets of times, in milliseconds.
_TIMES = (
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0),
    *(1_000.0, 2_500.0, 5_000.0, 10_000.0, 30_000.0, 60_000.0, 300_000.0),
)
_LAGS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0)
_PAUSES = (0.1, 0.25, *_LAGS)

#: OpenTelemetry's own buckets: for ``gen_ai.server.time_to_first_token`` in milliseconds, and for
#: ``gen_ai.client.token.usage``.
_FIRST_TOKEN = (
    *(1.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 250.0, 500.0, 750.0),
    *(1_000.0, 2_500.0, 5_000.0, 7_500.0, 10_000.0),
)
_TOKENS = tuple(float(4**exponent) for exponent in range(14))

#: Attributes that the semantic conventions require, and their values here: whatever the
#: account, the telemetry is of OpenAI's flavour.
_GEN_AI_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_GEN_AI = ("chat", "openai")

_GAUGES = {
    "connections": "Clients that are connected, and work that some left behind.",
    "websockets": "Clients that are connected by WebSocket.",
    "lanes": "Lanes of all WebSocket connections.",
    "turns_in_flight": "Turns that run.",
    "turns_queued": "Turns that wait for the one before them on their lane.",
    "turns_waiting": "Turns that wait for an account.",
    "turns_limited": "Turns that wait for a limit of their key.",
}

#: Members of a quota window, and the metric of each.
_QUOTAS = (
    ("remaining", "remaining", "Requests or tokens that are left of a quota."),
    ("limit", "limit", "Requests or tokens of a quota."),
    ("resets_at", "resets_timestamp_seconds", "When a quota begins anew."),
)


class Metrics(Collector):
    """Reads the running gateway when it is scraped."""

    def __init__(self, running: RunningGateway) -> None:
        self._running = running
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        running, collector = self._running, self._running.metrics
        collector.turns.catch_up()
        yield from _gateway(running)
        yield from _process(collector)
        yield from _keys(running)
        yield from _registers(running)
        yield from _request_log(running.services.request_log)
        yield from state_metrics(running.kept())
        yield from _turns(collector.turns)
        yield from _turn_times(collector.turns)
        yield from _gen_ai(collector.turns.models)
        yield from _accounts(running.services.pool.accounts)
        yield from _quotas(running.services.pool.accounts)
        yield from _account_turns(collector.turns.accounts)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The content type and the text.

        :param accept: the client's ``Accept`` header; OpenMetrics is sent where it asks for that.
        """
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)


# --- kinds of families ---------------------------------------------------------------------


def _counter(name: str, about: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """A number that only rises.

    :param name: without the ``_total`` that it gets.
    """
    family = CounterMetricFamily(name, about, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _gauge(name: str, about: str, labels: Sequence[str], rows: Iterable[Row]) -> Metric:
    """A number that rises and falls."""
    family = GaugeMetricFamily(name, about, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _number(name: str, about: str, value: float | None) -> Metric:
    """A gauge without labels, and without a value when that is not known."""
    return _gauge(name, about, (), () if value is None else (((), value),))


def _histogram(
    name: str,
    about: str,
    labels: Sequence[str],
    rows: Iterable[tuple[Sequence[str], Histogram]],
    bounds: tuple[float, ...] = _TIMES,
    unit: float = _MILLISECONDS,
) -> Metric:
    """Histograms of times, which are exported in seconds, or of counts.

    :param bounds: some of the histograms' own bounds.
    :param unit: the exported unit in units of the histogram.
    """
    family = HistogramMetricFamily(name, about, labels=labels)
    ends = _ends(bounds, unit)
    for values, histogram in rows:
        buckets = list(zip(ends, histogram.cumulative(bounds), strict=True))
        family.add_metric(values, buckets, histogram.sum / unit)
    return family


@lru_cache(16)
def _ends(bounds: tuple[float, ...], unit: float) -> list[str]:
    return [*(str(bound / unit) for bound in bounds), "+Inf"]


# --- the gateway as a whole ----------------------------------------------------------------


def _gateway(running: RunningGateway) -> Iterator[Metric]:
    collector, configuration = running.metrics, running.configuration
    yield InfoMetricFamily("gateway_build", "The gateway's version.", {"version": __version__})
    yield _number("gateway_start_time_seconds", "When the gateway started.", collector.started_at)
    yield _number("gateway_ready", "1 while new work is welcome.", float(ready(running) is None))
    yield _number(
        "gateway_draining", "1 while it is emptied of clients.", float(running.limiter.draining)
    )
    yield _counter(
        "gateway_drained",
        "Turns that completed or were cut, and WebSockets that were closed between turns (moved),"
        " while the gateway was emptied of clients.",
        ("outcome",),
        (((outcome,), count) for outcome, count in running.drain.totals.items()),
    )
    yield _number(
        "gateway_config_generation",
        "Configurations that were in force.",
        configuration.generation(),
    )
    yield _number(
        "gateway_config_last_reload_successful",
        "0 after a configuration was rejected.",
        float(configuration.last_rejected() is None),
    )
    shown = [account(running, each) for each in running.services.pool.accounts]
    levels = [alarm["level"] for alarm in alarms(running, shown)]
    yield _gauge(
        "gateway_alarms",
        "Alarms that the page shows, by level: red where somebody should act.",
        ("level",),
        (((level,), levels.count(level)) for level in ("red", "amber")),
    )
    gauges = collector.gauges()
    for name, about in _GAUGES.items():
        yield _number(f"gateway_{name}", about, gauges[name])


def process_metrics(figures: ProcessFigures, budget: int | None) -> Iterator[Metric]:
    """Memory, files and CPU time of one process.

    :param budget: the memory that the process's control groups leave it, in bytes.
    """
    yield _number("process_resident_memory_bytes", "Memory that is resident.", figures.rss_bytes)
    yield _number(
        "gateway_memory_budget_bytes",
        "Memory that the process's control groups leave it.",
        budget,
    )
    yield _number("process_open_fds", "Open files, sockets among them.", figures.open_files)
    yield _number("process_max_fds", "Files that may be open.", figures.open_files_limit)
    yield _counter("process_cpu_seconds", "CPU time.", (), [((), figures.cpu_seconds)])


def _process(collector: MetricsCollector) -> Iterator[Metric]:
    yield from process_metrics(collector.process_figures, collector.memory_budget)
    yield _histogram(
        "gateway_event_loop_lag_seconds",
        "How late the event loop calls, sampled four times a second.",
        (),
        [((), collector.loop_lag.lag)],
        _LAGS,
    )
    yield _histogram(
        "gateway_gc_pause_seconds",
        "How long the garbage collector stopped everything, by generation.",
        ("generation",),
        (((str(n),), pauses) for n, pauses in enumerate(collector.garbage.pauses)),
        _PAUSES,
    )


def _keys(running: RunningGateway) -> Iterator[Metric]:
    running.api_keys.refresh()  # for the next scrape
    keys = running.api_keys.snapshot()
    yield _gauge(
        "gateway_key_turns_in_flight",
        "Turns of a client key that run.",
        ("key",),
        (((key["name"],), key["turns_running"]) for key in keys),
    )
    limits = [(key["name"], name, use) for key in keys for name, use in key["limits"].items()]
    for which, about in (("used", "Use of a key's limit."), ("limit", "A key's limit.")):
        rows = (((key, name), use[which]) for key, name, use in limits)
        yield _gauge(f"gateway_key_quota_{which}", about, ("key", "quota"), rows)
    yield _counter(
        "gateway_key_refusals",
        "Turns of a key that were refused, by the limit that they met.",
        ("key", "limit"),
        (((key["name"], limit), n) for key in keys for limit, n in key["refusals"].items()),
    )
    yield _counter(
        "gateway_clients_turned_away",
        "Clients without a key that is known here, by the error that they got.",
        ("code",),
        (((code,), n) for code, n in running.api_keys.unknown_keys.refusals.items()),
    )


def _registers(running: RunningGateway) -> Iterator[Metric]:
    registers = running.metrics.bounded_structures()
    labels = ("register", "unit")
    yield _gauge(
        "gateway_register_size",
        "What a bounded structure holds.",
        labels,
        (((each["name"], each["unit"]), each["size"]) for each in registers),
    )
    yield _gauge(
        "gateway_register_bound",
        "What it may hold.",
        labels,
        (
            ((each["name"], each["unit"]), each["bound"])
            for each in registers
            if each["bound"] is not None
        ),
    )
    figures = running.services.conversations.figures()
    yield _counter(
        "gateway_ledger_evicted_conversations",
        "Conversations that were forgotten for want of room.",
        (),
        [((), figures.evicted_conversations)],
    )


def _request_log(log: RequestLog) -> Iterator[Metric]:
    yield _number("gateway_request_log_rules", "What is recorded at present.", len(log.rules))
    for name, about, number in (
        ("turns", "Turns that were recorded with all that they said.", log.turns),
        ("bytes", "Bytes of request logs that were written.", log.bytes),
        ("failures", "Times that request logs could not be written, or lost lines.", log.failures),
    ):
        yield _counter(f"gateway_request_log_{name}", about, (), [((), number)])


def state_metrics(kept: StateFigures | None) -> Iterator[Metric]:
    """How the state is kept; nothing without one."""
    if kept is None:
        return
    writes = kept.writes
    reachable = float(writes.why is None)
    yield _number("gateway_state_reachable", "1 while the state can be kept.", reachable)
    for name, about, value in (
        ("pending_rows", "Rows of the state that are not written yet.", writes.rows),
        ("pending_bytes", "Bytes of them.", writes.bytes),
        ("file_bytes", "What the state takes on disk.", kept.file_bytes),
    ):
        yield _number(f"gateway_state_{name}", about, value)
    for name, about, number in (
        ("written_rows", "Rows of the state that were written.", writes.written),
        ("dropped_rows", "Rows that were dropped, because too many waited.", writes.dropped),
        ("unreadable_values", "Values that were encrypted with another key.", kept.unreadable),
    ):
        yield _counter(f"gateway_state_{name}", about, (), [((), number)])
    flushes = SummaryMetricFamily("gateway_state_flush_seconds", "How long a write took.")
    flushes.add_metric((), writes.writes, writes.write_seconds)
    yield flushes


# --- turns that ended ----------------------------------------------------------------------


def _turns(turns: TurnMetrics) -> Iterator[Metric]:
    uses = turns.uses.items()
    yield _counter(
        "gateway_turns",
        "Turns that ended, by client key, model and status.",
        ("key", "model", "status"),
        (((*names, status), n) for names, use in uses for status, n in use.statuses.items()),
    )
    for way, name, about in (
        ("input", "input_tokens", "Input tokens, cached ones included."),
        ("cached", "cached_input_tokens", "Input tokens that came from a prompt cache."),
        ("output", "output_tokens", "Output tokens."),
    ):
        rows = ((names, getattr(use.tokens, way)) for names, use in uses)
        yield _counter(f"gateway_{name}", about, ("key", "model"), rows)
    yield _counter(
        "gateway_turn_routes",
        "Turns that ended, by how their context got to the account, and by status.",
        ("route", "status"),
        turns.routes.items(),
    )
    yield _counter(
        "gateway_turn_errors",
        "Turns that ended in an error, by its code or type.",
        ("error",),
        (((error,), n) for error, n in turns.errors.items()),
    )


def _turn_times(turns: TurnMetrics) -> Iterator[Metric]:
    for name, about, histogram in (
        ("turn_duration", "From the request to the end of the turn.", turns.duration),
        ("turn_queue", "Wait behind other turns of the same lane.", turns.queued),
        ("account_wait", "Wait for an account, of turns that found none free.", turns.waited),
        (
            "time_to_first_output",
            "From the start of a turn, its queue left out, to its first output.",
            turns.first_output,
        ),
        (
            "added_time_to_first_output",
            "The gateway's part of it: choosing, connecting, attempts that were refused;"
            " without the wait for an account.",
            turns.added,
        ),
        (
            "upstream_time_to_first_output",
            "The upstream's part of it: from the request on its connection to the output.",
            turns.upstream,
        ),
    ):
        yield _histogram(f"gateway_{name}_seconds", about, (), [((), histogram)])


def _gen_ai(models: dict[str, ModelMetrics]) -> Iterator[Metric]:
    """OpenTelemetry's names (semantic conventions for generative AI)."""
    known = [((*_GEN_AI, name), model) for name, model in models.items()]
    yield _histogram(
        "gen_ai_client_token_usage",
        "Tokens of an answer, by type.",
        (*_GEN_AI_LABELS, "gen_ai_token_type"),
        (
            ((*labels, way), tokens)
            for labels, model in known
            for way, tokens in (("input", model.input), ("output", model.output))
        ),
        _TOKENS,
        unit=1,
    )
    yield _histogram(
        "gen_ai_client_operation_duration_seconds",
        "From the request on the upstream's connection to the end of its answer.",
        _GEN_AI_LABELS,
        ((labels, model.duration) for labels, model in known),
    )
    yield _histogram(
        "gen_ai_server_time_to_first_token_seconds",
        "From the request on the upstream's connection to its first output.",
        _GEN_AI_LABELS,
        ((labels, model.first_token) for labels, model in known),
        _FIRST_TOKEN,
    )


# --- accounts ------------------------------------------------------------------------------


def _accounts(accounts: Sequence[Account]) -> Iterator[Metric]:
    yield _gauge(
        "gateway_account_state",
        "1 for the state that the account is in.",
        ("account", "state"),
        (
            ((account.name, each.value), float(each is now))
            for account in accounts
            for now in (state(account),)
            for each in AccountState
        ),
    )
    for name, about, value in _ACCOUNT_GAUGES:
        known = (((account.name,), value(account)) for account in accounts)
        rows: list[Row] = [(names, number) for names, number in known if number is not None]
        yield _gauge(f"gateway_account_{name}", about, ("account",), rows)


def _blocked_until(account: Account) -> float | None:
    until = account.health.blocked_until
    return until if 0 < until < math.inf else None


_ACCOUNT_GAUGES: tuple[tuple[str, str, Callable[[Account], float | None]], ...] = (
    (
        "rests_until_timestamp_seconds",
        "When the cooldown of an account ends; absent while nothing of it is known.",
        _blocked_until,
    ),
    (
        "models_at_rest",
        "Models that the account limits or refuses for a while, whatever its state.",
        lambda account: len(account.health.snapshot()["models"]),
    ),
    ("turns_in_flight", "Turns that run on the account.", lambda account: account.in_flight),
    (
        "max_turns_in_flight",
        "Turns that may run on the account, where that is limited.",
        lambda account: account.settings.max_in_flight,
    ),
)


def _quotas(accounts: Sequence[Account]) -> Iterator[Metric]:
    windows: list[tuple[str, dict[str, Any]]] = [
        (account.name, window)
        for account in accounts
        for window in account.health.snapshot()["windows"]
    ]
    labels = ("account", "window")
    used = (((account, window["name"]), used_share(window)) for account, window in windows)
    yield _gauge(
        "gateway_account_quota_used_ratio",
        "Used share of a quota, as the upstream told last.",
        labels,
        ((names, ratio) for names, ratio in used if ratio is not None),
    )
    for member, name, about in _QUOTAS:
        rows: list[Row] = [
            ((account, window["name"]), window[member])
            for account, window in windows
            if window[member] is not None
        ]
        yield _gauge(f"gateway_account_quota_{name}", about, labels, rows)


def _account_turns(accounts: dict[str, AccountMetrics]) -> Iterator[Metric]:
    counted = accounts.items()
    yield _counter(
        "gateway_account_turns",
        "Turns that ended on the account, by status.",
        ("account", "status"),
        (((name, status), n) for name, each in counted for status, n in each.statuses.items()),
    )
    yield _counter(
        "gateway_account_errors",
        "Attempts that the account refused or broke, by error; also of turns that moved on.",
        ("account", "error"),
        (((name, error), n) for name, each in counted for error, n in each.errors.items()),
    )
    for way, what in (
        ("input", "input_tokens"),
        ("cached", "cached_input_tokens"),
        ("output", "output_tokens"),
    ):
        yield _counter(
            f"gateway_account_{what}",
            f"The {what.replace('_', ' ')} of the account's answers.",
            ("account",),
            (((name,), getattr(each.tokens, way)) for name, each in counted),
        )
    first = SummaryMetricFamily(
        "gateway_account_time_to_first_output_seconds",
        "From the request on the account's connection to its first output.",
        labels=("account",),
    )
    for name, each in counted:
        first.add_metric((name,), sum(each.first_token.counts), each.first_token.sum / 1000)
    yield first
