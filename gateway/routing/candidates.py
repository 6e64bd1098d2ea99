"""The accounts that offer one model, and which of them are known to rest or to be used up."""

from __future__ import annotations

from collections.abc import Callable

from gateway.routing.account import Account
from gateway.routing.health import AccountState, Unavailable

#: How long, in seconds, an account that rests is not asked again whether it still does.
_BELIEVED_SECONDS = 1.0

#: How long a service that broke rests, in seconds, while no account works.
_HURRIED_SECONDS = 10.0

#: Why an account that could serve is passed over.
_SPARED = Unavailable(AccountState.READY, "a quota of it is used up", None)


class Candidates:
    """Those among which a new conversation may choose.

    In a large pool of which much rests, asking every account for each choice would cost
    more than all else; so what they say is believed for a moment.  A choice that would find
    nobody because of that asks everybody anew.

    :param accounts: in the operator's order.
    :param now: unix seconds.
    :ivar members: the same accounts, for a quick look.
    :ivar resting: those that said so of late, and why; and those that are spared.
    """

    __slots__ = (
        "_believed_until",
        "_model",
        "_now",
        "_others_have_room",
        "accounts",
        "members",
        "resting",
    )

    def __init__(
        self, accounts: tuple[Account, ...], model: str | None, now: Callable[[], float]
    ) -> None:
        self.accounts = accounts
        self.members = frozenset(accounts)
        self.resting: dict[Account, Unavailable] = {}
        self._others_have_room: bool | None = None
        self._believed_until = 0.0
        self._model = model
        self._now = now

    def unavailable(self, account: Account) -> Unavailable | None:
        """Why ``account`` cannot serve, by its own word."""
        blocked = account.unavailable(self._model)
        if blocked is not None:
            self.resting[account] = blocked
            if blocked.until is None and blocked.state is AccountState.READY:
                account.tell_when_free(self._free)  # it is only busy
        elif account in self.resting:
            del self.resting[account]
        return blocked

    def spares(self, account: Account) -> bool:
        """Whether ``account``, which could serve, is known to be used up, and another is not."""
        if not account.health.spent:
            return False
        if self._others_have_room is None:
            fresh = (each for each in self.accounts if not each.health.spent)
            self._others_have_room = any(self.unavailable(each) is None for each in fresh)
        if self._others_have_room:
            self.resting[account] = _SPARED
        return self._others_have_room

    def awaits_reset(self, account: Account) -> bool:
        """Whether ``account`` refused a turn until its quota resets, and another can serve."""
        return account.health.awaits_reset and self.spares(account)

    def why_not(self, account: Account) -> Unavailable | None:
        """The same, as known without asking again."""
        return self.resting.get(account) or self.unavailable(account)

    def hurry(self) -> bool:
        """Where nobody works, not even a busy one, let services that broke rest no longer.

        The machine's own network may have been away; all would rest long after it is back.

        :return: whether anybody would have rested longer.
        """
        reasons = map(self.why_not, self.accounts)
        if any(reason is None or reason.state is AccountState.READY for reason in reasons):
            return False
        hurried = [each.health.hurry(_HURRIED_SECONDS) for each in self.accounts]
        return any(hurried)

    def doubt(self) -> None:
        """Believe what is known no longer than a moment; no clock that jumps makes it longer."""
        now = self._now()
        if not now < self._believed_until <= now + _BELIEVED_SECONDS:
            self.forget()
            self._believed_until = now + _BELIEVED_SECONDS

    def _free(self, account: Account) -> None:
        self.resting.pop(account, None)

    def forget(self) -> bool:
        """Believe nothing; False when nothing was believed anyway."""
        known = bool(self.resting)
        self.resting.clear()
        self._others_have_room = None
        return known
