"""One try of a turn on one account: the upstream's answer meets the relay here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..accounts.account import Account
from ..deadline import Deadline
from ..ledger.continuation import Plan
from ..protocol.errors import ApiError
from ..protocol.relay import Finished, Phase, Relay
from ..protocol.sse import Event
from ..protocol.upstream_request import UpstreamRequest
from .environment import TurnEnvironment


class AttemptOwner(Protocol):
    """The turn, as its attempts see it."""

    def attempt_relays(self, payloads: list[bytes]) -> None:
        """These go to the client."""

    def attempt_ended(self, attempt: Attempt) -> None:
        """``attempt.relay.outcome`` says how."""


class Attempt:
    """Sends one request and reads its answer.

    :param owner: hears of it until it ended or was cancelled.
    """

    def __init__(
        self,
        environment: TurnEnvironment,
        account: Account,
        plan: Plan,
        request: UpstreamRequest,
        relay: Relay,
        owner: AttemptOwner,
    ) -> None:
        self.account = account
        self.plan = plan
        self.relay = relay
        self._owner = owner
        self._counted = False
        self._hold_seconds = environment.hold_seconds
        self._hold = Deadline(environment.clock, self._release)
        self._exchange = account.upstream.exchange(request, self)

    def start(self) -> None:
        """Send it."""
        self._counted = True
        self.account.in_flight += 1
        self._exchange.start()

    def cancel(self) -> None:
        """Drop it; the owner hears nothing more."""
        self._leave()
        self._exchange.cancel()

    def pause(self) -> None:
        """Stop reading the upstream."""
        self._exchange.pause()

    def resume(self) -> None:
        """Read on."""
        self._exchange.resume()

    def upstream_connected(self) -> None:
        """The request goes out."""

    def upstream_answered(self, headers: Mapping[str, str]) -> None:
        """The upstream's event stream begins."""

    def upstream_events(self, events: list[Event]) -> None:
        """A batch of events arrived."""
        relay = self.relay
        before = relay.phase
        payloads = relay.feed(events)
        if payloads:
            self._owner.attempt_relays(payloads)
        if relay.outcome is not None:
            self._ended()
        elif before is Phase.SENT and relay.phase is Phase.ACKNOWLEDGED:
            self._hold.start(self._hold_seconds)

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
        if isinstance(self.relay.outcome, Finished):
            self._leave()
            self._exchange.finish()
        else:
            self.cancel()
        self._owner.attempt_ended(self)

    def _leave(self) -> None:
        self._hold.stop()
        if self._counted:
            self._counted = False
            self.account.in_flight -= 1
