"""Any upstream, any client, in any order: one terminal event, and nothing left behind."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from gateway.config import RoutingSettings
from gateway.conversations.store import Transcript
from gateway.protocol.errors import ApiError
from gateway.protocol.synthetic_events import interrupt_accepted
from gateway.turn.turn import Turn
from tests.support.events import (
    Json,
    call_item,
    call_output,
    item_events,
    opening,
    reasoning_item,
    response_object,
    text_item,
    user,
)
from tests.turn.fakes import TERMINALS, FakeExchange, FakeSink, World

ERRORS = [
    ApiError.previous_response_not_found("resp_x"),
    ApiError.invalid_request("Unsupported parameter: previous_response_id"),
    ApiError.invalid_request("No tool call found for function call output with call_id c."),
    ApiError.invalid_request("Cannot decrypt.", None, "invalid_encrypted_content"),
    ApiError.invalid_request("Too long.", None, "context_length_exceeded"),
    ApiError(401, "authentication_error", "Bad key."),
    ApiError(404, "invalid_request_error", "Not here."),
    ApiError(429, "rate_limit_error", "Slow down.", "rate_limit_exceeded"),
    ApiError.bad_gateway("It broke."),
    ApiError(503, "server_error", "Busy.", "server_is_overloaded"),
]
ITEMS: list[Callable[[], Json]] = [text_item, call_item, reasoning_item]
SIDE_EVENTS: list[Json] = [
    {"type": "codex.rate_limits", "rate_limits": {}},
    {"type": "response.metadata", "headers": {"x-codex-turn-state": "sticky"}},
    {"type": "response.from_the_future"},
    {"type": "some.other"},
    {"type": "error", "error": {}},
    {"type": ""},
]


class TurnMachine(RuleBasedStateMachine):
    """One turn after the other in one world; the rules play its upstreams and its client."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            accounts=2,
            hold_seconds=5,
            keepalive_seconds=7,
            routing=RoutingSettings(max_attempts=2, queue_seconds=0.0),
        )
        self.turn: Turn | None = None
        self.sink = FakeSink()
        self.parents: list[Transcript | None] = [None]
        self.cancelled = False
        self.acknowledged: list[FakeExchange] = []
        self.ids = itertools.count(1)
        self.numbers = itertools.count()

    # --- the client --------------------------------------------------------------------

    @precondition(lambda self: self.turn is None)
    @rule(data=st.data(), prewarm=st.booleans(), store=st.booleans(), early_pause=st.booleans())
    def begins(self, data: st.DataObject, prewarm: bool, store: bool, early_pause: bool) -> None:
        parent = data.draw(st.sampled_from(self.parents))
        items = [user("hi"), reasoning_item("sealed elsewhere"), call_output("call_1")]
        members = {"generate": False} if prewarm else {}
        self.turn = self.world.turn(items, parent, store=store, **members)
        self.sink = self.world.sink
        self.cancelled = False
        if early_pause:
            self.turn.pause()
        self.turn.start()

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["pause", "resume", "cancel", "interrupt", "announced", "abandon"]))
    def acts(self, how: str) -> None:
        assert self.turn is not None
        if how == "cancel":
            self.cancelled = True
            self.turn.cancel()
        elif how == "interrupt":
            self.turn.interrupt(None)
        elif how == "announced":
            self.turn.interrupt(interrupt_accepted)
        elif how == "abandon":
            self.turn.abandon(ApiError.bad_gateway("The gateway is restarting."))
        else:
            getattr(self.turn, how)()

    @rule(seconds=st.sampled_from([0.1, 5.0, 7.0, 60.0]))
    def waits(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    # --- the upstream ------------------------------------------------------------------

    @precondition(lambda self: self.answering and self.exchange not in self.acknowledged)
    @rule(echo=st.sampled_from(["right", "right", "none", "wrong"]), more=st.booleans())
    def acknowledges(self, echo: str, more: bool) -> None:
        exchange = self.exchange
        self.acknowledged.append(exchange)
        sent = exchange.body.get("previous_response_id")
        echoed = {"right": sent, "none": None, "wrong": "resp_y"}[echo]
        response = response_object(f"resp_{next(self.ids)}", previous_response_id=echoed)
        events = opening(response)
        if more:
            events += item_events(text_item(), 0)
        exchange.sends(*map(self.numbered, events))

    @precondition(lambda self: self.answering)
    @rule(make=st.sampled_from(ITEMS), cut=st.integers(1, 20), index=st.integers(0, 3))
    def outputs(self, make: Callable[[], Json], cut: int, index: int) -> None:
        self.exchange.sends(*map(self.numbered, list(item_events(make(), index))[:cut]))

    @precondition(lambda self: self.answering)
    @rule(event=st.sampled_from(SIDE_EVENTS))
    def mentions(self, event: Json) -> None:
        self.exchange.sends(event)

    @precondition(lambda self: self.answering)
    @rule(
        status=st.sampled_from(["completed", "incomplete", "failed", "done", "cancelled"]),
        code=st.sampled_from(["server_error", "rate_limit_exceeded", "context_length_exceeded"]),
        twice=st.booleans(),
    )
    def terminates(self, status: str, code: str, twice: bool) -> None:
        response = response_object(
            f"resp_{next(self.ids)}",
            status=status,
            error={"code": code, "message": "x"} if status == "failed" else None,
            incomplete_details={"reason": "max_output_tokens"} if status == "incomplete" else None,
        )
        event = {"type": f"response.{status}", "response": response}
        self.exchange.sends(*[self.numbered(event)] * (1 + twice))

    @precondition(lambda self: self.answering)
    @rule(error=st.sampled_from([None, *ERRORS]))
    def breaks(self, error: ApiError | None) -> None:
        self.exchange.ends(error)

    @precondition(lambda self: self.answering)
    @rule(error=st.sampled_from(ERRORS))
    def complains(self, error: ApiError) -> None:
        self.exchange.sends({"type": "error", "status": error.status, "error": error.body()})

    # --- what must hold ----------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self.turn is not None and not self.sink.ended

    @property
    def live(self) -> list[FakeExchange]:
        upstreams = self.world.upstreams.values()
        return [e for each in upstreams for e in each.exchanges if e.state == "running"]

    @property
    def answering(self) -> bool:
        return bool(self.live)

    @property
    def exchange(self) -> FakeExchange:
        (exchange,) = self.live
        return exchange

    def numbered(self, event: Json) -> Json:
        return {**event, "sequence_number": next(self.numbers)}

    @invariant()
    def holds(self) -> None:
        self.check_counts()
        self.check_what_the_client_saw()
        if self.turn is not None and not self.running:
            self.check_the_end(self.turn)
            self.turn = None

    def check_counts(self) -> None:
        expected = 1 if self.running else 0
        assert len(self.live) == expected, f"{len(self.live)} upstream requests are running"
        in_flight = sum(account.in_flight for account in self.world.accounts.values())
        assert in_flight == expected, f"the accounts count {in_flight} turns in flight"

    def check_what_the_client_saw(self) -> None:
        events, kinds = self.sink.events, self.sink.types
        ids = {event["response"]["id"] for event in events if "response" in event}
        assert len(ids) <= 1, f"answers of several responses were spliced: {ids}"
        assert kinds.count("response.created") <= 1
        numbered = [event for event in events if "sequence_number" in event]
        numbers = [event["sequence_number"] for event in numbered]
        in_order = not numbered or numbered[0]["type"] == "response.created"
        assert not in_order or numbers == sorted(set(numbers)), f"numbers must increase: {numbers}"
        terminals = [kind for kind in kinds if kind in TERMINALS]
        if self.running:
            assert terminals == [], f"terminal events before the end of the turn: {terminals}"

    def check_the_end(self, turn: Turn) -> None:
        kinds = self.sink.types
        terminals = [kind for kind in kinds if kind in TERMINALS]
        assert terminals == ([] if self.cancelled else kinds[-1:]), f"one, at the end: {kinds}"
        if kinds and kinds[-1].startswith("response.") and "response.created" not in kinds:
            exchange = self.world.exchanges(turn.record.attempts[-1].account)[-1]
            assert exchange not in self.acknowledged, "the client never heard response.created"
        self.world.check_rest()
        assert self.sink.ended == 1
        assert turn.record.status != "running"
        assert all(attempt.outcome != "running" for attempt in turn.record.attempts)
        if turn.recorded is not None:
            assert turn.recorded.record.id == self.sink.last["response"]["id"]
            self.parents.append(turn.recorded)

    def teardown(self) -> None:
        if self.running and self.turn is not None:
            self.turn.cancel()
        self.world.check_rest()


TurnMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestTurnMachine = TurnMachine.TestCase
