"""What a client says about its running response, where the account's service understands it.

The message goes to the connection on which the response runs, the answers come among its events
(protocol.md §3.5, §3.6).  An interrupt that is not answered is carried out by the gateway.
Steering input that the service has accepted leads to another response, which it begins by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from gateway.deadline import Deadline
from gateway.protocol.controls import (
    Control,
    ControlAnswer,
    ControlMessage,
    read_answer,
    with_response_id,
)
from gateway.protocol.items import read_input
from gateway.protocol.response_stream import ResponseStream
from gateway.protocol.synthetic_events import (
    ALREADY_COMPLETED,
    INJECTION_NOT_SUPPORTED,
    NOT_ACTIVE,
    STEERING_NOT_SUPPORTED,
    TOO_MANY_INJECTIONS,
    TOO_MANY_STEERS,
    inject_failed,
    interrupt_failed,
    steer_failed,
)

#: How long an answer may take, and after it the end of an interrupted response, in seconds.
ANSWER_SECONDS = 5.0

#: Bounds on what waits for one response: messages, and the bytes of their inputs.
_MAX_WAITING = 16
_MAX_WAITING_BYTES = 16 * 1024 * 1024


class SteerState(enum.Enum):
    """The states of steering input."""

    SENT = "not answered"
    ACCEPTED = "accepted: a response will follow"
    PENDING = "waits for the client's next turn"
    OVER = "failed, or part of the next response"


TRANSITIONS = {
    SteerState.SENT: {SteerState.ACCEPTED, SteerState.OVER},
    SteerState.ACCEPTED: {SteerState.PENDING, SteerState.OVER},
    SteerState.PENDING: {SteerState.OVER},
    SteerState.OVER: set(),
}


@dataclass
class Steer:
    """Steering input.

    :ivar input: as the client wrote it.
    :ivar id: what the service calls it; None before it is accepted.
    """

    input: bytes
    state: SteerState = SteerState.SENT
    id: str | None = None

    def enter(self, state: SteerState) -> None:
        """Go to a state; an answer that does not fit changes nothing."""
        if state in TRANSITIONS[self.state]:
            self.state = state


class TurnControls:
    """What was said about the response of one attempt.

    :param known: the kinds of messages that the account's service knows.
    :ivar steers: the steering input, in its order.
    :param tell: sends a message on the connection of the response; false where it cannot.
    """

    def __init__(
        self,
        known: Collection[str],
        tell: Callable[[bytes], bool],
        response: ResponseStream,
        clock: IReactorTime,
    ) -> None:
        self._known = known
        self._send = tell
        self._response = response
        self._deadline = Deadline(clock, self._not_answered)
        #: Ends the response here; given whether the client was told that the interrupt is accepted.
        self._end_here: Callable[[bool], None] | None = None
        self._interrupt: Control | None = None
        self._answered = False
        self.steers: list[Steer] = []
        self._injected: list[bytes] = []
        #: Committed input, each with the number of finished items before it.
        self._committed: list[tuple[int, bytes]] = []
        response.read_answer = self.read

    # --- messages --------------------------------------------------------------------

    def interrupt(self, message: ControlMessage, end_here: Callable[[bool], None]) -> bool:
        """Pass on an interrupt or a cancel; false where the service does not know it.

        :param end_here: ends the response in the gateway if the service does not.  It is given
            whether the service has accepted the interrupt.
        """
        if self._end_here is not None:
            return True  # it is being interrupted already
        if not self._tell(message):
            return False
        self._end_here = end_here
        self._interrupt = message.control
        self._deadline.start(ANSWER_SECONDS)
        return True

    def give_input(self, message: ControlMessage) -> str | None:
        """Pass on input for the running response; returns a code if that cannot be done."""
        steers = message.control is Control.STEER
        if self._waiting_bytes(message.input) > _MAX_WAITING_BYTES or (
            (len(self.steers) if steers else len(self._injected)) >= _MAX_WAITING
        ):
            return TOO_MANY_STEERS if steers else TOO_MANY_INJECTIONS
        if message.control.value not in self._known:
            return STEERING_NOT_SUPPORTED if steers else INJECTION_NOT_SUPPORTED
        if not self._tell(message):
            return NOT_ACTIVE if steers else ALREADY_COMPLETED
        if steers:
            self.steers.append(Steer(message.input))
        else:
            self._injected.append(message.input)
        return None

    def _tell(self, message: ControlMessage) -> bool:
        upstream_id = self._response.upstream_id
        known = message.control.value in self._known
        return known and bool(upstream_id) and self._send(message.encoded(upstream_id))

    def _waiting_bytes(self, more: bytes) -> int:
        waiting = (*(each.input for each in self.steers), *self._injected, more)
        return sum(map(len, waiting))

    # --- answers ---------------------------------------------------------------------

    def read(self, name: bytes, data: bytes) -> bytes | None:
        """An answer came: what the client gets of it; None for one that nobody asked for."""
        answer = read_answer(name, data)
        response = self._response
        if answer.response_id not in (None, response.upstream_id):
            return None  # it is about an earlier response, and comes too late
        if not self._take(answer):
            return None
        if response.upstream_id != response.response_id:
            data = with_response_id(name, data, response.response_id)
        return data

    def _take(self, answer: ControlAnswer) -> bool:
        if answer.control is Control.INTERRUPT:
            return self._take_interrupt(answer.verdict)
        if answer.control is Control.INJECT:
            return self._take_injection(answer.verdict)
        steer = self._steer_of(answer)
        if steer is None:
            return False
        steer.id = steer.id or answer.steer_id
        steer.enter(_STATES.get(answer.verdict, steer.state))
        return True

    def _take_interrupt(self, verdict: str) -> bool:
        if self._end_here is None:
            return False
        self._answered = True
        if verdict == "failed":  # the response goes on, as with the service itself
            self._end_here = None
            self._deadline.stop()
        else:
            self._deadline.start(ANSWER_SECONDS)
        return True

    def _take_injection(self, verdict: str) -> bool:
        if not self._injected:
            return False
        given = self._injected.pop(0)
        if verdict == "created":
            self._committed.append((len(self._response.items), given))
        return True

    def _steer_of(self, answer: ControlAnswer) -> Steer | None:
        """The input that an answer is about: they are answered in their order."""
        same = (each for each in self.steers if each.id and each.id == answer.steer_id)
        first = (each for each in self.steers if each.state is SteerState.SENT)
        return next(same, None) or next(first, None)

    def _not_answered(self) -> None:
        self.end_here()

    def end_here(self) -> bool:
        """End a response that is being interrupted, in place of the service; false if it is not."""
        end_here, self._end_here = self._end_here, None
        self._deadline.stop()
        if end_here is None:
            return False
        accepted, self._answered = self._answered, True
        end_here(accepted)
        return True

    # --- the end ---------------------------------------------------------------------

    def stop(self, code: str | None) -> list[bytes]:
        """The response is over: wait for no answer.

        :param code: why no response follows for steering input; None if one may.
        :return: what the client has still to be told.
        """
        self._deadline.stop()
        self._end_here = None
        return self.unanswered() + ([] if code is None else self.unsteered(code))

    def commit(self) -> None:
        """The accepted steering input is that of the next response."""
        for each in self.steers:
            if each.state is SteerState.ACCEPTED:
                each.enter(SteerState.OVER)

    def unanswered(self) -> list[bytes]:
        """For the client, once the response has ended: what became of what was not answered.

        Steering input is not among it; its answer may still come.
        """
        response_id = self._response.response_id
        events: list[bytes] = []
        if self._interrupt is Control.INTERRUPT and not self._answered:
            events.append(interrupt_failed(response_id))
        events += [inject_failed(response_id, each, ALREADY_COMPLETED) for each in self._injected]
        self._answered, self._injected = True, []
        return events

    def unsteered(self, code: str) -> list[bytes]:
        """For the client: no response follows for the steering input that waits for one."""
        response_id, waiting = self._response.response_id, self.waiting_steers
        for each in waiting:
            each.enter(SteerState.OVER)
        return [steer_failed(response_id, each.input, code, each.id) for each in waiting]

    @property
    def waiting_steers(self) -> list[Steer]:
        """Steering input that is not answered, or that a response is to follow for."""
        return [
            each for each in self.steers if each.state in (SteerState.SENT, SteerState.ACCEPTED)
        ]

    def with_injected(self, items: Sequence[bytes]) -> list[bytes]:
        """The finished items, with the injected input where it came."""
        whole = list(items)
        for number, given in reversed(self._committed):
            try:
                whole[number:number] = [item.raw for item in read_input(given)]
            except ValueError:
                continue  # the service took what the gateway cannot read
        return whole


_STATES = {
    "accepted": SteerState.ACCEPTED,
    "pending": SteerState.PENDING,
    "failed": SteerState.OVER,
}
