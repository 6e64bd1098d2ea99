"""Where a turn would go now, and why: the pool's rules without taking a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .account import Account
from .candidates import USED_UP, with_room
from .choice import Rejected, Wanted
from .pool import Pool

#: Accounts that are explained one by one.
_EXPLAINED = 200


class Explanation(NamedTuple):
    """The choice that the pool would make.

    :ivar account: which it would be; None for nobody, or for one of several.
    :ivar rule: the rule that decides.
    :ivar among: from which accounts the routing strategy would take the next in turn.
    :ivar candidates: the accounts that offer the model.
    :ivar rejected: candidates that would not be taken, and why.
    :ivar waits_for: the one account the turn would wait for, or None.
    """

    account: str | None
    rule: str
    among: tuple[str, ...]
    candidates: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    waits_for: str | None


def explain(pool: Pool, wanted: Wanted) -> Explanation:
    """What :meth:`Pool.choose` would decide; nothing is taken, bound or kept alive."""
    eligible = pool.serving(wanted.model, wanted.background, wanted.chat)
    usable = [each for each in eligible if each.unavailable(wanted.model) is None]
    if not eligible:
        return _explained(wanted, eligible, None, "no account offers this", ())
    if wanted.pinned_to is not None:
        return _only(wanted, eligible, usable, wanted.pinned_to, "sealed items")
    binding = pool.bindings.look(wanted.keys[-1])
    strategy = pool.routing.strategy
    if binding is not None and binding.leaves is not None:
        others = [each for each in usable if each.name != binding.leaves]
        if others:
            rule = f"moved away from {binding.leaves} by the operator ({strategy})"
            return _one_of(wanted, eligible, with_room(others), rule)
    for name, rule in pool.sticky(wanted, pool.bindings.look):
        account = pool.named(name)
        if account is None or account not in eligible:
            continue
        if account in usable:
            return _explained(wanted, eligible, account, rule, ())
        if pool.routing.on_account_loss != "move":
            return _only(wanted, eligible, usable, name, rule)
    home = None if binding is None else pool.named(binding.account)
    rule = strategy
    if home is not None and pool.routing.return_to == "sticky":
        rule = f"stands in for {home.name} ({strategy})"
    fresh = with_room(usable)
    if strategy == "fill-first":
        return _explained(wanted, eligible, fresh[0] if fresh else None, rule, ())
    return _one_of(wanted, eligible, fresh, rule)


def _only(
    wanted: Wanted, eligible: tuple[Account, ...], usable: list[Account], name: str, rule: str
) -> Explanation:
    account = next((each for each in usable if each.name == name), None)
    found = _explained(wanted, eligible, account, rule, ())
    return found if account is not None else found._replace(waits_for=name)


def _one_of(
    wanted: Wanted, eligible: tuple[Account, ...], usable: Sequence[Account], rule: str
) -> Explanation:
    sure = usable[0] if len(usable) == 1 else None
    return _explained(wanted, eligible, sure, rule, tuple(each.name for each in usable))


def _explained(
    wanted: Wanted,
    eligible: tuple[Account, ...],
    account: Account | None,
    rule: str,
    among: tuple[str, ...],
) -> Explanation:
    rejected = []
    for each in eligible[:_EXPLAINED]:
        blocked = each.unavailable(wanted.model)
        if blocked is not None:
            rejected.append(Rejected(each.name, blocked.why or blocked.state.value))
        elif each is not account and each.name not in among:
            why = USED_UP if each.health.quotas.spent else "another was named"
            rejected.append(Rejected(each.name, why))
    names = tuple(each.name for each in eligible)
    return Explanation(
        None if account is None else account.name, rule, among, names, tuple(rejected), None
    )
