"""Passed-through requests without a network: calls that the test answers, a sink."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.config import RoutingSettings
from gateway.conversations.context import ContextPlan
from gateway.conversations.store import Transcript
from gateway.protocol.error_classification import may_move
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey
from gateway.routing.selection import RouteRequest
from gateway.turn.account_search import KnownAccount
from gateway.turn.context import Resolution, TurnContext
from gateway.turn.continuity import TurnContinuity
from gateway.turn.forwarding import Forwarding, KnownRoute, PoolRoute, RequestSpec
from gateway.upstream.interface import BodyReceiver, ForwardedRequest, UpstreamAnswer
from tests.turn.fakes import World

JSON = {"content-type": "application/json"}


class FakeCall:
    """One call as an upstream sees it; the test plays the upstream."""

    transport_name = "http"

    def __init__(self, call: ForwardedRequest, receiver: BodyReceiver) -> None:
        self.call = call
        self.request = call
        self.head: UpstreamAnswer | None = None
        self.request_bytes = len(call.body or b"")
        self.receiver = receiver
        self.state = "prepared"
        self.paused = False

    @property
    def body(self) -> Any:
        assert self.call.body is not None, "expected a body"
        return json.loads(self.call.body)

    def answer(self) -> UpstreamAnswer | None:
        return self.head

    def start(self) -> None:
        assert self.state == "prepared", f"started a second time, while {self.state}"
        self.state = "running"

    def cancel(self) -> None:
        if self.state != "over":
            self.state = "cancelled"

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def connects(self) -> None:
        if self.state == "running":
            self.receiver.upstream_connected()

    def begins(self, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        if self.state == "running":
            self.head = UpstreamAnswer(status, {**JSON, **(headers or {})}, b"")
            self.receiver.upstream_answered(status, self.head.headers)

    def sends(self, data: bytes) -> None:
        if self.state == "running":
            self.receiver.upstream_data(data)

    def ends(self, error: ApiError | None = None) -> None:
        if self.state == "running":
            self.state = "over"
            self.receiver.upstream_ended(error)

    def answers(self, body: Any, status: int = 200, **headers: str) -> None:
        """A whole answer."""
        self.begins(status, {name.replace("_", "-"): value for name, value in headers.items()})
        self.sends(body if isinstance(body, bytes) else json.dumps(body).encode())
        self.ends()

    def refuses(self, status: int, code: str | None = None, message: str = "no") -> None:
        self.answers({"error": {"message": message, "code": code}}, status)


class CallingUpstream:
    """Keeps every call."""

    warms = False

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.calls: list[FakeCall] = []

    def forward(self, call: ForwardedRequest, receiver: BodyReceiver) -> FakeCall:
        self.calls.append(FakeCall(call, receiver))
        return self.calls[-1]

    def sockets(self) -> None:
        """It has none."""

    def forget(self) -> None:
        """Nothing is learned."""

    def holds(self, holder: str) -> bool:
        return holder == self.name

    def continued(self, was: bool) -> None:
        """Nothing to learn."""

    def without_secrets(self, said: bytes) -> bytes:
        return said.replace(b"sk-secret", b"*")

    def secrets(self) -> list[str]:
        return ["sk-secret"]

    def close(self) -> None:
        """Nothing to close."""


class CallWorld(World):
    """A world whose upstreams take calls.

    :param settings: of single accounts, by name.
    """

    def __init__(
        self,
        accounts: int = 1,
        routing: RoutingSettings | None = None,
        settings: Mapping[str, Mapping[str, Any]] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(accounts, routing=routing, **more)
        self.callees = {name: CallingUpstream(name) for name in self.accounts}
        for name, account in self.accounts.items():
            account.upstream = self.callees[name]  # type: ignore[assignment]
            for setting, value in ((settings or {}).get(name) or {}).items():
                _set(account, setting, value)
        pool = self.services.pool
        pool.reconfigure(pool.accounts, pool.routing)

    def calls(self, name: str = "a") -> list[FakeCall]:
        return self.callees[name].calls

    @property
    def all_calls(self) -> list[FakeCall]:
        return [call for callee in self.callees.values() for call in callee.calls]

    def check_rest(self) -> None:
        super().check_rest()
        left = [call for call in self.all_calls if call.state == "running"]
        assert not left, "a call was left running"


def _set(account: Account, setting: str, value: Any) -> None:
    account.settings = msgspec.structs.replace(account.settings, **{setting: value})


class FakeSpec(RequestSpec):
    """The same request for every account."""

    what = "request"
    model: str | None = "gpt-5.5"
    size = 2
    generates = True
    plan: ContextPlan | None = None
    held_bytes = 0
    mends = 0
    route: PoolRoute | KnownRoute

    def __init__(self) -> None:
        self.took: list[str] = []

    def resolve(self) -> PoolRoute | KnownRoute:
        return self.route

    def fingerprint(self) -> str:
        return self.what

    def request_for(self, account: Account) -> ForwardedRequest:
        return ForwardedRequest("POST", "/errand", {}, json.dumps({"to": account.name}).encode())

    def adapt_to(self, account: Account, error: ApiError) -> bool:
        self.mends -= 1
        return self.mends >= 0

    def accepted(self, account: Account) -> None:
        self.took.append(account.name)

    def translated(self, error: ApiError) -> ApiError:
        return error

    def may_move(self, error: ApiError) -> bool:
        return may_move(error)


class FakeResponseSink:
    """Everything a client would have seen."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.endings: list[ApiError | None] = []
        self.usage: Usage | None = None

    def response_started(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.status, "answered twice"
        self.status, self.headers = status, headers

    def response_data(self, data: bytes) -> None:
        assert self.status, "a body before its head"
        assert not self.endings, "a body after the end"
        self.body += data

    def response_usage(self) -> Usage | None:
        return self.usage

    def response_ended(self, error: ApiError | None) -> None:
        self.endings.append(error)

    @property
    def error(self) -> ApiError:
        (error,) = self.endings
        assert error is not None, "expected an error, the answer is whole"
        return error


class Journey:
    """One passed-through request of a world."""

    def __init__(self, world: CallWorld, spec: FakeSpec | None = None) -> None:
        self.world = world
        self.spec = spec or FakeSpec()
        self.sink = FakeResponseSink()
        self.context = TurnContext(
            tenant="laptop",
            connection="http-1",
            client_headers={},
            affinity=[AffinityKey("session", "laptop", "s-1")],
            accepted_at=world.clock.seconds(),
        )
        self.forwarding = Forwarding(world.services, self.context, self.spec, self.sink)

    def starts(self, parent: Transcript | None = None) -> Journey:
        found = Resolution(self.world.request("hi"), parent)
        continuity = TurnContinuity(self.context.tenant, found, self.world.conversations)
        wanted = RouteRequest(self.spec.model, self.context.affinity)
        self.spec.route = PoolRoute(wanted, continuity, parent)
        self.forwarding.start()
        return self

    def asks(self, names: Sequence[str]) -> Journey:
        known = [KnownAccount(self.world.accounts[name], "may know it") for name in names]
        unknown = ApiError(404, "invalid_request_error", "unknown")
        self.spec.route = KnownRoute(known, unknown)
        self.forwarding.start()
        return self
