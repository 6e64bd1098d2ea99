"""Forwarded requests: everything but turns is forwarded to an account as it is.

An account is found and the request is sent.  If the account refuses it and another one may not, the
request moves there.  The answer is relayed byte for byte, and nothing moves any more once the
client has seen a byte.
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

#: A longer answer with a status of success is not an error object, in bytes.
_MAX_ERROR_BYTES = 65_536


class PoolRoute(NamedTuple):
    """The pool chooses the accounts.

    :ivar continuity: the conversation of the request, or None.
    :ivar parent: the response that it continues, or None.
    """

    wanted: RouteRequest
    continuity: TurnContinuity | None = None
    parent: Transcript | None = None


class KnownRoute(NamedTuple):
    """These accounts are asked one after the other, until one has the stored response.

    :ivar unknown: the error when none has it.
    """

    accounts: Sequence[KnownAccount]
    unknown: ApiError


class RequestSpec(abc.ABC):
    """One request to forward, and the rules of its kind.

    :ivar what: its name in logs.
    :ivar model: the model that the account must offer, or None for any.
    :ivar size: bytes of the client's body.
    :ivar generates: whether a model generates the answer.  Then it counts as a turn, and success
        shows that the account works.
    :ivar plan: the context plan of its conversation, once it was sent.
    :ivar held_bytes: bound on an answer that is held until it is complete, so that the request
        may move until then; 0 for one that is relayed as it arrives.
    """

    what: str
    model: str | None = None
    size = 0
    generates = False
    plan: ContextPlan | None = None
    held_bytes = 0

    @abc.abstractmethod
    def resolve(self) -> PoolRoute | KnownRoute | Deferred[PoolRoute | KnownRoute]:
        """Look up the accounts that may serve it.

        :raises ApiError: when the response that it refers to cannot be found.
        """

    @abc.abstractmethod
    def fingerprint(self) -> Hashable:
        """A value that is equal for a request that is sent again."""

    @abc.abstractmethod
    def request_for(self, account: Account) -> ForwardedRequest:
        """The request as ``account`` should get it."""

    @abc.abstractmethod
    def may_move(self, error: ApiError) -> bool:
        """Whether another account should get it after this refusal or failure.

        :param error: as :meth:`translated` gave it.
        """

    def adapt_to(self, account: Account, error: ApiError) -> bool:
        """Change the request to what ``account`` may accept; whether to send it there again."""
        return False

    def accepted(self, account: Account) -> None:
        """``account`` accepted the request: learn the concessions that were made for it."""
        return

    def translated(self, error: ApiError) -> ApiError:
        """A refusal from the point of view of this request."""
        return error


class ForwardedResponseSink(Protocol):
    """Gets the answer of a forwarded request."""

    def response_started(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer begins.

        :param headers: all of the upstream's, names in lower case.
        """

    def response_data(self, data: bytes) -> None:
        """A piece of its body."""

    def response_usage(self) -> Usage | None:
        """The usage in the answer, or None; called once, before the end."""

    def response_ended(self, error: ApiError | None) -> None:
        """The answer is complete (None), or it broke off or was never given (the error)."""


class Forwarding(RoutedRequest["ForwardingAttempt"]):
    """One forwarded request and its answer.

    :ivar account: the account of the current or last attempt; None before the first.
    """

    attempt_class: type[ForwardingAttempt]

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        spec: RequestSpec,
        sink: ForwardedResponseSink,
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

        :param satisfied: it has read the last chunk; some clients do not wait for the end.
        """
        if self._phase is not RequestPhase.ENDED:
            self._close("completed" if satisfied else "cancelled", None)

    def abandon(self, error: ApiError) -> None:
        """End it because the gateway stops or failed."""
        if self._phase is not RequestPhase.ENDED:
            self._fail(error)

    # --- resolving and sending -------------------------------------------------------

    def _resolve(self) -> PoolRoute | KnownRoute | Deferred[PoolRoute | KnownRoute]:
        return self._spec.resolve()

    def _enters_limits(self, found: PoolRoute | KnownRoute) -> bool:
        return isinstance(found, PoolRoute)

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

    def _attempt_at(self, account: Account) -> ForwardingAttempt:
        self.account = account
        call = self._spec.request_for(account)
        return self.attempt_class(self, account, self._spec, call)

    # --- what attempts report --------------------------------------------------------

    def attempt_acknowledged(self, attempt: ForwardingAttempt) -> None:
        """The account accepted the request: what arrived is an answer, not an error."""
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

    def attempt_ended(self, attempt: ForwardingAttempt) -> None:
        """The answer is complete, or ``attempt.error`` says why not."""
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
        """A held answer exceeds its bound; no account is charged for that."""
        self._fail(ApiError.bad_gateway("The upstream's answer is longer than it may be."))

    # --- refusals --------------------------------------------------------------------

    def _translated(self, error: ApiError) -> ApiError:
        return self._spec.translated(error)

    def _adapt_to(self, attempt: ForwardingAttempt, error: ApiError) -> bool:
        return self._spec.adapt_to(attempt.account, error)

    def _may_move(self, error: ApiError) -> bool:
        return self._spec.may_move(error)

    def _charge(self, account: Account, error: ApiError) -> None:
        """Charge the account, unless it does not serve the path or the reason is unclear.

        An error of a proxy before the API is no clear reason either.
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
        """Count the usage of the answer; it is estimated if the answer has none."""
        usage = self._sink.response_usage()
        if usage is not None:
            self._log.counts(usage)
            self._count(usage)
        elif self._spec.generates:
            self._count(self._log.estimated())


class AnswerPhase(enum.Enum):
    """The phases of the answer of one attempt."""

    SENT = "sent"
    REFUSED = "refused"
    HELD = "held"
    RELAYED = "relayed"


class ForwardingAttempt(Attempt):
    """One attempt of a forwarded request: holds, relays or reads the upstream's answer.

    :ivar status: of the answer; 0 before there is one.
    :ivar error: why it failed, or None.
    """

    def __init__(
        self, owner: Forwarding, account: Account, spec: RequestSpec, call: ForwardedRequest
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
        """Whether a part of the answer was relayed to the client."""
        return self._phase is AnswerPhase.RELAYED

    def upstream_connected(self) -> None:
        """The request goes out."""
        self._owner.attempt_connected(self)

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


Forwarding.attempt_class = ForwardingAttempt


def _is_json(headers: Mapping[str, str]) -> bool:
    """Whether an answer is one JSON object, which may be an error despite its status."""
    return headers.get("content-type", "").strip().lower().startswith("application/json")
