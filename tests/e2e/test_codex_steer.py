"""Codex's app server: a turn is steered and interrupted while its answer streams."""

from __future__ import annotations

import threading

import pytest

from tests.e2e.codex import NEWEST, CodexClient
from tests.e2e.codex_app_server import CodexAppServer
from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.tap import Tap
from tests.support.events import Json, reasoning_item, text_item
from tests.support.strict import Mode, Strict, said
from tests.support.upstream import Exchange
from tests.support.websocket_upstream import SocketExchange

pytestmark = pytest.mark.e2e

CLIENT = CodexClient(NEWEST, "gpt-6.2-sol")
ASKED = "Tell me a story."
BEGUN, REST = "Once upon a time", " there was a heron."


class Storyteller:
    """An upstream that pauses after the first half of its story.

    On a socket it takes an interrupt then, as the ChatGPT backend does.

    :ivar goes_on: set for the other half.
    :ivar story: the exchange of the story.
    """

    def __init__(self, scene: Scene) -> None:
        self.strict = scene.service(lambda _: Strict("north", Mode.STATELESS, self._told))
        self.strict.before_events = self._half
        self.goes_on = threading.Event()
        self.story: Exchange | None = None
        self._transcript: list[Json] = []

    def _told(self, transcript: list[Json], strict: Strict) -> list[Json]:
        """A story, as long as nothing else was asked for; then what the user said."""
        texts = [said(item) for item in transcript if item.get("role") == "user"]
        asked = texts[texts.index(ASKED) :]
        text = BEGUN + REST if asked == [ASKED] else " | ".join(asked)
        self._transcript = transcript
        return [reasoning_item(strict.seal()), text_item(text)]

    def _half(self, exchange: Exchange, events: list[Json]) -> bool:
        deltas = [n for n, e in enumerate(events) if e["type"] == "response.output_text.delta"]
        if self.story is not None or not deltas:
            return False
        self.story = exchange
        first, second = deltas
        events[first]["delta"], events[second]["delta"] = BEGUN, REST
        exchange.sse(*events[: first + 1])
        while not self.goes_on.wait(0.02):
            if exchange.request.gone.is_set():
                exchange.close()
            if isinstance(exchange, SocketExchange) and exchange.socket.messages:
                self._interrupted(exchange, events, first + 1)
                return True
        exchange.sse(*events[first + 1 :])
        exchange.end()
        return True

    def _interrupted(self, exchange: SocketExchange, events: list[Json], number: int) -> None:
        (message,) = exchange.socket.messages
        response_id = exchange.request.response_id
        assert message["type"] == "response.interrupt"
        assert message["response_id"] == response_id
        done = [e["item"] for e in events[:number] if e["type"] == "response.output_item.done"]
        self.strict.remember(exchange, str(response_id), [*self._transcript, *done])
        response = {**events[-1]["response"], "status": "incomplete", "output": done}
        response["incomplete_details"] = {"reason": "interrupted"}
        exchange.sse(
            {"type": "response.interrupt.accepted", "response_id": response_id},
            {"type": "response.incomplete", "response": response},
        )
        exchange.end()


#: Where an interrupt goes.
each_service = pytest.mark.parametrize(
    ("transport", "controls"),
    [
        ("http", []),
        pytest.param("websocket", [], marks=pytest.mark.all_clients),
        ("websocket", ["interrupt"]),
    ],
    ids=["http", "websocket", "websocket that knows interrupts"],
)


def app_server(
    scene: Scene, upstream: Storyteller, controls: list[str]
) -> tuple[CodexAppServer, Tap]:
    if CLIENT.binary() is None:
        scene.unavailable(f"{CLIENT} is not installed (make clients)")
    entry = scene.account(upstream.strict, websocket={"controls": controls})
    tap = scene.tap(scene.gateway_with([entry]).port)
    codex = scene.enter(
        CodexAppServer(CLIENT, tap.base_url, CLIENT_KEY, scene.directory, proxy=scene.proxy.url)
    )
    scene.logs["codex"] = codex.report
    return codex, tap


@each_service
def test_a_turn_is_steered(scene: Scene, controls: list[str]) -> None:
    """Codex interrupts the response, and continues it with what the user said."""
    upstream = Storyteller(scene)
    codex, tap = app_server(scene, upstream, controls)
    turn = codex.start(ASKED)
    codex.wait_delta(turn, BEGUN)
    codex.steer(turn, "In one word.")
    ended = codex.wait_end(turn)
    assert (ended["status"], codex.errors()) == ("completed", [])
    assert codex.messages(turn) == [f"{ASKED} | In one word."]
    (connection,) = tap.connections
    frames = connection.client_frames
    kinds = [frame["type"].removeprefix("response.") for frame in frames]
    assert kinds == ["create", "create", "interrupt", "create"]
    events = connection.server_frames
    accepted = [event["type"] for event in events].index("response.interrupt.accepted")
    assert events[accepted + 1]["type"] == "response.incomplete"
    interrupted = events[accepted + 1]["response"]
    assert [item["type"] for item in interrupted["output"]] == ["reasoning"]
    assert frames[-1]["previous_response_id"] == interrupted["id"]
    last = upstream.strict.requests[-1]
    if controls:
        assert len(upstream.strict.websockets.sockets) == 1
        assert last.previous_response_id == interrupted["id"], "it was continued on its socket"
        assert len(last.raw) < 3000, "more than what the user said went up"
    else:
        assert upstream.story is not None
        assert upstream.story.request.wait_gone(), "the story went on for nobody"
        assert last.previous_response_id is None
    print(f"{CLIENT} steered a turn over {scene.transport}: {', '.join(kinds)}")


@each_service
def test_a_turn_is_interrupted(scene: Scene, controls: list[str]) -> None:
    """Codex leaves, which ends the response, and comes back with all that was said."""
    upstream = Storyteller(scene)
    codex, tap = app_server(scene, upstream, controls)
    turn = codex.start(ASKED)
    codex.wait_delta(turn, BEGUN)
    codex.interrupt(turn)
    assert codex.wait_end(turn)["status"] == "interrupted"
    assert upstream.story is not None
    assert upstream.story.request.wait_gone(), "the story went on for nobody"
    turn = codex.start("And now?")
    ended = codex.wait_end(turn)
    assert (ended["status"], codex.errors()) == ("completed", [])
    assert codex.messages(turn) == [f"{ASKED} | And now?"]
    kinds = [
        [frame["type"].removeprefix("response.") for frame in connection.client_frames]
        for connection in tap.connections
    ]
    assert kinds == [["create", "create"], ["create"]]
    print(f"{CLIENT} interrupted a turn over {scene.transport}: {kinds}")
