"""Finding an account for each attempt: ask the pool and wait, or ask known accounts in turn.

``routing.max_attempts`` bounds the attempts that may cost something.  The first refusal of each
account that certainly cost nothing does not count.  Refusals of accounts in doubt (those that have
not answered well since they last refused) do not use up the attempts on other accounts: one account
in doubt is tried, and another one only if no other account is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.api_keys.limits import LimitLease, LimitReached
from gateway.protocol.error_classification import (
    FaultKind,
    costs_nothing,
    for_the_client,
    most_hopeful,
)
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.routing.errors import attempts_error, pool_error
from gateway.routing.health import AccountState
from gateway.routing.selection import NoAccount, RouteRequest, Selection
from gateway.routing.wait_queue import WaitReason, WaitTicket
from gateway.turn.context import TurnServices
from gateway.turn.continuity import TurnContinuity

#: Refusals after which a request fails, whatever they cost, unless ``max_attempts`` is higher.
MOST_REFUSALS = 16

#: Called with the next account, the rule that chose it, and the selection with its lease.  The
#: selection is None where no lease is taken.
Found = Callable[[Account, str, "Selection | None"], None]
#: Called with the reason why no account will serve the request.
Failed = Callable[[ApiError], None]


class AttemptBudget:
    """The accounts that refused one request, and how many more it may be tried on.

    :ivar refusals: their errors, the latest last.
    :ivar ruled_out: names of the accounts that are not asked again for now.
    :ivar doubted: whether an account in doubt was tried.
    """

    __slots__ = ("_costly", "_forgiven", "_unexpected", "_unknowing", "doubted", "refusals",
                 "ruled_out")  # fmt: skip

    def __init__(self) -> None:
        self.refusals: list[ApiError] = []
        self.ruled_out: list[str] = []
        self.doubted = False
        #: Accounts that do not have the response it continues; waiting does not change that.
        self._unknowing: list[str] = []
        #: Accounts with one refusal that cost nothing; further ones count.
        self._forgiven: set[str] = set()
        self._costly = 0
        #: Costly refusals of accounts that were not in doubt.
        self._unexpected = 0

    def refused(self, account: str, error: ApiError, in_doubt: bool) -> None:
        """``account`` did not serve the request.

        :param in_doubt: whether it was in doubt when it was chosen.
        """
        self.refusals.append(error)
        self.ruled_out.append(account)
        if error.code == "previous_response_not_found":
            self._unknowing.append(account)
        self.doubted = self.doubted or in_doubt
        if costs_nothing(error) and account not in self._forgiven:
            self._forgiven.add(account)
            return
        self._costly += 1
        self._unexpected += not in_doubt

    def wait(self) -> None:
        """The request waits; most accounts may be asked again afterwards."""
        self.ruled_out = [*self._unknowing]

    def exhausted(self, max_attempts: int) -> bool:
        """Whether no account at all may be tried any more."""
        most = max(max_attempts, MOST_REFUSALS)
        return self._unexpected >= max_attempts or len(self.refusals) >= most

    def may_doubt(self, max_attempts: int) -> bool:
        """Whether an account in doubt may be tried if no other is left."""
        return not self.doubted or self._costly < max_attempts


class AccountSearch:
    """One request's search through the pool.

    :param tenant: the client key; its limits are entered before an account is chosen.
    :param wanted: the request to the pool, without a pin or a holder.
    :param continuity: gives the pin and the holder before each attempt, because attempts may
        change them.  None for a request that continues nothing.
    :param waits: called with the reason when the request must wait, and again when it changes.
    :ivar limit_lease: the lease on the key's limits, once the request is counted.
    """

    def __init__(
        self,
        services: TurnServices,
        tenant: str,
        wanted: RouteRequest,
        continuity: TurnContinuity | None,
        found: Found,
        waits: Callable[[WaitReason], None],
        failed: Failed,
    ) -> None:
        self._services = services
        self._tenant = tenant
        self._wanted = wanted
        self._continuity = continuity
        self._found = found
        self._waits = waits
        self._failed = failed
        self._tries = AttemptBudget()
        #: Whether the account that was found last was in doubt then.
        self._in_doubt = False
        self._blocked_by: NoAccount | LimitReached | None = None
        self._ticket: WaitTicket | None = None
        self._gives_up_at: float | None = None
        self.limit_lease: LimitLease | None = None

    def next(self) -> None:
        """Find the next account; one of the callbacks follows, at once or later."""
        tries = self._tries
        if tries.refusals:
            if tries.exhausted(self._services.pool.routing.max_attempts):
                self._failed(self._tried_enough())
                return
        else:
            self._services.waiting.wake()  # requests that wait come first
        try:
            found = self._try()
        except ApiError as error:  # the tenant may never have what it asks for
            self._failed(error)
            return
        if not found:
            self._wait()

    def follow(self, account: Account, rule: str) -> None:
        """Take the account that has begun to answer by itself, whatever its limits."""
        limits = self._services.limits
        try:
            self.limit_lease = limits.follow(self._tenant, self._wanted.model)
        except ApiError as error:
            self._failed(error)
            return
        self._in_doubt = account.health.in_doubt(self._wanted.model)
        self._found(account, rule, self._services.pool.follow(account, self._wanted.model))

    def admit_without_account(self) -> None:
        """Count a turn that needs no account within the tenant's limits.

        It costs memory, so it counts, but it never waits for a limit.

        :raises ApiError: when a limit is reached.
        """
        if not self._try_limits():
            raise self._error()

    def warm_account(self) -> tuple[Account, str, Selection] | None:
        """An account whose connection a prewarm prepares, if one is free at once.

        The request must have been admitted.
        """
        pool = self._services.pool
        if not any(account.upstream.warms for account in pool.accounts):
            return None
        choice = pool.choose(self._asked(), self._tries.ruled_out)
        if isinstance(choice, NoAccount):
            return None
        if not choice.lease.account.upstream.warms:
            choice.lease.release()
            return None
        return choice.lease.account, choice.rule, choice

    def refused(self, account: Account, error: ApiError) -> None:
        """``account`` did not serve the request; it will not be asked again for now."""
        self._tries.refused(account.name, error, self._in_doubt)

    def stop(self) -> None:
        """End the search, and release the lease on the limits."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.leave()
        lease, self.limit_lease = self.limit_lease, None
        if lease is not None:
            lease.release()

    def _try_limits(self) -> bool:
        """Whether the tenant's limits admit the request now.

        :raises ApiError: when they never will.
        """
        entered = self._services.limits.acquire(self._tenant, self._wanted.model)
        if isinstance(entered, LimitReached):
            self._blocked_by = entered
            return False
        self.limit_lease = entered
        return True

    def _try(self) -> bool:
        """Try to choose an account and report it; whether there was one."""
        if self.limit_lease is None and not self._try_limits():
            return False
        pool, tries = self._services.pool, self._tries
        asked = self._asked()
        choice = pool.choose(asked, tries.ruled_out)
        if isinstance(choice, NoAccount):
            # Of accounts in doubt one is enough, as long as there are others.
            if asked.undoubted and tries.may_doubt(pool.routing.max_attempts):
                choice = pool.choose(asked._replace(undoubted=False), tries.ruled_out)
            if isinstance(choice, NoAccount):
                self._blocked_by = choice
                return False
        self._ticket = None
        account = choice.lease.account
        self._in_doubt = account.health.in_doubt(self._wanted.model)
        self._found(account, choice.rule, choice)
        return True

    def _asked(self) -> RouteRequest:
        """The request to the pool now; attempts may have changed it."""
        wanted, continuity = self._wanted, self._continuity
        if self._tries.doubted:
            wanted = wanted._replace(undoubted=True)
        if continuity is None:
            return wanted
        pinned_to = continuity.pinned_to()
        if pinned_to is not None:
            wanted = wanted._replace(pinned_to=pinned_to, pin_rule=continuity.pin_rule)
        return wanted._replace(holder=continuity.holder, maker=continuity.maker)

    def _wait(self) -> None:
        now = self._services.clock.seconds()
        if self._gives_up_at is None:
            self._gives_up_at = now + self._services.pool.routing.queue_seconds
        seconds = self._gives_up_at - now
        if seconds <= 0 or not self._may_come_free(self._gives_up_at):
            self._failed(self._error())
            return
        self._tries.wait()
        self._ticket = self._services.waiting.wait(
            self._tenant, seconds, self._retry, self._gave_up, self._wants(), self._wait_reason()
        )
        if self._ticket is None:
            self._failed(self._error())
        else:
            self._waits(self._ticket.reason)

    def _retry(self) -> bool:
        try:
            found = self._try()
        except ApiError as error:
            self._ticket = None
            self._failed(error)
            return True
        ticket = self._ticket
        if not found and ticket is not None:
            before, ticket.reason = ticket.reason, self._wait_reason()
            ticket.wants = self._wants()
            if ticket.reason is not before:  # it is admitted by now, and waits for an account
                self._waits(ticket.reason)
        return found

    def _gave_up(self) -> None:
        self._ticket = None
        self._failed(self._error())

    def _wait_reason(self) -> WaitReason:
        return (
            WaitReason.LIMIT if isinstance(self._blocked_by, LimitReached) else WaitReason.ACCOUNT
        )

    def _wants(self) -> tuple[object, ...]:
        """What the search waits for; after a failed try, searches for the same are skipped."""
        blocked_by = self._blocked_by
        if isinstance(blocked_by, NoAccount):
            wanted = blocked_by.wanted._replace(keys=(), holder=None, turn_state=None, maker=None)
            return (wanted, blocked_by.waits_for, *self._tries.ruled_out)
        return ("limits of", self._tenant)

    def _may_come_free(self, before: float) -> bool:
        """Whether waiting can help: a limit or cooldown ends in time, or a place may come free."""
        blocked_by = self._blocked_by
        if isinstance(blocked_by, LimitReached):
            return blocked_by.free_at is None or blocked_by.free_at <= before
        assert blocked_by is not None
        if blocked_by.refuse_the_model:
            return False
        if (
            blocked_by.waits_for is not None
            and self._services.pool.routing.on_account_loss == "fail"
        ):
            return False
        return any(
            reason.until <= before
            if reason.until is not None
            else reason.state is AccountState.READY
            for reason in blocked_by.reasons
            if reason.kind is not FaultKind.UNCLEAR or not self._tries.refusals
        )

    def _tried_enough(self) -> ApiError:
        asked, tries = self._asked()._replace(undoubted=False), self._tries
        lacking = self._services.pool.none_left(asked, tries.ruled_out)
        if lacking is None:
            return attempts_error(tries.refusals)
        return pool_error(lacking, tries.refusals, self._services.clock.seconds())

    def _error(self) -> ApiError:
        blocked_by = self._blocked_by
        if isinstance(blocked_by, LimitReached):
            self._services.limits.refused(self._tenant, blocked_by.limit)
            return blocked_by.error
        assert blocked_by is not None
        if blocked_by.wanted.undoubted:
            return self._tried_enough()
        return pool_error(blocked_by, self._tries.refusals, self._services.clock.seconds())


class KnownAccount(NamedTuple):
    """An account that may keep the stored response, and the rule that chose it."""

    account: Account
    rule: str


class KnownAccounts:
    """Asks given accounts, one after the other, whatever their health.

    An account can return a stored response also while it may not generate, and doing so says
    nothing about its limits.  So no lease is taken.

    :param unknown: the error when none of the accounts has the response.
    """

    limit_lease: LimitLease | None = None

    def __init__(
        self, accounts: Sequence[KnownAccount], unknown: ApiError, found: Found, failed: Failed
    ) -> None:
        self._left = list(accounts)
        self._unknown = unknown
        self._found = found
        self._failed = failed
        self._refusals: list[ApiError] = []

    def next(self) -> None:
        """Name the next account."""
        if self._left:
            self._found(*self._left.pop(0), None)
        elif all(error.status == 404 for error in self._refusals):
            self._failed(self._unknown)
        else:
            self._failed(for_the_client(most_hopeful(self._refusals)))

    def refused(self, account: Account, error: ApiError) -> None:
        """``account`` does not have it, or failed."""
        self._refusals.append(error)

    def stop(self) -> None:
        """Ask no more."""
        self._left.clear()
