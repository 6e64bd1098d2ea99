"""Two gateways that share a Redis server, behind a real HAProxy and a real nginx.

Each turn of a conversation comes to another gateway.  ``SHARED_STATE_STOP_SECONDS`` says how long
Redis hangs, ``SHARED_STATE_TURNS`` how long the conversations are.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import Json, user
from tests.support.gateway import CLIENT_KEYS, Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.load_balancers import HAProxy, LoadBalancer, Nginx
from tests.support.redis import RedisServer, need_program
from tests.support.scrape import scrape
from tests.support.strict import Strict, said
from tests.support.wsclient import Refused, SocketClosed, WsClient

STOP_SECONDS = float(os.environ.get("SHARED_STATE_STOP_SECONDS", "4"))
TURNS = int(os.environ.get("SHARED_STATE_TURNS", "8"))

#: Attempts at one turn, as a patient client makes them, and the pause between them in seconds.
TRIES, PAUSE = 80, 0.5

PASSWORD = "password-of-redis"

INCLUDE = ["reasoning.encrypted_content"]


class Broken(Exception):
    """The connection ended within an attempt, or its answer says to try again."""


@dataclass
class Setting:
    """Everything that runs in one test."""

    folder: Path
    redis: RedisServer
    upstreams: list[Strict]
    gateways: list[Gateway] = field(default_factory=list)

    def add_gateway(self) -> Gateway:
        accounts = [account(each.name, each.server) for each in self.upstreams]
        state = {"store": self.redis.url}
        self.gateways.append(Gateway(self.folder, {"accounts": accounts, "state": state}))
        return self.gateways[-1]

    def turns(self) -> list[float]:
        """Completed turns of each gateway."""
        return [
            scrape(each.admin_port).sum("gateway_turns_total", status="completed")
            for each in self.gateways
        ]


@pytest.fixture
def setting(tmp_path: Path, require_e2e: bool) -> Iterator[Setting]:
    need_program("redis-server", require_e2e)
    redis = RedisServer(tmp_path, password=PASSWORD)
    made = Setting(tmp_path, redis, [Strict("a"), Strict("b")])
    try:
        made.add_gateway()
        made.add_gateway()
        yield made
        for each in made.gateways:
            each.stop()
            assert PASSWORD not in each.log()
    finally:
        for each in made.gateways:
            if each.process.poll() is None:
                each.process.kill()
                each.process.wait()
        for upstream in made.upstreams:
            upstream.server.stop()
        made.redis.kill()


@pytest.fixture(params=[HAProxy, Nginx], ids=["haproxy", "nginx"])
def balancer(
    request: pytest.FixtureRequest, setting: Setting, require_e2e: bool
) -> Iterator[LoadBalancer]:
    need_program(request.param.name, require_e2e)
    made: LoadBalancer = request.param(setting.folder, setting.gateways)
    yield made
    made.stop()


class Conversation:
    """One client that opens a new connection for each turn.

    :param stored: whether it names its last response, or sends its whole history each time.
    :ivar tries: attempts by the name of their turn.
    :ivar waits: the longest time that a turn took, in seconds, with all its attempts.
    :ivar refused: how often it was told to come again.
    """

    def __init__(self, port: int, number: int, websocket: bool, stored: bool) -> None:
        self.port = port
        self.number = number
        self.websocket = websocket
        self.stored = stored
        self.key = list(CLIENT_KEYS.values())[number % 2]
        self.said: list[str] = []
        self.items: list[Json] = []
        self.previous: str | None = None
        self.tries: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.waits: list[float] = []

    @property
    def name(self) -> str:
        how = "websocket" if self.websocket else "http"
        return f"{how}, {'stored' if self.stored else 'full history'}, {self.number}"

    def turn(self) -> None:
        words = f"recall {self.number}.{len(self.said)}"
        self.said.append(words)
        new = user(words)
        self.items.append(new)
        members: Json = {"store": self.stored, "metadata": {"turn": words}, "model": "gpt-5.5"}
        if self.stored:
            members |= {"input": [new], "previous_response_id": self.previous}
        else:
            key = f"conversation {self.number}"  # what it is bound by
            members |= {"input": self.items, "include": INCLUDE, "prompt_cache_key": key}
        began = time.monotonic()
        response = self._tried(words, members)
        self.waits.append(time.monotonic() - began)
        texts = [said(item) for item in response["output"] if item["type"] == "message"]
        assert texts == [" | ".join(self.said)], f"{self.name}: the model saw {texts}"
        self.previous = response["id"]
        self.items += response["output"]

    def _tried(self, words: str, members: Json) -> Json:
        for _ in range(TRIES):
            self.tries[words] += 1
            try:
                return self._over_websocket(members) if self.websocket else self._over_http(members)
            except (OSError, Broken, SocketClosed, Refused, AssertionError) as error:
                self.refused[str(error)[:200]] += 1
                time.sleep(
                    random.uniform(0.5, 1.5) * PAUSE
                )  # two in step never meet the other gateway
        raise AssertionError(f"{self.name}: no answer to {words!r}: {self.refused}")

    def _over_websocket(self, members: Json) -> Json:
        client = WsClient(self.port, key=self.key, timeout=30.0)
        try:
            last = client.turn(**members)[-1]
        finally:
            client.drop()
        return _response(last)

    def _over_http(self, members: Json) -> Json:
        client = HttpClient(self.port, key=self.key, timeout=30.0)
        try:
            answer = client.create(stream=True, **members)
        finally:
            client.sock.close()
        if answer.status != 200:
            raise Broken(f"{answer.status} {answer.body[:150]!r}")
        return _response(answer.events[-1])


def _response(last: Json) -> Json:
    if last["type"] != "response.completed":
        raise Broken(json.dumps(last.get("error") or last))
    response: Json = last["response"]
    return response


def conversations(port: int, each: int = 1) -> list[Conversation]:
    kinds = [(websocket, stored) for websocket in (True, False) for stored in (True, False)]
    return [Conversation(port, number, *kinds[number // 2 % 4]) for number in range(8 * each)]


def hold(
    talks: list[Conversation], turns: int, meanwhile: Callable[[], Any] = lambda: None
) -> None:
    """Hold so many turns of all conversations, side by side; something else happens then."""

    def run(talk: Conversation) -> None:
        for _ in range(turns):
            talk.turn()

    event = threading.Thread(target=meanwhile)
    event.start()
    with ThreadPoolExecutor(len(talks)) as pool:
        for _ in pool.map(run, talks):
            pass
    event.join()


def sent_twice(setting: Setting, talks: list[Conversation]) -> list[str]:
    """Turns that an upstream answered more often than a client asked."""
    asked: Counter[str] = Counter()
    for talk in talks:
        asked.update(talk.tries)
    answered: Counter[str] = Counter()
    for upstream in setting.upstreams:
        answered.update(each.body["metadata"]["turn"] for each in upstream.accepted)
    return [turn for turn, count in answered.items() if count > asked[turn]]


def one_account_each(setting: Setting) -> None:
    places: dict[str, set[str]] = {}
    for upstream in setting.upstreams:
        for each in upstream.accepted:
            number = each.body["metadata"]["turn"].split()[1].split(".")[0]
            places.setdefault(number, set()).add(upstream.name)
    moved = {number: names for number, names in places.items() if len(names) > 1}
    assert not moved, f"these conversations were on several accounts: {moved}\n{choices(setting)}"


def choices(setting: Setting) -> str:
    """Each turn's account and why, for the report of a test that failed."""
    lines = []
    for number, gateway in enumerate(setting.gateways):
        url = f"http://127.0.0.1:{gateway.admin_port}/status/turns?limit=100"
        with urllib.request.urlopen(url, timeout=20) as answer:
            for turn in reversed(json.load(answer)["turns"]):
                tried = [(each["account"], each["rule"]) for each in turn["attempts"]]
                lines.append(f"{turn['ended_at']:.3f} gateway {number} {turn['key']} {tried}")
    return "\n".join(sorted(lines))


