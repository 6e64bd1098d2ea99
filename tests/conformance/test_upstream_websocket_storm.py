"""Many clients at once over sockets that fail at random: each gets its own answers, each once.

The seed of a run is fixed, the order of events between threads is not. What has to hold does not
depend on it: an answer is the answer to its question, a client's conversation arrives whole and in
order, and what a client has seen is never asked for again.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.conformance.conftest import Stage
from tests.conformance.sockets import Conversation, Line, assert_frame, lay, said_in
from tests.conformance.test_upstream_websocket_faults import BROKEN, LIMIT, LOSSES
from tests.support.checks import note
from tests.support.events import Json, error_body, text_item, user
from tests.support.strict import said
from tests.support.upstream import Exchange, Recorded
from tests.support.websocket_upstream import Handshake, WebSocketUpstream, frame, over, refused
from tests.support.wsclient import TEXT, SocketClosed

pytestmark = pytest.mark.conformance

CLIENTS, TURNS, ATTEMPTS = 8, 15, 15
OUT_OF_BAND: Json = {"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 3}}}
LATE = b'{"type":"response.output_text.delta","delta":"late","output_index":0}'


class Weather:
    """Answers each turn by repeating its question, and fails some of them at a random point."""

    def __init__(self, seed: int, share: float) -> None:
        self.chance = random.Random(seed)
        self.share = share
        self.faults = 0
        self._lock = threading.Lock()

    def __call__(self, exchange: Exchange) -> None:
        question = said(exchange.request.input[-1])
        named = exchange.request.previous_response_id
        if named is not None and not upstream_of(exchange).knows(named, exchange):
            assert exchange.request.transport == "http", f"{named} is not this socket's latest"
            message = f"Previous response with id '{named}' not found."
            exchange.json(400, error_body("previous_response_not_found", message))
            return
        events = exchange.turn([text_item(f"echo of {question}")], pieces=4)
        with self._lock:
            strikes = exchange.request.transport == "websocket" and (
                self.chance.random() < self.share
            )
            kind = self.chance.choice(["loss", "broken", "limit", "late", "band"])
            place = self.chance.randrange(len(events))
            loss = self.chance.choice(list(LOSSES.values()))
            broken = self.chance.choice(list(BROKEN.values()))
            self.faults += strikes
        if not strikes:
            exchange.sse(*events)
            exchange.end()
            return
        if kind in ("late", "band"):
            exchange.sse(*events)
            over(exchange).raw(frame(TEXT, LATE) if kind == "late" else b"")
            over(exchange).text(OUT_OF_BAND)
            exchange.end()
            return
        exchange.request.response_id = None
        exchange.sse(*events[:place])
        if kind == "loss":
            loss(over(exchange))
        elif kind == "broken":
            exchange.raw(broken)
            exchange.hold(timeout=5)
        else:
            exchange.sse(LIMIT)


def upstream_of(exchange: Exchange) -> WebSocketUpstream:
    assert isinstance(exchange.upstream, WebSocketUpstream)
    return exchange.upstream


class Client:
    """One client with one conversation after the other."""

    def __init__(self, line: Line, number: int, seed: int) -> None:
        self.line = line
        self.name = f"client {number}"
        self.key = "key-laptop" if number % 2 else "key-desk"
        self.chance = random.Random(seed * 1000 + number)
        self.talk = self.begin()
        self.good = self.bad = self.left = 0
        self.seen: dict[str, float] = {}  # when it saw output, by question
        self.known: dict[str, int] = {}  # items up to each response that its account finished

    def begin(self) -> Conversation:
        return self.line.talk(store=self.chance.random() < 0.3, key=self.key)

    def run(self, turns: int) -> None:
        for number in range(turns):
            question = f"{self.name}: question {number}"
            roll = self.chance.random()
            try:
                if roll < 0.1:
                    self.leave(question)
                elif roll < 0.2:
                    self.cancel(question)
                else:
                    self.ask(question)
            except SocketClosed:
                self.talk = self.begin()

    def ask(self, question: str) -> None:
        """A turn, repeated as clients repeat it when it fails."""
        for attempt in range(ATTEMPTS):
            asked = f"{question} ({attempt})"
            events = self.talk.ask(asked)
            if self.talk.shown_at is not None:
                self.seen[asked] = self.talk.shown_at
            if events[-1]["type"] == "response.completed":
                response = events[-1]["response"]
                assert said_in(response) == f"echo of {asked}", "the answer to another question"
                self.check(response, asked)
                self.talk.last = response["id"]
                self.talk.said += [*self.talk.new, *response["output"]]
                self.known[response["id"]] = len(self.talk.said)
                self.good += 1
                return
            self.bad += 1
            error = events[-1].get("error") or events[-1]["response"]["error"]
            assert error["code"] != "previous_response_not_found", events[-1]
        raise AssertionError(f"{question}: only failures, the last {events[-1]}")

    def check(self, response: Json, asked: str) -> None:
        """What answered was asked for in full, or named its parent."""
        (request,) = [r for r in self.line.sent if r.response_id == response["id"]]
        if request.transport == "websocket":
            assert_frame(request)
        named = request.previous_response_id
        began = 0 if named is None else self.known[named]
        assert request.input == [*self.talk.said[began:], user(asked)], "whole and in order"
        if self.talk.said and self.talk.last in self.known and named is not None:
            assert named == self.talk.last

    def cancel(self, question: str) -> None:
        self.talk.send(question)
        self.talk.client.send({"type": "response.cancel"})
        events = self.talk.answer()
        if events[-1]["type"] in ("response.completed", "response.incomplete"):
            response = events[-1]["response"]
            assert said_in(response) in ("", f"echo of {question}")
            self.talk.last = response["id"]
            # A cancelled turn has its input and its finished items (protocol.md §3.5).
            self.talk.said += [*self.talk.new, *response["output"]]
            if response["status"] == "completed":
                self.known[response["id"]] = len(self.talk.said)
        self.left += 1

    def leave(self, question: str) -> None:
        """Go in the middle of a turn and come back with the whole conversation."""
        self.talk.send(question)
        if self.chance.random() < 0.5:
            with contextlib.suppress(SocketClosed):
                self.talk.client.event()
        self.talk.client.reset()
        history = self.talk.said
        self.talk = self.begin()
        self.talk.said = history
        self.left += 1
        events = self.talk.ask(question, input=[*history, user(f"{question} again")])
        if events[-1]["type"] == "response.completed":
            response = events[-1]["response"]
            assert said_in(response) == f"echo of {question} again"
            self.talk.last = response["id"]
            self.talk.said = [*history, user(f"{question} again"), *response["output"]]
            self.known[response["id"]] = len(self.talk.said)
        else:
            self.talk.start_over()


@pytest.mark.parametrize("kind", ["websocket", "auto"])
@pytest.mark.parametrize("seed", [1, 2])
def test_every_client_gets_its_own_answers(socket_stage: Stage, seed: int, kind: str) -> None:
    weather = Weather(seed, share=0.25)
    line = lay(socket_stage, weather, kind=kind)
    clients = [Client(line, number, seed) for number in range(CLIENTS)]
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda client: client.run(TURNS), clients))
    took = time.monotonic() - began
    good, bad = sum(c.good for c in clients), sum(c.bad for c in clients)
    note(
        f"{good} turns, {bad} failures told, {sum(c.left for c in clients)} left; "
        f"{weather.faults} faults, {len(line.sent)} requests, {line.dialled} sockets, {took:.1f} s"
    )
    assert good > CLIENTS * TURNS / 2
    sockets = line.upstream.sockets
    line.upstream.wait(
        lambda: all(peer.busy is None or peer.gone.is_set() for peer in sockets),
        "no turn to run on for a client that left",
    )
    assert_seen_once(line.sent, clients)
    for peer in line.upstream.sockets:
        tenants = {("1357" if int(who) % 2 else "0246") for who in numbers_of(peer.turns)}
        assert len(tenants) <= 1, "tenants share no socket"


def numbers_of(requests: list[Recorded]) -> list[str]:
    return [said(r.input[-1]).split(":")[0].removeprefix("client ") for r in requests]


def assert_seen_once(sent: list[Recorded], clients: list[Client]) -> None:
    """What a client had seen output of was not sent any more."""
    seen = {asked: when for client in clients for asked, when in client.seen.items()}
    for request in sent:
        asked = said(request.input[-1])
        assert request.received_at <= seen.get(asked, request.received_at), f"{asked}: sent again"


def test_upgrades_that_are_refused_at_random(socket_stage: Stage) -> None:
    """Neither the conversation nor its answers mix up where transports change."""
    weather = Weather(3, share=0.15)
    line = lay(socket_stage, weather, kind="auto")
    chance = random.Random(3)

    def upgrade(handshake: Handshake) -> None:
        if chance.random() < 0.3:
            refused(503)(handshake)
        handshake.accept()

    line.upstream.upgrade = upgrade
    clients = [Client(line, number, 3) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda client: client.run(10), clients))
    note(f"{line.upstream.transports().count('http')} of {len(line.sent)} over HTTP")
