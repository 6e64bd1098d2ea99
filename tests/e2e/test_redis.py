"""The state on a real redis-server, with what may happen to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from twisted.internet import reactor

from gateway.config.settings import StateSettings
from gateway.state.redis import RedisBackend
from tests.state.backend_contract import SharedContract
from tests.support.redis import RedisServer, need_program


@pytest.fixture
def server(tmp_path: Path, require_e2e: bool) -> Iterator[RedisServer]:
    need_program("redis-server", require_e2e)
    server = RedisServer(tmp_path)
    yield server
    server.kill()


class TestRedis(SharedContract):
    @pytest.fixture
    def make(self, server: RedisServer) -> Callable[[], RedisBackend]:
        return lambda: RedisBackend(reactor, StateSettings(store=server.url))
