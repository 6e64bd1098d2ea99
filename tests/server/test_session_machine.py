"""A session under any load: every create gets one terminal event, on its lane, or the close."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.protocol.errors import ApiError
from gateway.server.lanes import MAX_RUNNING
from tests.server.session_stage import Stage
from tests.support.events import call_item, call_output, turn_events

LANES = [None, *(f"lane-{number}" for number in range(MAX_RUNNING + 2))]
WRONG = ApiError.invalid_request("No tool call found for function call output with call_id c.")
DOWN = ApiError.bad_gateway("The upstream refused the connection.")


class SessionMachine(RuleBasedStateMachine):
    """Creates on many lanes; its upstream answers whom it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(accounts=2, limits={"max_queued_turns": 3})
        self.asked: Counter[str | None] = Counter()
        self.ids = ["resp_of_nobody"]
        self.over = False
        self.paused = False

    @precondition(lambda self: not self.over)
    @rule(
        lane=st.sampled_from(LANES),
        kind=st.sampled_from(["text", "text", "prewarm", "output", "wrong"]),
        parent=st.integers(0, 5),
        times=st.integers(1, 6),
    )
    def creates(self, lane: str | None, kind: str, parent: int, times: int) -> None:
        members: dict[str, Any] = {} if lane is None else {"stream_id": lane}
        if kind == "prewarm":
            members["generate"] = False
        if parent:
            members["previous_response_id"] = self.ids[-parent % len(self.ids)]
        content: Any = [call_output("call_1")] if kind == "output" else "hi"
        for _ in range(times):
            self.stage.create(7 if kind == "wrong" else content, store=False, **members)
            self.asked[lane] += 1

    @precondition(lambda self: self.stage.running)
    @rule(which=st.integers(0, 20), error=st.sampled_from([None, None, None, WRONG, DOWN]))
    def answers(self, which: int, error: ApiError | None) -> None:
        exchange = self.stage.running[which % len(self.stage.running)]
        if error is not None:
            exchange.ends(error)
            return
        response_id = f"resp_{len(self.ids)}"
        self.ids.append(response_id)
        echo = exchange.body.get("previous_response_id")
        exchange.sends(*turn_events([call_item("call_1")], response_id, previous_response_id=echo))

    @precondition(lambda self: not self.over)
    @rule(how=st.sampled_from(["pause", "resume", "resume"]))
    def reads(self, how: str) -> None:
        self.paused = how == "pause"
        getattr(self.stage.session, how)()

    @precondition(lambda self: not self.over)
    @rule(lane=st.sampled_from(LANES))
    def cancels(self, lane: str | None) -> None:
        named = {} if lane is None else {"stream_id": lane}
        self.stage.says(type="response.cancel", **named)

    @precondition(lambda self: not self.over)
    @rule(how=st.sampled_from(["drain", "abandon", "age"]))
    def ends(self, how: str) -> None:
        if how == "age":
            self.stage.world.clock.advance(3600)
            self.stage.create()
            self.asked[None] += 1
        else:
            getattr(self.stage.session, how)()
        self.stage.session.resume()
        self.paused = False
        self.over = True

    @rule()
    def waits(self) -> None:
        self.stage.world.clock.advance(1)

    @invariant()
    def nobody_is_forgotten_or_told_twice(self) -> None:
        ended = Counter(event.get("stream_id") for event in self.stage.channel.terminals)
        running = self.stage.session.turns_running
        assert running == len(self.stage.running) <= MAX_RUNNING
        waiting = running + self.stage.session.turns_queued
        assert self.paused or running or not waiting, "turns wait although nothing runs"
        assert sum(ended.values()) + waiting == sum(self.asked.values()), "a turn got lost"
        assert all(ended[lane] <= self.asked[lane] for lane in ended), "told on a wrong lane"
        assert bool(self.stage.channel.closed) <= (waiting == 0), "closed over running turns"

    def teardown(self) -> None:
        stage = self.stage
        stage.session.resume()
        self.paused = False
        while stage.running:
            stage.running[0].ends(DOWN)
        stage.channel.closed.clear()
        self.nobody_is_forgotten_or_told_twice()
        stage.session.closed()
        stage.world.check_rest()


SessionMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestSessionMachine = SessionMachine.TestCase
