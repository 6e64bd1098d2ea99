"""A turn's place on an account: taken with the choice, given back when the attempt is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.protocol.error_classification import Fault
from gateway.routing.health import Permit
from gateway.routing.settling import Settling

if TYPE_CHECKING:
    from gateway.routing.account import Account


class Lease:
    """One attempt's place.

    :ivar account: where it is.
    :param released: hears when it is free again.
    :param settling: what becomes of the conversation's binding, or None.
    """

    __slots__ = (
        "_held",
        "_model",
        "_permit",
        "_released",
        "_settling",
        "_spent",
        "_works",
        "account",
    )

    def __init__(
        self,
        account: Account,
        model: str | None,
        permit: Permit,
        released: Callable[[], None],
        settling: Settling | None = None,
    ) -> None:
        self.account = account
        self._model = model
        self._permit = permit
        self._released = released
        self._settling = settling
        self._held = True
        self._spent = False
        self._works = False

    def answered(self) -> None:
        """The account answered, be it what shows nothing of its limits: here is the home."""
        settling, self._settling = self._settling, None
        if settling is not None:
            settling.answered()

    def acknowledged(self) -> None:
        """The upstream took the turn up: whatever kept others away from it is over."""
        if not self._spent:
            self._spent = self._works = True
            self._permit.acknowledged()
            self.answered()

    def refused(self, fault: Fault) -> None:
        """The attempt failed, and this is whose fault it was.

        A failure after the upstream took the turn up is news of its own.
        """
        self._works = False
        if self._spent:
            self.account.health.broke(self._model, fault, self._permit)
        else:
            self._spent = True
            self._permit.refused(fault)

    def release(self) -> None:
        """The attempt is over.  An attempt that was only cancelled says nothing of the account."""
        if self._held:
            self._held = False
            self.account.leave()
            if self._works:
                self.account.health.ended_well()
            self._permit.dropped()
            if self._settling is not None:
                self._settling.unanswered()
            self._released()
