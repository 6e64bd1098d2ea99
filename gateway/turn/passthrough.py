"""Requests that are passed to an account of the pool as they are, and their answers.

What turns are to ``POST /responses``, passed-through requests are to everything beside it: an
account is found, the request is sent, a refusal that another account may not share sends it on,
and the answer is relayed byte for byte.  Nothing moves any more once the client has seen a byte.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, Protocol

from twisted.internet.defer import Deferred

from gateway.conversations.context import ContextPlan
from gateway.conversations.store import Transcript
from gateway.protocol.error_classification import NOT_SERVED, FaultKind
from gateway.protocol.error_parsing import from_answer, from_http, may_be_bare_error
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.selection import RouteRequest
from gateway.turn.account_search import AccountSearch, KnownAccount, KnownAccounts
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.continuity import TurnContinuity
from gateway.turn.routed_request import Attempt, RequestPhase, RoutedRequest
from gateway.upstream.interface import ForwardedRequest

#: An answer in one piece that is longer than this is no error in the place of one.
_MAX_ERROR_BYTES = 65_536


class PoolRoute(NamedTuple):
    """A request goes to accounts that the pool chooses.

    :ivar continuity: the conversation that it is about, or None.
    :ivar parent: the response that it continues, or None.
    """

    wanted: RouteRequest
    continuity: TurnContinuity | None = None
    parent: Transcript | None = None


class KnownRoute(NamedTuple):
    """A request goes to these accounts, one after the other, until one knows what it asks for.

    :ivar unknown: what is answered when none does.
    """

    accounts: Sequence[KnownAccount]
    unknown: ApiError


class RequestSpec(abc.ABC):
    """What is passed: one request, and what is known of its kind.

    :ivar what: its name in logs.
    :ivar model: the model that the account must offer, or None for any.
    :ivar size: bytes of the client's body.
    :ivar generates: whether answering it takes what a turn takes: then success shows that the
        account is well.
    :ivar plan: how the conversation it is about was sent along, once it was sent.
    :ivar held_bytes: bound on an answer that is held until it is whole, so that the request may
        move for longer; 0 for one that is relayed as it comes.
    """

    what: str
    model: str | None = None
    size = 0
    generates = False
    plan: ContextPlan | None = None
    held_bytes = 0

    @abc.abstractmethod
    def resolve(self) -> PoolRoute | KnownRoute | Deferred[PoolRoute | KnownRoute]:
        """Look up where it may go.

        :raises ApiError: when what it is about cannot be found.
        """

    @abc.abstractmethod
    def fingerprint(self) -> Hashable:
        """The same for a request that is sent again."""

    @abc.abstractmethod
    def call_for(self, account: Account) -> ForwardedRequest:
        """The request as ``account`` should get it."""

    @abc.abstractmethod
    def may_move(self, error: ApiError) -> bool:
        """Whether another account should get it after this refusal or failure.

        :param error: as :meth:`translated` gave it.
        """

    def mended(self, account: Account, error: ApiError) -> bool:
        """Whether the same account should get it again, in another way than it refused."""
        return False

    def accepted(self, account: Account) -> None:
        """Learn from it that ``account`` took the request as it was sent."""
        return

    def translated(self, error: ApiError) -> ApiError:
        """A refusal as it concerns what is asked for."""
        return error


class ProxiedResponseSink(Protocol):
    """Where the answer goes."""

    def response_started(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins.

        :param headers: all of the upstream's, names in lower case.
        """

    def response_data(self, data: bytes) -> None:
        """A piece of its body."""

    def response_usage(self) -> Usage | None:
        """What the answer took, as far as it has said; asked once, before it is over."""

    def response_ended(self, error: ApiError | None) -> None:
        """It is whole (None), or it broke off, or there is none but this error."""


