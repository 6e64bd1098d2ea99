"""What an account has shown about previous responses (``continuity: auto``).

Kept per account and ``store`` flag.  Only the refusal of a response that this very account
issued minutes ago teaches anything: an old id may simply have expired.  It is doubted after a
while, and tried again: services have bad hours, and learn, too.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ledger.records import Record

#: A refused parent must be younger than this, in seconds, to teach.
TEACHES_FOR_SECONDS = 600.0

#: How long an account that continued nothing yet is not asked to again, and one that has shown
#: that it can, in seconds.
_NEVER_DID_SECONDS = 86_400.0
_DID_ONCE_SECONDS = 3_600.0

#: Refusals in a row that an account which once continued a response is forgiven.
_DOUBTS = 2


class LearnedContinuity:
    """One account's lessons.

    :param now: unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._forgets: dict[bool, tuple[str, float]] = {}
        self._trust: dict[bool, int] = {}
        self._did: set[bool] = set()

    def reason_to_replay(self, store: bool) -> str | None:
        """Why responses of this ``store`` flag are not chained here, or None."""
        why, until = self._forgets.get(store, (None, 0.0))
        return why if self._now() < until else None

    def trusts(self, store: bool) -> bool:
        """Whether the account has shown that it continues responses of this ``store`` flag."""
        return self.reason_to_replay(store) is None and self._trust.get(store, -1) >= 0

    def continued(self, store: bool) -> None:
        """The account took up a response it was asked to continue."""
        self._trust[store] = _DOUBTS
        self._did.add(store)
        self._forgets.pop(store, None)

    def refused(self, parent: Record, why: str) -> None:
        """The account did not continue ``parent``, and a replay of the turn was accepted.

        One that has shown that it can is doubted only after several refusals in a row.
        """
        if parent.created_at + TEACHES_FOR_SECONDS <= self._now():
            return
        trust = self._trust.get(parent.store, 0) - 1
        self._trust[parent.store] = trust
        if trust < 0:
            lasts = _DID_ONCE_SECONDS if parent.store in self._did else _NEVER_DID_SECONDS
            self._forgets[parent.store] = why, self._now() + lasts

    def shown(self) -> dict[str, str]:
        """For the admin side: per ``store`` flag ``chain``, ``unknown`` or why not."""
        return {
            name: self.reason_to_replay(store) or ("chain" if store in self._did else "unknown")
            for name, store in (("store", True), ("no_store", False))
        }
