"""A turn's surroundings without a network: scripted upstreams, a sink that writes down."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock

from gateway.config import AccountSettings, RoutingSettings, UpstreamWebSocketSettings
from gateway.conversations.owners import MemoryIssuers, MemoryOwners
from gateway.conversations.store import MemoryStore, Transcript
from gateway.protocol.errors import ApiError, error_event
from gateway.protocol.request import TurnRequest, read_create
from gateway.protocol.request import read_members as read_members
from gateway.protocol.turn_state import TurnStateSigner
from gateway.protocol.upstream_request import UpstreamTurn, build_body, build_headers
from gateway.protocol.usage import Usage
from gateway.request_log.request_log import RequestLog
from gateway.routing.account import Account
from gateway.routing.affinity import AffinityKey, MemoryBindings
from gateway.routing.router import AccountPool
from gateway.routing.wait_queue import WaitQueue
from gateway.state.durable_conversations import NoRecall
from gateway.turn.context import Resolution, Resolver, TurnContext, TurnServices
from gateway.turn.turn import Turn
from gateway.turn.turn_log import TurnLog
from gateway.upstream.interface import (
    EventReceiver,
    ForwardedRequest,
    SocketFigures,
    SuccessorWatcher,
    UpstreamAnswer,
)
from tests.support.events import Json
from tests.support.sse import ServerSentEvent

TERMINALS = ("response.completed", "response.failed", "response.incomplete", "error")


def sse(event: Json) -> ServerSentEvent:
    return ServerSentEvent(event["type"].encode(), json.dumps(event).encode())


def at_once(function: Callable[[], Any]) -> Deferred[Any]:
    """Runs what belongs into a thread, and waits for it."""
    return maybeDeferred(function)


class FakeExchange:
    """One request as an upstream sees it; the test plays the upstream."""

    transport_name = "http"
    holder: str | None = None

    def __init__(self, turn: UpstreamTurn, receiver: EventReceiver) -> None:
        self.headers = build_headers(
            turn.request,
            turn.client_headers,
            turn.account_headers,
            turn.turn_state,
            turn.dialect.streams,
        )
        body = build_body(turn.request, turn.items, turn.previous_response_id, turn.dialect)
        self.request_bytes = len(body)
        self.body: Json = json.loads(body)
        self.receiver = receiver
        self.request: ForwardedRequest | None = ForwardedRequest(
            "POST", "/responses", self.headers, body
        )
        self.state = "prepared"
        self.told: list[Json] = []
        self.succeeded_by: FakeSuccessor | None = None
        self.paused = False
        self.play: Any = None
        self.head: UpstreamAnswer | None = None

    def answer(self) -> UpstreamAnswer | None:
        return self.head

    def start(self) -> None:
        assert self.state == "prepared", f"started a second time, while {self.state}"
        self.state = "running"
        if self.play is not None:
            self.play(self)

    def cancel(self) -> None:
        if self.state != "over":
            self.state = "cancelled"

    def finish(self) -> None:
        assert self.state == "running", f"finished while {self.state}"
        self.state = "finished"

    def successor(self) -> FakeSuccessor | None:
        if self.transport_name != "websocket" or self.state != "running":
            return None
        self.state = "finished"
        self.succeeded_by = FakeSuccessor()
        return self.succeeded_by

    def tell(self, message: bytes) -> bool:
        if self.transport_name != "websocket":
            return False
        self.told.append(json.loads(message))
        return True

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def sends(self, *events: Json) -> None:
        """One read's worth of events; nobody reads what comes after the end."""
        if self.state == "running":
            self.receiver.upstream_events([sse(event) for event in events])

    def ends(self, error: ApiError | None = None) -> None:
        if self.state == "running":
            self.state = "over"
            self.receiver.upstream_ended(error)


