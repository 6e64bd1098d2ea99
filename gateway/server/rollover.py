"""Closes a connection between two turns: at its age, or when the gateway is emptied.

A client that has just got its answer often sends the next request within milliseconds, and the
close would cross it: most SDKs then report an error.  So a connection closes in a quiet moment, and
while the client works on a tool call it is left alone for as long as there is time.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: How long nothing may have run before the close, in seconds.
QUIET_SECONDS = 0.5

#: When a connection begins to look for the moment of its close, as a part of its greatest age: not
#: at the same time as those that were opened together with it, and early enough to find one.
_EARLIEST_PART, _LATEST_PART = 0.85, 0.95


class RolloverState(enum.Enum):
    """Whether the close is due."""

    NOT_DUE = "the connection stays"
    DUE = "it closes in the next quiet moment"
    DONE = "it was closed, or is gone"


#: The states that may follow each state.
TRANSITIONS = {
    RolloverState.NOT_DUE: {RolloverState.NOT_DUE, RolloverState.DUE, RolloverState.DONE},
    RolloverState.DUE: {RolloverState.NOT_DUE, RolloverState.DUE, RolloverState.DONE},
    RolloverState.DONE: {RolloverState.DONE},
}


class Rollover:
    """Finds the moment for the close of one connection.

    :param clock: the clock.
    :param is_idle: whether no turn runs or waits.
    :param close: called once, at that moment.
    """

    __slots__ = (
        *("_awaits_output", "_busy_until", "_clock", "_close", "_is_idle", "_latest", "_timer"),
        "state",
    )

    def __init__(
        self, clock: IReactorTime, is_idle: Callable[[], bool], close: Callable[[], None]
    ) -> None:
        self.state = RolloverState.NOT_DUE
        self._clock = clock
        self._is_idle = is_idle
        self._close = close
        self._latest = 0.0
        self._busy_until = 0.0
        self._awaits_output = False
        self._timer: IDelayedCall | None = None

    def at_age(self, opened_at: float, max_age_seconds: float) -> None:
        """Close towards this age, at a time that differs between connections."""
        part = random.uniform(_EARLIEST_PART, _LATEST_PART)
        left = opened_at + max_age_seconds - self._clock.seconds()
        self.plan(left - (1 - part) * max_age_seconds, left)

    def plan(self, seconds: float, latest_seconds: float) -> None:
        """Close in the first quiet moment after a time; this replaces an earlier plan.

        :param seconds: from now.
        :param latest_seconds: from now; from then on an unanswered tool call is no reason to wait.
        """
        if self.state is RolloverState.DONE:
            return
        self._stop_timer()
        self._enter(RolloverState.NOT_DUE)
        self._latest = self._clock.seconds() + latest_seconds
        self._timer = self._clock.callLater(max(0.0, seconds), self._due)

    def turn_ended(self, awaits_output: bool) -> None:
        """A turn ended.

        :param awaits_output: whether it made calls, which the client now answers.
        """
        self._busy_until = self._clock.seconds()
        self._awaits_output = awaits_output
        if self.state is RolloverState.DUE:
            self._look()

    @property
    def is_quiet(self) -> bool:
        """Whether the last turn ended so long ago that the next request is hardly on its way."""
        return self._clock.seconds() >= self._busy_until + QUIET_SECONDS

    def stop(self) -> None:
        """The connection is gone, or closes for another reason."""
        self._stop_timer()
        self._enter(RolloverState.DONE)

    def _due(self) -> None:
        self._timer = None
        self._enter(RolloverState.DUE)
        self._look()

    def _look(self) -> None:
        """Close if the moment is right, or look again when it may be."""
        self._stop_timer()
        if not self._is_idle():
            return  # the end of the turn looks again
        now = self._clock.seconds()
        quiet_at = self._busy_until + QUIET_SECONDS
        if self._awaits_output:
            quiet_at = max(quiet_at, self._latest)
        if now < quiet_at:
            self._timer = self._clock.callLater(quiet_at - now, self._look)
        else:
            self._enter(RolloverState.DONE)
            self._close()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _enter(self, state: RolloverState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"a rollover cannot go from {self.state} to {state}")
        self.state = state
