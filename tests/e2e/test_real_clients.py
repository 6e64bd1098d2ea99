"""Real clients in their usual modes on plain accounts of services that refuse what they send.

No account has a preset: what its service does not take shows when it is refused. Each mode has a
model of its own that one account alone serves, so that every mode meets what was not learnt yet.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest

from tests.e2e.conftest import CLIENT_KEY, Scene, by_pool, by_transport
from tests.e2e.real_clients import ClientRun, RealClient, run_client
from tests.e2e.scripted_model import ScriptedModel, recall_text, success_text, task_prompt
from tests.e2e.test_codex import rate_limit, usage_limit_at_the_upgrade
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
        scene.account(upstream, models=[models[mode]])
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


def platform(name: str, brain: ScriptedModel) -> Strict:
    return Platform(name, Mode.STATEFUL, brain)


@by_transport
@by_pool
@pytest.mark.parametrize("client", CLIENTS, ids=str)
@pytest.mark.parametrize(
    "service",
    [ChatGpt, ZeroRetention, pytest.param(platform, marks=pytest.mark.all_clients)],
    ids=lambda service: service.__name__,
)
@pytest.mark.always(client=CLIENTS[0], service=ChatGpt, names=("north", "south", "east"))
def test_plain_accounts(
    scene: Scene, names: tuple[str, ...], client: RealClient, service: Make
) -> None:
    """Of services that keep nothing, or all."""
    upstreams = upstreams_of(scene, client, service, *names)
    assert_done(client, drive(scene, client, upstreams))
    for mode, pool in upstreams.items():
        used = [upstream for upstream in pool if upstream.requests]
        assert len(used) == 1, f"{mode}: the conversation did not stay with one account"
        (upstream,) = used
        assert len(upstream.order) == TURNS, f"{mode}: not one answer a turn"
        kinds = [re.sub(r"'[^']*'", "…", refusal) for refusal in upstream.refusals]
        assert sorted(kinds) == sorted(set(kinds)), f"{mode}: sent again what had been refused"


@pytest.mark.parametrize("client", BRINGING_ALL, ids=str)
@pytest.mark.parametrize(
    ("transport", "limit"),
    [
        ("http", rate_limit),
        pytest.param("websocket", rate_limit, marks=pytest.mark.all_clients),
        pytest.param("websocket", usage_limit_at_the_upgrade, marks=pytest.mark.all_clients),
    ],
)
@pytest.mark.always(client=BRINGING_ALL[1], limit=usage_limit_at_the_upgrade)
def test_a_whole_history_moves_to_another_account(
    scene: Scene, client: RealClient, limit: Callable[[Exchange], None]
) -> None:
    """The account that keeps the conversation's items reaches its limit after two answers."""
    upstreams = upstreams_of(scene, client, platform, "north", "south")
    for pair in upstreams.values():
        for upstream in pair:
            upstream.before_answer = functools.partial(_limited, pair, upstream, limit)
    assert_done(client, drive(scene, client, upstreams))
    for mode, pair in upstreams.items():
        answers = sorted(len(upstream.order) for upstream in pair)
        assert answers == [2, TURNS - 2], f"{mode}: the conversation did not move"


def _limited(
    pair: list[Strict], upstream: Strict, limit: Callable[[Exchange], None], exchange: Exchange
) -> bool:
    """429 from whoever of the two gave the first two answers, from then on."""
    other = next(each for each in pair if each is not upstream)
    if len(upstream.order) < 2 or other.order:
        return False
    limit(exchange)
    return True
