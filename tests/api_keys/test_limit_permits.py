"""A process's part of shared limits: permits at hand, reports, and an authority that is gone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from gateway.api_keys.keys import KeyRing
from gateway.api_keys.limit_ledger import LimitAnswer, LimitAsk, LimitLedger
from gateway.api_keys.limit_permits import ASK_SECONDS, SharedLimits
from gateway.api_keys.limits import LimitLease, LimitReached
from gateway.config import KeySettings
from gateway.protocol.usage import Usage

START = 1_800_000_000.0


class Authority:
    """Counts in this process; answers at once, later, or not at all.

    :ivar delay: seconds until an answer; None for never.
    :ivar fails: whether it cannot be reached.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ledger = LimitLedger()
        self.delay: float | None = 0.0
        self.fails = False
        self.loses_answers = False
        self.asks: list[LimitAsk] = []

    def exchange(self, ask: LimitAsk) -> Deferred[LimitAnswer]:
        self.asks.append(ask)
        if self.fails:
            return fail(OSError("refused"))
        if self.delay is None:
            return Deferred()
        answer = self.ledger.exchange(ask, self.clock.seconds())
        if self.loses_answers:
            return fail(OSError("reset"))
        if not self.delay:
            return succeed(answer)
        later: Deferred[LimitAnswer] = Deferred(lambda _: None)
        self.clock.callLater(self.delay, later.callback, answer)
        return later


class Process:
    """A process with the key "laptop"."""

    def __init__(self, name: str, authority: Authority, news: list[Process], **limits: Any) -> None:
        clock = self.clock = authority.clock
        self.ring = KeyRing([KeySettings(name="laptop", key="k", **limits)], clock.seconds)
        self.woken = 0
        self.ring.freed = self._woken
        self.news = news
        news.append(self)
        self.shared = SharedLimits(clock, authority, name, self._tell, self.ring.wake)
        self.ring.share(self.shared)
        self.leases: list[LimitLease] = []

    def _woken(self) -> None:
        self.woken += 1

    def _tell(self, tenant: str) -> None:
        for each in self.news:
            if each is not self:
                each.shared.freed_elsewhere(tenant)

    def turn(self) -> bool:
        """A turn comes; whether it is admitted.  The clock stands still."""
        prepared = self.ring.prepare("laptop")
        assert prepared is None or prepared.called, "the authority has answered"
        return self.enters()

    def enters(self) -> bool:
        entered = self.ring.acquire("laptop", "m")
        if isinstance(entered, LimitReached):
            return False
        self.leases.append(entered)
        return True

    def ends(self) -> None:
        self.leases.pop(0).release()

    @property
    def shown(self) -> dict[str, Any]:
        return self.ring.snapshot()[0]


class Stage:
    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.clock.advance(START)
        self.authority = Authority(self.clock)
        self.news: list[Process] = []
        self.a = Process("a", self.authority, self.news, **limits)
        self.b = Process("b", self.authority, self.news, **limits)

    def passes(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.25)):
            self.clock.advance(0.25)


def test_both_processes_together_have_the_limit() -> None:
    stage = Stage(requests_per_minute=300)
    granted = 0
    for number in range(1200):
        which = stage.a if number % 3 else stage.b
        granted += which.turn()
        if which.leases:
            which.ends()
        stage.clock.advance(0.01)
    assert 297 <= granted <= 300


def test_places_are_never_more_than_the_limit() -> None:
    stage = Stage(max_concurrent_turns=4)
    assert [each.turn() for each in (stage.a, stage.b, stage.a, stage.b)] == [True] * 4
    assert not stage.a.turn()
    assert not stage.b.turn()
    stage.b.ends()
    stage.clock.advance(0)
    assert stage.a.turn()
    assert not stage.b.turn()


def test_a_free_place_wakes_another_process() -> None:
    stage = Stage(max_concurrent_turns=1)
    assert stage.a.turn()
    assert not stage.b.turn()
    before = stage.b.woken
    stage.a.ends()
    stage.clock.advance(0)
    assert stage.b.woken > before
    assert stage.b.enters()


