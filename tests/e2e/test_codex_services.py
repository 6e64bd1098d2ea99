"""Codex CLI, each version in its dialect, on services that do otherwise than documented.

The accounts are plain: no preset says what their service refuses.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.codex import CodexClient
from tests.e2e.conftest import Scene, by_transport
from tests.e2e.scripted_model import ScriptedModel, task_prompt
from tests.e2e.test_codex import assert_done, drive, each_client
from tests.support.services import ChatGpt, OtherIds, TypesByName, ZeroRetention
from tests.support.strict import Mode, Strict

pytestmark = pytest.mark.e2e

ROUNDS = 3
Make = Callable[[str, ScriptedModel], Strict]


def other_ids(name: str, brain: ScriptedModel) -> Strict:
    return OtherIds(name, Mode.STATELESS, brain)


def types_by_name(name: str, brain: ScriptedModel) -> Strict:
    return TypesByName(name, Mode.STATELESS, brain)


@by_transport
@each_client
@pytest.mark.parametrize("websockets", [True, False], ids=["websocket", "http"])
@pytest.mark.parametrize("service", [ChatGpt, ZeroRetention, other_ids, types_by_name])
def test_each_command_runs_once(
    scene: Scene, client: CodexClient, service: Make, websockets: bool
) -> None:
    upstream = scene.service(lambda brain: service("north", brain))
    tap = scene.tap(scene.gateway(upstream).port)
    prompt = task_prompt(ROUNDS, scene.directory / "ran.txt")
    run = drive(scene, client, tap.base_url, prompt=prompt, websockets=websockets)
    assert_done(run, scene.directory, ROUNDS)
    answers = [each.status for each in tap.connections]
    assert set(answers) == {101 if websockets else 200}, "Codex saw another answer"
    assert len(upstream.order) == ROUNDS + 1, "not one answer a turn"
