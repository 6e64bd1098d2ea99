"""What an account has shown about previous responses (``continuity: auto``).

Kept per account and ``store`` flag.  Only the refusal of a response that this very account
issued minutes ago teaches anything: an old id may simply have expired.  Forgotten on reload.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ledger.records import Record

#: A refused parent must be younger than this, in seconds, to teach.
TEACHES_FOR_SECONDS = 600.0

#: Refusals in a row that an account which once continued a response is forgiven.
_DOUBTS = 2


class LearnedContinuity:
    """One account's lessons.

    :param now: unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._forgets: dict[bool, str] = {}
        self._trust: dict[bool, int] = {}

    def reason_to_replay(self, store: bool) -> str | None:
        """Why responses of this ``store`` flag are not chained here, or None."""
        return self._forgets.get(store)

    def trusts(self, store: bool) -> bool:
        """Whether the account has shown that it continues responses of this ``store`` flag."""
        return store not in self._forgets and self._trust.get(store, -1) >= 0

    def continued(self, store: bool) -> None:
        """The account took up a response it was asked to continue."""
        self._trust[store] = _DOUBTS

    def refused(self, parent: Record, why: str) -> None:
        """The account did not continue ``parent``, and a replay of the turn was accepted.

        One that has shown that it can is doubted only after several refusals in a row.
        """
        if parent.created_at + TEACHES_FOR_SECONDS <= self._now():
            return
        trust = self._trust.get(parent.store, 0) - 1
        self._trust[parent.store] = trust
        if trust < 0:
            self._forgets[parent.store] = why

    def shown(self) -> dict[str, str]:
        """For the admin side: per ``store`` flag ``chain``, ``unknown`` or why not."""
        return {
            name: self._forgets.get(store) or ("chain" if store in self._trust else "unknown")
            for name, store in (("store", True), ("no_store", False))
        }
