"""``POST /v1/responses/compact`` and ``…/input_tokens``: a conversation as a whole (§6.5, §7).

They take the input of a turn: what it continues is named to the account that holds it, or
sent along.  A compaction starts a new chain, which only the account that sealed it can read.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.conversations.context import ContextPlan, ContextRoute
from gateway.conversations.store import Transcript
from gateway.protocol.compacting import input_body, read_compacted
from gateway.protocol.dialect import Dialect
from gateway.protocol.errors import ApiError
from gateway.protocol.refusals import is_not_served
from gateway.protocol.request import TurnRequest, read_members, read_post
from gateway.protocol.turn_state import TURN_STATE, TurnState
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import http_affinity_keys
from gateway.routing.selection import RouteRequest
from gateway.server.history import ConnectionHistory
from gateway.server.http_request import ClientRequest
from gateway.server.passthrough import JSON, ProxiedResponse, call_headers, context_of
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.continuity import TurnContinuity
from gateway.turn.passthrough import ProxiedRequest
from gateway.turn.preparing import dialect_of, sent_with
from gateway.upstream.interface import ForwardedRequest


class InputOperation(NamedTuple):
    """What is asked about a conversation.

    :ivar what: what journals call it.
    :ivar generates: whether a model works on it.
    :ivar held_bytes: bound on its answer, which is held until it is whole.
    """

    what: str
    path: str
    generates: bool
    held_bytes: int


_COMPACTION = InputOperation("compaction", "/responses/compact", True, 64 * 1024 * 1024)
_COUNT = InputOperation("token count", "/responses/input_tokens", False, 1024 * 1024)


class InputSpec:
    """One request with the input of a turn.

    :param state: what the client's turn state says, or None.
    """

    def __init__(
        self,
        context: TurnContext,
        request: TurnRequest,
        continuity: TurnContinuity,
        state: TurnState | None,
        errand: InputOperation,
    ) -> None:
        self.what = errand.what
        self.model = request.model
        self.size = request.size
        self.generates = errand.generates
        self.held_bytes = errand.held_bytes
        self._context = context
        self._request = request
        self._continuity = continuity
        self._state = state
        self._path = errand.path
        self.plan: ContextPlan | None = None

    def fingerprint(self) -> bytes:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        return self._request.fingerprint()

    def call_for(self, account: Account) -> ForwardedRequest:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        plan = self.plan = self._planned(account)
        dialect = self._dialect_of(account)
        headers = call_headers(self._context, account, JSON)
        if self._state is not None and self._state.account == account.name and self._state.upstream:
            headers[TURN_STATE] = self._state.upstream
        body = input_body(self._request, plan.items, plan.previous_response_id, dialect)
        return ForwardedRequest("POST", self._path, headers, body)

    def mended(self, account: Account, error: ApiError) -> bool:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        if self.plan is None:
            return False
        sent = sent_with(self._request, self.plan, self._dialect_of(account))
        asked = sent._replace(added_seals=False, streams=None, tool_items=False)
        return self._continuity.mended(account, self.plan, asked, error)

    def accepted(self, account: Account) -> None:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        self._continuity.accepted(account)

    def translated(self, error: ApiError) -> ApiError:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        return self._continuity.translated(error)

    def may_move(self, error: ApiError) -> bool:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        return self._continuity.may_move(error) or is_not_served(error)

    def _dialect_of(self, account: Account) -> Dialect:
        concessions = self._continuity.concessions(account)
        dialect = dialect_of(account, self.model, self._context, concessions)
        return dialect if self.generates else dialect._replace(cache_key=None)

    def _planned(self, account: Account) -> ContextPlan:
        """How the context gets there.

        The answer does not show whether a previous response was taken up, so it is named
        only where that is sure: an account that ignored it would compact half of it.
        """
        plan = self._continuity.plan(account)
        parent = self._context.parent
        if plan.route is not ContextRoute.CHAINED or parent is None or parent.record.foreign:
            return plan
        if account.settings.continuity == "chain" or account.learned.trusts(parent.record.store):
            return plan
        reason = "it is not known that the account continues responses"
        return self._continuity.replay(account, reason)


class InputAnswer(ProxiedResponse):
    """The answer; what it seals is noted under the account that sealed it."""

    _usage: Usage | None = None

    def passage_relays(self, data: bytes) -> None:
        """See ``PassageDoor``; the answer was held, so this is all of it."""
        compacted = read_compacted(data)
        self._usage = compacted.usage
        if self.passage is not None and self.passage.account is not None:
            for item in compacted.items:
                self.services.issuers.note(item, self.passage.account.name)
        super().passage_relays(data)

    def passage_usage(self) -> Usage | None:
        """See ``PassageDoor``."""
        return self._usage


class Inputs:
    """Answers ``/v1/responses/compact`` and ``/v1/responses/input_tokens``."""

    def __init__(self, services: TurnServices) -> None:
        self._services = services

    def compact(self, request: ClientRequest, tenant: str) -> None:
        """``POST /responses/compact``."""
        self._pass(request, tenant, _COMPACTION)

    def count(self, request: ClientRequest, tenant: str) -> None:
        """``POST /responses/input_tokens``."""
        self._pass(request, tenant, _COUNT)

    def _pass(self, request: ClientRequest, tenant: str, errand: InputOperation) -> None:
        services = self._services
        asked = read_post(read_members(request.body), len(request.body)).with_issuers(
            services.issuers.issuer_of
        )
        keys = http_affinity_keys(tenant, request.headers, asked)
        context = context_of(services, request, tenant, keys, self._parent(asked, tenant))
        continuity = TurnContinuity(context, asked, services.ledger, errand.path)
        state = services.turn_states.unwrap(tenant, context.turn_state)
        spec = InputSpec(context, asked, continuity, state, errand)
        answer = InputAnswer(services, request)
        passage = ProxiedRequest(services, context, spec, answer)
        answer.opens(passage)
        wanted = RouteRequest(
            asked.model, keys, turn_state=None if state is None else state.account
        )
        passage.through_the_pool(wanted, continuity)

    def _parent(self, asked: TurnRequest, tenant: str) -> Transcript | None:
        """The response whose conversation this is about.

        :raises ApiError: 400 for one that cannot be continued.
        """
        services = self._services
        history = ConnectionHistory(services, tenant, False)
        return history.parent_of(asked, None)[0]
