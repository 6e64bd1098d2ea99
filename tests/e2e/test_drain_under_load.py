"""Many conversations move from one gateway to another between their turns: none notices.

The clients do what SDKs with reconnecting do: they connect anew when their socket was closed
between two turns.  A close that crosses a request is printed, because an SDK would report it; on a
busy machine these clients notice a close late.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.tap import Tap
from tests.support.checks import completed
from tests.support.events import Json, user
from tests.support.gateway import Gateway, account
from tests.support.ports import free_port
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import SocketClosed, WsClient

pytestmark = pytest.mark.e2e

TOKEN = "token-of-the-operator"
CONVERSATIONS = 100
SECONDS = 120.0


def slowly(exchange: Exchange) -> None:
    events = exchange.turn()
    exchange.sse(*events[:4])
    time.sleep(0.2)
    exchange.sse(*events[4:])
    exchange.end()


class Conversation:
    """A client that takes turns, with pauses of its own, until it is told to stop.

    :ivar turns: that were answered.
    :ivar closes: the codes and times of its sockets' ends.
    :ivar crossed: closes that met a request on its way.
    """

    def __init__(self, number: int, port: int, over: threading.Event) -> None:
        self.turns = self.crossed = 0
        self.closes: list[tuple[int, float]] = []
        self._port = port
        self._over = over
        # A third are tool loops that go on at once, the others think.
        self._longest = 0.05 if number % 3 == 0 else 3.0
        self._random = random.Random(number)

    def run(self) -> None:
        client = self._connect()
        previous: dict[str, Any] = {}
        while not self._over.is_set():
            client = self._think(client)
            try:
                events = client.turn(input=[user("go on")], **previous)
            except (SocketClosed, OSError):
                self.crossed += 1
                client = self._connect()
                continue
            previous = {"previous_response_id": completed(events)["id"]}
            self.turns += 1
        client.drop()

    def _connect(self) -> WsClient:
        return WsClient(self._port, timeout=SECONDS)

    def _think(self, client: WsClient) -> WsClient:
        """Wait, and connect anew if the socket is closed meanwhile."""
        seconds = self._random.uniform(0, self._longest)
        try:
            client.assert_silent(seconds)
        except (SocketClosed, OSError, AssertionError):
            self.closes.append((client.wait_closed(), time.monotonic()))
            time.sleep(0.1)
            return self._connect()
        return client


def post(gateway: Gateway, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=SECONDS)
    connection.request("POST", path, headers={"authorization": f"Bearer {TOKEN}"})
    assert connection.getresponse().status == 200
    connection.close()


def test_a_hundred_conversations_move_between_turns(tmp_path: Path) -> None:
    over = threading.Event()
    with ExitStack() as stack:
        upstream = Upstream(slowly)
        stack.callback(upstream.stop)
        gateways = []
        for _ in range(2):
            listen = f"tcp:{free_port()}:interface=127.0.0.1"
            config: Json = {
                "accounts": [account("solo", upstream)],
                "admin": {"listen": listen, "token": TOKEN},
                # One key, so that the second gateway may continue what the first one began.
                "keys": [{"name": "laptop", "key": "key-laptop"}],
                "timeouts": {"shutdown_seconds": 60, "drain_spread_seconds": 3},
            }
            gateway = Gateway(tmp_path, config)
            gateway.admin_port = int(listen.split(":")[1])
            stack.callback(gateway.stop)
            gateways.append(gateway)
        first, second = gateways
        front = stack.enter_context(Tap(first.port))
        talks = [Conversation(number, front.port, over) for number in range(CONVERSATIONS)]
        with ThreadPoolExecutor(CONVERSATIONS) as pool:
            running = [pool.submit(talk.run) for talk in talks]
            try:
                time.sleep(3)
                front.target = second.port
                began = time.monotonic()
                post(first, "/admin/drain")
                deadline = began + SECONDS
                while "drained in" not in first.log():
                    assert time.monotonic() < deadline, "it was not emptied"
                    time.sleep(0.1)
                time.sleep(2)
            finally:
                over.set()
            for each in running:
                each.result(SECONDS)
        turns = sum(talk.turns for talk in talks)
        crossed = sum(talk.crossed for talk in talks)
        times = sorted(at - began for talk in talks for _, at in talk.closes)
        line = next(each for each in first.log().splitlines() if "drained in" in each)
        print(f"{turns} turns, {crossed} closes crossed a request; {line.partition('] ')[2]}")
        print(f"closes seen between {times[0]:.1f} and {times[-1]:.1f} s")
        assert {code for talk in talks for code, _ in talk.closes} <= {1012}
        assert f"{CONVERSATIONS} connections moved, 0 turns cut" in line
        assert turns == sum(1 for each in upstream.requests if not each.refused)
        assert times[-1] - times[0] > 1, "all at once"
