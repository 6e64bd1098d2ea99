"""Where conversations are at home: for a while, within bounds, and with a reason (law 8)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.affinity import AffinityKey, Binding, MemoryBindings, connection_key, opaque_id
from tests.support.now import Now


@pytest.fixture
def clock() -> Now:
    return Now(1000.0)


@pytest.fixture
def bindings(clock: Now) -> MemoryBindings:
    return MemoryBindings(10, 60.0, clock)


def key(value: str = "t", tenant: str = "laptop") -> AffinityKey:
    return AffinityKey("thread", tenant, value)


def found(binding: Binding | None) -> Binding:
    assert binding is not None, "it is bound"
    return binding


# --- home ----------------------------------------------------------------------------


def test_a_conversation_has_its_home(bindings: MemoryBindings) -> None:
    bindings.bind(key(), "a", "round-robin")
    assert found(bindings.find(key())).account == "a"
    assert bindings.find(key(tenant="desktop")) is None, "tenants are separate"
    assert bindings.find(connection_key("laptop", "t")) is None, "rules are separate"


def test_parts_of_a_key_do_not_run_into_each_other(bindings: MemoryBindings) -> None:
    bindings.bind(AffinityKey("thread", "ab", "c"), "a")
    assert bindings.find(AffinityKey("thread", "a", "bc")) is None
    assert bindings.find(AffinityKey("threada", "b", "c")) is None


def test_a_binding_explains_itself(bindings: MemoryBindings, clock: Now) -> None:
    bindings.bind(key(), "a", "round-robin")
    clock.now += 5
    bindings.bind(key(), "a", "thread")
    binding = found(bindings.peek(key()))
    assert (binding.account, binding.why) == ("a", "round-robin"), "why it came, not that it stayed"
    assert (binding.bound_at, binding.used_at) == (1000.0, 1005.0)
    assert (binding.rule, binding.tenant) == ("thread", "laptop")


def test_a_move_has_its_own_reason_and_time(bindings: MemoryBindings, clock: Now) -> None:
    bindings.bind(key(), "a", "round-robin")
    clock.now += 5
    bindings.bind(key(), "b", "a is exhausted")
    binding = found(bindings.find(key()))
    assert (binding.account, binding.why, binding.bound_at) == ("b", "a is exhausted", 1005.0)
    assert len(bindings) == 1


def test_a_released_key_is_forgotten(bindings: MemoryBindings) -> None:
    bindings.bind(key(), "a")
    bindings.release(key())
    bindings.release(key())
    assert (bindings.find(key()), len(bindings)) == (None, 0)


def test_ids_of_any_characters_are_kept(bindings: MemoryBindings) -> None:
    for value in ("", "\ud800", "\0", "ü" * 10_000):
        bindings.bind(key(value), "a")
        assert found(bindings.find(key(value))).account == "a"


# --- stand-ins -----------------------------------------------------------------------


def test_a_stand_in_serves_until_home_is_back(bindings: MemoryBindings, clock: Now) -> None:
    bindings.bind(key(), "a", "round-robin")
    clock.now += 5
    bindings.stand_in(key(), "b", "a is cooling")
    binding = found(bindings.find(key()))
    assert (binding.account, binding.stand_in, binding.stand_in_why) == ("a", "b", "a is cooling")
    bindings.bind(key(), "a", "home again")
    binding = found(bindings.find(key()))
    assert (binding.account, binding.stand_in, binding.stand_in_why) == ("a", None, None)
    assert (binding.why, binding.bound_at) == ("round-robin", 1000.0), "it has been there since"


def test_a_stand_in_may_become_the_home(bindings: MemoryBindings) -> None:
    bindings.bind(key(), "a", "round-robin")
    bindings.stand_in(key(), "b", "a is cooling")
    bindings.bind(key(), "b", "it stays")
    binding = found(bindings.find(key()))
    assert (binding.account, binding.stand_in, binding.why) == ("b", None, "it stays")


def test_without_a_home_the_stand_in_is_one(bindings: MemoryBindings) -> None:
    bindings.stand_in(key(), "b", "a is cooling")
    binding = found(bindings.find(key()))
    assert (binding.account, binding.stand_in, binding.why) == ("b", None, "a is cooling")


def test_an_account_that_goes_takes_its_bindings_along(bindings: MemoryBindings) -> None:
    for value, home in (("t1", "a"), ("t2", "a"), ("t3", "b"), ("t4", "b")):
        bindings.bind(key(value), home, "round-robin")
    bindings.stand_in(key("t2"), "b", "a is cooling")
    bindings.stand_in(key("t3"), "a", "b is cooling")
    assert bindings.forget_account("a") == 2
    assert bindings.find(key("t1")) is None
    stayed = found(bindings.find(key("t2")))
    assert (stayed.account, stayed.stand_in) == ("b", None), "it stays with its stand-in"
    assert found(bindings.find(key("t3"))).stand_in is None
    assert found(bindings.find(key("t4"))).account == "b"
    assert bindings.forget_account("unheard-of") == 0


# --- bounds --------------------------------------------------------------------------


def test_an_unused_binding_ends(bindings: MemoryBindings, clock: Now) -> None:
    bindings.bind(key(), "a")
    clock.now += 59
    assert found(bindings.find(key())).account == "a", "this is a use"
    clock.now += 59
    assert found(bindings.peek(key())).account == "a", "this is none"
    clock.now += 1
    assert bindings.peek(key()) is None
    assert bindings.find(key()) is None
    assert len(bindings) == 0, "what has ended takes no room"


def test_an_old_home_is_not_taken_up_again(bindings: MemoryBindings, clock: Now) -> None:
    bindings.bind(key(), "a", "round-robin")
    bindings.stand_in(key(), "b", "a is cooling")
    clock.now += 60
    bindings.bind(key(), "a", "least-in-flight")
    binding = found(bindings.find(key()))
    assert (binding.why, binding.bound_at, binding.stand_in) == ("least-in-flight", 1060.0, None)


def test_what_is_too_old_can_be_swept_out(bindings: MemoryBindings, clock: Now) -> None:
    bindings.bind(key("t1"), "a")
    bindings.bind(key("t2"), "a")
    clock.now += 30
    bindings.bind(key("t3"), "a")
    bindings.find(key("t1"))
    bindings.expire()
    assert len(bindings) == 3
    clock.now += 30
    bindings.expire()
    assert len(bindings) == 2, "t2 was not used for 60 seconds"
    assert bindings.find(key("t1")) is not None
    assert bindings.find(key("t3")) is not None


def test_the_least_recently_used_makes_room(clock: Now) -> None:
    bindings = MemoryBindings(2, 60.0, clock)
    bindings.bind(key("t1"), "a")
    bindings.bind(key("t2"), "a")
    bindings.find(key("t1"))
    bindings.bind(key("t3"), "a")
    assert len(bindings) == 2
    assert [value for value in ("t1", "t2", "t3") if bindings.peek(key(value))] == ["t1", "t3"]


def test_a_large_number_makes_room_for_several_at_once(clock: Now) -> None:
    bindings = MemoryBindings(1000, 60.0, clock)
    for number in range(1001):
        bindings.bind(key(str(number)), "a")
    assert 990 <= len(bindings) <= 1000
    assert bindings.peek(key("0")) is None
    assert all(bindings.peek(key(str(number))) for number in range(10, 1001))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["find", "bind", "stand_in", "release"]),
            st.integers(0, 6),
            st.sampled_from("ab"),
            st.integers(0, 30),
        ),
        max_size=40,
    ),
    st.integers(1, 4),
)
def test_bindings_never_outgrow_their_bound_nor_their_age(
    steps: list[tuple[str, int, str, int]], bound: int
) -> None:
    clock = Now(1000.0)
    bindings = MemoryBindings(bound, 60.0, clock)
    model: dict[int, tuple[str, str | None, float]] = {}
    for step, value, account, wait in steps:
        clock.now += wait
        home, _, used_at = model.pop(value, (None, None, 0.0))
        alive = home is not None and used_at + 60 > clock.now
        if step == "find":
            bindings.find(key(str(value)))
            if alive:
                model[value] = (home, _, clock.now)
        elif step == "bind" or (step == "stand_in" and not alive):
            getattr(bindings, step)(key(str(value)), account)
            model[value] = (account, None, clock.now)
        elif step == "stand_in":
            bindings.stand_in(key(str(value)), account)
            model[value] = (home, account, clock.now)
        else:
            bindings.release(key(str(value)))
        while len(model) > bound:
            del model[next(iter(model))]
        assert len(bindings) <= bound
    shown = [binding.account for _, binding in bindings.items(10)]
    alive_now = [each for each in reversed(model.values()) if each[2] + 60 > clock.now]
    assert shown == [home for home, _, _ in alive_now], "the last used first"
    for value in range(7):
        binding = bindings.peek(key(str(value)))
        expected = model.get(value)
        if expected is None or expected[2] + 60 <= clock.now:
            assert binding is None
        else:
            assert binding is not None, "neither too old nor one too many"
            assert (binding.account, binding.stand_in, binding.used_at) == expected


# --- tenants -------------------------------------------------------------------------


def test_a_flood_of_conversations_pushes_out_nobody_elses(clock: Now) -> None:
    bindings = MemoryBindings(1000, 60.0, clock)
    for number in range(100):
        bindings.bind(key(str(number), "quiet"), "a")
    for number in range(5000):
        bindings.bind(key(str(number), "loud"), "b")
    assert all(bindings.peek(key(str(number), "quiet")) for number in range(100))
    assert bindings.peek(key("4999", "loud")), "the newest one has its place"
    assert 980 <= len(bindings) <= 1000


def test_many_tenants_share_the_room(clock: Now) -> None:
    bindings = MemoryBindings(1000, 60.0, clock)
    for number in range(2000):
        bindings.bind(key(str(number), f"tenant {number % 100}"), "a")
    shares = Counter(binding.tenant for _, binding in bindings.items(1000))
    assert len(bindings) == sum(shares.values()) == 1000
    assert set(shares.values()) == {10}, "nobody gives up more than the others have"


def test_what_tenants_used_last_is_shown_first(clock: Now, bindings: MemoryBindings) -> None:
    for number, tenant in enumerate(("laptop", "desk", "laptop", "desk", "other")):
        bindings.bind(key(str(number), tenant), str(number))
        clock.now += 1
    bindings.find(key("1", "desk"))
    assert [binding.account for _, binding in bindings.items(4)] == ["1", "4", "3", "2"]


def test_what_any_tenant_left_is_swept_out(clock: Now, bindings: MemoryBindings) -> None:
    for tenant in ("laptop", "desk"):
        bindings.bind(key(tenant=tenant), "a")
    clock.now += 30
    bindings.bind(key("t2", "desk"), "a")
    clock.now += 30
    bindings.expire()
    assert len(bindings) == 1
    assert bindings.forget(opaque_id(key("t2", "desk"))) is True
    assert len(bindings) == 0
    bindings.expire()
    bindings.bind(key(), "a")
    assert len(bindings) == 1


def test_a_smaller_bound_holds_at_once(clock: Now, bindings: MemoryBindings) -> None:
    for number in range(10):
        bindings.bind(key(str(number)), "a")
    bindings.reconfigure(3, 60.0)
    assert [value for value in range(10) if bindings.peek(key(str(value)))] == [7, 8, 9]


# --- the operator --------------------------------------------------------------------


def test_the_last_used_are_shown_first(bindings: MemoryBindings, clock: Now) -> None:
    for value, home in (("t1", "a"), ("t2", "b"), ("t3", "c")):
        bindings.bind(key(value), home)
    bindings.find(key("t1"))
    assert [binding.account for _, binding in bindings.items(2)] == ["a", "c"]
    clock.now += 60
    assert list(bindings.items(5)) == [], "what has ended is not shown"


def test_what_is_shown_does_not_name_the_conversation(bindings: MemoryBindings) -> None:
    bindings.bind(key("0199aa00-0000-7000-8000-000000000001"), "a", "round-robin")
    assert "0199aa00" not in repr(list(bindings.items(1)))


def test_a_shown_binding_can_be_forgotten(bindings: MemoryBindings) -> None:
    bindings.bind(key("t1"), "a")
    bindings.bind(key("t2"), "b")
    [(opaque_id, _)] = bindings.items(1)
    assert bindings.forget(opaque_id) is True
    assert bindings.forget(opaque_id) is False
    assert (bindings.find(key("t2")), len(bindings)) == (None, 1)
    with pytest.raises(ValueError):
        bindings.forget("no such id")


def test_a_conversation_leaves_who_serves_it_until_it_is_bound_again(
    clock: Now, bindings: MemoryBindings
) -> None:
    bindings.bind(key(), "a")
    name = opaque_id(key())
    assert bindings.with_id(name) is bindings.peek(key())
    assert found(bindings.move(name)).leaves == "a"
    bindings.stand_in(key(), "b")
    assert found(bindings.move(name)).leaves == "b", "it should leave its stand-in, not its home"
    bindings.bind(key(), "a")
    assert found(bindings.peek(key())).leaves is None
    clock.now += 60
    assert bindings.move(name) is None


@pytest.mark.parametrize("name", ["", "00", "no id", "\u00e9", "0" * 1000])
def test_what_is_no_id_names_no_binding(bindings: MemoryBindings, name: str) -> None:
    bindings.bind(key(), "a")
    assert bindings.with_id(name) is None
    assert bindings.move(name) is None


# --- before anybody has answered -------------------------------------------------------


def test_who_is_only_expected_somewhere_is_at_home_nowhere(bindings: MemoryBindings) -> None:
    bindings.expect(key(), "a", "round-robin")
    binding = found(bindings.find(key()))
    assert (binding.account, binding.answered) == ("a", False), "others follow it there"
    assert list(bindings.items(9)) == []
    assert bindings.with_id(opaque_id(key())) is None
    bindings.settle(key(), "a", "round-robin")
    assert [each.account for _, each in bindings.items(9)] == ["a"]


def test_the_first_that_answers_is_the_home(bindings: MemoryBindings) -> None:
    bindings.expect(key(), "a", "round-robin")
    bindings.expect(key(), "b", "round-robin")
    assert found(bindings.peek(key())).account == "a"
    bindings.settle(key(), "b", "round-robin")
    bindings.settle(key(), "a", "round-robin")
    assert found(bindings.peek(key())).account == "b"
    assert len(bindings) == 1


def test_who_did_not_answer_is_not_expected_to_any_more(bindings: MemoryBindings) -> None:
    bindings.expect(key(), "a")
    bindings.withdraw(key(), "b")
    assert len(bindings) == 1, "that is another's"
    bindings.withdraw(key(), "a")
    assert (bindings.peek(key()), len(bindings)) == (None, 0)
    bindings.withdraw(key(), "a")
    bindings.bind(key(), "a")
    bindings.expect(key(), "b")
    bindings.withdraw(key(), "a")
    assert found(bindings.peek(key())).account == "a", "it has answered before"
