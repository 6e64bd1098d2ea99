"""Request logs of several workers: one page asks for them, shows them and stops them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_reload import wait_for
from tests.support.checks import completed
from tests.support.events import user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.ports import free_port
from tests.support.upstream import Upstream

pytestmark = pytest.mark.e2e

TOKEN = "token-of-the-operator"
PATIENCE = 60.0


def test_a_key_is_recorded_in_every_worker_and_read_at_the_one_admin_side(tmp_path: Path) -> None:
    upstream, admin_port = Upstream(), free_port()
    gateway = Gateway(
        tmp_path,
        {
            "accounts": [account("north", upstream)],
            "workers": 2,
            "admin": {"listen": f"tcp:{admin_port}:interface=127.0.0.1", "token": TOKEN},
            "log": {"content": {"directory": str(tmp_path / "requests"), "keys": []}},
        },
    )

    def ask(path: str) -> Any:
        return HttpClient(admin_port, key=TOKEN).ask("GET", path).json

    def post(path: str, body: bytes) -> int:
        headers = [("Content-Type", "application/json")]
        return HttpClient(admin_port, key=TOKEN).ask("POST", path, body, headers).status

    def both_ready() -> bool:
        return gateway.log().count(") is ready") == 2

    try:
        wait_for(both_ready, PATIENCE)
        assert post("/admin/record", b'{"key": "laptop"}') == 200
        for number in range(8):
            completed(gateway.connect().turn(model="m", input=[user(f"turn {number}")]))
        wait_for(lambda: len(ask("/status/recordings")["files"]) == 8, PATIENCE)
        shown = ask("/status/recordings")
        assert [(each["what"], each["name"]) for each in shown["recorded"]] == [("key", "laptop")]
        assert shown["turns"] == 8, "the turns of all workers"
        recorded = [turn["recording"] for turn in ask("/status/turns")["turns"]]
        assert sorted(recorded) == sorted(each["name"] for each in shown["files"])
        timeline = ask(f"/status/recordings/{recorded[0]}")
        assert timeline["steps"][0]["kind"] == "request"
        assert post("/admin/record/stop", b'{"key": "laptop"}') == 200
        completed(gateway.connect().turn(model="m", input=[user("no longer")]))
        assert len(ask("/status/recordings")["files"]) == 8
        assert ask("/status/recordings")["recorded"] == []
    finally:
        gateway.stop()
        upstream.stop()
