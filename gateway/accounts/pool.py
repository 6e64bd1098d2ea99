"""The pool: chooses the account of an attempt and says which rule won (design laws 8, 15)."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from typing import NamedTuple

from ..config import RoutingSettings
from .account import Account
from .affinity import AffinityKey
from .bindings import Binding, Bindings
from .health import Unavailable
from .reservation import Reservation
from .strategies import strategy

#: Accounts whose part in a choice is explained one by one; the others are only counted.
_EXPLAINED = 12

#: Models whose accounts are remembered; clients choose the names.
_MAX_MODELS = 256

_TRIED = "refused this turn"


class Wanted(NamedTuple):
    """What an attempt asks of the pool.

    :ivar model: must be offered by the account; None when the request names none.
    :ivar keys: the conversation's affinity keys; the last one is bound.
    :ivar holder: the account that holds the parent response, or None.
    :ivar pinned_to: the only account that can read the context, or None for any.
    :ivar turn_state: the account that the client's turn state names, or None.
    :ivar background: whether the account must take background responses.
    :ivar chat: whether it must take chat completions.
    """

    model: str | None
    keys: Sequence[AffinityKey]
    holder: str | None = None
    pinned_to: str | None = None
    turn_state: str | None = None
    background: bool = False
    chat: bool = False


class Rejected(NamedTuple):
    """An account that was not chosen, and why."""

    account: str
    why: str


class Choice(NamedTuple):
    """The account of an attempt, with a place on it, and the rule that named it.

    :ivar candidates: how many accounts offer the model.
    :ivar others: why some others were not chosen.
    """

    reservation: Reservation
    rule: str
    candidates: int
    others: tuple[Rejected, ...]

    @property
    def account(self) -> Account:
        """Where the place is."""
        return self.reservation.account


class Nobody(NamedTuple):
    """No account can serve the attempt now.

    :ivar wanted: what was asked for.
    :ivar candidates: the accounts that could, were they available; empty when none offers
        the model.
    :ivar waits_for: the one account that will do, by name, or None for any candidate.
    :ivar reasons: why each candidate cannot, those that refused this turn left out.
    """

    wanted: Wanted
    candidates: Sequence[Account]
    waits_for: str | None
    reasons: tuple[Unavailable, ...]

    @property
    def free_at(self) -> float | None:
        """When the first of them may be available again, unix seconds; None when unknown."""
        known = [reason.until for reason in self.reasons if reason.until is not None]
        return min(known, default=None)


class Pool:
    """All accounts.

    :param accounts: in the operator's order.
    :param bindings: which conversation sticks where.
    :param routing: the rules of choosing.
    :ivar released: called when a place became free.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        bindings: Bindings,
        routing: RoutingSettings | None = None,
    ) -> None:
        self.bindings = bindings
        self.released: Callable[[], None] = _nobody_waits
        self.arrange(accounts, routing or RoutingSettings())

    def arrange(self, accounts: Sequence[Account], routing: RoutingSettings) -> None:
        """Take these accounts and rules from now on; conversations keep their bindings."""
        self.accounts = tuple(accounts)
        self.routing = routing
        self._by_name = {account.name: account for account in accounts}
        self._strategy = strategy(routing.strategy)
        self._serving = lru_cache(_MAX_MODELS)(self._find_serving)

    def named(self, name: str) -> Account | None:
        """The account of that name."""
        return self._by_name.get(name)

    def serving(
        self, model: str | None, background: bool = False, chat: bool = False
    ) -> tuple[Account, ...]:
        """The accounts that offer ``model``, in the operator's order."""
        return self._serving(model, background, chat)

    def choose(self, wanted: Wanted, tried: Container[str] = ()) -> Choice | Nobody:
        """Pick an account and take a place on it, in one step.

        :param tried: names of accounts that refused this turn already.
        """
        eligible = self._serving(wanted.model, wanted.background, wanted.chat)
        if wanted.pinned_to is not None:
            return self._only(wanted.pinned_to, "sealed items", wanted, eligible, tried)
        key = wanted.keys[-1]
        binding = self.bindings.find(key)
        if binding is not None and binding.leaves is not None:
            moved = self._move(wanted, binding.leaves, eligible, tried)
            if moved is not None:
                return moved
        for name, rule in self.sticky(wanted, self.bindings.find):
            account = self._by_name.get(name)
            if account is None or not account.serves(wanted.model):
                continue
            if self._usable(account, wanted, tried) and account in eligible:
                if binding is None or binding.stand_in != name:
                    self.bindings.bind(key, name, rule)
                return self._take(account, rule, wanted, eligible, tried)
            if self.routing.on_account_loss != "move":
                return self._only(name, rule, wanted, eligible, tried)
        account = self._strategy.pick(eligible, lambda each: self._usable(each, wanted, tried))
        if account is None:
            return self._nobody(wanted, eligible, None, tried)
        rule = self._strategy.name
        home = self._by_name.get(binding.account) if binding is not None else None
        if home is not None and self.routing.return_to == "sticky":
            rule = f"stands in for {home.name} ({rule})"
            self.bindings.stand_in(key, account.name, rule)
        else:
            self.bindings.bind(key, account.name, rule)
        return self._take(account, rule, wanted, eligible, tried)

    def sticky(
        self, wanted: Wanted, find: Callable[[AffinityKey], Binding | None]
    ) -> list[tuple[str, str]]:
        """The accounts that the conversation may stick to, the strongest first (law 8).

        :param find: ``Bindings.find``, or ``look`` for one who only looks.
        """
        names: list[tuple[str, str]] = []
        for key in wanted.keys:
            binding = find(key)
            if binding is None:
                continue
            if binding.stand_in is not None and wanted.holder in (None, binding.stand_in):
                names.insert(0, (binding.account, "returns to its account"))
                names.append((binding.stand_in, f"stands in for {binding.account}"))
            else:
                names.append((binding.account, key.rule))
        strong = [(wanted.holder, "holds the previous response"), (wanted.turn_state, "turn state")]
        at = 1 if names and names[0][1] == "returns to its account" else 0
        names[at:at] = [(name, rule) for name, rule in strong if name is not None]
        return names

    def _move(
        self,
        wanted: Wanted,
        leaves: str,
        eligible: tuple[Account, ...],
        tried: Container[str],
    ) -> Choice | None:
        """Any account but the one the operator wants the conversation to leave; None without."""
        account = self._strategy.pick(
            eligible, lambda each: each.name != leaves and self._usable(each, wanted, tried)
        )
        if account is None:
            return None
        rule = f"moved away from {leaves} by the operator ({self._strategy.name})"
        self.bindings.bind(wanted.keys[-1], account.name, rule)
        return self._take(account, rule, wanted, eligible, tried)

    def _usable(self, account: Account, wanted: Wanted, tried: Container[str]) -> bool:
        return account.unavailable(wanted.model) is None and account.name not in tried

    def _only(
        self,
        name: str,
        rule: str,
        wanted: Wanted,
        eligible: tuple[Account, ...],
        tried: Container[str],
    ) -> Choice | Nobody:
        """That account or none."""
        account = self._by_name.get(name)
        if account is None:
            return Nobody(wanted, (), name, ())
        if account not in eligible:
            return Nobody(wanted, (), None, ())
        if self._usable(account, wanted, tried):
            return self._take(account, rule, wanted, eligible, tried)
        return self._nobody(wanted, (account,), name, tried)

    def _take(
        self,
        account: Account,
        rule: str,
        wanted: Wanted,
        eligible: tuple[Account, ...],
        tried: Container[str],
    ) -> Choice:
        others = tuple(
            Rejected(each.name, self._why_not(each, wanted.model, tried))
            for each in eligible[: _EXPLAINED + 1]
            if each is not account
        )
        reservation = account.reserve(wanted.model, self._release)
        return Choice(reservation, rule, len(eligible), others)

    def _why_not(self, account: Account, model: str | None, tried: Container[str]) -> str:
        if account.name in tried:
            return _TRIED
        blocked = account.unavailable(model)
        return "another was named" if blocked is None else blocked.why

    def _nobody(
        self,
        wanted: Wanted,
        candidates: Sequence[Account],
        waits_for: str | None,
        tried: Container[str],
    ) -> Nobody:
        reasons = (account.unavailable(wanted.model) for account in candidates)
        return Nobody(
            wanted, candidates, waits_for, tuple(reason for reason in reasons if reason is not None)
        )

    def _release(self) -> None:
        self.released()

    def _find_serving(self, model: str | None, background: bool, chat: bool) -> tuple[Account, ...]:
        return tuple(
            account
            for account in self.accounts
            if account.serves(model)
            and (account.settings.background or not background)
            and (account.settings.chat_completions or not chat)
        )


def _nobody_waits() -> None:
    """Nobody waits for a place."""
