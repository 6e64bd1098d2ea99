"""``POST /v1/responses/compact`` and ``…/input_tokens``: a conversation as a whole (§6.5, §7).

They take the input of a turn: what it continues is named to the account that holds it, or
sent along.  A compaction starts a new chain, which only the account that sealed it can read.
"""

from __future__ import annotations

from typing import NamedTuple

from twisted.internet.defer import Deferred

from gateway.conversations.context import ContextPlan, ContextRoute
from gateway.conversations.store import Transcript
from gateway.protocol.error_classification import is_not_served
from gateway.protocol.errors import ApiError
from gateway.protocol.headers import TURN_STATE
from gateway.protocol.request import TurnRequest, read_members, read_post
from gateway.protocol.response_body import read_compaction
from gateway.protocol.upstream_request import Dialect, build_input_body
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import http_affinity_keys
from gateway.routing.selection import RouteRequest
from gateway.server.history import ConnectionHistory
from gateway.server.http_request import ClientRequest
from gateway.server.passthrough import JSON, ProxiedResponse, call_headers, context_of
from gateway.turn.context import Resolution, TurnContext, TurnServices
from gateway.turn.continuity import TurnContinuity
from gateway.turn.passthrough import KnownRoute, PoolRoute, ProxiedRequest
from gateway.upstream.interface import ForwardedRequest


class InputOperation(NamedTuple):
    """What is asked about a conversation.

    :ivar what: what logs call it.
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
    """One request with the input of a turn."""

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        request: TurnRequest,
        operation: InputOperation,
    ) -> None:
        self.what = operation.what
        self.model = request.model
        self.size = request.size
        self.generates = operation.generates
        self.held_bytes = operation.held_bytes
        self.plan: ContextPlan | None = None
        self._services = services
        self._context = context
        self._request = request
        self._path = operation.path
        #: What the client's turn state says, or None.
        self._state = services.turn_states.unwrap(context.tenant, context.turn_state)
        self._parent: Transcript | None = None

    def resolve(self) -> PoolRoute | KnownRoute | Deferred[PoolRoute | KnownRoute]:
        """Look up the response whose conversation this is about.

        :raises ApiError: 400 for one that cannot be continued.
        """
        history = ConnectionHistory(self._services, self._context.tenant, False)
        found = history.resolve(self._request)
        if isinstance(found, Deferred):
            return found.addCallback(self._route)
        return self._route(found)

    def _route(self, found: Resolution) -> PoolRoute | KnownRoute:
        self._request, self._parent = found.request, found.parent
        self._continuity = TurnContinuity(
            self._context.tenant, found, self._services.ledger, self._path
        )
        state = None if self._state is None else self._state.account
        wanted = RouteRequest(self.model, self._context.affinity, turn_state=state)
        return PoolRoute(wanted, self._continuity, found.parent)

    def fingerprint(self) -> bytes:
        """Of the request as the client sent it."""
        return self._request.fingerprint()

    def call_for(self, account: Account) -> ForwardedRequest:
        """The request in the account's dialect, with as much of the conversation as it needs."""
        plan = self.plan = self._planned(account)
        dialect = self._dialect_of(account)
        headers = call_headers(self._context, account, JSON)
        if self._state is not None and self._state.account == account.name and self._state.upstream:
            headers[TURN_STATE] = self._state.upstream
        body = build_input_body(self._request, plan.items, plan.previous_response_id, dialect)
        return ForwardedRequest("POST", self._path, headers, body)

    def mended(self, account: Account, error: ApiError) -> bool:
        """Whether ``account`` may take it in another way."""
        if self.plan is None:
            return False
        sent = self._continuity.sent(self.plan, self._dialect_of(account))
        asked = sent._replace(added_include=False, streams=None, tool_items=False)
        return self._continuity.mended(account, self.plan, asked, error)

    def accepted(self, account: Account) -> None:
        """Learn what was given up for ``account``."""
        self._continuity.concessions.accepted(account)

    def translated(self, error: ApiError) -> ApiError:
        """The error as it concerns the conversation."""
        return self._continuity.translated(error)

    def may_move(self, error: ApiError) -> bool:
        """Whether another account may serve it, or has the endpoint."""
        return self._continuity.may_move(error) or is_not_served(error)

    def _dialect_of(self, account: Account) -> Dialect:
        concessions = self._continuity.concessions
        given = concessions.to(account)
        dialect = concessions.dialect(account, given, self._context.affinity)
        return dialect if self.generates else dialect._replace(cache_key=None)

    def _planned(self, account: Account) -> ContextPlan:
        """How the context gets there.

        The answer does not show whether a previous response was taken up, so it is named
        only where that is sure: an account that ignored it would compact half of it.
        """
        concessions = self._continuity.concessions.to(account)
        plan = self._continuity.plan(account, concessions)
        parent = self._parent
        if plan.route is not ContextRoute.CHAINED or parent is None or parent.record.foreign:
            return plan
        if account.settings.continuity == "chain" or account.learned.trusts(parent.record.store):
            return plan
        reason = "it is not known that the account continues responses"
        return self._continuity.replay(account, concessions, reason)


class InputAnswer(ProxiedResponse):
    """The answer; its encrypted items are noted under the account that issued them."""

    _usage: Usage | None = None

    def response_data(self, data: bytes) -> None:
        """Write the answer, which was held: this is all of it."""
        compacted = read_compaction(data)
        self._usage = compacted.usage
        if self.proxied is not None and self.proxied.account is not None:
            for item in compacted.items:
                self.services.issuers.note(item, self.proxied.account.name)
        super().response_data(data)

    def response_usage(self) -> Usage | None:
        """The usage that the answer tells."""
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

    def _pass(self, request: ClientRequest, tenant: str, operation: InputOperation) -> None:
        services = self._services
        asked = read_post(read_members(request.body), len(request.body))
        keys = http_affinity_keys(tenant, request.headers, asked)
        context = context_of(services, request, tenant, keys)
        answer = InputAnswer(services, request)
        spec = InputSpec(services, context, asked, operation)
        proxied = ProxiedRequest(services, context, spec, answer)
        answer.opens(proxied)
        proxied.start()
