"""Tokens over the link: a worker asks seldom, and has what its supervisor has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from gateway.credentials.linked import (
    _GRACE_SECONDS,
    _LEASE_SECONDS,
    LinkedCredentials,
    TokenServer,
)
from gateway.protocol.errors import ApiError
from gateway.worker_link import Link

PROBLEM = ApiError.bad_gateway("The refresh token was refused.", "upstream_unauthorized")


class Renewing:
    """The credentials of the supervisor."""

    def __init__(self) -> None:
        self.token = 1
        self.asked = 0
        self.waiting: Deferred[Any] | None = None
        self.fails = False

    def headers(self) -> Mapping[str, str] | Deferred[Mapping[str, str]]:
        self.asked += 1
        if self.fails:
            return fail(PROBLEM)
        if self.waiting is not None:
            return self.waiting
        return {"authorization": f"Bearer token-{self.token}"}

    def refused(self, used: Mapping[str, str]) -> bool | Deferred[bool]:
        if used["authorization"] == f"Bearer token-{self.token}":
            self.token += 1
        return succeed(not self.fails)

    def secrets(self) -> list[str]:
        return [f"token-{self.token}"]

    def close(self) -> None:
        pass


class Stage:
    """Two workers and their supervisor."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.keeper = Renewing()
        server = TokenServer({"tokens": self.keeper}.get)
        self.ends: list[tuple[Link, StringTransport]] = []
        self.workers = [self._worker(server) for _ in range(2)]

    def _worker(self, server: TokenServer) -> LinkedCredentials:
        worker, supervisor = Link(self.clock), Link(self.clock)
        transports = StringTransport(), StringTransport()
        worker.makeConnection(transports[0])
        supervisor.makeConnection(transports[1])
        server.serve(supervisor)
        self.ends += [(supervisor, transports[0]), (worker, transports[1])]
        return LinkedCredentials("tokens", worker, self.clock)

    def pump(self) -> None:
        for _ in range(4):
            for peer, transport in self.ends:
                data = transport.value()
                transport.clear()
                peer.dataReceived(data)

    def headers(self, worker: int = 0) -> list[Any]:
        found = results(self.workers[worker].headers())
        self.pump()
        return found


def results(value: Any) -> list[Any]:
    if not isinstance(value, Deferred):
        return [value]
    got: list[Any] = []
    value.addCallbacks(got.append, lambda failure: got.append(str(failure.value)))
    return got


def token(number: int) -> dict[str, str]:
    return {"authorization": f"Bearer token-{number}"}


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_an_answer_is_used_for_a_moment(stage: Stage) -> None:
    assert stage.headers() == [token(1)]
    assert stage.headers() == [token(1)]
    assert stage.keeper.asked == 1
    assert stage.workers[0].secrets() == ["token-1"]
    stage.keeper.token = 2
    stage.clock.advance(_LEASE_SECONDS)
    assert stage.headers() == [token(2)]


def test_requests_share_a_question(stage: Stage) -> None:
    stage.keeper.waiting = Deferred()
    found = [results(stage.workers[0].headers()) for _ in range(3)]
    stage.pump()
    assert (found, stage.keeper.asked) == ([[], [], []], 1)
    stage.keeper.waiting.callback(token(7))
    stage.pump()
    assert found == [[token(7)]] * 3


def test_a_refusal_renews_the_token_once_for_all_workers(stage: Stage) -> None:
    assert stage.headers(0) == stage.headers(1) == [token(1)]
    changed = [results(worker.refused(token(1))) for worker in stage.workers]
    stage.pump()
    assert changed == [[True], [True]]
    assert stage.keeper.token == 2
    assert stage.headers(0) == stage.headers(1) == [token(2)]
    assert results(stage.workers[0].refused(token(1))) == [True], "it has another one already"


def test_the_error_of_a_renewal_is_the_request_s(stage: Stage) -> None:
    stage.keeper.fails = True
    assert stage.headers() == [str(PROBLEM)]
    refused = results(stage.workers[0].refused(token(1)))
    stage.pump()
    assert refused == [str(PROBLEM)]


def test_without_its_supervisor_a_worker_uses_the_last_token_for_a_while(stage: Stage) -> None:
    assert stage.headers() == [token(1)]
    for peer, _ in stage.ends:
        peer.connectionLost()
    stage.clock.advance(_LEASE_SECONDS)
    assert stage.headers() == [token(1)]
    assert results(stage.workers[0].refused(token(1))) == [False]
    stage.clock.advance(_GRACE_SECONDS)
    (error,) = stage.headers()
    assert "upstream_token_unavailable" in error


def test_a_request_that_was_given_up_disturbs_no_other(stage: Stage) -> None:
    first = stage.workers[0].headers()
    second = results(stage.workers[0].headers())
    assert isinstance(first, Deferred)
    first.addErrback(lambda _: None)
    first.cancel()
    stage.pump()
    assert second == [token(1)]