def report(title: str, talks: list[Conversation]) -> None:
    waits = sorted(wait for talk in talks for wait in talk.waits)
    refused = sum((talk.refused for talk in talks), Counter[str]())
    print(
        f"{title}: {len(waits)} turns, all answered right; median {waits[len(waits) // 2]:.3f} s,"
        f" longest {waits[-1]:.2f} s; come again: {refused.total()} {dict(refused.most_common(4))}"
    )


def test_conversations_alternate_between_the_gateways(
    setting: Setting, balancer: LoadBalancer
) -> None:
    talks = conversations(balancer.port)
    for talk in talks:
        for _ in range(TURNS):  # one at a time, so that the balancer alternates
            talk.turn()
    assert all(talk.refused.total() == 0 for talk in talks), [talk.refused for talk in talks]
    one, other = setting.turns()
    assert one + other == len(talks) * TURNS
    assert abs(one - other) <= len(talks), f"{one} and {other} turns"
    one_account_each(setting)
    assert sent_twice(setting, talks) == []
    report(f"{balancer.name}: alternating, {one:.0f} and {other:.0f}", talks)


def test_a_gateway_is_killed_in_the_middle(setting: Setting, balancer: LoadBalancer) -> None:
    talks = conversations(balancer.port)
    hold(talks, TURNS // 2)
    gone = setting.gateways.pop(0)

    def kill() -> None:
        time.sleep(0.3)
        os.kill(gone.process.pid, signal.SIGKILL)
        gone.process.wait()

    hold(talks, TURNS // 2, kill)
    one_account_each(setting)
    assert sent_twice(setting, talks) == []
    report(f"{balancer.name}: one gateway killed", talks)


def test_redis_stops_in_the_middle(setting: Setting, balancer: LoadBalancer) -> None:
    """Whose conversation is known on either gateway goes on; others are told to come again."""
    talks = conversations(balancer.port)
    hold(talks, 2)
    over = threading.Event()
    ended: list[int] = []

    def hang() -> None:
        with setting.redis.hanging():
            ended.append(sum(len(talk.waits) for talk in talks))
            time.sleep(STOP_SECONDS)
            ended.append(sum(len(talk.waits) for talk in talks))
        over.set()

    thread = threading.Thread(target=hang)
    thread.start()
    while not over.is_set():
        hold(talks, 1)
    thread.join()
    hold(talks, 2)
    before, after = ended
    assert after > before, "no turn went on while Redis was stopped"
    assert sent_twice(setting, talks) == []
    report(f"{balancer.name}: {after - before} turns while Redis was stopped", talks)


def test_redis_begins_anew_in_the_middle(setting: Setting) -> None:
    """What it had is lost; what a gateway has in memory is not."""
    gateway = setting.gateways[0]
    talks = conversations(gateway.port)
    hold(talks, 2)
    setting.redis.kill()
    hold(talks, 2)
    setting.redis.start()
    hold(talks, 2)
    assert all(talk.refused.total() == 0 for talk in talks), [talk.refused for talk in talks]
    one_account_each(setting)
    assert sent_twice(setting, talks) == []


def test_gateways_that_start_at_once_accept_each_others_turn_states(setting: Setting) -> None:
    """An empty Redis, a restart of one, and a third: all sign with one secret."""
    keys = setting.redis.ask("KEYS", "rg1:secrets:*")
    assert len(keys) == 1
    before = setting.redis.ask("GET", keys[0].decode())
    setting.gateways[0].stop()
    setting.add_gateway()
    time.sleep(1.0)
    assert setting.redis.ask("GET", keys[0].decode()) == before


def test_a_known_conversation_waits_for_no_command(setting: Setting) -> None:
    """Redis hangs: turns that continue something in memory take as long as before."""
    gateway = setting.gateways[0]
    talks = conversations(gateway.port)
    hold(talks, 2)
    with contextlib.ExitStack() as stack:
        stack.enter_context(setting.redis.hanging())
        began = time.monotonic()
        for talk in talks:
            if talk.stored:
                talk.turn()
        seconds = time.monotonic() - began
    stored = sum(talk.stored for talk in talks)
    assert seconds < 0.5 * stored, f"{stored} turns took {seconds:.2f} s"
    assert all(talk.refused.total() == 0 for talk in talks)
