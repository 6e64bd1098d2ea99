"""What an attempt makes of its conversation's binding: decided with the choice, and done once the
account has answered."""

from __future__ import annotations

import enum

from gateway.routing.affinity import AffinityKey
from gateway.routing.bindings import Bindings


class FailureEffect(enum.Enum):
    """What a decision makes of the conversation's binding."""

    NONE = "nothing"
    BEGIN = "the account is its home, if it is the first that answers"
    BIND = "the account is its home, and nobody stands in for it any longer"
    STAND_IN = "the account stands in for its home"


class Settling:
    """One attempt's.

    Turns of a new conversation that run side by side go to one account: it is expected there
    from its first choice on.  Its home is who answers it.

    :param why: the rule that named the account; for a stand-in, what ails the home.
    """

    __slots__ = ("_account", "_bindings", "_effect", "_key", "_why")

    def __init__(
        self, bindings: Bindings, key: AffinityKey, account: str, effect: FailureEffect, why: str
    ) -> None:
        self._bindings = bindings
        self._key = key
        self._account = account
        self._effect = effect
        self._why = why
        if effect is FailureEffect.BEGIN:
            bindings.expect(key, account, why)
        elif effect is FailureEffect.STAND_IN:
            bindings.stand_in(key, account, why)

    def answered(self) -> None:
        """The account took the turn up."""
        if self._effect is FailureEffect.BEGIN:
            self._bindings.settle(self._key, self._account, self._why)
        elif self._effect is FailureEffect.BIND:
            self._bindings.bind(self._key, self._account, self._why)

    def unanswered(self) -> None:
        """It did not, and the attempt is over."""
        if self._effect is FailureEffect.BEGIN:
            self._bindings.withdraw(self._key, self._account)
