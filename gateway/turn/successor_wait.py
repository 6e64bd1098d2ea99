"""The time between a response that was steered and the one that follows it (protocol.md §3.6).

The service begins that response by itself, on the same connection.  It becomes a turn of its own,
with the steering input as its input.  If the connection is lost first, the gateway sends that turn
itself.  Or the service says that it waits for the client's next turn, or that none will follow.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec
from twisted.internet.interfaces import IReactorTime

from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.protocol.events import raw_list, raw_value
from gateway.protocol.items import Item, read_input
from gateway.protocol.request import TurnRequest
from gateway.protocol.synthetic_events import NO_SUCCESSOR, NOT_ACTIVE
from gateway.routing.account import Account
from gateway.turn.controls import ANSWER_SECONDS, SteerState, TurnControls
from gateway.upstream.interface import Successor


class Following(NamedTuple):
    """The connection of a response that begins without a request, and its account."""

    account: Account
    successor: Successor


class SuccessorWaitState(enum.Enum):
    """The states of a wait."""

    READY = "to be started"
    WAITING = "what the service says"
    OVER = "nothing"


TRANSITIONS = {
    SuccessorWaitState.READY: {SuccessorWaitState.WAITING, SuccessorWaitState.OVER},
    SuccessorWaitState.WAITING: {SuccessorWaitState.OVER},
    SuccessorWaitState.OVER: set(),
}


class SuccessorWait:
    """The wait on the lane of the steered response.

    :param following: the account, and what has the connection.
    :param request: that of the steered turn.
    :param parent_id: the steered response, as the client calls it; None if it cannot be continued.
    :param relay: sends events to the client.
    :ivar pending: steering input that the client's next turn from there will bring.
    """

    #: No response runs.
    response_id = ""

    def __init__(
        self,
        following: Following,
        controls: TurnControls,
        request: TurnRequest,
        parent_id: str | None,
        relay: Callable[[Sequence[bytes]], None],
        clock: IReactorTime,
    ) -> None:
        self._following = following
        self._successor = following.successor
        self._controls = controls
        self._request = request
        self.parent_id = parent_id
        self._relay = relay
        self._state = SuccessorWaitState.READY
        self._deadline = Deadline(clock, self._not_answered)
        self._begin: Callable[[TurnRequest, Following | None], None] = lambda *_: None
        self._ended: Callable[[], None] = lambda: None
        self.pending: tuple[Item, ...] = ()

    def start(
        self,
        begin: Callable[[TurnRequest, Following | None], None],
        ended: Callable[[], None],
    ) -> None:
        """Wait.

        :param begin: starts the turn that follows, which takes the lane.  Without a response that
            has begun already it is sent as any turn.
        :param ended: called when no turn follows.
        """
        self._begin, self._ended = begin, ended
        self._enter(SuccessorWaitState.WAITING)
        self._deadline.start(ANSWER_SECONDS)
        self._look()
        if self._state is SuccessorWaitState.WAITING:
            self._successor.start(self)

    # --- as a turn of its lane -------------------------------------------------------

    def cancel(self) -> None:
        """The client is gone."""
        self._give_up(tell=False)

    def interrupt(self, accepted: object = None, message: object = None) -> None:
        """The client wants nothing more on this lane."""
        self._give_up()

    def abandon(self, error: ApiError) -> None:
        """The gateway stops."""
        self._give_up()

    def give_input(self, message: object) -> str:
        """Nothing runs that could take input."""
        return NOT_ACTIVE

    def pause(self) -> None:
        """The client reads too slowly."""
        self._successor.pause()

    def resume(self) -> None:
        """Read on."""
        self._successor.resume()

    # --- what the service says -------------------------------------------------------

    def successor_answered(self, name: bytes, data: bytes) -> None:
        """An answer about steering input."""
        answer = self._controls.read(name, data)
        if answer is not None:
            self._relay([answer])
            self._look()

    def successor_begins(self) -> None:
        """The next response has begun."""
        request = self._next_request()
        if request is None:
            self._give_up()
            return
        self._end()
        self._begin(request, self._following)

    def successor_lost(self, error: ApiError) -> None:
        """The connection is gone: the gateway sends what was accepted."""
        request = self._next_request()
        if request is None:
            self._give_up()
            return
        self._end()
        self._begin(request, None)

    def _look(self) -> None:
        """Whether a response is still to be waited for."""
        waiting = self._controls.waiting_steers
        if not waiting:
            pending = [each for each in self._controls.steers if each.state is SteerState.PENDING]
            self.pending = _items_of(each.input for each in pending)
            self._successor.finish()
            self._end()
            self._ended()
        elif any(each.state is SteerState.ACCEPTED for each in waiting):
            self._deadline.stop()  # the connection has a deadline of its own

    def _next_request(self) -> TurnRequest | None:
        """The turn of the accepted input; input that was not accepted is given back."""
        items = _items_of(
            each.input for each in self._controls.steers if each.state is SteerState.ACCEPTED
        )
        if not items or self.parent_id is None:
            return None
        self._controls.commit()
        untold = self._controls.unsteered(NOT_ACTIVE)
        if untold:
            self._relay(untold)
        members = {
            **self._request.members,
            "previous_response_id": raw_value(self.parent_id),
            "input": raw_list([item.raw for item in items]),
        }
        return msgspec.structs.replace(
            self._request,
            members=members,
            items=items,
            previous_response_id=self.parent_id,
            size=sum(len(item.raw) for item in items),
        )

    def _not_answered(self) -> None:
        self._give_up()

    def _give_up(self, tell: bool = True) -> None:
        if self._state is SuccessorWaitState.OVER:
            return
        untold = self._controls.unsteered(NO_SUCCESSOR)
        if tell and untold:
            self._relay(untold)
        self._successor.cancel()
        self._end()
        self._ended()

    def _end(self) -> None:
        self._enter(SuccessorWaitState.OVER)
        self._deadline.stop()

    def _enter(self, state: SuccessorWaitState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"a wait cannot go from {self._state} to {state}")
        self._state = state


def _items_of(inputs: Iterable[bytes]) -> tuple[Item, ...]:
    items: list[Item] = []
    for given in inputs:
        try:
            items += read_input(given)
        except ValueError:
            continue  # the service took what the gateway cannot read
    return tuple(items)
