"""SIGHUP against a running gateway: accounts come and go, mistakes change nothing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support.checks import completed
from tests.support.events import Json, user
from tests.support.gateway import Gateway, account
from tests.support.upstream import Upstream

pytestmark = pytest.mark.e2e


def hang_up(gateway: Gateway, folder: Path, config: Json) -> str:
    """Write the configuration, send SIGHUP and return what the log says of it."""
    path = folder / f"gateway-{gateway.port}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    before = len(gateway.log())
    gateway.process.send_signal(signal.SIGHUP)
    wait_for(lambda: "configuration" in gateway.log()[before:])
    return gateway.log()[before:]


def wait_for(condition: Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the gateway did not reload in time"
        time.sleep(0.02)


def test_accounts_come_and_go_while_a_socket_stays(tmp_path: Path) -> None:
    north, south = Upstream(), Upstream()
    gateway = Gateway(tmp_path, {"accounts": [account("north", north)]})
    try:
        client = gateway.connect()
        first = completed(client.turn(model="m", input=[user("one")], store=True))["id"]
        said = hang_up(gateway, tmp_path, {**gateway.config, "accounts": [account("south", south)]})
        assert "configuration 2 is in force" in said
        second = client.turn(model="m", input=[user("two")], previous_response_id=first, store=True)
        completed(second)
        (moved,) = south.requests
        assert moved.previous_response_id is None, "another account does not know the response"
        assert len(moved.input) == 3, "it gets the whole conversation"
    finally:
        gateway.stop()
        north.stop()
        south.stop()


def test_a_mistake_changes_nothing_and_names_its_place(tmp_path: Path) -> None:
    upstream = Upstream()
    gateway = Gateway(tmp_path, {"accounts": [account("solo", upstream)]})
    try:
        said = hang_up(gateway, tmp_path, {**gateway.config, "routing": {"strategy": "wild"}})
        assert "the configuration in force stays" in said
        assert "routing.strategy: 'wild'" in said
        completed(gateway.connect().turn(model="m", input=[user("still here")]))
    finally:
        gateway.stop()
        upstream.stop()


def test_simulated_accounts_outlive_a_reload(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path, {"simulator": {"accounts": 1}})
    try:
        hang_up(gateway, tmp_path, gateway.config)
        completed(gateway.connect().turn(model="gpt-5.5", input=[user("still here")]))
    finally:
        gateway.stop()
