"""A pool under any order of turns, faults, told quotas, reloads and jumps of the clock.

Nobody is asked who rests, refused or is full; nobody is turned away while one could serve; a
dry run tells the same; places are given back once; and whatever happened, every account comes
back.
"""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from gateway.circuit_breaker import BreakerState
from gateway.config import RoutingSettings
from gateway.config.settings import LossRule, ReturnRule, Strategy
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.protocol.rate_limits import QuotaWindow
from gateway.routing.account import Account
from gateway.routing.selection import DryRun, NoAccount, RouteRequest, Selection
from tests.routing.pools import Basin, wanted

NAMES = "abc"
LIMITS: list[dict[str, Any]] = [
    {},
    {"max_in_flight": 1},
    {"requests_per_minute": 2},
    {"models": ["m"]},
    {"weight": 3, "priority": 1},
]
AHEAD = st.sampled_from([None, None, 0.0, 1.0, 30.0, 5_000.0, 1e6])


class PoolMachine(RuleBasedStateMachine):
    """The rules are turns, upstreams, the operator and the clock."""

    @initialize(
        limits=st.lists(st.sampled_from(LIMITS), min_size=3, max_size=3),
        strategy=st.sampled_from(get_args(Strategy)),
        loss=st.sampled_from(get_args(LossRule)),
        returns=st.sampled_from(get_args(ReturnRule)),
    )
    def begin(self, limits: list[dict[str, Any]], strategy: Any, loss: Any, returns: Any) -> None:
        self.basin = Basin(*NAMES, accounts=dict(zip(NAMES, limits, strict=True)))
        routing = RoutingSettings(strategy=strategy, on_account_loss=loss, return_to=returns)
        self.pool = self.basin.pool
        self.pool.reconfigure(self.pool.accounts, routing)
        self.everybody = list(self.pool.accounts)
        self.held: list[Selection] = []

    # --- turns -------------------------------------------------------------------------

    @rule(
        thread=st.sampled_from(["t1", "t2", "t3", None, None]),
        model=st.sampled_from(["m", "n"]),
        holder=st.sampled_from([None, None, "a", "b", "gone"]),
        pinned_to=st.sampled_from([None] * 6 + ["a", "gone"]),
        tried=st.sets(st.sampled_from(NAMES), max_size=2),
        seconds=st.sampled_from([0.0, 1.0]),
        asks=st.booleans(),
    )
    def a_turn_begins(
        self,
        thread: str | None,
        model: str,
        tried: set[str],
        seconds: float,
        asks: bool,
        **about: Any,
    ) -> None:
        self.basin.clock.rightNow += seconds
        offering = self.pool._candidates_for(model, False, False).all
        able = [each for each in offering if each.unavailable(model) is None]
        able = [each for each in able if each.name not in tried]
        asked = wanted(thread, model, **about)
        foretold = self.foretell(asked) if asks and not tried else None
        choice = self.pool.choose(asked, tried)
        if foretold is not None:
            self.check_what_was_foretold(foretold, choice)
        free = about["pinned_to"] is None and self.pool.routing.on_account_loss == "move"
        if isinstance(choice, Selection):
            self.held.append(choice)
            name = choice.account.name
            assert choice.account in able or self.hurried(choice.account), f"{name} cannot serve"
            if choice.rule == self.pool.routing.strategy and seconds:
                room = [each.name for each in able if not each.health.quotas.spent]
                assert not room or choice.account.name in room, "another has something left"
        elif free:
            assert not able, f"{able[0].name} could have served this turn"

    def hurried(self, account: Account) -> bool:
        """Whether its rest was ended because nobody was left: then this turn is the probe."""
        return account.health._cooldowns["service"].breaker.state is BreakerState.PROBING

    def foretell(self, asked: RouteRequest) -> DryRun:
        bindings = list(self.pool.bindings.items(100))
        before = [(identity, structs.replace(binding)) for identity, binding in bindings]
        found = self.pool.explain(asked)
        assert list(self.pool.bindings.items(100)) == before, "a dry run has changed a binding"
        return found

    def check_what_was_foretold(self, foretold: DryRun, choice: Selection | NoAccount) -> None:
        """A dry run tells where the next turn would go; one that finds nobody may end rests."""
        names = foretold.among if foretold.account is None else (foretold.account,)
        if isinstance(choice, NoAccount):
            assert not names, f"{foretold} was foretold"
            assert foretold.waits_for == choice.waits_for
        elif names:
            assert choice.account.name in names, f"{foretold} was foretold"
            assert choice.rule == foretold.rule
            assert len(foretold.candidates) == choice.candidates
            others = {name: why for name, why in choice.others.items() if name not in names}
            assert foretold.rejected == others
        else:
            assert self.hurried(choice.account), "it was foretold that nobody could"
        if self.pool.routing.strategy == "fill-first":
            assert len(foretold.among) < 2, "it does not rotate"

    @precondition(lambda self: self.held)
    @rule(
        which=st.integers(0, 50),
        begins=st.booleans(),
        kind=st.none() | st.sampled_from(FaultKind),
        ahead=AHEAD,
    )
    def a_turn_ends(
        self, which: int, begins: bool, kind: FaultKind | None, ahead: float | None
    ) -> None:
        lease = self.held.pop(which % len(self.held)).lease
        if begins:
            lease.acknowledged()
        if kind is not None:
            at = None if ahead is None else self.basin.now + ahead
            lease.refused(Fault(kind, "why", at))
        lease.release()
        lease.release()

    @rule(
        name=st.sampled_from(NAMES),
        window=st.sampled_from(["codex primary", "requests", "codex-one primary"]),
        percent=st.sampled_from([0.0, 100.0]),
        ahead=AHEAD,
    )
    def an_answer_tells(self, name: str, window: str, percent: float, ahead: float | None) -> None:
        account = self.pool.named(name)
        assert account is not None
        at = None if ahead is None else self.basin.now + ahead
        account.health.observe([QuotaWindow(window, percent, resets_at=at)])

    # --- the operator and the clock ------------------------------------------------------

    @rule(
        name=st.sampled_from(NAMES),
        what=st.sampled_from(["drain", "resume", "disable", "enable", "clear"]),
    )
    def the_operator_acts(self, name: str, what: str) -> None:
        account = self.pool.named(name)
        assert account is not None
        getattr(account.health, what)()

    @rule(name=st.sampled_from(NAMES), limits=st.sampled_from(LIMITS))
    def a_reload(self, name: str, limits: dict[str, Any]) -> None:
        former = self.pool.named(name)
        assert former is not None
        account = self.basin.account(name, **limits)
        account.inherit(former)
        self.everybody.append(account)
        self.pool.reconfigure(
            [account if each is former else each for each in self.pool.accounts], self.pool.routing
        )

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 70.0, 700.0, 90_000.0, -0.5, -30.0, -90_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.basin.clock.rightNow += seconds

    # --- what must hold ------------------------------------------------------------------

    @invariant()
    def places_are_those_of_running_turns(self) -> None:
        if not hasattr(self, "held"):
            return
        running = [choice.account for choice in self.held]
        for each in self.everybody:
            assert each.in_flight == running.count(each)
        for each in self.pool.accounts:
            limit = each.settings.max_in_flight
            begun_since = limit is None or each.in_flight <= limit
            assert begun_since, f"{each.in_flight} turns on {each.name}"

    def teardown(self) -> None:
        if not hasattr(self, "held"):
            return
        for choice in self.held:
            choice.lease.release()
        for each in self.pool.accounts:
            each.health.enable()
            each.health.resume()
            self.comes_back(each)

    def comes_back(self, account: Account) -> None:
        began = self.basin.now
        while account.unavailable("m") is not None:
            self.basin.clock.rightNow += 1.0
            assert self.basin.now <= began + 700, f"{account.name} never comes back"


PoolMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase
