"""One attempt of a turn on one account: its request, and its answer until it ends."""

from __future__ import annotations

from collections.abc import Mapping

from twisted.internet.interfaces import IReactorTime

from gateway.conversations.context import ContextPlan, ContextRoute
from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.protocol.rate_limits import read_rate_limits_event, read_windows
from gateway.protocol.response_stream import (
    BrokenResponse,
    FinishedResponse,
    RefusedResponse,
    ResponseStream,
    StreamPhase,
)
from gateway.protocol.sse import Event
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.routing.account import Account
from gateway.turn.controls import TurnControls
from gateway.turn.routed_request import Attempt, RoutedRequest
from gateway.upstream.interface import Successor


class TurnAttempt(Attempt):
    """One attempt of a turn: feeds the upstream's events to the response stream.

    :param sent: the turn, for the account's transport to encode.
    :param hold_seconds: how long the preamble is held back, in case a refusal follows.
    :param follows: what has the connection of a response that has begun by itself.
    :ivar successor: waits for a response that follows by itself; None where none does.
    """

    def __init__(
        self,
        turn: RoutedRequest[TurnAttempt],
        account: Account,
        plan: ContextPlan,
        sent: UpstreamTurn,
        response: ResponseStream,
        hold_seconds: float,
        clock: IReactorTime,
        follows: Successor | None = None,
    ) -> None:
        route = ContextRoute.PREWARM if sent.request.prewarm else plan.route
        super().__init__(account, plan, route.value)
        self.chosen = plan
        self.sent = sent
        self.response = response
        self._turn = turn
        self._hold_seconds = hold_seconds
        self._hold: Deadline | None = None
        self._clock = clock
        self._controls: TurnControls | None = None
        self.successor: Successor | None = None
        make = account.upstream.exchange if follows is None else follows.exchange
        self.exchange = exchange = make(sent, self)
        self.request_bytes = exchange.request_bytes

    @property
    def controls(self) -> TurnControls:
        """What the client says about the response."""
        if self._controls is None:
            known = self.account.settings.websocket.controls
            self._controls = TurnControls(known, self.exchange.tell, self.response, self._clock)
        return self._controls

    @property
    def has_controls(self) -> bool:
        """Whether the client said something about the response."""
        return self._controls is not None

    @property
    def items(self) -> list[bytes]:
        """The finished items, with the input that was injected."""
        items = self.response.items
        return items if self._controls is None else self._controls.with_injected(items)

    def learn_quotas(self) -> None:
        """Read the quotas in ``codex.rate_limits`` and in the error that ended the attempt."""
        response, health, now = self.response, self.account.health, self._clock.seconds()
        if response.rate_limits:
            health.observe(read_rate_limits_event(response.rate_limits, now))
        outcome = response.outcome
        if isinstance(outcome, (RefusedResponse, BrokenResponse, FinishedResponse)):
            error = outcome.error
            health.observe(() if error is None else read_windows(error.hints, now))

    def cancel(self) -> None:
        """Drop the attempt; the turn is not called any more."""
        self._stop_holding()
        self.exchange.cancel()

    def upstream_connected(self) -> None:
        """The request goes out."""
        self._turn.attempt_connected(self)

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        """The upstream's event stream begins."""
        self.answer_headers = headers
        self._turn.attempt_answered(self)

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events arrived."""
        response = self.response
        before = response.phase
        payloads = response.feed(events)
        if before is StreamPhase.SENT and response.phase in (
            StreamPhase.ACKNOWLEDGED,
            StreamPhase.OUTPUT,
        ):
            self._turn.attempt_acknowledged(self)
        if payloads:
            self._turn.attempt_relays(payloads)
        if response.outcome is not None:
            self._ended()
        elif before is StreamPhase.SENT and response.phase is StreamPhase.ACKNOWLEDGED:
            if self._hold_seconds:
                self._hold = Deadline(self._clock, self._release)
                self._hold.start(self._hold_seconds)
            else:
                self._release()

    def upstream_ended(self, error: ApiError | None) -> None:
        """The upstream's answer is over."""
        if error is None:
            self.response.end_of_stream()
        else:
            self.response.fail(error)
        self._ended()

    def _release(self) -> None:
        """No refusal followed in time: relay the preamble."""
        held = self.response.release()
        if held:
            self._turn.attempt_relays(held)

    def _ended(self) -> None:
        if isinstance(self.response.outcome, FinishedResponse):
            self._stop_holding()
            if self._controls is not None and self._controls.waiting_steers:
                self.successor = self.exchange.successor()
            if self.successor is None:
                self.exchange.finish()
        else:
            self.cancel()
        self._turn.attempt_ended(self)

    def _stop_holding(self) -> None:
        if self._hold is not None:
            self._hold.stop()
