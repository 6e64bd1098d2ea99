"""Rules of merging: whoever answers first, and in whatever groups, the whole is the same."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.admin import merging
from gateway.admin.merging import Rule, agreed, chosen, counts, fields, listed, merged, named, total

numbers = st.none() | st.integers(-1000, 1000)
words = st.none() | st.sampled_from(["ready", "cooling", "paused"])
objects = st.fixed_dictionaries(
    {"name": st.sampled_from("abc"), "turns": st.integers(0, 9), "state": words}
)
lists = st.lists(objects, max_size=4, unique_by=lambda each: each["name"])

RULES: dict[str, tuple[Rule, st.SearchStrategy[Any]]] = {
    "total": (merging.total, numbers),
    "most": (merging.most, numbers),
    "least": (merging.least, numbers),
    "either": (merging.either, st.none() | st.booleans()),
    "agreed": (agreed, st.none() | st.integers() | st.text(max_size=3) | lists),
    "ranked": (merging.ranked(["ready", "cooling"]), words),
    "chosen": (chosen(lambda each: each["turns"]), st.none() | objects),
    "counts": (counts, st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))),
    "fields": (fields({"turns": total}), st.none() | objects),
    "listed": (listed(named("name"), fields({"turns": total})), st.none() | lists),
    "by_bucket": (merging.by_bucket, st.lists(st.integers(0, 9), min_size=3, max_size=3)),
    "united": (merging.united, st.lists(st.sampled_from("abc"), unique=True).map(sorted)),
}


def unordered(value: Any) -> Any:
    """Lists of objects may come in any order."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sorted(value, key=lambda each: each["name"])
    return value


@given(st.sampled_from(sorted(RULES)), st.data())
def test_a_rule_is_commutative_and_associative(name: str, data: st.DataObject) -> None:
    rule, values = RULES[name]
    one, two, three = (data.draw(values) for _ in range(3))
    assert unordered(rule(one, two)) == unordered(rule(two, one))
    assert unordered(rule(rule(one, two), three)) == unordered(rule(one, rule(two, three)))
    assert merged(rule, [one]) is one


def test_what_is_not_known_leaves_the_other() -> None:
    assert total(None, 3) == 3
    assert total(3, None) == 3
    assert total(None, None) is None
    assert fields({})({"a": 1}, {"b": 2}) == {"a": 1, "b": 2}


def test_nothing_that_is_merged_is_changed() -> None:
    one, two = [{"name": "a", "turns": 1}], [{"name": "a", "turns": 2}, {"name": "b", "turns": 3}]
    rule = listed(named("name"), fields({"turns": total}))
    assert rule(one, two) == [{"name": "a", "turns": 3}, {"name": "b", "turns": 3}]
    assert one == [{"name": "a", "turns": 1}]
    assert two[0] == {"name": "a", "turns": 2}


def test_a_rank_that_is_not_known_comes_first() -> None:
    rule = merging.ranked(["ready", "cooling"])
    assert rule("new", "ready") == "ready"
    assert rule("cooling", "ready") == "cooling"