class ProxiedRequest(RoutedRequest["ProxiedAttempt"]):
    """One passed-through request and its answer.

    :ivar account: where it is, or was last; None before it was anywhere.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        spec: RequestSpec,
        sink: ProxiedResponseSink,
    ) -> None:
        super().__init__(services, context, spec.model, None, spec.size, route=spec.what)
        self._spec = spec
        self._sink = sink
        self.account: Account | None = None

    @property
    def tenant(self) -> str:
        """The client key it came with."""
        return self._context.tenant

    # --- the client's side -----------------------------------------------------------

    def cancel(self, satisfied: bool = False) -> None:
        """The client is gone.

        :param satisfied: it had all that it wanted; some do not wait for the end.
        """
        if self._phase is not RequestPhase.ENDED:
            self._close("completed" if satisfied else "cancelled", None)

    def abandon(self, error: ApiError) -> None:
        """End it for the gateway's own reasons."""
        if self._phase is not RequestPhase.ENDED:
            self._fail(error)

    # --- resolving and sending -------------------------------------------------------

    def _resolve(self) -> PoolRoute | KnownRoute | Deferred[PoolRoute | KnownRoute]:
        return self._spec.resolve()

    def _resolved(self, found: PoolRoute | KnownRoute) -> None:
        if isinstance(found, KnownRoute):
            self._search = KnownAccounts(found.accounts, found.unknown, self._found, self._fail)
        else:
            if found.parent is not None:
                self._log.continues(found.parent.record.id, "previous_response_id")
            self._search = AccountSearch(
                self._services,
                self._context.tenant,
                found.wanted,
                found.continuity,
                self._found,
                self._waits,
                self._fail,
            )
        self._search.next()

    def _attempt_at(self, account: Account) -> ProxiedAttempt:
        self.account = account
        call = self._spec.call_for(account)
        return ProxiedAttempt(self, account, self._spec, call)

    # --- what attempts report --------------------------------------------------------

    def attempt_acknowledged(self, attempt: ProxiedAttempt) -> None:
        """What came is no error in the place of an answer: the account took the request."""
        if self._lease is not None:
            self._lease.answered()
        self._spec.accepted(attempt.account)
        if self._spec.generates and self._lease is not None:
            self._lease.acknowledged()
        self._log.first_event()
        self._log.first_output()
        self._sink.response_started(attempt.status, attempt.answer_headers)

    def attempt_relays(self, payloads: list[bytes]) -> None:
        """Pieces of the body go to the client."""
        for data in payloads:
            self.record.relayed_bytes += len(data)
            self._sink.response_data(data)

    def attempt_ended(self, attempt: ProxiedAttempt) -> None:
        """The answer is over, or there is none but ``attempt.error``."""
        error = attempt.error
        if error is None:
            self._close("completed", None)
            self._sink.response_ended(None)
        elif attempt.relayed:
            self._charge(attempt.account, error)
            self._fail(error)
        else:
            error = self._translated(error)
            self._log.outcome(error.label)
            self._refused(attempt, error)

    def attempt_too_long(self) -> None:
        """An answer that is held is longer than it may be; no account is charged for that."""
        self._fail(ApiError.bad_gateway("The upstream's answer is longer than it may be."))

    # --- refusals --------------------------------------------------------------------

    def _translated(self, error: ApiError) -> ApiError:
        return self._spec.translated(error)

    def _mended(self, attempt: ProxiedAttempt, error: ApiError) -> bool:
        return self._spec.mended(attempt.account, error)

    def _may_move(self, error: ApiError) -> bool:
        return self._spec.may_move(error)

    def _charge(self, account: Account, error: ApiError) -> None:
        """Charge the account, but not for a path that it does not serve.

        Nor where the reason is not clear, or only what stands before the API gives one.
        """
        fault = self._fault_of(account, error)
        if fault.kind in (FaultKind.REQUEST, FaultKind.UNCLEAR):
            return
        status = 0 if self._attempt is None else self._attempt.status
        if status in NOT_SERVED and fault.kind is not FaultKind.MODEL_REFUSED:
            return
        account.failures += 1
        if self._lease is not None:
            self._lease.refused(fault)

    def _fingerprint(self) -> Hashable:
        return self._spec.fingerprint()

    # --- ending ----------------------------------------------------------------------

    def _fail(self, error: ApiError) -> None:
        self._close("error", error.label)
        self._sink.response_ended(error)

    def _close(self, status: str, error_code: str | None) -> None:
        attempt = self._attempt
        if attempt is not None:
            attempt.cancel()
            if attempt.relayed:
                self._count_answer()
        if self.account is not None and self._spec.generates:
            self.account.turns += 1
        super()._close(status, error_code)

    def _count_answer(self) -> None:
        """What was answered is counted, also where it broke off, or did not say what it took."""
        usage = self._sink.response_usage()
        if usage is not None:
            self._log.counts(usage)
            self._count(usage)
        elif self._spec.generates:
            self._count(self._log.estimated())


