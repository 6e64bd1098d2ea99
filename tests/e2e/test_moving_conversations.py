"""Running conversations of real clients through an upgrade and a rolling restart: none is cut.

SDK conversations over HTTP, as a stream and in one piece, and over WebSocket, beside tool loops of
Codex.  E2E_CONVERSATIONS is how many SDK conversations there are, to try it with hundreds.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.codex import NEWEST, OLDEST, CodexClient, CodexRun, run_codex
from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.scripted_model import success_text, task_prompt
from tests.e2e.tap import Tap
from tests.e2e.test_workers import Running, is_alive, waited
from tests.support.events import Json, reasoning_item, text_item
from tests.support.gateway import CLIENT_KEYS, Gateway, account
from tests.support.redis import RedisServer, need_program
from tests.support.strict import Mode, Strict, said
from tests.support.upstream import Exchange

if TYPE_CHECKING:
    from openai import AsyncOpenAI

pytestmark = pytest.mark.e2e

CONVERSATIONS = int(os.environ.get("E2E_CONVERSATIONS", "6"))
WAYS = ("stream", "whole", "websocket")
ROUNDS = 10
SECONDS = 300.0
CODEX = [CodexClient(OLDEST, "gpt-5.4"), CodexClient(NEWEST, "gpt-6.2-sol")]


def parrot(transcript: list[Json], strict: Strict) -> list[Json]:
    """Repeats what it was told: a turn that was lost or doubled shows."""
    told = [said(item) for item in transcript if item.get("role") == "user"]
    return [reasoning_item(strict.seal()), text_item(" ".join(told))]


def slowly(exchange: Exchange) -> bool:
    """So that a tool loop takes longer than an upgrade."""
    time.sleep(1)
    return False


class Conversations:
    """SDK conversations in one process, each on its own until told to stop.

    :ivar counts: turns by how they went: ``answered``; ``crossed``, when a socket was closed while
        the request was on its way, and it was sent again; ``wrong``; ``cut``.
    :ivar errors: what the application saw.
    """

    def __init__(self, base_url: str) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.over = False
        self._base_url = base_url

    def run(self) -> None:
        """Hold them all; returns when the last one has ended."""
        asyncio.run(self._all())

    async def _all(self) -> None:
        from openai import AsyncOpenAI

        clients = [
            AsyncOpenAI(base_url=self._base_url, api_key=key, timeout=SECONDS)
            for key in CLIENT_KEYS.values()
        ]
        await asyncio.gather(
            *(self._converse(clients[number % 2], number) for number in range(CONVERSATIONS))
        )
        for client in clients:
            await client.close()

    async def _converse(self, client: AsyncOpenAI, number: int) -> None:
        way = WAYS[number % len(WAYS)]
        ask = Socket(client, self.counts).ask if way == "websocket" else _over_http(client, way)
        told: list[str] = []
        previous: dict[str, Any] = {}
        dice = random.Random(number)
        while not self.over:
            told.append(f"{number}.{len(told)}")
            try:
                answer = await ask({"model": "gpt-sdk", "input": told[-1], **previous})
            except Exception as error:
                self.counts["cut"] += 1
                self.errors.append(f"{way}: {error!r}")
                return
            right = answer.output_text == " ".join(told)
            self.counts["answered" if right else "wrong"] += 1
            previous = {"previous_response_id": answer.id}
            await asyncio.sleep(dice.uniform(0.1, 3.0))


def _over_http(client: AsyncOpenAI, way: str) -> Callable[[Any], Any]:
    async def ask(request: Any) -> Any:
        if way == "whole":
            return await client.responses.create(**request)
        async with client.responses.stream(**request) as stream:
            return await stream.get_final_response()

    return ask


class Socket:
    """A WebSocket of the SDK; it is opened again when it was closed between turns."""

    def __init__(self, client: AsyncOpenAI, counts: Counter[str]) -> None:
        self._client = client
        self._counts = counts
        self._connection: Any = None

    async def ask(self, request: Any) -> Any:
        from websockets.exceptions import ConnectionClosed

        while True:
            if self._connection is None:
                self._connection = await self._client.responses.connect().enter()
            try:
                await self._connection.response.create(**request)
            except ConnectionClosed:  # between turns
                self._connection = None
                continue
            try:
                event = await self._connection.recv()
            except ConnectionClosed:
                self._counts["crossed"] += 1
                self._connection = None
                continue
            while event.type != "response.completed":
                assert event.type not in ("error", "response.failed"), f"an error: {event}"
                event = await self._connection.recv()
            return event.response


def converse(
    scene: Scene, port: int, models: dict[str, CodexClient], move: Callable[[], None]
) -> Conversations:
    """Hold all conversations while ``move`` runs, and check them."""
    talks = Conversations(f"http://127.0.0.1:{port}/v1")
    with ThreadPoolExecutor(1 + len(models)) as pool:
        talking = pool.submit(talks.run)
        try:
            waited("the first turns", lambda: talks.counts.total() >= CONVERSATIONS)
            coding = {
                name: pool.submit(_code, scene, name, client, port)
                for name, client in models.items()
            }
            upstreams = scene.models.values()
            waited("Codex's turns", lambda: sum(bool(m.transcripts) for m in upstreams) == 2)
            began = time.monotonic()
            move()
            took = time.monotonic() - began
            runs = {name: each.result() for name, each in coding.items()}
            enough = talks.counts.total() + CONVERSATIONS
            waited("turns afterwards", lambda: talks.counts.total() >= enough or talks.errors)
        finally:
            talks.over = True
        talking.result()
    figures = dict(sorted(talks.counts.items()))
    print(f"{CONVERSATIONS} conversations moved in {took:.1f} s: {figures}")
    for name, run in runs.items():
        print(f"  {models[name]}: {run.seconds:.1f} s, told of errors: {run.error_lines}")
        assert run.error_lines == []
        assert run.messages == [success_text(ROUNDS)], run.report()
    assert talks.errors == []
    assert talks.counts["cut"] == talks.counts["wrong"] == 0
    return talks


def _code(scene: Scene, name: str, client: CodexClient, port: int) -> CodexRun:
    directory = scene.directory / name
    directory.mkdir()
    return run_codex(
        client,
        f"http://127.0.0.1:{port}/v1",
        CLIENT_KEY,
        task_prompt(ROUNDS, directory / "ran.txt"),
        directory,
        proxy=scene.proxy.url,
        timeout=SECONDS,
    )


def parties(scene: Scene) -> tuple[list[Json], dict[str, CodexClient]]:
    """Two accounts for the SDKs, one for each Codex; and which Codex that is."""
    accounts = []
    for name in ("north", "south"):
        upstream = scene.service(lambda _, name=name: Strict(name, Mode.STATEFUL, parrot))  # type: ignore[misc]
        accounts.append(account(name, upstream.server, models=["gpt-sdk"]))
    models = {}
    for number, client in enumerate(CODEX):
        if client.binary() is None:
            scene.unavailable(f"{client} is not installed (make clients)")
        upstream = scene.upstream(Mode.STATEFUL, f"codex-{number}")
        upstream.before_answer = slowly
        accounts.append(account(upstream.name, upstream.server, models=[client.model]))
        models[upstream.name] = client
    return accounts, models


def test_an_upgrade_under_running_conversations(scene: Scene) -> None:
    """SIGUSR2: the successor takes the listening socket, then the process before drains."""
    scene.need_packages("openai", "websockets")
    accounts, models = parties(scene)
    timeouts = {"shutdown_seconds": 60, "drain_spread_seconds": 5}
    running = Running(scene.directory, {"accounts": accounts, "timeouts": timeouts}).started()
    scene.logs["the gateway's log"] = lambda: running.log
    try:

        def move() -> None:
            before = running.pid
            running.upgraded()
            waited("the end of the process before", lambda: not is_alive(before))

        converse(scene, running.port, models, move)
    finally:
        running.stop()
    for line in running.log.splitlines():
        if "drained in" in line:
            print(line.partition("] ")[2])
    assert ", 0 turns cut" in running.log


def test_a_rolling_restart_under_running_conversations(scene: Scene) -> None:
    """Two gateways share a Redis; a front leads clients away from each before it stops."""
    scene.need_packages("openai", "websockets")
    need_program("redis-server", scene.required)
    redis = RedisServer(scene.directory)
    try:
        accounts, models = parties(scene)
        config = {
            "accounts": accounts,
            "state": {"store": redis.url},
            "timeouts": {"shutdown_seconds": 60, "drain_spread_seconds": 5},
        }
        first, second = (Gateway(scene.directory, config) for _ in range(2))
        scene.logs["the first gateway's log"] = first.log
        scene.logs["the second gateway's log"] = second.log
        front = scene.enter(Tap(first.port))
        started: list[Gateway] = []

        def move() -> None:
            front.target = second.port
            first.terminate()
            first.process.wait(SECONDS)
            started.append(Gateway(scene.directory, config, instead_of=first))
            front.target = first.port
            second.terminate()
            second.process.wait(SECONDS)

        try:
            converse(scene, front.port, models, move)
        finally:
            for each in (*started, first, second):
                each.stop()
    finally:
        redis.kill()
    for each in (first, second):
        lines = [line for line in each.log().splitlines() if "drained in" in line]
        for line in lines:
            print(line.partition("] ")[2])
        assert all(", 0 turns cut" in line for line in lines)
