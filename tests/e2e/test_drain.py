"""A gateway is emptied while real clients work: they go on at a second one, and report nothing.

real client ──▶ Tap ──▶ first gateway, until it drains; then second gateway ──▶ upstream
"""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.codex import CodexClient
from tests.e2e.conftest import CLIENT_KEY, Scene
from tests.e2e.real_clients import NODE_MODULES
from tests.e2e.scripted_model import recall_text, success_text
from tests.e2e.tap import Tap
from tests.e2e.test_codex import CLIENTS, ROUNDS, assert_done, drive
from tests.e2e.test_openai_sdk import TOOL, tool_outputs
from tests.support.events import Json
from tests.support.gateway import Gateway, account
from tests.support.ports import free_port
from tests.support.strict import Mode, Strict

pytestmark = pytest.mark.e2e

TOKEN = "token-of-the-operator"
SECONDS = 60.0


class Site:
    """Two gateways with one upstream, and the address that clients know.

    :ivar north: the upstream.
    """

    def __init__(self, scene: Scene, **timeouts: float) -> None:
        self.north = scene.upstream(Mode.STATEFUL, "north")
        self.first, self.second = (self._gateway(scene, self.north, timeouts) for _ in range(2))
        self.tap: Tap = scene.tap(self.first.port)

    @staticmethod
    def _gateway(scene: Scene, upstream: Strict, timeouts: dict[str, float]) -> Gateway:
        config: Json = {
            "accounts": [account("north", upstream.server)],
            # One key, so that the second gateway may continue what the first one began.
            "keys": [{"name": "laptop", "key": CLIENT_KEY}],
            "timeouts": timeouts,
        }
        listen = f"tcp:{free_port()}:interface=127.0.0.1"
        gateway = Gateway(scene.directory, {**config, "admin": {"listen": listen, "token": TOKEN}})
        gateway.admin_port = int(listen.split(":")[1])
        scene.when_done(gateway.stop)
        scene.logs[f"the log of the gateway on {gateway.port}"] = gateway.log
        return gateway

    def drain(self) -> None:
        """Send new connections to the second gateway, then empty the first one."""
        self.tap.target = self.second.port
        assert act(self.first, "drain")[0] == 200

    def when(self, condition: Callable[[], bool]) -> threading.Thread:
        """Drain as soon as something holds."""

        def wait() -> None:
            wait_for(condition)
            self.drain()

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread

    def drained(self) -> Json:
        status, body = ask(self.first, "GET", "/status")
        assert status == 200
        drained: Json = body["drain"]
        return drained


def ask(gateway: Gateway, method: str, path: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=SECONDS)
    try:
        connection.request(method, path, headers={"authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def act(gateway: Gateway, action: str) -> tuple[int, Any]:
    return ask(gateway, "POST", f"/admin/{action}")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


@pytest.mark.parametrize("client", CLIENTS, ids=str)
def test_codex_goes_on_elsewhere_in_the_middle_of_a_tool_loop(
    scene: Scene, client: CodexClient
) -> None:
    # So little time that the close falls into the loop; otherwise its tools would be waited for.
    site = Site(scene, drain_spread_seconds=0.05)
    draining = site.when(
        lambda: site.tap.connections and len(site.tap.connections[0].completed_ids) >= 4
    )
    run = drive(scene, client, site.tap.base_url)
    draining.join(SECONDS)
    assert_done(run, scene.directory)
    requests = [(each.request_line, each.status) for each in site.tap.connections]
    assert requests == [("GET /v1/responses HTTP/1.1", 101)] * 2, "one reconnect, nothing else"
    first, second = site.tap.connections
    assert first.completed_ids, "the first gateway answered nothing"
    assert second.completed_ids, "the second gateway answered nothing"
    assert site.drained()["moved"] == 1
    assert site.drained()["cut"] == 0


@pytest.mark.parametrize("client", CLIENTS[-1:], ids=str)
def test_codex_may_end_its_tool_loop_first(scene: Scene, client: CodexClient) -> None:
    site = Site(scene, drain_spread_seconds=10)
    draining = site.when(
        lambda: site.tap.connections and len(site.tap.connections[0].completed_ids) >= 4
    )
    run = drive(scene, client, site.tap.base_url)
    draining.join(SECONDS)
    assert_done(run, scene.directory)
    assert len(site.tap.connections) == 1, "there was time enough"
    assert site.drained()["completed"] >= ROUNDS - 4


def test_the_python_sdk_reconnects_between_turns(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.need_packages("openai", "websockets")
    from openai import OpenAI

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, scene.proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    site = Site(scene)
    codes: list[int] = []
    responses: list[Any] = []
    answered = threading.Event()
    client = OpenAI(base_url=site.tap.base_url, api_key=CLIENT_KEY, max_retries=0)

    with client.responses.connect(
        on_reconnecting=lambda event: codes.append(event.close_code),
        websocket_connection_options={"max_size": None},
    ) as connection:

        def read() -> None:
            for event in connection:
                assert event.type != "error", event
                if event.type == "response.completed":
                    responses.append(event.response)
                    answered.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()

        def turn(given: Any) -> Any:
            answered.clear()
            previous = {"previous_response_id": responses[-1].id} if responses else {}
            connection.response.create(model="gpt-5.5", tools=[TOOL], input=given, **previous)
            assert answered.wait(SECONDS), "no answer"
            return responses[-1]

        ran: list[int] = []
        response = turn("Please run 3 rounds into the-application")
        site.drain()
        while outputs := tool_outputs(response, ran):
            response = turn(outputs)
        assert response.output_text == success_text(3)
        assert len(site.tap.connections) == 1, "a tool loop may end first"
        wait_for(lambda: len(site.tap.connections) == 2)
        wait_for(lambda: site.tap.connections[1].status == 101)
        time.sleep(0.2)  # the SDK takes the new connection into use
        assert turn("Please recall.").output_text == recall_text(3)
        assert reader.is_alive(), "its iterator ended"
    assert codes == [1012]


NODE = """
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: process.env.KEY });
const socket = new ResponsesWS(client, { reconnect: { onReconnecting: () => undefined } });
const say = (line) => process.stdout.write(JSON.stringify(line) + "\\n");
let turns = 0;
const create = () => socket.send({ type: "response.create", model: "gpt-5.5", input: "recall" });
socket.on("event", (event) => {
  if (event.type !== "response.completed") return;
  say({ completed: event.response.id });
  if (++turns === 2) socket.close();
});
socket.on("error", (error) => say({ error: String(error) }));
socket.on("reconnecting", (event) => say({ reconnecting: event.closeCode }));
socket.on("reconnected", () => { say({ reconnected: true }); create(); });
socket.socket.on("open", create);
"""


def test_the_node_sdk_reconnects_between_turns(scene: Scene) -> None:
    if shutil.which("node") is None or not (NODE_MODULES / "openai").is_dir():
        scene.unavailable("node or its openai package is not installed (make clients)")
    site = Site(scene)
    (scene.directory / "program.mjs").write_text(NODE)
    (scene.directory / "node_modules").symlink_to(NODE_MODULES)
    draining = site.when(
        lambda: site.tap.connections and len(site.tap.connections[0].completed_ids) == 1
    )
    done = subprocess.run(
        ["node", "program.mjs"],
        cwd=scene.directory,
        env={
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "BASE_URL": site.tap.base_url,
            "KEY": CLIENT_KEY,
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    draining.join(SECONDS)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [next(iter(each)) for each in said] == [
        "completed",
        "reconnecting",
        "reconnected",
        "completed",
    ], done.stdout + done.stderr
    assert said[1]["reconnecting"] == 1012
