"""Where turns wait for an account: bounded, fair between tenants, each with its deadline."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from gateway.routing.wait_queue import WaitQueue, WaitTicket


class Turns:
    """Turns that wait for one of a few slots, and what became of them."""

    def __init__(self, max_waiting: int = 100) -> None:
        self.clock = Clock()
        self.room = WaitQueue(self.clock, max_waiting)
        self.free: dict[Hashable, int] = {}
        self.served: list[str] = []
        self.gave_up: list[str] = []
        self.offers = 0

    def wait(
        self,
        name: str,
        tenant: str = "laptop",
        seconds: float = 15.0,
        model: Hashable = "m",
        then: Callable[[], object] = lambda: None,
    ) -> WaitTicket | None:
        def retry() -> bool:
            self.offers += 1
            if not self.free.get(model):
                return False
            self.free[model] -= 1
            self.served.append(name)
            then()
            return True

        def gave_up() -> None:
            self.gave_up.append(name)

        return self.room.wait(tenant, seconds, retry, gave_up, model)

    def release(self, slots: int = 1, model: Hashable = "m") -> None:
        """Slots become free, and the room is told."""
        self.free[model] = self.free.get(model, 0) + slots
        self.room.wake()


@pytest.fixture
def turns() -> Turns:
    return Turns()


def test_who_waits_longest_is_served_first(turns: Turns) -> None:
    for name in "abc":
        turns.wait(name)
    turns.release()
    assert turns.served == ["a"]
    turns.release(2)
    assert turns.served == ["a", "b", "c"]
    assert len(turns.room) == 0


def test_tenants_are_served_in_turn(turns: Turns) -> None:
    for name in ("a1", "a2", "a3"):
        turns.wait(name, "a")
    turns.wait("b1", "b")
    turns.wait("c1", "c")
    turns.wait("b2", "b")
    turns.release(6)
    assert turns.served == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_tenant_that_comes_back_queues_up_behind_the_others(turns: Turns) -> None:
    turns.wait("a1", "a")
    turns.wait("b1", "b")
    turns.wait("b2", "b")
    turns.release()
    turns.wait("a2", "a")
    turns.release(2)
    assert turns.served == ["a1", "b1", "a2"]


def test_one_that_cannot_be_served_holds_up_nobody(turns: Turns) -> None:
    turns.wait("a1", model="exhausted")
    turns.wait("a2", model="m")
    turns.wait("b1", "b", model="m")
    turns.release(2)
    assert turns.served == ["a2", "b1"]
    turns.release(model="exhausted")
    assert turns.served == ["a2", "b1", "a1"]


def test_what_one_was_refused_is_not_offered_to_others_who_want_the_same(turns: Turns) -> None:
    for number in range(50):
        turns.wait(str(number))
    turns.release()
    assert (turns.served, turns.offers) == (["0"], 2)


def test_turns_that_want_nothing_in_particular_are_asked_each(turns: Turns) -> None:
    for name in "abc":
        turns.wait(name, model=None)
    turns.room.wake()
    assert turns.offers == 3


# --- deadlines -----------------------------------------------------------------------


def test_each_gives_up_when_its_own_time_is_over(turns: Turns) -> None:
    turns.wait("a", seconds=2)
    turns.wait("b", seconds=1)
    turns.clock.advance(0.99)
    assert turns.gave_up == []
    turns.clock.advance(0.01)
    assert turns.gave_up == ["b"]
    turns.clock.advance(1)
    assert turns.gave_up == ["b", "a"]
    assert len(turns.room) == 0


def test_who_was_served_does_not_give_up(turns: Turns) -> None:
    turns.wait("a")
    turns.release()
    turns.clock.advance(20)
    assert (turns.served, turns.gave_up) == (["a"], [])


def test_who_left_hears_no_more(turns: Turns) -> None:
    ticket = turns.wait("a")
    turns.wait("b")
    assert ticket is not None, "there is room"
    ticket.leave()
    ticket.leave()
    assert len(turns.room) == 1
    turns.release(2)
    turns.clock.advance(20)
    assert (turns.served, turns.gave_up) == (["b"], [])


def test_a_stop_lets_everybody_give_up_and_nobody_in(turns: Turns) -> None:
    turns.wait("a1", "a")
    turns.wait("b1", "b")
    turns.wait("a2", "a")
    turns.room.stop()
    assert sorted(turns.gave_up) == ["a1", "a2", "b1"]
    assert turns.wait("c") is None
    assert turns.clock.getDelayedCalls() == []


# --- tries ---------------------------------------------------------------------------


def test_what_becomes_free_without_a_word_is_found(turns: Turns) -> None:
    turns.wait("a")
    turns.free["m"] = 1
    turns.clock.advance(0.25)
    assert turns.served == ["a"]


def test_tries_go_on_while_somebody_waits(turns: Turns) -> None:
    turns.wait("a")
    turns.clock.pump([0.25] * 8)
    assert turns.offers == 8


def test_no_timer_runs_while_nobody_waits(turns: Turns) -> None:
    turns.room.wake()
    assert turns.clock.getDelayedCalls() == []
    ticket = turns.wait("a")
    assert ticket is not None, "there is room"
    ticket.leave()
    assert turns.clock.getDelayedCalls() == []
    turns.wait("b")
    turns.release()
    assert turns.clock.getDelayedCalls() == []
    turns.wait("c", seconds=1)
    turns.clock.pump([0.25] * 4)
    assert turns.gave_up == ["c"]
    assert turns.clock.getDelayedCalls() == []


def test_many_are_not_served_all_at_once(turns: Turns) -> None:
    for number in range(100):
        turns.wait(str(number))
    turns.release(100)
    assert 0 < len(turns.served) < 50, "others get their time in between"
    turns.clock.pump([0] * 10)
    assert turns.served == [str(number) for number in range(100)]


def test_many_that_want_different_things_are_all_asked(turns: Turns) -> None:
    for number in range(100):
        turns.wait(str(number), model=number)
    turns.free[99] = 1
    for _ in range(20):
        turns.room.wake()
        turns.clock.advance(0.02)
    assert turns.served == ["99"], "however often the first ones are in vain"


# --- bounds --------------------------------------------------------------------------


def test_a_full_room_takes_nobody_in() -> None:
    turns = Turns(max_waiting=2)
    assert turns.wait("a") is not None
    assert turns.wait("b") is not None
    assert turns.wait("c") is None
    turns.release()
    assert turns.wait("d") is not None
    turns.release(2)
    assert turns.served == ["a", "b", "d"]


def test_a_room_for_nobody() -> None:
    assert Turns(max_waiting=0).wait("a") is None


def test_who_fills_the_room_makes_room_for_others() -> None:
    turns = Turns(max_waiting=4)
    for name in ("a1", "a2", "a3", "a4"):
        turns.wait(name, "a")
    assert turns.wait("b1", "b") is not None
    assert turns.wait("b2", "b") is not None
    assert turns.wait("b3", "b") is None, "both hold half of it"
    assert turns.wait("a5", "a") is None
    assert turns.wait("c1", "c") is not None
    assert turns.gave_up == ["a4", "a3", "a2"], "the latest of who held most"
    assert len(turns.room) == 4
    turns.release(4)
    assert turns.served == ["a1", "b1", "c1", "b2"]


def test_what_follows_a_turn_that_made_room_does_not_take_it_back() -> None:
    """The next turn of a connection starts as the one before it gives up."""
    room = WaitQueue(Clock(), 2)
    refused: list[str] = []

    def waits(name: str, tenant: str, left: int = 0) -> WaitTicket | None:
        def gave_up() -> None:
            if left and waits(f"{name}+", tenant, left - 1) is None:
                refused.append(f"{name}+")

        return room.wait(tenant, 15.0, lambda: False, gave_up)

    waits("a1", "a", left=3)
    waits("a2", "a", left=3)
    assert waits("b1", "b") is not None, "b has fewer turns there than a"
    assert refused == ["a2+"]
    assert len(room) == 2
    room.stop()


# --- what a try may do ---------------------------------------------------------------


def test_a_try_may_wait_again(turns: Turns) -> None:
    turns.wait("a", then=lambda: turns.wait("a again"))
    turns.release()
    assert (turns.served, len(turns.room)) == (["a"], 1)
    turns.release()
    assert turns.served == ["a", "a again"]


def test_a_try_may_wake_the_room(turns: Turns) -> None:
    """A turn that ends at once gives its slot to the next."""
    turns.wait("x", model="other")
    for name in "abc":
        turns.wait(name, then=turns.release)
    turns.release()
    assert turns.served == ["a", "b", "c"]


def test_what_a_try_makes_free_goes_to_who_was_refused_before(turns: Turns) -> None:
    turns.wait("x", model="other")
    turns.wait("a", then=lambda: turns.release(model="other"))
    turns.release()
    assert turns.served == ["a", "x"]


def test_a_try_may_make_others_leave(turns: Turns) -> None:
    tickets: list[WaitTicket | None] = []

    def leave() -> None:
        for ticket in tickets:
            assert ticket is not None, "there is room"
            ticket.leave()

    tickets.append(turns.wait("a", then=leave))
    tickets.append(turns.wait("b"))
    tickets.append(turns.wait("c", "desktop"))
    turns.release(3)
    assert (turns.served, len(turns.room)) == (["a"], 0)
    assert turns.clock.getDelayedCalls() == []


def test_a_try_may_stop_the_room(turns: Turns) -> None:
    turns.wait("a", then=turns.room.stop)
    turns.wait("b")
    turns.release(2)
    assert turns.served == ["a"]
    assert "b" in turns.gave_up
    assert turns.clock.getDelayedCalls() == []


def test_a_try_may_find_that_it_lacks_something_else(turns: Turns) -> None:
    """The first has its tenant's leave by now, and waits for a model that others do not want."""

    def retry() -> bool:
        assert first is not None, "there is room"
        first.wants = "exhausted"
        return False

    first = turns.room.wait("laptop", 15.0, retry, lambda: None, "m")
    turns.wait("b")
    turns.wait("c")
    turns.release()
    assert turns.served == ["b"]


