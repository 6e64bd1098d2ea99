"""The queue of turns that wait for an account, or for a limit of their key.

It is bounded, fair between tenants, and each turn has its deadline.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Callable, Hashable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

_log = Logger(namespace="gateway.routing")

#: Seconds between tries while turns wait, because the end of a cooldown wakes no queue.
_RETRY_SECONDS = 0.25

#: Offers in one step, before the reactor runs other work.
_OFFERS_AT_ONCE = 32

#: Pause after a step in which no turn was served, in seconds.
_PAUSE_SECONDS = 0.02


class WaitReason(enum.Enum):
    """What a turn waits for."""

    ACCOUNT = "an account"
    LIMIT = "a limit of its key"


class WaitTicket:
    """A turn's place in the queue.

    :ivar wants: what its tries depend on; a try may change it.
    :ivar reason: whether it waits for an account or for a limit.
    """

    __slots__ = ("_queue", "deadline", "gave_up", "reason", "retry", "tenant", "wants")

    def __init__(
        self,
        queue: WaitQueue,
        tenant: str,
        wants: Hashable,
        retry: Callable[[], bool],
        gave_up: Callable[[], None],
        reason: WaitReason,
    ) -> None:
        self._queue = queue
        self.tenant = tenant
        self.reason = reason
        self.wants: Hashable = object() if wants is None else wants
        self.retry = retry
        self.gave_up = gave_up
        self.deadline: IDelayedCall | None = None

    def leave(self) -> None:
        """Leave the queue; nothing is called any more.  May be called again."""
        self._queue.remove(self)


class WaitQueue:
    """Turns that found no account, or have reached a limit of their key.

    When something becomes free it is offered to the tenants in turn, and within a tenant to the
    turn that waits longest.  A turn that cannot use it does not block the others.  In a full
    queue the tenant with the most waiting turns loses one to a tenant with fewer.

    :param clock: for deadlines and tries; no timer runs while no turn waits.
    :param max_waiting: bound on the turns that wait.
    """

    def __init__(self, clock: IReactorTime, max_waiting: int) -> None:
        self._clock = clock
        self.max_waiting = max_waiting
        self._count = 0
        #: The tenant that gets the next offer comes first.
        self._tenants: OrderedDict[str, OrderedDict[WaitTicket, None]] = OrderedDict()
        #: The ``wants`` that were refused in this round of offers.
        self._refused: set[Hashable] = set()
        self._again = False
        self._offering = False
        self._timer: IDelayedCall | None = None
        self._stopped = False

    def __len__(self) -> int:
        return self._count

    def waiting_for(self, reason: WaitReason) -> int:
        """How many turns wait for this."""
        return sum(ticket.reason is reason for queue in self._tenants.values() for ticket in queue)

    def wait(
        self,
        tenant: str,
        seconds: float,
        retry: Callable[[], bool],
        gave_up: Callable[[], None],
        wants: Hashable = None,
        reason: WaitReason = WaitReason.ACCOUNT,
    ) -> WaitTicket | None:
        """Wait.

        :param seconds: how long at most.
        :param retry: tries to get an account; True when that worked and the wait is over.
        :param gave_up: called once when the time is up, or the place in the queue is lost.
        :param wants: what ``retry`` depends on: the model, the accounts that are ruled out.
            After a failed try, others that want the same are not tried.  None: unique.
        :param reason: whether it waits for an account or for a limit.
        :return: None when the queue is full.
        """
        full = self._count >= self.max_waiting
        leaves = self._to_be_replaced(tenant) if full else None
        if self._stopped or (full and leaves is None):
            return None
        ticket = WaitTicket(self, tenant, wants, retry, gave_up, reason)
        ticket.deadline = self._clock.callLater(max(0.0, seconds), self._give_up, ticket)
        self._tenants.setdefault(tenant, OrderedDict())[ticket] = None
        self._count += 1
        if self._timer is None and not self._offering:
            self._try_in(_RETRY_SECONDS)
        if leaves is not None:
            self._give_up(leaves)  # not before: what it calls might take the place at once
        return ticket

    def wake(self) -> None:
        """Offer what may have become free."""
        if self._offering or self._refused:
            self._again = True
        elif self._count:
            self._offer()

    def remove(self, ticket: WaitTicket) -> bool:
        """Take ``ticket`` out; False when it was out already."""
        if ticket.deadline is None:
            return False
        if ticket.deadline.active():
            ticket.deadline.cancel()
        ticket.deadline = None
        queue = self._tenants[ticket.tenant]
        del queue[ticket]
        if not queue:
            del self._tenants[ticket.tenant]
        self._count -= 1
        if not self._count:
            self._idle()
        return True

    def stop(self) -> None:
        """Let all turns give up, and no more wait."""
        self._stopped = True
        while self._tenants:
            queue = next(iter(self._tenants.values()))
            self._give_up(next(iter(queue)))

    def _to_be_replaced(self, tenant: str) -> WaitTicket | None:
        """The latest turn of the tenant with the most; None in the middle of an offer."""
        if self._offering or not self._tenants:
            return None
        most = max(self._tenants.values(), key=len)
        if len(most) - 1 <= len(self._tenants.get(tenant, ())):
            return None
        return next(reversed(most))

    def _give_up(self, ticket: WaitTicket) -> None:
        if self.remove(ticket):
            try:
                ticket.gave_up()
            except Exception:
                _log.failure("a waiting turn could not give up")

    # --- offers ----------------------------------------------------------------------

    def _try(self) -> None:
        self._timer = None
        self._offer()

    def _offer(self) -> None:
        """One step of a round of offers; a later step continues the round."""
        served = False
        left = _OFFERS_AT_ONCE
        self._offering = True
        while left:
            ticket = self._next()
            if ticket is None:
                self._refused.clear()
                if not self._again:
                    break
                self._again = False
                continue
            left -= 1
            if self._serve(ticket):
                served = True
            else:
                self._refused.add(ticket.wants)
        self._offering = False
        if not self._count:
            self._idle()
        elif left == 0:
            self._try_in(0.0 if served else _PAUSE_SECONDS)
        elif self._timer is None:
            self._try_in(_RETRY_SECONDS)

    def _next(self) -> WaitTicket | None:
        """The turn that is offered an account next."""
        refused = self._refused
        for queue in self._tenants.values():
            for ticket in queue:
                if ticket.wants not in refused:
                    return ticket
        return None

    def _serve(self, ticket: WaitTicket) -> bool:
        """Let ``ticket`` try to get an account; False when there is none for it."""
        try:
            served = ticket.retry()
        except Exception:
            _log.failure("a waiting turn could not be tried again")
            self._give_up(ticket)
            return True
        if served:
            self.remove(ticket)
            if ticket.tenant in self._tenants:
                self._tenants.move_to_end(ticket.tenant)
        return served

    def _try_in(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self._clock.callLater(seconds, self._try)

    def _idle(self) -> None:
        """No turn waits."""
        self._refused.clear()
        self._again = False
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