class FakeSuccessor:
    """The connection behind a steered response; the test says what comes on it."""

    def __init__(self) -> None:
        self.state = "ready"
        self.paused = False
        self.watcher: Any = None
        self.made: FakeExchange | None = None

    def start(self, watcher: SuccessorWatcher) -> None:
        self.state, self.watcher = "running", watcher

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> FakeExchange:
        assert self.state == "running"
        self.state = "finished"
        self.made = FakeExchange(turn, receiver)
        self.made.transport_name = "websocket"
        self.made.request = None
        return self.made

    def answers(self, event: Json) -> None:
        self.watcher.successor_answered(event["type"].encode(), json.dumps(event).encode())

    def begins(self, *events: Json) -> FakeExchange:
        self.watcher.successor_begins()
        assert self.made is not None
        self.made.sends(*events)
        return self.made

    def finish(self) -> None:
        self.state = "finished"

    def cancel(self) -> None:
        if self.state != "finished":
            self.state = "cancelled"

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False


class FakeUpstream:
    """Keeps every exchange; ``answer`` plays the upstream from within ``start``."""

    warms = False

    def __init__(self, name: str = "a") -> None:
        self.name = name
        self.forgotten = 0
        self.exchanges: list[FakeExchange] = []
        self.answer: Any = None
        self.figures: SocketFigures | None = None
        self.continuations: list[bool] = []
        self.held: set[str] = set()
        self.transport_name = "http"

    def exchange(self, turn: UpstreamTurn, receiver: EventReceiver) -> FakeExchange:
        exchange = FakeExchange(turn, receiver)
        exchange.play = self.answer
        exchange.transport_name = self.transport_name
        self.exchanges.append(exchange)
        return exchange

    def sockets(self) -> SocketFigures | None:
        return self.figures

    def forget(self) -> None:
        self.forgotten += 1

    def holds(self, holder: str) -> bool:
        return holder == self.name or holder in self.held

    def continued(self, was: bool) -> None:
        self.continuations.append(was)

    def without_secrets(self, said: bytes) -> bytes:
        return said.replace(b"sk-secret", b"*")

    def secrets(self) -> list[str]:
        return ["sk-secret"]

    def close(self) -> None:
        """Nothing to close."""


