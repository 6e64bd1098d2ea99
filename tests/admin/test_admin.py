"""The admin side over its real ``Site``, in memory: what it shows, to whom, and how."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactorClock, StringTransport

from gateway.admin.resource import AdminSite
from gateway.admin.status import Status
from gateway.config import Settings
from gateway.downstream.admission import Admission
from gateway.downstream.websocket import ResponsesFactory
from gateway.tenants.tenants import Tenants
from tests.support.events import text_item, turn_events, user
from tests.turn.fakes import World

Answer = tuple[int, dict[str, str], bytes]


class Admin:
    def __init__(self, token: str | None = None, accounts: int = 2) -> None:
        self.reactor = MemoryReactorClock()
        self.world = World(accounts)
        self.admission = Admission(100)
        self.door = ResponsesFactory(
            self.reactor,
            self.world.environment,
            Settings(),
            Tenants(Settings().keys, self.world.clock.seconds),
            self.admission,
        )
        status = Status(self.world.environment, self.door, self.world.clock.seconds)
        self.site = AdminSite(status, token, self.reactor)
        self.site.startFactory()

    def ask(self, path: str, *headers: str, method: str = "GET") -> Answer:
        channel = self.site.buildProtocol(None)
        transport = StringTransport()
        channel.makeConnection(transport)
        lines = [f"{method} {path} HTTP/1.1", "host: x", "content-length: 0", *headers, "", ""]
        channel.dataReceived("\r\n".join(lines).encode())
        head, _, body = transport.value().partition(b"\r\n\r\n")
        status, *rest = head.decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in rest)
        return int(status.split()[1]), fields, body

    def json(self, path: str, *headers: str) -> Any:
        status, fields, body = self.ask(path, *headers)
        assert status == 200, f"{path} answered {status}: {body!r}"
        assert fields["content-type"] == "application/json"
        assert fields["cache-control"] == "no-store"
        return json.loads(body)


def test_it_lives() -> None:
    assert Admin().json("/livez") == {"status": "alive"}


def test_it_is_ready_until_it_stops() -> None:
    admin = Admin()
    assert admin.json("/readyz") == {"status": "ready"}
    admin.admission.drain(lambda: None)
    status, _, body = admin.ask("/readyz")
    assert (status, json.loads(body)) == (503, {"status": "draining"})
    assert admin.ask("/livez")[0] == 200, "a gateway that finishes its turns is not dead"


def test_the_status_shows_accounts_turns_and_ledger() -> None:
    admin = Admin()
    admin.world.completed([user("hi")], turn_events([text_item()], "resp_1"))
    admin.world.clock.advance(90)
    shown = admin.json("/status")
    assert shown["uptime_seconds"] == 90
    assert (shown["connections"], shown["turns_in_flight"]) == (0, 0)
    assert shown["turns"] == {"completed": 1}
    assert [account["name"] for account in shown["accounts"]] == ["a", "b"]
    first = shown["accounts"][0]
    assert (first["turns"], first["failures"], first["in_flight"]) == (1, 0, 0)
    assert first["continuity"] == {
        "setting": "auto",
        "learned": {"store": "unknown", "no_store": "unknown"},
    }
    assert shown["ledger"]["responses"] == 1


def test_the_last_turns_are_shown_without_content_or_keys() -> None:
    admin = Admin()
    for number in range(2):
        admin.world.completed([user("my wish")], turn_events([text_item()], f"resp_{number}"))
    _, _, body = admin.ask("/status/turns")
    turns = json.loads(body)["turns"]
    assert [turn["response_id"] for turn in turns] == ["resp_0", "resp_1"]
    assert turns[0]["attempts"][0]["outcome"] == "completed"
    assert b"wish" not in body
    assert b"sk-" not in body


@pytest.mark.parametrize("path", ["/status", "/status/turns"])
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong", "Basic t0ken", "t0ken"])
def test_the_token_is_asked_for(path: str, header: str | None) -> None:
    headers = [] if header is None else [f"authorization: {header}"]
    status, fields, body = Admin("t0ken").ask(path, *headers)
    assert (status, fields["www-authenticate"]) == (401, "bearer")
    assert "error" in json.loads(body)
    assert b"t0ken" not in body


def test_with_the_token_all_is_shown_and_health_needs_none() -> None:
    admin = Admin("t0ken")
    assert "accounts" in admin.json("/status", "authorization: bearer t0ken")
    assert admin.json("/status/turns", "authorization: Bearer  t0ken ") == {"turns": []}
    assert admin.ask("/livez")[0] == 200
    assert admin.ask("/readyz")[0] == 200


@pytest.mark.parametrize(
    "path", ["/", "/nothing", "/status/nothing", "/livez/nothing", "/v1/responses"]
)
def test_there_is_nothing_else(path: str) -> None:
    assert Admin().ask(path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/status", "/status/turns"])
def test_it_can_only_be_read(method: str, path: str) -> None:
    assert Admin().ask(path, method=method)[0] in (405, 501)


def test_a_head_has_no_body() -> None:
    status, fields, body = Admin().ask("/livez", method="HEAD")
    assert (status, body) == (200, b"")
    assert fields["content-type"] == "application/json"


def test_a_bug_shows_nothing_of_the_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    admin = Admin()
    broken: Callable[[], Any] = {}.popitem
    monkeypatch.setattr(admin.site.resource.children[b"livez"], "_produce", broken)
    status, _, body = admin.ask("/livez")
    assert status == 500
    assert b"KeyError" not in body
