"""A client's request to an account of the pool: what turns and forwarded requests share.

``QUEUED -> RESOLVING -> (WAITING <-> RUNNING) -> ENDED``.  RESOLVING looks up the response
that the request continues.  While WAITING no account is free.  While RUNNING another attempt may be
made as long as the client saw nothing of the one before (design law 4).  A refusal is charged to
the party at fault: the account, the model, the service or the proxy; or it is not charged (law 13).
"""

from __future__ import annotations

import abc
import enum
import itertools
from collections.abc import Hashable, Mapping
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred, TimeoutError
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.conversations.context import ContextPlan
from gateway.protocol.error_classification import Fault, FaultKind, attribute, for_the_client
from gateway.protocol.errors import GATEWAY_FAILED, ApiError
from gateway.protocol.rate_limits import read_windows
from gateway.protocol.usage import Usage
from gateway.routing.account import Account, Lease
from gateway.routing.selection import Selection
from gateway.routing.wait_queue import WaitReason
from gateway.turn.account_search import AccountSearch, KnownAccounts
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.turn_log import SHOWN, TurnRecord, TurnRecorder
from gateway.upstream.interface import UpstreamExchange

#: How long a store may take to look up what a request continues, in seconds.
RESOLVE_SECONDS = 10.0

#: The rule of an attempt that sends a changed request to the same account.
SAME_ACCOUNT = "the same account, another way"

_numbers = itertools.count(1)

_log = Logger(namespace="gateway.turn")


class RequestPhase(enum.Enum):
    """The phases of a request."""

    __hash__ = object.__hash__  # there is one of each; Enum hashes names, in Python

    QUEUED = "queued"
    RESOLVING = "resolving"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


TRANSITIONS = {
    RequestPhase.QUEUED: {RequestPhase.RESOLVING, RequestPhase.ENDED},
    RequestPhase.RESOLVING: {RequestPhase.WAITING, RequestPhase.RUNNING, RequestPhase.ENDED},
    RequestPhase.WAITING: {RequestPhase.RUNNING, RequestPhase.ENDED},
    RequestPhase.RUNNING: {RequestPhase.WAITING, RequestPhase.ENDED},
    RequestPhase.ENDED: set(),
}


class Attempt:
    """One attempt of a request on one account; subclasses read the answer.

    :param plan: the context plan; None for a request without a conversation.
    :param route: the route in the log.
    :ivar exchange: the exchange of the account's transport.
    :ivar request_bytes: size of the request to the account.
    :ivar answer_headers: the upstream's response headers, names in lower case.
    """

    exchange: UpstreamExchange
    request_bytes: int
    answer_headers: Mapping[str, str]

    def __init__(self, account: Account, plan: ContextPlan | None, route: str) -> None:
        self.account = account
        self.plan = plan
        self.route = route
        self.answer_headers = {}

    def cancel(self) -> None:
        """Drop the attempt; it reports nothing more."""
        self.exchange.cancel()


AttemptT = TypeVar("AttemptT", bound=Attempt)


