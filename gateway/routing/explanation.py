"""Where a turn would go now, and why: the pool's decision, told and not carried out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gateway.routing.account import Account
from gateway.routing.pool import AccountPool
from gateway.routing.selection import NoAccount, RejectedAccount, RouteRequest
from gateway.routing.strategies import NOBODY, Resting, Strategy, Usable

#: Accounts that are explained one by one.
_EXPLAINED = 200


class DryRun(NamedTuple):
    """The choice that the pool would make.

    :ivar account: which it would be; None for nobody, or for one of several.
    :ivar rule: the rule that decides.
    :ivar among: from which accounts the routing strategy would take the next in turn.
    :ivar candidates: the accounts that offer the model.
    :ivar rejected: accounts that would not be taken, and why.
    :ivar waits_for: the one account the turn would wait for, or None.
    """

    account: str | None
    rule: str
    among: tuple[str, ...]
    candidates: tuple[str, ...]
    rejected: tuple[RejectedAccount, ...]
    waits_for: str | None


def explain(pool: AccountPool, wanted: RouteRequest) -> DryRun:
    """What :meth:`AccountPool.choose` would decide; nothing is taken, bound or kept alive.

    Where nobody can serve, a turn may end the rests of broken services; this does not.
    """
    foretelling = _Foretelling(pool.strategy)
    deciding = pool.deciding(wanted, (), pool.bindings.look, foretelling)
    deciding.candidates.forget()  # so that this, and the next choice, go by what is so now
    found = deciding.decide()
    account = None if isinstance(found, NoAccount) else found.account
    others = deciding.others(account, _EXPLAINED)
    among = tuple(each.name for each in foretelling.among)
    return DryRun(
        account=None if account is None or len(among) > 1 else account.name,
        rule=found.rule if deciding.candidates.accounts else "no account offers this",
        among=among,
        candidates=tuple(each.name for each in deciding.candidates.accounts),
        rejected=tuple(each for each in others if each.account not in among),
        waits_for=found.waits_for if isinstance(found, NoAccount) else None,
    )


class _Foretelling:
    """Speaks for a strategy without taking anybody's turn.

    :ivar among: those of which the strategy would name one; empty while it was not asked.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.name = strategy.name
        self.among: Sequence[Account] = ()
        self._strategy = strategy

    def pick(
        self, eligible: Sequence[Account], usable: Usable, resting: Resting = NOBODY
    ) -> Account | None:
        """One of those, for all of them."""
        self.among = self._strategy.may_pick(eligible, usable, resting)
        return next(iter(self.among), None)
