"""The handlers of passed requests, called as the door calls them, on scripted upstreams."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gateway.api_keys.keys import KeyRing
from gateway.config import KeySettings, Settings
from gateway.conversations.store import ResponseRecord, Transcript
from gateway.protocol.errors import ApiError
from gateway.protocol.items import read_item
from gateway.routing.model_catalog import ModelCatalog
from gateway.server.chat import ChatCompletions
from gateway.server.connections import ConnectionLimiter
from gateway.server.forwarding import InputEndpoints, StoredResponses
from gateway.server.http_request import ClientRequest
from gateway.server.http_site import ClientSite, endpoints
from gateway.server.models import Models
from gateway.server.responses import Responses
from tests.support.events import Json
from tests.turn.calls import CallWorld, FakeCall

LAPTOP = KeySettings(name="laptop", key="sk-client")
DESK = KeySettings(name="desk", key="sk-desk")


class FakeWire:
    """What a client got."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.completed = False
        self.was_cut = False

    def send_head(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.status, "answered twice"
        self.status, self.headers = status, headers

    def send(self, data: bytes) -> None:
        assert self.status, "a body without a head"
        assert not self.is_over, "sent after the end"
        self.body += data

    def finish(self) -> None:
        assert not self.is_over, "ended twice"
        self.completed = True

    def cut(self) -> None:
        self.was_cut = True

    @property
    def is_over(self) -> bool:
        return self.completed or self.was_cut

    @property
    def json(self) -> Any:
        assert self.completed, "expected a whole answer"
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        return error


class Asked:
    """One request and what became of it."""

    def __init__(self, request: ClientRequest, wire: FakeWire) -> None:
        self.request = request
        self.wire = wire

    def leaves(self) -> None:
        self.request.client_gone()


class Hall:
    """All handlers over a world of accounts.

    :param keys: the client keys; more than one means that tenants are kept apart.
    """

    def __init__(
        self, accounts: int = 1, keys: Sequence[KeySettings] = (LAPTOP,), **world: Any
    ) -> None:
        self.world = CallWorld(accounts, **world)
        self.tenants = KeyRing(keys, self.world.clock.seconds)
        services = self.world.services
        object.__setattr__(services, "limits", self.tenants)
        self.services = services
        self.catalogues = ModelCatalog(self.world.clock)
        limiter = ConnectionLimiter(10)
        nobody: Any = None
        self.site = ClientSite(
            self.world.clock,
            endpoints(
                Responses(services, limiter),
                StoredResponses(services),
                InputEndpoints(services),
                Models(services.pool, self.catalogues, self.tenants.may_use),
                ChatCompletions(services),
            ),
            Settings(),
            self.tenants,
            limiter,
            nobody,
        )
        self._numbers = 0

    def asks(
        self,
        method: str,
        path: str,
        body: Any = None,
        tenant: str = "laptop",
        **headers: str,
    ) -> Asked:
        """Send a request; ``body`` is JSON, or bytes as they are."""
        path, _, query = path.partition("?")
        wire: Any = FakeWire()
        self._numbers += 1
        route = self.site.find(method, f"/v1{path}")
        request = ClientRequest(
            wire,
            method,
            f"/v1{path}",
            query,
            {name.replace("_", "-"): value for name, value in headers.items()},
            f"http-{self._numbers}",
        )
        request.parameters = route.parameters
        if body is not None:
            request.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        try:
            route.handler(request, tenant)
        except ApiError as error:
            request.refuse(error)
        return Asked(request, wire)

    def calls(self, name: str = "a") -> list[FakeCall]:
        return self.world.calls(name)

    def remembers(
        self,
        response_id: str = "resp_1",
        *,
        account: str | None = "a",
        tenant: str = "laptop",
        parent: Transcript | None = None,
        input: Sequence[Json] = ({"role": "user", "content": "hi"},),
        output: Sequence[Json] = (),
        store: bool = True,
        held_upstream: bool = True,
    ) -> Transcript:
        """A response in the ledger."""
        record = ResponseRecord(
            tenant=tenant,
            id=response_id,
            parent=None if parent is None else parent.record.key,
            input=tuple(read_item(json.dumps(item).encode()) for item in input),
            output=tuple(read_item(json.dumps(item).encode()) for item in output),
            account=account,
            store=store,
            held_upstream=held_upstream,
            model="gpt-5.5",
            created_at=self.world.clock.seconds(),
        )
        response = Transcript(record, parent)
        self.services.conversations.add(response)
        return response

    def check_rest(self) -> None:
        self.catalogues.close()
        self.world.check_rest()
