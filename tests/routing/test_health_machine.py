"""An account's health, whatever turns, upstreams, clocks and the operator do to it."""

from __future__ import annotations

import json
import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.cooldown import ADMIN_TRANSITIONS, AdminState, Cooldown, HealthLog
from gateway.routing.health import (
    AccountHealth,
    AccountState,
)
from tests.routing.pools import HealthAttempt

START = 1_795_000_000.0
MAX = 600.0

READY, COOLING, EXHAUSTED = AccountState.READY, AccountState.COOLING, AccountState.EXHAUSTED
UNAUTHORIZED, DISABLED = AccountState.UNAUTHORIZED, AccountState.DISABLED
DRAINING = AccountState.DRAINING


MODELS = st.sampled_from(["m", "n", None])
KINDS = st.sampled_from(list(FaultKind))
RETRY_IN = st.none() | st.sampled_from([0.0, 0.5, 5.0, 59.0, 3600.0, 40 * 86_400.0])
WHICH = st.integers(0, 1000)

#: What an account-wide rest is told as.
OF_THE_ACCOUNT = {FaultKind.EXHAUSTED, FaultKind.UNAUTHORIZED, FaultKind.SERVICE}


class Heard(HealthLog):
    """Knows what cools down; None stands for all of the account."""

    def __init__(self) -> None:
        super().__init__()
        self.resting: set[str | None] = set()

    def cooldown_began(self, cooldown: Cooldown, model: str | None, again: bool) -> None:
        assert not again or model in self.resting, "it was never told before"
        self.resting.add(model)

    def serves_again(self, model: str | None) -> None:
        assert model in self.resting, "it was never told to rest"
        self.resting.discard(model)


