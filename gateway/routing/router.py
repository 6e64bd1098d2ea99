"""The router: which account an attempt goes to, and by which rule (design law 8, law 15).

The rules are tried in order, and the first that finds an account wins: the account that a context
is pinned to; any other one, if the operator moves the conversation; the accounts of its affinity,
the strongest first; the account that the routing strategy picks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import lru_cache
from itertools import islice

from gateway.config import RoutingSettings
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, Binding, BindingEffect, Bindings, BindingUpdate
from gateway.routing.health import AccountState, Unavailable
from gateway.routing.selection import FOLLOWS, DryRun, NoAccount, RouteRequest, Selection
from gateway.routing.strategies import Pick, Skipped, Usable, strategy

#: Accounts whose rejection is explained, for a turn and for a dry run.
_EXPLAINED = 12
_EXPLAINED_IN_DRY_RUN = 200

#: Models whose accounts are cached, and their longest name; clients choose the names.
MAX_MODELS = 256
_MAX_MODEL_NAME = 200

#: How long an account is known to be unavailable before it is asked again, in seconds.
_KNOWN_SECONDS = 1.0

#: How long a broken service cools down while no account works, in seconds.
_SHORT_COOLDOWN_SECONDS = 10.0

#: The reason for an account that is passed over, though it could serve.
_PASSED_OVER = Unavailable(AccountState.READY, "a quota of it is used up", None)

_RETURNS = "returns to its account"
_MADE = "made the history of the request"
_TRIED = "refused this turn"
_NOT_NEEDED = "another was named"
_NOT_OFFERED = "does not take such turns"
_USED_UP = "its quota is used up"
_IN_DOUBT = "has not answered well since it refused"

_FindBinding = Callable[[AffinityKey], Binding | None]
_Decision = tuple[Account, str, BindingEffect, str]


class AccountPool:
    """All accounts, and the router among them.

    :param accounts: in the operator's order.
    :param bindings: the account of each conversation; the pool uses its clock.
    :param routing: the rules of choosing.
    :ivar released: called when a lease was released.
    :ivar strategy: picks an account for a conversation without affinity.
    """

    def __init__(
        self,
        accounts: Sequence[Account],
        bindings: Bindings,
        routing: RoutingSettings | None = None,
    ) -> None:
        self.bindings = bindings
        self.released: Callable[[], None] = lambda: None
        self.reconfigure(accounts, routing or RoutingSettings())

    def reconfigure(self, accounts: Sequence[Account], routing: RoutingSettings) -> None:
        """Take these accounts and rules from now on; conversations keep their bindings."""
        self.accounts = tuple(accounts)
        self.routing = routing
        self.by_name = {account.name: account for account in accounts}
        self.strategy = strategy(routing.strategy)
        self._candidates = lru_cache(MAX_MODELS)(self._find_candidates)

    @property
    def models_remembered(self) -> int:
        """Models whose accounts are cached; at most :data:`MAX_MODELS`."""
        return self._candidates.cache_info().currsize

    def named(self, name: str) -> Account | None:
        """The account of that name."""
        return self.by_name.get(name)

    def choose(self, wanted: RouteRequest, tried: Collection[str] = ()) -> Selection | NoAccount:
        """Choose an account and take a lease on it, in one step.

        :param tried: names of accounts that refused this turn already.
        """
        candidates = self._candidates_for(wanted.model, wanted.background, wanted.chat)
        choice = _Choice(self, candidates, wanted, tried)
        found = choice.decide(self.bindings.find, self.strategy.pick)
        if isinstance(found, NoAccount) and found.any_would_do and candidates.shorten_cooldowns():
            choice = _Choice(self, candidates, wanted, tried)
            found = choice.decide(self.bindings.find, self.strategy.pick)
        if isinstance(found, NoAccount):
            return found
        account, rule, effect, why = found
        update: BindingUpdate | None = None
        if effect is not BindingEffect.NONE:
            update = BindingUpdate(self.bindings, wanted.keys[-1], account.name, effect, why)
        others = choice.others(account, _EXPLAINED)
        lease = account.lease(wanted.model, self._release, update)
        return Selection(lease, rule, len(candidates.all), others)

    def follow(self, account: Account, model: str | None) -> Selection:
        """A lease on an account that has begun to answer without being asked."""
        return Selection(account.lease(model, self._release), FOLLOWS, 1, {})

    def none_left(self, wanted: RouteRequest, tried: Collection[str]) -> NoAccount | None:
        """Why no account is left to choose; None while there is one.  No lease is taken."""
        candidates = self._candidates_for(wanted.model, wanted.background, wanted.chat)
        return _Choice(self, candidates, wanted, tried).none_left()

    def explain(self, wanted: RouteRequest) -> DryRun:
        """What :meth:`choose` would decide, without a lease and without changing any binding.

        If no account can serve, :meth:`choose` may shorten the cooldowns of broken services; this
        does not.
        """
        among: list[Account] = []

        def predict(
            eligible: Sequence[Account], usable: Usable, skipped: Skipped
        ) -> Account | None:
            among[:] = self.strategy.may_pick(eligible, usable, skipped)
            return next(iter(among), None)

        candidates = self._candidates_for(wanted.model, wanted.background, wanted.chat)
        candidates.forget()  # so that this and the next choice use the current state
        choice = _Choice(self, candidates, wanted, ())
        found = choice.decide(self.bindings.peek, predict)
        account = None if isinstance(found, NoAccount) else found[0]
        rule = found.rule if isinstance(found, NoAccount) else found[1]
        names = tuple(each.name for each in among)
        others = choice.others(account, _EXPLAINED_IN_DRY_RUN)
        return DryRun(
            account=None if account is None or len(names) > 1 else account.name,
            rule=rule if candidates.all else "no account offers this",
            among=names,
            candidates=tuple(each.name for each in candidates.all),
            rejected={name: why for name, why in others.items() if name not in names},
            waits_for=found.waits_for if isinstance(found, NoAccount) else None,
        )

    def _release(self) -> None:
        self.released()

    def _candidates_for(self, model: str | None, background: bool, chat: bool) -> _Candidates:
        if model is not None and len(model) > _MAX_MODEL_NAME:
            return self._find_candidates(model, background, chat)
        return self._candidates(model, background, chat)

    def _find_candidates(self, model: str | None, background: bool, chat: bool) -> _Candidates:
        found = tuple(
            account
            for account in self.accounts
            if account.serves(model)
            and (account.settings.background or not background)
            and (account.settings.chat_completions or not chat)
        )
        all_of_them = len(found) == len(self.accounts)
        return _Candidates(self.accounts if all_of_them else found, model, self.bindings.now)


class _Candidates:
    """The accounts that offer one model, with a short-lived cache of those that are unavailable.

    In a large pool of which many accounts cool down, asking each account for every choice would
    cost more than everything else.  A choice that finds no account because of the cache asks all
    accounts again.

    :ivar all: in the operator's order.
    :ivar members: the same accounts, as a set.
    :ivar known: the cached reasons of accounts that are unavailable or passed over.
    """

    __slots__ = (
        "_known_until",
        "_now",
        "_others_have_room",
        "all",
        "known",
        "members",
        "model",
    )

    def __init__(
        self, accounts: tuple[Account, ...], model: str | None, now: Callable[[], float]
    ) -> None:
        self.all = accounts
        self.members = frozenset(accounts)
        self.model = model
        self.known: dict[Account, Unavailable] = {}
        self._others_have_room: bool | None = None
        self._known_until = 0.0
        self._now = now

    def unavailable(self, account: Account) -> Unavailable | None:
        """Ask ``account`` why it cannot serve, and cache the reason."""
        blocked = account.unavailable(self.model)
        if blocked is not None:
            self.known[account] = blocked
            if blocked.until is None and blocked.state is AccountState.READY:
                account.call_when_free(self._free)  # it is only busy
        elif account in self.known:
            del self.known[account]
        return blocked

    def why_not(self, account: Account) -> Unavailable | None:
        """Why ``account`` cannot serve, from the cache if possible."""
        return self.known.get(account) or self.unavailable(account)

    def passes_over(self, account: Account) -> bool:
        """Whether the quota of ``account`` is used up while another account can serve."""
        if not account.health.spent:
            return False
        if self._others_have_room is None:
            fresh = (each for each in self.all if not each.health.spent)
            self._others_have_room = any(self.unavailable(each) is None for each in fresh)
        if self._others_have_room:
            self.known[account] = _PASSED_OVER
        return self._others_have_room

    def shorten_cooldowns(self) -> bool:
        """If no account works, not even a busy one, shorten the cooldowns of services.

        The machine's own network may have failed, and all accounts would cool down long after it
        is back.

        :return: whether one of the cooldowns was shortened.
        """
        reasons = map(self.why_not, self.all)
        if any(reason is None or reason.state is AccountState.READY for reason in reasons):
            return False
        seconds = _SHORT_COOLDOWN_SECONDS
        shortened = [each.health.shorten_service_cooldown(seconds) for each in self.all]
        return any(shortened)

    def expire(self) -> None:
        """Clear the cache when it is too old, also after a jump of the clock."""
        now = self._now()
        if not now < self._known_until <= now + _KNOWN_SECONDS:
            self.forget()
            self._known_until = now + _KNOWN_SECONDS

    def forget(self) -> bool:
        """Clear the cache; False if it was empty."""
        believed = bool(self.known)
        self.known.clear()
        self._others_have_room = None
        return believed

    def _free(self, account: Account) -> None:
        self.known.pop(account, None)


class _Choice:
    """One choice.  It decides and changes nothing.

    :param tried: names of accounts that refused this turn already.
    """

    __slots__ = ("_binding", "_candidates", "_lost", "_pool", "_tried", "_wanted")

    def __init__(
        self,
        pool: AccountPool,
        candidates: _Candidates,
        wanted: RouteRequest,
        tried: Collection[str],
    ) -> None:
        self._pool = pool
        self._candidates = candidates
        self._wanted = wanted
        self._tried = tried
        #: The binding of the last key.
        self._binding: Binding | None = None
        #: Accounts of the conversation's affinity that cannot serve, and why.
        self._lost: dict[str, str] = {}

    def decide(self, find: _FindBinding, pick: Pick) -> _Decision | NoAccount:
        """The account, the rule, the effect on the binding, and its reason.

        :param find: ``Bindings.find``, or ``peek`` for a dry run.
        :param pick: the strategy's, for conversations without affinity.
        """
        wanted = self._wanted
        if wanted.pinned_to is not None:
            return self._by_pin(wanted.pinned_to)
        bound: list[tuple[str, Binding | None]] = []
        for key in wanted.keys:
            binding = find(key)
            if binding is not None and not binding.answered:
                account = self._pool.by_name.get(binding.account)
                if account is None or self._why_not(account) is not None:
                    binding = None  # it was only tentative
            bound.append((key.rule, binding))
        self._binding = bound[-1][1]
        moved = None
        if self._binding is not None and self._binding.leaves is not None:
            moved = self._by_operator(pick, self._binding.leaves)
        return moved or self._by_affinity(bound) or self._by_strategy(pick)

    def others(self, chosen: Account | None, most: int) -> dict[str, str]:
        """Why other accounts were not chosen: those of the affinity first, then some others."""
        whys = self._lost.copy()
        for name in self._tried:
            account = self._pool.by_name.get(name)
            blocked = None if account is None else self._candidates.why_not(account)
            whys.setdefault(name, _TRIED if blocked is None else _words(blocked))
        for each in self._candidates.all[: most + 1]:
            if each is not chosen and each.name not in whys:
                blocked = self._candidates.why_not(each)
                if blocked is not None:
                    whys[each.name] = _words(blocked)
                elif self._wanted.undoubted and self._is_left_out(each):
                    whys[each.name] = _IN_DOUBT
                else:
                    whys[each.name] = _NOT_NEEDED
        return whys if len(whys) <= most else dict(islice(whys.items(), most))

    def none_left(self) -> NoAccount | None:
        """Why no account is left; None while there is one."""
        candidates, pinned_to = self._candidates, self._wanted.pinned_to
        able: Sequence[Account] = candidates.all
        if pinned_to is not None:
            able = [each for each in able if each.name == pinned_to]
        candidates.forget()
        if any(self._why_not(each) is None for each in able):
            return None
        rule = self._pool.strategy.name if pinned_to is None else self._wanted.pin_rule
        return self._no_account(able, pinned_to, rule)

    # --- the rules -------------------------------------------------------------------

    def _by_pin(self, name: str) -> _Decision | NoAccount:
        """The only account that can read the context, if it is available."""
        account, rule = self._pool.by_name.get(name), self._wanted.pin_rule
        if account is None:
            return self._no_account((), name, rule)
        if account not in self._candidates.members:
            return self._no_account((), None, rule)
        if self._why_not(account) is None:
            return account, rule, BindingEffect.NONE, ""
        return self._no_account((account,), name, rule)

    def _by_operator(self, pick: Pick, leaves: str) -> _Decision | None:
        """Any account but the one that the conversation should leave (operator action)."""
        account = self._pick(pick, (leaves, *self._tried))
        if account is None:
            return None
        rule = f"moved away from {leaves} by the operator ({self._pool.strategy.name})"
        return account, rule, BindingEffect.BIND, rule

    def _by_affinity(
        self, bound: Sequence[tuple[str, Binding | None]]
    ) -> _Decision | NoAccount | None:
        """The strongest account of the conversation's affinity that can serve."""
        moves = self._pool.routing.on_account_loss == "move"
        for name, rule in self._affinity_rules(bound).items():
            account = self._pool.by_name.get(name)
            if account is None:
                continue
            why = self._why_not(account)
            if why is None and not (
                # It refuses turns until its quota resets, and another account can serve.
                moves and account.health.awaits_reset and self._candidates.passes_over(account)
            ):
                return self._decided(account, rule)
            if account in self._candidates.members and not moves:
                return self._no_account((account,), name, rule)
            self._lost[name] = why or _USED_UP
        return None

    def _by_strategy(self, pick: Pick) -> _Decision | NoAccount:
        """The account that the strategy picks."""
        rule = self._pool.strategy.name
        account = self._pick(pick, self._tried)
        if account is None:
            return self._no_account(self._candidates.all, None, rule)
        home = self._stood_in_for(account)
        if home is not None:
            rule = f"stands in for {home.name} ({rule})"
        return self._decided(account, rule)

    # --- helpers of the rules --------------------------------------------------------

    def _affinity_rules(self, bound: Sequence[tuple[str, Binding | None]]) -> dict[str, str]:
        """The accounts of the conversation's affinity, the strongest first (law 8).

        A conversation leaves its stand-in only between turns of its user.  Within one, which the
        turn state shows, the stand-in's prompt cache is warm.

        :return: the rule of each account.
        """
        wanted, returns = self._wanted, self._pool.routing.return_to == "sticky"
        rules: dict[str, str] = {}
        for _, binding in bound:
            if (
                returns
                and binding is not None
                and binding.stand_in is not None
                and wanted.holder in (None, binding.stand_in)
                and wanted.turn_state != binding.stand_in
            ):
                rules[binding.account] = _RETURNS
        if wanted.holder is not None:
            rules.setdefault(wanted.holder, "holds the previous response")
        if wanted.turn_state is not None:
            rules.setdefault(wanted.turn_state, "turn state")
        for rule, binding in bound:
            if binding is not None:
                away = returns and binding.stand_in is not None
                rules.setdefault(binding.account, _RETURNS if away else rule)
                if binding.stand_in is not None:
                    rules.setdefault(binding.stand_in, f"stands in for {binding.account}")
        if wanted.maker is not None:
            rules.setdefault(wanted.maker, _MADE)
        return rules

    def _decided(self, account: Account, rule: str) -> _Decision:
        """The decision, with its effect on the conversation's binding."""
        binding = self._binding
        if binding is None or not binding.answered:
            return account, rule, BindingEffect.BEGIN, rule
        if account.name == binding.account:
            # It returns from a stand-in only when its own account has answered.
            on_its_way = self._wanted.holder not in (None, account.name)
            away = binding.stand_in is not None and on_its_way
            return account, rule, BindingEffect.NONE if away else BindingEffect.BIND, rule
        home = self._stood_in_for(account)
        if home is None:
            return account, rule, BindingEffect.BIND, rule
        if binding.stand_in == account.name:
            return account, rule, BindingEffect.NONE, rule
        return account, rule, BindingEffect.STAND_IN, self._why_not_home(home) or ""

    def _stood_in_for(self, account: Account) -> Account | None:
        """The conversation's own account, if ``account`` would only stand in for it.

        That is so while the own account cannot serve, and until the conversation has returned.
        """
        binding = self._binding
        if binding is None or self._pool.routing.return_to != "sticky":
            return None
        home = self._pool.by_name.get(binding.account)
        if home is None or home is account:
            return None
        away = binding.stand_in is not None or self._why_not_home(home) is not None
        return home if away else None

    def _why_not_home(self, home: Account) -> str | None:
        """Why the conversation's own account does not get this turn; None if it could."""
        return self._lost.get(home.name) or self._why_not(home)

    def _pick(self, pick: Pick, without: Collection[str]) -> Account | None:
        """The strategy's pick, preferring accounts whose quota is not used up."""
        candidates = self._candidates

        def usable(account: Account) -> bool:
            return (
                candidates.unavailable(account) is None
                and account.name not in without
                and not self._is_left_out(account)
            )

        def has_room(account: Account) -> bool:
            return usable(account) and not candidates.passes_over(account)

        candidates.expire()
        account = pick(candidates.all, has_room, candidates.known)
        if account is None and candidates.forget():
            account = pick(candidates.all, usable, ())
        return account

    def _why_not(self, account: Account) -> str | None:
        """Why the turn cannot be sent to ``account`` now; None if it can."""
        if account not in self._candidates.members:
            return _NOT_OFFERED
        blocked = self._candidates.unavailable(account)
        if blocked is not None:
            return _words(blocked)
        if account.name in self._tried:
            return _TRIED
        return _IN_DOUBT if self._wanted.undoubted and self._is_left_out(account) else None

    def _is_left_out(self, account: Account) -> bool:
        wanted = self._wanted
        return wanted.undoubted and account.health.in_doubt(wanted.model)

    def _no_account(self, able: Sequence[Account], waits_for: str | None, rule: str) -> NoAccount:
        """:param able: the candidates that could serve."""
        reasons = (self._candidates.why_not(each) for each in able if not self._is_left_out(each))
        known = tuple(reason for reason in reasons if reason is not None)
        return NoAccount(self._wanted, able, waits_for, known, rule)


def _words(blocked: Unavailable) -> str:
    return blocked.why or blocked.state.value