def test_a_try_that_wakes_in_vain_does_not_go_on_for_ever(turns: Turns) -> None:
    def retry() -> bool:
        turns.offers += 1
        turns.room.wake()
        return False

    turns.room.wait("a", 15.0, retry, lambda: turns.gave_up.append("a"))
    turns.room.wake()
    assert turns.offers < 50
    turns.clock.pump([1.0] * 15)
    assert turns.gave_up == ["a"]


@pytest.fixture
def failures() -> Iterator[list[str]]:
    seen: list[str] = []

    def observe(event: dict[str, object]) -> None:
        if "log_failure" in event:
            seen.append(str(event["log_format"]))

    globalLogPublisher.addObserver(observe)
    yield seen
    globalLogPublisher.removeObserver(observe)


def test_a_try_that_fails_gives_up_and_the_others_go_on(turns: Turns, failures: list[str]) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    turns.wait("a", then=fail)
    turns.wait("b")
    turns.release(2)
    assert turns.gave_up == ["a"]
    assert turns.served[-1] == "b"
    assert failures == ["a waiting turn could not be tried again"]


def test_one_that_cannot_even_give_up_is_gone(turns: Turns, failures: list[str]) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    turns.room.wait("a", 1.0, lambda: False, fail)
    turns.clock.advance(1.0)
    assert len(turns.room) == 0
    assert failures == ["a waiting turn could not give up"]


