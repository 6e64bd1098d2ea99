"""Request logs of a real gateway: every kind of request, no secret, a disk that takes nothing."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_reload import hang_up, wait_for
from tests.support.checks import completed
from tests.support.events import error_body, user
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e

MARK = "<hidden>"


class Scene:
    """Two accounts and a gateway that records everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.directory = folder / "requests"
        self.north, self.south = Upstream(), Upstream()
        self.gateway = Gateway(
            folder,
            {
                "accounts": [account("north", self.north), account("south", self.south)],
                "routing": {"strategy": "fill-first"},
                "log": {
                    "content": {
                        "directory": str(self.directory),
                        "keys": ["lap*"],
                        "redact": ["x-company-*", "ssn"],
                    }
                },
            },
        )

    def files(self) -> list[Path]:
        return sorted(self.directory.glob("*")) if self.directory.exists() else []

    def recorded(self, number: int) -> list[Any]:
        """The lines of the file of that number, once its turn has ended."""

        def is_whole() -> bool:
            files = self.files()
            return len(files) >= number and b'"kind":"end"' in files[number - 1].read_bytes()

        wait_for(is_whole)
        text = self.files()[number - 1].read_text()
        return [json.loads(line) for line in text.splitlines()]

    def http(self, **more: Any) -> HttpClient:
        return HttpClient(self.gateway.port, **more)

    def stop(self) -> None:
        self.gateway.stop()
        self.north.stop()
        self.south.stop()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    try:
        yield made
    finally:
        made.stop()


def bodies(lines: list[Any], kind: str) -> list[Any]:
    return [line["body"] for line in lines if line["kind"] == kind]


def limited(exchange: Exchange) -> None:
    """A refusal that quotes the account's key."""
    error = error_body("rate_limit_exceeded", "too fast, upstream-secret-north")
    exchange.json(429, error, {"Retry-After": "1", "Set-Cookie": "crumbs=of-the-upstream"})


def chat(exchange: Exchange) -> None:
    exchange.json(200, {"id": "chat_1", "choices": [], "usage": {"total_tokens": 3}})


def test_every_kind_of_request_is_recorded_without_secrets(scene: Scene) -> None:
    scene.north.queue(limited)
    client = scene.gateway.connect()
    events = client.turn(
        model="m", input=[user("over a socket, key-laptop")], metadata={"ssn": "123-45-6789"}
    )
    completed(events)
    lines = scene.recorded(1)
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "request"
    assert [line["account"] for line in lines if line["kind"] == "attempt"] == ["north", "south"]
    assert [line["status"] for line in lines if line["kind"] == "answer"] == [429, 200]
    assert bodies(lines, "request")[0]["metadata"] == {"ssn": MARK}
    assert bodies(lines, "to_client")[-1]["type"] == "response.completed"
    assert len(bodies(lines, "to_client")) == len(events)
    assert kinds.count("sent") == 2
    assert kinds[-1] == "end"

    secret = [("X-Company-User", "somebody-of-us"), ("Cookie", "session=crumbs-crumbs")]
    answer = scene.http().create(secret, input="over http key-laptop", stream=True)
    assert answer.status == 200
    lines = scene.recorded(2)
    (head,) = [line for line in lines if line["kind"] == "head"]
    assert (head["status"], head["headers"]["x-request-id"]) == (
        200,
        answer.headers["x-request-id"],
    )
    assert lines[0]["headers"]["authorization"] == MARK
    assert lines[0]["headers"]["x-company-user"] == MARK
    assert bodies(lines, "request")[0]["input"] == f"over http {MARK}"
    assert len(bodies(lines, "to_client")) == len(answer.events)

    scene.south.queue(chat)
    scene.north.queue(chat)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "chat"}]}).encode()
    assert scene.http().ask("POST", "/v1/chat/completions", body).status == 200
    lines = scene.recorded(3)
    assert bodies(lines, "from_account")[0]["id"] == "chat_1"
    assert bodies(lines, "attempt")[0]["messages"] == [{"role": "user", "content": "chat"}]

    response_id = completed(events)["id"]
    scene.south.queue(
        lambda exchange: exchange.json(200, {"id": response_id, "object": "response"})
    )
    stored = scene.http().ask("GET", f"/v1/responses/{response_id}?api_key=in-the-query")
    assert stored.status == 200
    lines = scene.recorded(4)
    assert lines[0]["path"] == f"/v1/responses/{response_id}?api_key={MARK}"
    assert bodies(lines, "from_account") == [{"id": response_id, "object": "response"}]

    completed(scene.gateway.connect(key="key-desk").turn(model="m", input=[user("not this key")]))
    assert len(scene.files()) == 4
    everything = b"".join(file.read_bytes() for file in scene.files())
    for word in (
        *scene.gateway.secrets(),
        *("123-45-6789", "somebody-of-us", "crumbs", "in-the-query", "not this key"),
    ):
        assert word.encode() not in everything, f"{word} is in a file"
    assert stat.S_IMODE(scene.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in scene.files()} == {0o600}


def test_a_disk_that_takes_nothing_is_one_line_and_no_turn_stops(scene: Scene) -> None:
    scene.directory.write_text("a file in place of the directory")
    client = scene.gateway.connect()
    for number in range(5):
        completed(client.turn(model="m", input=[user(f"turn {number}")]))
    wait_for(lambda: "request logs cannot be written" in scene.gateway.log())
    assert scene.gateway.log().count("request logs cannot be written") == 1
    admin = HttpClient(scene.gateway.admin_port)

    def alarms() -> str:
        return str(admin.ask("GET", "/status").json["alarms"])

    wait_for(lambda: "no request log is written" in alarms())
    scene.directory.unlink()
    hang_up(scene.gateway, scene.folder, scene.gateway.config)
    completed(client.turn(model="m", input=[user("again")]))
    assert bodies(scene.recorded(1), "request")[0]["input"] == [user("again")]
    wait_for(lambda: "no request log is written" not in alarms())


def test_a_reload_switches_it_off_and_on(scene: Scene) -> None:
    off = {**scene.gateway.config, "log": {"level": "info"}}
    hang_up(scene.gateway, scene.folder, off)
    client = scene.gateway.connect()
    completed(client.turn(model="m", input=[user("unseen")]))
    said = hang_up(scene.gateway, scene.folder, scene.gateway.config)
    assert "log.content" in said
    assert "restart" not in said
    completed(client.turn(model="m", input=[user("seen")]))
    assert bodies(scene.recorded(1), "request")[0]["input"] == [user("seen")]
    assert len(scene.files()) == 1
