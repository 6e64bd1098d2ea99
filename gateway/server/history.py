"""The responses that one connection issued, and which one a turn continues (law 7).

The client names the response, or its session finds it (protocol.md §6.2, §10.59, §10.76).
"""

from __future__ import annotations

from typing import TypeVar

from twisted.internet.defer import Deferred

from gateway.conversations.store import ResponseRecord, Transcript, foreign_response
from gateway.protocol.errors import ApiError
from gateway.protocol.items import brings_history, call_ids, missing_calls
from gateway.protocol.request import TurnRequest
from gateway.turn.context import Resolution, TurnServices

#: Bound on the issued ids that are remembered.  They distinguish evicted from unknown responses.
_MAX_REMEMBERED = 4096

_Value = TypeVar("_Value")


class ConnectionHistory:
    """The responses that one connection may continue.

    :param tenant: the client key that owns the responses.
    :param always: continue the lane's last response also where the request does not refer to it
        (``chaining: always``).
    """

    def __init__(self, services: TurnServices, tenant: str, always: bool) -> None:
        self._services = services
        self._conversations = services.conversations
        self._tenant = tenant
        self._always = always
        self._evicted: dict[str, bool] = {}
        self._issued: dict[str, str | None] = {}
        self._calls: dict[str, str] = {}

    def resolve(
        self, request: TurnRequest, latest: str | None = None
    ) -> Resolution | Deferred[Resolution]:
        """Look up what a turn continues, and the issuers of its encrypted items.

        What is in memory is found at once; what is not is recalled first.

        :param latest: id of the last response on the turn's lane, or None.
        :raises ApiError: when the turn continues a response that cannot be continued.
        """
        services = self._services
        request = request.with_issuers(services.issuers.issuer_of)
        parent_id, continuation = self._parent_of(request, latest)
        wanted = None if parent_id in self._evicted else parent_id
        recalled = services.recall.recall(self._tenant, wanted, request.items)
        if recalled is None:
            return self._resolution(request, parent_id, continuation)
        return recalled.addCallback(
            lambda _: self._resolution(
                request.with_issuers(services.issuers.issuer_of), parent_id, continuation
            )
        )

    def _resolution(
        self, request: TurnRequest, parent_id: str | None, continuation: str | None
    ) -> Resolution:
        if parent_id is None:
            return Resolution(request)
        parent = self._recall(parent_id)
        return Resolution(request, parent, continuation, parent_id in self._issued)

    def _parent_of(self, request: TurnRequest, latest: str | None) -> tuple[str | None, str | None]:
        """The id of the response a turn continues, and how that was found."""
        if request.previous_response_id is not None:
            return request.previous_response_id, "previous_response_id"
        if request.in_conversation or brings_history(request.items):
            return None, None
        caller = self._caller_of(missing_calls(request.items))
        if caller is not None and caller in self._issued:
            return caller, "answers a call of this session"
        if self._always and latest is not None:
            return latest, "chaining: always"
        return None, None

    def remember(self, record: ResponseRecord, lane: str | None) -> None:
        """``record`` was issued on ``lane``."""
        _put(self._issued, record.id, lane)
        for item in record.output:
            for name in call_ids(item):
                _put(self._calls, name, record.id)

    def evict(self, response_id: str | None, lane: str | None) -> None:
        """Forget the response that a turn on ``lane`` named, because the turn was invalid.

        Only a response of the same lane that no upstream stores is forgotten.  A
        failure of the account evicts nothing.
        """
        if response_id is None:
            return
        found = self._conversations.get(self._tenant, response_id)
        if found is None or found.record.store or self._issued.get(response_id, "") != lane:
            return
        self._conversations.evict(found)
        del self._issued[response_id]
        _put(self._evicted, response_id, True)

    def cannot_continue(self, response_id: str) -> None:
        """``response_id`` failed, so no upstream is asked to continue it."""
        _put(self._evicted, response_id, True)

    def close(self) -> None:
        """Forget responses with ``store: false``: they live as long as their connection."""
        for response_id in self._issued:
            found = self._conversations.get(self._tenant, response_id)
            if found is not None and not found.record.store:
                self._conversations.evict(found)

    def _caller_of(self, calls: set[str]) -> str | None:
        """The latest response that made one of ``calls``."""
        if not calls:
            return None
        newest_first = reversed(self._calls.items())
        return next((response_id for call, response_id in newest_first if call in calls), None)

    def _recall(self, response_id: str) -> Transcript:
        found = self._conversations.get(self._tenant, response_id)
        if found is not None:
            return found
        owner = self._owner_of(response_id)
        if owner is not None:
            return foreign_response(self._tenant, response_id, owner)
        if response_id in self._issued:
            raise ApiError.forgotten()
        # Not while it could be another tenant's, and a reload may bring in another tenant.
        if self._services.limits.one_tenant and response_id not in self._evicted:
            return foreign_response(self._tenant, response_id, None)
        raise ApiError.previous_response_not_found(response_id)

    def _owner_of(self, response_id: str) -> str | None:
        """The account that keeps a response of this tenant which the gateway forgot."""
        if response_id in self._evicted:
            return None
        owner = self._services.owners.owner_of(self._tenant, response_id)
        known = owner is not None and self._services.pool.named(owner) is not None
        return owner if known else None


def _put(memory: dict[str, _Value], key: str, value: _Value) -> None:
    """Remember, and forget the oldest beyond the bound."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > _MAX_REMEMBERED:
        del memory[next(iter(memory))]
