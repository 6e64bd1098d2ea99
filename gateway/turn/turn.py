"""The turn as a state machine: choose an account, send, relay, and end exactly once.

``QUEUED -> RUNNING -> ENDED``.  While RUNNING, one :class:`~gateway.turn.attempt.Attempt`
after the other may be made, as long as the client saw nothing of the one before (design
law 4).  Whatever ends the turn, the client gets one terminal event (law 5).
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable

from ..accounts.account import Account
from ..accounts.affinity import TURN_STATE, turn_state_key
from ..accounts.pool import Choice, Wanted
from ..deadline import Deadline
from ..ledger.continuation import Route
from ..ledger.records import Record
from ..protocol.errors import ApiError
from ..protocol.events import Members, response_members
from ..protocol.made import (
    created_event,
    failed_event,
    interrupted_event,
    made_response,
    new_response_id,
    prewarm_events,
)
from ..protocol.refusals import (
    ABOUT_THE_REQUEST,
    for_the_client,
    may_move,
    most_hopeful,
)
from ..protocol.relay import Broken, Finished, NotContinued, Refused, Relay
from ..protocol.request import TurnRequest, client_metadata
from ..protocol.upstream_request import UpstreamRequest, build_body, build_headers
from .attempt import Attempt
from .continuity import TurnContinuity
from .environment import Door, TurnContext, TurnEnvironment
from .journal import AttemptRecord, TurnRecord
from .recording import record_response

#: ``incomplete`` responses that may be continued (protocol.md §8.2).
_CONTINUABLE = frozenset({"interrupted", "max_output_tokens"})

#: The rule that names the account of an attempt with another plan.
_SAME_ACCOUNT = "the same account, another way"

#: How much of a client's words goes into the journal, in characters.
_SHOWN = 200

_numbers = itertools.count(1)


def _shown(words: str | None) -> str | None:
    return None if words is None else words[:_SHOWN]


class TurnState(enum.Enum):
    """Where a turn stands."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"


TRANSITIONS = {
    TurnState.QUEUED: {TurnState.RUNNING, TurnState.ENDED},
    TurnState.RUNNING: {TurnState.ENDED},
    TurnState.ENDED: set(),
}


