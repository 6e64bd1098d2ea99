"""What the handlers of passed requests share: the answer of a passage, and its context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.conversations.store import Transcript
from gateway.protocol.errors import ApiError
from gateway.protocol.headers import may_pass, without_limits
from gateway.protocol.turn_state import TURN_STATE
from gateway.protocol.upstream_request import forwardable
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.server.http_events import UNBUFFERED
from gateway.server.http_request import ClientRequest
from gateway.turn.context import TurnContext, TurnServices
from gateway.turn.passthrough import ProxiedRequest
from gateway.turn.response_metadata import passed_headers, tells_limits

EVENT_STREAM = "text/event-stream"
JSON = "application/json"


class ProxiedResponse:
    """Writes an upstream's answer as it comes: a sink of proxied responses.

    :param request: whose answer it is.
    """

    def __init__(self, services: TurnServices, request: ClientRequest) -> None:
        self.services = services
        self.request = request
        self.passage: ProxiedRequest | None = None
        self._limits = False

    def opens(self, passage: ProxiedRequest) -> None:
        """``passage`` is about to start, and belongs to this request."""
        self.passage = passage
        self._limits = tells_limits(self.services, passage.tenant)
        self.request.when_gone(self.client_gone)
        self.request.when_abandoned(passage.abandon)
        self.request.when_slow(passage.pause, passage.resume)

    def client_gone(self) -> None:
        """Nobody waits for the answer any more."""
        if self.passage is not None:
            self.passage.cancel()

    def passage_answers(self, status: int, headers: Mapping[str, str]) -> None:
        """See ``PassageDoor``."""
        self.request.start(status, self.head(headers))

    def passage_relays(self, data: bytes) -> None:
        """See ``PassageDoor``."""
        self.request.write(data)

    def passage_usage(self) -> Usage | None:
        """See ``PassageDoor``."""
        return None

    def passage_ended(self, error: ApiError | None) -> None:
        """See ``PassageDoor``."""
        self.passage = None
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
        record = self.passage.record if self.passage is not None else None
        if record is not None and record.account is not None and record.route is not None:
            told["x-gateway-account"] = record.account
            told["x-gateway-route"] = record.route
        return told


def context_of(
    services: TurnServices,
    request: ClientRequest,
    tenant: str,
    affinity: Sequence[AffinityKey],
    parent: Transcript | None = None,
) -> TurnContext:
    """Whose request it is, and what it belongs to."""
    return TurnContext(
        tenant=tenant,
        connection=request.connection,
        client_headers=forwardable(request.headers),
        affinity=affinity,
        parent=parent,
        continuation=None if parent is None else "previous_response_id",
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
