"""Which account an attempt goes to, and by which rule: decided, and nothing changed by it.

The pool carries decisions out; a dry run shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from gateway.config import RoutingSettings
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.routing.bindings import Binding
from gateway.routing.candidates import Candidates
from gateway.routing.selection import NoAccount, RejectedAccount, RouteRequest
from gateway.routing.settling import FailureEffect
from gateway.routing.strategies import Picker

_RETURNS = "returns to its account"
_TRIED = "refused this turn"
_NOT_NEEDED = "another was named"
_NOT_OFFERED = "does not take such turns"
_USED_UP = "its quota is used up"
_IN_DOUBT = "has not answered well since it refused"


class RoutingDecision(NamedTuple):
    """The account of an attempt.

    :ivar rule: the one that named it.
    :ivar ails: why the conversation's home cannot serve, where the account stands in for it.
    """

    account: Account
    rule: str
    effect: FailureEffect = FailureEffect.NONE
    ails: str = ""


class Router:
    """One decision; the rules in their order.

    :param named: all accounts by name.
    :param candidates: those that offer what is wanted.
    :param tried: names of accounts that refused this turn already.
    :param find: the binding of a key.
    :param strategy: asked where a conversation sticks to no account; whether anybody has had
        a turn by that is its own affair.
    """

    __slots__ = (
        "_binding",
        "_find",
        "_lost",
        "_named",
        "_routing",
        "_strategy",
        "_tried",
        "_wanted",
        "candidates",
    )

    def __init__(
        self,
        named: Mapping[str, Account],
        routing: RoutingSettings,
        candidates: Candidates,
        wanted: RouteRequest,
        tried: Collection[str],
        find: Callable[[AffinityKey], Binding | None],
        strategy: Picker,
    ) -> None:
        self.candidates = candidates
        self._named = named
        self._routing = routing
        self._wanted = wanted
        self._tried = tried
        self._find = find
        self._strategy = strategy
        #: Of the key that lasts.
        self._binding: Binding | None = None
        #: Accounts that the conversation sticks to, and why they cannot serve.
        self._lost: dict[str, str] = {}

    def decide(self) -> RoutingDecision | NoAccount:
        """The account, or why there is none; to be asked once."""
        wanted = self._wanted
        if wanted.pinned_to is not None:
            return self._pinned(wanted.pinned_to)
        bound = [(key.rule, self._followed(self._find(key))) for key in wanted.keys]
        self._binding = bound[-1][1]
        return self._moved() or self._stuck(bound) or self._fresh()

    def others(self, chosen: Account | None, most: int) -> tuple[RejectedAccount, ...]:
        """Why not the accounts that were named before, and some of the rest."""
        whys = self._lost.copy()
        for name in self._tried:
            whys.setdefault(name, self._since_it_refused(name))
        for each in self.candidates.accounts[: most + 1]:
            if each is not chosen and each.name not in whys:
                blocked = self.candidates.why_not(each)
                if blocked is not None:
                    whys[each.name] = blocked.why or blocked.state.value
                else:
                    whys[each.name] = _IN_DOUBT if self._is_left_out(each) else _NOT_NEEDED
        return tuple(map(RejectedAccount._make, islice(whys.items(), most)))

    def _since_it_refused(self, name: str) -> str:
        account = self._named.get(name)
        blocked = None if account is None else self.candidates.why_not(account)
        return _TRIED if blocked is None else blocked.why or blocked.state.value

    def lacking(self) -> NoAccount | None:
        """Why nobody is left to name; None while somebody is."""
        candidates, pinned_to = self.candidates, self._wanted.pinned_to
        able: Sequence[Account] = candidates.accounts
        if pinned_to is not None:
            able = [each for each in able if each.name == pinned_to]
        candidates.forget()
        if any(self._why_not(each) is None for each in able):
            return None
        rule = self._strategy.name if pinned_to is None else self._wanted.pin_rule
        return self._nobody(able, pinned_to, rule)

    # --- the rules, the first that names somebody wins -------------------------------------

    def _pinned(self, name: str) -> RoutingDecision | NoAccount:
        """The one account that can read the context, or none."""
        account, rule = self._named.get(name), self._wanted.pin_rule
        if account is None:
            return self._nobody((), name, rule)
        if account not in self.candidates.members:
            return self._nobody((), None, rule)
        if self._why_not(account) is None:
            return RoutingDecision(account, rule)
        return self._nobody((account,), name, rule)

    def _moved(self) -> RoutingDecision | None:
        """Any account but the one the operator wants the conversation to leave."""
        binding = self._binding
        if binding is None or binding.leaves is None:
            return None
        account = self._pick((binding.leaves, *self._tried))
        if account is None:
            return None
        rule = f"moved away from {binding.leaves} by the operator ({self._strategy.name})"
        return RoutingDecision(account, rule, FailureEffect.BIND)

    def _stuck(
        self, bound: Sequence[tuple[str, Binding | None]]
    ) -> RoutingDecision | NoAccount | None:
        """The strongest of the accounts that the conversation sticks to, of those that can."""
        for name, rule in self._sticky(bound).items():
            account = self._named.get(name)
            if account is None:
                continue
            why = self._why_not(account)
            moves = self._routing.on_account_loss == "move"
            if why is None and not (moves and self.candidates.awaits_reset(account)):
                return self._decided(account, rule)
            if account in self.candidates.members and not moves:
                return self._nobody((account,), name, rule)
            self._lost[name] = why or _USED_UP
        return None

    def _fresh(self) -> RoutingDecision | NoAccount:
        """Any account: the strategy's next."""
        rule = self._strategy.name
        account = self._pick(self._tried)
        if account is None:
            return self._nobody(self.candidates.accounts, None, rule)
        home = self._stood_in_for(account)
        return self._decided(
            account, rule if home is None else f"stands in for {home.name} ({rule})"
        )

    def _followed(self, binding: Binding | None) -> Binding | None:
        """The binding; one that no account has answered yet only while its account can serve."""
        if binding is None or binding.answered:
            return binding
        account = self._named.get(binding.account)
        return binding if account is not None and self._why_not(account) is None else None

    # --- what they go by -------------------------------------------------------------------

    def _sticky(self, bound: Sequence[tuple[str, Binding | None]]) -> dict[str, str]:
        """The accounts that the conversation may stick to, the strongest first (law 8).

        :return: each with the rule that names it.
        """
        wanted = self._wanted
        rules: dict[str, str] = {}
        for _, binding in bound:
            if binding is not None and self._comes_home(binding):
                rules[binding.account] = _RETURNS
        if wanted.holder is not None:
            rules.setdefault(wanted.holder, "holds the previous response")
        if wanted.turn_state is not None:
            rules.setdefault(wanted.turn_state, "turn state")
        for rule, binding in bound:
            if binding is not None:
                rules.setdefault(binding.account, _RETURNS if self._is_away(binding) else rule)
                if binding.stand_in is not None:
                    rules.setdefault(binding.stand_in, f"stands in for {binding.account}")
        return rules

    def _comes_home(self, binding: Binding) -> bool:
        """Whether a conversation may leave its stand-in: between its user's turns.

        Within one, which the turn state tells, the stand-in's caches are warm.
        """
        return (
            self._is_away(binding)
            and self._wanted.holder in (None, binding.stand_in)
            and self._wanted.turn_state != binding.stand_in
        )

    def _is_away(self, binding: Binding) -> bool:
        """Whether a stand-in serves the conversation, which means to return."""
        return binding.stand_in is not None and self._routing.return_to == "sticky"

    def _stood_in_for(self, account: Account) -> Account | None:
        """The conversation's home, where ``account`` would only stand in for it.

        It would while the home cannot serve, and until the conversation was back there.
        """
        binding = self._binding
        if binding is None or self._routing.return_to != "sticky":
            return None
        home = self._named.get(binding.account)
        if home is None or home is account:
            return None
        away = binding.stand_in is not None or self._ails(home) is not None
        return home if away else None

    def _ails(self, home: Account) -> str | None:
        """Why the conversation's home does not get this turn; None when it could."""
        return self._lost.get(home.name) or self._why_not(home)

    def _is_on_its_way(self, account: Account) -> bool:
        """Whether this turn brings the conversation home: it is there once the home answered."""
        binding, holder = self._binding, self._wanted.holder
        if binding is None or binding.stand_in is None or account.name != binding.account:
            return False
        return holder is not None and holder != account.name

    def _decided(self, account: Account, rule: str) -> RoutingDecision:
        binding = self._binding
        if binding is None or not binding.answered:
            return RoutingDecision(account, rule, FailureEffect.BEGIN)
        home = self._stood_in_for(account)
        if home is not None and binding.stand_in != account.name:
            return RoutingDecision(account, rule, FailureEffect.STAND_IN, self._ails(home) or "")
        if home is not None or self._is_on_its_way(account):
            return RoutingDecision(account, rule)
        return RoutingDecision(account, rule, FailureEffect.BIND)

    def _pick(self, without: Collection[str]) -> Account | None:
        """The account of a conversation that sticks to none: one with room, if there is any."""
        candidates = self.candidates

        def usable(account: Account) -> bool:
            return (
                candidates.unavailable(account) is None
                and account.name not in without
                and not self._is_left_out(account)
            )

        def has_room(account: Account) -> bool:
            return usable(account) and not candidates.spares(account)

        candidates.doubt()
        account = self._strategy.pick(candidates.accounts, has_room, candidates.resting)
        if account is None and candidates.forget():
            account = self._strategy.pick(candidates.accounts, usable)
        return account

    def _why_not(self, account: Account) -> str | None:
        """Why the turn cannot go to ``account`` now, by its own word; None when it can."""
        if account not in self.candidates.members:
            return _NOT_OFFERED
        blocked = self.candidates.unavailable(account)
        if blocked is not None:
            return blocked.why or blocked.state.value
        if account.name in self._tried:
            return _TRIED
        return _IN_DOUBT if self._is_left_out(account) else None

    def _is_left_out(self, account: Account) -> bool:
        wanted = self._wanted
        return wanted.undoubted and account.health.in_doubt(wanted.model)

    def _nobody(self, able: Sequence[Account], waits_for: str | None, rule: str) -> NoAccount:
        """:param able: those of the candidates that would do."""
        reasons = (self.candidates.why_not(each) for each in able if not self._is_left_out(each))
        told = tuple(reason for reason in reasons if reason is not None)
        return NoAccount(self._wanted, able, waits_for, told, rule)
