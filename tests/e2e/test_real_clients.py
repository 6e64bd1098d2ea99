"""Real clients in their usual modes on plain accounts of services that refuse what they send.

No account has a preset: what its service does not take shows when it is refused. Each mode has a
model of its own that one account alone serves, so that every mode meets what was not learnt yet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest

from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.real_clients import ClientRun, RealClient, run_client
from tests.e2e.scripted_model import ScriptedModel, recall_text, success_text, task_prompt
from tests.support.events import error_body
from tests.support.gateway import account
from tests.support.services import ChatGpt, Platform, ZeroRetention
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange

pytestmark = pytest.mark.e2e

ROUNDS = 3
TURNS = ROUNDS + 2  # one a round, the answer, and the recall
SDK_MODES = ("whole-chained", "whole-full", "stream-chained", "stream-full", "websocket-chained")
CLIENTS = [
    RealClient("run_openai.py", "openai", SDK_MODES),
    RealClient("run_openai.mjs", "openai", SDK_MODES),
    RealClient("run_agents.py", "agents", ("whole", "stream", "websocket", "chained")),
    RealClient("run_vercel.mjs", "ai", ("whole", "stream", "unstored")),
    RealClient("run_langchain.py", "langchain_openai", ("whole", "stream", "chained")),
    RealClient("run_pydantic_ai.py", "pydantic_ai", ("whole", "stream", "chained")),
]
#: Those that bring their whole history, by items or by the items' names.
BRINGING_ALL = [
    RealClient("run_agents.py", "agents", ("whole", "stream", "websocket")),
    RealClient("run_vercel.mjs", "ai", ("whole", "stream")),
]

Make = Callable[[str, ScriptedModel], Strict]


def upstreams_of(
    scene: Scene, client: RealClient, make: Make, *names: str
) -> dict[str, list[Strict]]:
    """The accounts of each mode."""
    return {
        mode: [scene.service(functools.partial(make, f"{name}-{mode}")) for name in names]
        for mode in client.modes
    }


def drive(scene: Scene, client: RealClient, upstreams: dict[str, list[Strict]]) -> ClientRun:
    """One tool loop a mode through the gateway."""
    if not client.is_installed:
        scene.unavailable(f"{client.package} is not installed for {client} (make clients)")
    models = {mode: f"gpt-5.5-{mode}" for mode in client.modes}
    accounts = [
        account(upstream.name, upstream.server, models=[models[mode]])
        for mode, serving in upstreams.items()
        for upstream in serving
    ]
    task = {
        "base_url": f"http://127.0.0.1:{scene.gateway_with(accounts).port}/v1",
        "key": CLIENT_KEY,
        "prompts": [task_prompt(ROUNDS, "the-application"), "Please recall."],
        "models": models,
    }
    run = run_client(client, task, scene.directory, proxy=scene.proxy.url)
    scene.logs["the client"] = run.report
    return run


def assert_done(client: RealClient, run: ClientRun) -> None:
    """The client saw no error in any mode, and every tool ran exactly once."""
    rounds = [*range(1, ROUNDS + 1)]
    done = {"texts": [success_text(ROUNDS), recall_text(ROUNDS)], "ran": rounds}
    assert run.outcomes == dict.fromkeys(client.modes, done)
    assert run.returncode == 0


@pytest.mark.parametrize("client", CLIENTS, ids=str)
@pytest.mark.parametrize("service", [ChatGpt, ZeroRetention], ids=lambda service: service.__name__)
def test_a_plain_account_of_a_service_that_keeps_nothing(
    scene: Scene, client: RealClient, service: Make
) -> None:
    upstreams = upstreams_of(scene, client, service, "north")
    assert_done(client, drive(scene, client, upstreams))
    for mode, (upstream,) in upstreams.items():
        assert len(upstream.order) == TURNS, f"{mode}: not one answer a turn"
        kinds = [re.sub(r"'[^']*'", "…", refusal) for refusal in upstream.refusals]
        assert sorted(kinds) == sorted(set(kinds)), f"{mode}: sent again what had been refused"


@pytest.mark.parametrize("client", BRINGING_ALL, ids=str)
def test_a_whole_history_moves_to_another_account(scene: Scene, client: RealClient) -> None:
    """The account that keeps the conversation's items reaches its limit after two answers."""
    upstreams = upstreams_of(scene, client, _platform, "north", "south")
    for pair in upstreams.values():
        for upstream in pair:
            upstream.before_answer = functools.partial(_limited, pair, upstream)
    assert_done(client, drive(scene, client, upstreams))
    for mode, pair in upstreams.items():
        answers = sorted(len(upstream.order) for upstream in pair)
        assert answers == [2, TURNS - 2], f"{mode}: the conversation did not move"


def _platform(name: str, brain: ScriptedModel) -> Strict:
    return Platform(name, Mode.STATEFUL, brain)


def _limited(pair: list[Strict], upstream: Strict, exchange: Exchange) -> bool:
    """429 from whoever of the two gave the first two answers, from then on."""
    other = next(each for each in pair if each is not upstream)
    if len(upstream.order) < 2 or other.order:
        return False
    message = "Rate limit reached. Please try again in 20s."
    body = error_body("rate_limit_exceeded", message, kind="rate_limit_error")
    exchange.json(429, body, {"Retry-After": "20"})
    return True
