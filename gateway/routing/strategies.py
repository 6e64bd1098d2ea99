"""The routing strategies: the account on which a new conversation starts.

A strategy keeps its position separately for each set of accounts, because not every account offers
every model.  An account that is not usable when it is next is skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from heapq import heapify, heapreplace
from itertools import cycle, filterfalse, islice
from math import ceil
from typing import Protocol

from gateway.routing.account import Account

Usable = Callable[[Account], bool]

#: Accounts that are known to be unavailable.
Skipped = Container[Account]

Pick = Callable[[Sequence[Account], Usable, Skipped], Account | None]

#: Bounds on the sets of accounts with a position, and on the tuples that identify them.
_MAX_SETS = 32
_MAX_TUPLES = 256

#: Usable accounts whose load is compared for one choice.
_COMPARED = 32

#: Accounts that are tried in the order in which they are due, before all are compared.
_ASKED_IN_ORDER = 8


class Strategy(Protocol):
    """Chooses among the accounts that may serve a turn.

    :ivar name: what the configuration calls it.
    """

    name: str

    def pick(
        self, eligible: Sequence[Account], usable: Usable, skipped: Skipped = ()
    ) -> Account | None:
        """Choose an account, or None when none is usable.

        :param eligible: those that serve the model, in the operator's order; the same tuple
            each time for the same model.
        :param usable: whether an account can take a turn now.
        :param skipped: those that need not be asked; passing over one costs next to nothing.
        """

    def may_pick(
        self, eligible: Sequence[Account], usable: Usable, skipped: Skipped = ()
    ) -> Sequence[Account]:
        """The accounts of which :meth:`pick` would choose one now; the position is kept."""


class _Order(Protocol):
    """A strategy's position in one set of accounts."""

    def pick(self, usable: Usable, skipped: Skipped) -> Account | None:
        """Choose one of the usable accounts, or None when there is none."""

    def may_pick(self, usable: Usable, skipped: Skipped) -> Sequence[Account]:
        """The accounts of which one would be chosen."""


class _RoundRobin:
    """One account after the other."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = accounts
        self._turns = cycle(accounts)

    def pick(self, usable: Usable, skipped: Skipped) -> Account | None:
        in_turn = islice(self._turns, len(self._accounts))
        return next(_fit(in_turn, usable, skipped), None)

    def may_pick(self, usable: Usable, skipped: Skipped) -> Sequence[Account]:
        return [*_fit(self._accounts, usable, skipped)]


class _FillFirst:
    """The first account in the operator's order for as long as it takes turns."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = accounts

    def pick(self, usable: Usable, skipped: Skipped) -> Account | None:
        return next(_fit(self._accounts, usable, skipped), None)

    def may_pick(self, usable: Usable, skipped: Skipped) -> Sequence[Account]:
        return [*islice(_fit(self._accounts, usable, skipped), 1)]


class _Priority:
    """The lowest ``priority`` that has a usable account; within it, one after the other.

    The lowest is asked first each time: conversations fail back as soon as they can.
    """

    def __init__(self, accounts: Sequence[Account]) -> None:
        tiers: dict[int, list[Account]] = {}
        for account in accounts:
            tiers.setdefault(account.settings.priority, []).append(account)
        self._tiers = [_RoundRobin(tiers[priority]) for priority in sorted(tiers)]

    def pick(self, usable: Usable, skipped: Skipped) -> Account | None:
        found = (tier.pick(usable, skipped) for tier in self._tiers)
        return next((account for account in found if account is not None), None)

    def may_pick(self, usable: Usable, skipped: Skipped) -> Sequence[Account]:
        found = (tier.may_pick(usable, skipped) for tier in self._tiers)
        return next(filter(None, found), [])


class _LeastInFlight:
    """The fewest running turns relative to the ``weight``; equal accounts in turn.

    In a large pool only the next usable accounts are compared, so that a choice stays cheap.
    """

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._count = len(accounts)
        self._twice = (*accounts, *accounts)
        self._index = {account: index for index, account in enumerate(accounts)}
        self._next = 0

    def pick(self, usable: Usable, skipped: Skipped) -> Account | None:
        best: Account | None = None
        least = 0.0
        for account in self._compared(usable, skipped):
            load = _load(account)
            if best is None or load < least:
                best, least = account, load
                if not load:
                    break
        if best is not None:
            self._next = (self._index[best] + 1) % self._count
        return best

    def may_pick(self, usable: Usable, skipped: Skipped) -> Sequence[Account]:
        compared = [*self._compared(usable, skipped)]
        least = min(map(_load, compared), default=0.0)
        return [account for account in compared if _load(account) == least]

    def _compared(self, usable: Usable, skipped: Skipped) -> Iterator[Account]:
        in_turn = self._twice[self._next : self._next + self._count]
        return islice(_fit(in_turn, usable, skipped), _COMPARED)


