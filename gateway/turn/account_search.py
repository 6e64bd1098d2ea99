"""Finding an account for each attempt of a turn: ask the pool, and wait where none is free."""

from __future__ import annotations

from typing import Protocol

from gateway.api_keys.interface import Busy, Visit
from gateway.protocol.error_classification import FaultKind
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.routing.errors import attempts_error, pool_error
from gateway.routing.health import AccountState
from gateway.routing.selection import NoAccount, RouteRequest, Selection
from gateway.routing.wait_queue import WaitReason, WaitTicket
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.tries import Tries


class SearchOwner(Protocol):
    """The turn, as its search sees it."""

    def search_found(self, choice: Selection) -> None:
        """This account is next; its place is the owner's now."""

    def search_waits(self, lack: WaitReason) -> None:
        """This is not free; it may be told again, and one of the other two calls follows."""

    def search_failed(self, error: ApiError) -> None:
        """No account will serve the turn."""


class Bound(Protocol):
    """What binds a turn to accounts; see :class:`~gateway.turn.continuity.TurnContinuity`."""

    @property
    def holder(self) -> str | None:
        """The account that made the response to continue."""

    @property
    def pinned_to(self) -> str | None:
        """The only account that can read the context, or None for any."""

    @property
    def pin_rule(self) -> str:
        """Why only that can."""


class Unbound:
    """Continues nothing, and holds nothing of any account's."""

    holder: str | None = None
    pinned_to: str | None = None
    pin_rule: str = ""


