"""Many turns and passed-through requests at once, over accounts that fail, rest and are reloaded.

Whatever happens, in whatever order: places, waits and visits are those of what runs, nobody
waits for what is free, and when all is over nothing is left of it.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.limits import LimitReached
from gateway.circuit_breaker import BreakerState
from gateway.config import AccountSettings, KeySettings, RoutingSettings
from gateway.conversations.store import Transcript
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.routing.health import AccountState
from gateway.routing.selection import RouteRequest
from gateway.turn.account_search import AccountSearch
from gateway.turn.context import Resolution, TurnContext
from gateway.turn.continuity import TurnContinuity
from gateway.turn.forwarding import Forwarding, PoolRoute
from gateway.turn.routed_request import RequestPhase
from gateway.turn.turn import Turn
from tests.support.events import (
    item_events,
    opening,
    reasoning_item,
    response_object,
    text_item,
    turn_events,
    user,
)
from tests.turn.calls import CallingUpstream, FakeCall, FakeResponseSink, FakeSpec
from tests.turn.fakes import FakeExchange, FakeSink, FakeUpstream, World, resolver

MODELS = ["m", "n"]
KEYS = (
    KeySettings(name="laptop", key="k", max_concurrent_turns=3),
    KeySettings(name="desk", key="d", requests_per_minute=20, tokens_per_minute=100),
    KeySettings(name="other", key="o"),
)
ERRORS = [
    ApiError(400, "invalid_request_error", "No."),
    ApiError(401, "authentication_error", "Bad key."),
    ApiError(404, "invalid_request_error", "None.", "model_not_found"),
    ApiError(429, "rate_limit_error", "Slow down.", hints={"retry-after": "2"}),
    ApiError(429, "usage_limit_reached", "Used up.", details={"resets_in_seconds": 5}),
    ApiError(500, "server_error", "It broke."),
    ApiError(503, "server_error", "Busy.", "server_is_overloaded"),
    ApiError.invalid_request("Cannot decrypt.", None, "invalid_encrypted_content"),
]
LENGTHS = [0.0, 0.3, 2.0, 6.0, 70.0]


class BothUpstream(FakeUpstream, CallingUpstream):
    """Takes turns and calls."""

    def __init__(self, name: str) -> None:
        FakeUpstream.__init__(self, name)
        CallingUpstream.__init__(self, name)


class TrafficMachine(RuleBasedStateMachine):
    """The rules are the clients, the upstreams, the clock and the operator."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            0,
            hold_seconds=1.0,
            keepalive_seconds=7.0,
            routing=RoutingSettings(
                max_attempts=3, queue_seconds=10.0, max_waiting=4, cooldown_max_seconds=30.0
            ),
        )
        self.services = self.world.services
        self.pool = self.services.pool
        self.waiting = self.services.waiting
        self.tenants = KeyRing(KEYS, self.world.clock.seconds)
        self.tenants.freed = self.waiting.wake
        object.__setattr__(self.services, "limits", self.tenants)
        self.accounts: list[Account] = []
        self.upstream = BothUpstream("all of them")
        self.turns: list[tuple[Turn, FakeSink]] = []
        self.forwarded: list[tuple[Forwarding, FakeResponseSink]] = []
        self.parents: list[Transcript | None] = [None]
        self.begun: list[FakeCall] = []
        self.count = 0
        self.reconfigure([self.account(name) for name in "ab"])

    def account(self, name: str, **about: Any) -> Account:
        described = AccountSettings(
            name=name, base_url="http://upstream", key=f"sk-{name}", **{"max_in_flight": 1, **about}
        )
        upstream = BothUpstream(name)
        upstream.exchanges, upstream.calls = self.upstream.exchanges, self.upstream.calls
        self.accounts.append(Account(described, upstream, self.world.clock.seconds, 30.0))
        return self.accounts[-1]

    def reconfigure(self, accounts: list[Account]) -> None:
        self.pool.reconfigure(accounts, self.pool.routing)
        self.waiting.wake()

    # --- clients -----------------------------------------------------------------------

    def context(self, tenant: str, thread: str) -> TurnContext:
        self.count += 1
        return TurnContext(
            tenant=tenant,
            connection=f"c-{self.count}",
            client_headers={},
            affinity=[AffinityKey("thread", tenant, thread)],
            accepted_at=self.world.clock.seconds(),
        )

    @rule(
        data=st.data(),
        tenant=st.sampled_from([each.name for each in KEYS]),
        thread=st.sampled_from(["t1", "t2", "t3"]),
        model=st.sampled_from(MODELS),
        prewarm=st.integers(0, 9),
        paused=st.booleans(),
        count=st.integers(1, 3),
    )
    def turns_begin(self, data: Any, count: int, **about: Any) -> None:
        for _ in range(count):
            self.turn(data, **about)

    def turn(
        self, data: Any, tenant: str, thread: str, model: str, prewarm: int, paused: bool
    ) -> None:
        known = [each for each in self.parents if each is None or each.record.tenant == tenant]
        parent = data.draw(st.sampled_from(known))
        members: dict[str, Any] = {"generate": False} if not prewarm else {}
        sink = FakeSink()
        context = self.context(tenant, thread)
        request = self.world.request([user("hi")], **{"model": model, **members})
        turn = Turn(self.services, context, request, sink, resolver(parent))
        if paused:
            turn.pause()
        self.turns.append((turn, sink))
        turn.start()

    @rule(
        tenant=st.sampled_from([each.name for each in KEYS]),
        thread=st.sampled_from(["t1", "t2", "t3"]),
        model=st.sampled_from(MODELS),
        held=st.booleans(),
        mends=st.integers(0, 1),
    )
    def forwarding(self, tenant: str, thread: str, model: str, held: bool, mends: int) -> None:
        spec, sink = FakeSpec(), FakeResponseSink()
        spec.model, spec.held_bytes, spec.mends = model, 50 if held else 0, mends
        context = self.context(tenant, thread)
        forwarding = Forwarding(self.services, context, spec, sink)
        self.forwarded.append((forwarding, sink))
        found = Resolution(self.world.request("hi"))
        spec.route = PoolRoute(
            RouteRequest(model, context.affinity),
            TurnContinuity(tenant, found, self.world.conversations),
        )
        forwarding.start()

    @precondition(lambda self: self.turns)
    @rule(
        data=st.data(), how=st.sampled_from(["pause", "resume", "cancel", "interrupt", "abandon"])
    )
    def acts(self, data: Any, how: str) -> None:
        turn, _ = data.draw(st.sampled_from(self.turns))
        if how == "interrupt":
            turn.interrupt(None)
        elif how == "abandon":
            turn.abandon(ApiError.bad_gateway("The gateway is restarting."))
        else:
            getattr(turn, how)()

    @precondition(lambda self: self.forwarded)
    @rule(data=st.data(), how=st.sampled_from(["pause", "resume", "cancel", "abandon"]))
    def acts_on_a_forwarded_request(self, data: Any, how: str) -> None:
        forwarding, _ = data.draw(st.sampled_from(self.forwarded))
        if how == "abandon":
            forwarding.abandon(ApiError.bad_gateway("The gateway is restarting."))
        else:
            getattr(forwarding, how)()

    # --- upstreams ---------------------------------------------------------------------

    @property
    def exchanges(self) -> list[FakeExchange]:
        return [each for each in self.upstream.exchanges if each.state == "running"]

    @property
    def calls(self) -> list[FakeCall]:
        return [each for each in self.upstream.calls if each.state == "running"]

    @precondition(lambda self: self.exchanges)
    @rule(
        data=st.data(),
        how=st.sampled_from(["begins", "outputs", "finishes", "echoes nothing"]),
    )
    def answers(self, data: Any, how: str) -> None:
        exchange = data.draw(st.sampled_from(self.exchanges))
        self.count += 1
        sent = None if how == "echoes nothing" else exchange.body.get("previous_response_id")
        response = response_object(f"resp_{self.count}", previous_response_id=sent)
        if how == "outputs":
            exchange.sends(*item_events(text_item(), 0))
        elif how == "finishes":
            usage = {"input_tokens": 5, "output_tokens": 5, "total_tokens": 10}
            made = turn_events(
                [reasoning_item(f"sealed {self.count}"), text_item()],
                response["id"],
                previous_response_id=sent,
                usage=usage,
            )
            exchange.sends(*made)
        else:
            exchange.sends(*opening(response))

    @precondition(lambda self: self.exchanges)
    @rule(data=st.data(), error=st.sampled_from([None, *ERRORS]), length=st.sampled_from(LENGTHS))
    def breaks(self, data: Any, error: ApiError | None, length: float) -> None:
        data.draw(st.sampled_from(self.exchanges)).ends(error)
        self.time_passes(length)

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        how=st.sampled_from(["begins", "sends", "ends", "refuses", "breaks"]),
        error=st.sampled_from(ERRORS),
    )
    def replies(self, data: Any, how: str, error: ApiError) -> None:
        call = data.draw(st.sampled_from(self.calls))
        begun = call in self.begun
        if how == "breaks":
            call.ends(error)
        elif how == "refuses" and not begun:
            call.answers({"error": error.body()}, error.status)
        elif not begun:
            self.begun.append(call)
            call.begins()
        elif how == "sends":
            call.sends(json.dumps({"text": "x" * 20}).encode())
        else:
            call.ends()

    # --- time and the operator ---------------------------------------------------------

    @rule(seconds=st.sampled_from(LENGTHS))
    def time_passes(self, seconds: float) -> None:
        left = seconds
        while left > 0:
            self.world.clock.advance(min(0.25, left))
            left -= 0.25
        if seconds >= 2.0:
            self.check_nobody_waits_for_what_is_free()

    @rule(
        data=st.data(),
        how=st.sampled_from(["disable", "enable", "drain", "resume", "clear", "clear"]),
    )
    def operates(self, data: Any, how: str) -> None:
        account = data.draw(st.sampled_from(self.pool.accounts))
        getattr(account.health, how)()
        self.waiting.wake()

    @rule(
        names=st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True),
        weight=st.integers(1, 2),
        places=st.integers(1, 2),
    )
    def reloads(self, names: list[str], weight: int, places: int) -> None:
        before = {account.name: account for account in self.pool.accounts}
        after = []
        for name in names:
            former = before.get(name)
            wanted = {"weight": weight, "max_in_flight": places}
            if former is not None and former.settings == msgspec.structs.replace(
                former.settings, **wanted
            ):
                after.append(former)
                continue
            after.append(self.account(name, **wanted))
            if former is not None:
                after[-1].inherit(former)
        for name in before.keys() - set(names):
            self.pool.bindings.forget_account(name)
        self.reconfigure(after)

    # --- what must hold ----------------------------------------------------------------

    @property
    def searches(self) -> list[AccountSearch]:
        running = [*self.turns, *self.forwarded]
        return [each._search for each, _ in running if isinstance(each._search, AccountSearch)]

    @invariant()
    def what_is_counted_is_what_runs(self) -> None:
        places = sum(each._lease is not None for each, _ in [*self.turns, *self.forwarded])
        in_flight = sum(account.in_flight for account in self.accounts)
        assert in_flight == places == len(self.exchanges) + len(self.calls), "places"
        waiting = [each for each in self.searches if each._ticket is not None]
        assert len(self.waiting) == len(waiting) <= 4, "who waits"
        visits = sum(each.limit_lease is not None for each in self.searches)
        shown = {each["name"]: each["turns_running"] for each in self.tenants.snapshot()}
        assert sum(shown.values()) == visits, f"visits: {shown}"
        assert shown["laptop"] <= 3, "max_concurrent_turns of the key"
        idle = {id(each.health): each for each in self.accounts}
        for each in self.accounts:
            if each.in_flight:
                idle.pop(id(each.health), None)
        for each in idle.values():
            assert not probing(each), f"a probe of {each.name} was lost"

    @invariant()
    def every_turn_has_one_end(self) -> None:
        for turn, sink in [*self.turns]:
            over = turn._phase is RequestPhase.ENDED
            assert sink.ended == over
            if over:
                self.turns.remove((turn, sink))
                assert all(attempt.outcome != "running" for attempt in turn.record.attempts)
                if turn.recorded is not None:
                    self.parents = [*self.parents[-5:], turn.recorded, None]
        for forwarding, shown in [*self.forwarded]:
            assert len(shown.endings) <= 1
            if forwarding._phase is RequestPhase.ENDED:
                self.forwarded.remove((forwarding, shown))

    def check_nobody_waits_for_what_is_free(self) -> None:
        for search in self.searches:
            lack = search._blocked_by
            if search._ticket is None or lack is None or isinstance(lack, LimitReached):
                continue
            able = [self.pool.named(lack.waits_for)] if lack.waits_for else self.pool.accounts
            model = search._wanted.model
            free = [
                each.name
                for each in able
                if each
                and each.unavailable(model) is None
                and not (lack.wanted.undoubted and each.health.in_doubt(model))
            ]
            assert not free, f"a turn waits while {free} could take it"

    def teardown(self) -> None:
        for turn, _ in self.turns:
            turn.cancel()
        for forwarding, _ in self.forwarded:
            forwarding.cancel()
        self.turns.clear()
        self.forwarded.clear()
        self.what_is_counted_is_what_runs()
        calls = self.world.clock.getDelayedCalls()
        assert not calls, f"timers outlived what they were for: {calls}"
        self.world.clock.advance(100)
        for account in self.pool.accounts:
            if account.health.state in (AccountState.DISABLED, AccountState.DRAINING):
                continue
            for model in MODELS:
                blocked = account.unavailable(model)
                assert blocked is None, f"{account.name} never comes back: {blocked}"


def probing(account: Account) -> bool:
    rests = [*account.health._cooldowns.values(), *account.health._models.values()]
    return any(rest.breaker._state is BreakerState.PROBING for rest in rests)


TrafficMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestTrafficMachine = TrafficMachine.TestCase
