"""Client keys against a running gateway: apart from each other over every door, within their
limits over all their connections, and gone when a reload removes them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.checks import assert_error, completed
from tests.support.events import Json, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import Answer, HttpClient
from tests.support.upstream import Exchange, Upstream
from tests.support.wsclient import SocketClosed, WsClient

pytestmark = pytest.mark.e2e

LAPTOP, DESK = "key-laptop", "key-desk"


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Gateway]:
    """A gateway with two keys on its built-in simulator."""
    gateway = Gateway(tmp_path, {"simulator": {"accounts": 2}})
    yield gateway
    gateway.stop()


def ask(gateway: Gateway, key: str, method: str, path: str, body: Json | None = None) -> Answer:
    client = HttpClient(gateway.port, key)
    try:
        return client.ask(method, f"/v1{path}", None if body is None else json.dumps(body).encode())
    finally:
        client.drop()


def made_over(door: str, gateway: Gateway, key: str) -> str:
    """The id of a response that ``key`` made."""
    if door == "websocket":
        turn = gateway.connect(key=key).turn(model="gpt-5.5", input=[user("a secret")], store=True)
        return str(completed(turn)["id"])
    answer = ask(gateway, key, "POST", "/responses", {"model": "gpt-5.5", "input": "a secret"})
    assert answer.status == 200, answer.body
    return str(answer.json["id"])


@pytest.mark.parametrize("door", ["websocket", "http"])
def test_no_key_reaches_the_responses_of_another_over_any_door(
    simulated: Gateway, door: str
) -> None:
    mine = made_over(door, simulated, LAPTOP)
    goes_on: Json = {"model": "gpt-5.5", "input": "Go on.", "previous_response_id": mine}
    for stream in (True, False):
        refused = ask(simulated, DESK, "POST", "/responses", {**goes_on, "stream": stream})
        assert refused.status == 400, refused.body
        assert refused.error["code"] == "previous_response_not_found"
    for path in ("/responses/compact", "/responses/input_tokens"):
        answer = ask(simulated, DESK, "POST", path, goes_on)
        assert answer.status in (400, 404), f"POST {path} on another key's response: {answer.body}"
    for method, path in (
        ("GET", f"/responses/{mine}"),
        ("GET", f"/responses/{mine}/input_items"),
        ("POST", f"/responses/{mine}/cancel"),
        ("DELETE", f"/responses/{mine}"),
    ):
        answer = ask(simulated, DESK, method, path)
        assert answer.status == 404, f"{method} {path} of another key: {answer.body}"
    over_websocket = simulated.connect(key=DESK).turn(**{**goes_on, "input": [user("Go on.")]})
    assert_error(over_websocket[-1], 400, "previous_response_not_found", "previous_response_id")
    still = [
        ask(simulated, LAPTOP, "GET", f"/responses/{mine}"),
        ask(simulated, LAPTOP, "GET", f"/responses/{mine}/input_items"),
        ask(simulated, LAPTOP, "POST", "/responses", goes_on),
        ask(simulated, LAPTOP, "DELETE", f"/responses/{mine}"),
        ask(simulated, LAPTOP, "GET", f"/responses/{mine}"),
    ]
    assert [answer.status for answer in still] == [200, 200, 200, 200, 404], still


class Busy:
    """A gateway whose upstream answers when the test says so."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.upstream = Upstream()
        self.gateway = Gateway(
            folder,
            {
                "accounts": [account("solo", self.upstream)],
                "keys": [{"name": "laptop", "key": LAPTOP, **limits}],
                "routing": {"queue_seconds": 20},
            },
        )

    def stop(self) -> None:
        self.gateway.stop()
        self.upstream.stop()


def begin(client: WsClient) -> None:
    client.create(model="gpt-5.5", input=[user("x")])


def test_two_concurrent_turns_of_a_key_hold_over_three_sockets(tmp_path: Path) -> None:
    busy = Busy(tmp_path, max_concurrent_turns=2)
    running: list[Exchange] = []

    def hold(exchange: Exchange) -> None:
        running.append(exchange)
        exchange.hold()

    try:
        busy.upstream.default = busy.upstream.script = hold
        clients = [busy.gateway.connect(key=LAPTOP) for _ in range(3)]
        for number, client in enumerate(clients, 1):
            begin(client)
            busy.upstream.wait_for(min(number, 2))
        time.sleep(1.0)  # as long as a third turn would need many times over
        assert len(busy.upstream.requests) == 2, "the third turn of the key must wait"
        busy.upstream.default = busy.upstream.script = Exchange.answer
        clients[0].drop()
        busy.upstream.wait_for(3)
        waited = clients[2].until_terminal()
        assert completed(waited)["status"] == "completed", "the third turn runs in the place left"
    finally:
        busy.stop()


def test_a_limit_of_requests_is_checked_per_turn_and_says_when_it_ends(tmp_path: Path) -> None:
    busy = Busy(tmp_path, requests_per_day=2)
    try:
        client = busy.gateway.connect(key=LAPTOP)
        for _ in range(2):
            completed(client.turn(model="gpt-5.5", input=[user("x")]))
        refused = client.turn(model="gpt-5.5", input=[user("x")])
        error = assert_error(refused[-1], 429)
        assert error["type"] == "usage_limit_reached"
        assert error["resets_in_seconds"] > 3600
        assert len(busy.upstream.requests) == 2
    finally:
        busy.stop()


def test_a_key_that_a_reload_removes_loses_its_sockets_after_the_running_turn(
    tmp_path: Path,
) -> None:
    upstream = Upstream()
    gateway = Gateway(tmp_path, {"accounts": [account("solo", upstream)]})
    try:
        idle, running = gateway.connect(key=LAPTOP), gateway.connect(key=LAPTOP)
        other = gateway.connect(key=DESK)
        held: list[Exchange] = []

        def answer_late(exchange: Exchange) -> None:
            held.append(exchange)
            while gateway_reloaded.is_file() is False:
                time.sleep(0.05)
            exchange.answer()

        gateway_reloaded = tmp_path / "reloaded"
        upstream.queue(answer_late)
        begin(running)
        upstream.wait_for(1)
        config = {**gateway.config, "keys": [{"name": "desk", "key": DESK}]}
        path = tmp_path / f"gateway-{gateway.port}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        gateway.process.send_signal(signal.SIGHUP)
        with pytest.raises(SocketClosed):
            idle.until_terminal()
        gateway_reloaded.touch()
        completed(running.until_terminal())
        with pytest.raises(SocketClosed):
            running.until_terminal()
        completed(other.turn(model="gpt-5.5", input=[user("still here")]))
        assert ask(gateway, LAPTOP, "GET", "/models").status == 401
    finally:
        gateway.stop()
        upstream.stop()
