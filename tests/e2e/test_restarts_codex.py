"""Codex across restarts of the gateway in the middle of a tool loop: it reconnects, that is all.

A shell command of the loop runs while the gateway is restarted, so that the number of reconnects
does not depend on how long a start takes.
"""

from __future__ import annotations

import functools
import os
import re

import pytest

from tests.e2e.codex import NEWEST, OLDEST, CodexClient
from tests.e2e.conftest import Scene
from tests.e2e.restarts import Restarter, restarter
from tests.e2e.test_codex import ROUNDS, assert_done, drive
from tests.support.gateway import account
from tests.support.strict import Mode, Strict
from tests.support.upstream import Exchange

pytestmark = pytest.mark.e2e

#: How the gateway ends, by the answers that were given before.
RESTARTS = {3: "stop", 7: "kill"}


CLIENTS = [CodexClient(NEWEST, "gpt-6.2-sol"), CodexClient(OLDEST, "gpt-5.4")]
if os.environ.get("GATEWAY_ALL_CLIENTS") != "1":
    del CLIENTS[1:]


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_a_tool_loop_across_restarts(scene: Scene, client: CodexClient) -> None:
    both = [scene.upstream(Mode.STATEFUL, "north"), scene.upstream(Mode.STATEFUL, "south")]
    gateway = restarter(scene, [account(each.name, each.server) for each in both])
    for each in both:
        scene.models[each.name].pause = scene.directory / "pause"
        each.before_answer = functools.partial(restart_now_and_then, scene, gateway, each)
    tap = scene.tap(gateway.gateway.port)
    run = drive(scene, client, tap.base_url)
    assert_done(run, scene.directory)
    assert gateway.restarts == [*RESTARTS.values()]
    requests = [(each.request_line, each.status) for each in tap.connections]
    reconnects = len(requests) - 1
    told = len(re.findall(r"Reconnecting\.\.\.", run.stdout + run.stderr))
    print(f"{client}: {reconnects} reconnects, {told} of them told, {run.seconds:.1f} s")
    assert requests == [("GET /v1/responses HTTP/1.1", 101)] * len(requests), "not WebSockets alone"
    assert reconnects <= len(RESTARTS), "more than one reconnect a restart"
    used = [upstream for upstream in both if upstream.accepted]
    assert len(used) == 1, "the conversation did not stay with one account"
    assert len(used[0].accepted) == ROUNDS + 1, "not one answer a turn"
    assert used[0].refusals == []


def restart_now_and_then(
    scene: Scene, gateway: Restarter, upstream: Strict, exchange: Exchange
) -> bool:
    """Before the answer whose command waits until the gateway was restarted."""
    how = RESTARTS.get(len(upstream.order))
    if how is not None and len(gateway.restarts) < len(RESTARTS):
        pause = scene.directory / "pause"
        pause.touch()
        gateway.restart_soon(how, pause.unlink)
    return False
