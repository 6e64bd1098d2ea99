"""Dry runs tell what the pool would do, and leave everything as it is."""

from __future__ import annotations

import pytest

from gateway.protocol.error_classification import FaultKind
from gateway.routing.affinity import opaque_id
from gateway.routing.selection import Selection
from tests.routing.pools import Basin, thread, wanted


@pytest.mark.parametrize("paused", ["", "a", "b", "ab", "abc", "abd", "abcd"])
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("loads", [(0, 0, 0, 0), (2, 2, 1, 0)])
def test_of_several_priorities_an_explanation_tells_the_lowest(
    paused: str, moves: bool, loads: tuple[int, ...]
) -> None:
    tiers = {"a": 2, "b": 1, "c": 3, "d": 3}
    about = {name: {"priority": priority} for name, priority in tiers.items()}
    basin = Basin(*tiers, accounts=about, strategy="priority")
    key = thread("t1")
    if moves:
        basin.bindings.bind(key, "b", "test")
        basin.bindings.move(opaque_id(key))
    for name in paused:
        basin.accounts[name].health.disable()
    for account, load in zip(basin.pool.accounts, loads, strict=True):
        account.in_flight = load
    asked = wanted("t1")
    told, done = basin.pool.explain(asked), basin.pool.choose(asked)
    left = [name for name in "bacd" if name not in paused and not (moves and name == "b")]
    left = left or (["b"] if moves and "b" not in paused else [])
    if not left:
        assert (told.account, isinstance(done, Selection)) == (None, False)
        return
    assert isinstance(done, Selection)
    assert done.account.name == left[0]
    assert done.rule == told.rule
    if left == ["c", "d"]:
        assert (told.account, told.among) == (None, ("c", "d")), "these two take turns"
    else:
        assert told.account == left[0]


def test_a_dry_run_keeps_no_binding_alive() -> None:
    basin = Basin("a", "b")
    basin.goes("t1")
    basin.goes("t2")
    before = [(identity, binding.used_at) for identity, binding in basin.bindings.items(9)]
    basin.clock.advance(60)
    for _ in range(3):
        assert basin.pool.explain(wanted("t1")).account == "a"
        assert basin.pool.explain(wanted()).among == ("a", "b")
    after = [(identity, binding.used_at) for identity, binding in basin.bindings.items(9)]
    assert after == before
    assert basin.goes()[0] == "a", "nobody's turn was taken"


def test_who_waits_and_for_whom_is_told_as_the_pool_tells_it() -> None:
    models = {"a": {"models": ("gpt-*",)}, "b": {"models": ("other",)}}
    basin = Basin("a", "b", accounts=models, on_account_loss="wait")
    basin.goes("t1")
    basin.fails("a")
    for asked, rule, waits_for in (
        (wanted("t1"), "thread", "a"),
        (wanted(pinned_to="a"), "sealed items", "a"),
        (wanted(pinned_to="b"), "sealed items", None),
        (wanted(pinned_to="removed"), "sealed items", "removed"),
        (wanted(), "round-robin", None),
        (wanted(model="unheard-of"), "no account offers this", None),
    ):
        told, done = basin.pool.explain(asked), basin.pool.choose(asked)
        assert (told.account, told.among) == (None, ())
        assert (told.rule, told.waits_for) == (rule, waits_for)
        assert not isinstance(done, Selection)
        assert done.waits_for == waits_for


def test_a_dry_run_ends_no_rest_where_a_turn_would() -> None:
    basin = Basin("a")
    for _ in range(12):
        basin.clock.advance(601.0)
        basin.fails("a", kind=FaultKind.SERVICE, seconds=None)
    basin.clock.advance(20.0)
    for _ in range(2):
        told = basin.pool.explain(wanted())
        assert told.account is None
        assert list(told.rejected) == ["a"]
    assert basin.goes()[0] == "a"
