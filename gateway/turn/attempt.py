"""One try of a turn on one account: the upstream's answer meets the relay here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from gateway.conversations.context import ContextPlan
from gateway.deadline import Deadline
from gateway.protocol.errors import ApiError
from gateway.protocol.response_stream import FinishedResponse, ResponseStream, StreamPhase
from gateway.protocol.sse import Event
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.routing.account import Account
from gateway.turn.context import TurnServices


class AttemptOwner(Protocol):
    """The turn, as its attempts see it."""

    def attempt_connected(self, attempt: Attempt) -> None:
        """Its request goes out."""

    def attempt_answered(self, attempt: Attempt) -> None:
        """Its event stream begins; ``attempt.answer_headers`` are those of the upstream."""

    def attempt_acknowledged(self, attempt: Attempt) -> None:
        """Its upstream took the turn up."""

    def attempt_relays(self, payloads: list[bytes]) -> None:
        """These go to the client."""

    def attempt_ended(self, attempt: Attempt) -> None:
        """``attempt.relay.outcome`` says how."""


class Attempt:
    """Sends one request and reads its answer.

    :param hold_seconds: how long the preamble of the answer is held back for a refusal.
    :param owner: hears of it until it ended or was cancelled.
    :ivar request_bytes: size of what the account is sent.
    :ivar answer_headers: the upstream's response headers, names in lower case.
    """

    def __init__(
        self,
        services: TurnServices,
        account: Account,
        plan: ContextPlan,
        upstream_turn: UpstreamTurn,
        relay: ResponseStream,
        hold_seconds: float,
        owner: AttemptOwner,
    ) -> None:
        self.account = account
        self.plan = plan
        self.relay = relay
        self.answer_headers: Mapping[str, str] = {}
        self._owner = owner
        self._hold_seconds = hold_seconds
        self._hold = Deadline(services.clock, self._release)
        self._exchange = exchange = account.upstream.exchange(upstream_turn, self)
        self.request_bytes = exchange.request_bytes

    def start(self) -> None:
        """Send it."""
        self._exchange.start()

    def cancel(self) -> None:
        """Drop it; the owner hears nothing more."""
        self._hold.stop()
        self._exchange.cancel()

    def pause(self) -> None:
        """Stop reading the upstream."""
        self._exchange.pause()

    def resume(self) -> None:
        """Read on."""
        self._exchange.resume()

    def upstream_connected(self) -> None:
        """The request goes out."""
        self._owner.attempt_connected(self)

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        """The upstream's event stream begins."""
        self.answer_headers = headers
        self._owner.attempt_answered(self)

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events arrived."""
        relay = self.relay
        before = relay.phase
        payloads = relay.feed(events)
        if before is StreamPhase.SENT and relay.phase in (
            StreamPhase.ACKNOWLEDGED,
            StreamPhase.OUTPUT,
        ):
            self._owner.attempt_acknowledged(self)
        if payloads:
            self._owner.attempt_relays(payloads)
        if relay.outcome is not None:
            self._ended()
        elif before is StreamPhase.SENT and relay.phase is StreamPhase.ACKNOWLEDGED:
            if self._hold_seconds:
                self._hold.start(self._hold_seconds)
            else:
                self._release()

    def upstream_ended(self, error: ApiError | None) -> None:
        """The upstream's answer is over."""
        if error is None:
            self.relay.end_of_stream()
        else:
            self.relay.fail(error)
        self._ended()

    def _release(self) -> None:
        """Nothing refused the turn for a while: let the client see that it was taken up."""
        held = self.relay.release()
        if held:
            self._owner.attempt_relays(held)

    def _ended(self) -> None:
        if isinstance(self.relay.outcome, FinishedResponse):
            self._hold.stop()
            self._exchange.finish()
        else:
            self.cancel()
        self._owner.attempt_ended(self)
