"""What an account has shown about previous responses (``continuity: auto``).

Kept per account and ``store`` flag.  Only the refusal of a response that this very account
issued minutes ago teaches anything: an old id may simply have expired.  Forgotten on reload.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ledger.records import Record

#: A refused parent must be younger than this, in seconds, to teach.
TEACHES_FOR_SECONDS = 600.0


class LearnedContinuity:
    """One account's lessons.

    :param now: unix seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._forgets: dict[bool, str] = {}
        self._continues: set[bool] = set()

    def reason_to_replay(self, store: bool) -> str | None:
        """Why responses of this ``store`` flag are not chained here, or None."""
        return self._forgets.get(store)

    def continued(self, store: bool) -> None:
        """The account took up a response it was asked to continue."""
        self._continues.add(store)

    def refused(self, parent: Record, why: str) -> None:
        """The account did not continue ``parent``, and a replay of the turn was accepted."""
        if parent.created_at + TEACHES_FOR_SECONDS > self._now():
            self._forgets[parent.store] = why

    def shown(self) -> dict[str, str]:
        """For the admin side: per ``store`` flag ``chain``, ``unknown`` or why not."""
        return {
            name: self._forgets.get(store) or ("chain" if store in self._continues else "unknown")
            for name, store in (("store", True), ("no_store", False))
        }
