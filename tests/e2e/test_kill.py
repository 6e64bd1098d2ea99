"""Conversations while the gateway is killed with -9 at random moments.

`GATEWAY_KILLS=1000 pytest tests/e2e/test_kill.py -rP -k shorter` tells the figures of many kills;
`GATEWAY_LOOP_KILLS=20 pytest … -k loop_and_kills` those of a long tool loop.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Scene
from tests.e2e.forked_gateway import ForkedGateway
from tests.e2e.scripted_model import success_text, task_prompt
from tests.e2e.test_openai_sdk import TOOL, tool_output
from tests.support.gateway import CLIENT_KEYS, account
from tests.support.strict import Mode

pytestmark = pytest.mark.e2e

#: Kills of the tool loop, and its turns.
KILLS = int(os.environ.get("GATEWAY_LOOP_KILLS", "5"))
TURNS = 10 * KILLS

#: The flush interval, and what a busy machine may take to write: an older turn is never lost.
FLUSH = 0.2
BUSY = 5.0

#: Kills of the shorter loop.
MANY = int(os.environ.get("GATEWAY_KILLS", "8"))


class Turnstile:
    """Lets turns pass while there are kills to come, and knows when the last one was."""

    def __init__(self, parties: int) -> None:
        self.killed_at = 0.0
        self.kills = 0
        self._condition = threading.Condition()
        self._waiting = 0
        self._parties = parties

    def wait(self, turn: int) -> None:
        """Wait until this turn may begin."""
        with self._condition:
            self._waiting += 1
            self._condition.wait_for(
                lambda: turn <= (self.kills + 1) * (TURNS + 1) // (KILLS + 1), 60
            )
            self._waiting -= 1

    def killed(self) -> None:
        with self._condition:
            self.kills += 1
            self._condition.notify_all()


class Loop(threading.Thread):
    """A tool conversation of one client, which goes on whatever happens.

    :ivar lost: of each turn that had to be asked for again: how long before the kill it was
        answered, in seconds.
    """

    def __init__(self, name: str, ask: Callable[[Any, str | None], Any], gate: Turnstile) -> None:
        super().__init__(name=name, daemon=True)
        self._ask = ask
        self._gate = gate
        self.lost: list[float] = []
        self.turns = 0
        self.text: str | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.error = error

    def _run(self) -> None:
        from openai import BadRequestError

        #: What was asked, the response's id, and when it was answered.
        answers: list[tuple[Any, Any, float]] = []
        given: Any = task_prompt(TURNS, "the-application")
        while self.text is None:
            self._gate.wait(len(answers))
            previous = answers[-1][1].id if answers else None
            try:
                response = self._ask(given, previous)
            except (BadRequestError, Lost):
                # The answer came just before the kill; the application goes back to the one before.
                given, _, at = answers.pop()
                self.lost.append(self._gate.killed_at - at)
                continue
            answers.append((given, response, time.monotonic()))
            calls = [item for item in response.output if item.type == "function_call"]
            given = [
                tool_output(call.call_id, int(json.loads(call.arguments)["number"]))
                for call in calls
            ]
            if not calls:
                self.text = response.output_text
            self.turns = len(answers)


class Lost(Exception):
    """The response before is not known."""


def over_http(port: int, key: str) -> Callable[[Any, str | None], Any]:
    """Asks as an application does; the SDK itself tries again what broke off."""
    from openai import OpenAI, omit

    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=8)

    def ask(given: Any, previous: str | None) -> Any:
        return client.responses.create(
            model="gpt-5.5",
            tools=[TOOL],  # type: ignore[list-item]
            input=given,
            previous_response_id=omit if previous is None else previous,
        )

    return ask


class OverWebSocket:
    """Asks over the SDK's WebSocket, and connects anew when that breaks."""

    def __init__(self, port: int, key: str) -> None:
        from openai import OpenAI

        base_url = f"http://127.0.0.1:{port}/v1"
        self._client = OpenAI(base_url=base_url, api_key=key, max_retries=0)
        self._manager: Any = None
        self._connection: Any = None
        self.reconnects = 0

    def __call__(self, given: Any, previous: str | None) -> Any:
        late = time.monotonic() + 60
        while True:
            try:
                return self._turn(given, previous)
            except Lost:
                raise
            except Exception:
                if time.monotonic() > late:
                    raise
                self._connection = None
                self.reconnects += 1
                time.sleep(0.1)

    def _turn(self, given: Any, previous: str | None) -> Any:
        if self._connection is None:
            self._manager = self._client.responses.connect(
                websocket_connection_options={"max_size": None}
            )
            self._connection = self._manager.enter()
        options = {} if previous is None else {"previous_response_id": previous}
        self._connection.response.create(model="gpt-5.5", tools=[TOOL], input=given, **options)
        while True:
            event = self._connection.recv()
            if event.type == "response.completed":
                return event.response
            if event.type in ("error", "response.failed"):
                if "previous_response_not_found" in str(event):
                    raise Lost
                raise RuntimeError(str(event))


