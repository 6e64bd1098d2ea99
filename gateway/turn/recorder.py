"""Keeps the log record of one request while it goes on, and hands it to the turn log."""

from __future__ import annotations

import itertools

from gateway.conversations.context import ContextPlan
from gateway.protocol.usage import Usage, estimated_usage
from gateway.routing.affinity import opaque_id
from gateway.routing.selection import Selection
from gateway.routing.wait_queue import WaitReason
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.turn_log import AttemptRecord, TurnRecord

#: The rule that names the account of an attempt that is made in another way.
SAME_ACCOUNT = "the same account, another way"

#: How much of a client's words goes into the log, in characters.
_SHOWN = 200

_RUNNING = "running"

_numbers = itertools.count(1)


class TurnRecorder:
    """Writes down what happens, and when.

    :param model: as the client called it.
    :param request_bytes: of what the client sent.
    :param route: what the request is, for one that is no turn.
    :ivar record: what is written so far.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        model: str | None,
        previous_response_id: str | None,
        request_bytes: int,
        lane: str | None = None,
        route: str | None = None,
    ) -> None:
        self._clock = services.clock
        self._turn_log = services.turn_log
        self._affinity = context.affinity
        self._accepted_at = context.accepted_at
        #: What it waits for, and since when.
        self._waits: tuple[WaitReason, float] | None = None
        self.record = TurnRecord(
            turn=f"{context.connection}.{next(_numbers)}",
            connection=context.connection,
            key=context.tenant,
            lane=lane,
            model=model and model[:_SHOWN],
            previous_response_id=previous_response_id and previous_response_id[:_SHOWN],
            continuation=None,
            request_bytes=request_bytes,
            route=route,
        )

    # --- on the way --------------------------------------------------------------------

    def queued(self) -> None:
        """Its lane is free, and it starts."""
        self.record.queued_ms = self._elapsed_ms()

    def continues(self, response_id: str, continuation: str) -> None:
        """This is the response that it continues."""
        self.record.previous_response_id = response_id[:_SHOWN]
        self.record.continuation = continuation

    def waits(self, lack: WaitReason) -> None:
        """This is not free; another wait, the next attempt or the end ends it."""
        if self._waits is not None:
            self._waited()
        self._waits = lack, self._elapsed_ms()

    def tries(
        self,
        account: str,
        rule: str,
        route: str,
        request_bytes: int,
        plan: ContextPlan | None,
        choice: Selection | None,
    ) -> None:
        """An attempt begins.

        :param route: how it is sent along, or what it is.
        :param request_bytes: of what the account is sent.
        :param plan: how it continues the conversation; None for what continues none.
        :param choice: how the account was chosen; None where it was not.
        """
        if self._waits is not None:
            self._waited()
        record = self.record
        record.account, record.route = account, route
        record.upstream_bytes += request_bytes
        if plan is not None:
            record.chained_to, record.reason = plan.previous_response_id, plan.reason
        attempt = AttemptRecord(account, rule, route, outcome=_RUNNING)
        attempt.chosen_ms = self._elapsed_ms()
        if choice is not None:
            attempt.candidates, attempt.others = choice.candidates, dict(choice.others)
        record.attempts.append(attempt)

    def connected(self) -> None:
        """The request goes out."""
        self.record.attempts[-1].connected_ms = self._elapsed_ms()

    def answered(self) -> None:
        """The upstream's answer begins."""
        self.record.attempts[-1].first_byte_ms = self._elapsed_ms()

    def first_event(self) -> None:
        """The client sees the first of it."""
        self.record.first_event_ms = self._elapsed_ms()

    def first_output(self) -> None:
        """The client sees the first of what the model says."""
        self.record.first_output_ms = self._elapsed_ms()

    def outcome(self, words: str) -> None:
        """What became of the attempt."""
        self.record.attempts[-1].outcome = words

    # --- what it took ------------------------------------------------------------------

    def counts(self, usage: Usage) -> None:
        """The upstream says what it took, in tokens."""
        record = self.record
        record.input_tokens, record.cached_tokens, record.output_tokens = usage

    def estimated(self) -> Usage:
        """What the last attempt may have taken, by its bytes."""
        record = self.record
        return estimated_usage(record.upstream_bytes // len(record.attempts), record.relayed_bytes)

    # --- the end -----------------------------------------------------------------------

    def closed(self, status: str, error_code: str | None) -> None:
        """It is over: the turn log has it."""
        if self._waits is not None:
            self._waited()
        record = self.record
        if record.attempts and record.attempts[-1].outcome == _RUNNING:
            record.attempts[-1].outcome = error_code or status
        if self._affinity:
            record.conversation = opaque_id(self._affinity[-1])
        record.status, record.error_code = status, error_code
        record.duration_ms = self._elapsed_ms()
        record.ended_at = round(self._clock.seconds(), 3)
        self._turn_log.ended(record)

    def _waited(self) -> None:
        assert self._waits is not None
        (lack, since), self._waits = self._waits, None
        record, waited = self.record, self._elapsed_ms() - since
        if lack is WaitReason.ACCOUNT:
            record.waited_ms = round((record.waited_ms or 0.0) + waited, 1)
        else:
            record.limited_ms = round((record.limited_ms or 0.0) + waited, 1)

    def _elapsed_ms(self) -> float:
        return round((self._clock.seconds() - self._accepted_at) * 1000, 1)
