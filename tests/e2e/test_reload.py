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


def test_the_key_of_a_new_account_needs_no_restart(tmp_path: Path) -> None:
    """The process keeps the environment that it was started with; its file is read anew."""
    north, south = Upstream(), Upstream()
    variables = tmp_path / "variables"
    variables.write_text("# the first account\nNORTH_KEY=upstream-secret-north\n")
    variables.chmod(0o644)
    config: Json = {
        "environment_file": str(variables),
        "accounts": [account("north", north) | {"key": "${NORTH_KEY}"}],
    }
    gateway = Gateway(tmp_path, config, {"NORTH_KEY": "stale"})
    try:
        completed(gateway.connect().turn(model="m", input=[user("one")]))
        assert north.requests[-1].header("authorization") == "Bearer upstream-secret-north"
        assert "every user of this machine can read" in gateway.log()
        variables.write_text("SOUTH_KEY='upstream secret'\nNORTH_KEY\n")
        said = hang_up(gateway, tmp_path, gateway.config)
        assert f"environment_file: '{variables}': line 2: expected NAME=value" in said
        variables.write_text("export SOUTH_KEY='upstream-secret-south'\n")
        variables.chmod(0o600)
        accounts = [account("south", south) | {"key": "${SOUTH_KEY}"}]
        said = hang_up(gateway, tmp_path, {**gateway.config, "accounts": accounts})
        assert "configuration 2 is in force" in said
        assert "can read" not in said
        completed(gateway.connect().turn(model="m", input=[user("two")]))
        assert south.requests[-1].header("authorization") == "Bearer upstream-secret-south"
        assert "upstream-secret" not in gateway.log()
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