def test_a_turn_in_the_queue_gets_the_place_at_its_retry() -> None:
    stage = Stage(max_concurrent_turns=1)
    stage.authority.delay = 0.005
    prepared = stage.a.ring.prepare("laptop")
    assert prepared is not None
    stage.clock.advance(0.005)
    assert stage.a.enters()
    stage.b.ring.prepare("laptop")
    stage.clock.advance(0.005)
    assert not stage.b.enters()
    stage.a.ends()
    for _ in range(3):
        stage.clock.advance(0.005)
    assert not stage.b.enters(), "it asks for one"
    before = stage.b.woken
    stage.clock.advance(0.005)
    assert stage.b.woken > before
    assert stage.b.enters()


def test_frequent_turns_wait_for_nothing() -> None:
    stage = Stage(requests_per_minute=6000)
    stage.authority.delay = 0.002
    waited = 0
    for _ in range(200):
        prepared = stage.a.ring.prepare("laptop")
        if prepared is not None:
            waited += 1
            stage.clock.advance(0.002)
        assert stage.a.enters()
        stage.a.ends()
        for _ in range(10):
            stage.clock.advance(0.001)
    assert waited <= 3
    assert len(stage.authority.asks) <= 30


def test_a_key_without_limits_never_waits() -> None:
    stage = Stage()
    stage.authority.delay = None
    assert stage.a.ring.prepare("laptop") is None
    assert stage.a.turn()
    assert not stage.authority.asks
    stage.passes(1.0)
    (report,) = stage.authority.asks
    assert (report.wanted, report.uses[0].requests) == (0, 1)


def test_permits_that_nobody_uses_are_given_back() -> None:
    stage = Stage(requests_per_minute=1000)
    for _ in range(5):
        stage.a.turn()
        stage.clock.advance(0.01)
    stage.passes(2.0)
    assert stage.b.turn()
    stage.passes(2.0)
    used = stage.authority.ledger.keys["laptop"].counters["requests_per_minute"]
    assert sum(used.values()) == 6


def test_an_authority_that_hangs_costs_one_short_wait() -> None:
    stage = Stage(requests_per_minute=5)
    stage.authority.delay = None
    prepared = stage.a.ring.prepare("laptop")
    assert prepared is not None
    fired: list[None] = []
    prepared.addCallback(fired.append)
    stage.clock.advance(ASK_SECONDS - 0.01)
    assert not fired
    stage.clock.advance(0.01)
    assert fired
    assert stage.a.enters()
    for _ in range(4):
        assert stage.a.ring.prepare("laptop") is None, "later turns wait for nothing"
        assert stage.a.enters()
    assert not stage.a.enters(), "its own limit holds"


def test_what_was_used_meanwhile_counts_afterwards() -> None:
    stage = Stage(requests_per_minute=6)
    stage.authority.fails = True
    assert stage.a.turn()
    assert stage.a.turn()
    assert stage.b.turn()
    stage.passes(30.0)
    stage.authority.fails = False
    stage.passes(3.0)
    assert [stage.a.turn() for _ in range(4)] == [True, True, True, False]
    stage.passes(29.5)
    assert [stage.a.turn() for _ in range(4)] == [True, True, True, False], "when it was used"


def test_an_answer_that_is_lost_counts_once() -> None:
    stage = Stage(requests_per_minute=10)
    stage.authority.loses_answers = True
    assert stage.a.turn(), "within its own limit"
    stage.authority.loses_answers = False
    stage.passes(4.0)
    used = stage.authority.ledger.keys["laptop"].counters["requests_per_minute"]
    assert sum(used.values()) == 1


def test_tokens_count_in_all_processes() -> None:
    stage = Stage(tokens_per_minute=100)
    assert stage.a.turn()
    stage.a.leases[0].used(Usage(60, 0, 50))
    stage.a.ends()
    stage.passes(1.0)
    assert not stage.b.turn()
    assert stage.b.shown["limits"]["tokens_per_minute"]["used"] == 110


def test_places_are_confirmed_while_a_turn_runs() -> None:
    stage = Stage(max_concurrent_turns=1)
    assert stage.a.turn()
    stage.passes(60.0)
    assert not stage.b.turn()


