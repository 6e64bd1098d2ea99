"""Response metadata for clients: turn state, account, route, and headers of the upstream.

Over HTTP these are response headers; over WebSocket they are a ``response.metadata`` event, for
clients that asked for it (protocol.md §4.6, §7, §10.49).
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.protocol.events import metadata_event
from gateway.protocol.headers import counts_limits, may_pass
from gateway.protocol.turn_state import TURN_STATE, TurnState
from gateway.turn.context import MetadataFields, TurnContext, TurnServices
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
    """The metadata of one turn.

    :ivar account: the account in the turn state that the client echoed, or None.
    :ivar shows_limits: whether the client may see the account's limits.
    """

    def __init__(self, services: TurnServices, context: TurnContext) -> None:
        self._states = services.turn_states
        self._tenant = context.tenant
        self._fields = context.metadata
        self._echoed: TurnState | None = None
        if context.turn_state is not None:
            self._echoed = self._states.unwrap(context.tenant, context.turn_state)
        self.account = None if self._echoed is None else self._echoed.account
        self.shows_limits = shows_limits(services, context.tenant)

    def upstream_state(self, account: str) -> str | None:
        """The upstream's own turn state, if it is from ``account``."""
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
        """The response headers for an HTTP client, once the answer has begun.

        :param answer_headers: the upstream's response headers.
        :param sent_state: whether an event of the upstream has carried a turn state already.
        """
        headers = route_headers(record)
        headers.update(passed_headers(answer_headers, self.shows_limits))
        if not sent_state:
            headers.update(self._turn_state(record, answer_headers))
        return headers

    def event(
        self, record: TurnRecord, answer_headers: Mapping[str, str], sent_state: bool
    ) -> bytes | None:
        """The second event of an answer for a WebSocket client; None if it asked for none.

        The parameters are those of :meth:`headers`.
        """
        if not self._fields:
            return None
        headers: dict[str, str] = {}
        if MetadataFields.TURN_STATE in self._fields and not sent_state:
            headers.update(self._turn_state(record, answer_headers))
        if MetadataFields.ROUTE in self._fields:
            headers.update(route_headers(record))
        return metadata_event(headers) if headers else None

    def _turn_state(self, record: TurnRecord, answer_headers: Mapping[str, str]) -> dict[str, str]:
        assert record.account is not None
        return {TURN_STATE: self.wrapped(record.account, answer_headers.get(TURN_STATE))}


def shows_limits(services: TurnServices, tenant: str) -> bool:
    """Whether ``tenant`` sees the upstream's headers about limits.

    The limits of one account mean nothing for a pool, and only the account's owner may see them.
    """
    return len(services.pool.accounts) == 1 and services.limits.sees_quotas(tenant)


def passed_headers(headers: Mapping[str, str], limits: bool) -> dict[str, str]:
    """The response headers of an upstream that concern the client.

    :param limits: whether the headers about limits are included.
    """
    return {
        name: value
        for name, value in headers.items()
        if (
            name in _PASSED
            or (
                limits and counts_limits(name) and name != TURN_STATE
            )  # the gateway's own replaces it
        )
        and may_pass(name, value)
    }


def route_headers(record: TurnRecord) -> dict[str, str]:
    """The headers with the account and the route of a request, once both are known."""
    if record.account is None or record.route is None:
        return {}
    return {"x-gateway-account": record.account, "x-gateway-route": record.route}
