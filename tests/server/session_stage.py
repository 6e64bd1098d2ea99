"""A session with a channel that writes down, on the scripted upstreams of tests/turn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gateway.config import LimitSettings, SessionSettings
from gateway.server.session import ClientIdentity, ResponsesSession
from tests.support.events import Json, text_item, turn_events
from tests.turn.fakes import TERMINALS, FakeExchange, World


class FakeChannel:
    """What a client got over its connection."""

    def __init__(self) -> None:
        self.events: list[Json] = []
        self.closed: list[int] = []

    def send(self, payloads: Sequence[bytes]) -> None:
        assert not self.closed, f"sent after the close: {payloads}"
        self.events += [json.loads(payload) for payload in payloads]

    def close(self, code: int, reason: str) -> None:
        self.closed.append(code)

    def of_lane(self, name: str | None) -> list[Json]:
        return [event for event in self.events if event.get("stream_id") == name]

    @property
    def last(self) -> Json:
        return self.events[-1]

    @property
    def terminals(self) -> list[Json]:
        return [event for event in self.events if event["type"] in TERMINALS]


class Stage:
    """One connection, and the upstream behind it."""

    def __init__(
        self,
        accounts: int = 1,
        limits: Any = None,
        controls: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        self.world = World(accounts, controls=controls)
        self.settings = SessionSettings(**settings)
        self.limits = LimitSettings(**(limits or {}))
        self.channel = FakeChannel()
        self.session = self.connect(self.channel)

    def connect(
        self, channel: FakeChannel, tenant: str = "laptop", headers: Any = None
    ) -> ResponsesSession:
        return ResponsesSession(
            self.world.services,
            self.settings,
            self.limits,
            channel,
            ClientIdentity(tenant, f"c-{id(channel)}", headers or {}),
        )

    def says(self, **message: Any) -> None:
        self.session.message(json.dumps(message).encode())

    def create(self, text: str | list[Json] = "hi", **members: Any) -> None:
        self.says(type="response.create", model="gpt-5.5", input=text, **members)

    @property
    def running(self) -> list[FakeExchange]:
        exchanges = [e for each in self.world.upstreams.values() for e in each.exchanges]
        return [exchange for exchange in exchanges if exchange.state == "running"]

    def sent(self) -> FakeExchange:
        """The last request that reached an upstream."""
        return self.world.exchanges()[-1]

    def answer(
        self, response_id: str, *items: Json, exchange: FakeExchange | None = None, **members: Any
    ) -> Json:
        """Complete the oldest running turn; return the client's terminal event."""
        exchange = exchange or self.running[0]
        members.setdefault("previous_response_id", exchange.body.get("previous_response_id"))
        exchange.sends(*turn_events(list(items) or [text_item()], response_id, **members))
        return self.channel.terminals[-1]