class Turn:
    """One ``response.create`` up to its terminal event.

    :param context: whose turn it is and what it continues.
    :ivar recorded: what was remembered of it, once it ended well.
    :ivar error: what ended it, when it did not.
    :ivar record: its entry in the journal.
    """

    def __init__(
        self,
        environment: TurnEnvironment,
        context: TurnContext,
        request: TurnRequest,
        door: Door,
    ) -> None:
        self._environment = environment
        self._context = context
        self._door = door
        self._state = TurnState.QUEUED
        self._attempt: Attempt | None = None
        self._paused = False
        self._tried: list[str] = []
        self._refusals: list[ApiError] = []
        self._continuity = TurnContinuity(context.parent, request)
        self._silence = Deadline(environment.clock, self._keep_alive)
        self.request = request
        self.recorded: Record | None = None
        self.error: ApiError | None = None
        self.record = TurnRecord(
            turn=f"{context.connection}.{next(_numbers)}",
            connection=context.connection,
            key=context.tenant,
            lane=request.stream_id,
            model=_shown(request.model),
            previous_response_id=_shown(request.previous_response_id),
            continuation=context.continuation,
            request_bytes=request.size,
        )

    # --- the door's side -------------------------------------------------------------

    @property
    def response_id(self) -> str:
        """The id the client knows the running response by; empty before there is one."""
        return self._attempt.relay.response_id if self._attempt is not None else ""

    def start(self) -> None:
        """Run it."""
        self._enter(TurnState.RUNNING)
        self.record.queued_ms = self._elapsed_ms()
        if self.request.prewarm:
            self._prewarm()
        else:
            self._keep_awake()
            self._begin()

    def cancel(self) -> None:
        """The client is gone: stop the upstream, send nothing."""
        if self._state is not TurnState.ENDED:
            self._drop_attempt("cancelled")
            self._end("cancelled", None)

    def interrupt(self, accepted: Callable[[str, int], bytes] | None) -> None:
        """End it now with the items that are finished, as a response to go on from (§3.5).

        :param accepted: makes the event to send before the terminal one, of the response's
            id and the event's ``sequence_number``; or None.
        """
        if self._state is TurnState.ENDED:
            return
        relay = self._attempt.relay if self._attempt is not None else Relay()
        payloads = relay.release()
        response = response_members(relay.created)
        response_id = relay.response_id
        number = relay.last_number()
        if not response_id:
            response_id = new_response_id()
            response = self._made(response_id)
            if number < 0:
                payloads.append(created_event(response))
                number = 0
        if accepted is not None:
            number += 1
            payloads.append(accepted(response_id, number))
        payloads.append(interrupted_event(response, relay.items, number + 1))
        self._relayed(payloads)
        account = self._attempt.account.name if self._attempt is not None else None
        self._drop_attempt("interrupted")
        self._remember(response_id, relay.items, account, held_upstream=False)
        self._end("incomplete", "interrupted")

    def abandon(self, error: ApiError) -> None:
        """The gateway gives it up: tell the client so that it comes again."""
        attempt = self._attempt
        if self._state is TurnState.ENDED:
            return
        if attempt is None:
            self._refuse(error)
            return
        self._drop_attempt("abandoned")
        self._broken(attempt, error)

    def pause(self) -> None:
        """The client reads too slowly: stop reading the upstream."""
        self._paused = True
        self._silence.stop()
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._state is TurnState.RUNNING:
            self._keep_awake()
        if self._attempt is not None:
            self._attempt.resume()

    # --- choosing and sending --------------------------------------------------------

    def _begin(self) -> None:
        choice = self._next_choice()
        if choice is not None:
            self._send_to(choice.account, choice.rule)
            return
        self._refuse(
            ApiError.invalid_request(
                f"No account of this gateway may serve this turn with '{self.record.model}'.",
                "model",
                "model_not_found",
            )
        )

    def _next_choice(self) -> Choice | None:
        """The next account to try, or None when no other is left."""
        if len(self._tried) >= self._environment.max_attempts:
            return None
        wanted = Wanted(
            self.request.model,
            self._context.affinity,
            self._continuity.holder,
            self._continuity.pinned_to,
        )
        return self._environment.pool.choose(wanted, self._tried)

    def _send_to(self, account: Account, rule: str) -> None:
        if account.name not in self._tried:
            self._tried.append(account.name)
        plan = self._continuity.plan(account)
        body = build_body(self.request, plan.items, plan.previous_response_id)
        headers = build_headers(
            self.request,
            self._context.client_headers,
            account.request_headers,
            self._turn_state_for(account),
        )
        must_echo = account.settings.continuity == "auto"
        relay = Relay(
            plan.previous_response_id if must_echo else None,
            pass_rate_limits=len(self._environment.pool.accounts) == 1,
            is_taken=self._is_taken,
        )
        record = self.record
        record.account, record.route = account.name, plan.route.value
        record.chained_to, record.reason = plan.previous_response_id, plan.reason
        record.upstream_bytes += len(body)
        record.attempts.append(AttemptRecord(account.name, rule, plan.route.value))
        self._attempt = Attempt(
            self._environment, account, plan, UpstreamRequest(headers, body), relay, self
        )
        if self._paused:
            self._attempt.pause()
        self._attempt.start()

    def _turn_state_for(self, account: Account) -> str | None:
        """The turn state that the client echoes, if this account gave it (§4.6)."""
        turn_state = client_metadata(self.request.members).get(TURN_STATE)
        if turn_state is None:
            return None
        key = turn_state_key(self._context.tenant, turn_state)
        issuer = self._environment.pool.bindings.account_of(key)
        return turn_state if issuer in (None, account.name) else None

    def _is_taken(self, response_id: str) -> bool:
        return self._environment.ledger.get(self._context.tenant, response_id) is not None

    # --- what attempts report --------------------------------------------------------

    def attempt_relays(self, payloads: list[bytes]) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        record = self.record
        if record.first_event_ms is None:
            record.first_event_ms = self._elapsed_ms()
        attempt = self._attempt
        if record.first_output_ms is None and attempt is not None and attempt.relay.has_output:
            record.first_output_ms = self._elapsed_ms()
        self._silence.touch()
        self._relayed(payloads)

    def attempt_ended(self, attempt: Attempt) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        outcome = attempt.relay.outcome
        if isinstance(outcome, Finished):
            self._finished(attempt, outcome)
        elif isinstance(outcome, NotContinued):
            self._outcome("did not continue the previous response")
            self._continuity.not_taken_up(attempt.account)
            self._send_to(attempt.account, _SAME_ACCOUNT)
        elif isinstance(outcome, Refused):
            self._outcome(outcome.error.label)
            self._refused(attempt, outcome)
        elif isinstance(outcome, Broken):
            self._outcome(outcome.error.label)
            attempt.account.failures += 1
            self._broken(attempt, outcome.error)

    def _finished(self, attempt: Attempt, outcome: Finished) -> None:
        self._outcome(outcome.status)
        relay = attempt.relay
        self._continuity.learn(attempt.account, attempt.plan)
        if relay.turn_state is not None:
            key = turn_state_key(self._context.tenant, relay.turn_state)
            self._environment.pool.bindings.bind(key, attempt.account.name)
        if outcome.status == "completed" or outcome.reason in _CONTINUABLE:
            self._remember(
                relay.response_id,
                relay.items,
                attempt.account.name,
                held_upstream=not relay.minted,
            )
        else:
            self.record.response_id = relay.response_id
            self.error = outcome.error
        if outcome.error is not None and may_move(outcome.error):
            attempt.account.failures += 1
        self._end(outcome.status, outcome.error.label if outcome.error else outcome.reason)

    def _refused(self, attempt: Attempt, outcome: Refused) -> None:
        """Nothing of the attempt was seen: replay, move, or tell the client."""
        error = outcome.error
        if self._continuity.mended(attempt.account, attempt.plan, error):
            self._send_to(attempt.account, _SAME_ACCOUNT)
        elif may_move(error):
            attempt.account.failures += 1
            self._refusals.append(error)
            choice = self._next_choice()
            if choice is not None:
                self._send_to(choice.account, choice.rule)
            elif outcome.terminal and error is for_the_client(error):
                self._relay_refusal(attempt, outcome)
            else:
                self._refuse(for_the_client(most_hopeful(self._refusals)))
        elif outcome.terminal:
            self._relay_refusal(attempt, outcome)
        else:
            self._refuse(error)

    def _broken(self, attempt: Attempt, error: ApiError) -> None:
        """The client must start anew: what it saw cannot be taken back (§8.4)."""
        relay = attempt.relay
        if not (relay.released and relay.response_id):
            self._refuse(for_the_client(error))
            return
        code = error.code if error.code in ABOUT_THE_REQUEST else "server_error"
        assert code is not None
        self._relayed(
            [
                failed_event(
                    response_members(relay.created),
                    relay.items,
                    relay.last_number() + 1,
                    code,
                    error.message,
                )
            ]
        )
        self.record.response_id = relay.response_id
        self.error = error
        self._end("failed", error.label)

    def _relay_refusal(self, attempt: Attempt, outcome: Refused) -> None:
        """The upstream's own ``response.failed`` says it best."""
        self._relayed(outcome.terminal)
        self.record.response_id = attempt.relay.response_id
        self.error = outcome.error
        self._end("failed", outcome.error.label)

    # --- ending ----------------------------------------------------------------------

    def _refuse(self, error: ApiError) -> None:
        self.error = error
        self._door.refuse(error)
        self._end("error", error.label)

    def _prewarm(self) -> None:
        response_id = new_response_id("prewarm")
        now = int(self._environment.clock.seconds())
        self.record.route = Route.PREWARM.value
        self._relayed(prewarm_events(self._made(response_id), now))
        self._remember(response_id, [], None, held_upstream=False)
        self._end("completed", None)

    def _made(self, response_id: str) -> Members:
        parent = self._context.parent
        return made_response(
            response_id,
            self.request,
            int(self._environment.clock.seconds()),
            parent.id if parent is not None else None,
        )

    def _remember(
        self, response_id: str, raw_items: list[bytes], account: str | None, held_upstream: bool
    ) -> None:
        self.record.response_id = response_id
        self.recorded = record_response(
            self._environment,
            self._context,
            self.request,
            response_id,
            raw_items,
            account,
            held_upstream,
        )

    def _end(self, status: str, error_code: str | None) -> None:
        self._enter(TurnState.ENDED)
        self._silence.stop()
        if self._attempt is not None:
            self._attempt.account.turns += 1
            self._attempt = None  # it points back here, and holds what was sent
        record = self.record
        record.status, record.error_code = status, error_code
        record.duration_ms = self._elapsed_ms()
        self._environment.journal.ended(record)
        self._door.turn_ended()

    def _drop_attempt(self, outcome: str) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._outcome(outcome)

    def _outcome(self, outcome: str) -> None:
        self.record.attempts[-1].outcome = outcome

    def _relayed(self, payloads: list[bytes] | tuple[bytes, ...]) -> None:
        self.record.events += len(payloads)
        self.record.relayed_bytes += sum(map(len, payloads))
        self._door.relay(payloads)

    def _keep_awake(self) -> None:
        if self._environment.keepalive_seconds and not self._paused:
            self._silence.start(self._environment.keepalive_seconds)

    def _keep_alive(self) -> None:
        self._door.keep_alive()
        self._keep_awake()

    def _elapsed_ms(self) -> float:
        return round((self._environment.clock.seconds() - self._context.accepted_at) * 1000, 1)

    def _enter(self, state: TurnState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise AssertionError(f"a turn cannot go from {self._state} to {state}")
        self._state = state
