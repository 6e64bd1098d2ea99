"""The pool: chooses the account of an attempt and says which rule won (design laws 8, 15)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

from .account import Account
from .affinity import AffinityKey, Bindings


class Choice(NamedTuple):
    """The account of an attempt and the rule that named it."""

    account: Account
    rule: str


class Wanted(NamedTuple):
    """What an attempt asks of the pool.

    :ivar model: must be offered by the account; None when the request names none.
    :ivar keys: the turn's affinity keys, the strongest first; the last one is bound.
    :ivar holder: the account that holds the parent response, or None.
    :ivar pinned_to: the only account that can read the context, or None for any.
    """

    model: str | None
    keys: Sequence[AffinityKey]
    holder: str | None = None
    pinned_to: str | None = None


class Pool:
    """All accounts.

    :param accounts: in the operator's order.
    :param bindings: which conversation sticks where.
    """

    def __init__(self, accounts: Sequence[Account], bindings: Bindings) -> None:
        self.accounts = tuple(accounts)
        self.bindings = bindings
        self._by_name = {account.name: account for account in accounts}
        self._next = 0

    def choose(self, wanted: Wanted, tried: Container[str] = ()) -> Choice | None:
        """Pick an account and bind the conversation to it.

        :param tried: names of accounts that refused this turn already.
        :return: None when no account is left.
        """
        choice = self._pick(wanted, tried)
        if choice is not None:
            self.bindings.bind(wanted.keys[-1], choice.account.name)
        return choice

    def _pick(self, wanted: Wanted, tried: Container[str]) -> Choice | None:
        if wanted.pinned_to is not None and wanted.pinned_to in self._by_name:
            return self._named(wanted.pinned_to, "sealed items", wanted, tried)
        bound = [(self.bindings.account_of(key), key.rule) for key in wanted.keys]
        for name, rule in ((wanted.holder, "holds the previous response"), *bound):
            choice = self._named(name, rule, wanted, tried)
            if choice is not None:
                return choice
        return self._rotate(wanted, tried)

    def _named(
        self, name: str | None, rule: str, wanted: Wanted, tried: Container[str]
    ) -> Choice | None:
        account = self._by_name.get(name) if name is not None else None
        if account is None or account.name in tried or not account.serves(wanted.model):
            return None
        return Choice(account, rule)

    def _rotate(self, wanted: Wanted, tried: Container[str]) -> Choice | None:
        """The next account in turn; every account is asked once."""
        for _ in self.accounts:
            account = self.accounts[self._next % len(self.accounts)]
            self._next += 1
            if account.name not in tried and account.serves(wanted.model):
                return Choice(account, "round-robin")
        return None