class Machine(RuleBasedStateMachine):
    """Turns come and go, the clock runs, the operator acts."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START
        self.jitter = 0.5
        self.heard = Heard()
        self.health = AccountHealth(lambda: self.now, MAX, lambda: self.jitter, self.heard)
        #: HealthAttempt, model, and whether it may end a rest that was promised.
        self.running: list[tuple[HealthAttempt, str | None, bool]] = []
        self.wish = AdminState.SERVE
        #: Until when each model must not be used, as the account last said.
        self.promised: dict[str | None, float] = {}

    def take(self, which: int) -> tuple[HealthAttempt, str | None]:
        attempt, model, may_end_rests = self.running.pop(which % len(self.running))
        if may_end_rests:
            self.promised.clear()
        return attempt, model

    @rule(model=MODELS)
    def begin(self, model: str | None) -> None:
        if self.health.unavailable(model) is None:
            of_the_account = self.health.state is not READY
            attempt = HealthAttempt(self.health, model)
            is_probe = self.health.unavailable(model) is not None
            assert is_probe or not of_the_account, "that was the one probe"
            self.running.append((attempt, model, is_probe))

    @rule(model=MODELS)
    def begin_in_spite_of_everything(self, model: str | None) -> None:
        self.running.append((HealthAttempt(self.health, model), model, True))

    @precondition(lambda self: self.running)
    @rule(which=WHICH, kind=KINDS, retry_in=RETRY_IN)
    def refuse(self, which: int, kind: FaultKind, retry_in: float | None) -> None:
        attempt, model = self.take(which)
        attempt.refused(Fault(kind, "why", None if retry_in is None else self.now + retry_in))
        limits_model = kind in (FaultKind.RATE_LIMITED, FaultKind.MODEL_REFUSED)
        if limits_model or kind in (FaultKind.EXHAUSTED, FaultKind.UNAUTHORIZED):
            assert self.health.unavailable(model) is not None, "what refused is asked no more"

    @rule(model=MODELS, kind=KINDS, retry_in=RETRY_IN)
    def break_off(self, model: str | None, kind: FaultKind, retry_in: float | None) -> None:
        fault = Fault(kind, "why", None if retry_in is None else self.now + retry_in)
        self.health.refused(model, fault)

    @precondition(lambda self: self.running)
    @rule(which=WHICH, kind=KINDS, retry_in=RETRY_IN)
    def begin_well_and_break_off(self, which: int, kind: FaultKind, retry_in: float | None) -> None:
        attempt, _ = self.take(which)
        attempt.acknowledged()
        at = None if retry_in is None else self.now + retry_in
        attempt.breaks_off(Fault(kind, "why", at))

    @rule(model=MODELS, request=st.integers(0, 4))
    def is_outdone(self, model: str | None, request: int) -> None:
        self.health.contradicted(model, Fault(FaultKind.UNCLEAR, "why", None, request))

    @precondition(lambda self: self.running)
    @rule(which=WHICH)
    def refuse_often(self, which: int) -> None:
        for _ in range(3):
            if self.running:
                self.take(which)[0].refused(Fault(FaultKind.SERVICE, "why"))

    @precondition(lambda self: self.running)
    @rule(which=WHICH)
    def succeed(self, which: int) -> None:
        attempt, _ = self.take(which)
        attempt.acknowledged()
        self.health.ended_well()

    @precondition(lambda self: self.running)
    @rule(which=WHICH)
    def drop(self, which: int) -> None:
        self.take(which)[0].dropped()

    @rule(seconds=st.floats(0, 700), jitter=st.floats(0, 1))
    def wait(self, seconds: float, jitter: float) -> None:
        self.now += seconds
        self.jitter = jitter

    @rule(seconds=st.floats(-1e7, 1e7))
    def jump(self, seconds: float) -> None:
        self.now += seconds
        self.promised.clear()

    @rule(action=st.sampled_from(sorted(ADMIN_TRANSITIONS)))
    def act(self, action: str) -> None:
        getattr(self.health, action)()
        self.wish = ADMIN_TRANSITIONS[action].get(self.wish, self.wish)

    @rule()
    def clear(self) -> None:
        self.health.clear()
        self.promised.clear()
        served = self.health.unavailable("m") is None
        assert served is (self.wish is AdminState.SERVE), "nothing is wrong with it any more"

    @invariant()
    def nobody_is_asked_before_time(self) -> None:
        for model in ("m", "n", None):
            found = self.health.unavailable(model)
            if found is None:
                assert self.now >= self.promised.get(model, 0.0), "it was to rest longer"
            elif found.until is not None:
                assert self.now < found.until <= self.now + MAX, "a rest ends, and soon enough"
                if "probe" not in found.why:
                    self.promised[model] = found.until

    @invariant()
    def a_scan_that_skips_the_blocked_skips_no_ready_one(self) -> None:
        found = self.health.unavailable("m")
        if self.health.blocked_until > self.now:
            assert found is not None, "blocked for every model"
        if found is not None and found.kind in OF_THE_ACCOUNT and "probe" not in found.why:
            assert self.health.blocked_until > self.now

    @invariant()
    def what_the_operator_took_out_serves_nothing(self) -> None:
        if self.wish is not AdminState.SERVE:
            assert self.health.unavailable("m") is not None
            assert self.health.blocked_until == math.inf

    @invariant()
    def what_rests_was_announced_and_what_serves_too(self) -> None:
        shown = self.health.snapshot()
        assert self.heard.resting >= {each["model"] or "no model" for each in shown["models"]}
        assert (None in self.heard.resting) == bool(shown["resting"])

    @invariant()
    def the_snapshot_is_json(self) -> None:
        json.dumps(self.health.snapshot(), allow_nan=False)

    def teardown(self) -> None:
        """Whatever happened, and even if every attempt was lost, it can be used again."""
        self.health.enable()
        self.health.resume()
        for model in ("m", "n", None):
            began = self.now
            while self.health.unavailable(model) is not None:
                self.now += 1.0
                assert self.now <= began + MAX + 1, f"{model} rests for ever"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
