"""What one client, or one upstream, can make the gateway do at most (protocol.md §9)."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conformance.conftest import Rig, Stage
from tests.support.checks import assert_error, completed, output_text
from tests.support.gateway import Gateway, account
from tests.support.httpclient import HttpClient
from tests.support.upstream import Exchange
from tests.support.wsclient import Refused

pytestmark = pytest.mark.conformance

# --- requests ------------------------------------------------------------------------------

MANY = ",".join(f'"a{number}":1' for number in range(100_000))
INTRICATE = {
    "members": f'{{"type":"response.create","model":"m","input":"x",{MANY}}}',
    "the same member": '{"type":"response.create",' + '"a":1,' * 100_000 + '"model":"m"}',
    "nested lists": '{"type":"response.create","input":' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested objects": '{"type":"response.create","metadata":' + '{"a":' * 100_000 + "1"
    "" + "}" * 100_000 + "}",
}
PATHS = ["/responses", "/responses/compact", "/responses/input_tokens", "/chat/completions"]


@pytest.mark.parametrize("payload", INTRICATE.values(), ids=INTRICATE.keys())
def test_what_is_too_intricate_is_one_400_at_every_door(rig: Rig, payload: str) -> None:
    client = rig.connect()
    client.send(payload)
    assert_error(client.event(), 400)
    completed(client.turn())
    http = HttpClient(rig.gateway.port)
    for path in PATHS:
        answer = http.ask(path=f"/v1{path}", body=payload.encode())
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error"), path
    http.drop()
    assert len(rig.upstream.requests) == 1, "none of it went to an upstream"


# --- answers -------------------------------------------------------------------------------


Flood = Callable[[], Iterator[bytes]]


def endless_lines() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"x-a: b\r\n" * 100


def endless_line() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nx-a: "
    while True:
        yield b"b" * 1000


def endless_status() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 "
    while True:
        yield b"b" * 1000


def endless_interim() -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" * 10


FLOODS = [endless_lines, endless_line, endless_status, endless_interim]


@pytest.mark.parametrize("flood", FLOODS)
def test_a_head_without_end_is_dropped_and_the_turn_moves(stage: Stage, flood: Flood) -> None:
    def script(exchange: Exchange) -> None:
        for piece in flood():
            exchange.raw(piece)

    hostile, honest = stage.upstream(script), stage.upstream()
    gateway = stage.gateway(
        account("a", hostile), account("b", honest), routing={"strategy": "fill-first"}
    )
    assert output_text(gateway.connect().turn()) == "hello"
    (request,) = hostile.requests
    assert request.wait_gone(), "the connection was not dropped"
    assert len(gateway.log()) < 50_000, "each piece of it was logged"


# --- connections ---------------------------------------------------------------------------


def idle_connections(port: int, count: int) -> list[socket.socket]:
    """Connections that say nothing."""
    return [socket.create_connection(("127.0.0.1", port), timeout=15) for _ in range(count)]


def close(connections: list[socket.socket]) -> None:
    for each in connections:
        each.close()


def probe(gateway: Gateway, path: str) -> int:
    client = HttpClient(gateway.admin_port, key=None)
    status = client.ask("GET", path).status
    client.drop()
    return status


def answers_probes(gateway: Gateway) -> bool:
    """Whether it does now; the kernel's queue may still be full of others."""
    with contextlib.suppress(OSError, AssertionError):
        return all(probe(gateway, path) == 200 for path in ("/livez", "/metrics"))
    return False


def alarms(gateway: Gateway) -> str:
    client = HttpClient(gateway.admin_port, key=None)
    answer = client.ask("GET", "/status", headers=[("Accept", "application/json")])
    client.drop()
    return json.dumps(answer.json["alarms"])


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.1)


def status_of_upgrade(gateway: Gateway) -> int:
    """How one more client is answered."""
    try:
        return gateway.connect().status
    except Refused as refused:
        return refused.status


def test_probes_and_turns_are_answered_beside_silent_connections(stage: Stage) -> None:
    gateway = stage.gateway(account("solo", stage.upstream()))
    silent = idle_connections(gateway.admin_port, 150) + idle_connections(gateway.port, 150)
    for path in ("/livez", "/readyz", "/metrics"):
        assert probe(gateway, path) == 200, path
    completed(gateway.connect().turn())
    close(silent)


def test_when_files_run_short_turns_go_on_and_it_is_said_once(stage: Stage) -> None:
    gateway = stage.gateway(account("solo", stage.upstream()))
    inside = gateway.connect()
    completed(inside.turn())
    used = len(os.listdir(f"/proc/{gateway.process.pid}/fd"))
    resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (used + 60, used + 60))
    answers = [status_of_upgrade(gateway) for _ in range(100)]
    assert answers.count(503) > 10
    assert set(answers) == {101, 503}
    completed(inside.turn())
    silent = idle_connections(gateway.admin_port, 60) + idle_connections(gateway.port, 60)
    wait_until(lambda: answers_probes(gateway), "probes are not answered")
    wait_until(lambda: "clients are turned away" in alarms(gateway), "there is no alarm")
    close(silent)
    log = gateway.log()
    assert log.count("clients are turned away") == 1
    assert "EMFILE" not in log
    gateway.close_clients()
    wait_until(lambda: status_of_upgrade(gateway) == 101, "nobody is let in any more")


def test_where_no_file_can_be_opened_at_all_it_goes_on_afterwards(stage: Stage) -> None:
    gateway = stage.gateway(account("solo", stage.upstream()))
    pid = gateway.process.pid
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    inside = gateway.connect()
    completed(inside.turn())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (4, hard))
    silent = idle_connections(gateway.port, 30) + idle_connections(gateway.admin_port, 30)
    wait_until(lambda: "clients are turned away" in gateway.log(), "nobody says why")
    completed(inside.turn())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    close(silent)
    completed(gateway.connect().turn())
    assert probe(gateway, "/readyz") == 200
    assert gateway.log().count("clients are turned away") == 1
    assert "EMFILE" not in gateway.log()