class FakeSink:
    """Everything a client would have seen, in order."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.keep_alives = 0
        self.ended = 0

    def relay(self, payloads: Sequence[bytes]) -> None:
        assert not self.ended, f"relayed after the end of the turn: {payloads}"
        self.raw += payloads

    def refuse(self, error: ApiError) -> None:
        self.relay([error_event(error)])

    def keep_alive(self) -> None:
        assert not self.ended, "kept alive after the end of the turn"
        self.keep_alives += 1

    def turn_ended(self) -> None:
        self.ended += 1

    @property
    def events(self) -> list[Json]:
        return [json.loads(raw) for raw in self.raw]

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    @property
    def last(self) -> Json:
        return self.events[-1]


def resolver(parent: Transcript | None = None) -> Resolver:
    """Looks up ``parent`` at once, whatever a request names."""
    continuation = None if parent is None else "previous_response_id"
    return lambda request: Resolution(request, parent, continuation)


class NoLimits:
    """Client keys without limits; it is the lease of every turn, too."""

    def __init__(self, one_tenant: bool = True) -> None:
        self.one_tenant = one_tenant

    def sees_quotas(self, tenant: str) -> bool:
        return True

    def prepare(self, tenant: str) -> None:
        return None

    def acquire(self, tenant: str, model: str | None) -> NoLimits:
        return self

    def follow(self, tenant: str, model: str | None) -> NoLimits:
        return self

    def used(self, usage: Usage) -> None:
        """Nothing is counted."""

    def release(self) -> None:
        """Nothing waits."""

    def refused(self, tenant: str, limit: str) -> None:
        """Nothing is refused."""


class World:
    """Accounts ``a``, ``b``, … and what turns share.

    :param continuity: of all accounts.
    :param controls: if given, turns go over WebSockets to services that know these messages.
    """

    def __init__(
        self,
        accounts: int = 1,
        continuity: str = "auto",
        routing: RoutingSettings | None = None,
        controls: Sequence[str] | None = None,
        **services: Any,
    ) -> None:
        self.clock = Clock()
        self.clock.advance(1_800_000_000)
        now = self.clock.seconds
        rules = routing or RoutingSettings(queue_seconds=0.0)
        self.upstreams = {name: FakeUpstream(name) for name in "abcdefgh"[:accounts]}
        self.accounts = {
            name: Account(
                AccountSettings(
                    name=name,
                    base_url="http://upstream",
                    key=f"sk-{name}",
                    continuity=continuity,  # type: ignore[arg-type]
                    websocket=UpstreamWebSocketSettings(
                        controls=tuple(controls or ())  # type: ignore[arg-type]
                    ),
                ),
                upstream,
                now,
                rules.cooldown_max_seconds,
            )
            for name, upstream in self.upstreams.items()
        }
        for upstream in self.upstreams.values():
            upstream.transport_name = "http" if controls is None else "websocket"
        self.conversations = MemoryStore(2**24, 3600, now)
        self.turn_log = TurnLog()
        about: dict[str, Any] = {
            "hold_seconds": 5.0,
            "keepalive_seconds": 20.0,
            **services,
        }
        waiting = WaitQueue(self.clock, rules.max_waiting)
        pool = AccountPool(list(self.accounts.values()), MemoryBindings(100, 3600, now), rules)
        pool.released = waiting.wake
        limits: Any = NoLimits(one_tenant=False)
        self.services = TurnServices(
            clock=self.clock,
            conversations=self.conversations,
            issuers=MemoryIssuers(),
            owners=MemoryOwners(now),
            pool=pool,
            waiting=waiting,
            limits=limits,
            turn_states=TurnStateSigner(b"secret"),
            turn_log=self.turn_log,
            request_log=RequestLog(self.clock, at_once),
            recall=NoRecall(),
            **about,
        )
        self.sink = FakeSink()

    def request(self, items: list[Json] | str | None = None, **members: Any) -> TurnRequest:
        message = {"type": "response.create", "model": "gpt-5.5", "input": items or [], **members}
        payload = json.dumps(message).encode()
        return read_create(read_members(payload), len(payload)).with_issuers(
            self.services.issuers.issuer_of
        )

    def turn(
        self,
        items: list[Json] | str | None = None,
        parent: Transcript | None = None,
        connection: str = "c-1",
        **members: Any,
    ) -> Turn:
        """A turn with a sink of its own, not started yet."""
        if parent is not None:
            members.setdefault("previous_response_id", parent.record.id)
        self.sink = FakeSink()
        context = TurnContext(
            tenant="laptop",
            connection=connection,
            client_headers={},
            affinity=[AffinityKey("connection", "laptop", connection)],
            accepted_at=self.clock.seconds(),
        )
        request = self.request(items, **members)
        return Turn(self.services, context, request, self.sink, resolver(parent))

    def exchanges(self, name: str = "a") -> list[FakeExchange]:
        return self.upstreams[name].exchanges

    def completed(self, items: list[Json], events: list[Json], **members: Any) -> Transcript:
        """Run a whole turn on whichever account gets it; return what is remembered."""
        turn = self.turn(items, **members)
        turn.start()
        assert turn.record.account is not None
        self.exchanges(turn.record.account)[-1].sends(*events)
        assert turn.recorded is not None, f"expected a completed turn, got {self.sink.types}"
        return turn.recorded

    def check_rest(self) -> None:
        """After every turn has ended, nothing of them may be left."""
        calls = self.clock.getDelayedCalls()
        assert not calls, f"timers outlived their turns: {calls}"
        left = {name: account.in_flight for name, account in self.accounts.items()}
        assert not any(left.values()), f"accounts still count turns in flight: {left}"
        running = [e for each in self.upstreams.values() for e in each.exchanges]
        assert all(e.state != "running" for e in running), "an upstream request was left running"
