"""Where one turn was refused already, and on how many more accounts it may be tried.

``routing.max_attempts`` bounds what may cost something.  A refusal that certainly cost nothing
does not count, once for each account.  Nor does that of an account in doubt (one that has not
answered well since it last refused) keep the turn from those that are not: of accounts in
doubt one is tried, and a further one only where no other is left.
"""

from __future__ import annotations

from gateway.protocol.errors import ApiError
from gateway.protocol.refusals import costs_nothing

#: Refusals after which a turn is given up, whatever they cost, unless more attempts are allowed.
MOST_REFUSALS = 16


class Tries:
    """One turn's.

    :ivar refusals: what accounts answered to it, the latest last.
    :ivar ruled_out: the names of those that are not asked again for now.
    :ivar doubted: whether one in doubt was tried.
    """

    __slots__ = (
        "_costly",
        "_forgiven",
        "_strangers",
        "_unexpected",
        "doubted",
        "refusals",
        "ruled_out",
    )

    def __init__(self) -> None:
        self.refusals: list[ApiError] = []
        self.ruled_out: list[str] = []
        #: Those that do not know the response it continues; they will not by waiting.
        self._strangers: list[str] = []
        self.doubted = False
        #: Accounts whose refusal cost nothing; the next one of each counts.
        self._forgiven: set[str] = set()
        self._costly = 0
        #: Those of the costly ones that came from accounts that were not in doubt.
        self._unexpected = 0

    def refused(self, account: str, error: ApiError, in_doubt: bool) -> None:
        """``account`` did not serve the turn.

        :param in_doubt: whether it was so when it was chosen.
        """
        self.refusals.append(error)
        self.ruled_out.append(account)
        if error.code == "previous_response_not_found":
            self._strangers.append(account)
        self.doubted = self.doubted or in_doubt
        if costs_nothing(error) and account not in self._forgiven:
            self._forgiven.add(account)
            return
        self._costly += 1
        self._unexpected += not in_doubt

    def wait(self) -> None:
        """The turn waits, and most accounts may be asked again then."""
        self.ruled_out = [*self._strangers]

    def exhausted(self, max_attempts: int) -> bool:
        """Whether no account at all may be tried any more."""
        most = max(max_attempts, MOST_REFUSALS)
        return self._unexpected >= max_attempts or len(self.refusals) >= most

    def may_doubt(self, max_attempts: int) -> bool:
        """Whether an account in doubt may be tried, where no other is left."""
        return not self.doubted or self._costly < max_attempts
