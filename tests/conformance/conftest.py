"""Fixtures of the conformance suite: upstreams, gateways as real processes, shared rigs.

A gateway process takes up to a second to start, so tests share them where they can: `rig` and
its kin for tests that leave no trace in an account, `stage.serve` for tests that break one, and
`stage.gateway` for tests that need a configuration of their own.

Each numbered check of protocol.md §10 is a test named after its number; that page says which one is
where.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.events import Json
from tests.support.gateway import Gateway, account
from tests.support.strict import Brain, Mode, Strict
from tests.support.upstream import Script, Upstream, new_listener
from tests.support.websocket_upstream import WebSocketUpstream
from tests.support.wsclient import WsClient

ACTIVE: list[Gateway] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "conformance: black-box checks of protocol.md §10")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for gateway in ACTIVE:
            report.sections.append((f"log of gateway {gateway.port}", gateway.log()[-4000:]))


class Plot(NamedTuple):
    """Models of a farm that tests may take.

    :ivar kind: how a test asks for it.
    :ivar size: accounts that serve each model.
    :ivar models: how many there are.
    :ivar fields: more settings of these accounts.
    """

    kind: str
    size: int
    models: int
    fields: Json


HTTP = [Plot("http", 1, 60, {}), Plot("http", 2, 30, {})]
SOCKETS = [
    Plot("websocket", 1, 240, {"transport": "websocket"}),
    Plot("websocket", 2, 50, {"transport": "websocket"}),
    Plot("auto", 1, 60, {"transport": "auto"}),
    Plot("auto", 2, 10, {"transport": "auto"}),
]
IMPATIENT: Json = {
    "timeouts": {"connect_seconds": 0.7, "first_byte_seconds": 0.7, "idle_seconds": 0.7},
    "session": {"hold_seconds": 10},
}


class Farm:
    """One gateway with many accounts, each model served by one or two accounts of its own.

    What happens to the accounts of one model says nothing to the others, so a test that breaks
    an account takes a fresh model instead of a fresh process.

    :param plots: what there is of each kind.
    :param config: of the gateway.
    """

    def __init__(self, folder: Path, plots: Iterable[Plot], config: Json) -> None:
        self.free: dict[tuple[str, int], list[tuple[str, list[socket.socket]]]] = {}
        accounts: list[Json] = []
        for kind, size, count, fields in plots:
            slots = self.free.setdefault((kind, size), [])
            for number in range(count):
                model = f"model-{kind}-{size}-{number}"
                listeners = [new_listener() for _ in range(size)]
                slots.append((model, listeners))
                for at, listener in enumerate(listeners):
                    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
                    accounts.append(account(f"{model}-{at}", url, models=[model], **fields))
        self.gateway = Gateway(folder, {"accounts": accounts, **config})

    def close(self) -> None:
        for _, listeners in itertools.chain(*self.free.values()):
            for listener in listeners:
                listener.close()
        self.gateway.stop()


class Farms:
    """The farm in use; a new one when its slots run out or its gateway died."""

    def __init__(
        self, folder: Path, plots: Iterable[Plot] = tuple(HTTP), config: Json | None = None
    ) -> None:
        self.folder = folder
        self.plots = plots
        self.config = config or {}
        self.farm: Farm | None = None

    def take(self, kind: str, size: int) -> tuple[Gateway, str, list[socket.socket]]:
        farm = self.farm
        if farm is None or not farm.free[kind, size] or farm.gateway.process.poll() is not None:
            self.close()
            farm = self.farm = Farm(self.folder, self.plots, self.config)
        return farm.gateway, *farm.free[kind, size].pop()

    def close(self) -> None:
        if self.farm is not None:
            farm, self.farm = self.farm, None
            farm.close()


class Lease:
    """A model of the farm's gateway, with this test's upstreams behind it."""

    def __init__(self, gateway: Gateway, model: str) -> None:
        self.gateway = gateway
        self.model = model
        self.log_start = len(gateway.log())

    def connect(self, **options: Any) -> WsClient:
        client = self.gateway.connect(**options)
        client.defaults["model"] = self.model
        return client

    def close(self) -> None:
        self.gateway.close_clients()
        self.gateway.check_log(self.log_start)


class Stage:
    """Starts upstreams and gateways and stops them again, in reverse order."""

    def __init__(self, folder: Path, farms: Farms | None = None) -> None:
        self.folder = folder
        self.farms = farms
        self._stack = contextlib.ExitStack()

    def serve(self, *backends: Strict | Upstream | Script, kind: str = "http") -> Lease:
        """A gateway (shared, with the base configuration) whose accounts are these upstreams."""
        assert self.farms is not None, "only tests lease a model"
        gateway, model, listeners = self.farms.take(kind, len(backends))
        for backend, listener in zip(backends, listeners, strict=True):
            if isinstance(backend, Strict):
                backend.server.listen(listener)
            elif isinstance(backend, Upstream):
                backend.listen(listener)
            else:
                self.upstream(backend).listen(listener)
        lease = Lease(gateway, model)
        ACTIVE.append(gateway)
        self._stack.callback(ACTIVE.remove, gateway)
        self._stack.callback(lease.close)
        return lease

    def on_close(self, call: Callable[[], object]) -> None:
        self._stack.callback(call)

    def upstream(self, script: Script | None = None, **options: Any) -> Upstream:
        upstream = Upstream(script, **options)
        self._stack.callback(upstream.stop)
        return upstream

    def websocket_upstream(self, script: Script | None = None, **options: Any) -> WebSocketUpstream:
        upstream = WebSocketUpstream(script, **options)
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


@pytest.fixture(scope="session")
def farms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farms]:
    farms = Farms(tmp_path_factory.mktemp("farm"))
    yield farms
    farms.close()


@pytest.fixture(scope="session")
def socket_farms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farms]:
    farms = Farms(tmp_path_factory.mktemp("sockets"), SOCKETS)
    yield farms
    farms.close()


@pytest.fixture(scope="session")
def impatient_farms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farms]:
    farms = Farms(tmp_path_factory.mktemp("impatient"), SOCKETS, IMPATIENT)
    yield farms
    farms.close()


@pytest.fixture
def socket_stage(tmp_path: Path, socket_farms: Farms) -> Iterator[Stage]:
    """Serves accounts that are reached over WebSocket, of the kinds `websocket` and `auto`."""
    stage = Stage(tmp_path, socket_farms)
    yield stage
    stage.close()


@pytest.fixture
def impatient_stage(tmp_path: Path, impatient_farms: Farms) -> Iterator[Stage]:
    """The same, at a gateway that waits less than a second for anything."""
    stage = Stage(tmp_path, impatient_farms)
    yield stage
    stage.close()


@pytest.fixture
def stage(tmp_path: Path, farms: Farms) -> Iterator[Stage]:
    stage = Stage(tmp_path, farms)
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