class AnswerPhase(enum.Enum):
    """What is done with the answer of one attempt."""

    SENT = "sent"
    REFUSED = "refused"
    HELD = "held"
    RELAYED = "relayed"


class ProxiedAttempt(Attempt):
    """One try of a passed-through request: the upstream's answer is held, relayed or read.

    :ivar status: of the answer; 0 before there is one.
    :ivar error: what ended it, when it did not end in order.
    """

    def __init__(
        self, owner: ProxiedRequest, account: Account, spec: RequestSpec, call: ForwardedRequest
    ) -> None:
        super().__init__(account, spec.plan, spec.what)
        self._owner = owner
        self._held_bytes = spec.held_bytes
        self._generates = spec.generates
        self._phase = AnswerPhase.SENT
        self._held = bytearray()
        self.status = 0
        self.error: ApiError | None = None
        self.exchange = exchange = account.upstream.forward(call, self)
        self.request_bytes = exchange.request_bytes

    @property
    def relayed(self) -> bool:
        """Whether the client sees the answer."""
        return self._phase is AnswerPhase.RELAYED

    def upstream_connected(self) -> None:
        """The request goes out."""
        self._owner.attempt_connected()

    def upstream_answered(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins."""
        self.status, self.answer_headers = status, headers
        self._owner.attempt_answered(self)
        if not 200 <= status < 300:
            self._phase = AnswerPhase.REFUSED
        elif self._held_bytes or (self._generates and _is_json(headers)):
            self._phase = AnswerPhase.HELD
        else:
            self._relay()

    def upstream_data(self, data: bytes) -> None:
        """A piece of its body."""
        if self._phase is AnswerPhase.RELAYED:
            self._owner.attempt_relays([data])
            return
        self._held += data
        if self._phase is not AnswerPhase.HELD:
            return
        if not self._held_bytes:
            if len(self._held) > _MAX_ERROR_BYTES or not may_be_bare_error(self._held):
                self._relay()
        elif len(self._held) > self._held_bytes:
            self._owner.attempt_too_long()

    def upstream_ended(self, error: ApiError | None) -> None:
        """The answer is over."""
        held = self._phase is AnswerPhase.HELD
        if self._phase is AnswerPhase.REFUSED:
            error = from_http(self.status, self.answer_headers, bytes(self._held))
        elif held and error is None and self._generates:
            said = self.account.upstream.without_secrets(bytes(self._held))
            error = from_answer(self.status, self.answer_headers, said)
        if error is None and held:
            self._relay()
        self.error = error
        self._owner.attempt_ended(self)

    def _relay(self) -> None:
        self._phase = AnswerPhase.RELAYED
        self._owner.attempt_acknowledged(self)
        if self._held:
            self._owner.attempt_relays([bytes(self._held)])


def _is_json(headers: Mapping[str, str]) -> bool:
    """Whether an answer comes in one piece, and so may be an error in the place of one."""
    return headers.get("content-type", "").strip().lower().startswith("application/json")