def test_a_process_that_stops_gives_back_what_it_has() -> None:
    stage = Stage(max_concurrent_turns=1)
    assert stage.a.turn()
    stage.a.ends()
    stage.a.shared.stop()
    assert stage.b.turn()


def test_other_limits_are_in_force_at_once() -> None:
    stage = Stage(max_concurrent_turns=1)
    assert stage.a.turn()
    for each in (stage.a, stage.b):
        each.ring.reconfigure([KeySettings(name="laptop", key="k", max_concurrent_turns=2)])
    assert stage.b.turn()
    assert not stage.b.turn()


def test_the_error_names_the_limit_and_its_end() -> None:
    stage = Stage(requests_per_day=1)
    assert stage.a.turn()
    stage.b.ring.prepare("laptop")
    reached = stage.b.ring.acquire("laptop", "m")
    assert isinstance(reached, LimitReached)
    assert reached.limit == "requests_per_day"
    assert reached.error.type == "usage_limit_reached"
    assert reached.free_at == pytest.approx(stage.clock.seconds() + 86_400, abs=1441)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]),
            st.sampled_from(["turn", "turn", "end", "pause", "slow", "hang", "fast", "lose"]),
        ),
        max_size=60,
    )
)
@settings(deadline=None, max_examples=150)
def test_every_turn_is_answered_and_all_places_come_back(steps: list[tuple[str, str]]) -> None:
    stage = Stage(max_concurrent_turns=3, requests_per_minute=1000)
    unanswered: list[Deferred[None]] = []
    for which, what in steps:
        process = stage.a if which == "a" else stage.b
        if what == "turn":
            prepared = process.ring.prepare("laptop")
            if prepared is None:
                process.enters()
            else:
                unanswered.append(prepared)
                prepared.addCallback(lambda _, each: each.enters(), process)
                prepared.addCallback(lambda _, each: unanswered.remove(each), prepared)
        elif what == "end" and process.leases:
            process.ends()
        elif what == "pause":
            stage.passes(1.0)
        stage.authority.loses_answers = what == "lose"
        stage.authority.delay = {"slow": 0.1, "hang": None}.get(what, 0.0)
        stage.clock.advance(0.01)
    stage.authority.delay, stage.authority.loses_answers = 0.0, False
    stage.passes(5.0)
    assert not unanswered
    for process in (stage.a, stage.b):
        while process.leases:
            process.ends()
    stage.passes(5.0)
    assert [stage.a.turn() for _ in range(4)] == [True, True, True, False]


def test_what_all_processes_have_used_is_shown() -> None:
    stage = Stage(max_concurrent_turns=4)
    assert stage.a.shown["turns_running_everywhere"] is None, "not known yet"
    for each in (stage.a, stage.b, stage.b):
        assert each.turn()
    stage.b.leases[0].used(Usage(60, 0, 50))
    stage.passes(3.0)
    stage.a.ring.refresh()
    stage.clock.advance(0)
    shown = stage.a.shown
    assert shown["turns_running"] == 1
    assert shown["turns_running_everywhere"] == 3
    assert (shown["turns"], shown["tokens"]) == (3, 110)
    asks = len(stage.authority.asks)
    stage.a.ring.refresh()
    stage.clock.advance(0)
    assert len(stage.authority.asks) == asks, "it is new"


def test_an_authority_that_lost_everything_is_told_again() -> None:
    stage = Stage(requests_per_minute=10, requests_per_day=20)
    assert [stage.a.turn() for _ in range(4)] == [True] * 4
    assert stage.b.turn()
    stage.passes(70.0)
    assert [stage.a.turn() for _ in range(4)] == [True] * 4
    stage.authority.ledger = LimitLedger()
    stage.passes(1.0)
    assert stage.a.turn()
    assert stage.b.turn()
    stage.passes(3.0)
    counters = stage.authority.ledger.keys["laptop"].counters
    assert sum(counters["requests_per_minute"].values()) == 6
    assert sum(counters["requests_per_day"].values()) == 11


def test_an_authority_that_ends_with_the_process_is_no_news() -> None:
    stage = Stage(max_concurrent_turns=4)
    stage.a.shared.stop()
    with capturedLogs() as events:
        stage.a.shared.failed("the other process is gone")
    assert events == []
    assert stage.a.shared.reachable
