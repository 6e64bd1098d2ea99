"""Fixtures of the conformance suite: upstreams, gateways as real processes, shared rigs.

A gateway process takes about a second to start, so tests that leave no trace in an account
(nothing refused, nothing failed) share one per module; the others start their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.events import Json
from tests.support.gateway import Gateway, account
from tests.support.strict import Brain, Mode, Strict
from tests.support.upstream import Script, Upstream
from tests.support.wsclient import WsClient

ACTIVE: list[Gateway] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "conformance: black-box checks of protocol.md section 10")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for gateway in ACTIVE:
            report.sections.append((f"log of gateway {gateway.port}", gateway.log()[-4000:]))


class Stage:
    """Starts upstreams and gateways and stops them again, in reverse order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()

    def upstream(self, script: Script | None = None, **options: Any) -> Upstream:
        upstream = Upstream(script, **options)
        self._stack.callback(upstream.stop)
        return upstream

    def strict(self, name: str, mode: Mode = Mode.STATEFUL, brain: Brain | None = None) -> Strict:
        strict = Strict(name, mode, brain)
        self._stack.callback(strict.server.stop)
        return strict

    def gateway(self, *accounts: Json, **config: Any) -> Gateway:
        gateway = Gateway(self.folder, {"accounts": list(accounts), **config})
        ACTIVE.append(gateway)
        self._stack.callback(self._stop, gateway)
        return gateway

    def _stop(self, gateway: Gateway) -> None:
        try:
            gateway.stop()
        finally:
            ACTIVE.remove(gateway)

    def close(self) -> None:
        self._stack.close()


@dataclass
class Rig:
    """One gateway with one account on one scripted upstream."""

    upstream: Upstream
    gateway: Gateway

    def connect(self, **options: Any) -> WsClient:
        return self.gateway.connect(**options)

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Rig]:
        """For one test: a clean log before it, no open sockets and no script errors after it."""
        self.upstream.reset()
        try:
            yield self
        finally:
            self.gateway.close_clients()
            errors = self.upstream.errors
            assert not errors, f"scripts of the upstream failed: {errors!r}"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def module_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("gateways"))
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def module_rigs(module_stage: Stage) -> dict[str, Rig]:
    return {}


def lend(
    stage: Stage, rigs: dict[str, Rig], continuity: str
) -> contextlib.AbstractContextManager[Rig]:
    if continuity not in rigs:
        upstream = stage.upstream()
        gateway = stage.gateway(account("solo", upstream, continuity=continuity))
        rigs[continuity] = Rig(upstream, gateway)
    return rigs[continuity].borrowed()


@pytest.fixture
def rig(module_stage: Stage, module_rigs: dict[str, Rig]) -> Iterator[Rig]:
    """An account that chains (continuity: auto on an upstream that echoes ids)."""
    with lend(module_stage, module_rigs, "auto") as rig:
        yield rig


@pytest.fixture
def replay_rig(module_stage: Stage, module_rigs: dict[str, Rig]) -> Iterator[Rig]:
    """An account that always gets the whole transcript (continuity: replay)."""
    with lend(module_stage, module_rigs, "replay") as rig:
        yield rig


@pytest.fixture(params=["auto", "replay"])
def any_rig(
    request: pytest.FixtureRequest, module_stage: Stage, module_rigs: dict[str, Rig]
) -> Iterator[Rig]:
    """Once chaining, once replaying."""
    with lend(module_stage, module_rigs, request.param) as rig:
        yield rig
