"""Requests that are forwarded as they are, and their answers (protocol.md §7).

:class:`InputEndpoints` serves ``/responses/compact`` and ``/responses/input_tokens``.  They take
the input of a turn: the request chains to the previous response or replays the conversation.  A
compaction starts a new chain, which only the account that encrypted it can read (protocol.md §6.5).

:class:`StoredResponses` reads, deletes and cancels stored responses, and lists their input.  Only
the account that made a response keeps it.  The conversation store knows that account for an hour
and the owners know it for weeks.  If neither knows the id, and there is only one tenant,
accounts are asked one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from twisted.internet.defer import Deferred

from gateway.conversations.context import ContextPlan, ContextRoute
from gateway.conversations.store import Transcript
from gateway.protocol.error_classification import NOT_SERVED, may_move
from gateway.protocol.errors import ApiError
from gateway.protocol.headers import forwardable, may_pass, without_limits
from gateway.protocol.request import TurnRequest, read_members, read_post
from gateway.protocol.response_body import read_compaction
from gateway.protocol.turn_state import TURN_STATE
from gateway.protocol.upstream_request import Dialect, build_input_body
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, affinity_keys, http_affinity_keys
from gateway.routing.health import AccountState
from gateway.routing.selection import RouteRequest
from gateway.server.history import ConnectionHistory
from gateway.server.http_request import UNBUFFERED, ClientRequest
from gateway.turn.account_search import KnownAccount
from gateway.turn.context import Resolution, TurnContext, TurnServices
from gateway.turn.continuity import TurnContinuity
from gateway.turn.forwarding import Forwarding, KnownRoute, PoolRoute, RequestSpec
from gateway.turn.recording import recorded_forwarding
from gateway.turn.response_metadata import passed_headers, route_headers, shows_limits
from gateway.upstream.interface import ForwardedRequest

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

#: Accounts that are asked for a response that the gateway does not know.
_MOST_ASKED = 16

#: Longest id, in characters; some services encode a whole state in theirs.
_MAX_ID = 4096

#: Dot segments, which would lead to another path (RFC 3986 §5.2.4).
_DOTS = frozenset({".", ".."})

#: What may stand in a query as it is (RFC 3986 §3.4).
_QUERY = "%/?:@!$&'()*+,;=-._~[]"


class ForwardedResponse:
    """Writes an upstream's answer to the client as it arrives.

    :param request: the request to answer.
    """

    def __init__(self, services: TurnServices, request: ClientRequest) -> None:
        self.services = services
        self.request = request
        self.forwarding: Forwarding | None = None
        self._limits = False

    def forward(
        self, context: TurnContext, spec: RequestSpec, response_id: str | None = None
    ) -> None:
        """Send the request on its way.

        :param response_id: the response that it is about, for logs.
        """
        if self.services.request_log.rules:
            forwarding = recorded_forwarding(self.services, context, spec, self, self.request)
        else:
            forwarding = Forwarding(self.services, context, spec, self)
        self.forwarding = forwarding
        if response_id is not None:
            forwarding.record.response_id = response_id
        self._limits = shows_limits(self.services, forwarding.tenant)
        self.request.when_gone(self.client_gone)
        self.request.when_abandoned(forwarding.abandon)
        self.request.when_slow(forwarding.pause, forwarding.resume)
        forwarding.start()

    def client_gone(self) -> None:
        """The client left: end the request."""
        if self.forwarding is not None:
            self.forwarding.cancel()

    def response_started(self, status: int, headers: Mapping[str, str]) -> None:
        """Write the head of the answer."""
        self.request.start(status, self.head(headers))

    def response_data(self, data: bytes) -> None:
        """Write a piece of its body."""
        self.request.write(data)

    def response_usage(self) -> Usage | None:
        """None: the usage of this answer is not known."""
        return None

    def response_ended(self, error: ApiError | None) -> None:
        """End the answer, or answer with ``error``."""
        self.forwarding = None
        if error is not None:
            if not self._limits:
                error.headers = without_limits(error.headers)
            self.request.refuse(error)
        else:
            self.request.finish()

    def head(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers of the answer: those of the upstream's that concern the client."""
        kind = headers.get("content-type", "")
        passed = {"content-type": kind if may_pass("content-type", kind) else JSON}
        passed.update(passed_headers(headers, self._limits))
        if passed["content-type"].startswith(EVENT_STREAM):
            passed.update(UNBUFFERED)
        if self.forwarding is not None:
            passed.update(route_headers(self.forwarding.record))
        return passed


def context_of(
    services: TurnServices,
    request: ClientRequest,
    tenant: str,
    affinity: Sequence[AffinityKey],
) -> TurnContext:
    """The client that ``request`` came from."""
    return TurnContext(
        tenant=tenant,
        connection=request.connection,
        client_headers=forwardable(request.headers),
        affinity=affinity,
        accepted_at=services.clock.seconds(),
        turn_state=request.headers.get(TURN_STATE),
    )


