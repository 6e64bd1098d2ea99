"""The turn as a state machine: choose an account, send, relay, and end exactly once.

``QUEUED -> (WAITING <-> RUNNING) -> ENDED``.  While RUNNING, one
:class:`~gateway.turn.attempt.Attempt` after the other may be made, as long as the client saw
nothing of the one before (design law 4); while WAITING no account is free.  Whatever ends
the turn, the client gets one terminal event (law 5).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial

from gateway.conversations.context import ContextRoute
from gateway.conversations.store import Transcript
from gateway.deadline import Deadline
from gateway.protocol.dialect import Dialect
from gateway.protocol.errors import ApiError
from gateway.protocol.events import Members
from gateway.protocol.refusals import for_the_client, may_move
from gateway.protocol.request import TurnRequest
from gateway.protocol.response_stream import (
    BrokenResponse,
    FinishedResponse,
    GoesOn,
    RefusedResponse,
    ResponseStream,
    UnchainedResponse,
)
from gateway.protocol.synthetic_events import made_response, new_response_id, prewarm_events
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.lease import Lease
from gateway.routing.selection import RouteRequest, Selection
from gateway.routing.wait_queue import WaitReason
from gateway.turn.account_search import AccountSearch
from gateway.turn.attempt import Attempt
from gateway.turn.blame import FaultAttribution
from gateway.turn.context import EventSink, TurnContext, TurnServices
from gateway.turn.continuity import TurnContinuity
from gateway.turn.lessons import (
    learn_from_events,
    learn_from_headers,
    note_owner,
    note_owner_of_parent,
)
from gateway.turn.own_answers import broken_answer, interrupted_answer
from gateway.turn.preparing import dialect_of, sent_with, upstream_turn
from gateway.turn.recorder import SAME_ACCOUNT, TurnRecorder
from gateway.turn.recording import record_response
from gateway.turn.response_metadata import Telling

#: How responses end that may be continued (protocol.md §8.2).
_CONTINUABLE = frozenset({"completed", "incomplete"})


class TurnPhase(enum.Enum):
    """Where a turn stands."""

    QUEUED = "queued"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


TRANSITIONS = {
    TurnPhase.QUEUED: {TurnPhase.WAITING, TurnPhase.RUNNING, TurnPhase.ENDED},
    TurnPhase.WAITING: {TurnPhase.RUNNING, TurnPhase.ENDED},
    TurnPhase.RUNNING: {TurnPhase.WAITING, TurnPhase.ENDED},
    TurnPhase.ENDED: set(),
}


class Turn:
    """One ``response.create`` up to its terminal event.

    :param context: whose turn it is and what it continues.
    :ivar recorded: what was remembered of it, once it ended well.
    :ivar error: what ended it, when it did not.
    :ivar broken_off: it ended in the middle of its answer, in words of the gateway's own.
    :ivar record: its entry in the journal.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        request: TurnRequest,
        door: EventSink,
    ) -> None:
        self._services = services
        self._context = context
        self._door = door
        self._phase = TurnPhase.QUEUED
        self._attempt: Attempt | None = None
        self._lease: Lease | None = None
        self._last_refusal: tuple[Attempt, RefusedResponse] | None = None
        self._blame = FaultAttribution(services, context, request.model, request.fingerprint)
        self._paused = False
        self._continuity = TurnContinuity(context, request, services.ledger)
        self._telling = Telling(services, context)
        wanted = RouteRequest(
            request.model,
            context.affinity,
            turn_state=self._telling.account,
            background=request.background,
        )
        self._search = AccountSearch(services, context, wanted, self._continuity, self)
        self._silence = Deadline(services.clock, self._keep_alive)
        self.request = request
        self.recorded: Transcript | None = None
        self.error: ApiError | None = None
        self.broken_off = False
        self._log = TurnRecorder(
            services,
            context,
            request.model,
            request.previous_response_id,
            request.size,
            lane=request.stream_id,
        )
        self.record = self._log.record

    # --- the door's side -------------------------------------------------------------

    @property
    def response_id(self) -> str:
        """The id the client knows the running response by; empty before there is one."""
        return self._attempt.relay.response_id if self._attempt is not None else ""

    def start(self) -> None:
        """Run it."""
        self._log.queued()
        try:
            if self.request.prewarm:
                self._search.let_in()
                self._prewarm()
            else:
                self._keep_awake()
                self._search.next()
        except ApiError as error:
            self._refuse(error)

    def answer_headers(self) -> dict[str, str]:
        """What an HTTP client is told beside the answer, once it has begun (§7)."""
        return self._telling.headers(self.record, self._attempt)

    def cancel(self) -> None:
        """The client is gone: stop the upstream, send nothing."""
        if self._phase is not TurnPhase.ENDED:
            self._estimate()
            self._drop_attempt("cancelled")
            self._end("cancelled", None)

    def interrupt(self, accepted: Callable[[str, int], bytes] | None) -> None:
        """End it now with the items that are finished, as a response to go on from (§3.5).

        :param accepted: makes the event to send before the terminal one, of the response's
            id and the event's ``sequence_number``; or None.
        """
        if self._phase is TurnPhase.ENDED:
            return
        relay = self._attempt.relay if self._attempt is not None else ResponseStream()
        response_id, payloads = interrupted_answer(relay, self._made, accepted)
        self._relayed(payloads)
        account = self._attempt.account.name if self._attempt is not None else None
        self._estimate()
        self._drop_attempt("interrupted")
        self._remember(response_id, relay.items, account, held_upstream=False)
        self._end("incomplete", "interrupted")

    def abandon(self, error: ApiError) -> None:
        """The gateway gives it up: tell the client so that it comes again."""
        attempt = self._attempt
        if self._phase is TurnPhase.ENDED:
            return
        if attempt is None:
            self._refuse(error)
            return
        self._drop_attempt("abandoned")
        self._break_off(attempt, error)

    def pause(self) -> None:
        """The client reads too slowly: stop reading the upstream."""
        self._paused = True
        self._silence.stop()
        if self._attempt is not None:
            self._attempt.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._phase in (TurnPhase.RUNNING, TurnPhase.WAITING):
            self._keep_awake()
        if self._attempt is not None:
            self._attempt.resume()

    # --- choosing and sending --------------------------------------------------------

    def search_found(self, choice: Selection) -> None:
        """See :class:`~gateway.turn.account_search.SearchOwner`."""
        self._enter(TurnPhase.RUNNING)
        self._lease = choice.lease
        self._send(choice.rule, choice)

    def search_waits(self, lack: WaitReason) -> None:
        """See :class:`~gateway.turn.account_search.SearchOwner`."""
        self._enter(TurnPhase.WAITING)
        self._log.waits(lack)

    def search_failed(self, error: ApiError) -> None:
        """See :class:`~gateway.turn.account_search.SearchOwner`."""
        attempt, outcome = self._last_refusal or (None, None)
        if (
            attempt is not None
            and outcome is not None
            and outcome.terminal
            and error is outcome.error
        ):
            self._relay_refusal(attempt, outcome)
        else:
            self._refuse(error)

    def _send(self, rule: str, choice: Selection | None = None) -> None:
        """Try the account whose place this turn holds."""
        assert self._lease is not None
        account = self._lease.account
        plan = self._continuity.plan(account)
        dialect = self._dialect_of(account)
        turn = upstream_turn(
            self.request,
            self._context,
            account,
            plan,
            dialect,
            self._telling.upstream_state(account.name),
        )
        must_echo = account.settings.continuity == "auto"
        relay = ResponseStream(
            plan.previous_response_id if must_echo else None,
            pass_rate_limits=self._telling.tells_limits,
            is_taken=self._is_taken,
            named=self.request.previous_response_id,
            wrap_turn_state=partial(self._telling.wrapped, account.name),
            made=self._made,
            may_go_on=self.request.background and not dialect.streams,
            without_secrets=account.upstream.without_secrets,
        )
        # A background response is the client's once it exists: it can be asked for by its id.
        hold_seconds = 0.0 if self.request.background else self._services.hold_seconds
        self._attempt = Attempt(self._services, account, plan, turn, relay, hold_seconds, self)
        size = self._attempt.request_bytes
        self._log.tries(account.name, rule, plan.route.value, size, plan, choice)
        if self._paused:
            self._attempt.pause()
        self._attempt.start()

    def _dialect_of(self, account: Account) -> Dialect:
        concessions = self._continuity.concessions(account)
        request = self.request
        # Discounts for the background are for requests without a stream (§7).
        in_one_piece = request.background and not request.stream
        return dialect_of(account, request.model, self._context, concessions, in_one_piece)

    def _is_taken(self, response_id: str) -> bool:
        return self._services.ledger.get(self._context.tenant, response_id) is not None

    # --- what attempts report --------------------------------------------------------

    def attempt_connected(self, attempt: Attempt) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        self._log.connected()

    def attempt_answered(self, attempt: Attempt) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        self._log.answered()
        learn_from_headers(self._services, attempt)

    def attempt_acknowledged(self, attempt: Attempt) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        if self._lease is not None:
            self._lease.acknowledged()

    def attempt_relays(self, payloads: list[bytes]) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        record, attempt = self.record, self._attempt
        assert attempt is not None
        if record.first_event_ms is None:
            self._log.first_event()
            self._continuity.accepted(attempt.account)
            if self._continuity.is_kept_by(attempt.account):
                note_owner(self._services, self._context.tenant, attempt)
            if self._continuity.seeks_its_owner:
                note_owner_of_parent(self._services, self._context.tenant, attempt)
            payloads = self._telling.with_metadata(payloads, record, attempt)
        if record.first_output_ms is None and attempt.relay.has_output:
            self._log.first_output()
        self._silence.touch()
        self._relayed(payloads)

    def attempt_ended(self, attempt: Attempt) -> None:
        """See :class:`~gateway.turn.attempt.AttemptOwner`."""
        learn_from_events(self._services, attempt)
        outcome = attempt.relay.outcome
        if isinstance(outcome, FinishedResponse):
            self._finished(attempt, outcome)
        elif isinstance(outcome, GoesOn):
            self._goes_on(attempt)
        elif isinstance(outcome, UnchainedResponse):
            self._log.outcome("did not continue the previous response")
            self._not_continued(attempt)
        elif isinstance(outcome, RefusedResponse):
            self._log.outcome(outcome.error.label)
            self._refused(attempt, outcome)
        elif isinstance(outcome, BrokenResponse):
            self._log.outcome(outcome.error.label)
            self._let_rest(attempt, outcome.error)
            self._break_off(attempt, outcome.error)

    def _finished(self, attempt: Attempt, outcome: FinishedResponse) -> None:
        self._log.outcome(outcome.status)
        relay = attempt.relay
        self._continuity.learn(attempt.account, attempt.plan)
        if outcome.status in _CONTINUABLE:
            self._remember(
                relay.response_id,
                relay.items,
                attempt.account.name,
                held_upstream=not relay.minted and self._continuity.may_keep(attempt.account),
            )
        else:
            self.record.response_id = relay.response_id
            self.error = outcome.error
        if outcome.usage is not None:
            self._count(outcome.usage)
        elif outcome.error is None:
            self._estimate()
        if outcome.error is not None:
            self._let_rest(attempt, outcome.error)
        elif self._lease is not None:
            self._lease.acknowledged()
            self._blame.served_by(attempt.account)
        self._end(outcome.status, outcome.error.label if outcome.error else outcome.reason)

    def _goes_on(self, attempt: Attempt) -> None:
        """The upstream answers later, to who asks it for the response; this turn is done."""
        self._log.outcome("goes on in the background")
        self.record.response_id = attempt.relay.response_id
        self._estimate()
        self._blame.served_by(attempt.account)
        self._end("completed", None)

    def _count(self, usage: Usage) -> None:
        self._log.counts(usage)
        if self._search.visit is not None:
            self._search.visit.used(usage)

    def _estimate(self) -> None:
        """Who leaves before the end, where the usage is told, is not free of its limits."""
        visit = self._search.visit
        if visit is not None and self._attempt is not None and self._attempt.relay.created:
            visit.used(self._log.estimated())

    def _not_continued(self, attempt: Attempt) -> None:
        """The upstream answers without the history that it was asked to go on from."""
        if not self._continuity.can_replay:
            self._moves(attempt, self._continuity.unknown_parent())
            return
        self._continuity.not_taken_up(attempt.account)
        self._send(SAME_ACCOUNT)

    def _refused(self, attempt: Attempt, outcome: RefusedResponse) -> None:
        """Nothing of the attempt was seen: replay, move, or tell the client."""
        error = self._continuity.translated(outcome.error)
        account, plan = attempt.account, attempt.plan
        sent = sent_with(self.request, plan, self._dialect_of(account))
        if self._continuity.mended(account, plan, sent, error):
            self._send(SAME_ACCOUNT)
            return
        self._let_rest(attempt, error)
        own_words = outcome.terminal and error is outcome.error and not may_move(error)
        if own_words and for_the_client(error) is error:
            self._relay_refusal(attempt, outcome)
            return
        self._last_refusal = attempt, outcome
        self._moves(attempt, error)

    def _moves(self, attempt: Attempt, error: ApiError) -> None:
        """Ask another account, where another may answer what this one refused."""
        if not self._continuity.may_move(error):
            self._refuse(for_the_client(error))
            return
        self._attempt = None
        self._search.refused(attempt.account, error)
        self._give_back()
        self._search.next()

    def _let_rest(self, attempt: Attempt, error: ApiError) -> None:
        """Let whoever is at fault rest (design law 13)."""
        if may_move(error):
            attempt.account.failures += 1
        if self._lease is not None:
            self._lease.refused(self._blame.fault_of(attempt.account, error))

    def _break_off(self, attempt: Attempt, error: ApiError) -> None:
        """The client must start anew: what it saw cannot be taken back (§8.4)."""
        relay = attempt.relay
        if not (relay.released and relay.response_id):
            self._refuse(for_the_client(error))
            return
        self.broken_off = True
        self._relayed([broken_answer(relay, error)])
        self.record.response_id = relay.response_id
        self.error = error
        self._end("failed", error.label)

    def _relay_refusal(self, attempt: Attempt, outcome: RefusedResponse) -> None:
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
        now = int(self._services.clock.seconds())
        self.record.route = ContextRoute.PREWARM.value
        self._relayed(prewarm_events(self._made(response_id), now))
        self._remember(response_id, [], None, held_upstream=False)
        self._end("completed", None)

    def _made(self, response_id: str) -> Members:
        parent = self._context.parent
        return made_response(
            response_id,
            self.request,
            int(self._services.clock.seconds()),
            parent.record.id if parent is not None else None,
        )

    def _remember(
        self, response_id: str, raw_items: list[bytes], account: str | None, held_upstream: bool
    ) -> None:
        self.record.response_id = response_id
        self.recorded = record_response(
            self._services,
            self._context,
            self.request,
            response_id,
            raw_items,
            account,
            held_upstream,
        )

    def _end(self, status: str, error_code: str | None) -> None:
        self._enter(TurnPhase.ENDED)
        self._silence.stop()
        if self._attempt is not None:
            self._attempt.account.turns += 1
        self._attempt = self._last_refusal = None  # they point here, and hold what was sent
        self._give_back()
        self._search.stop()
        self._log.closed(status, error_code)
        self._door.turn_ended()

    def _give_back(self) -> None:
        """Free the place on the account; others may wait for it."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def _drop_attempt(self, outcome: str) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._log.outcome(outcome)

    def _relayed(self, payloads: list[bytes] | tuple[bytes, ...]) -> None:
        self.record.events += len(payloads)
        self.record.relayed_bytes += sum(map(len, payloads))
        self._door.relay(payloads)

    def _keep_awake(self) -> None:
        if self._services.keepalive_seconds and not self._paused:
            self._silence.start(self._services.keepalive_seconds)

    def _keep_alive(self) -> None:
        self._door.keep_alive()
        self._keep_awake()

    def _enter(self, phase: TurnPhase) -> None:
        if phase is self._phase:
            return
        if phase not in TRANSITIONS[self._phase]:
            raise AssertionError(f"a turn cannot go from {self._phase} to {phase}")
        self._phase = phase
