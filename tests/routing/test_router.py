"""The pool: which account serves an attempt, and the rule that says so (law 8, law 15)."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.config import RoutingSettings
from gateway.config.settings import Strategy as StrategyName
from gateway.protocol.error_classification import Fault, FaultKind
from gateway.routing.health import AccountState
from gateway.routing.selection import FOLLOWS, NoAccount, RouteRequest, Selection
from tests.routing.pools import MODEL, Basin, thread, wanted

STRATEGIES = get_args(StrategyName)


@pytest.fixture
def basin() -> Basin:
    return Basin("a", "b", "c")


# --- new conversations ---------------------------------------------------------------


def test_new_conversations_rotate(basin: Basin) -> None:
    assert [basin.goes()[0] for _ in range(5)] == ["a", "b", "c", "a", "b"]


def test_the_strategy_names_the_rule() -> None:
    for name in STRATEGIES:
        assert Basin("a", strategy=name).goes() == ("a", name)


def test_whom_nobody_offers_the_model_is_chosen_for_nothing() -> None:
    offers = {"a": {"models": ("gpt-*",)}, "b": {"models": ("o3",)}, "c": {"aliases": {"o3": "o"}}}
    offers["c"]["models"] = ("gpt-*",)
    basin = Basin("a", "b", "c", accounts=offers)
    assert [basin.goes(model="o3")[0] for _ in range(4)] == ["b", "c", "b", "c"]
    nobody = basin.nobody(model="unheard-of")
    assert (nobody.candidates, nobody.reasons) == ((), ())
    assert basin.goes(model=None)[0] in "abc", "a request without a model may go anywhere"


def test_who_answers_already_is_taken_whatever_its_limits() -> None:
    basin = Basin("a", "b", accounts={"a": {"max_in_flight": 1}})
    account = basin.accounts["a"]
    leases = [basin.pool.follow(account, MODEL) for _ in range(2)]
    assert [(each.account.name, each.rule) for each in leases] == [("a", FOLLOWS)] * 2
    assert account.in_flight == 2
    for each in leases:
        each.lease.release()
    assert account.in_flight == 0


@pytest.mark.parametrize(("members", "setting"), [("background", "background"), ("chat", "")])
def test_only_accounts_that_take_such_turns_are_chosen(members: str, setting: str) -> None:
    takes = {setting: True} if setting else {}
    refuses = {} if setting else {"chat_completions": False}
    basin = Basin("a", "b", accounts={"a": refuses, "b": takes})
    assert [basin.goes(**{members: True})[0] for _ in range(3)] == ["b"] * 3


@pytest.mark.parametrize("name", STRATEGIES)
def test_resting_accounts_are_passed_over_by_every_strategy(name: str) -> None:
    basin = Basin(*"abcdef", strategy=name)
    basin.fails(*"abdef")
    assert {basin.goes()[0] for _ in range(12)} == {"c"}
    basin.recovers(*"abdef")
    basin.clock.advance(2)
    everybody = {"c"} if name == "fill-first" else set("abcdef")
    everybody |= {basin.goes()[0] for _ in range(12)}
    assert everybody >= ({"a", "c"} if name == "fill-first" else set("abcdef"))


def test_an_account_back_from_its_rest_is_asked_at_once_where_there_is_no_other() -> None:
    basin = Basin("a")
    basin.fails("a")
    basin.nobody()
    basin.recovers("a")
    assert basin.goes()[0] == "a", "the operator cleared it: nothing may be believed any longer"


def test_what_is_believed_of_a_resting_account_is_soon_asked_again(basin: Basin) -> None:
    basin.fails("a", "b")
    assert basin.goes()[0] == "c"
    basin.recovers("a", "b")
    basin.clock.advance(1.1)
    assert {basin.goes()[0] for _ in range(3)} == {"a", "b", "c"}
    basin.fails("a", seconds=100.0)
    for _ in range(3):
        basin.goes()
    basin.recovers("a")
    basin.clock.rightNow -= 3600  # a clock that is set back
    assert {basin.goes()[0] for _ in range(3)} == {"a", "b", "c"}


# --- sticking ------------------------------------------------------------------------


def test_a_conversation_sticks_to_its_account(basin: Basin) -> None:
    assert basin.goes("t1") == ("a", "round-robin")
    assert basin.goes("t2") == ("b", "round-robin")
    for _ in range(3):
        assert basin.goes("t1") == ("a", "thread")
        assert basin.goes("t2") == ("b", "thread")


def test_sticking_does_not_disturb_the_rotation(basin: Basin) -> None:
    for _ in range(3):
        basin.goes("t1")
    assert basin.goes()[0] == "b"


def test_the_strongest_name_wins_in_the_order_of_law_8(basin: Basin) -> None:
    basin.bindings.bind(thread("t"), "c")
    full = wanted("t", holder="a", turn_state="b", maker="a")
    for strongest, named in (
        (full, ("a", "holds the previous response")),
        (full._replace(holder=None), ("b", "turn state")),
        (full._replace(holder="removed", turn_state="removed"), ("c", "thread")),
        (wanted(maker="b"), ("b", "made the history of the request")),
    ):
        basin.bindings.bind(thread("t"), "c")
        choice = basin.pool.choose(strongest)
        assert isinstance(choice, Selection)
        assert (choice.account.name, choice.rule) == named


def test_a_stronger_key_wins_and_the_lasting_one_is_bound(basin: Basin) -> None:
    state = thread("x")._replace(rule="turn state")
    basin.bindings.bind(state, "c")
    basin.bindings.bind(thread("t"), "b")
    choice = basin.pool.choose(RouteRequest(MODEL, [state, thread("t")]))
    assert isinstance(choice, Selection)
    assert (choice.account.name, choice.rule) == ("c", "turn state")
    assert basin.home(thread("t")) == "b", "nobody has answered there yet"
    choice.lease.acknowledged()
    assert basin.home(thread("t")) == "c", "the conversation moved along"


def test_sub_agents_do_not_pre_empt_each_other(basin: Basin) -> None:
    homes = {name: basin.goes(name)[0] for name in ("parent", "child 1", "child 2")}
    assert sorted(homes.values()) == ["a", "b", "c"]
    for name, home in homes.items():
        assert basin.goes(name) == (home, "thread")


def test_a_conversation_outlives_the_reload_that_keeps_its_account(basin: Basin) -> None:
    assert basin.goes("t1")[0] == "a"
    assert basin.goes("t2")[0] == "b"
    left = [basin.accounts[name] for name in ("c", "b")]
    basin.pool.reconfigure(left, RoutingSettings(strategy="fill-first"))
    assert basin.goes("t2") == ("b", "thread")
    assert basin.goes("t1") == ("c", "fill-first"), "its account is gone: a new home"
    assert basin.goes("t1") == ("c", "thread")
    assert basin.pool.named("a") is None
    assert [each.name for each in basin.pool._candidates_for(MODEL, False, False).all] == ["c", "b"]


def test_a_reload_takes_new_models_at_once(basin: Basin) -> None:
    assert basin.goes(model="o3")[0] == "a"
    only_c = [basin.account(name, models=("gpt-*",)) for name in "ab"] + [basin.accounts["c"]]
    basin.pool.reconfigure(only_c, RoutingSettings())
    assert {basin.goes(model="o3")[0] for _ in range(3)} == {"c"}


def test_models_that_clients_make_up_cost_a_bounded_place(basin: Basin) -> None:
    for number in range(1000):
        basin.goes(model=f"model {number}")
        basin.goes(model="x" * (1000 + number))
    info = basin.pool._candidates.cache_info()
    assert info.currsize <= 256, f"{info.currsize} models are remembered"
    assert (
        basin.pool._candidates_for("model 1", False, False).all
        is basin.pool._candidates_for("model 2", False, False).all
    ), "one tuple for all"


# --- stand-ins -----------------------------------------------------------------------


def test_a_stand_in_serves_until_the_home_can_again(basin: Basin) -> None:
    assert basin.goes("t1")[0] == "a"
    basin.fails("a", seconds=30.0)
    assert basin.goes("t1") == ("b", "stands in for a (round-robin)")
    assert basin.goes("t1") == ("b", "stands in for a")
    assert basin.goes("t1", holder="b") == ("b", "holds the previous response")
    basin.clock.advance(40)
    assert basin.goes("t1", holder="b") == ("a", "returns to its account")
    assert basin.goes("t1", holder="a") == ("a", "holds the previous response")
    binding = basin.bindings.peek(thread("t1"))
    assert binding is not None
    assert (binding.account, binding.stand_in) == ("a", None)


def test_within_its_users_turn_a_conversation_stays_with_the_stand_in(basin: Basin) -> None:
    basin.goes("t1")
    basin.fails("a", seconds=30.0)
    assert basin.goes("t1")[0] == "b"
    basin.clock.advance(40)
    within = ("b", "holds the previous response")
    assert basin.goes("t1", holder="b", turn_state="b") == within
    assert basin.goes("t1", holder="b") == ("a", "returns to its account")


def test_the_binding_says_what_ails_the_home(basin: Basin) -> None:
    basin.goes("t1")
    basin.fails("a", why="429 slow down")
    basin.goes("t1")
    binding = basin.bindings.peek(thread("t1"))
    assert binding is not None
    assert (binding.account, binding.stand_in) == ("a", "b")
    assert binding.stand_in_why == "429 slow down"


def test_a_conversation_that_stays_makes_its_stand_in_its_home() -> None:
    basin = Basin("a", "b", "c", return_to="stay")
    basin.goes("t1")
    basin.fails("a")
    assert basin.goes("t1") == ("b", "round-robin")
    basin.clock.advance(40)
    assert basin.goes("t1") == ("b", "thread")


def test_who_is_away_when_the_rule_becomes_stay_remains_where_it_is(basin: Basin) -> None:
    basin.goes("t1")
    basin.fails("a")
    basin.goes("t1")
    basin.pool.reconfigure(basin.pool.accounts, RoutingSettings(return_to="stay"))
    basin.clock.advance(40)
    assert basin.goes("t1", holder="b")[0] == "b"


def test_a_stand_in_that_fails_is_replaced_and_the_home_stays_the_home(basin: Basin) -> None:
    basin.goes("t1")
    basin.fails("a", seconds=100.0)
    assert basin.goes("t1")[0] == "b"
    basin.fails("b", seconds=300.0)
    assert basin.goes("t1", holder="b") == ("c", "stands in for a (round-robin)")
    basin.clock.advance(150)
    assert basin.goes("t1", holder="c") == ("a", "returns to its account")


def test_a_fork_from_before_the_move_stays_with_the_stand_in(basin: Basin) -> None:
    """An undo names a response of the home, which rests: no third account is brought in."""
    basin.goes("t1")
    basin.fails("a")
    assert basin.goes("t1")[0] == "b"
    assert basin.goes("t1", holder="a") == ("b", "stands in for a")


def test_a_former_stand_in_does_not_become_the_home(basin: Basin) -> None:
    """What it made is still the latest, as the answer of the stand-in after it broke off."""
    basin.goes("t1")
    basin.fails("a", seconds=100.0)
    assert basin.goes("t1")[0] == "b"
    assert basin.goes("t1", ["b"], holder="b")[0] == "c"
    assert basin.goes("t1", holder="b") == ("b", "holds the previous response")
    basin.clock.advance(150)
    assert basin.goes("t1", holder="b") == ("a", "returns to its account")


def test_a_home_that_fails_at_the_return_stays_the_home(basin: Basin) -> None:
    """The one that stood in holds the latest response, and is asked again in the same turn."""
    basin.goes("t1")
    basin.fails("a", seconds=10.0)
    assert basin.goes("t1")[0] == "b"
    basin.clock.advance(20)
    assert basin.goes("t1", holder="b") == ("a", "returns to its account")
    assert basin.goes("t1", ["a"], holder="b") == ("b", "holds the previous response")
    assert basin.goes("t1", holder="b") == ("a", "returns to its account")


def test_who_comes_home_because_no_stand_in_is_left_returns(basin: Basin) -> None:
    basin.goes("t1")
    basin.fails("a", seconds=10.0)
    assert basin.goes("t1")[0] == "b"
    basin.fails("b", "c", seconds=100.0)
    basin.clock.advance(20)
    assert basin.goes("t1", holder="c") == ("a", "returns to its account")


def test_a_turn_that_goes_where_its_parent_is_takes_the_conversation_along(basin: Basin) -> None:
    basin.goes("t1")
    assert basin.goes("t1", holder="c") == ("c", "holds the previous response")
    assert basin.goes("t1") == ("c", "thread")


def test_a_refusal_within_the_turn_counts_as_a_loss(basin: Basin) -> None:
    basin.goes("t1")
    assert basin.goes("t1", ["a"], holder="a") == ("b", "stands in for a (round-robin)")
    assert basin.goes("t1", ["a", "b"]) == ("c", "stands in for a (round-robin)")
    assert basin.nobody("t1", ["a", "b", "c"]).reasons == (), "none of them rests"
    assert basin.goes("t1", holder="c") == ("a", "returns to its account")


def test_a_model_that_the_home_does_not_offer_is_served_elsewhere_meanwhile() -> None:
    basin = Basin("a", "b", accounts={"a": {"models": ("gpt-*",)}, "b": {"models": ("o3",)}})
    assert basin.goes("t1")[0] == "a"
    assert basin.goes("t1", model="o3")[0] == "b"
    assert basin.goes("t1", model="o3")[0] == "b"
    assert basin.goes("t1")[0] == "a"


# --- on_account_loss -----------------------------------------------------------------


@pytest.mark.parametrize("loss", ["wait", "fail"])
def test_a_conversation_that_must_not_move_waits_for_its_account(loss: str) -> None:
    basin = Basin("a", "b", on_account_loss=loss)
    basin.goes("t1")
    basin.fails("a", seconds=30.0)
    nobody = basin.nobody("t1")
    assert nobody.waits_for == "a"
    assert [each.name for each in nobody.candidates] == ["a"]
    assert nobody.free_at == pytest.approx(basin.now + 30, abs=8)
    assert basin.goes()[0] == "b", "others have no such bond"
    basin.clock.advance(40)
    assert basin.goes("t1") == ("a", "thread")


@pytest.mark.parametrize("loss", ["wait", "fail"])
def test_an_account_that_never_takes_such_turns_is_not_waited_for(loss: str) -> None:
    basin = Basin("a", "b", on_account_loss=loss, accounts={"b": {"background": True}})
    basin.goes("t1")
    assert basin.goes("t1", background=True)[0] == "b"


def test_an_account_that_is_gone_is_not_waited_for() -> None:
    basin = Basin("a", "b", on_account_loss="wait")
    basin.goes("t1")
    basin.pool.reconfigure([basin.accounts["b"]], RoutingSettings(on_account_loss="wait"))
    assert basin.goes("t1")[0] == "b"


# --- pins ----------------------------------------------------------------------------


def test_sealed_items_pin_the_attempt(basin: Basin) -> None:
    basin.goes("t1")
    assert basin.goes("t1", holder="b", pinned_to="c") == ("c", "sealed items")


def test_a_pinned_attempt_goes_nowhere_else(basin: Basin) -> None:
    nobody = basin.nobody(pinned_to="c", tried=["c"])
    assert (nobody.waits_for, nobody.reasons) == ("c", ())
    basin.fails("c")
    nobody = basin.nobody(pinned_to="c")
    assert nobody.waits_for == "c"
    assert [reason.state for reason in nobody.reasons] == [AccountState.COOLING]


def test_a_pin_to_an_account_without_the_model_finds_no_candidate() -> None:
    basin = Basin("a", "b", accounts={"b": {"models": ("other-*",)}})
    nobody = basin.nobody(pinned_to="b")
    assert (nobody.candidates, nobody.waits_for) == ((), None)


def test_a_pin_to_an_account_that_is_gone_finds_no_candidate_and_names_it(basin: Basin) -> None:
    nobody = basin.nobody(pinned_to="removed")
    assert (nobody.candidates, nobody.waits_for) == ((), "removed")


# --- the operator --------------------------------------------------------------------


def test_a_conversation_that_the_operator_moves_goes_elsewhere_and_stays(basin: Basin) -> None:
    basin.goes("t1")
    [(number, _)] = basin.bindings.items(1)
    assert basin.bindings.move(number) is not None
    assert basin.goes("t1", holder="a") == ("b", "moved away from a by the operator (round-robin)")
    assert basin.goes("t1", holder="b") == ("b", "holds the previous response")


@pytest.mark.parametrize("wish", ["disable", "drain"])
def test_an_account_the_operator_took_out_is_left_and_returned_to(basin: Basin, wish: str) -> None:
    basin.goes("t1")
    health = basin.accounts["a"].health
    end = {"disable": health.enable, "drain": health.resume}[wish]
    getattr(health, wish)()
    assert basin.goes("t1")[0] == "b"
    end()
    assert basin.goes("t1", holder="b") == ("a", "returns to its account")


def test_an_account_that_is_not_enabled_takes_nothing() -> None:
    basin = Basin("a", "b", accounts={"a": {"enabled": False}})
    assert {basin.goes()[0] for _ in range(3)} == {"b"}


# --- explanations --------------------------------------------------------------------


def others(answer: Selection | NoAccount) -> dict[str, str]:
    assert isinstance(answer, Selection), f"expected a choice, got {answer}"
    return dict(answer.others)


def test_a_choice_says_why_the_others_were_not_chosen(basin: Basin) -> None:
    basin.fails("b", why="429 slow down")
    answer = basin.ask("t1", ["c"])
    assert isinstance(answer, Selection)
    assert (answer.account.name, answer.candidates) == ("a", 3)
    assert others(answer) == {"b": "429 slow down", "c": "refused this turn"}
    assert others(basin.ask("t1")) == {"b": "429 slow down", "c": "another was named"}


def test_the_account_a_conversation_lost_is_explained_first_in_any_pool() -> None:
    names = [f"a{number}" for number in range(200)]
    basin = Basin(*names)
    basin.bindings.bind(thread("t1"), "a150")
    basin.fails("a150", why="429 slow down")
    told = others(basin.ask("t1", ["a190"]))
    assert list(told)[:2] == ["a150", "a190"]
    assert list(told.values())[:2] == ["429 slow down", "refused this turn"]
    assert len(told) == 12, "of a large pool only some are told of"


# --- reservations --------------------------------------------------------------------


def test_a_choice_takes_its_place_at_once() -> None:
    """No herd: who asks next sees the place taken."""
    narrow = Basin("a", "b", accounts={"a": {"max_in_flight": 1}, "b": {"max_in_flight": 1}})
    first, second = narrow.pool.choose(wanted()), narrow.pool.choose(wanted())
    assert isinstance(first, Selection)
    assert isinstance(second, Selection)
    assert {first.account.name, second.account.name} == {"a", "b"}
    full = narrow.nobody()
    assert {reason.why for reason in full.reasons} == {"max_in_flight is reached"}
    assert full.free_at is None, "nobody knows when a turn ends"
    freed: list[int] = []
    narrow.pool.released = lambda: freed.append(second.account.in_flight)
    second.lease.release()
    second.lease.release()
    assert freed == [0], "told once, when the place was free already"
    assert narrow.pool.choose(wanted()).account is second.account  # type: ignore[union-attr]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_place_that_becomes_free_is_taken_at_once(name: str) -> None:
    narrow = {each: {"max_in_flight": 1} for each in "abc"}
    basin = Basin("a", "b", "c", accounts=narrow, strategy=name)
    held = {}
    for _ in range(3):
        answer = basin.pool.choose(wanted())
        assert isinstance(answer, Selection)
        held[answer.account.name] = answer.lease
    basin.nobody()
    basin.nobody(model="o3")
    held["b"].release()
    for model in (MODEL, "o3"):
        assert basin.goes(model=model)[0] == "b", "no time passes between a release and the next"
    held["c"].release()
    held["a"].release()
    assert {basin.goes()[0] for _ in range(9)} >= {"a"}


def test_more_requests_than_a_minute_may_hold_wait_for_the_next() -> None:
    basin = Basin("a", accounts={"a": {"requests_per_minute": 3}})
    for _ in range(3):
        basin.goes()
    assert basin.nobody().free_at == pytest.approx(basin.now + 60, abs=1)
    basin.clock.advance(61)
    basin.goes()


@pytest.mark.parametrize("name", STRATEGIES)
def test_after_a_rest_one_probe_goes_alone(name: str) -> None:
    basin = Basin("a", strategy=name)
    basin.fails("a", seconds=5.0, kind=FaultKind.EXHAUSTED)
    basin.clock.advance(20)
    probe = basin.pool.choose(wanted())
    assert isinstance(probe, Selection), "its rest is over"
    assert "probe" in basin.nobody().reasons[0].why
    probe.lease.acknowledged()
    probe.lease.release()
    assert basin.goes()[0] == "a"


def test_a_probe_that_leaves_without_an_answer_lets_another_try() -> None:
    alone = Basin("a")
    alone.fails("a", seconds=5.0)
    alone.clock.advance(20)
    probe = alone.pool.choose(wanted())
    assert isinstance(probe, Selection)
    probe.lease.release()
    alone.clock.advance(5)
    assert alone.goes()[0] == "a"


@pytest.mark.parametrize("loss", ["move", "wait"])
def test_a_home_that_is_used_up_is_stood_in_for_until_its_quota_resets(loss: str) -> None:
    basin = Basin("a", "b", on_account_loss=loss)
    assert basin.goes("t1")[0] == "a"
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=7200.0)
    basin.clock.advance(900)  # as long as it is left alone at most, and more
    if loss == "wait":
        assert basin.goes("t1") == ("a", "thread"), "it may have been given more meanwhile"
        return
    assert basin.goes("t1") == ("b", "stands in for a (round-robin)")
    binding = basin.bindings.peek(thread("t1"))
    assert binding is not None
    assert (binding.account, binding.stand_in) == ("a", "b")
    assert binding.stand_in_why == "its quota is used up"
    assert basin.goes("t1")[0] == "b"
    assert {basin.goes()[0] for _ in range(4)} == {"b"}
    basin.clock.advance(7200)
    assert basin.goes("t1") == ("a", "returns to its account")
    basin.fails("a", kind=FaultKind.EXHAUSTED, seconds=7200.0)
    basin.clock.advance(900)
    basin.accounts["b"].health.disable()
    assert basin.goes("t1")[0] == "a", "better than nobody"


# --- whatever happens ----------------------------------------------------------------

NAMES = st.sampled_from([None, "a", "b", "c", "removed"])


@given(
    st.lists(
        st.tuples(st.sampled_from(["t1", "t2"]), NAMES, NAMES, st.sets(st.sampled_from("abc"))),
        max_size=15,
    )
)
def test_whatever_is_wanted_a_fit_account_is_found_if_there_is_one(
    attempts: list[tuple[str, str | None, str | None, set[str]]],
) -> None:
    basin = Basin("a", "b", "c", accounts={"c": {"models": ("other",)}}, return_to="stay")
    for key, holder, pin, tried in attempts:
        answer = basin.ask(key, tried, holder=holder, pinned_to=pin)
        fit = {"a", "b"} - tried
        if pin is not None:
            fit &= {pin}
        assert isinstance(answer, Selection) == bool(fit)
        assert isinstance(answer, NoAccount) or answer.account.name in fit
        if isinstance(answer, Selection) and holder in fit:
            assert answer.account.name == holder


class PoolMachine(RuleBasedStateMachine):
    """Turns of three conversations, while accounts fail and come back."""

    def __init__(self) -> None:
        super().__init__()
        limits: dict[str, Any] = {"a": {"max_in_flight": 2}, "b": {"requests_per_minute": 30}}
        self.basin = Basin(*"abcd", accounts=limits)
        self.running: list[tuple[str, Selection]] = []
        self.ends_well: set[int] = set()
        #: Who answered each first.
        self.home: dict[str, str] = {}
        self.latest: dict[str, str] = {}

    @rule(
        key=st.sampled_from(["t1", "t2", "t3"]),
        tried=st.sets(st.sampled_from("abcd")),
        ends_well=st.booleans(),
    )
    def turn(self, key: str, tried: set[str], ends_well: bool) -> None:
        pool = self.basin.pool
        free = {
            each.name
            for each in pool.accounts
            if each.unavailable(MODEL) is None and each.name not in tried
        }
        holder = self.latest.get(key)
        answer = pool.choose(wanted(key, holder=holder), tried)
        if isinstance(answer, NoAccount):
            assert not free, f"{free} could have taken the turn"
            return
        name = answer.account.name
        assert name in free, f"{name} was chosen, only {free} could"
        self.running.append((key, answer))
        home = self.home.get(key, name)
        reasonable = name in (home, holder) or home not in free
        assert reasonable, f"{key} left {home} without a reason"
        if ends_well:
            self.ends_well.add(id(answer))
        told = dict(answer.others)
        assert name not in told
        if home not in free and home != name:
            assert told[home] != "another was named", f"why not {home}?"

    @precondition(lambda self: self.running)
    @rule(how=st.sampled_from(["acknowledged", "cancelled", *FaultKind]), data=st.data())
    def end(self, how: Any, data: Any) -> None:
        key, choice = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        if how == "acknowledged":
            choice.lease.acknowledged()
            self.home.setdefault(key, choice.account.name)
            if id(choice) in self.ends_well:  # only an answer can be continued
                self.latest[key] = choice.account.name
        elif how != "cancelled":
            choice.lease.refused(Fault(how, "as drawn", self.basin.now + 10))
        choice.lease.release()
        self.ends_well.discard(id(choice))

    @rule(seconds=st.sampled_from([0.2, 3.0, 30.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        self.basin.clock.advance(seconds)

    @rule(name=st.sampled_from("abcd"), wish=st.sampled_from(["disable", "enable", "clear"]))
    def operator(self, name: str, wish: str) -> None:
        getattr(self.basin.accounts[name].health, wish)()

    @invariant()
    def places_are_counted(self) -> None:
        running = [choice.account.name for _, choice in self.running]
        for name, account in self.basin.accounts.items():
            assert account.in_flight == running.count(name)
        assert self.basin.accounts["a"].in_flight <= 2

    @invariant()
    def a_home_is_who_answered_first(self) -> None:
        bindings = self.basin.bindings
        at_home = {binding.account for _, binding in bindings.items(9)}
        assert at_home == set(self.home.values())
        for key, home in self.home.items():
            assert self.basin.home(thread(key)) == home, f"{key} has lost its home"


TestPoolMachine = PoolMachine.TestCase
