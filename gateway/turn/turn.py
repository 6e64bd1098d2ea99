"""The turn: choose an account, send, relay, and end exactly once.

Its phases are those of :mod:`gateway.turn.routed_request`.  Whatever ends a turn, the client
gets one terminal event (design law 5).  A refused attempt is repeated or moved as long as the
client saw nothing of it (design law 4; protocol.md §3.5, §8.2, §8.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from twisted.internet.defer import Deferred

from gateway.conversations.context import ContextRoute
from gateway.conversations.store import Transcript
from gateway.deadline import Deadline
from gateway.protocol.controls import ControlMessage
from gateway.protocol.error_classification import code_of_failure, for_the_client, may_move
from gateway.protocol.errors import ApiError
from gateway.protocol.events import response_members
from gateway.protocol.items import read_item, with_issuers
from gateway.protocol.request import Members, TurnRequest
from gateway.protocol.response_stream import (
    BackgroundResponse,
    BrokenResponse,
    FinishedResponse,
    RefusedResponse,
    ResponseStream,
    UnchainedResponse,
)
from gateway.protocol.synthetic_events import (
    NO_SUCCESSOR,
    NOT_ACTIVE,
    created_event,
    failed_event,
    interrupted_event,
    new_response_id,
    prewarm_events,
    synthetic_response,
)
from gateway.protocol.upstream_request import UpstreamTurn
from gateway.routing.account import Account
from gateway.routing.selection import FOLLOWS, RouteRequest
from gateway.turn.account_search import AccountSearch
from gateway.turn.attempt import TurnAttempt
from gateway.turn.context import EventSink, Resolution, Resolver, TurnContext, TurnServices
from gateway.turn.continuity import ResponseAtAccount, TurnContinuity
from gateway.turn.response_metadata import ResponseMetadata, route_headers
from gateway.turn.routed_request import SAME_ACCOUNT, RequestPhase, RoutedRequest
from gateway.turn.successor_wait import Following, SuccessorWait

#: How long an upstream may take for a prewarm, in seconds, before the gateway answers it: less than
#: a preamble is held back.
_PREWARM_SECONDS = 4.0

MakeAnswer = Callable[[str, int], bytes]

#: Final statuses of responses that may be continued.
_CONTINUABLE = frozenset({"completed", "incomplete"})


class Turn(RoutedRequest[TurnAttempt]):
    """One ``response.create`` up to its terminal event.

    :param resolve: looks up the response that the turn continues.
    :param follows: its response, if that has begun already, without a request.
    :ivar successor_wait: the wait for a response that follows this one by itself, or None.
    :ivar recorded: the transcript in the store, if it ended well.
    :ivar error: why it failed, or None.
    :ivar broken_off: whether the answer broke off, and the gateway made the terminal event.
    """

    attempt_class: type[TurnAttempt] = TurnAttempt

    #: Set when the conversation was looked up.
    _continuity: TurnContinuity

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        request: TurnRequest,
        sink: EventSink,
        resolve: Resolver,
        follows: Following | None = None,
    ) -> None:
        super().__init__(
            services,
            context,
            request.model,
            request.previous_response_id,
            request.size,
            lane=request.stream_id,
        )
        self._sink = sink
        self._resolver = resolve
        self._parent: Transcript | None = None
        #: The last attempt that an account refused.
        self._last_refused: TurnAttempt | None = None
        self._metadata = ResponseMetadata(services, context)
        self._silence = Deadline(services.clock, self._keep_alive)
        self._warming = Deadline(services.clock, self._warms_too_long)
        self.request = request
        self._follows = follows
        self.successor_wait: SuccessorWait | None = None
        self.recorded: Transcript | None = None
        self.error: ApiError | None = None
        self.broken_off = False

    # --- the client's side -----------------------------------------------------------

    @property
    def response_id(self) -> str:
        """The id of the running response for the client; empty before there is one."""
        return self._attempt.response.response_id if self._attempt is not None else ""

    def start(self) -> None:
        """Run it."""
        if not self.request.prewarm:
            self._keep_awake()
        super().start()

    def answer_headers(self) -> dict[str, str]:
        """The response headers for an HTTP client, once the answer has begun."""
        attempt = self._attempt
        if attempt is None:
            return route_headers(self.record)
        sent_state = attempt.response.turn_state is not None
        return self._metadata.headers(self.record, attempt.answer_headers, sent_state)

    def cancel(self) -> None:
        """The client disconnected: stop the upstream, send nothing."""
        if self._phase is not RequestPhase.ENDED:
            self._estimate()
            self._drop_attempt("cancelled")
            self._close("cancelled", None)

    def interrupt(self, accepted: MakeAnswer | None, message: ControlMessage | None = None) -> None:
        """End it, with the finished items, as a response that can be continued.

        If the account's service knows ``message``, the response ends there; else it ends now.
        Before its conversation is looked up, the turn leaves nothing to continue.

        :param accepted: makes the event to send before the terminal one, from the response's
            id and the event's ``sequence_number``; or None.
        """
        if self._phase is RequestPhase.ENDED:
            return

        def end_here(is_told: bool) -> None:
            self._end_here(None if is_told else accepted)

        if self._attempt is not None:
            controls = self._attempt.controls
            if controls.end_here() if message is None else controls.interrupt(message, end_here):
                return
        self._end_here(accepted)

    def give_input(self, message: ControlMessage) -> str | None:
        """Steer the response, or inject input; returns a code if that cannot be done."""
        attempt = self._attempt
        return NOT_ACTIVE if attempt is None else attempt.controls.give_input(message)

    def _end_here(self, accepted: MakeAnswer | None) -> None:
        attempt = self._attempt
        response = attempt.response if attempt is not None else ResponseStream()
        payloads = response.release()
        members = response_members(response.created)
        response_id, number = response.response_id, response.last_number()
        if not response_id:
            response_id = new_response_id()
            members = self._new_response(response_id)
            if number < 0:
                payloads.append(created_event(members))
                number = 0
        if accepted is not None:
            number += 1
            payloads.append(accepted(response_id, number))
        payloads.append(interrupted_event(members, response.items, number + 1))
        items = [] if attempt is None else attempt.items
        self._relay(payloads)
        self._estimate()
        self._drop_attempt("interrupted")
        account = attempt.account.name if attempt is not None else None
        self._remember(response_id, items, account)
        self._close("incomplete", "interrupted")

    def abandon(self, error: ApiError) -> None:
        """End it because the gateway stops or failed, with an error that clients retry."""
        if self._phase is RequestPhase.ENDED:
            return
        if self._attempt is None:
            self._fail(error)
        else:
            self._drop_attempt("abandoned")
            self._break_off(self._attempt, error)

    def pause(self) -> None:
        """The client reads too slowly: stop reading the upstream."""
        self._silence.stop()
        super().pause()

    def resume(self) -> None:
        """Read on."""
        super().resume()
        if self._phase not in (RequestPhase.QUEUED, RequestPhase.ENDED):
            self._keep_awake()

    # --- resolving and sending -------------------------------------------------------

    def _resolve(self) -> Resolution | Deferred[Resolution]:
        return self._resolver(self.request)

    def _resolved(self, found: Resolution) -> None:
        services, context = self._services, self._context
        self.request = request = found.request
        self._parent = found.parent
        self.record.continuation = found.continuation
        self._continuity = TurnContinuity(context.tenant, found, services.conversations)
        wanted = RouteRequest(
            request.model,
            context.affinity,
            turn_state=self._metadata.account,
            background=request.background,
        )
        self._search = search = AccountSearch(
            services,
            context.tenant,
            wanted,
            self._continuity,
            self._found,
            self._waits,
            self._fail,
        )
        if self._follows is not None:
            search.follow(self._follows.account, FOLLOWS)
            return
        if not request.prewarm:
            search.next()
            return
        search.admit_without_account()
        warm = search.warm_account()
        if warm is None:
            self._answer_prewarm()
        else:
            self._warming.start(_PREWARM_SECONDS)
            self._found(*warm)

    def _attempt_at(self, account: Account) -> TurnAttempt:
        continuity, context, request = self._continuity, self._context, self.request
        concessions = continuity.concessions.to(account)
        follows, self._follows = self._follows, None
        plan = continuity.plan(account, concessions) if follows is None else continuity.followed()
        # Discounts for the background are for requests without a stream.
        in_one_piece = request.background and not request.stream
        dialect = continuity.concessions.dialect(
            account, concessions, context.affinity, in_one_piece
        )
        sent = UpstreamTurn(
            request,
            plan.items,
            plan.previous_response_id,
            dialect,
            context.client_headers,
            account.request_headers,
            self._metadata.upstream_state(account.name),
            context.affinity[-1] if context.affinity else None,
            context.tenant,
            continuity.holder_of(plan),
            continuity.avoids_websocket(account),
        )
        must_echo = account.settings.continuity == "auto" and follows is None
        response = ResponseStream(
            plan.previous_response_id if must_echo else None,
            pass_rate_limits=self._metadata.shows_limits,
            is_taken=self._is_taken,
            client_parent=request.previous_response_id,
            wrap_turn_state=partial(self._metadata.wrapped, account.name),
            new_response=self._new_response,
            is_background=request.background and not dialect.streams,
            without_secrets=account.upstream.without_secrets,
        )
        # A background response is relayed at once: clients can poll it by its id.
        hold_seconds = 0.0 if request.background else self._services.hold_seconds
        clock = self._services.clock
        successor = None if follows is None else follows.successor
        return self.attempt_class(
            self, account, plan, sent, response, hold_seconds, clock, successor
        )

    def _is_taken(self, response_id: str) -> bool:
        return self._services.conversations.get(self._context.tenant, response_id) is not None

    # --- what attempts report --------------------------------------------------------

    def attempt_acknowledged(self, attempt: TurnAttempt) -> None:
        """The upstream accepted the turn."""
        if self._lease is not None:
            self._lease.acknowledged()

    def attempt_relays(self, payloads: list[bytes]) -> None:
        """Relay these events to the client."""
        record = self.record
        if record.first_event_ms is None:
            payloads = self._first_events(payloads)
        if record.first_output_ms is None:
            attempt = self._attempt
            if attempt is not None and attempt.response.has_output:
                self._log.first_output()
        self._silence.touch()
        self._relay(payloads)

    def attempt_ended(self, attempt: TurnAttempt) -> None:
        """The attempt ended; ``attempt.response.outcome`` says how."""
        attempt.learn_quotas()
        outcome = attempt.response.outcome
        if isinstance(outcome, FinishedResponse):
            self._finished(attempt, outcome)
        elif attempt.has_controls and attempt.controls.end_here():
            return
        elif isinstance(outcome, BackgroundResponse):
            self._continues_in_background(attempt)
        elif isinstance(outcome, UnchainedResponse):
            self._log.outcome("did not continue the previous response")
            self._not_continued(attempt)
        elif isinstance(outcome, RefusedResponse):
            self._log.outcome(outcome.error.label)
            self._last_refused = attempt
            self._refused(attempt, outcome.error)
        elif isinstance(outcome, BrokenResponse):
            self._log.outcome(outcome.error.label)
            self._charge(attempt.account, outcome.error)
            self._break_off(attempt, outcome.error)

    def _first_events(self, payloads: list[bytes]) -> list[bytes]:
        """Before the first events are relayed: learn from them, and add the metadata event."""
        attempt, continuity = self._attempt, self._continuity
        assert attempt is not None
        self._log.first_event()
        continuity.concessions.accepted(attempt.account)
        response, account = attempt.response, attempt.account
        owners, tenant = self._services.owners, self._context.tenant
        if continuity.is_kept_by(account) and response.response_id and not response.id_is_ours:
            owners.note(tenant, response.response_id, account.name)
        if continuity.owner_is_unknown and attempt.sent.previous_response_id is not None:
            # The account continued a response that is not in the store, so it keeps it.
            owners.note(tenant, attempt.sent.previous_response_id, account.name)
        sent_state = response.turn_state is not None
        event = self._metadata.event(self.record, attempt.answer_headers, sent_state)
        return payloads if event is None else [payloads[0], event, *payloads[1:]]

    def _finished(self, attempt: TurnAttempt, outcome: FinishedResponse) -> None:
        continuity, response, account = self._continuity, attempt.response, attempt.account
        self._log.outcome(outcome.status)
        continuity.learn(account, attempt.chosen)
        if outcome.status in _CONTINUABLE:
            at_account = continuity.at_account(account, response, attempt.exchange.holder)
            self._remember(response.response_id, attempt.items, account.name, at_account)
        else:
            self.record.response_id = response.response_id
            self.error = outcome.error
        if outcome.usage is not None:
            self._log.counts(outcome.usage)
            if not self.request.prewarm:  # whether a service charges for it is not known
                self._count(outcome.usage)
        elif outcome.error is None:
            self._estimate()
        if outcome.error is not None:
            self._charge(account, outcome.error)
        elif self._lease is not None:
            self._lease.acknowledged()
            self._served_by(account)
        self._close(outcome.status, outcome.error.label if outcome.error else outcome.reason)

    def _continues_in_background(self, attempt: TurnAttempt) -> None:
        """The upstream runs the response in the background; this turn is done."""
        self._log.outcome("goes on in the background")
        self.record.response_id = attempt.response.response_id
        self._estimate()
        self._served_by(attempt.account)
        self._close("completed", None)

    def _not_continued(self, attempt: TurnAttempt) -> None:
        """The upstream ignored the previous response: replay, or ask another account."""
        if not self._continuity.can_replay:
            self._move(attempt, self._continuity.unknown_parent())
            return
        self._continuity.not_taken_up(attempt.account)
        self._send(attempt.account, SAME_ACCOUNT)

    # --- refusals --------------------------------------------------------------------

    def _translated(self, error: ApiError) -> ApiError:
        return self._continuity.translated(error)

    def _adapt_to(self, attempt: TurnAttempt, error: ApiError) -> bool:
        plan = attempt.chosen
        sent = self._continuity.sent(plan, attempt.sent.dialect)
        return self._continuity.adapt_to(attempt.account, plan, sent, error)

    def _may_move(self, error: ApiError) -> bool:
        if self.request.prewarm:
            return False  # the gateway can answer it
        return self._continuity.may_move(error)

    def _charge(self, account: Account, error: ApiError) -> None:
        if may_move(error):
            account.failures += 1
        if self._lease is not None:
            self._lease.refused(self._fault_of(account, error))

    def _fingerprint(self) -> bytes:
        return self.request.fingerprint()

    def _break_off(self, attempt: TurnAttempt, error: ApiError) -> None:
        """End with ``response.failed``, because the client has seen a part of the answer."""
        response = attempt.response
        if not (response.released and response.response_id):
            self._fail(for_the_client(error))
            return
        self.broken_off = True
        failed = failed_event(
            response_members(response.created),
            response.items,
            response.last_number() + 1,
            code_of_failure(error),
            error.message,
        )
        self._end_failed(attempt, [failed], error)

    # --- ending ----------------------------------------------------------------------

    def _fail(self, error: ApiError) -> None:
        """Send the error; the upstream's own ``response.failed`` is preferred."""
        if self.request.prewarm and self._phase is RequestPhase.RUNNING:
            self._answer_prewarm()
            return
        refused = self._last_refused
        if refused is not None:
            outcome = refused.response.outcome
            assert isinstance(outcome, RefusedResponse)
            if outcome.terminal and error is outcome.error:
                self._end_failed(refused, outcome.terminal, error)
                return
        self.error = error
        self._sink.refuse(error)
        self._close("error", error.label)

    def _end_failed(self, attempt: TurnAttempt, payloads: Sequence[bytes], error: ApiError) -> None:
        self._relay(payloads)
        self.record.response_id = attempt.response.response_id
        self.error = error
        self._close("failed", error.label)

    def _warms_too_long(self) -> None:
        """The upstream's prewarm takes longer than a client should wait for it."""
        if self._attempt is not None and not self._attempt.response.released:
            self._drop_attempt("took too long")
            self._answer_prewarm()

    def _answer_prewarm(self) -> None:
        """Answer it without an upstream; its input is sent with the next turn."""
        response_id = new_response_id("prewarm")
        now = int(self._services.clock.seconds())
        self.record.route = ContextRoute.PREWARM.value
        self._relay(prewarm_events(self._new_response(response_id), now))
        self._remember(response_id, [], None)
        self._close("completed", None)

    def _new_response(self, response_id: str) -> Members:
        """A response object for an id, if the upstream gave none."""
        return synthetic_response(
            response_id,
            self.request,
            int(self._services.clock.seconds()),
            self._parent.record.id if self._parent is not None else None,
        )

    def _remember(
        self,
        response_id: str,
        raw_items: list[bytes],
        account: str | None,
        at_account: ResponseAtAccount | None = None,
    ) -> None:
        self.record.response_id = response_id
        if self._search is None:
            return  # the conversation is not looked up yet
        output = with_issuers(tuple(map(read_item, raw_items)), lambda _: account)
        if account is not None:
            for item in output:
                if item.encrypted:
                    self._services.issuers.note(item.raw, account)
        now = self._services.clock.seconds()
        self.recorded = self._continuity.record(response_id, output, account, at_account, now)

    def _estimate(self) -> None:
        """Count an estimated usage for a turn that ends before its usage is known."""
        if self._attempt is not None and self._attempt.response.created:
            self._count(self._log.estimated())

    def _close(self, status: str, error_code: str | None) -> None:
        self._silence.stop()
        self._warming.stop()
        attempt = self._attempt
        if attempt is not None:
            attempt.account.turns += 1
            if attempt.has_controls:
                self._end_controls(attempt, status)
        follows, self._follows = self._follows, None
        if follows is not None:
            follows.successor.cancel()
        self._last_refused = None
        super()._close(status, error_code)
        self._sink.turn_ended()

    def _end_controls(self, attempt: TurnAttempt, status: str) -> None:
        """Tell the client what became of what it said; another response may follow."""
        successor, controls = attempt.successor, attempt.controls
        untold = controls.stop(NO_SUCCESSOR if successor is None else None)
        if untold and status != "cancelled":
            self._relay(untold)
        if successor is not None:
            self.successor_wait = SuccessorWait(
                Following(attempt.account, successor),
                controls,
                self.request,
                None if self.recorded is None else self.recorded.record.id,
                self._sink.relay,
                self._services.clock,
            )

    def _drop_attempt(self, outcome: str) -> None:
        if self._attempt is not None:
            self._attempt.cancel()
            self._log.outcome(outcome)

    def _relay(self, payloads: Sequence[bytes]) -> None:
        self.record.events += len(payloads)
        self.record.relayed_bytes += sum(map(len, payloads))
        self._sink.relay(payloads)

    def _keep_awake(self) -> None:
        if self._services.keepalive_seconds and not self._paused:
            self._silence.start(self._services.keepalive_seconds)

    def _keep_alive(self) -> None:
        self._sink.keep_alive()
        self._keep_awake()