# --- whatever happens ----------------------------------------------------------------

TENANTS = "abcd"


@given(st.lists(st.sampled_from(TENANTS), min_size=1, max_size=60))
def test_no_tenant_waits_while_another_is_served_twice(arrivals: list[str]) -> None:
    turns = Turns()
    waiting: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
    for number, tenant in enumerate(arrivals):
        turns.wait(f"{tenant}{number}", tenant)
        waiting[tenant].append(f"{tenant}{number}")
    passed_over = dict.fromkeys(TENANTS, 0)
    for _ in arrivals:
        turns.release()
        name = turns.served[-1]
        assert waiting[name[0]].pop(0) == name, "within a tenant the first comes first"
        for tenant in TENANTS:
            passed_over[tenant] = passed_over[tenant] + 1 if waiting[tenant] else 0
        passed_over[name[0]] = 0
        assert max(passed_over.values()) < len(TENANTS), "each tenant has its turn"


STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from(TENANTS), st.sampled_from(["m", "n"])),
    st.tuples(st.just("release"), st.sampled_from(["m", "n"]), st.integers(1, 3)),
    st.tuples(st.just("leave"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("advance"), st.sampled_from([0.1, 1.0, 20.0]), st.just(0)),
)


@given(st.lists(STEPS, max_size=40), st.integers(1, 8))
def test_every_turn_that_waits_comes_to_one_end(
    steps: list[tuple[str, object, object]], bound: int
) -> None:
    turns = Turns(max_waiting=bound)
    tickets: list[tuple[str, WaitTicket]] = []
    left: set[str] = set()
    for number, (step, one, other) in enumerate(steps):
        if step == "wait":
            ticket = turns.wait(str(number), str(one), 5.0, other)
            if ticket is not None:
                tickets.append((str(number), ticket))
        elif step == "release":
            turns.release(int(str(other)), one)
        elif step == "leave" and tickets:
            name, ticket = tickets[int(str(one)) % len(tickets)]
            if name not in turns.served and name not in turns.gave_up:
                left.add(name)
            ticket.leave()
        elif step == "advance":
            turns.clock.advance(float(str(one)))
        over = [*turns.served, *turns.gave_up, *left]
        assert len(over) == len(set(over)), "one end each"
        assert len(turns.room) == len(tickets) - len(over) <= bound
        if not len(turns.room):
            assert turns.clock.getDelayedCalls() == []
    turns.clock.pump([0.25] * 24)
    assert len(turns.room) == 0, "nobody waits longer than it wanted to"
