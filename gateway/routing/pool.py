"""The pool: chooses the account of an attempt and says which rule won (design law 8, law 15)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache

from gateway.config import RoutingSettings
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.routing.bindings import Binding, Bindings
from gateway.routing.candidates import Candidates
from gateway.routing.router import Router
from gateway.routing.selection import NoAccount, RouteRequest, Selection
from gateway.routing.settling import FailureEffect, Settling
from gateway.routing.strategies import Picker, strategy

#: Accounts whose part in a choice is explained one by one; the others are only counted.
_EXPLAINED = 12

#: Models whose accounts are remembered, and their longest name; clients choose the names.
MAX_MODELS = 256
_MAX_MODEL_NAME = 200


class AccountPool:
    """All accounts.

    :param accounts: in the operator's order.
    :param bindings: which conversation sticks where; the pool goes by the same clock.
    :param routing: the rules of choosing.
    :ivar released: called when a place became free.
    :ivar strategy: names the account where a conversation sticks to none.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        bindings: Bindings,
        routing: RoutingSettings | None = None,
    ) -> None:
        self.bindings = bindings
        self.released: Callable[[], None] = _nobody_waits
        self.reconfigure(accounts, routing or RoutingSettings())

    def reconfigure(self, accounts: Sequence[Account], routing: RoutingSettings) -> None:
        """Take these accounts and rules from now on; conversations keep their bindings."""
        self.accounts = tuple(accounts)
        self.routing = routing
        self._by_name = {account.name: account for account in accounts}
        self.strategy = strategy(routing.strategy)
        self._candidates = lru_cache(MAX_MODELS)(self._find_candidates)

    @property
    def models_remembered(self) -> int:
        """Models whose accounts are known without a look; at most :data:`MAX_MODELS`."""
        return self._candidates.cache_info().currsize

    def named(self, name: str) -> Account | None:
        """The account of that name."""
        return self._by_name.get(name)

    def serving(
        self, model: str | None, background: bool = False, chat: bool = False
    ) -> tuple[Account, ...]:
        """The accounts that offer ``model``, in the operator's order."""
        return self._candidates_for(model, background, chat).accounts

    def choose(self, wanted: RouteRequest, tried: Collection[str] = ()) -> Selection | NoAccount:
        """Pick an account and take a place on it, in one step.

        :param tried: names of accounts that refused this turn already.
        """
        deciding = self.deciding(wanted, tried, self.bindings.find, self.strategy)
        found = deciding.decide()
        if isinstance(found, NoAccount) and found.any_would_do and deciding.candidates.hurry():
            deciding = self.deciding(wanted, tried, self.bindings.find, self.strategy)
            found = deciding.decide()
        if isinstance(found, NoAccount):
            return found
        account, rule, effect, ails = found
        settling: Settling | None = None
        if effect is not FailureEffect.NONE:
            why = ails if effect is FailureEffect.STAND_IN else rule
            settling = Settling(self.bindings, wanted.keys[-1], account.name, effect, why)
        others = deciding.others(account, _EXPLAINED)
        lease = account.reserve(wanted.model, self._release, settling)
        return Selection(lease, rule, len(deciding.candidates.accounts), others)

    def lacking(self, wanted: RouteRequest, tried: Collection[str]) -> NoAccount | None:
        """Why nobody is left to choose; None while somebody is.  No place is taken."""
        return self.deciding(wanted, tried, self.bindings.look, self.strategy).lacking()

    def deciding(
        self,
        wanted: RouteRequest,
        tried: Collection[str],
        find: Callable[[AffinityKey], Binding | None],
        strategy: Picker,
    ) -> Router:
        """A decision by the rules of this pool.

        :param find: ``Bindings.find``, or ``look`` for one who only looks.
        :param strategy: the pool's own, or one that speaks for it.
        """
        candidates = self._candidates_for(wanted.model, wanted.background, wanted.chat)
        return Router(self._by_name, self.routing, candidates, wanted, tried, find, strategy)

    def _release(self) -> None:
        self.released()

    def _candidates_for(self, model: str | None, background: bool, chat: bool) -> Candidates:
        if model is not None and len(model) > _MAX_MODEL_NAME:
            return self._find_candidates(model, background, chat)
        return self._candidates(model, background, chat)

    def _find_candidates(self, model: str | None, background: bool, chat: bool) -> Candidates:
        found = tuple(
            account
            for account in self.accounts
            if account.serves(model)
            and (account.settings.background or not background)
            and (account.settings.chat_completions or not chat)
        )
        everybody = len(found) == len(self.accounts)
        return Candidates(self.accounts if everybody else found, model, self.bindings.now)


def _nobody_waits() -> None:
    """Nobody waits for a place."""
