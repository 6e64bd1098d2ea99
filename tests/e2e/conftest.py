"""End-to-end tests: real clients, the gateway as its own process, strict upstreams.

    real client ──▶ Tap ──▶ gateway (twistd) ──▶ Strict upstreams "north" and "south"
                  records                        check, record; a ScriptedModel answers

* `scripted_model` decides what the model says, from the transcript alone: a lost or doubled item
  changes its answer.
* `tap` sits on the wire between client and gateway and shows connections and frames as they were;
  a reconnect or a fallback to HTTP cannot hide from it. Its `ProxyTrap` is what the clients' proxy
  variables point at: traffic that wants to leave the machine ends there and fails the test.
* `codex` runs the real Codex CLI, shut in a temporary home.
* `real_clients` runs the other clients, in programs of their own under `clients/`.
* `lossy_front` is the fault this product was built against, kept as a control: the same checks must
  fail behind it.

The clients, Codex in two versions side by side among them, come from npm and PyPI (some 900 MB, not
tracked by git): `make clients` installs what `clients/package.json` and `clients/requirements.txt`
name.

The admin page's tests drive a real Chromium (`apt install chromium`; `browser` steers it).

Whether the gateway reaches its accounts by HTTP or WebSocket is the parameter `transport` of most
tests (`by_transport`). By WebSocket go those with `pytest.mark.always`, and all of them with
GATEWAY_ALL_CLIENTS=1.

Without them (or without the test extra) the tests skip, and say so; with
GATEWAY_REQUIRE_E2E=1 they fail instead. Alone and with their figures: `pytest tests/e2e -rP`.
"""

from __future__ import annotations

import functools
import http.client
import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.e2e.browser import chromium, executable
from tests.e2e.scripted_model import ScriptedModel
from tests.e2e.tap import ProxyTrap, Tap
from tests.support.events import Json
from tests.support.gateway import CLIENT_KEYS, Gateway, account
from tests.support.strict import Mode, Strict
from tests.support.upstream import Recorded

CLIENT_KEY = CLIENT_KEYS["laptop"]

#: Whether every client meets every upstream, which takes long.
ALL_CLIENTS = os.environ.get("GATEWAY_ALL_CLIENTS") == "1"
#: Over both transports to the accounts.
by_transport = pytest.mark.parametrize(
    "transport", ["http", pytest.param("websocket", marks=pytest.mark.all_clients)]
)
#: The names of a pool's accounts.
by_pool = pytest.mark.parametrize(
    "names",
    [("north", "south", "east"), pytest.param(("north",), marks=pytest.mark.all_clients)],
    ids=["three accounts", "one account"],
)

T = TypeVar("T")
U = TypeVar("U", bound=Strict)


class Scene:
    """The parties of one test, started in order and stopped in reverse, and their logs."""

    def __init__(
        self,
        directory: Path,
        stack: ExitStack,
        proxy: ProxyTrap,
        *,
        required: bool,
        transport: str = "http",
    ) -> None:
        self.directory = directory
        self.transport = transport
        self.proxy = proxy
        self.required = required
        self.logs: dict[str, Callable[[], str]] = {}
        self.models: dict[str, ScriptedModel] = {}
        self._stack = stack

    def enter(self, party: AbstractContextManager[T]) -> T:
        return self._stack.enter_context(party)

    def when_done(self, call: Callable[[], Any]) -> None:
        self._stack.callback(call)

    def unavailable(self, reason: str) -> None:
        """Skip, or fail where these tests are required to run."""
        if self.required:
            pytest.fail(f"{reason} (GATEWAY_REQUIRE_E2E=1)")
        pytest.skip(reason)

    def need_packages(self, *names: str) -> None:
        """Make sure the SDK and its WebSocket library are there, or leave the test."""
        for name in names:
            if importlib.util.find_spec(name) is None:
                self.unavailable(f"{name} is not installed (pip install 'openai[realtime]')")

    def upstream(self, mode: Mode, name: str = "north") -> Strict:
        return self.service(lambda brain: Strict(name, mode, brain))

    def service(self, make: Callable[[ScriptedModel], U]) -> U:
        """An upstream of any kind, with a scripted model of its own."""
        model = ScriptedModel()
        upstream = make(model)
        if self.transport == "websocket":
            upstream.take_websockets()
        self.models[upstream.name] = model
        self._stack.callback(upstream.server.stop)
        lines = functools.partial(map, _line, upstream.requests)
        self.logs[f"requests to {upstream.name}"] = lambda: "\n".join(lines())
        return upstream

    def gateway(self, *upstreams: Strict) -> Gateway:
        """The gateway with one account per upstream."""
        return self.gateway_with([self.account(each) for each in upstreams])

    def account(self, upstream: Strict, **fields: Any) -> Json:
        """An entry of `accounts:` for it, over the transport of this test."""
        if self.transport != "http":
            fields["transport"] = self.transport
        return account(upstream.name, upstream.server, **fields)

    def gateway_with(self, accounts: list[Json]) -> Gateway:
        gateway = Gateway(self.directory, {"accounts": accounts})
        self._stack.callback(gateway.stop)
        self.logs["the gateway's turns"] = lambda: _turns(gateway)
        self.logs["the gateway's log"] = gateway.log
        return gateway

    def tap(self, target: int) -> Tap:
        tap = self.enter(Tap(target))
        self.logs["the wire"] = tap.report
        return tap


