"""What a client is told beside the answer: its turn state, and where the turn went.

Over HTTP these are response headers; over WebSocket a ``response.metadata`` event carries
them to clients that asked (protocol.md §4.6, §7).
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.protocol.events import metadata_event
from gateway.protocol.headers import counts_limits, may_pass
from gateway.protocol.turn_state import TURN_STATE, TurnState
from gateway.turn.attempt import Attempt
from gateway.turn.context import Told, TurnContext, TurnServices
from gateway.turn.turn_log import TurnRecord

#: Response headers of an upstream that concern the client (§7).
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


class Telling:
    """One turn's words beside the answer.

    :ivar account: the account that the client's own turn state names, or None.
    :ivar tells_limits: see :func:`tells_limits`.
    """

    def __init__(self, services: TurnServices, context: TurnContext) -> None:
        self._states = services.turn_states
        self._tenant = context.tenant
        self._told = context.told
        self._echoed = self._states.unwrap(context.tenant, context.turn_state)
        self.account = None if self._echoed is None else self._echoed.account
        self.tells_limits = tells_limits(services, context.tenant)

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

    def headers(self, record: TurnRecord, attempt: Attempt | None) -> dict[str, str]:
        """For an HTTP client, once the answer has begun."""
        told = _route(record)
        if attempt is not None:
            told.update(passed_headers(attempt.answer_headers, self.tells_limits))
            told.update(self._turn_state(attempt))
        return told

    def with_metadata(
        self, payloads: list[bytes], record: TurnRecord, attempt: Attempt
    ) -> list[bytes]:
        """The first events of an answer, for a WebSocket client that asked to be told."""
        told: dict[str, str] = {}
        if Told.TURN_STATE in self._told:
            told.update(self._turn_state(attempt))
        if Told.ROUTE in self._told:
            told.update(_route(record))
        return [payloads[0], metadata_event(told), *payloads[1:]] if told else payloads

    def _turn_state(self, attempt: Attempt) -> dict[str, str]:
        """Our own value, unless an event of the upstream has carried one already."""
        if attempt.relay.turn_state is not None:
            return {}
        upstream = attempt.answer_headers.get(TURN_STATE)
        return {TURN_STATE: self.wrapped(attempt.account.name, upstream)}


def tells_limits(services: TurnServices, tenant: str) -> bool:
    """Whether ``tenant`` is told what accounts say of their limits.

    Of a pool one account's would tell nothing (§10.49); and they are the owner's business.
    """
    return len(services.pool.accounts) == 1 and services.limits.sees_quotas(tenant)


def passed_headers(headers: Mapping[str, str], limits: bool) -> dict[str, str]:
    """What of an upstream's response headers concerns the client (§7).

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


def _route(record: TurnRecord) -> dict[str, str]:
    if record.account is None or record.route is None:
        return {}
    return {"x-gateway-account": record.account, "x-gateway-route": record.route}
