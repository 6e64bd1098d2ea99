"""``/metrics``: everything that is counted, as Prometheus and OpenMetrics read it.

The client library makes the text; its own resource for Twisted would run in a thread.  Labels are
bounded: names of accounts and keys come from the configuration, models and errors are counted up
to a number (see :mod:`~gateway.metrics.turns`), and no label holds anything of a session, a
conversation or a response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import (
    CollectorRegistry,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.admin.account_metrics import account_families
from gateway.admin.metric_kinds import (
    counter_family,
    gauge_family,
    histogram_family,
    number_family,
)
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.views.accounts import account
from gateway.admin.views.overview import alarms, ready
from gateway.metrics.collector import MetricsCollector
from gateway.metrics.process import ProcessFigures
from gateway.metrics.turns import ModelMetrics, TransportUse, TurnMetrics
from gateway.request_log.request_log import RequestLog
from gateway.state.keeper import StateFigures

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
        accounts = running.services.pool.accounts
        yield from account_families(accounts, collector.turns.accounts)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The content type and the text.

        :param accept: the client's ``Accept`` header; OpenMetrics is sent where it asks for that.
        """
        encode, content_type = choose_encoder(accept)
        return content_type, encode(self._registry)


# --- the gateway as a whole ----------------------------------------------------------------


def _gateway(running: RunningGateway) -> Iterator[Metric]:
    collector, configuration = running.metrics, running.configuration
    yield InfoMetricFamily("gateway_build", "The gateway's version.", {"version": __version__})
    yield number_family(
        "gateway_start_time_seconds", "When the gateway started.", collector.started_at
    )
    yield number_family(
        "gateway_ready", "1 while new work is welcome.", float(ready(running) is None)
    )
    yield number_family(
        "gateway_draining", "1 while it is emptied of clients.", float(running.limiter.draining)
    )
    yield counter_family(
        "gateway_drained",
        "Turns that completed or were cut, and WebSockets that were closed between turns (moved),"
        " while the gateway was emptied of clients.",
        ("outcome",),
        (((outcome,), count) for outcome, count in running.drain.totals.items()),
    )
    yield number_family(
        "gateway_config_generation",
        "Configurations that were in force.",
        configuration.generation(),
    )
    yield number_family(
        "gateway_config_last_reload_successful",
        "0 after a configuration was rejected.",
        float(configuration.last_rejected() is None),
    )
    shown = [account(running, each) for each in running.services.pool.accounts]
    levels = [alarm["level"] for alarm in alarms(running, shown)]
    yield gauge_family(
        "gateway_alarms",
        "Alarms that the page shows, by level: red where somebody should act.",
        ("level",),
        (((level,), levels.count(level)) for level in ("red", "amber")),
    )
    gauges = collector.gauges()
    for name, about in _GAUGES.items():
        yield number_family(f"gateway_{name}", about, gauges[name])


def process_metrics(figures: ProcessFigures, budget: int | None) -> Iterator[Metric]:
    """Memory, files and CPU time of one process.

    :param budget: the memory that the process's control groups leave it, in bytes.
    """
    yield number_family(
        "process_resident_memory_bytes", "Memory that is resident.", figures.rss_bytes
    )
    yield number_family(
        "gateway_memory_budget_bytes",
        "Memory that the process's control groups leave it.",
        budget,
    )
    yield number_family("process_open_fds", "Open files, sockets among them.", figures.open_files)
    yield number_family("process_max_fds", "Files that may be open.", figures.open_files_limit)
    yield counter_family("process_cpu_seconds", "CPU time.", (), [((), figures.cpu_seconds)])


def _process(collector: MetricsCollector) -> Iterator[Metric]:
    yield from process_metrics(collector.process_figures, collector.memory_budget)
    yield histogram_family(
        "gateway_event_loop_lag_seconds",
        "How late the event loop calls, sampled four times a second.",
        (),
        [((), collector.loop_lag.lag)],
        _LAGS,
    )
    yield histogram_family(
        "gateway_gc_pause_seconds",
        "How long the garbage collector stopped everything, by generation.",
        ("generation",),
        (((str(n),), pauses) for n, pauses in enumerate(collector.garbage.pauses)),
        _PAUSES,
    )


def _keys(running: RunningGateway) -> Iterator[Metric]:
    running.api_keys.refresh()  # for the next scrape
    keys = running.api_keys.snapshot()
    yield gauge_family(
        "gateway_key_turns_in_flight",
        "Turns of a client key that run.",
        ("key",),
        (((key["name"],), key["turns_running"]) for key in keys),
    )
    limits = [(key["name"], name, use) for key in keys for name, use in key["limits"].items()]
    for which, about in (("used", "Use of a key's limit."), ("limit", "A key's limit.")):
        rows = (((key, name), use[which]) for key, name, use in limits)
        yield gauge_family(f"gateway_key_quota_{which}", about, ("key", "quota"), rows)
    yield counter_family(
        "gateway_key_refusals",
        "Turns of a key that were refused, by the limit that they met.",
        ("key", "limit"),
        (((key["name"], limit), n) for key in keys for limit, n in key["refusals"].items()),
    )
    yield counter_family(
        "gateway_clients_turned_away",
        "Clients without a key that is known here, by the error that they got.",
        ("code",),
        (((code,), n) for code, n in running.api_keys.unknown_keys.refusals.items()),
    )