def call_headers(
    context: TurnContext, account: Account, accept: str, has_body: bool = True
) -> dict[str, str]:
    """The headers of a forwarded request; the account's upstream adds the credentials."""
    headers = {"accept": accept, **context.client_headers}
    if has_body:
        headers["content-type"] = JSON
    headers.update((name.lower(), value) for name, value in account.request_headers)
    return headers


# --- compaction and token counts -----------------------------------------------------------


class InputOperation(NamedTuple):
    """One of the endpoints that take the input of a turn.

    :ivar what: its name in logs.
    :ivar generates: whether a model generates the answer.
    :ivar held_bytes: bound on its answer, which is held until it is whole.
    """

    what: str
    path: str
    generates: bool
    held_bytes: int


_COMPACTION = InputOperation("compaction", "/responses/compact", True, 64 * 1024 * 1024)
_COUNT = InputOperation("token count", "/responses/input_tokens", False, 1024 * 1024)


class InputSpec(RequestSpec):
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
        self._services = services
        self._context = context
        self._request = request
        self._path = operation.path
        #: What the client's turn state says, or None.
        self._state = services.turn_states.unwrap(context.tenant, context.turn_state)
        self._parent: Transcript | None = None

    def resolve(self) -> PoolRoute | KnownRoute | Deferred[PoolRoute | KnownRoute]:
        """Look up the previous response.

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
            self._context.tenant, found, self._services.conversations, self._path
        )
        state = None if self._state is None else self._state.account
        wanted = RouteRequest(self.model, self._context.affinity, turn_state=state)
        return PoolRoute(wanted, self._continuity, found.parent)

    def fingerprint(self) -> bytes:
        """The fingerprint of the request as the client sent it."""
        return self._request.fingerprint()

    def request_for(self, account: Account) -> ForwardedRequest:
        """The request in the account's dialect, with as much of the conversation as it needs."""
        plan = self.plan = self._planned(account)
        dialect = self._dialect_of(account)
        headers = call_headers(self._context, account, JSON)
        if self._state is not None and self._state.account == account.name and self._state.upstream:
            headers[TURN_STATE] = self._state.upstream
        body = build_input_body(self._request, plan.items, plan.previous_response_id, dialect)
        return ForwardedRequest("POST", self._path, headers, body)

    def adapt_to(self, account: Account, error: ApiError) -> bool:
        """Change the request to what ``account`` accepts; whether it may be sent there again."""
        if self.plan is None:
            return False
        sent = self._continuity.sent(self.plan, self._dialect_of(account))
        asked = sent._replace(added_include=False, streams=None, tool_items=False)
        return self._continuity.adapt_to(account, self.plan, asked, error)

    def accepted(self, account: Account) -> None:
        """Remember what was given up for ``account``."""
        self._continuity.concessions.accepted(account)

    def translated(self, error: ApiError) -> ApiError:
        """The error from the conversation's point of view."""
        return self._continuity.translated(error)

    def may_move(self, error: ApiError) -> bool:
        """Whether another account may serve it, or has the endpoint."""
        return self._continuity.may_move(error) or error.status in NOT_SERVED

    def _dialect_of(self, account: Account) -> Dialect:
        concessions = self._continuity.concessions
        given = concessions.to(account)
        dialect = concessions.dialect(account, given, self._context.affinity)
        return dialect if self.generates else dialect._replace(cache_key=None)

    def _planned(self, account: Account) -> ContextPlan:
        """Chain or replay.

        The answer does not show whether the account continued a previous response.  So it is
        chained only to an account that is known to do so: one that ignores the previous response
        would compact a part of the conversation.
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


class InputAnswer(ForwardedResponse):
    """The answer; the account is noted as the issuer of its encrypted items."""

    _usage: Usage | None = None

    def response_data(self, data: bytes) -> None:
        """Write the answer, which was held until it was complete."""
        compacted = read_compaction(data)
        self._usage = compacted.usage
        if self.forwarding is not None and self.forwarding.account is not None:
            for item in compacted.items:
                self.services.issuers.note(item, self.forwarding.account.name)
        super().response_data(data)

    def response_usage(self) -> Usage | None:
        """The usage in the answer, or None."""
        return self._usage


class InputEndpoints:
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
        spec = InputSpec(services, context, asked, operation)
        InputAnswer(services, request).forward(context, spec)


# --- stored responses ----------------------------------------------------------------------


class StoredSpec(RequestSpec):
    """One request about a stored response.

    :param path: with the query.
    :param reads: whether it changes nothing, so that another account may be asked after any
        failure; otherwise only after one that did not know the response.
    """

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        response_id: str,
        method: str,
        path: str,
        what: str,
        accept: str,
        reads: bool,
    ) -> None:
        self.what = what
        self._services = services
        self._response_id = response_id
        self._context = context
        self._method = method
        self._path = path
        self._accept = accept
        self._reads = reads

    def resolve(self) -> KnownRoute | Deferred[PoolRoute | KnownRoute]:
        """The accounts that may keep the response."""
        recalled = self._services.recall.recall(self._context.tenant, self._response_id, ())
        if recalled is None:
            return self._known_route()
        return recalled.addCallback(lambda _: self._known_route())

    def _known_route(self) -> KnownRoute:
        return KnownRoute(self._keepers(), _unknown(self._response_id))

    def fingerprint(self) -> str:
        """The path of the response."""
        return self._path

    def request_for(self, account: Account) -> ForwardedRequest:
        """The request, with the account's own headers."""
        headers = call_headers(self._context, account, self._accept, has_body=False)
        body = b"" if self._method == "POST" else None
        return ForwardedRequest(self._method, self._path, headers, body)

    def may_move(self, error: ApiError) -> bool:
        """Whether another account may know the response."""
        return error.status == 404 or (self._reads and may_move(error))

    def _keepers(self) -> list[KnownAccount]:
        """The accounts that may keep the response, the likeliest first."""
        services, context = self._services, self._context
        response_id = self._response_id
        found = services.conversations.get(context.tenant, response_id)
        record = None if found is None else found.record
        if len(response_id) > _MAX_ID or response_id in _DOTS:
            return []
        owner = services.owners.owner_of(context.tenant, response_id)
        if owner is None and record is not None:
            # No upstream knows a response of the gateway's own, or one with store: false.
            return self._known(record.account if record.held_upstream and record.store else None)
        if owner is not None:
            return self._known(owner)
        if not services.limits.one_tenant:
            return []
        binding = services.pool.bindings.find(context.affinity[-1])
        asked = self._known(binding.account, "affinity") if binding is not None else []
        asked += [
            KnownAccount(account, "asked in turn")
            for account in services.pool.accounts
            if account.health.state is not AccountState.DISABLED
            and all(account is not each.account for each in asked)
        ]
        return asked[:_MOST_ASKED]

    def _known(self, name: str | None, rule: str = "made the response") -> list[KnownAccount]:
        account = None if name is None else self._services.pool.named(name)
        return [] if account is None else [KnownAccount(account, rule)]


