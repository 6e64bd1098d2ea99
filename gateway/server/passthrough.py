"""What the handlers of passed-through requests share: their answers and their context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.protocol.errors import ApiError
from gateway.protocol.headers import TURN_STATE, forwardable, may_pass, without_limits
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.server.http_events import UNBUFFERED
from gateway.server.http_request import ClientRequest
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.passthrough import ProxiedRequest
from gateway.turn.response_metadata import passed_headers, route_headers, shows_limits

EVENT_STREAM = "text/event-stream"
JSON = "application/json"


class ProxiedResponse:
    """Writes an upstream's answer as it comes: a sink of proxied responses.

    :param request: whose answer it is.
    """

    def __init__(self, services: TurnServices, request: ClientRequest) -> None:
        self.services = services
        self.request = request
        self.proxied: ProxiedRequest | None = None
        self._limits = False

    def opens(self, proxied: ProxiedRequest) -> None:
        """``proxied`` is about to start, and answers this request."""
        self.proxied = proxied
        self._limits = shows_limits(self.services, proxied.tenant)
        self.request.when_gone(self.client_gone)
        self.request.when_abandoned(proxied.abandon)
        self.request.when_slow(proxied.pause, proxied.resume)

    def client_gone(self) -> None:
        """The client left: end the request."""
        if self.proxied is not None:
            self.proxied.cancel()

    def response_started(self, status: int, headers: Mapping[str, str]) -> None:
        """Write the head of the answer."""
        self.request.start(status, self.head(headers))

    def response_data(self, data: bytes) -> None:
        """Write a piece of its body."""
        self.request.write(data)

    def response_usage(self) -> Usage | None:
        """Nothing is known of what it took."""
        return None

    def response_ended(self, error: ApiError | None) -> None:
        """End the answer, or answer with ``error``."""
        self.proxied = None
        if error is not None:
            if not self._limits:
                error.headers = without_limits(error.headers)
            self.request.refuse(error)
        else:
            self.request.finish()

    def head(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers of the answer: those of the upstream's that concern the client (§7)."""
        kind = headers.get("content-type", "")
        told = {"content-type": kind if may_pass("content-type", kind) else JSON}
        told.update(passed_headers(headers, self._limits))
        if told["content-type"].startswith(EVENT_STREAM):
            told.update(UNBUFFERED)
        if self.proxied is not None:
            told.update(route_headers(self.proxied.record))
        return told


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
    """The headers of a passed request; what authorizes it comes with the account's upstream."""
    headers = {"accept": accept, **context.client_headers}
    if has_body:
        headers["content-type"] = JSON
    headers.update((name.lower(), value) for name, value in account.request_headers)
    return headers
