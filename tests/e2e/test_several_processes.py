"""Processes that share a Redis or a supervisor: limits of keys, and cooldowns, hold for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import Json, user
from tests.support.gateway import Gateway, account
from tests.support.redis import RedisServer, need_program
from tests.support.upstream import Exchange, Script, Upstream

pytestmark = pytest.mark.e2e


@pytest.fixture
def redis(tmp_path: Path, require_e2e: bool) -> Iterator[RedisServer]:
    need_program("redis-server", require_e2e)
    server = RedisServer(tmp_path)
    yield server
    server.kill()


Start = Callable[..., list[Gateway]]


@contextmanager
def serving(script: Script) -> Iterator[Upstream]:
    upstream = Upstream(script)
    try:
        yield upstream
    finally:
        upstream.stop()


@pytest.fixture
def start(tmp_path: Path, redis: RedisServer) -> Iterator[Start]:
    """Starts gateways that share a Redis; the only key is "laptop"."""
    running: list[Gateway] = []

    def begin(
        upstream: Upstream, key: Json, shared_by: str = "redis", accounts: Json | None = None
    ) -> list[Gateway]:
        config: Json = {
            "accounts": [account("a", upstream, **(accounts or {}))],
            "keys": [{"name": "laptop", "key": "key-laptop", **key}],
            "routing": {"queue_seconds": 0},
        }
        if shared_by == "redis":
            config["state"] = {"store": redis.url}
        else:
            config["workers"] = 2
        running.extend(Gateway(tmp_path, config) for _ in range(2 if shared_by == "redis" else 1))
        deadline = time.monotonic() + 60
        while shared_by != "redis" and "started 2 workers" not in running[0].log():
            assert time.monotonic() < deadline, "the workers do not start"
            time.sleep(0.1)
        return running

    yield begin
    for gateway in running:
        gateway.stop()


def in_parallel(count: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


def hammered(gateways: list[Gateway], clients: int, turns: int) -> list[tuple[float, Json]]:
    """When each turn ended, and its terminal event."""
    ended: list[tuple[float, Json]] = []

    def client(number: int) -> None:
        connection = gateways[number % len(gateways)].connect()
        for _ in range(turns):
            events = connection.turn(input=[user("again")], generate=False)
            ended.append((time.time(), events[-1]))

    in_parallel(clients, client)
    return ended


def said(gateways: list[Gateway]) -> str:
    """What the gateways said of limits."""
    lines = [line for each in gateways for line in each.log().splitlines()]
    return "; ".join(line for line in lines if "limits hold" in line)


def granted(ended: list[tuple[float, Json]]) -> int:
    return sum(event["type"] == "response.completed" for _, event in ended)


@pytest.mark.parametrize("shared_by", ["redis", "supervisor"])
def test_requests_per_minute_hold_for_all(start: Start, shared_by: str) -> None:
    """Within one in a hundred."""
    with serving(lambda exchange: exchange.answer()) as upstream:
        gateways = start(upstream, {"requests_per_minute": 300}, shared_by)
        began = time.time()
        ended = hammered(gateways, clients=6, turns=150)
        if "for this process alone" in said(gateways):
            pytest.skip("the machine is too slow: " + said(gateways))
        assert time.time() - began < 58, "the window has not passed"
        print(f"{granted(ended)} of {len(ended)} turns in {time.time() - began:.1f} s")
        assert 297 <= granted(ended) <= 300
        codes = {event["error"]["code"] for _, event in ended if event["type"] == "error"}
        assert codes == {"rate_limit_exceeded"}
        by_gateway = [hammered([each], 1, 5) for each in gateways]
        assert not any(granted(each) for each in by_gateway)


@pytest.mark.parametrize("shared_by", ["redis", "supervisor"])
def test_turns_at_the_same_time_are_never_more(start: Start, shared_by: str) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def script(exchange: Exchange) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.03)
        with lock:
            running -= 1
        exchange.answer()

    done: list[str] = []

    def client(gateway: Gateway) -> None:
        connection = gateway.connect()
        until = time.monotonic() + 8
        while time.monotonic() < until:
            done.append(connection.turn(input=[user("again")])[-1]["type"])

    with serving(script) as upstream:
        gateways = start(upstream, {"max_concurrent_turns": 4}, shared_by)
        in_parallel(8, lambda number: client(gateways[number % len(gateways)]))
    if "for this process alone" in said(gateways):
        pytest.skip("the machine is too slow: " + said(gateways))
    print(f"at most {most} at once; {done.count('response.completed')} of {len(done)} served")
    assert most == 4
    assert done.count("response.completed") > 50


def test_a_place_of_a_gateway_that_crashed_is_free_again(start: Start) -> None:
    release = threading.Event()

    def script(exchange: Exchange) -> None:
        release.wait(60)
        exchange.answer()

    with serving(script) as upstream:
        first, second = start(upstream, {"max_concurrent_turns": 1})
        first.connect().create(input=[user("long")])
        upstream.wait_for(1)
        assert second.connect().turn(generate=False)[-1]["type"] == "error"
        first.process.kill()
        first.process.wait()
        first.stopped = True
        deadline = time.monotonic() + 30
        while second.connect().turn(generate=False)[-1]["type"] == "error":
            assert time.monotonic() < deadline, "its place is still taken"
            time.sleep(0.5)
        release.set()


def test_redis_that_hangs_stops_no_turn(start: Start, redis: RedisServer) -> None:
    with serving(lambda exchange: exchange.answer()) as upstream:
        gateways = start(upstream, {"requests_per_minute": 1000})
        assert granted(hammered(gateways, 2, 5)) == 10
        with redis.hanging():
            took: list[float] = []
            for _ in range(20):
                for gateway in gateways:
                    began = time.monotonic()
                    assert granted(hammered([gateway], 1, 1)) == 1
                    took.append(time.monotonic() - began)
        print(f"longest {max(took):.3f} s, median {sorted(took)[20]:.3f} s")
        assert sorted(took)[-5] < 0.25, "only the first turns wait"
        time.sleep(5)
        assert granted(hammered(gateways, 2, 5)) == 10


def test_a_cooldown_is_known_to_both_within_a_second(start: Start) -> None:
    error: Any = {"error": {"type": "rate_limit_error", "code": "insufficient_quota",
                            "message": "You exceeded your current quota."}}  # fmt: skip
    with serving(lambda exchange: exchange.json(429, error)) as upstream:
        first, second = start(upstream, {})
        second.connect()
        assert first.connect().turn(input=[user("hello")])[-1]["type"] == "error"
        asked = len(upstream.requests)
        time.sleep(1.0)
        assert second.connect().turn(input=[user("hello")])[-1]["type"] == "error"
        assert len(upstream.requests) == asked, "it asked the account that cools down"