@pytest.fixture(scope="module")
def browser(require_e2e: bool) -> Iterator[Any]:
    """A real Chromium for the tests of one file."""
    path = executable()
    packages = map(importlib.util.find_spec, ("axe_playwright_python", "playwright"))
    if path is None or not all(packages):
        reason = "no Chromium, or no Playwright (apt install chromium; pip install '.[test]')"
        if require_e2e:
            pytest.fail(f"{reason} (GATEWAY_REQUIRE_E2E=1)")
        pytest.skip(reason)
    with chromium(path) as started:
        yield started


@pytest.fixture
def transport() -> str:
    """How the gateway reaches its accounts, unless a test says otherwise."""
    return "http"


@pytest.fixture
def scene(tmp_path: Path, require_e2e: bool, transport: str) -> Iterator[Scene]:
    """Everything one test starts; no client may have tried to leave the machine."""
    with ExitStack() as stack:
        proxy = stack.enter_context(ProxyTrap())
        yield Scene(tmp_path, stack, proxy, required=require_e2e, transport=transport)
        assert proxy.attempts == [], "a client tried to leave the machine"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only GATEWAY_ALL_CLIENTS=1 runs."""
    left_out = [] if ALL_CLIENTS else [item for item in items if _is_left_out(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not _is_left_out(item)]


def _is_left_out(item: pytest.Item) -> bool:
    if item.get_closest_marker("all_clients") is None:
        return False
    params = item.callspec.params if isinstance(item, pytest.Function) else {}
    always = [each.kwargs.items() for each in item.iter_markers("always")]
    return not any(wanted <= params.items() for wanted in always)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the parties' logs to a failed test, while the parties are still up."""
    outcome: Any = yield
    report = outcome.get_result()
    scene = getattr(item, "funcargs", {}).get("scene")
    if report.failed and report.when == "call" and scene is not None:
        report.sections.extend((title, log()) for title, log in scene.logs.items())


def _line(request: Recorded) -> str:
    given = request.input if isinstance(request.input, list) else [{"type": "text"}]
    types = " ".join(item.get("type", "message") for item in given)
    outcome = "refused" if request.refused else request.response_id
    asked = f"{request.connection} {request.method} previous={request.previous_response_id}"
    return f"{asked} [{types}] -> {outcome}"


def _turns(gateway: Gateway) -> str:
    """GET /status/turns, oldest first; part of a report, so it never fails."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=10)
    try:
        connection.request("GET", "/status/turns")
        turns = json.loads(connection.getresponse().read())["turns"]
    except (OSError, KeyError, ValueError, http.client.HTTPException) as error:
        return f"not available: {error!r}"
    finally:
        connection.close()
    return "\n".join(json.dumps(turn) for turn in reversed(turns))
