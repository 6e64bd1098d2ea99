"""Lanes of one connection over several accounts and both transports: protocol.md §6.1, §6.2."""

from __future__ import annotations

import itertools
from collections import defaultdict

import pytest

from tests.conformance.conftest import Stage
from tests.support.checks import (
    assert_one_terminal,
    assert_strictly_increasing,
    completed,
    output_text,
)
from tests.support.events import Json, error_body, new_id, text_item, user
from tests.support.gateway import account
from tests.support.strict import Mode, Strict, said
from tests.support.upstream import Exchange, Upstream
from tests.support.websocket_upstream import WebSocketUpstream
from tests.support.wsclient import TERMINAL, WsClient

pytestmark = pytest.mark.conformance

LANES = 16
TURNS = 5
#: In this turn of every lane an account is lost.
LOST_IN = 3


class Recalling:
    """A service that says all that the user said, and continues only what its transport can.

    :ivar holds: whether it says no more than that the turn of ``LOST_IN`` has begun.
    """

    def __init__(self, server: Upstream) -> None:
        self.server = server
        self.holds = False
        self.transcripts: dict[str, list[str]] = {}
        self.held: list[Exchange] = []

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        named = request.previous_response_id
        server = self.server
        known = named is None or (
            isinstance(server, WebSocketUpstream) and server.knows(named, exchange)
        )
        if not known:
            message = f"Previous response with id '{named}' not found."
            parameter = "previous_response_id"
            body = error_body("previous_response_not_found", message, param=parameter)
            exchange.json(400, body)
            return
        texts = [*self.transcripts.get(named or "", ())]
        texts += [said(item) for item in request.input if item.get("role") == "user"]
        response_id = new_id("resp")
        self.transcripts[response_id] = texts
        events = exchange.turn([text_item(" | ".join(texts))], response_id=response_id)
        if self.holds and texts[-1].endswith(f".{LOST_IN}"):
            exchange.sse(*events[:2])
            self.held.append(exchange)
            exchange.hold()
            return
        exchange.sse(*events)
        exchange.end()


class Pool:
    """Two accounts over HTTP and one over WebSocket, behind one gateway."""

    def __init__(self, stage: Stage) -> None:
        self.servers: dict[str, Upstream] = {
            "north": Upstream(),
            "south": Upstream(),
            "socket": WebSocketUpstream(),
        }
        self.services = {name: Recalling(server) for name, server in self.servers.items()}
        for name, server in self.servers.items():
            server.script = server.default = self.services[name]
            stage.on_close(server.stop)
        accounts = [
            account(name, server, transport="websocket" if name == "socket" else "http")
            for name, server in self.servers.items()
        ]
        self.gateway = stage.gateway(*accounts)


class Conversations:
    """The lanes of one client, each with a conversation of its own."""

    def __init__(self, client: WsClient, lanes: int) -> None:
        self.client = client
        self.latest: dict[str, str | None] = {f"lane-{number}": None for number in range(lanes)}
        self.texts: dict[str, list[str]] = defaultdict(list)
        self.events: dict[str, list[Json]] = defaultdict(list)

    def say(self, lane: str, text: str, **members: object) -> None:
        self.texts[lane].append(text)
        parent = {"previous_response_id": self.latest[lane]} if self.latest[lane] else {}
        members = {"prompt_cache_key": lane, **parent, **members}
        self.client.create(stream_id=lane, input=[user(text)], store=False, **members)

    def hear(self) -> str:
        """Read up to the next end of a turn, which must be right; returns its lane."""
        for event in self.client.until(*TERMINAL, lane="*"):
            lane = event["stream_id"]
            self.events[lane].append(event)
        events = self.events.pop(lane)
        assert_one_terminal(events)
        assert_strictly_increasing(events)
        self.latest[lane] = completed(events)["id"]
        assert output_text(events) == " | ".join(self.texts[lane]), f"{lane} lost its thread"
        return str(lane)


