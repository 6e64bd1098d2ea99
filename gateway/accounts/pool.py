"""The pool: chooses the account of an attempt and says which rule won (design law 8, law 15)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import islice

from ..config import RoutingSettings
from .account import Account
from .affinity import AffinityKey
from .bindings import Binding, Bindings
from .candidates import Candidates
from .choice import Choice, Nobody, Rejected, Wanted
from .strategies import strategy

#: Accounts whose part in a choice is explained one by one; the others are only counted.
_EXPLAINED = 12

#: Models whose accounts are remembered, and their longest name; clients choose the names.
MAX_MODELS = 256
_MAX_MODEL_NAME = 200

_RETURNS = "returns to its account"
_TRIED = "refused this turn"
_NOT_NEEDED = "another was named"
_NOT_OFFERED = "does not take such turns"


class Pool:
    """All accounts.

    :param accounts: in the operator's order.
    :param bindings: which conversation sticks where; the pool goes by the same clock.
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

    def choose(self, wanted: Wanted, tried: Collection[str] = ()) -> Choice | Nobody:
        """Pick an account and take a place on it, in one step.

        :param tried: names of accounts that refused this turn already.
        """
        candidates = self._candidates_for(wanted.model, wanted.background, wanted.chat)
        if wanted.pinned_to is not None:
            return self._only(wanted.pinned_to, "sealed items", wanted, candidates, tried)
        key = wanted.keys[-1]
        binding = self.bindings.find(key)
        if binding is not None and binding.leaves is not None:
            moved = self._move(binding.leaves, wanted, candidates, tried)
            if moved is not None:
                return moved
        lost: list[Rejected] = []
        for name, rule in self.sticky(wanted, self.bindings.find):
            account = self._by_name.get(name)
            if account is None:
                continue
            why = _why_not(account, candidates, tried)
            if why is None:
                if self._keeps_home(binding, name, candidates, tried):
                    self._stand_in(key, binding, name, candidates, tried)
                elif not _is_on_its_way(binding, name, wanted.holder):
                    self.bindings.bind(key, name, rule)
                return self._take(account, rule, wanted, candidates, tried, lost)
            if account in candidates.members and self.routing.on_account_loss != "move":
                return self._only(name, rule, wanted, candidates, tried)
            lost.append(Rejected(name, why))
        account = self._pick(candidates, tried)
        if account is None and candidates.hurry():
            account = self._pick(candidates, tried)
        if account is None:
            return self._nobody(wanted, candidates, candidates.accounts, None)
        rule = self._strategy.name
        if self._keeps_home(binding, account.name, candidates, tried):
            assert binding is not None
            rule = f"stands in for {binding.account} ({rule})"
            self._stand_in(key, binding, account.name, candidates, tried)
        else:
            self.bindings.bind(key, account.name, rule)
        return self._take(account, rule, wanted, candidates, tried, lost)

    def lacking(self, wanted: Wanted, tried: Collection[str]) -> Nobody | None:
        """Why nobody is left to choose; None while somebody is.  No place is taken."""
        candidates = self._candidates_for(wanted.model, wanted.background, wanted.chat)
        able: Sequence[Account] = candidates.accounts
        if wanted.pinned_to is not None:
            able = [each for each in able if each.name == wanted.pinned_to]
        candidates.forget()
        if any(candidates.why_not(each) is None and each.name not in tried for each in able):
            return None
        return self._nobody(wanted, candidates, able, wanted.pinned_to)

    def sticky(
        self, wanted: Wanted, find: Callable[[AffinityKey], Binding | None]
    ) -> list[tuple[str, str]]:
        """The accounts that the conversation may stick to, the strongest first (law 8).

        :param find: ``Bindings.find``, or ``look`` for one who only looks.
        :return: each with the rule that names it.
        """
        rules: dict[str, str] = {}
        bound = [(key.rule, binding) for key in wanted.keys if (binding := find(key)) is not None]
        for _, binding in bound:
            if self._comes_home(binding, wanted):
                rules[binding.account] = _RETURNS
        if wanted.holder is not None:
            rules.setdefault(wanted.holder, "holds the previous response")
        if wanted.turn_state is not None:
            rules.setdefault(wanted.turn_state, "turn state")
        for rule, binding in bound:
            rules.setdefault(binding.account, _RETURNS if self._is_away(binding) else rule)
            if binding.stand_in is not None:
                rules.setdefault(binding.stand_in, f"stands in for {binding.account}")
        return list(rules.items())

    def _comes_home(self, binding: Binding, wanted: Wanted) -> bool:
        """Whether a conversation may leave its stand-in: between its user's turns.

        Within one, which the turn state tells, the stand-in's caches are warm.
        """
        return (
            self._is_away(binding)
            and wanted.holder in (None, binding.stand_in)
            and wanted.turn_state != binding.stand_in
        )

    def _is_away(self, binding: Binding) -> bool:
        """Whether a stand-in serves the conversation, which means to return."""
        return binding.stand_in is not None and self.routing.return_to == "sticky"

    def _keeps_home(
        self, binding: Binding | None, name: str, candidates: Candidates, tried: Collection[str]
    ) -> bool:
        """Whether account ``name`` only stands in for the conversation's home.

        It does while the home cannot serve, and until the conversation was back there.
        """
        if binding is None or name == binding.account or self.routing.return_to != "sticky":
            return False
        home = self._by_name.get(binding.account)
        return home is not None and (
            binding.stand_in is not None or _why_not(home, candidates, tried) is not None
        )

    def _stand_in(
        self,
        key: AffinityKey,
        binding: Binding | None,
        name: str,
        candidates: Candidates,
        tried: Collection[str],
    ) -> None:
        if binding is not None and binding.stand_in != name:
            why = _why_not(self._by_name[binding.account], candidates, tried)
            self.bindings.stand_in(key, name, why or "")

    def _move(
        self, leaves: str, wanted: Wanted, candidates: Candidates, tried: Collection[str]
    ) -> Choice | None:
        """Any account but the one the operator wants the conversation to leave; None without."""
        account = self._pick(candidates, (leaves, *tried))
        if account is None:
            return None
        rule = f"moved away from {leaves} by the operator ({self._strategy.name})"
        self.bindings.bind(wanted.keys[-1], account.name, rule)
        return self._take(account, rule, wanted, candidates, tried, [])

    def _pick(self, candidates: Candidates, without: Collection[str]) -> Account | None:
        """The account of a conversation that sticks to none: one with room, if there is any."""

        def usable(account: Account) -> bool:
            return candidates.unavailable(account) is None and account.name not in without

        def has_room(account: Account) -> bool:
            return usable(account) and not candidates.spares(account)

        candidates.doubt()
        account = self._strategy.pick(candidates.accounts, has_room, candidates.resting)
        if account is None and candidates.forget():
            account = self._strategy.pick(candidates.accounts, usable)
        return account

    def _only(
        self,
        name: str,
        rule: str,
        wanted: Wanted,
        candidates: Candidates,
        tried: Collection[str],
    ) -> Choice | Nobody:
        """That account or none."""
        account = self._by_name.get(name)
        if account is None:
            return Nobody(wanted, (), name, ())
        if account not in candidates.members:
            return Nobody(wanted, (), None, ())
        if candidates.unavailable(account) is None and name not in tried:
            return self._take(account, rule, wanted, candidates, tried, [])
        return self._nobody(wanted, candidates, (account,), name)

    def _take(
        self,
        account: Account,
        rule: str,
        wanted: Wanted,
        candidates: Candidates,
        tried: Collection[str],
        lost: list[Rejected],
    ) -> Choice:
        others = self._others(account, candidates, tried, lost)
        reservation = account.reserve(wanted.model, self._release)
        return Choice(reservation, rule, len(candidates.accounts), others)

    def _others(
        self,
        chosen: Account,
        candidates: Candidates,
        tried: Collection[str],
        lost: list[Rejected],
    ) -> tuple[Rejected, ...]:
        """Why not the accounts that were named before, and some of the rest."""
        whys = dict(lost)
        for name in tried:
            whys.setdefault(name, _TRIED)
        for each in candidates.accounts[: _EXPLAINED + 1]:
            if each is not chosen and each.name not in whys:
                blocked = candidates.why_not(each)
                whys[each.name] = _NOT_NEEDED if blocked is None else blocked.why
        return tuple(map(Rejected._make, islice(whys.items(), _EXPLAINED)))

    def _nobody(
        self,
        wanted: Wanted,
        candidates: Candidates,
        able: Sequence[Account],
        waits_for: str | None,
    ) -> Nobody:
        """:param able: those of the candidates that would do."""
        reasons = map(candidates.why_not, able)
        return Nobody(
            wanted, able, waits_for, tuple(reason for reason in reasons if reason is not None)
        )

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


def _why_not(account: Account, candidates: Candidates, tried: Collection[str]) -> str | None:
    """Why the turn cannot go to ``account`` now, by its own word; None when it can."""
    if account not in candidates.members:
        return _NOT_OFFERED
    blocked = candidates.unavailable(account)
    if blocked is not None:
        return blocked.why or blocked.state.value
    return _TRIED if account.name in tried else None


def _is_on_its_way(binding: Binding | None, name: str, holder: str | None) -> bool:
    """Whether this turn brings the conversation home: it is there once the home has answered."""
    away = binding is not None and name == binding.account and binding.stand_in is not None
    return away and holder is not None and holder != name


def _nobody_waits() -> None:
    """Nobody waits for a place."""