class _Weighted:
    """Each account in proportion to its ``weight``, evenly spread.

    In one unit of time an account of weight ``w`` is due ``w`` times, at equal distances, and
    accounts of the same weight are due at equal distances from each other.  The account that is due
    first is chosen.  So every ``sum(weights)`` choices give each account exactly its weight.
    """

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._accounts = accounts
        self._weights = [account.settings.weight for account in accounts]
        self._phases = list(_phases(self._weights))
        self._turns = [0] * len(accounts)
        self._index = {account: index for index, account in enumerate(accounts)}
        self._due = {account: self._due_at(index) for account, index in self._index.items()}
        #: By the time they are due; never later than they are, maybe earlier.
        self._heap = [(due, index) for index, due in enumerate(self._due.values())]
        heapify(self._heap)
        self._now = 0.0

    def pick(self, usable: Usable, skipped: Skipped) -> Account | None:
        heap = self._heap
        for _ in range(_ASKED_IN_ORDER):
            due, index = heap[0]
            account = self._accounts[index]
            up_to_date = self._due[account] == due
            if up_to_date:
                self._take_turn(account)
            heapreplace(heap, (self._due[account], index))
            if up_to_date and account not in skipped and usable(account):
                return account
        left = list(_not_skipped(self._accounts, skipped))
        found = min(left, key=self._due.__getitem__, default=None)
        if found is not None and not usable(found):
            found = min(filter(usable, left), key=self._due.__getitem__, default=None)
        if found is not None:
            self._take_turn(found)
        return found

    def may_pick(self, usable: Usable, skipped: Skipped) -> Sequence[Account]:
        return [*_fit(self._accounts, usable, skipped)]

    def _take_turn(self, account: Account) -> None:
        """Move an account to its next due time; skipped turns are not made up for."""
        index = self._index[account]
        turn = self._turns[index] + 1
        due = self._due[account]
        if due < self._now:
            turn = max(turn, ceil(self._now * self._weights[index] - self._phases[index]))
        else:
            self._now = due
        self._turns[index] = turn
        self._due[account] = self._due_at(index)

    def _due_at(self, index: int) -> float:
        return (self._turns[index] + self._phases[index]) / self._weights[index]


def _not_skipped(accounts: Iterable[Account], skipped: Skipped) -> Iterator[Account]:
    return filterfalse(skipped.__contains__, accounts)


def _fit(accounts: Iterable[Account], usable: Usable, skipped: Skipped) -> Iterator[Account]:
    return filter(usable, _not_skipped(accounts, skipped))


def _load(account: Account) -> float:
    return account.in_flight / account.settings.weight


def _phases(weights: Sequence[int]) -> Iterator[float]:
    """The phase of each account between 0 and 1; equal weights are spread evenly."""
    alike = Counter(weights)
    seen: Counter[int] = Counter()
    for weight in weights:
        yield (seen[weight] + 0.5) / alike[weight]
        seen[weight] += 1


class _ByAccounts:
    """A strategy with an order for each set of accounts.

    Sets are compared by value and looked up by identity; both are bounded.
    """

    def __init__(self, name: str, begin: Callable[[Sequence[Account]], _Order]) -> None:
        self.name = name
        self._begin = begin
        self._orders: dict[tuple[Account, ...], _Order] = {}
        #: Holds the tuples too, so that no other object gets their ids.
        self._known: dict[int, tuple[Sequence[Account], _Order]] = {}

    def pick(
        self, eligible: Sequence[Account], usable: Usable, skipped: Skipped = ()
    ) -> Account | None:
        """Choose by the order of these accounts."""
        if not eligible:
            return None
        known = self._known.get(id(eligible))
        order = self._order_of(eligible) if known is None else known[1]
        return order.pick(usable, skipped)

    def may_pick(
        self, eligible: Sequence[Account], usable: Usable, skipped: Skipped = ()
    ) -> Sequence[Account]:
        """By the order of these accounts; a new order is not kept."""
        accounts = tuple(eligible)
        order = self._orders.get(accounts) or self._begin(accounts)
        return order.may_pick(usable, skipped)

    def _order_of(self, eligible: Sequence[Account]) -> _Order:
        accounts = tuple(eligible)
        order = self._orders.pop(accounts, None) or self._begin(accounts)
        self._orders[accounts] = order
        if len(self._orders) > _MAX_SETS:
            del self._orders[next(iter(self._orders))]
            self._known.clear()
        elif len(self._known) >= _MAX_TUPLES:
            self._known.clear()
        if accounts is eligible:
            self._known[id(accounts)] = (accounts, order)
        return order


_ORDERS: dict[str, Callable[[Sequence[Account]], _Order]] = {
    "round-robin": _RoundRobin,
    "weighted": _Weighted,
    "least-in-flight": _LeastInFlight,
    "fill-first": _FillFirst,
    "priority": _Priority,
}


def strategy(name: str) -> Strategy:
    """A new strategy, by its name in ``routing.strategy``."""
    return _ByAccounts(name, _ORDERS[name])
