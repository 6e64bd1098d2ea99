"""``POST /v1/chat/completions``: stateless, so any account can serve it (protocol.md §7)."""

from __future__ import annotations

from gateway.conversations.store import ConversationStore
from gateway.protocol.concessions import SentRequest
from gateway.protocol.error_classification import may_move
from gateway.protocol.errors import ApiError
from gateway.protocol.request import ChatRequest, read_chat
from gateway.protocol.upstream_request import Dialect, build_chat_body
from gateway.protocol.usage import TAIL_BYTES, Usage, usage_in_tail
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, affinity_keys, connection_key
from gateway.routing.capabilities import CapabilityScope
from gateway.routing.selection import RouteRequest
from gateway.server.forwarding import (
    EVENT_STREAM,
    JSON,
    ForwardedResponse,
    call_headers,
    context_of,
)
from gateway.server.http_request import ClientRequest
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.continuity import RequestConcessions
from gateway.turn.forwarding import PoolRoute, RequestSpec
from gateway.upstream.interface import ForwardedRequest

_PATH = "/chat/completions"

#: The last chunk of a stream.  Clients disconnect when they have read it.
_LAST_CHUNK = b"data: [DONE]"


class ChatSpec(RequestSpec):
    """One chat completion."""

    what = "chat completion"
    generates = True

    def __init__(
        self, context: TurnContext, request: ChatRequest, conversations: ConversationStore
    ) -> None:
        self.model: str | None = request.model
        self.size = len(request.body)
        self._context = context
        self._request = request
        self._concessions = RequestConcessions(
            CapabilityScope(_PATH, request.model, context.tenant), conversations
        )

    def resolve(self) -> PoolRoute:
        """Any account that takes chat completions."""
        return PoolRoute(RouteRequest(self.model, self._context.affinity, chat=True))

    def fingerprint(self) -> int:
        """A hash of the whole body."""
        return hash(self._request.body)

    def request_for(self, account: Account) -> ForwardedRequest:
        """The request in the account's dialect."""
        dialect = self._dialect_of(account)
        body = build_chat_body(self._request, dialect.model, dialect.stores, dialect.spares)
        accept = EVENT_STREAM if self._request.stream else JSON
        return ForwardedRequest("POST", _PATH, call_headers(self._context, account, accept), body)

    def adapt_to(self, account: Account, error: ApiError) -> bool:
        """Give up what ``account`` refused; whether the request may now be sent to it again."""
        stores = self._request.stores and self._dialect_of(account).stores
        sent = SentRequest(self._request.members, stores=stores)
        return self._concessions.concede(account, error, sent)

    def accepted(self, account: Account) -> None:
        """Remember what was given up for ``account``."""
        self._concessions.accepted(account)

    def may_move(self, error: ApiError) -> bool:
        """Whether another account may serve it, or has the endpoint."""
        return may_move(error) or error.status == 405

    def _dialect_of(self, account: Account) -> Dialect:
        return self._concessions.dialect(
            account, self._concessions.to(account), self._context.affinity
        )


class ChatAnswer(ForwardedResponse):
    """The answer; its usage is read from its end.

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
        """End the request; it is complete if the stream's last chunk was sent."""
        self._forget()
        if self.forwarding is not None:
            self.forwarding.cancel(satisfied=self._tail.rstrip().endswith(_LAST_CHUNK))

    def response_data(self, data: bytes) -> None:
        """Write a piece of the body, and keep the end of what came so far."""
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        super().response_data(data)

    def response_usage(self) -> Usage | None:
        """The usage at the end of the answer, or None."""
        return usage_in_tail(self._tail)

    def response_ended(self, error: ApiError | None) -> None:
        """End the answer."""
        self._forget()
        super().response_ended(error)

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
        answer.forward(context, ChatSpec(context, chat, services.conversations))
