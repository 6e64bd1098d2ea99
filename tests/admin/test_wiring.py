"""The admin side of a whole gateway: its listener, its file, and what a reload changes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import txaio
from twisted.internet.testing import MemoryReactorClock

from gateway.admin.site import AdminSite
from gateway.tap import Options, TwistdService
from tests.admin.stage import Answer, Client

FILE = """
listen: "tcp:8080:interface=127.0.0.1"
admin: {listen: "tcp:8081:interface=127.0.0.1", token: "%s-secret", hosts: [gateway.internal]}
log: {level: %s}
state: {store: memory}
accounts:
  - {name: primary, base_url: "https://api.example/v1", key: "sk-secret", proxy: "http://user:pass@proxy.example:1"}
"""


class Gateway:
    def __init__(self, path: Path, reactor: MemoryReactorClock) -> None:
        self.path = path
        self.write("first")
        options = Options()
        options.parseOptions(["--config", str(path)])
        self.service = TwistdService(options, reactor)
        self.service.threshold.level = "info"
        super(TwistdService, self.service).startService()
        factories = [server[1] for server in reactor.tcpServers]
        self.site: Any = next(each for each in factories if isinstance(each, AdminSite))

    def write(self, token: str, level: str = "info") -> None:
        self.path.write_text(FILE % (token, level))

    def ask(self, path: str, token: str = "first", method: str = "GET", host: str = "") -> Answer:
        client = Client(self.site)
        client.sends(
            f"{method} {path} HTTP/1.1\r\nhost: {host or 'localhost'}\r\ncontent-length: 0\r\n"
            f"authorization: Bearer {token}-secret\r\n\r\n".encode()
        )
        answer = client.answer
        client.leaves()
        return answer


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    reactor = MemoryReactorClock()
    monkeypatch.setattr(txaio.config, "loop", reactor)
    gateway = Gateway(tmp_path / "gateway.yaml", reactor)
    yield gateway
    gateway.service.stopService()


def test_the_configuration_is_shown_with_its_origins_and_without_its_secrets(
    gateway: Gateway,
) -> None:
    answer = gateway.ask("/status/config")
    settings = {each["path"]: (each["value"], each["origin"]) for each in answer.json["settings"]}
    assert settings["admin.hosts"] == (["gateway.internal"], "file")
    assert settings["routing.strategy"] == ("round-robin", "default")
    assert answer.json["source"] == str(gateway.path)
    for path in ("/status/config", "/status/accounts", "/status", "/status/memory", "/metrics"):
        body = gateway.ask(path).body
        for secret in (b"sk-secret", b"first-secret", b"user:pass"):
            assert secret not in body, f"{path} shows {secret!r}"


def test_a_reload_takes_effect_on_the_admin_side_itself(gateway: Gateway) -> None:
    gateway.write("second", "warn")
    assert gateway.ask("/admin/reload", "first", "POST").status == 200
    shown = gateway.ask("/status/config", "second")
    assert (shown.json["generation"], shown.json["log_level"]) == (2, "warn")
    settings = {each["path"]: each["value"] for each in shown.json["settings"]}
    assert settings["log.level"] == "warn"
    assert gateway.ask("/status", "first").status == 401


def test_a_rejected_reload_is_told_and_changes_nothing(gateway: Gateway) -> None:
    gateway.path.write_text("accounts: 5")
    answer = gateway.ask("/admin/reload", "first", "POST")
    assert answer.status == 422
    assert "accounts: expected a list" in answer.json["error"]
    status = gateway.ask("/status").json
    assert (status["generation"], status["state"]) == (1, "degraded")
    assert "accounts: expected a list" in status["last_rejected_reload"]["error"]
    settings = {
        each["path"]: each["value"] for each in gateway.ask("/status/config").json["settings"]
    }
    assert settings["accounts[0].name"] == "primary", "what is shown is not what is in force"
    gateway.write("first")
    assert gateway.ask("/admin/reload", "first", "POST").status == 200
    assert gateway.ask("/status").json["last_rejected_reload"] is None


def test_the_configured_name_of_the_admin_side_is_served(gateway: Gateway) -> None:
    assert gateway.ask("/livez", host="gateway.internal").status == 200
    assert gateway.ask("/livez", host="evil.example").status == 421


def test_a_page_is_shown_to_browsers(gateway: Gateway) -> None:
    client = Client(gateway.site)
    client.sends(b"GET /status HTTP/1.1\r\nhost: localhost\r\naccept: text/html\r\n\r\n")
    assert client.answer.status == 401
    assert b'name="token"' in client.answer.body
    client.leaves()