@pytest.mark.parametrize("lost", ["north", "socket", None])
def test_10_46_sixteen_lanes_over_three_accounts(stage: Stage, lost: str | None) -> None:
    pool = Pool(stage)
    if lost is not None:
        pool.services[lost].holds = True
    lanes = Conversations(pool.gateway.connect(), LANES)
    turns = dict.fromkeys(lanes.latest, 1)
    for lane in turns:
        lanes.say(lane, f"{lane}.1")
    ended = 0
    while ended < LANES * TURNS:
        held = [] if lost is None else pool.services[lost].held
        if held and ended == LANES * TURNS - len(held) * (TURNS - LOST_IN + 1):
            assert lost is not None  # all others are done: now these must go elsewhere
            pool.servers[lost].stop()
            held.clear()
        lane = lanes.hear()
        ended += 1
        if turns[lane] < TURNS:
            turns[lane] += 1
            lanes.say(lane, f"{lane}.{turns[lane]}")
    assert all(len(server.requests) >= TURNS for server in pool.servers.values()), "all took part"
    lanes.client.assert_silent(0.2)
    sent = pool.servers["socket"].requests
    firsts = [r.body["prompt_cache_key"] for r in sent if r.previous_response_id is None]
    assert len(firsts) == len(set(firsts)), "a lane sends its transcript there once, then chains"


def test_10_46_forks_across_lanes_and_transports(stage: Stage) -> None:
    pool = Pool(stage)
    lanes = Conversations(pool.gateway.connect(), 6)
    sources = list(lanes.latest)
    for lane in sources:
        lanes.say(lane, f"{lane} root")
    for _ in sources:
        lanes.hear()
    for number, lane in enumerate(sources):  # the fork and its source go on at the same time
        fork = f"fork-{number}"
        lanes.latest[fork] = lanes.latest[lane]
        lanes.texts[fork] = [*lanes.texts[lane]]
        lanes.say(fork, f"{fork} first", prompt_cache_key=lane)
        lanes.say(lane, f"{lane} second")
    for _ in range(2 * len(sources)):
        lanes.hear()
    for lane in list(lanes.latest):
        lanes.say(lane, f"{lane} third")
    for _ in lanes.latest:
        lanes.hear()
    assert isinstance(pool.servers["socket"], WebSocketUpstream)
    assert pool.servers["socket"].requests, "the account over WebSocket took part"


def test_10_46_an_error_of_a_lane_over_a_socket_is_its_own(stage: Stage) -> None:
    upstream = WebSocketUpstream()
    stage.on_close(upstream.stop)
    client = stage.gateway(account("a", upstream, transport="websocket")).connect()
    refusal = error_body("invalid_prompt", "No.", param="input")
    ended_well = itertools.count()

    def script(exchange: Exchange) -> None:
        if "bad" in str(exchange.request.input):
            exchange.json(400, refusal)
            return
        events = exchange.turn()
        exchange.sse(*events[:4])
        upstream.wait(lambda: len(upstream.requests) == 3, "the other lanes")
        exchange.sse(*events[4:])
        next(ended_well)

    upstream.script = script
    client.create(stream_id="left", input="good")
    client.create(stream_id="right", input="bad")
    client.create(input="good")
    ended = [client.until(*TERMINAL, lane="*")[-1] for _ in range(3)]
    assert {(event.get("stream_id"), event["type"]) for event in ended} == {
        ("left", "response.completed"),
        ("right", "error"),
        (None, "response.completed"),
    }
    assert len(upstream.sockets) == 3, "a socket for each running response"
    assert next(ended_well) == 2


@pytest.mark.parametrize("mode", [Mode.STATEFUL, Mode.STATELESS], ids=lambda mode: mode.value)
def test_10_59_eviction_holds_on_a_socket_and_beside_it(stage: Stage, mode: Mode) -> None:
    """The same rule whichever transport made the parent."""
    beside = Strict("beside", mode)
    upstream = WebSocketUpstream()
    stage.on_close(upstream.stop)
    stage.on_close(beside.server.stop)
    client = stage.gateway(
        account("a", upstream, transport="websocket", models=["socket"]),
        account("b", beside.server, models=["http"]),
    ).connect()
    for model in ("socket", "http"):
        client.defaults["model"] = model
        parent = completed(client.turn(input=[user("one")], store=False))["id"]
        if model == "socket":
            upstream.queue(lambda exchange: exchange.json(400, error_body("invalid_prompt", "No")))
        orphan = {"type": "function_call_output", "call_id": "call_nobody", "output": ""}
        client.turn(input=[orphan], previous_response_id=parent, store=False)
        events = client.turn(input=[user("again")], previous_response_id=parent, store=False)
        assert events[-1]["error"]["code"] == "previous_response_not_found"
