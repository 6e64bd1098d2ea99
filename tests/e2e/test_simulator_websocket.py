"""Real clients on the WebSockets of the simulator itself, without a gateway between them.

What holds here holds for the service as far as these clients can tell; the tests of WebSockets to
accounts rest on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from simulator import SimulatedAccount
from simulator.faults import CloseFrame, Ending, Fault
from simulator.websocket_faults import BreakAt
from tests.e2e.codex import NEWEST, CodexClient, run_codex
from tests.e2e.conftest import Scene
from tests.support.simulation import SimulatorProcess

pytestmark = pytest.mark.e2e

MODEL = "gpt-5.5"
LANES = 16
TURNS = 3
ROUNDS = 6
SECONDS = 30.0
ACCOUNTS = [SimulatedAccount("platform"), SimulatedAccount("codex", dialect="chatgpt")]


@pytest.fixture
def simulated() -> Iterator[SimulatorProcess]:
    simulated = SimulatorProcess(ACCOUNTS, event_delay=0.001)
    yield simulated
    simulated.stop()


def codex(scene: Scene, simulated: SimulatorProcess, account: str) -> None:
    """A loop of tools that Codex has to get through."""
    client = CodexClient(NEWEST, MODEL)
    if client.binary() is None:
        scene.unavailable(f"{client} is not installed (make clients)")
    run = run_codex(
        client,
        simulated.base_url(account),
        simulated.key(account),
        f'Call exec_command {ROUNDS} times, with "echo one".',
        scene.directory / "codex",
        proxy=scene.proxy.url,
    )
    scene.logs["codex"] = run.report
    assert run.error_lines == []
    assert run.returncode == 0
    assert [command["exit_code"] for command in run.commands] == [0] * ROUNDS


@pytest.mark.parametrize("account", ["platform", "codex"])
def test_codex_chains_over_one_socket(
    scene: Scene, simulated: SimulatorProcess, account: str
) -> None:
    codex(scene, simulated, account)
    (record,) = simulated.sockets()
    wanted = 1 + ROUNDS + 1  # the prewarm, the calls, the closing message
    assert (record.requests, record.prewarms, record.completed) == (wanted, 1, wanted)
    assert record.chained == wanted - 1
    sizes = {each.size for each in simulated.requests()[2:]}
    assert len(sizes) == 1, "only the output of the tool goes up"


@pytest.mark.parametrize(
    "fault",
    [
        BreakAt("created"),
        BreakAt("output", Ending.CLOSE),
        BreakAt("terminal", CloseFrame(1011)),
    ],
)
def test_codex_connects_again(scene: Scene, simulated: SimulatorProcess, fault: Fault) -> None:
    simulated.push("codex", Fault(), Fault(), Fault(), fault, to="create")
    codex(scene, simulated, "codex")
    first, second = simulated.sockets()
    assert first.closed_by_service
    assert second.requests == second.chained + 1, "the whole input once, then what is new"


def test_lanes_of_the_sdk(scene: Scene, simulated: SimulatorProcess) -> None:
    scene.need_packages("openai", "websockets")
    from openai import OpenAI
    from openai.lib.responses_websocket import ResponsesWebSocketLimits, ResponsesWebSocketSession

    limits = ResponsesWebSocketLimits(
        max_lanes=LANES + 1,
        max_events_per_lane=500,
        max_events=LANES * 500,
        max_bytes_per_lane=1 << 24,
        max_bytes=1 << 26,
    )
    client = OpenAI(
        base_url=simulated.base_url("platform"), api_key=simulated.key("platform"), max_retries=0
    )
    options: Any = {"max_size": None}
    with (
        client.responses.connect(websocket_connection_options=options) as connection,
        ResponsesWebSocketSession(connection, limits=limits) as session,
    ):
        lanes = [session.lane(f"lane-{number}") for number in range(LANES)]
        previous: dict[int, str] = {}
        for turn in range(TURNS):
            for number, lane in enumerate(lanes):
                create: Any = {
                    "type": "response.create",
                    "model": MODEL,
                    "store": False,
                    "input": f"The code word is Lychee-{number}."
                    if not turn
                    else "What was the code word?",
                }
                if number in previous:
                    create["previous_response_id"] = previous[number]
                lane.send(create)
            for number, lane in enumerate(lanes):
                response = lane.get_final_response(timeout=SECONDS)
                assert response.status == "completed"
                assert not turn or f"Lychee-{number}" in response.output_text
                previous[number] = response.id
    (record,) = simulated.sockets()
    assert (record.requests, record.chained) == (LANES * TURNS, LANES * (TURNS - 1))
