"""What a client is told beside the response: its turn state, and where the turn went.

Over HTTP these are response headers; over WebSocket a ``response.metadata`` event carries
them to clients that asked (protocol.md §4.6, §7, §10.49).
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.protocol.events import metadata_event
from gateway.protocol.headers import counts_limits, may_pass
from gateway.protocol.turn_state import TURN_STATE, TurnState
from gateway.turn.context import Told, TurnContext, TurnServices
from gateway.turn.turn_log import TurnRecord

#: Response headers of an upstream that concern the client.
_PASSED = frozenset(
    {
        "cf-ray",
        "openai-model",
        "openai-processing-ms",
        "openai-version",
        "x-models-etag",
        "x-oai-request-id",
        "x-reasoning-included",
        "x-request-id",
    }
)


class ResponseMetadata:
    """What one turn's client is told.

    :ivar account: the account that the client's own turn state names, or None.
    :ivar shows_limits: see :func:`shows_limits`.
    """

    def __init__(self, services: TurnServices, context: TurnContext) -> None:
        self._states = services.turn_states
        self._tenant = context.tenant
        self._told = context.told
        self._echoed: TurnState | None = None
        if context.turn_state is not None:
            self._echoed = self._states.unwrap(context.tenant, context.turn_state)
        self.account = None if self._echoed is None else self._echoed.account
        self.shows_limits = shows_limits(services, context.tenant)

    def upstream_state(self, account: str) -> str | None:
        """The turn state that ``account`` gave this turn itself."""
        if self._echoed is None or self._echoed.account != account:
            return None
        return self._echoed.upstream

    def wrapped(self, account: str, upstream: str | None) -> str:
        """The gateway's turn state in place of the upstream's."""
        return self._states.wrap(
            self._tenant, TurnState(account, upstream or self.upstream_state(account))
        )

    def headers(
        self, record: TurnRecord, answer_headers: Mapping[str, str], sent_state: bool
    ) -> dict[str, str]:
        """For an HTTP client, once the answer has begun.

        :param answer_headers: those of the upstream.
        :param sent_state: whether an event of the upstream has carried a turn state already.
        """
        told = route_headers(record)
        told.update(passed_headers(answer_headers, self.shows_limits))
        if not sent_state:
            told.update(self._turn_state(record, answer_headers))
        return told

    def event(
        self, record: TurnRecord, answer_headers: Mapping[str, str], sent_state: bool
    ) -> bytes | None:
        """For a WebSocket client, the second event of an answer; None when it asked for none.

        The parameters are those of :meth:`headers`.
        """
        if not self._told:
            return None
        told: dict[str, str] = {}
        if Told.TURN_STATE in self._told and not sent_state:
            told.update(self._turn_state(record, answer_headers))
        if Told.ROUTE in self._told:
            told.update(route_headers(record))
        return metadata_event(told) if told else None

    def _turn_state(self, record: TurnRecord, answer_headers: Mapping[str, str]) -> dict[str, str]:
        assert record.account is not None
        return {TURN_STATE: self.wrapped(record.account, answer_headers.get(TURN_STATE))}


def shows_limits(services: TurnServices, tenant: str) -> bool:
    """Whether ``tenant`` is told what accounts say of their limits.

    The limits of one account say nothing of a pool, and only the owner should see them.
    """
    return len(services.pool.accounts) == 1 and services.limits.sees_quotas(tenant)


def passed_headers(headers: Mapping[str, str], limits: bool) -> dict[str, str]:
    """The response headers of an upstream that concern the client.

    :param limits: whether the account's limits do.
    """
    return {
        name: value
        for name, value in headers.items()
        if (
            name in _PASSED
            or (limits and counts_limits(name) and name != TURN_STATE)  # ours takes its place
        )
        and may_pass(name, value)
    }


def route_headers(record: TurnRecord) -> dict[str, str]:
    """The account and the route of a request, once they are known."""
    if record.account is None or record.route is None:
        return {}
    return {"x-gateway-account": record.account, "x-gateway-route": record.route}