def _registers(running: RunningGateway) -> Iterator[Metric]:
    registers = running.metrics.bounded_structures()
    labels = ("register", "unit")
    yield gauge_family(
        "gateway_register_size",
        "What a bounded structure holds.",
        labels,
        (((each["name"], each["unit"]), each["size"]) for each in registers),
    )
    yield gauge_family(
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
    yield counter_family(
        "gateway_ledger_evicted_conversations",
        "Conversations that were forgotten for want of room.",
        (),
        [((), figures.evicted_conversations)],
    )


def _request_log(log: RequestLog) -> Iterator[Metric]:
    yield number_family("gateway_request_log_rules", "What is recorded at present.", len(log.rules))
    for name, about, number in (
        ("turns", "Turns that were recorded with all that they said.", log.turns),
        ("bytes", "Bytes of request logs that were written.", log.bytes),
        ("failures", "Times that request logs could not be written, or lost lines.", log.failures),
    ):
        yield counter_family(f"gateway_request_log_{name}", about, (), [((), number)])


def state_metrics(kept: StateFigures | None) -> Iterator[Metric]:
    """How the state is kept; nothing without one."""
    if kept is None:
        return
    writes = kept.writes
    reachable = float(writes.why is None)
    yield number_family("gateway_state_reachable", "1 while the state can be kept.", reachable)
    for name, about, value in (
        ("pending_rows", "Rows of the state that are not written yet.", writes.rows),
        ("pending_bytes", "Bytes of them.", writes.bytes),
        ("file_bytes", "What the state takes on disk.", kept.file_bytes),
    ):
        yield number_family(f"gateway_state_{name}", about, value)
    for name, about, number in (
        ("written_rows", "Rows of the state that were written.", writes.written),
        ("dropped_rows", "Rows that were dropped, because too many waited.", writes.dropped),
        ("unreadable_values", "Values that were encrypted with another key.", kept.unreadable),
    ):
        yield counter_family(f"gateway_state_{name}", about, (), [((), number)])
    flushes = SummaryMetricFamily("gateway_state_flush_seconds", "How long a write took.")
    flushes.add_metric((), writes.writes, writes.write_seconds)
    yield flushes


# --- turns that ended ----------------------------------------------------------------------


def _turns(turns: TurnMetrics) -> Iterator[Metric]:
    uses = turns.uses.items()
    yield counter_family(
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
        yield counter_family(f"gateway_{name}", about, ("key", "model"), rows)
    yield counter_family(
        "gateway_turn_routes",
        "Turns that ended, by how their context got to the account, and by status.",
        ("route", "status"),
        turns.routes.items(),
    )
    yield from _transports(turns)
    yield counter_family(
        "gateway_turn_errors",
        "Turns that ended in an error, by its code or type.",
        ("error",),
        (((error,), n) for error, n in turns.errors.items()),
    )


def _transports(turns: TurnMetrics) -> Iterator[Metric]:
    uses = turns.transports.items()
    for name, about, value in _OF_TRANSPORTS:
        rows = ((names, value(use)) for names, use in uses)
        yield counter_family(f"gateway_transport_{name}", about, ("transport", "route"), rows)


_OF_TRANSPORTS: tuple[tuple[str, str, Callable[[TransportUse], float]], ...] = (
    (
        "turns",
        "Turns that ended, by the transport to their account and by route.",
        lambda use: use.turns,
    ),
    (
        "upstream_bytes",
        "Bytes of the requests to accounts, with those of all attempts.",
        lambda use: use.upstream_bytes,
    ),
    ("input_tokens", "Input tokens, cached ones included.", lambda use: use.tokens.input),
    (
        "cached_input_tokens",
        "Input tokens that came from a prompt cache.",
        lambda use: use.tokens.cached,
    ),
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
        yield histogram_family(f"gateway_{name}_seconds", about, (), [((), histogram)])


def _gen_ai(models: dict[str, ModelMetrics]) -> Iterator[Metric]:
    """OpenTelemetry's names (semantic conventions for generative AI)."""
    known = [((*_GEN_AI, name), model) for name, model in models.items()]
    yield histogram_family(
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
    yield histogram_family(
        "gen_ai_client_operation_duration_seconds",
        "From the request on the upstream's connection to the end of its answer.",
        _GEN_AI_LABELS,
        ((labels, model.duration) for labels, model in known),
    )
    yield histogram_family(
        "gen_ai_server_time_to_first_token_seconds",
        "From the request on the upstream's connection to its first output.",
        _GEN_AI_LABELS,
        ((labels, model.first_token) for labels, model in known),
        _FIRST_TOKEN,
    )
