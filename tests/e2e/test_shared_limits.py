"""The limits of keys over several processes, on a real redis-server."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from gateway.api_keys.limit_ledger import (
    KeyUsage,
    LimitAnswer,
    LimitAsk,
    LimitLedger,
    LimitWindow,
)
from gateway.state.redis import RedisScript
from gateway.state.shared_limits import RedisLimits
from tests.support.redis import RedisServer, need_program

pytestmark = pytest.mark.e2e

START = 1_800_000_000.25

_names = itertools.count()


class BlockingRedis:
    """Runs scripts, one after the other."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._reader = hiredis.Reader()

    def evaluate(
        self,
        script: RedisScript,
        keys: Sequence[str | bytes],
        arguments: Sequence[bytes | str | int | float],
    ) -> Deferred[Any]:
        command: Any = ("EVAL", script.text, len(keys), *keys, *arguments)
        self._socket.sendall(hiredis.pack_command(command))
        reply = self._reader.gets()
        while reply is False:
            self._reader.feed(self._socket.recv(65536))
            reply = self._reader.gets()
        if isinstance(reply, Exception):
            raise reply
        return succeed(reply)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory, require_e2e: bool) -> Iterator[BlockingRedis]:
    need_program("redis-server", require_e2e)
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield BlockingRedis(server.port)
    server.kill()


WINDOWS = [
    LimitWindow("requests_per_minute", 60.0, 20, False),
    LimitWindow("requests_per_day", 86_400.0, 60, False),
    LimitWindow("tokens_per_minute", 60.0, 500, True),
    LimitWindow("tokens_per_day", 86_400.0, 2_000, True),
]

USES = st.lists(
    st.builds(
        KeyUsage,
        st.sampled_from([0.0, 0.5, 3.0, 59.0, 200.0]),
        st.integers(-3, 4),
        st.integers(0, 300),
    ),
    max_size=3,
)

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.booleans(),
        st.integers(0, 3),
        st.integers(0, 6),
        st.integers(0, 40),
        USES,
        st.sampled_from([0.0, 0.013, 0.9, 5.0, 11.0, 61.5, 4000.0]),
    ),
    max_size=25,
)


@given(
    STEPS,
    st.sampled_from([-1, 0, 4, 300]),
    st.lists(st.sampled_from(WINDOWS), unique_by=lambda each: each.name),
)
@settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_the_script_does_what_the_ledger_does(
    redis: BlockingRedis, steps: list[Any], most: int, windows: list[LimitWindow]
) -> None:
    tenant = f"key {next(_names)} |\xe9"
    now = START
    ledger = LimitLedger()
    script = RedisLimits(redis, lambda: now)
    numbers = dict.fromkeys("abc", 0)
    for process, again, held, wanted, spare, uses, pause in steps:
        now += pause
        numbers[process] += not (again and numbers[process])
        ask = LimitAsk(process, numbers[process], held, wanted, spare, most, windows, uses, tenant)
        expected = ledger.exchange(ask, now)
        answers: list[LimitAnswer] = []
        script.exchange(ask).addCallback(answers.append)
        (answer,) = answers
        assert answer.wait == pytest.approx(expected.wait, abs=1e-3)
        assert answer.born == pytest.approx(expected.born, abs=1e-3)
        same = msgspec.structs.replace(answer, wait=expected.wait, born=expected.born)
        assert same == expected
