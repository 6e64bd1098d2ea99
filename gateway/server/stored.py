"""Stored responses: read, deleted, cancelled, their input listed, where they are kept (§7).

Only the account that made a response keeps it.  Which one that is, the ledger knows for an
hour and the register of owners for weeks; what neither knows may be named while there is one
tenant only: then the accounts are asked one after the other.
"""

from __future__ import annotations

from urllib.parse import quote

from gateway.conversations.context import ContextPlan
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.error_classification import may_move
from gateway.protocol.errors import ApiError
from gateway.routing.account import Account
from gateway.routing.affinity import affinity_keys
from gateway.routing.health import AccountState
from gateway.server.http_request import ClientRequest
from gateway.server.passthrough import (
    EVENT_STREAM,
    JSON,
    ProxiedResponse,
    call_headers,
    context_of,
)
from gateway.turn.account_search import KnownAccount
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.passthrough import KnownRoute, ProxiedRequest
from gateway.upstream.interface import ForwardedRequest

#: Accounts that are asked for a response which nobody here knows.
_MOST_ASKED = 16

#: No id is longer; some services put a whole state into theirs.
_MAX_ID = 4096

#: In a path these are no names but steps, to what is no response (RFC 3986 §5.2.4).
_DOTS = frozenset({".", ".."})

#: What may stand in a query as it is (RFC 3986 §3.4).
_QUERY = "%/?:@!$&'()*+,;=-._~[]"


class StoredSpec:
    """One request about a stored response.

    :param record: what is remembered of the response, or None.
    :param path: with the query.
    :param reads: whether it changes nothing, so that another account may be asked after any
        failure; otherwise only after one that did not know the response.
    """

    model: str | None = None
    size = 0
    generates = False
    plan: ContextPlan | None = None
    held_bytes = 0

    def __init__(
        self,
        services: TurnServices,
        context: TurnContext,
        response_id: str,
        record: ResponseRecord | None,
        method: str,
        path: str,
        what: str,
        accept: str,
        reads: bool,
    ) -> None:
        self.what = what
        self._services = services
        self._response_id = response_id
        self._record = record
        self._context = context
        self._method = method
        self._path = path
        self._accept = accept
        self._reads = reads

    def resolve(self) -> KnownRoute:
        """The accounts that may keep the response."""
        return KnownRoute(self._keepers(), _unknown(self._response_id))

    def fingerprint(self) -> str:
        """The path of the response."""
        return self._path

    def call_for(self, account: Account) -> ForwardedRequest:
        """The request, with the account's own headers."""
        headers = call_headers(self._context, account, self._accept, has_body=False)
        body = b"" if self._method == "POST" else None
        return ForwardedRequest(self._method, self._path, headers, body)

    def mended(self, account: Account, error: ApiError) -> bool:
        """There is no other way to ask."""
        return False

    def accepted(self, account: Account) -> None:
        """Nothing is learned."""

    def translated(self, error: ApiError) -> ApiError:
        """The error as it is."""
        return error

    def may_move(self, error: ApiError) -> bool:
        """Whether another account may know the response."""
        return error.status == 404 or (self._reads and may_move(error))

    def _keepers(self) -> list[KnownAccount]:
        """The accounts that may keep the response, the likeliest first."""
        services, context = self._services, self._context
        response_id, record = self._response_id, self._record
        if len(response_id) > _MAX_ID or response_id in _DOTS:
            return []
        owner = services.owners.owner_of(context.tenant, response_id)
        if owner is None and record is not None:
            # What the gateway made, or nobody was to store, no upstream knows.
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
        found = services.ledger.get(tenant, response_id)
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
            None if found is None else found.record,
            request.method,
            path,
            what,
            EVENT_STREAM if streams else JSON,
            reads,
        )
        answer = StoredAnswer(services, request, tenant, response_id, found)
        proxied = ProxiedRequest(services, context, spec, answer)
        proxied.record.response_id = response_id[:200]
        answer.opens(proxied)
        proxied.start()


class StoredAnswer(ProxiedResponse):
    """The answer, and what it shows: where the response is kept, or that it is gone.

    :param remembered: what the store holds of the response, or None.
    """

    def __init__(
        self,
        services: TurnServices,
        request: ClientRequest,
        tenant: str,
        response_id: str,
        remembered: Transcript | None,
    ) -> None:
        super().__init__(services, request)
        self._tenant = tenant
        self._response_id = response_id
        self._remembered = remembered

    def response_ended(self, error: ApiError | None) -> None:
        """Note where the response is kept, or that it is gone."""
        owners = self.services.owners
        proxied = self.proxied
        if error is None and self.request.method == "DELETE":
            owners.forget(self._tenant, self._response_id)
            if self._remembered is not None:
                self.services.ledger.evict(self._remembered)
        elif error is None and proxied is not None and proxied.account is not None:
            owners.note(self._tenant, self._response_id, proxied.account.name)
        super().response_ended(error)


def _unknown(response_id: str) -> ApiError:
    """The platform's own words."""
    return ApiError(
        404, "invalid_request_error", f"Response with id '{response_id[:200]}' not found."
    )
