"""A hundred reloads while turns run, half of them with a wrong configuration: no turn notices."""

from __future__ import annotations

import copy
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.checks import completed
from tests.support.events import Json, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e

RELOADS = 100
WEBSOCKETS, POSTS = 6, 3
SECONDS = 60.0

#: How long an answer takes in the middle, in seconds: longer than a reload.
PAUSE = 0.15


def slowly(exchange: Exchange) -> None:
    events = exchange.turn()
    exchange.sse(*events[:4])
    time.sleep(PAUSE)
    exchange.sse(*events[4:])
    exchange.end()


class Load:
    """Clients that take one turn after the other until they are told to stop."""

    def __init__(self, gateway: Gateway) -> None:
        self.turns = 0
        self.faults: list[str] = []
        self._gateway = gateway
        self._over = threading.Event()
        self._lock = threading.Lock()
        ways = [self._over_a_websocket] * WEBSOCKETS + [self._over_http] * POSTS
        self._threads = [threading.Thread(target=self._run, args=(way,)) for way in ways]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a turn hangs"

    def _run(self, way: Callable[[], None]) -> None:
        try:
            way()
        except BaseException as error:
            self.faults.append(repr(error))

    def _count(self) -> None:
        with self._lock:
            self.turns += 1

    def _over_a_websocket(self) -> None:
        client = self._gateway.connect()
        previous: dict[str, Any] = {}
        while not self._over.is_set():
            response = completed(client.turn(input=[user("go on")], **previous))
            previous = {"previous_response_id": response["id"]}
            self._count()

    def _over_http(self) -> None:
        client = HttpClient(self._gateway.port)
        streams = False
        while not self._over.is_set():
            # A text of its own: the same one would stay at the account that had it before.
            answer = client.create(input=str(uuid.uuid4()), stream=streams)
            last = answer.events[-1]["response"] if streams else answer.json
            assert last["status"] == "completed", answer
            streams = not streams
            self._count()


class Operator:
    """Writes configurations, right and wrong ones in turn, and has them read."""

    def __init__(self, gateway: Gateway, folder: Path, variables: Path, south: Upstream) -> None:
        self._gateway = gateway
        self._config = folder / f"gateway-{gateway.port}.yaml"
        self._variables = variables
        self._right = gateway.config
        self._upstream = south
        self._south = account("south", south) | {"key": "${SOUTH_KEY}"}

    def right(self, number: int) -> None:
        """Another one that is right: an account comes or goes, a rule or a limit changes.

        An account that comes stays until it has served a turn.
        """
        config: Json = copy.deepcopy(self._right)
        config["accounts"][0]["weight"] = 1 + number % 7
        config["routing"]["strategy"] = ("round-robin", "weighted", "least-in-flight")[number % 3]
        config["timeouts"]["stall_seconds"] = 30 + number
        config["keys"].append({"name": f"key-{number}", "key": f"sk-{number}"})
        if number % 2:
            config["accounts"].append(self._south)
        self._variables.write_text(f"SOUTH_KEY=upstream-secret-south-{number // 4}\n")
        self._config.write_text(yaml.safe_dump(config))
        served = len(self._upstream.requests)
        self._reload("is in force")
        if number % 2:
            self._upstream.wait_for(served + 1, SECONDS)

    def wrong(self, number: int) -> None:
        """One that is wrong, in another way each time."""
        config: Json = copy.deepcopy(self._right)
        text = None
        way = number % 6
        if way == 0:
            config["accounts"] = []
        elif way == 1:
            config["listen"] = 7
        elif way == 2:
            config["accounts"].append(self._south | {"key": "${NOT_SET}"})
        elif way == 3:
            text = "accounts: [{name: "
        elif way == 4:
            self._variables.write_text("SOUTH_KEY='\n")
        else:
            self._variables.unlink()
        self._config.write_text(yaml.safe_dump(config) if text is None else text)
        self._reload("the configuration in force stays")

    def _reload(self, words: str) -> None:
        log = self._gateway.log_path
        before = log.stat().st_size
        self._gateway.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + SECONDS
        with log.open("rb") as file:
            file.seek(before)
            said = b""
            while words.encode() not in said:
                assert time.monotonic() < deadline, f"no '{words}' in {said.decode()}"
                time.sleep(0.005)
                said += file.read()


def test_a_hundred_reloads_touch_no_turn(tmp_path: Path) -> None:
    variables = tmp_path / "variables"
    variables.write_text("")
    with ExitStack() as stack:
        north, south = Upstream(slowly), Upstream(slowly)
        stack.callback(north.stop)
        stack.callback(south.stop)
        accounts = [account("north", north)]
        config: Json = {"accounts": accounts, "environment_file": str(variables)}
        gateway = Gateway(tmp_path, config, {**os.environ, "SOUTH_KEY": "stale"})
        stack.callback(gateway.stop)  # it looks for tracebacks and secrets in the log
        load = Load(gateway)
        operator = Operator(gateway, tmp_path, variables, south)
        load.start()
        began = time.monotonic()
        try:
            for number in range(RELOADS // 2):
                operator.right(number)
                operator.wrong(number)
        finally:
            load.stop()
        took = time.monotonic() - began
        sent = len(north.requests) + len(south.requests)
        print(f"{RELOADS} reloads in {took:.1f} s, {load.turns} turns, faults: {load.faults}")
        assert load.faults == []
        assert load.turns == sent, "a turn was sent twice"
        assert load.turns > 3 * (WEBSOCKETS + POSTS), "hardly a turn ran"
        log = gateway.log()
        assert log.count("is in force, changed") == RELOADS // 2
        assert "a restart is needed" not in log