class StoredResponses:
    """Answers ``/v1/responses/{id}`` and what is below it."""

    def __init__(self, services: TurnServices) -> None:
        self._services = services

    def retrieve(self, request: ClientRequest, tenant: str) -> None:
        """``GET /responses/{response_id}``, also as a stream."""
        self._pass(request, tenant, "", "stored response", reads=True)

    def input_items(self, request: ClientRequest, tenant: str) -> None:
        """``GET /responses/{response_id}/input_items``."""
        self._pass(request, tenant, "/input_items", "input items", reads=True)

    def delete(self, request: ClientRequest, tenant: str) -> None:
        """``DELETE /responses/{response_id}``; it cannot be continued any more."""
        self._pass(request, tenant, "", "deletion", reads=False)

    def cancel(self, request: ClientRequest, tenant: str) -> None:
        """``POST /responses/{response_id}/cancel``."""
        self._pass(request, tenant, "/cancel", "cancellation", reads=False)

    def _pass(
        self, request: ClientRequest, tenant: str, suffix: str, what: str, reads: bool
    ) -> None:
        services = self._services
        response_id = request.parameters["response_id"]
        keys = affinity_keys(tenant, request.headers, {}, None, request.connection)
        context = context_of(services, request, tenant, keys)
        path = f"/responses/{quote(response_id, safe='')}{suffix}"
        if request.query_string:
            path += f"?{quote(request.query_string, safe=_QUERY)}"
        streams = request.query.get("stream", [""])[-1] == "true"
        spec = StoredSpec(
            services,
            context,
            response_id,
            request.method,
            path,
            what,
            EVENT_STREAM if streams else JSON,
            reads,
        )
        answer = StoredAnswer(services, request, tenant, response_id)
        answer.forward(context, spec, response_id[:200])


class StoredAnswer(ForwardedResponse):
    """The answer; it shows which account keeps the response, or that it was deleted."""

    def __init__(
        self, services: TurnServices, request: ClientRequest, tenant: str, response_id: str
    ) -> None:
        super().__init__(services, request)
        self._tenant = tenant
        self._response_id = response_id

    def response_ended(self, error: ApiError | None) -> None:
        """Note which account keeps the response, or forget a deleted one."""
        owners = self.services.owners
        forwarding = self.forwarding
        if error is None and self.request.method == "DELETE":
            owners.forget(self._tenant, self._response_id)
            remembered = self.services.conversations.get(self._tenant, self._response_id)
            if remembered is not None:
                self.services.conversations.evict(remembered)
        elif error is None and forwarding is not None and forwarding.account is not None:
            owners.note(self._tenant, self._response_id, forwarding.account.name)
        super().response_ended(error)


def _unknown(response_id: str) -> ApiError:
    """404, with the platform's message."""
    return ApiError(
        404, "invalid_request_error", f"Response with id '{response_id[:200]}' not found."
    )
