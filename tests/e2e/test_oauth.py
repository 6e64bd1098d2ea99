"""Accounts with refresh tokens: the gateway as its own process, a real OAuth server (Authlib's),
and the simulator or a scripted upstream that take only the access tokens which that one issued.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from simulator import SimulatedAccount, Simulator
from tests.credentials.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer
from tests.simulator.running import RunningSimulator
from tests.support.checks import completed
from tests.support.events import user
from tests.support.gateway import Gateway
from tests.support.upstream import Exchange, Upstream

pytestmark = pytest.mark.e2e

SECONDS = 20.0


def account(server: OAuthServer, base_url: str, token_file: Path, **oauth: Any) -> dict[str, Any]:
    """An `accounts:` entry."""
    return {
        "name": "subscription",
        "base_url": base_url,
        "oauth": {
            "token_url": server.url,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "token_file": str(token_file),
            **oauth,
        },
    }


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {SECONDS:g} seconds for {what}"
        time.sleep(0.02)


def check_no_secrets(gateway: Gateway, server: OAuthServer) -> None:
    shown = [secret for secret in server.secrets if secret in gateway.log()]
    assert shown == [], "the gateway's log shows secrets"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


@pytest.fixture
def server() -> Iterator[OAuthServer]:
    with OAuthServer() as running:
        yield running


# --- a conversation over expiries ------------------------------------------------------------


class Guarded(Simulator):
    """A simulator that takes the access tokens of an OAuth server for its one account's key."""

    def __init__(self, server: OAuthServer, *given: Any, **options: Any) -> None:
        self._server = server
        super().__init__(*given, **options)

    def engine_of_key(self, key: str) -> Any:
        accepted = self._server.accepts(key)
        return super().engine_of_key(self.accounts[0].key) if accepted else None

    @property
    def refused(self) -> int:
        """Requests that were answered 401."""
        return sum(entry.status == 401 for entry in self.requests)


@pytest_twisted.ensureDeferred
async def test_a_conversation_goes_on_when_its_tokens_end(
    tmp_path: Path, token_file: Path, server: OAuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "tests.simulator.running.Simulator", lambda *given, **more: Guarded(server, *given, **more)
    )
    running = RunningSimulator(accounts=[SimulatedAccount("only")])
    try:
        await deferToThread(_converse, tmp_path, token_file, server, running)
    finally:
        await running.stop()


def _converse(
    folder: Path, token_file: Path, server: OAuthServer, running: RunningSimulator
) -> None:
    simulator: Any = running.simulator
    first = server.log_in()
    entry = account(server, running.service.base_url(), token_file, refresh_token=first)
    gateway = Gateway(folder, {"accounts": [entry]})
    try:
        client = gateway.connect()
        parent: str | None = None

        def turn(number: int) -> None:
            nonlocal parent
            events = client.turn(
                model="gpt-5.5", input=[user(f"turn {number}")], previous_response_id=parent
            )
            parent = completed(events)["id"]

        # The first token is asked for; it is good for four seconds.
        server.lifetime = 4
        turn(1)
        assert (server.renewals, simulator.refused) == (1, 0)
        # It ended by itself: nobody upstream sees it again.
        before = server.newest.access_token
        until(lambda: not server.accepts(before), "the end of an access token")
        server.lifetime = 3600
        turn(2)
        assert (server.renewals, simulator.refused) == (2, 0)
        # This one is young; what is wrong with it, a second one would have, too.  Let it age.
        until(lambda: time.time() > server.newest.expires_at - 3600 + 10.5, "an older token")
        turn(3)
        # It is ended before its time, in the middle of the conversation: one 401, one renewal.
        server.end_access_tokens()
        turn(4)
        assert (server.renewals, simulator.refused) == (3, 1)
        turn(5)
        assert (server.renewals, simulator.refused) == (3, 1)

        answered = [entry for entry in simulator.requests if entry.outcome == "completed"]
        assert len(answered) == 5
        # Refresh tokens rotated: those of before are void, the file has the newest.
        assert _trade_in(server, first) == (400, "invalid_grant")
        held = json.loads(token_file.read_text())
        assert held["refresh_token"] == server.newest.refresh_token
        assert held["access_token"] == server.newest.access_token
        assert token_file.stat().st_mode & 0o777 == 0o600
    finally:
        gateway.stop()
    check_no_secrets(gateway, server)


