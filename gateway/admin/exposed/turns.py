"""Turns that ended: by key and model, by route, by error; their tokens and their times."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import Metric

from gateway.admin.exposed.families import counter, sizes, times
from gateway.metrics.turns import ModelMetrics, TurnMetrics

#: OpenTelemetry's own buckets for ``gen_ai.server.time_to_first_token``, in milliseconds.
_FIRST_TOKEN = (
    *(1.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 250.0, 500.0, 750.0),
    *(1_000.0, 2_500.0, 5_000.0, 7_500.0, 10_000.0),
)

#: Attributes that the semantic conventions require, and their values here: whatever the
#: account, the telemetry is of OpenAI's flavour.
_GEN_AI_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_GEN_AI = ("chat", "openai")


def turn_families(tally: TurnMetrics) -> Iterator[Metric]:
    """What is counted of turns."""
    uses = tally.uses.items()
    yield counter(
        "gateway_turns",
        "Turns that ended, by client key, model and status.",
        ("key", "model", "status"),
        (((*names, status), n) for names, use in uses for status, n in use.statuses.items()),
    )
    for way, about in (
        ("input", "Input tokens, cached ones included."),
        ("cached", "Input tokens that came from a prompt cache."),
        ("output", "Output tokens."),
    ):
        name = f"gateway_{way}_input_tokens" if way == "cached" else f"gateway_{way}_tokens"
        rows = ((names, getattr(use.tokens, way)) for names, use in uses)
        yield counter(name, about, ("key", "model"), rows)
    yield counter(
        "gateway_turn_routes",
        "Turns that ended, by how their context got to the account, and by status.",
        ("route", "status"),
        tally.routes.items(),
    )
    yield counter(
        "gateway_turn_errors",
        "Turns that ended in an error, by its code or type.",
        ("error",),
        (((error,), n) for error, n in tally.errors.items()),
    )
    yield from _times(tally)
    yield from _gen_ai(tally.models)


def _times(tally: TurnMetrics) -> Iterator[Metric]:
    for name, about, histogram in (
        ("turn_duration", "From the request to the end of the turn.", tally.duration),
        ("turn_queue", "Wait behind other turns of the same lane.", tally.queued),
        ("account_wait", "Wait for an account, of turns that found none free.", tally.waited),
        (
            "time_to_first_output",
            "From the start of a turn, its queue left out, to its first output.",
            tally.first_output,
        ),
        (
            "added_time_to_first_output",
            "The gateway's part of it: choosing, connecting, attempts that were refused;"
            " without the wait for an account.",
            tally.added,
        ),
        (
            "upstream_time_to_first_output",
            "The upstream's part of it: from the request on its connection to the output.",
            tally.upstream,
        ),
    ):
        yield times(f"gateway_{name}_seconds", about, (), [((), histogram)])


def _gen_ai(models: dict[str, ModelMetrics]) -> Iterator[Metric]:
    """OpenTelemetry's names (semantic conventions for generative AI)."""
    known = [((*_GEN_AI, model), tally) for model, tally in models.items()]
    bounds = tuple(float(4**exponent) for exponent in range(14))
    yield sizes(
        "gen_ai_client_token_usage",
        "Tokens of an answer, by type.",
        (*_GEN_AI_LABELS, "gen_ai_token_type"),
        (
            ((*labels, way), tokens)
            for labels, tally in known
            for way, tokens in (("input", tally.input), ("output", tally.output))
        ),
        bounds,
    )
    yield times(
        "gen_ai_client_operation_duration_seconds",
        "From the request on the upstream's connection to the end of its answer.",
        _GEN_AI_LABELS,
        ((labels, tally.duration) for labels, tally in known),
    )
    yield times(
        "gen_ai_server_time_to_first_token_seconds",
        "From the request on the upstream's connection to its first output.",
        _GEN_AI_LABELS,
        ((labels, tally.first_token) for labels, tally in known),
        _FIRST_TOKEN,
    )
