"""What is counted of a turn that ended, and that labels are bounded."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.metrics.turns import MAX_ERRORS, MAX_MODELS, OTHER, TurnMetrics, with_shares
from gateway.turn.turn_log import AttemptRecord, TurnRecord
from tests.support.steps import steps_of


def turn(*attempts: AttemptRecord, **fields: Any) -> TurnRecord:
    """A turn that went well on ``north``, but for ``fields``."""
    told: dict[str, Any] = {
        "model": "gpt-5.5",
        "key": "laptop",
        "account": "north",
        "route": "chained",
        "status": "completed",
        "input_tokens": 1000,
        "cached_tokens": 800,
        "output_tokens": 60,
        "queued_ms": 5.0,
        "first_event_ms": 300.0,
        "first_output_ms": 425.0,
        "duration_ms": 3000.0,
    }
    told.update(fields)
    record = TurnRecord(
        turn="1.1",
        connection="1",
        lane=None,
        previous_response_id=None,
        continuation=None,
        request_bytes=300,
        **told,
    )
    record.attempts = list(attempts) or [attempt()]
    return record


def attempt(account: str = "north", outcome: str = "completed", **times: float) -> AttemptRecord:
    return AttemptRecord(
        account,
        "thread",
        "chained",
        outcome=outcome,
        chosen_ms=times.get("chosen", 6.0),
        connected_ms=times.get("connected", 15.0),
    )


def count(tally: TurnMetrics, record: TurnRecord) -> None:
    tally.count(record)
    tally.catch_up()


@pytest.fixture
def tally() -> TurnMetrics:
    return TurnMetrics()


def test_a_turn_counts_for_its_key_model_account_and_route(tally: TurnMetrics) -> None:
    count(tally, turn())
    count(tally, turn(status="incomplete", error_code="interrupted"))
    use = tally.uses["laptop", "gpt-5.5"]
    assert use.statuses == {"completed": 1, "incomplete": 1}
    assert (use.tokens.input, use.tokens.cached, use.tokens.output) == (2000, 1600, 120)
    assert tally.accounts["north"].statuses == use.statuses
    assert tally.routes == {("chained", "completed"): 1, ("chained", "incomplete"): 1}
    assert (tally.turns, tally.failed) == (2, 0)
    assert tally.account("north")["cached_share"] == 0.8


def test_the_time_to_the_first_output_falls_into_its_parts(tally: TurnMetrics) -> None:
    count(tally, turn(attempt(connected=115.0), waited_ms=70.0))
    assert tally.queued.sum == 5.0
    assert tally.waited.sum == 70.0
    assert tally.added.sum == 40.0, "115 until it was sent, less 5 of queue and 70 of waiting"
    assert tally.upstream.sum == 310.0
    assert tally.first_output.sum == 420.0
    assert tally.accounts["north"].first_token.sum == 310.0


def test_refused_attempts_are_time_that_the_gateway_added(tally: TurnMetrics) -> None:
    count(tally, turn(attempt("south", "rate_limit_exceeded"), attempt(connected=205.0)))
    assert tally.added.sum == 200.0
    assert tally.accounts["south"].errors == {"rate_limit_exceeded": 1}
    assert tally.accounts["south"].statuses == {}, "the turn ended elsewhere"
    assert tally.accounts["north"].errors == {}


def test_a_clock_that_was_set_back_makes_no_negative_times(tally: TurnMetrics) -> None:
    count(tally, turn(attempt(connected=-50.0), first_output_ms=-40.0))
    assert tally.added.sum == 0
    assert tally.first_output.sum == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"first_output_ms": None},
        {"route": "compaction"},
        {"account": None, "route": "prewarm", "input_tokens": 0, "output_tokens": 0},
    ],
)
def test_times_are_those_of_answers_that_stream(tally: TurnMetrics, fields: dict[str, Any]) -> None:
    count(tally, turn(**fields))
    assert sum(tally.first_output.counts) == 0
    assert tally.turns == 1


def test_errors_count_by_what_ended_the_turn(tally: TurnMetrics) -> None:
    refused = {"account": None, "route": None, "queued_ms": None, "first_output_ms": None}
    count(tally, turn(status="error", error_code="model_not_found", **refused))
    count(tally, turn(status="failed", error_code=None))
    assert tally.errors == {"model_not_found": 1, "unknown": 1}
    assert tally.failed == 2


def test_clients_cannot_make_labels_by_asking_for_models(tally: TurnMetrics) -> None:
    for number in range(1000):
        count(tally, turn(status="error", error_code="model_not_found", model=f"junk-{number}"))
    count(tally, turn(account=None, route="prewarm", model="warmed by nobody"))
    assert set(tally.uses) == {("laptop", OTHER)}
    for number in range(1000):
        count(tally, turn(model=f"model-{number}"))
    assert len(tally.uses) == MAX_MODELS + 1
    assert tally.uses["laptop", OTHER].statuses == {"error": 1000, "completed": 951}
    assert len(tally.models) == MAX_MODELS + 1


def test_upstreams_cannot_make_labels_without_end(tally: TurnMetrics) -> None:
    for number in range(1000):
        count(tally, turn(attempt(outcome=f"odd-{number}"), status="failed", error_code="x" * 500))
    assert set(tally.errors) == {OTHER}
    assert len(tally.accounts["north"].errors) == MAX_ERRORS + 1
    assert sum(tally.accounts["north"].errors.values()) == 1000


def test_an_accounts_figures_are_recent(tally: TurnMetrics) -> None:
    count(tally, turn(cached_tokens=0))
    for _ in range(3):
        tally.mark()
    count(tally, turn(cached_tokens=1000))
    shown = tally.account("north")
    assert shown["cached_share"] == 1.0
    assert tally.account("unheard of")["cached_share"] is None


def test_a_turn_costs_a_few_steps(tally: TurnMetrics) -> None:
    record = turn()
    count(tally, record)
    cost = steps_of(lambda: count(tally, record), 100)
    assert cost < 1_500, f"some 700 steps are meant, which take 5 us; it took {cost:,.0f}"


def test_a_turn_that_cannot_be_counted_harms_nobody(tally: TurnMetrics) -> None:
    broken = turn()
    broken.attempts = [None]  # type: ignore[list-item]
    tally.count(broken)
    count(tally, turn())
    assert tally.uses["laptop", "gpt-5.5"].statuses == {"completed": 2}


def test_turns_are_put_by_up_to_a_number(tally: TurnMetrics) -> None:
    for _ in range(1050):
        tally.count(turn())
    assert 0 < 1050 - tally.turns <= 100
    tally.catch_up()
    assert tally.turns == 1050


def test_turns_count_by_transport_and_route(tally: TurnMetrics) -> None:
    count(tally, turn(transport="websocket", upstream_bytes=300))
    count(tally, turn(transport="websocket", upstream_bytes=500, route="replayed"))
    count(tally, turn(transport="http", upstream_bytes=9000, cached_tokens=100, route="replayed"))
    count(tally, turn(transport="http", upstream_bytes=70, route="compaction"))
    count(tally, turn(transport=None, account=None, route="prewarm"))
    assert {key: use.upstream_bytes for key, use in tally.transports.items()} == {
        ("websocket", "chained"): 300,
        ("websocket", "replayed"): 500,
        ("http", "replayed"): 9000,
        ("http", "compaction"): 70,
    }
    shown = with_shares(tally.by_transport())
    assert shown["websocket"] == {
        "turns": 2,
        "chained": 1,
        "upstream_bytes": 800,
        "input_tokens": 2000,
        "cached_input_tokens": 1600,
        "chained_share": 0.5,
        "chained_share_of_all": 0.3333,
        "bytes_per_turn": 400,
        "cached_share": 0.8,
    }
    assert (shown["http"]["turns"], shown["http"]["bytes_per_turn"]) == (1, 9000)
    assert shown["http"]["cached_share"] == 0.1, "forwarded requests are no turns"


def test_of_no_turn_there_is_no_share(tally: TurnMetrics) -> None:
    shown = with_shares(tally.by_transport())["websocket"]
    assert (shown["turns"], shown["chained_share"]) == (0, None)
    assert (shown["bytes_per_turn"], shown["cached_share"]) == (None, None)
