"""The backends that need no server, against what every backend must do.

``tests/e2e/test_redis.py`` has Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet import reactor

from gateway.config import StateSettings
from gateway.state.sqlite import SqliteBackend
from tests.state.backend_contract import BackendContract


class TestSqlite(BackendContract):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], SqliteBackend]:
        return lambda: SqliteBackend(reactor, tmp_path / "state", StateSettings())