class AccountSearch:
    """One turn's way through the pool.

    :param bound: what binds it to accounts; asked before each attempt, as attempts may change it.
    :ivar visit: what the tenant's limits hold for the turn, once it was let in.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        wanted: RouteRequest,
        bound: Bound,
        owner: SearchOwner,
    ) -> None:
        self._services = services
        self._context = context
        self._wanted = wanted
        self._bound = bound
        self._owner = owner
        self._tries = Tries()
        #: Whether the account that was found last was in doubt then.
        self._in_doubt = False
        self._lack: NoAccount | Busy | None = None
        self._ticket: WaitTicket | None = None
        self._patience_ends: float | None = None
        self.visit: Visit | None = None

    def next(self) -> None:
        """Find the next account; the owner hears of it at once or later.

        :raises ApiError: when the tenant may never have what it asks for.
        """
        if self._tries.exhausted(self._max_attempts):
            self._owner.search_failed(self._tried_enough())
        else:
            if not self._tries.refusals:
                self._services.waiting.wake()  # who waits is offered first what is free now
            if not self._try():
                self._wait()

    def let_in(self) -> None:
        """Take what the tenant's limits hold for a turn that needs no account.

        It costs memory all the same, and so it counts; but it is not worth waiting for.

        :raises ApiError: when a limit is in its way.
        """
        entered = self._services.limits.enter(self._context.tenant, self._wanted.model)
        if isinstance(entered, Busy):
            self._lack = entered
            raise self._error()
        self.visit = entered

    def refused(self, account: Account, error: ApiError) -> None:
        """``account`` did not serve the turn; it will not be asked again for now."""
        self._tries.refused(account.name, error, self._in_doubt)

    def stop(self) -> None:
        """Nothing is searched any more."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            ticket.leave()
        visit, self.visit = self.visit, None
        if visit is not None:
            visit.leave()

    def _try(self) -> bool:
        """Whether there was an account; the owner has it then."""
        if self.visit is None:
            entered = self._services.limits.enter(self._context.tenant, self._wanted.model)
            if isinstance(entered, Busy):
                self._lack = entered
                return False
            self.visit = entered
        choice = self._choose()
        if isinstance(choice, NoAccount):
            self._lack = choice
            return False
        self._ticket = None
        self._in_doubt = choice.account.health.in_doubt(self._wanted.model)
        self._owner.search_found(choice)
        return True

    def _choose(self) -> Selection | NoAccount:
        """Of accounts in doubt one is enough, as long as there are others."""
        choose, tried = self._services.pool.choose, self._tries.ruled_out
        asked = self._asked()
        choice = choose(asked, tried)
        may_doubt = asked.undoubted and self._tries.may_doubt(self._max_attempts)
        if isinstance(choice, NoAccount) and may_doubt:
            choice = choose(asked._replace(undoubted=False), tried)
        return choice

    @property
    def _max_attempts(self) -> int:
        return self._services.pool.routing.max_attempts

    def _asked(self) -> RouteRequest:
        """What is wanted now; attempts may have changed it."""
        bound = self._bound
        pinned_to = bound.pinned_to
        return self._wanted._replace(
            holder=bound.holder,
            pinned_to=pinned_to,
            pin_rule="" if pinned_to is None else bound.pin_rule,
            undoubted=self._tries.doubted,
        )

    def _wait(self) -> None:
        now = self._services.clock.seconds()
        if self._patience_ends is None:
            self._patience_ends = now + self._services.pool.routing.queue_seconds
        patience = self._patience_ends - now
        if patience <= 0 or not self._may_come_free(self._patience_ends):
            self._owner.search_failed(self._error())
            return
        self._tries.wait()
        self._ticket = self._services.waiting.wait(
            self._context.tenant,
            patience,
            self._retry,
            self._gave_up,
            self._wants(),
            self._lacks(),
        )
        if self._ticket is None:
            self._owner.search_failed(self._error())
        else:
            self._owner.search_waits(self._ticket.lacks)

    def _retry(self) -> bool:
        try:
            found = self._try()
        except ApiError as error:
            self._ticket = None
            self._owner.search_failed(error)
            return True
        ticket = self._ticket
        if not found and ticket is not None:
            before, ticket.lacks = ticket.lacks, self._lacks()
            ticket.wants = self._wants()
            if ticket.lacks is not before:  # it is let in by now, and lacks an account
                self._owner.search_waits(ticket.lacks)
        return found

    def _gave_up(self) -> None:
        self._ticket = None
        self._owner.search_failed(self._error())

    def _lacks(self) -> WaitReason:
        return WaitReason.LIMIT if isinstance(self._lack, Busy) else WaitReason.ACCOUNT

    def _wants(self) -> tuple[object, ...]:
        """What the search waits for; others that wait for the same fail with it."""
        lack = self._lack
        if isinstance(lack, NoAccount):
            wanted = lack.wanted._replace(keys=(), holder=None, turn_state=None)
            return (wanted, lack.waits_for, *self._tries.ruled_out)
        return ("limits of", self._context.tenant)

    def _may_come_free(self, before: float) -> bool:
        """Whether waiting can help: something ends in time, or at any moment."""
        lack = self._lack
        if isinstance(lack, Busy):
            return lack.free_at is None or lack.free_at <= before
        assert lack is not None
        if lack.refuse_the_model:
            return False
        if lack.waits_for is not None and self._services.pool.routing.on_account_loss == "fail":
            return False
        return any(
            reason.until <= before
            if reason.until is not None
            else reason.state is AccountState.READY
            for reason in lack.reasons
            if reason.kind is not FaultKind.UNCLEAR or not self._tries.refusals
        )

    def _tried_enough(self) -> ApiError:
        asked, tries = self._asked()._replace(undoubted=False), self._tries
        lacking = self._services.pool.lacking(asked, tries.ruled_out)
        if lacking is None:
            return attempts_error(tries.refusals)
        return pool_error(lacking, tries.refusals, self._services.clock.seconds())

    def _error(self) -> ApiError:
        lack = self._lack
        if isinstance(lack, Busy):
            self._services.limits.refused(self._context.tenant, lack.limit)
            return lack.error
        assert lack is not None
        if lack.wanted.undoubted:
            return self._tried_enough()
        return pool_error(lack, self._tries.refusals, self._services.clock.seconds())