def _trade_in(server: OAuthServer, refresh_token: str) -> tuple[int, str]:
    pair = base64.b64encode(f"{CLIENT_ID}:{CLIENT_SECRET}".encode()).decode()
    data = f"grant_type=refresh_token&refresh_token={refresh_token}".encode()
    request = Request(server.url, data, {"authorization": f"Basic {pair}"})
    with pytest.raises(HTTPError) as refused, urlopen(request, timeout=SECONDS):
        pass
    return refused.value.code, json.loads(refused.value.read())["error"]


# --- many 401s -----------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_401s_at_once_are_one_renewal(
    workers: int, tmp_path: Path, token_file: Path, server: OAuthServer
) -> None:
    sessions = 20
    refresh_token = server.log_in()
    ended = {"refresh_token": refresh_token, "access_token": "access-of-yesterday"}
    token_file.write_text(json.dumps({**ended, "expires_at": time.time() + 3600}))
    everybody = threading.Barrier(sessions, timeout=SECONDS)
    refused: list[str] = []

    def guarded(exchange: Exchange) -> None:
        token = (exchange.request.header("authorization") or "").removeprefix("Bearer ")
        if server.accepts(token):
            exchange.answer()
            return
        refused.append(token)
        everybody.wait()  # all are under way with the old token
        exchange.json(401, {"error": {"message": "Expired.", "code": "token_expired"}})

    upstream = Upstream(guarded)
    accounts = [account(server, upstream.base_url, token_file)]
    gateway = Gateway(tmp_path, {"accounts": accounts, "workers": workers})
    try:
        clients = [gateway.connect() for _ in range(sessions)]
        for client in clients:
            client.create(model="gpt-5.5", input=[user("hello")])
        for client in clients:
            completed(client.until_terminal())
        assert refused == ["access-of-yesterday"] * sessions
        assert server.answers == [(200, None)], "expected one renewal for all"
        assert len(upstream.requests) == 2 * sessions, "each request goes out again once"
        assert json.loads(token_file.read_text())["refresh_token"] != refresh_token
    finally:
        gateway.stop()
        upstream.stop()
    check_no_secrets(gateway, server)


# --- a crash -------------------------------------------------------------------------------

# Python runs a module of this name first: the process ends between write and rename.
SITECUSTOMIZE = """
import os

_replace = os.replace

def replace(source, target):
    if os.path.basename(target) == "tokens.json":
        os._exit(9)
    _replace(source, target)

os.replace = replace
"""


def test_the_token_file_survives_a_crash_between_write_and_rename(
    tmp_path: Path, token_file: Path
) -> None:
    with OAuthServer(lenient=True) as server:
        upstream = Upstream()
        token_file.write_text(json.dumps({"refresh_token": server.log_in()}))
        before = token_file.read_bytes()
        entry = account(server, upstream.base_url, token_file)
        injected = tmp_path / "injected"
        injected.mkdir()
        (injected / "sitecustomize.py").write_text(SITECUSTOMIZE)
        gateway = Gateway(tmp_path, {"accounts": [entry]}, {"PYTHONPATH": str(injected)})
        client = gateway.connect()
        client.create(model="gpt-5.5", input=[user("hello")])
        assert gateway.process.wait(SECONDS) == 9, gateway.log()
        gateway.close_clients()

        assert upstream.requests == [], "the access token was used before it was in the file"
        assert server.renewals == 1
        assert token_file.read_bytes() == before
        (left,) = tmp_path.glob(".tokens.json.new-*")
        assert left.stat().st_mode & 0o777 == 0o600
        long_ago = time.time() - 61
        os.utime(left, (long_ago, long_ago))

        again = Gateway(tmp_path, {"accounts": [entry]})
        try:
            completed(again.connect().turn(model="gpt-5.5", input=[user("hello")]))
            assert json.loads(token_file.read_text())["refresh_token"] == (
                server.newest.refresh_token
            )
            assert list(tmp_path.glob(".tokens.json.new-*")) == [], "expected it to be cleaned up"
        finally:
            again.stop()
            upstream.stop()
        check_no_secrets(again, server)
