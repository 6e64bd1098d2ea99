"""Codex over a WebSocket to its account: each turn costs what it adds, and lost sockets are unseen.

Codex sends `store: false`. Over HTTP nobody keeps what it said, and each turn brings all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.e2e.codex import NEWEST, CodexClient, CodexRun
from tests.e2e.conftest import Scene
from tests.e2e.scripted_model import ScriptedModel, success_text, task_prompt
from tests.e2e.tap import Tap
from tests.e2e.test_codex import drive
from tests.support.events import Json
from tests.support.gateway import account
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange
from tests.support.websocket_upstream import over

pytestmark = pytest.mark.e2e

ROUNDS = 30
#: The newest dialect has its instructions and tools in the input; in the one before it every
#: request repeats them.
CLIENT = CodexClient(NEWEST, "gpt-6.2-sol")
REPEATING = CodexClient(NEWEST, "gpt-5.5")
SECONDS = 300.0


def run_rounds(
    scene: Scene, upstream: Strict, transport: str, client: CodexClient
) -> tuple[CodexRun, Tap]:
    """Codex's tool loop on one account, which it reaches by `transport`."""
    directory = scene.directory / transport
    directory.mkdir()
    entry = account(upstream.name, upstream.server, transport=transport)
    tap = scene.tap(scene.gateway_with([entry]).port)
    prompt = task_prompt(ROUNDS, scene.directory / f"ran-{transport}.txt")
    run = drive(scene, client, tap.base_url, prompt=prompt, timeout=SECONDS, directory=directory)
    return run, tap


def ran(scene: Scene, transport: str) -> list[str]:
    """What the tool did to the file system, in order."""
    return (scene.directory / f"ran-{transport}.txt").read_text().split()


def taking_websockets(name: str) -> Callable[[ScriptedModel], Strict]:
    def make(model: ScriptedModel) -> Strict:
        upstream = Strict(name, Mode.STATELESS, model)
        upstream.take_websockets()
        return upstream

    return make


EACH_ROUND = [f"round-{number}" for number in range(1, ROUNDS + 1)]


@pytest.mark.parametrize(
    "client", [CLIENT, pytest.param(REPEATING, marks=pytest.mark.all_clients)], ids=str
)
def test_a_turn_costs_what_it_adds(scene: Scene, client: CodexClient) -> None:
    sizes: dict[str, list[int]] = {}
    for transport in ("auto", "http"):
        upstream = scene.service(taking_websockets(f"north-{transport}"))
        run, _ = run_rounds(scene, upstream, transport, client)
        assert (run.error_lines, run.messages) == ([], [success_text(ROUNDS)])
        assert ran(scene, transport) == EACH_ROUND
        assert len(upstream.refusals) == (0 if transport == "auto" else 1), "one trial is enough"
        used = {request.transport for request in upstream.generated}
        assert used == {"websocket" if transport == "auto" else "http"}
        sizes[transport] = [len(request.raw) for request in upstream.generated]
        assert len(sizes[transport]) == ROUNDS + 1
        sizes[f"{transport} in all"] = [len(request.raw) for request in upstream.requests]
    deltas, replays = sizes["auto"], sizes["http"]
    sent, resent = sum(sizes["auto in all"]), sum(replays)
    print(f"{client}: bytes of each request to the account\nround  WebSocket     HTTP")
    for number, (delta, replay) in enumerate(zip(deltas, replays, strict=True), 1):
        print(f"{number:5}  {delta:9}  {replay:7}")
    print(f"total  {sent:9}  {resent:7}  {resent / sent:.1f} times; the first with its prewarm")
    # The prompt comes first; then the outputs of the tool differ by the digits of their numbers.
    assert max(deltas[1:]) - min(deltas[1:]) <= 8, "a turn sent more than what it adds"
    assert sorted(replays) == replays, "over HTTP a turn sends all that was said"
    if client is CLIENT:
        assert resent >= 10 * sent


# --- lost sockets ------------------------------------------------------------------------------


@dataclass
class Losses:
    """Loses the socket at some rounds, each once.

    :ivar planned: by the round: how much of its answer is sent before.
    :ivar happened: the rounds, in order.
    """

    model: ScriptedModel
    planned: dict[int, Callable[[list[Json]], list[Json]]]
    happened: list[int] = field(default_factory=list)

    def __call__(self, exchange: Exchange, events: list[Json]) -> bool:
        if exchange.request.body.get("generate") is False:
            return False
        items = self.model.transcripts[-1]
        number = 1 + sum(item.get("type", "").endswith("_call_output") for item in items)
        sends = self.planned.pop(number, None)
        if sends is None:
            return False
        self.happened.append(number)
        exchange.sse(*sends(events))
        over(exchange).close()
        return True


def up_to(kind: str, more: int = 0) -> Callable[[list[Json]], list[Json]]:
    """The events up to the last of a type, and some after it."""

    def sent(events: list[Json]) -> list[Json]:
        last = max(n for n, event in enumerate(events) if event["type"] == kind)
        return events[: last + 1 + more]

    return sent


def nothing(events: list[Json]) -> list[Json]:
    return []


def everything(events: list[Json]) -> list[Json]:
    return events


FAILURES = ("error", "response.failed", "response.incomplete")


@pytest.mark.parametrize(
    ("output", "asked_again"),
    [(up_to("response.output_item.added"), 1), (up_to("response.output_item.done"), 0)],
    ids=["call begun", "call done"],
)
def test_lost_sockets(
    scene: Scene, output: Callable[[list[Json]], list[Json]], asked_again: int
) -> None:
    """Unseen before output; afterwards Codex connects again, and runs no command twice.

    It runs a call whose item is done, also if its response then fails, and brings the output.
    """
    upstream = scene.service(taking_websockets("north"))
    unseen = {5: nothing, 8: everything, 12: up_to("response.in_progress")}
    upstream.before_events = losses = Losses(scene.models["north"], {**unseen, 20: output})
    run, tap = run_rounds(scene, upstream, "websocket", CLIENT)
    assert losses.happened == [5, 8, 12, 20]
    assert (run.returncode, run.error_lines, run.messages) == (0, [], [success_text(ROUNDS)])
    assert ran(scene, "websocket") == EACH_ROUND, "a command did not run exactly once"
    assert upstream.refusals == []
    assert [each.status for each in tap.connections] == [101, 101], "not one reconnect"
    first, second = tap.connections
    assert len(first.client_frames) == 1 + 20, "a warm-up, and a turn up to each round"
    assert len(second.client_frames) == ROUNDS + 1 - 20 + asked_again
    failed = [e for c in tap.connections for e in c.server_frames if e["type"] in FAILURES]
    assert failed == first.server_frames[-1:], "not one failure, after output"
    replays = [each for each in upstream.requests if each.previous_response_id is None]
    assert len(replays) == 1 + len(losses.happened), "the whole context, once for each lost socket"
    print(f"{len(losses.happened)} sockets lost, one seen by {CLIENT}: {failed}")
