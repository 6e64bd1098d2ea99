"""``POST /v1/chat/completions``: stateless, so any account that takes them will do (§7)."""

from __future__ import annotations

from gateway.conversations.context import Plan
from gateway.conversations.records import Ledger
from gateway.protocol.chat import TAIL_BYTES, ChatRequest, chat_body, last_usage, read_chat
from gateway.protocol.concessions import Sent
from gateway.protocol.dialect import Dialect
from gateway.protocol.errors import ApiError
from gateway.protocol.refusals import may_move
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, affinity_keys, connection_key
from gateway.routing.capabilities import Scope
from gateway.routing.selection import Wanted
from gateway.server.http_request import HttpRequest
from gateway.server.passthrough import (
    EVENT_STREAM,
    JSON,
    PassedAnswer,
    call_headers,
    context_of,
)
from gateway.turn.account_search import Unbound
from gateway.turn.conceding import Conceding
from gateway.turn.context import TurnContext, TurnEnvironment
from gateway.turn.passthrough import Passage
from gateway.turn.preparing import dialect_of
from gateway.upstream.interface import UpstreamCall

_PATH = "/chat/completions"

#: What ends a stream; clients leave as they see it.
_LAST_CHUNK = b"data: [DONE]"


class ChatCargo:
    """One chat completion."""

    what = "chat completion"
    generates = True
    plan: Plan | None = None
    held_bytes = 0

    def __init__(self, context: TurnContext, request: ChatRequest, ledger: Ledger) -> None:
        self.model: str | None = request.model
        self.size = len(request.body)
        self._context = context
        self._request = request
        self._conceding = Conceding(Scope(_PATH, request.model, context.tenant), ledger)

    def fingerprint(self) -> int:
        """See :class:`~gateway.turn.cargo.Cargo`."""
        return hash(self._request.body)

    def call_for(self, account: Account) -> UpstreamCall:
        """See :class:`~gateway.turn.cargo.Cargo`."""
        dialect = self._dialect_of(account)
        body = chat_body(self._request, dialect.model, dialect.stores, dialect.spares)
        accept = EVENT_STREAM if self._request.stream else JSON
        return UpstreamCall("POST", _PATH, call_headers(self._context, account, accept), body)

    def mended(self, account: Account, error: ApiError) -> bool:
        """See :class:`~gateway.turn.cargo.Cargo`."""
        stores = self._request.stores and self._dialect_of(account).stores
        sent = Sent(self._request.members, stores=stores)
        return self._conceding.makes(account, error, sent)

    def accepted(self, account: Account) -> None:
        """See :class:`~gateway.turn.cargo.Cargo`."""
        self._conceding.accepted(account)

    def translated(self, error: ApiError) -> ApiError:
        """See :class:`~gateway.turn.cargo.Cargo`."""
        return error

    def may_move(self, error: ApiError) -> bool:
        """See :class:`~gateway.turn.cargo.Cargo`."""
        return may_move(error) or error.status == 405

    def _dialect_of(self, account: Account) -> Dialect:
        return dialect_of(account, self.model, self._context, self._conceding.to(account))


class ChatAnswer(PassedAnswer):
    """The answer, whose end tells what it took.

    :param passing_key: the affinity key of this request alone, or None.
    """

    def __init__(
        self,
        environment: TurnEnvironment,
        request: HttpRequest,
        passing_key: AffinityKey | None,
    ) -> None:
        super().__init__(environment, request)
        self._passing_key = passing_key
        self._tail = b""

    def client_gone(self) -> None:
        """See :class:`PassedAnswer`."""
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
            self.environment.pool.bindings.release(self._passing_key)


class Chat:
    """Answers ``/v1/chat/completions``."""

    def __init__(self, environment: TurnEnvironment) -> None:
        self._environment = environment

    def complete(self, request: HttpRequest, tenant: str) -> None:
        """``POST /chat/completions``."""
        environment = self._environment
        chat = read_chat(request.body)
        keys = affinity_keys(tenant, request.headers, {}, chat.prompt_cache_key, request.connection)
        passing = connection_key(tenant, request.connection)
        context = context_of(environment, request, tenant, keys)
        answer = ChatAnswer(environment, request, passing if passing in keys else None)
        passage = Passage(
            environment, context, ChatCargo(context, chat, environment.ledger), answer
        )
        answer.opens(passage)
        wanted = Wanted(chat.model, keys, chat=True)
        passage.through_the_pool(wanted, Unbound())
