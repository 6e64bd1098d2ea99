"""``POST /v1/chat/completions``: stateless, so any account that takes them will do (§7)."""

from __future__ import annotations

from gateway.conversations.context import ContextPlan
from gateway.conversations.store import ConversationStore
from gateway.protocol.chat import TAIL_BYTES, ChatRequest, chat_body, last_usage, read_chat
from gateway.protocol.concessions import Sent
from gateway.protocol.dialect import Dialect
from gateway.protocol.errors import ApiError
from gateway.protocol.refusals import may_move
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, affinity_keys, connection_key
from gateway.routing.capabilities import CapabilityScope
from gateway.routing.selection import RouteRequest
from gateway.server.http_request import ClientRequest
from gateway.server.passthrough import (
    EVENT_STREAM,
    JSON,
    ProxiedResponse,
    call_headers,
    context_of,
)
from gateway.turn.account_search import Unbound
from gateway.turn.conceding import Conceding
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.passthrough import ProxiedRequest
from gateway.turn.preparing import dialect_of
from gateway.upstream.interface import ForwardedRequest

_PATH = "/chat/completions"

#: What ends a stream; clients leave as they see it.
_LAST_CHUNK = b"data: [DONE]"


class ChatSpec:
    """One chat completion."""

    what = "chat completion"
    generates = True
    plan: ContextPlan | None = None
    held_bytes = 0

    def __init__(
        self, context: TurnContext, request: ChatRequest, ledger: ConversationStore
    ) -> None:
        self.model: str | None = request.model
        self.size = len(request.body)
        self._context = context
        self._request = request
        self._conceding = Conceding(CapabilityScope(_PATH, request.model, context.tenant), ledger)

    def fingerprint(self) -> int:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        return hash(self._request.body)

    def call_for(self, account: Account) -> ForwardedRequest:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        dialect = self._dialect_of(account)
        body = chat_body(self._request, dialect.model, dialect.stores, dialect.spares)
        accept = EVENT_STREAM if self._request.stream else JSON
        return ForwardedRequest("POST", _PATH, call_headers(self._context, account, accept), body)

    def mended(self, account: Account, error: ApiError) -> bool:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        stores = self._request.stores and self._dialect_of(account).stores
        sent = Sent(self._request.members, stores=stores)
        return self._conceding.makes(account, error, sent)

    def accepted(self, account: Account) -> None:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        self._conceding.accepted(account)

    def translated(self, error: ApiError) -> ApiError:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        return error

    def may_move(self, error: ApiError) -> bool:
        """See :class:`~gateway.turn.cargo.RequestSpec`."""
        return may_move(error) or error.status == 405

    def _dialect_of(self, account: Account) -> Dialect:
        return dialect_of(account, self.model, self._context, self._conceding.to(account))


class ChatAnswer(ProxiedResponse):
    """The answer, whose end tells what it took.

    :param passing_key: the affinity key of this request alone, or None.
    """

    def __init__(
        self,
        services: TurnServices,
        request: ClientRequest,
        passing_key: AffinityKey | None,
    ) -> None:
        super().__init__(services, request)
        self._passing_key = passing_key
        self._tail = b""

    def client_gone(self) -> None:
        """See :class:`ProxiedResponse`."""
        self._forget()
        if self.passage is not None:
            self.passage.cancel(satisfied=self._tail.rstrip().endswith(_LAST_CHUNK))

    def passage_relays(self, data: bytes) -> None:
        """See ``PassageDoor``."""
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        super().passage_relays(data)

    def passage_usage(self) -> Usage | None:
        """See ``PassageDoor``."""
        return last_usage(self._tail)

    def passage_ended(self, error: ApiError | None) -> None:
        """See ``PassageDoor``."""
        self._forget()
        super().passage_ended(error)

    def _forget(self) -> None:
        if self._passing_key is not None:
            self.services.pool.bindings.release(self._passing_key)


class ChatCompletions:
    """Answers ``/v1/chat/completions``."""

    def __init__(self, services: TurnServices) -> None:
        self._services = services

    def complete(self, request: ClientRequest, tenant: str) -> None:
        """``POST /chat/completions``."""
        services = self._services
        chat = read_chat(request.body)
        keys = affinity_keys(tenant, request.headers, {}, chat.prompt_cache_key, request.connection)
        passing = connection_key(tenant, request.connection)
        context = context_of(services, request, tenant, keys)
        answer = ChatAnswer(services, request, passing if passing in keys else None)
        passage = ProxiedRequest(
            services, context, ChatSpec(context, chat, services.ledger), answer
        )
        answer.opens(passage)
        wanted = RouteRequest(chat.model, keys, chat=True)
        passage.through_the_pool(wanted, Unbound())
