"""Rules by which the same figure of several processes becomes one.

A rule takes two values and returns one.  Every rule is associative, and commutative but for the
order of lists: whoever answers first changes nothing.  None means that nothing is known.  The
figures of one process stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import msgspec

Json = dict[str, Any]
Rule = Callable[[Any, Any], Any]


def merged(rule: Rule, values: Sequence[Any]) -> Any:
    """All values as one.

    :param values: at least one.
    """
    return reduce(rule, values)


# --- single values ---------------------------------------------------------------------------


def _known(rule: Rule) -> Rule:
    """The rule where both values are known, and otherwise the one that is."""

    def of_known(one: Any, other: Any) -> Any:
        if one is None or other is None:
            return other if one is None else one
        return rule(one, other)

    return of_known


#: The sum.
total = _known(lambda one, other: one + other)

#: The larger, or the smaller.
most = _known(max)
least = _known(min)

#: Whether it is so in any process.
either = _known(lambda one, other: one or other)


def _order(value: Any) -> tuple[str, bytes]:
    """An order of all values of JSON; which one comes first does not matter."""
    return type(value).__name__, msgspec.json.encode(value, order="deterministic")


def _agreed(one: Any, other: Any) -> Any:
    return one if one == other else max(one, other, key=_order)


#: What should be the same in all processes; if it is not, always the same of the two.
agreed = _known(_agreed)


def ranked(ranks: Sequence[str]) -> Rule:
    """The one that stands later in ``ranks``; what is not there comes first."""

    def rank(value: str) -> tuple[int, str]:
        return (ranks.index(value) if value in ranks else -1), value

    return _known(lambda one, other: max(one, other, key=rank))


def chosen(key: Callable[[Any], Any]) -> Rule:
    """The whole value with the larger key."""

    def choose(one: Any, other: Any) -> Any:
        return one if one == other else max(one, other, key=lambda each: (key(each), _order(each)))

    return _known(choose)


# --- values of several parts -------------------------------------------------------------------


def fields(rules: Mapping[str, Rule], rest: Rule = agreed) -> Rule:
    """Objects, each member by its own rule.

    :param rest: the rule of members without their own.
    """

    def merge(one: Json, other: Json) -> Json:
        found = dict(one)
        for name, value in other.items():
            found[name] = rules.get(name, rest)(found[name], value) if name in found else value
        return found

    return _known(merge)


#: Objects of counts.
counts = fields({}, total)


def listed(key: Callable[[Json], Any], rule: Rule) -> Rule:
    """Lists of objects: those with the same key become one, in the order of the first list."""

    def merge(one: Sequence[Json], other: Sequence[Json]) -> list[Json]:
        found = {key(each): each for each in one}
        for each in other:
            known = found.get(key(each))
            found[key(each)] = each if known is None else rule(known, each)
        return list(found.values())

    return _known(merge)


def named(*names: str) -> Callable[[Json], Any]:
    """The key of an object: some of its members."""
    return lambda each: tuple(_hashable(each.get(name)) for name in names)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def by_bucket(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Counts in the same buckets."""
    return [here + there for here, there in zip(one, other, strict=True)]


def united(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """Lists without what they share, in order."""
    return sorted({*one, *other})
