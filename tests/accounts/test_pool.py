"""The pool: which account serves an attempt, and the rule that says so (laws 8 and 15)."""

from __future__ import annotations

import itertools
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounts.account import Account
from gateway.accounts.affinity import AffinityKey, Bindings
from gateway.accounts.pool import Choice, Pool, Wanted
from gateway.config import AccountSettings
from gateway.protocol.upstream_request import UpstreamRequest
from gateway.upstream.interface import Receiver

connections = itertools.count()


class NoUpstream:
    """Choosing an account sends nothing."""

    def exchange(self, request: UpstreamRequest, receiver: Receiver) -> NoReturn:
        raise AssertionError("the pool only chooses")

    def close(self) -> None:
        """Nothing is open."""


def now() -> float:
    return 1000.0


def account(name: str, models: tuple[str, ...] = ("*",)) -> Account:
    settings = AccountSettings(
        name=name,
        base_url="http://127.0.0.1:1",
        key=f"sk-{name}",
        models=models,
        headers={"OpenAI-Organization": "org-1"},
    )
    return Account(settings, NoUpstream(), now)


def pool_of(*accounts: Account) -> Pool:
    return Pool(accounts, Bindings(100, 60.0, now))


@pytest.fixture
def pool() -> Pool:
    return pool_of(account("a"), account("b"), account("c"))


def wanted(
    key: str | None = None,
    model: str | None = "gpt-5",
    holder: str | None = None,
    pinned_to: str | None = None,
) -> Wanted:
    """A conversation of its own, unless ``key`` names one."""
    value = key or f"connection {next(connections)}"
    return Wanted(model, [AffinityKey("thread", "laptop", value)], holder, pinned_to)


def names(choices: list[Choice | None]) -> list[str]:
    return [choice.account.name for choice in choices if choice is not None]


def chosen(choice: Choice | None) -> tuple[str, str]:
    assert choice is not None, "an account is left"
    return choice.account.name, choice.rule


def test_new_conversations_rotate(pool: Pool) -> None:
    assert names([pool.choose(wanted()) for _ in range(5)]) == ["a", "b", "c", "a", "b"]


def test_a_conversation_sticks_to_its_account(pool: Pool) -> None:
    assert chosen(pool.choose(wanted("t1"))) == ("a", "round-robin")
    assert chosen(pool.choose(wanted("t2"))) == ("b", "round-robin")
    for _ in range(3):
        assert chosen(pool.choose(wanted("t1"))) == ("a", "thread")
        assert chosen(pool.choose(wanted("t2"))) == ("b", "thread")


def test_sticking_does_not_disturb_the_rotation(pool: Pool) -> None:
    pool.choose(wanted("t1"))
    pool.choose(wanted("t1"))
    assert chosen(pool.choose(wanted()))[0] == "b"


def test_who_holds_the_previous_response_comes_first(pool: Pool) -> None:
    pool.choose(wanted("t1"))
    choice = pool.choose(wanted("t1", holder="c"))
    assert chosen(choice) == ("c", "holds the previous response")
    assert chosen(pool.choose(wanted("t1"))) == ("c", "thread"), "the conversation moved along"


def test_a_stronger_key_wins_and_the_lasting_one_is_bound(pool: Pool) -> None:
    state, thread = AffinityKey("turn state", "laptop", "x"), AffinityKey("thread", "laptop", "t")
    pool.bindings.bind(state, "c")
    pool.bindings.bind(thread, "b")
    assert chosen(pool.choose(Wanted("gpt-5", [state, thread]))) == ("c", "turn state")
    assert pool.bindings.account_of(thread) == "c"


def test_an_account_that_refused_is_not_asked_again(pool: Pool) -> None:
    pool.choose(wanted("t1"))
    assert chosen(pool.choose(wanted("t1", holder="a"), ["a"])) == ("b", "round-robin")
    assert chosen(pool.choose(wanted("t1"), ["a"])) == ("b", "thread"), "it moved"
    assert chosen(pool.choose(wanted("t1"), ["a", "b"])) == ("c", "round-robin")
    assert pool.choose(wanted("t1"), ["a", "b", "c"]) is None


def test_who_holds_it_no_more_is_passed_over(pool: Pool) -> None:
    assert chosen(pool.choose(wanted(holder="removed"))) == ("a", "round-robin")


# --- pins ----------------------------------------------------------------------------


def test_sealed_items_pin_the_attempt(pool: Pool) -> None:
    pool.choose(wanted("t1"))
    assert chosen(pool.choose(wanted("t1", holder="b", pinned_to="c"))) == ("c", "sealed items")


def test_a_pinned_attempt_goes_nowhere_else(pool: Pool) -> None:
    assert pool.choose(wanted(pinned_to="c"), ["c"]) is None
    small = pool_of(account("a"), account("b", ("other-*",)))
    assert small.choose(wanted(pinned_to="b")) is None


def test_a_pin_to_an_account_that_is_gone_binds_nobody(pool: Pool) -> None:
    assert chosen(pool.choose(wanted(pinned_to="removed"))) == ("a", "round-robin")


# --- models --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "model", "serves"),
    [
        (("*",), "gpt-5", True),
        (("gpt-5",), "gpt-5", True),
        (("gpt-5",), "gpt-5.5", False),
        (("gpt-*", "o3"), "o3", True),
        (("GPT-*",), "gpt-5", False),
        (("gpt-5",), None, True),
    ],
)
def test_an_account_serves_the_models_it_is_given(
    patterns: tuple[str, ...], model: str | None, serves: bool
) -> None:
    one = account("a", patterns)
    assert one.serves(model) is serves


def test_only_accounts_that_serve_the_model_are_chosen() -> None:
    pool = pool_of(account("a", ("gpt-*",)), account("b", ("o3",)), account("c", ("gpt-*", "o3")))
    assert names([pool.choose(wanted(model="o3")) for _ in range(4)]) == ["b", "c", "b", "c"]
    assert pool.choose(wanted(model="unheard-of")) is None
    assert chosen(pool.choose(wanted("t1", model="o3", holder="a")))[0] != "a"


def test_a_conversation_moves_when_its_model_is_elsewhere() -> None:
    pool = pool_of(account("a", ("gpt-*",)), account("b", ("o3",)))
    assert chosen(pool.choose(wanted("t1", model="gpt-5")))[0] == "a"
    assert chosen(pool.choose(wanted("t1", model="o3"))) == ("b", "round-robin")
    assert chosen(pool.choose(wanted("t1", model="o3"))) == ("b", "thread")


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
    pool = pool_of(account("a"), account("b"), account("c", ("other",)))
    for key, holder, pin, tried in attempts:
        choice = pool.choose(wanted(key, "gpt-5", holder, pin), tried)
        fit = {"a", "b"} - tried
        if pin in ("a", "b", "c"):
            fit &= {pin}
        assert (choice is not None) == bool(fit)
        assert choice is None or choice.account.name in fit
        if holder in fit and pin not in fit:
            assert chosen(choice)[0] == holder


# --- an account ----------------------------------------------------------------------


def test_an_accounts_requests_carry_its_key_and_headers() -> None:
    one = account("a")
    assert one.name == "a"
    assert one.request_headers == [
        ("authorization", "Bearer sk-a"),
        ("OpenAI-Organization", "org-1"),
    ]
    assert (one.in_flight, one.turns, one.failures) == (0, 0, 0)