class RoutedRequest(abc.ABC, Generic[AttemptT]):
    """One request from its arrival to its end, over as many attempts as it takes.

    :param context: the client it came from.
    :param model: as the client calls it, or None.
    :param request_bytes: of what the client sent.
    :param route: the kind of the request, if it is no turn.
    :ivar record: its entry in the turn log.
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
        self._services = services
        self._context = context
        self._model = model
        self._phase = RequestPhase.QUEUED
        self._resolving: Deferred[Any] | None = None
        self._search: AccountSearch | KnownAccounts | None = None
        self._lease: Lease | None = None
        self._attempt: AttemptT | None = None
        self._paused = False
        #: Refusals without a clear reason.  If another account serves the request, the accounts
        #: that refused it are at fault.
        self._unclear: list[tuple[Account, Fault]] = []
        self.record = TurnRecord(
            turn=f"{context.connection}.{next(_numbers)}",
            connection=context.connection,
            key=context.tenant,
            lane=lane,
            model=model and model[:SHOWN],
            previous_response_id=previous_response_id and previous_response_id[:SHOWN],
            continuation=None,
            request_bytes=request_bytes,
            route=route,
        )
        self._log = TurnRecorder(
            services.turn_log, services.clock, context.accepted_at, context.affinity, self.record
        )

    # --- the client's side -----------------------------------------------------------

    def start(self) -> None:
        """Run it.  Whatever goes wrong, the client gets exactly one error."""
        self._log.queued()
        self._enter(RequestPhase.RESOLVING)
        try:
            found = self._resolve()
            if isinstance(found, Deferred):
                self._await(found.addCallback(self._prepared))
                return
            prepared = self._prepared(found)
            if isinstance(prepared, Deferred):
                self._await(prepared)
            else:  # the usual case does without a Deferred
                self._resolved(found)
        except ApiError as error:
            self._fail(error)
        except Exception:
            self._fail_inside(Failure())

    @abc.abstractmethod
    def abandon(self, error: ApiError) -> None:
        """End it because the gateway stops or failed, with an error that clients retry."""

    def pause(self) -> None:
        """The client reads too slowly: stop reading the upstream."""
        self._paused = True
        if self._attempt is not None:
            self._attempt.exchange.pause()

    def resume(self) -> None:
        """Read on."""
        self._paused = False
        if self._attempt is not None:
            self._attempt.exchange.resume()

    # --- resolving -------------------------------------------------------------------

    @abc.abstractmethod
    def _resolve(self) -> Any:
        """Look up what the request continues.

        :return: what :meth:`_resolved` takes, or a Deferred of it.
        :raises ApiError: when the request cannot be continued.
        """

    @abc.abstractmethod
    def _resolved(self, found: Any) -> None:
        """Take the result of :meth:`_resolve`: set the search and begin it."""

    def _enters_limits(self, found: Any) -> bool:
        """Whether what :meth:`_resolve` found leads to a search within the key's limits."""
        return True

    def _prepared(self, found: Any) -> Any:
        """``found``, or a Deferred of it while limits are asked for that processes share."""
        if not self._enters_limits(found):
            return found
        prepared = self._services.limits.prepare(self._context.tenant)
        return found if prepared is None else prepared.addCallback(lambda _: found)

    def _await(self, found: Deferred[Any]) -> None:
        self._resolving = found
        found.addTimeout(RESOLVE_SECONDS, self._services.clock)
        found.addCallbacks(self._resolved_later, self._unresolved)
        found.addErrback(self._fail_inside)

    def _resolved_later(self, found: Any) -> None:
        if self._resolving is not None:  # the request has not ended meanwhile
            self._resolving = None
            try:
                self._resolved(found)
            except ApiError as error:
                self._fail(error)

    def _unresolved(self, failure: Failure) -> None:
        if self._resolving is None:
            return
        self._resolving = None
        error = failure.value
        if isinstance(error, TimeoutError):
            error = ApiError(
                503,
                "server_error",
                "The gateway could not look up the conversation in time; try again.",
                GATEWAY_FAILED,
            )
        if isinstance(error, ApiError):
            self._fail(error)
        else:
            _log.failure("a conversation could not be looked up", failure)
            self._fail(ApiError.gateway_failed())

    # --- finding an account ----------------------------------------------------------

    def _found(self, account: Account, rule: str, choice: Selection | None) -> None:
        """``account`` is next; the lease of ``choice`` is the request's now."""
        self._enter(RequestPhase.RUNNING)
        self._lease = None if choice is None else choice.lease
        self._send(account, rule, choice)

    def _waits(self, reason: WaitReason) -> None:
        """No account is available; the reason may change while the request waits."""
        self._enter(RequestPhase.WAITING)
        self._log.waits(reason)

    def _send(self, account: Account, rule: str, choice: Selection | None = None) -> None:
        try:
            self._attempt = attempt = self._attempt_at(account)
        except Exception:
            _log.failure("a request could not be made for {account}", account=account.name)
            self._fail(ApiError.gateway_failed())
            return
        self._log.tries(
            account.name,
            rule,
            attempt.route,
            attempt.exchange.transport_name,
            attempt.request_bytes,
            attempt.plan,
            choice,
        )
        if self._paused:
            attempt.exchange.pause()
        attempt.exchange.start()

    @abc.abstractmethod
    def _attempt_at(self, account: Account) -> AttemptT:
        """The request as ``account`` should get it, not sent yet."""

    # --- what attempts report --------------------------------------------------------

    def attempt_connected(self, attempt: AttemptT) -> None:
        """The request goes out on a connection."""
        self._log.connected(attempt.exchange.transport_name)

    def attempt_answered(self, attempt: AttemptT) -> None:
        """The upstream's answer begins; its headers report the account's quotas."""
        self._log.answered()
        windows = read_windows(attempt.answer_headers, self._services.clock.seconds())
        if windows:
            attempt.account.health.observe(windows)

    @abc.abstractmethod
    def attempt_acknowledged(self, attempt: AttemptT) -> None:
        """The upstream accepted the request: what follows is its answer."""

    @abc.abstractmethod
    def attempt_relays(self, payloads: list[bytes]) -> None:
        """Relay these to the client."""

    @abc.abstractmethod
    def attempt_ended(self, attempt: AttemptT) -> None:
        """The answer is over, or there is none."""

    # --- refusals --------------------------------------------------------------------

    def _refused(self, attempt: AttemptT, error: ApiError) -> None:
        """The client saw nothing of the answer: send it again, try another account, or fail."""
        error = self._translated(error)
        if self._adapt_to(attempt, error):
            self._send(attempt.account, SAME_ACCOUNT)
            return
        self._charge(attempt.account, error)
        self._move(attempt, error)

    def _move(self, attempt: AttemptT, error: ApiError) -> None:
        """Ask another account if it may answer what this one refused; else fail."""
        if not self._may_move(error):
            self._fail(for_the_client(error))
            return
        assert self._search is not None
        self._attempt = None
        self._search.refused(attempt.account, error)
        self._release()
        self._search.next()

    @abc.abstractmethod
    def _translated(self, error: ApiError) -> ApiError:
        """A refusal from the point of view of this request."""

    @abc.abstractmethod
    def _adapt_to(self, attempt: AttemptT, error: ApiError) -> bool:
        """Change the request to what the account may accept; whether to send it there again."""

    @abc.abstractmethod
    def _may_move(self, error: ApiError) -> bool:
        """Whether another account might answer what one refused with ``error``."""

    @abc.abstractmethod
    def _charge(self, account: Account, error: ApiError) -> None:
        """Charge the refusal to the party at fault."""

    @abc.abstractmethod
    def _fingerprint(self) -> Hashable:
        """A value that is equal for a request that is sent again."""

    def _fault_of(self, account: Account, error: ApiError) -> Fault:
        """Attribute an error of ``account``."""
        model = self._model
        fault = attribute(
            error,
            self._services.clock.seconds(),
            (self._context.tenant, self._fingerprint()),
            () if model is None else (model, account.settings.aliases.get(model, model)),
        )
        if fault.kind is FaultKind.UNCLEAR:
            self._unclear.append((account, fault))
        return fault

    def _served_by(self, server: Account) -> None:
        """Charge the accounts that refused the request without a clear reason: it was valid."""
        unclear, self._unclear = self._unclear, []
        for account, fault in unclear:
            if account is not server:
                account.health.contradicted(self._model, fault)

    # --- ending ----------------------------------------------------------------------

    @abc.abstractmethod
    def _fail(self, error: ApiError) -> None:
        """Send ``error`` to the client, and end."""

    def _fail_inside(self, failure: Failure) -> None:
        """End the request after a bug of the gateway, instead of leaving it running."""
        _log.failure("turn {turn} could not start", failure, turn=self.record.turn)
        self.abandon(ApiError.gateway_failed())

    def _count(self, usage: Usage) -> None:
        """Charge ``usage`` to the limits of the client's key."""
        if self._search is not None and self._search.limit_lease is not None:
            self._search.limit_lease.used(usage)

    def _release(self) -> None:
        """Release the account's lease; other requests may wait for it."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.release()

    def _close(self, status: str, error_code: str | None) -> None:
        """Release everything; the request is over."""
        self._enter(RequestPhase.ENDED)
        resolving, self._resolving = self._resolving, None
        if resolving is not None:
            resolving.cancel()
        self._attempt = None  # it refers to this request, and keeps the body that was sent
        self._release()
        if self._search is not None:
            self._search.stop()
        self._log.closed(status, error_code)

    def _enter(self, phase: RequestPhase) -> None:
        if phase is self._phase:
            return
        if phase not in TRANSITIONS[self._phase]:
            raise AssertionError(f"a request cannot go from {self._phase} to {phase}")
        self._phase = phase
