"""What tests of WebSocket upstreams share: conversations, and what an upstream must have got."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

from tests.conformance.conftest import Lease, Stage
from tests.support.checks import assert_one_terminal, assert_strictly_increasing, completed, types
from tests.support.events import Json, text_item, user
from tests.support.httpclient import Answer, HttpClient
from tests.support.upstream import Exchange, Recorded, Script
from tests.support.websocket_upstream import UpgradeScript, WebSocketUpstream
from tests.support.wsclient import TERMINAL, WsClient

#: Events of a usual turn before its first output, and up to its first text.
OPENING, BEGUN = 2, 5


@dataclass
class Conversation:
    """A client that continues its own responses, with `store: false` unless told otherwise.

    :ivar said: all items so far, as a replay has them.
    :ivar shown_at: when the first output of the last answer was read (monotonic), or None.
    """

    client: WsClient
    store: bool = False
    last: str | None = None
    said: list[Json] = field(default_factory=list)
    new: list[Json] = field(default_factory=list)
    shown_at: float | None = None

    def send(self, text: str = "go on", **members: Any) -> None:
        """Send a turn and do not wait for its end."""
        self.new = [user(text)]
        named = {} if self.last is None else {"previous_response_id": self.last}
        self.client.create(**{"input": self.new, "store": self.store, **named, **members})

    def ask(self, text: str = "go on", **members: Any) -> list[Json]:
        """One turn; its events, each seen once, in order."""
        self.send(text, **members)
        return self.answer()

    def answer(self) -> list[Json]:
        """The events of the turn that was sent."""
        self.shown_at = None
        events: list[Json] = []
        while not events or events[-1]["type"] not in TERMINAL:
            events.append(self.client.event())
            if self.shown_at is None and "output_index" in events[-1]:
                self.shown_at = time.monotonic()
        assert_one_terminal(events)
        assert types(events).count("response.created") <= 1, "a client sees one beginning"
        assert_strictly_increasing(events)
        return events

    def turn(self, text: str = "go on", **members: Any) -> Json:
        """A turn that has to end well, with all of its text once; its response."""
        self.send(text, **members)
        return self.finish()

    def finish(self) -> Json:
        """The response of the turn that was sent; it has to end well."""
        events = self.answer()
        response = completed(events)
        assert {e["response"]["id"] for e in events if "response" in e} == {response["id"]}
        done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
        assert response["output"] == done, "no item is doubled or lost"
        self.last = response["id"]
        self.said += [*self.new, *done]
        return response

    def text(self, text: str = "go on", **members: Any) -> str:
        """What a good turn answered."""
        return said_in(self.turn(text, **members))

    def start_over(self) -> None:
        """The next turn continues nothing."""
        self.last, self.said = None, []


def said_in(response: Json) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


@dataclass
class Line:
    """A model with one or two accounts of this kind, and its upstreams."""

    upstreams: list[WebSocketUpstream]
    lease: Lease

    @property
    def upstream(self) -> WebSocketUpstream:
        return self.upstreams[0]

    def connect(self, **options: Any) -> WsClient:
        return self.lease.connect(**options)

    def talk(self, store: bool = False, **options: Any) -> Conversation:
        """A conversation of a new client."""
        return Conversation(self.connect(**options), store)

    def post(self, **members: Any) -> Answer:
        """A turn by HTTP; its whole answer."""
        client = HttpClient(self.lease.gateway.port)
        try:
            return client.create(model=self.lease.model, **members)
        finally:
            client.drop()

    @property
    def sent(self) -> list[Recorded]:
        """What all upstreams got, in order."""
        requests = [each for upstream in self.upstreams for each in upstream.requests]
        return sorted(requests, key=lambda request: request.received_at)

    @property
    def dialled(self) -> int:
        return sum(len(upstream.upgrades) for upstream in self.upstreams)


def lay(stage: Stage, *scripts: Script | None, kind: str = "websocket") -> Line:
    """A line with an upstream for each script; one that answers sensibly without any."""
    upstreams = [stage.websocket_upstream(script) for script in scripts or (None,)]
    return Line(upstreams, stage.serve(*upstreams, kind=kind))


def lay_first_refuses(stage: Stage, refusal: UpgradeScript, kind: str = "websocket") -> Line:
    """Two accounts; whichever is dialled first refuses that way, always."""
    line = lay(stage, None, None, kind=kind)
    refusing: list[WebSocketUpstream] = []

    def upgrade(handshake: Any) -> None:
        refusing[:] = refusing or [handshake.upstream]
        if handshake.upstream is refusing[0]:
            refusal(handshake)
        else:
            handshake.accept()

    for upstream in line.upstreams:
        upstream.upgrade = upgrade
    return line


def lay_first_fails(stage: Stage, script: Script, kind: str = "websocket") -> Line:
    """Two accounts; whichever gets the first turn answers every turn by this script."""
    line = lay(stage, None, None, kind=kind)
    failing: list[object] = []

    def chosen(exchange: Exchange) -> None:
        failing[:] = failing or [exchange.upstream]
        if exchange.upstream is failing[0]:
            script(exchange)
        else:
            exchange.answer()

    for upstream in line.upstreams:
        upstream.script = chosen
    return line


_answers = itertools.count(1)


def numbered_answer() -> tuple[str, Script]:
    """A text that no other answer has, and a script that says it."""
    text = f"answer {next(_answers)}"
    return text, lambda exchange: exchange.answer([text_item(text)])


def assert_delta(request: Recorded, talk: Conversation, last: str) -> None:
    """It went up over WebSocket with what is new, named after its parent."""
    assert_frame(request)
    assert request.previous_response_id == last, "the previous response is named"
    assert request.input == talk.new, "and only what is new goes up"


def assert_replay(request: Recorded, items: list[Json]) -> None:
    """It has the whole conversation, in order, and names nothing."""
    assert "previous_response_id" not in request.body
    assert request.input == items, "every item is there, once, in order"
    if request.transport == "websocket":
        assert_frame(request)


def assert_frame(request: Recorded) -> None:
    """What every turn over WebSocket has, and has not (protocol.md §3.1, ws-upstream rules)."""
    assert request.transport == "websocket"
    assert request.body["type"] == "response.create"
    for name in ("stream_id", "background"):
        assert name not in request.body
