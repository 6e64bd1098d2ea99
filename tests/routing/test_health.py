"""What rests because of which fault, who may probe it, and what the operator can do."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.routing.cooldown import ADMIN_TRANSITIONS, AdminState
from gateway.routing.health import (
    MAX_MODELS,
    AccountHealth,
    AccountState,
    Unavailable,
)
from tests.routing.pools import HealthAttempt
from tests.support.steps import steps_of

START = 1_795_000_000.0
MAX = 600.0

READY, COOLING, EXHAUSTED = AccountState.READY, AccountState.COOLING, AccountState.EXHAUSTED
UNAUTHORIZED, DISABLED = AccountState.UNAUTHORIZED, AccountState.DISABLED
DRAINING, UNPROVEN = AccountState.DRAINING, AccountState.UNPROVEN


class Bench:
    """The health of an account whose clock and jitter the test turns."""

    def __init__(self) -> None:
        self.now = START
        self.jitter = 0.0
        self.health = AccountHealth(lambda: self.now, MAX, lambda: self.jitter)

    def fault(self, kind: FaultKind, retry_in: float | None = None) -> Fault:
        return Fault(
            kind, f"it was {kind.value}", None if retry_in is None else self.now + retry_in
        )

    def refuse(self, kind: FaultKind, retry_in: float | None = None, model: str = "m") -> None:
        self.begins(model).refused(self.fault(kind, retry_in))

    def begins(self, model: str | None) -> HealthAttempt:
        return HealthAttempt(self.health, model)

    def serves(self, attempt: HealthAttempt) -> None:
        """A turn ends well."""
        attempt.acknowledged()
        self.health.ended_well()

    def look(self, model: str | None = "m") -> Unavailable:
        found = self.health.unavailable(model)
        assert found is not None, f"{model} rests"
        return found

    def ready(self, *models: str) -> bool:
        return all(self.health.unavailable(model) is None for model in models or ("m",))

    def rest(self, model: str = "m") -> float:
        until = self.look(model).until
        assert until is not None, "it ends by itself"
        return until - self.now

    def sleep(self, model: str = "m") -> None:
        self.now += self.rest(model)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def snapshot(bench: Bench) -> dict[str, Any]:
    """As JSON carries it."""
    shown = json.loads(json.dumps(bench.health.snapshot(), allow_nan=False))
    assert isinstance(shown, dict)
    return shown


# --- what rests ----------------------------------------------------------------------


def test_a_new_account_is_ready(bench: Bench) -> None:
    assert bench.health.unavailable("m") is None
    assert bench.health.unavailable(None) is None
    assert bench.health.blocked_until == 0.0
    assert bench.health.state is READY
    shown = snapshot(bench)
    assert (shown["state"], shown["since"], shown["models"]) == ("ready", START, [])


@pytest.mark.parametrize("kind", [FaultKind.REQUEST, FaultKind.PROXY])
def test_what_the_account_cannot_help_costs_it_nothing(bench: Bench, kind: FaultKind) -> None:
    for _ in range(10):
        bench.refuse(kind)
    assert bench.ready("m", "n")
    assert bench.health.state is READY


def test_a_usage_limit_rests_the_account_until_it_resets(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 300)
    why = "it was exhausted"
    at = START + 300
    assert bench.look("m") == Unavailable(EXHAUSTED, why, at, at, FaultKind.EXHAUSTED)
    assert bench.look("another") == bench.look(None) == bench.look("m")
    assert bench.health.blocked_until == at
    assert bench.health.state is EXHAUSTED


def test_a_usage_limit_of_hours_is_probed_earlier_and_still_tells_its_reset(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 7200)
    found = bench.look()
    assert (found.until, found.resets_at) == (START + MAX, START + 7200)
    shown = snapshot(bench)
    assert (shown["state"], shown["until"], shown["resets_at"]) == (
        "exhausted",
        START + MAX,
        START + 7200,
    )
    assert (shown["why"], shown["since"]) == ("it was exhausted", START)


def test_a_usage_limit_without_a_time_is_tried_less_and_less(bench: Bench) -> None:
    rests = []
    for _ in range(6):
        bench.refuse(FaultKind.EXHAUSTED)
        rests.append(bench.rest())
        bench.sleep()
    assert rests == [60, 120, 240, 480, 600, 600]


def test_a_usage_limit_without_a_time_resets_as_earlier_answers_told(bench: Bench) -> None:
    bench.health.observe(
        [
            QuotaWindow("codex primary", 100.0, resets_at=START + 200),
            QuotaWindow("codex secondary", 80.0, resets_at=START + 400),
            QuotaWindow("requests", remaining=0, resets_at=START + 1),
        ]
    )
    bench.refuse(FaultKind.EXHAUSTED)
    assert bench.rest() == 200


def test_a_rate_limit_rests_the_model_alone(bench: Bench) -> None:
    bench.refuse(FaultKind.RATE_LIMITED, 20)
    assert bench.look().state is COOLING
    assert bench.rest() == 20
    assert bench.ready("n")
    assert bench.health.unavailable(None) is None
    assert (bench.health.state, bench.health.blocked_until) == (READY, 0.0)
    assert [each["model"] for each in snapshot(bench)["models"]] == ["m"]


def test_a_rate_limit_without_a_time_rests_for_a_second(bench: Bench) -> None:
    bench.refuse(FaultKind.RATE_LIMITED)
    assert bench.rest() == 1


def test_a_refused_model_rests_for_a_minute_and_twice_as_long_each_time(bench: Bench) -> None:
    bench.refuse(FaultKind.MODEL_REFUSED)
    assert bench.rest() == 60
    assert bench.look().kind is FaultKind.MODEL_REFUSED
    assert bench.ready("n")
    bench.sleep()
    bench.refuse(FaultKind.MODEL_REFUSED)
    assert bench.rest() == 120


def test_refused_credentials_rest_the_account_and_twice_as_long_each_time(bench: Bench) -> None:
    rests = []
    for _ in range(6):
        bench.refuse(FaultKind.UNAUTHORIZED)
        assert bench.look().state is UNAUTHORIZED
        rests.append(bench.rest("n"))
        bench.sleep()
    assert rests == [60, 120, 240, 480, 600, 600]


def test_the_service_rests_after_three_failures_in_a_row(bench: Bench) -> None:
    for _ in range(2):
        bench.refuse(FaultKind.SERVICE)
        assert bench.ready()
    bench.serves(bench.begins("m"))
    for _ in range(2):
        bench.refuse(FaultKind.SERVICE)
    assert bench.ready(), "a success lay between"
    assert snapshot(bench)["breaker"] == {"state": "closed", "failures": 2}
    bench.refuse(FaultKind.SERVICE, model="n")
    assert bench.look().state is COOLING
    assert bench.rest() == 1
    bench.sleep()
    bench.refuse(FaultKind.SERVICE)
    assert bench.rest() == 2


def test_the_service_rests_at_once_when_it_names_a_time(bench: Bench) -> None:
    bench.refuse(FaultKind.SERVICE, 5)
    assert bench.rest() == 5


@pytest.mark.parametrize("kind", [FaultKind.REQUEST, FaultKind.RATE_LIMITED])
def test_a_service_that_answers_works(bench: Bench, kind: FaultKind) -> None:
    for _ in range(5):
        bench.refuse(FaultKind.SERVICE)
        bench.refuse(kind, model="n")
    assert bench.ready("m")


def test_several_reasons_the_longest_is_told(bench: Bench) -> None:
    attempts = [bench.begins("m") for _ in range(3)]
    attempts[0].refused(bench.fault(FaultKind.UNAUTHORIZED))
    attempts[1].refused(bench.fault(FaultKind.EXHAUSTED, 300))
    attempts[2].refused(bench.fault(FaultKind.RATE_LIMITED, 400))
    assert bench.look("n").state is EXHAUSTED
    assert bench.rest("n") == 300
    assert bench.rest("m") == 400
    assert bench.health.state is UNAUTHORIZED, "the operator hears of what needs him first"
    assert set(snapshot(bench)["resting"]) == {"credentials", "quota"}


# --- the probe -----------------------------------------------------------------------


def test_after_a_rest_one_turn_probes_and_the_others_wait(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 300)
    bench.sleep()
    assert bench.ready()
    probe = bench.begins("m")
    found = bench.look("n")
    assert found.state is EXHAUSTED
    assert found.why == "a probe is on its way after: it was exhausted"
    assert found.until == bench.now + 1, "asking again soon is worth it"
    bench.serves(probe)
    assert bench.ready("m", "n")
    assert bench.health.blocked_until == 0.0
    assert snapshot(bench)["since"] == bench.now


def test_a_probe_of_one_model_leaves_the_others_alone(bench: Bench) -> None:
    bench.refuse(FaultKind.RATE_LIMITED, 20)
    bench.sleep()
    bench.begins("m")
    assert not bench.ready("m")
    assert bench.ready("n")


def test_a_success_clears_the_account_and_its_model_and_no_other(bench: Bench) -> None:
    attempts = [bench.begins(model) for model in ("m", "m", "n")]
    attempts[0].refused(bench.fault(FaultKind.EXHAUSTED, 10))
    attempts[1].refused(bench.fault(FaultKind.RATE_LIMITED, 10))
    attempts[2].refused(bench.fault(FaultKind.RATE_LIMITED, 50))
    bench.now += 10
    bench.serves(bench.begins("m"))
    assert bench.ready("m")
    assert bench.rest("n") == 40


@pytest.mark.parametrize("kind", [FaultKind.REQUEST, FaultKind.PROXY, FaultKind.RATE_LIMITED])
def test_a_probe_that_fails_for_another_reason_may_be_made_again(
    bench: Bench, kind: FaultKind
) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 10)
    bench.sleep()
    bench.refuse(kind)
    assert bench.health.state is UNPROVEN, "nothing was learned of the quota"
    assert bench.ready("n")


def test_a_usage_limit_shows_that_the_credentials_are_accepted_again(bench: Bench) -> None:
    bench.refuse(FaultKind.UNAUTHORIZED)
    bench.sleep()
    bench.refuse(FaultKind.EXHAUSTED, 10)
    assert bench.health.state is EXHAUSTED


def test_a_dropped_probe_may_be_made_again(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 10)
    bench.sleep()
    probe = bench.begins("m")
    assert not bench.ready()
    probe.dropped()
    assert bench.ready()


def test_a_lost_probe_does_not_block_for_ever(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 10)
    bench.sleep()
    bench.begins("m")
    bench.now += MAX
    assert bench.ready()


# --- what is to be expected of it ------------------------------------------------------


@pytest.mark.parametrize("kind", [FaultKind.UNAUTHORIZED, FaultKind.EXHAUSTED, FaultKind.SERVICE])
def test_after_its_rest_an_account_is_not_ready_before_it_answers_well(
    bench: Bench, kind: FaultKind
) -> None:
    bench.refuse(kind, None)
    for _ in range(2):  # the service's rest takes three failures
        bench.health.refused("m", bench.fault(kind))
    before = bench.health.unready()
    for _ in range(3):
        bench.sleep()
        assert (bench.health.state, bench.ready()) == (UNPROVEN, True), "a turn may try it"
        told = bench.health.unready()
        assert told is not None
        assert before is not None
        assert (told.state, told.why, told.kind) == (UNPROVEN, before.why, kind)
        probe = bench.begins("m")
        assert bench.health.state is UNPROVEN
        probe.refused(bench.fault(kind))
        assert bench.health.state not in (UNPROVEN, READY)
    bench.sleep()
    bench.serves(bench.begins("m"))
    assert (bench.health.state, bench.health.unready()) == (READY, None)


def test_who_is_used_up_is_so_until_its_window_resets(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 5 * MAX)
    bench.sleep()
    assert bench.ready(), "it may have been given more, and is tried now and then"
    assert (bench.health.state, bench.health.awaits_reset) == (EXHAUSTED, True)
    bench.begins("m").dropped()
    assert bench.health.state is EXHAUSTED
    bench.now = START + 5 * MAX
    assert (bench.health.state, bench.health.awaits_reset) == (UNPROVEN, False)


def test_what_rests_is_told_before_what_is_only_unproven(bench: Bench) -> None:
    bench.refuse(FaultKind.UNAUTHORIZED)
    bench.sleep()
    bench.health.refused("m", bench.fault(FaultKind.EXHAUSTED, 300))
    assert bench.health.state is EXHAUSTED
    assert snapshot(bench)["why"] == "it was exhausted"


def test_who_failed_is_in_doubt_until_a_turn_ends_well_there(bench: Bench) -> None:
    assert not bench.health.in_doubt("m"), "right after a start nobody is"
    bench.refuse(FaultKind.SERVICE)
    assert bench.health.in_doubt("m")
    assert bench.health.state is READY, "a failure may happen"
    bench.serves(bench.begins("m"))
    assert not bench.health.in_doubt("m")
    bench.refuse(FaultKind.RATE_LIMITED, 1)
    bench.sleep()
    assert (bench.health.in_doubt("m"), bench.health.in_doubt("n")) == (True, False)
    bench.health.contradicted("n", bench.fault(FaultKind.UNCLEAR))
    assert (bench.health.in_doubt("n"), bench.ready("n")) == (True, True)
    bench.serves(bench.begins("n"))
    assert not bench.health.in_doubt("n")
    bench.refuse(FaultKind.UNAUTHORIZED, model="n")
    assert bench.health.in_doubt("n")


# --- attempts ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [FaultKind.EXHAUSTED, FaultKind.RATE_LIMITED])
def test_a_success_of_a_turn_that_began_before_the_limit_does_not_end_it(
    bench: Bench, kind: FaultKind
) -> None:
    early = [bench.begins("m") for _ in range(3)]
    bench.refuse(kind, 300)
    bench.serves(early[0])
    assert bench.rest() == 300
    bench.sleep()
    probe = bench.begins("m")
    bench.serves(early[1])
    assert not bench.ready(), "the probe has not answered yet"
    bench.serves(probe)
    bench.serves(early[2])
    assert bench.ready()


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        (FaultKind.EXHAUSTED, 60, 120),
        (FaultKind.UNAUTHORIZED, 60, 120),
        (FaultKind.RATE_LIMITED, 1, 2),
        (FaultKind.SERVICE, 1, 2),
    ],
)
def test_turns_that_are_refused_together_lengthen_the_rest_once(
    bench: Bench, kind: FaultKind, first: float, second: float
) -> None:
    for attempt in [bench.begins("m") for _ in range(20)]:
        attempt.refused(bench.fault(kind))
    assert bench.rest() == first
    bench.sleep()
    bench.refuse(kind)
    assert bench.rest() == second


def test_a_turn_that_breaks_after_it_was_taken_up_is_news(bench: Bench) -> None:
    for _ in range(3):
        bench.health.refused("m", bench.fault(FaultKind.EXHAUSTED))
    assert bench.rest() == 60
    bench.sleep()
    bench.health.refused("m", bench.fault(FaultKind.EXHAUSTED))
    assert bench.rest() == 60, "it was no probe"


@pytest.mark.parametrize("kind", [FaultKind.REQUEST, FaultKind.RATE_LIMITED])
def test_how_an_old_turn_breaks_ends_no_rest(bench: Bench, kind: FaultKind) -> None:
    bench.refuse(FaultKind.SERVICE, 300)
    bench.health.refused("n", bench.fault(kind))
    assert bench.rest("m") == 300
    bench.sleep()
    bench.health.refused("n", bench.fault(kind))
    assert bench.ready("m"), "nor does it take the probe"
    assert bench.health.state is UNPROVEN


def test_asking_a_resting_account_again_tells_the_same(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 300)
    assert bench.look("n") is bench.look("n")
    bench.now += 299.9
    assert bench.look("n").until == START + 300
    bench.health.drain()
    assert bench.look("n").state is DRAINING
    bench.health.resume()
    assert bench.look("n").state is EXHAUSTED
    bench.health.clear()
    assert bench.ready("n")


def test_the_later_of_two_resets_counts(bench: Bench) -> None:
    attempts = [bench.begins("m") for _ in range(3)]
    for attempt, seconds in zip(attempts, (100, 200, 150), strict=True):
        attempt.refused(bench.fault(FaultKind.EXHAUSTED, seconds))
    assert bench.rest() == 200
    assert bench.health.blocked_until == START + 200


# --- the operator --------------------------------------------------------------------


def test_a_disabled_account_serves_nothing_until_it_is_enabled(bench: Bench) -> None:
    bench.now += 5
    bench.health.disable()
    assert bench.look() == Unavailable(DISABLED, "the operator: disabled", None)
    assert bench.health.blocked_until == math.inf
    shown = snapshot(bench)
    assert (shown["state"], shown["since"], shown["until"]) == ("disabled", START + 5, None)
    bench.now += 1e9
    assert not bench.ready()
    bench.health.clear()
    assert not bench.ready(), "clearing is about faults"
    bench.health.enable()
    assert bench.ready()
    assert bench.health.blocked_until == 0.0


def test_a_draining_account_takes_nothing_new_until_it_is_resumed(bench: Bench) -> None:
    running = bench.begins("m")
    bench.health.drain()
    assert bench.look().state is DRAINING
    bench.serves(running)
    assert not bench.ready()
    bench.health.resume()
    assert bench.ready()


def test_disabled_outranks_draining(bench: Bench) -> None:
    bench.health.drain()
    bench.health.disable()
    bench.health.drain()
    bench.health.resume()
    assert bench.health.state is DISABLED


@pytest.mark.parametrize("action", sorted(ADMIN_TRANSITIONS))
def test_actions_that_do_not_fit_change_nothing(bench: Bench, action: str) -> None:
    for wish in AdminState:
        assert ADMIN_TRANSITIONS[action].get(wish, wish) in AdminState
    getattr(bench.health, action)()
    since = snapshot(bench)["since"]
    bench.now += 5
    getattr(bench.health, action)()
    assert snapshot(bench)["since"] == since


def test_faults_are_remembered_while_the_account_is_disabled(bench: Bench) -> None:
    attempt = bench.begins("m")
    bench.health.disable()
    attempt.refused(bench.fault(FaultKind.EXHAUSTED, 300))
    bench.health.enable()
    assert bench.rest() == 300


def test_the_operator_clears_every_fault(bench: Bench) -> None:
    attempts = [bench.begins("m") for _ in range(5)]
    kinds = (FaultKind.UNAUTHORIZED, FaultKind.EXHAUSTED, FaultKind.RATE_LIMITED)
    for attempt, kind in zip(attempts, kinds, strict=False):
        attempt.refused(bench.fault(kind, 300))
    attempts[3].refused(bench.fault(FaultKind.SERVICE, 300))
    bench.health.clear()
    assert bench.ready("m", "n")
    assert bench.health.state is READY
    bench.serves(attempts[4])
    bench.refuse(FaultKind.EXHAUSTED)
    assert bench.rest() == 60, "the count began anew"


# --- bounds, clocks, cost ------------------------------------------------------------


def test_many_models_are_not_all_remembered(bench: Bench) -> None:
    bench.refuse(FaultKind.RATE_LIMITED, 500, model="real")
    for number in range(3 * MAX_MODELS):
        bench.refuse(FaultKind.MODEL_REFUSED, model=f"made-up-{number}")
    assert len(snapshot(bench)["models"]) == MAX_MODELS
    assert bench.rest("real") == 500, "those that would return first are forgotten first"


def test_a_model_with_an_endless_name_is_not_remembered(bench: Bench) -> None:
    bench.refuse(FaultKind.MODEL_REFUSED, model="x" * 10_000)
    assert snapshot(bench)["models"] == []


def test_a_model_that_nobody_asks_for_again_is_forgotten(bench: Bench) -> None:
    bench.refuse(FaultKind.MODEL_REFUSED, model="typo")
    bench.now += 7200
    bench.serves(bench.begins("m"))
    assert snapshot(bench)["models"] == []


def test_quota_windows_are_shown_and_bounded(bench: Bench) -> None:
    bench.health.observe([QuotaWindow("codex primary", 10.0)])
    bench.health.observe([QuotaWindow("codex primary", 20.0, resets_at=START + 5)])
    assert snapshot(bench)["windows"] == [
        {
            "name": "codex primary",
            "used_percent": 20.0,
            "remaining": None,
            "limit": None,
            "resets_at": START + 5,
            "window_seconds": None,
        }
    ]
    bench.health.observe(QuotaWindow(f"w{number}") for number in range(1000))
    assert len(snapshot(bench)["windows"]) == 32


def test_a_clock_that_is_set_back_does_not_keep_an_account_resting(bench: Bench) -> None:
    bench.refuse(FaultKind.EXHAUSTED, 300)
    bench.now -= 86_400
    assert bench.rest() == MAX
    assert bench.health.blocked_until == bench.now + MAX, "a scan sees it, too"
    bench.sleep()
    assert bench.ready()


def test_accounts_that_hit_the_bound_together_do_not_return_together() -> None:
    untils = set()
    for number in range(10):
        bench = Bench()
        bench.jitter = number / 10
        bench.refuse(FaultKind.EXHAUSTED, 7200)
        untils.add(bench.look().until)
    assert len(untils) == 10


def test_asking_a_ready_account_allocates_nothing_and_costs_little(bench: Bench) -> None:
    ask = bench.health.unavailable
    bench.refuse(FaultKind.RATE_LIMITED, 500, model="other")
    for _ in range(10):
        ask("m")
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            ask("m")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - before < 200, "100 questions leave nothing behind"
    assert steps_of(lambda: ask("m"), 10) < 50, "a few looks at what is known"


# --- what one request alone meets --------------------------------------------------------


def of(kind: FaultKind, request: object, retry_at: float | None = None) -> Fault:
    return Fault(kind, "why", retry_at, request)


def test_a_request_that_fails_again_and_again_does_not_rest_the_service(bench: Bench) -> None:
    for _ in range(20):
        bench.begins("m").refused(of(FaultKind.SERVICE, "poison"))
    assert bench.ready()
    for request in ("another", "and another"):
        bench.begins("m").refused(of(FaultKind.SERVICE, request))
    assert not bench.ready(), "three different ones in a row"


def test_a_request_that_failed_counts_again_after_a_success(bench: Bench) -> None:
    for request in ("one", "two"):
        bench.begins("m").refused(of(FaultKind.SERVICE, request))
    bench.serves(bench.begins("m"))
    for request in ("one", "two"):
        bench.begins("m").refused(of(FaultKind.SERVICE, request))
        assert bench.ready()
    bench.begins("m").refused(of(FaultKind.SERVICE, "three"))
    assert not bench.ready()


def test_a_time_that_the_service_names_counts_whoever_hears_it(bench: Bench) -> None:
    bench.begins("m").refused(of(FaultKind.SERVICE, "poison"))
    bench.begins("m").refused(of(FaultKind.SERVICE, "poison", bench.now + 30))
    assert bench.rest() == 30


def test_a_probe_that_fails_lets_it_rest_on_whoever_made_it(bench: Bench) -> None:
    for request in ("one", "two", "three"):
        bench.begins("m").refused(of(FaultKind.SERVICE, request))
    bench.sleep()
    bench.begins("m").refused(of(FaultKind.SERVICE, "one"))
    assert bench.rest() == 2


def test_an_unclear_refusal_rests_nothing(bench: Bench) -> None:
    for request in range(10):
        bench.begins("m").refused(of(FaultKind.UNCLEAR, request))
    assert bench.ready()
    assert snapshot(bench)["models"] == []


def test_unclear_refusals_of_what_others_serve_rest_the_model_for_a_short_time(
    bench: Bench,
) -> None:
    for request in ("one", "one", "two"):
        bench.health.contradicted("m", of(FaultKind.UNCLEAR, request))
        assert bench.ready()
    bench.health.contradicted("m", of(FaultKind.UNCLEAR, "three"))
    assert bench.rest() == 5
    assert bench.look().kind is FaultKind.UNCLEAR
    assert bench.ready("n")


def test_a_model_that_was_served_between_is_not_doubted(bench: Bench) -> None:
    for request in range(10):
        bench.health.contradicted("m", of(FaultKind.UNCLEAR, request))
        bench.serves(bench.begins("m"))
    assert bench.ready()


def test_doubts_are_bounded(bench: Bench) -> None:
    for model in range(3 * MAX_MODELS):
        bench.health.contradicted(f"m{model}", of(FaultKind.UNCLEAR, 1))
    assert len(bench.health._doubted) == MAX_MODELS


def test_models_that_rest_for_unclear_refusals_are_bounded(bench: Bench) -> None:
    for model in range(MAX_MODELS + 5):
        for request in range(3):
            bench.health.contradicted(f"m{model}", of(FaultKind.UNCLEAR, request))
    assert len(bench.health._models) == MAX_MODELS
    for request in range(3):
        bench.health.contradicted("m" * 1000, of(FaultKind.UNCLEAR, request))
    assert bench.ready("m" * 1000), "a name that long is not kept"


def test_a_bound_on_rests_holds_also_for_what_is_only_doubted(bench: Bench) -> None:
    bench.health.contradicted("m", of(FaultKind.UNCLEAR, 1))
    bench.health.cap_cooldowns(2.0)
    for request in (2, 3):
        bench.health.contradicted("m", of(FaultKind.UNCLEAR, request))
    assert bench.rest() <= 2.0


REQUESTS = st.integers(0, 3)
STEPS = st.lists(
    st.tuples(st.sampled_from(["breaks", "is unclear", "is outdone", "is served"]), REQUESTS)
)


@given(STEPS, st.sampled_from([1, 2]))
def test_fewer_requests_than_three_rest_nothing(steps: list[tuple[str, int]], most: int) -> None:
    """Whatever one or two requests meet, however often they are sent (law 13)."""
    bench = Bench()
    for what, number in steps:
        request = number % most
        if what == "is served":
            bench.serves(bench.begins("m"))
        elif what == "breaks":
            bench.begins("m").refused(of(FaultKind.SERVICE, request))
        else:
            bench.begins("m").refused(of(FaultKind.UNCLEAR, request))
            if what == "is outdone":
                bench.health.contradicted("m", of(FaultKind.UNCLEAR, request))
        assert bench.ready("m", "n")
