"""Where a passage may go, and in what order: chosen by the pool, or known accounts in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from gateway.api_keys.interface import Visit
from gateway.protocol.error_classification import Fault
from gateway.protocol.errors import ApiError
from gateway.protocol.refusals import for_the_client, most_hopeful
from gateway.routing.account import Account


class Place(Protocol):
    """A place on an account; see :class:`~gateway.routing.lease.Lease`."""

    def answered(self) -> None:
        """The upstream answered the request."""

    def acknowledged(self) -> None:
        """The upstream took up a request that a model works on."""

    def refused(self, fault: Fault) -> None:
        """The attempt failed, and this is whose fault it was."""

    def release(self) -> None:
        """The attempt is over."""


class Itinerary(Protocol):
    """Finds the accounts of one passage, as an account search does.

    :ivar visit: what the tenant's limits hold for it, or None.
    """

    visit: Visit | None

    def next(self) -> None:
        """Find the next account; the owner hears of it at once or later."""

    def refused(self, account: Account, error: ApiError) -> None:
        """``account`` did not serve it; it will not be asked again for now."""

    def stop(self) -> None:
        """Nothing is searched any more."""


class Known(NamedTuple):
    """An account that may keep what is asked for, and the rule that names it."""

    account: Account
    rule: str


class InTurn:
    """These accounts, one after the other, whatever their health.

    What an account keeps it can show also while it may not generate, and that it shows it
    says nothing of its limits: no place is taken.

    :param found: hears of the next account, and the rule that named it.
    :param failed: hears why there is none.
    :param unknown: what is answered when there are none, or none of them knows it.
    """

    visit: Visit | None = None

    def __init__(
        self,
        accounts: Sequence[Known],
        found: Callable[[Account, str], None],
        failed: Callable[[ApiError], None],
        unknown: ApiError,
    ) -> None:
        self._left = list(accounts)
        self._found = found
        self._failed = failed
        self._unknown = unknown
        self._refusals: list[ApiError] = []

    def next(self) -> None:
        """See :class:`Itinerary`."""
        if self._left:
            self._found(*self._left.pop(0))
        elif all(error.status == 404 for error in self._refusals):
            self._failed(self._unknown)
        else:
            self._failed(for_the_client(most_hopeful(self._refusals)))

    def refused(self, account: Account, error: ApiError) -> None:
        """See :class:`Itinerary`."""
        self._refusals.append(error)

    def stop(self) -> None:
        """See :class:`Itinerary`."""
        self._left.clear()


class NoPlace:
    """Stands for the place of who needs none."""

    def answered(self) -> None:
        """See :class:`Place`."""

    def acknowledged(self) -> None:
        """See :class:`Place`."""

    def refused(self, fault: Fault) -> None:
        """See :class:`Place`."""

    def release(self) -> None:
        """See :class:`Place`."""
