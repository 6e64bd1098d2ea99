"""What processes learn of each other's accounts: cooldowns and places, whatever the order."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from gateway.circuit_breaker import BreakerState
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.account import Account, Lease
from gateway.routing.health import AccountHealth, AccountState
from gateway.state.backend import Row
from gateway.state.serialization import AccountIds
from gateway.state.shared_accounts import ReplicatedCooldowns, SharedLoads
from tests.routing.pools import Basin

URL = "http://127.0.0.1:1"


class Replica:
    """A process with one account; what it writes waits until the test delivers it."""

    def __init__(self, name: str, clock: Clock, **limits: Any) -> None:
        self.account = Basin(accounts={}).account("a", **limits)
        self.account = Account(self.account.settings, self.account.upstream, clock.seconds)
        self.account.health = AccountHealth(clock.seconds, 600.0, lambda: 0.0)
        self.others: list[Replica] = []
        self.inbox: deque[Row] = deque()
        self.written: list[Row] = []
        self.freed = 0
        self.attempts: list[Lease] = []
        ids = AccountIds([("a", URL)])
        accounts = lambda: [self.account]  # noqa: E731
        writes: Any = self
        self.cooldowns = ReplicatedCooldowns(accounts, writes, ids, clock.seconds, name)
        self.loads = SharedLoads(accounts, writes, ids, clock, name, self._free)
        self.cooldowns.watch()
        self.loads.watch()

    def _free(self) -> None:
        self.freed += 1

    def put(self, row: Row) -> None:
        self.written.append(row)
        for other in self.others:
            other.inbox.append(row)

    def deliver(self, count: int = 10**6) -> None:
        while self.inbox and count:
            count -= 1
            row = self.inbox.popleft()
            for table in (self.cooldowns, self.loads):
                if table.table == row.table:
                    table.apply(row)

    # --- events

    def begin(self, model: str | None = "m") -> Lease:
        lease = self.account.lease(model, lambda: None)
        self.attempts.append(lease)
        return lease

    def fail(self, kind: FaultKind, retry_in: float | None = None, model: str = "m") -> None:
        lease = self.begin(model)
        now = self.account._now()
        lease.refused(Fault(kind, "why", None if retry_in is None else now + retry_in))
        lease.release()

    def state(self) -> dict[str, Any]:
        """What counts of the cooldowns."""
        return {
            name: (
                each.breaker.state,
                each.breaker.strikes,
                each.why,
            )
            for name, each in self.account.health.cooldowns().items()
            if each.breaker.state is not BreakerState.CLOSED
        }

    def until(self) -> dict[str, float]:
        cooldowns = self.account.health.cooldowns()
        return {name: cooldowns[name].breaker.until for name in self.state()}


def replicas(count: int = 2, **limits: Any) -> tuple[Clock, list[Replica]]:
    clock = Clock()
    clock.advance(1_800_000_000)
    made = [Replica(f"p{number}", clock, **limits) for number in range(count)]
    for each in made:
        each.others = [other for other in made if other is not each]
    return clock, made


def test_a_cooldown_is_taken_over_and_not_written_back() -> None:
    clock, (here, there) = replicas()
    here.fail(FaultKind.EXHAUSTED, 100.0)
    there.deliver()
    blocked = there.account.unavailable("m")
    assert blocked is not None
    assert (blocked.state, blocked.why) == (AccountState.EXHAUSTED, "why")
    assert blocked.kind is FaultKind.EXHAUSTED
    assert blocked.resets_at == clock.seconds() + 100
    assert there.account.failures == 0
    assert not there.written
    assert there.account.health.snapshot()["state"] == "exhausted"


def test_a_cooldown_of_a_model_leaves_the_others() -> None:
    _, (here, there) = replicas()
    here.fail(FaultKind.RATE_LIMITED, 30.0, "m")
    there.deliver()
    assert there.account.unavailable("m") is not None
    assert there.account.unavailable("other") is None


def test_what_answers_well_again_does_so_everywhere() -> None:
    clock, (here, there) = replicas()
    here.fail(FaultKind.RATE_LIMITED, 30.0, "m")
    there.deliver()
    clock.advance(31)
    lease = there.begin()
    here.deliver()
    assert "probe" in here.account.unavailable("m").why  # type: ignore[union-attr]
    lease.acknowledged()
    here.deliver()
    assert here.account.unavailable("m") is None
    assert here.state() == there.state() == {}
    lease.release()


def test_the_operator_clears_everywhere() -> None:
    _, (here, there) = replicas()
    here.fail(FaultKind.EXHAUSTED, 100.0)
    here.fail(FaultKind.RATE_LIMITED, 100.0)
    there.deliver()
    there.account.clear()
    here.deliver()
    assert here.account.unavailable("m") is None


def test_the_process_that_saw_it_probes_first() -> None:
    clock, (here, there) = replicas()
    here.fail(FaultKind.EXHAUSTED, 100.0)
    there.deliver()
    clock.advance(here.account.unavailable("m").until - clock.seconds())  # type: ignore
    assert here.account.unavailable("m") is None
    assert there.account.unavailable("m") is not None
    here.begin()
    there.deliver()
    clock.advance(1.0)
    assert there.account.unavailable("m") is not None, "the probe of the other is on its way"
    clock.advance(10.0)
    assert there.account.unavailable("m") is None, "the other process may have died"


def test_a_failed_probe_doubles_everywhere() -> None:
    clock, (here, there) = replicas()
    here.fail(FaultKind.UNAUTHORIZED)
    there.deliver()
    clock.advance(61)
    there.fail(FaultKind.UNAUTHORIZED)
    here.deliver()
    until = here.account.unavailable("m").until  # type: ignore[union-attr]
    assert until == pytest.approx(clock.seconds() + 120, abs=0.5)


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("fail"),
            st.integers(0, 1),
            st.sampled_from(
                [
                    FaultKind.EXHAUSTED,
                    FaultKind.RATE_LIMITED,
                    FaultKind.UNAUTHORIZED,
                    FaultKind.SERVICE,
                    FaultKind.MODEL_REFUSED,
                ]
            ),
            st.sampled_from([None, 5.0, 700.0]),
        ),
        st.tuples(st.just("begin"), st.integers(0, 1)),
        st.tuples(st.just("answer"), st.integers(0, 1)),
        st.tuples(st.just("drop"), st.integers(0, 1)),
        st.tuples(st.just("clear"), st.integers(0, 1)),
        st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(1, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.1, 1.0, 61.0])),
    ),
    max_size=40,
)


@given(EVENTS)
@settings(deadline=None, max_examples=300)
def test_processes_agree_once_each_has_heard_everything(events: list[Any]) -> None:
    clock, made = replicas()
    for event in events:
        if event[0] == "wait":
            clock.advance(event[1])
            continue
        replica = made[event[1]]
        if event[0] == "fail":
            replica.fail(event[2], event[3])
        elif event[0] == "begin":
            replica.begin()
        elif event[0] == "deliver":
            replica.deliver(event[2])
        elif event[0] == "clear":
            replica.account.clear()
        elif replica.attempts:
            lease = replica.attempts.pop(0)
            if event[0] == "answer":
                lease.acknowledged()
            lease.release()
    for replica in made:
        replica.deliver()
    assert not any(replica.inbox for replica in made), "nothing goes round in circles"
    assert made[0].until() == pytest.approx(made[1].until(), abs=0.3)
    assert made[0].state() == made[1].state()


# --- places ---------------------------------------------------------------------------


def test_places_taken_elsewhere_count() -> None:
    clock, (here, there) = replicas(max_in_flight=2)
    leases = [here.begin(), here.begin()]
    clock.advance(0.2)
    there.deliver()
    blocked = there.account.unavailable("m")
    assert blocked is not None
    assert blocked.why == "max_in_flight is reached"
    leases[0].release()
    clock.advance(0.2)
    there.deliver()
    assert there.account.unavailable("m") is None
    assert there.freed == 1


def test_requests_elsewhere_count() -> None:
    clock, (here, there) = replicas(requests_per_minute=3)
    for _ in range(3):
        here.begin().release()
    clock.advance(0.2)
    there.deliver()
    assert there.account.unavailable("m") is not None
    for _ in range(40):
        clock.advance(2.0)
        there.deliver()
    assert there.account.unavailable("m") is None


def test_a_process_that_is_gone_is_forgotten() -> None:
    clock, (here, there) = replicas(max_in_flight=1)
    here.begin()
    there.deliver()
    assert there.account.unavailable("m") is not None
    here.loads.stop()
    for _ in range(5):
        clock.advance(2.0)
    assert there.account.unavailable("m") is None
    assert there.freed == 1


def test_a_place_that_is_kept_for_long_is_told_again() -> None:
    clock, (here, there) = replicas(max_in_flight=1)
    here.begin()
    for _ in range(20):
        clock.advance(2.0)
        there.deliver()
        assert there.account.unavailable("m") is not None


def test_many_turns_are_told_a_few_times() -> None:
    clock, (here, _) = replicas(max_in_flight=100)
    for _ in range(50):
        here.begin().release()
    clock.advance(0.1)
    clock.advance(0.1)
    assert len(here.written) <= 3


def test_an_account_without_limits_tells_nothing() -> None:
    _, (here, _) = replicas()
    here.begin().release()
    assert here.account.load_changed is None
    assert not here.written


def test_turns_that_outlive_a_reload_are_told_with_those_of_the_account_made_anew() -> None:
    clock, (here, there) = replicas(max_in_flight=5)
    first, second = here.begin(), here.begin()
    former = here.account
    here.account = Account(former.settings, former.upstream, clock.seconds)
    here.account.inherit(former)
    here.loads.watch()
    here.begin()
    clock.advance(0.2)
    first.release()
    clock.advance(0.2)
    there.deliver()
    assert there.account.in_flight_elsewhere == 2
    second.release()
    clock.pump([1.0] * 10)
    there.deliver()
    assert there.account.in_flight_elsewhere == 1
