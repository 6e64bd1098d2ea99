"""Which response a turn continues: named by its client, or found by its session (law 7).

A lineage is one connection's memory of the responses it gave out.
"""

from __future__ import annotations

from typing import TypeVar

from gateway.conversations.store import ResponseRecord, Transcript, foreign_response
from gateway.protocol.errors import ApiError
from gateway.protocol.items import brings_history, names_of_call, unanswered_calls
from gateway.protocol.request import TurnRequest
from gateway.turn.context import TurnServices

#: Ids that are remembered as given out, so that a lost one can be told from an unknown one.
_MAX_REMEMBERED = 4096

_Value = TypeVar("_Value")


class ConnectionHistory:
    """What one connection may continue.

    :param tenant: whose responses.
    :param always: continue the lane's last response even without a sign of it
        (``chaining: always``).
    """

    def __init__(self, services: TurnServices, tenant: str, always: bool) -> None:
        self._services = services
        self._ledger = services.ledger
        self._tenant = tenant
        self._always = always
        self._evicted: dict[str, bool] = {}
        self._issued: dict[str, str | None] = {}
        self._calls: dict[str, str] = {}

    def parent_of(
        self, request: TurnRequest, latest: str | None
    ) -> tuple[Transcript | None, str | None]:
        """The response a turn continues, and how that was found.

        :param latest: id of the last response on the turn's lane, or None.
        :raises ApiError: when the turn continues one that cannot be.
        """
        named = request.previous_response_id
        if named is not None:
            return self._recall(named), "previous_response_id"
        if request.in_conversation:
            return None, None
        if brings_history(request.items):
            return None, None
        caller = self._caller_of(unanswered_calls(request.items))
        if caller is not None and caller in self._issued:
            return self._recall(caller), "answers a call of this session"
        if self._always and latest is not None:
            return self._recall(latest), "chaining: always"
        return None, None

    def gave_out(self, response: Transcript | None) -> bool:
        """Whether this connection's client has the response from it."""
        return response is not None and response.record.id in self._issued

    def remember(self, record: ResponseRecord, lane: str | None) -> None:
        """``record`` was given out on ``lane``."""
        _put(self._issued, record.id, lane)
        for item in record.output:
            for name in names_of_call(item):
                _put(self._calls, name, record.id)

    def evict(self, response_id: str | None, lane: str | None) -> None:
        """A turn on ``lane`` that named ``response_id`` was wrong in itself.

        That costs a lane its parent (protocol.md §6.2, §10.59): only one that it made
        itself, and that the upstream would not have kept either.  A turn that fails for
        its account's sake leaves the thread whole.
        """
        if response_id is None:
            return
        found = self._ledger.get(self._tenant, response_id)
        if found is None or found.record.store or self._issued.get(response_id, "") != lane:
            return
        self._ledger.evict(found)
        del self._issued[response_id]
        _put(self._evicted, response_id, True)

    def cannot_continue(self, response_id: str) -> None:
        """``response_id`` failed: no upstream need be asked for it (§10.76)."""
        _put(self._evicted, response_id, True)

    def close(self) -> None:
        """What was not to be stored lives as long as its connection (§6.2, §8.2)."""
        for response_id in self._issued:
            found = self._ledger.get(self._tenant, response_id)
            if found is not None and not found.record.store:
                self._ledger.evict(found)

    def _caller_of(self, calls: set[str]) -> str | None:
        """The latest response that made one of ``calls``."""
        if not calls:
            return None
        made = reversed(self._calls.items())
        return next((response_id for call, response_id in made if call in calls), None)

    def _recall(self, response_id: str) -> Transcript:
        found = self._ledger.get(self._tenant, response_id)
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
        """The account that keeps a response of this tenant which the ledger forgot."""
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
