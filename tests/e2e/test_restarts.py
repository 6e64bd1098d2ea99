"""Real clients across restarts of the gateway, with two client keys and two accounts each.

In every tool loop the gateway is stopped during the first tool call and killed during the second;
each time the next process takes over its address and its state.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.real_clients import RealClient, run_client
from tests.e2e.restarts import restarter
from tests.e2e.scripted_model import ScriptedModel, recall_text, success_text, task_prompt
from tests.support.checks import completed
from tests.support.events import (
    Json,
    call_item,
    call_output,
    error_body,
    reasoning_item,
    user,
)
from tests.support.gateway import account
from tests.support.services import Platform
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e

ROUNDS = 3
SDK_MODES = (
    "whole-chained",
    "whole-full",
    "stream-chained",
    "websocket-chained",
    "stream-sealed",
)
OF_EVERY_RUN = ("run_openai.py", "run_agents.mjs", "run_vercel.mjs")
CLIENTS = [
    RealClient("run_openai.py", "openai", SDK_MODES),
    RealClient("run_openai.mjs", "openai", SDK_MODES),
    RealClient("run_agents.py", "agents", ("stream", "websocket", "chained", "session", "sealed")),
    RealClient(
        "run_agents.mjs", "@openai/agents", ("stream", "websocket", "chained", "session", "sealed")
    ),
    RealClient("run_vercel.mjs", "ai", ("whole", "stream", "unstored")),
    RealClient("run_langchain.py", "langchain_openai", ("stream", "chained")),
    RealClient("run_pydantic_ai.py", "pydantic_ai", ("stream", "chained")),
]
#: `GATEWAY_ALL_CLIENTS=1` runs them all; each takes a minute on a busy machine.
if os.environ.get("GATEWAY_ALL_CLIENTS") != "1":
    CLIENTS = [each for each in CLIENTS if each.program in OF_EVERY_RUN]


def platform(name: str, brain: ScriptedModel) -> Strict:
    return Platform(name, Mode.STATEFUL, brain)


@contextmanager
def closing_upstream(upstream: Upstream) -> Iterator[None]:
    try:
        yield
    finally:
        upstream.stop()


def busy(exchange: Exchange) -> None:
    """The first account refuses the first request: the conversation begins on the second.

    Without what is known of the conversation, the next request would go to the first account.
    """
    message = "Rate limit reached. Please try again in 100ms."
    body = error_body("rate_limit_exceeded", message, kind="rate_limit_error")
    exchange.json(429, body, {"Retry-After-Ms": "100"})
    exchange.request.refused = True


THOUGHT, CALL = reasoning_item(None), call_item("call_1")
OUTPUT = call_output("call_1")
HISTORY = [user("a"), THOUGHT, CALL, OUTPUT]
NAMED = [user("a"), *({"type": "item_reference", "id": each["id"]} for each in (THOUGHT, CALL))]


@pytest.mark.parametrize(
    ("second", "keeps"),
    [([*NAMED, OUTPUT], True), (HISTORY, False)],
    ids=["by ids, kept", "in full, not kept"],
)
def test_items_of_a_response_are_known_after_a_restart(
    scene: Scene, second: list[Json], keeps: bool
) -> None:
    """They go by their ids to the account that keeps them, and to any other in full."""
    upstreams = [Upstream(), Upstream()]
    for each in upstreams:
        scene.enter(closing_upstream(each))
    settings = {} if keeps else {"store": "never"}
    accounts = [
        account(name, each, **settings)
        for name, each in zip(("north", "south"), upstreams, strict=True)
    ]
    gateway = restarter(scene, accounts)
    north, south = upstreams
    north.queue(busy)
    south.queue(lambda exchange: exchange.answer([THOUGHT, CALL]))
    completed(gateway.gateway.connect().turn(input=[user("a")]))
    for how in ("kill", "stop"):
        gateway.restart(how)
        completed(gateway.gateway.connect().turn(input=second))
        sent = south.requests[-1].input
        assert sent == (second if keeps else [user("a"), CALL, OUTPUT])
    assert len(north.requests) == 1, "another account got the conversation"


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_tool_loop_across_restarts(scene: Scene, client: RealClient) -> None:
    if not client.is_installed:
        scene.unavailable(f"{client.package} is not installed for {client} (make clients)")
    upstreams = {
        mode: [
            scene.service(functools.partial(platform, f"{name}-{mode}"))
            for name in ("north", "south")
        ]
        for mode in client.modes
    }
    for north, _ in upstreams.values():
        north.server.queue(busy)
    models = {mode: f"gpt-5.5-{mode}" for mode in client.modes}
    gateway = restarter(
        scene,
        [
            account(upstream.name, upstream.server, models=[models[mode]])
            for mode, pair in upstreams.items()
            for upstream in pair
        ],
    )
    task = {
        "base_url": f"http://127.0.0.1:{gateway.gateway.port}/v1",
        "key": CLIENT_KEY,
        "prompts": [task_prompt(ROUNDS, "the-application"), "Please recall."],
        "models": models,
        "at_once": True,
        "events": {
            "1": gateway.url("stop", len(client.modes)),
            "2": gateway.url("kill", len(client.modes)),
        },
    }
    run = run_client(client, task, scene.directory, proxy=scene.proxy.url)
    scene.logs["the client"] = run.report
    done = {
        "texts": [success_text(ROUNDS), recall_text(ROUNDS)],
        "ran": [*range(1, ROUNDS + 1)],
    }
    print(f"{client}: {run.seconds:.1f} s")
    for mode, outcome in run.outcomes.items():
        print(f"  {client} {mode}: {'pass' if outcome == done else 'FAIL'}")
    assert run.outcomes == dict.fromkeys(client.modes, done)
    assert run.returncode == 0
    for mode, (north, south) in upstreams.items():
        assert len(south.accepted) == ROUNDS + 2, f"{mode}: the conversation moved"
        assert len(north.requests) == 1, f"{mode}: the other account was asked"