def whole(directory: Path, copies: Path) -> None:
    """The database is whole, as the process left it."""
    shutil.rmtree(copies, ignore_errors=True)
    shutil.copytree(directory, copies)
    if (copies / "state.db").exists():
        with closing(sqlite3.connect(copies / "state.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_tool_loop_and_kills_at_random_moments(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scene.need_packages("openai", "websockets")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, scene.proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    north, south = scene.upstream(Mode.STATEFUL, "north"), scene.upstream(Mode.STATEFUL, "south")
    accounts = [account(each.name, each.server) for each in (north, south)]
    kept = tmp_path / "kept"
    gateway = scene.enter(ForkedGateway({"accounts": accounts, "state": {"directory": str(kept)}}))
    gateway.start()
    chance, gate = random.Random(20), Turnstile(2)
    web_socket = OverWebSocket(gateway.port, CLIENT_KEYS["desk"])
    loops = [
        Loop("HTTP", over_http(gateway.port, CLIENT_KEYS["laptop"]), gate),
        Loop("WebSocket", web_socket, gate),
    ]
    for loop in loops:
        loop.start()
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.05, 0.8))
        gateway.kill()
        gate.killed_at = gateway.killed_at
        gateway.wait()
        whole(kept, tmp_path / "copies")
        gateway.start()
        gate.killed()
    for loop in loops:
        loop.join(60)
        if loop.error is not None:
            raise loop.error
        lost = [round(each, 3) for each in loop.lost]
        print(f"{loop.name}: {loop.turns} turns, asked for again: {lost} s before a kill")
        assert loop.text == success_text(TURNS), f"{loop.name} got every answer right"
        assert loop.turns == TURNS + 1
        assert max(loop.lost, default=0.0) < FLUSH + BUSY


def test_many_kills_in_a_shorter_loop(scene: Scene, tmp_path: Path) -> None:
    """Each gateway serves some turns of one conversation and is killed while it does."""
    kept, chance = tmp_path / "kept", random.Random(1000)
    upstream = scene.upstream(Mode.STATEFUL)
    accounts = [account(upstream.name, upstream.server)]
    gateway = scene.enter(ForkedGateway({"accounts": accounts, "state": {"directory": str(kept)}}))
    last: str | None = None
    trail: list[tuple[str, float]] = []
    lost: list[float] = []
    turns = unknown = 0
    for kill in range(MANY):
        gateway.start()
        killer = threading.Timer(chance.uniform(0.0, 0.5), gateway.kill)
        killer.start()
        with suppress(OSError):  # it was killed
            while gateway.running:
                answer = gateway.ask(f"turn {turns} of {kill}", trail[-1][0] if trail else None)
                if answer.status == 400:
                    assert "previous_response_not_found" in answer.text, answer.text
                    lost.append(gateway.killed_at_before - trail.pop()[1])
                    unknown += 1
                elif answer.status == 200:
                    turns += 1
                    last = answer.response_id
                    trail.append((last, time.monotonic()))
        killer.join()
        gateway.wait()
        whole(kept, tmp_path / "copies")
    late = max(lost, default=0.0)
    print(
        f"{MANY} kills, {turns} turns answered, {unknown} of them lost, the oldest of which was"
        f" answered {late:.3f} s before (median {statistics.median(lost or [0.0]):.3f} s,"
        f" {sum(each > FLUSH for each in lost)} before the flush interval)"
    )
    assert turns > MANY / 10
    assert last is not None
    assert late < FLUSH + BUSY
