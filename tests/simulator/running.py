"""A running simulator for the tests, and a client for it."""

from __future__ import annotations

import json
from typing import Any

import treq
from twisted.internet import reactor
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IResponse

from simulator import SimulatedAccount, Simulator, SimulatorService


class RunningSimulator:
    """A running simulator of one account a mode, and a client for it."""

    def __init__(self, clock: Any = reactor, **options: Any) -> None:
        accounts = options.pop("accounts", None) or [
            SimulatedAccount("stateful"),
            SimulatedAccount("other"),
            SimulatedAccount("stateless", mode="stateless"),
            SimulatedAccount("forgetful", mode="forgetful"),
        ]
        self.simulator = Simulator(accounts, clock, **options)
        self.service = SimulatorService(self.simulator, reactor)
        self.pool = HTTPConnectionPool(reactor, persistent=True)
        self.service.startService()

    async def stop(self) -> None:
        await self.pool.closeCachedConnections()
        await self.service.stopService()

    async def post(self, body: Any, account: str = "stateful", **more: Any) -> IResponse:
        return await self.request("POST", "/responses", account, json=body, **more)

    async def send(self, method: str, path: str, account: str = "stateful", **more: Any) -> Any:
        """A request to a path under the base URL; what it was answered, decoded."""
        response = await self.request(method, path, account, **more)
        return await response.json()

    async def request(
        self, method: str, path: str, account: str = "stateful", **more: Any
    ) -> IResponse:
        key = self.simulator.account(account).key
        headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
        url = self.service.base_url() + path
        return await treq.request(method, url, headers=headers, pool=self.pool, timeout=20, **more)

    async def create(self, body: Any, account: str = "stateful") -> Any:
        response = await self.post({"model": "m", **body}, account)
        return await response.json()

    async def events(self, body: Any, account: str = "stateful") -> list[dict[str, Any]]:
        response = await self.post({"model": "m", "stream": True, **body}, account)
        text = (await response.content()).decode()
        assert response.code == 200, text
        return parsed(text)


def parsed(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if line)
        if lines and lines["data"] != "[DONE]":
            found.append(json.loads(lines["data"]))
            assert lines["event"] == found[-1]["type"]
    return found


async def until(condition: Any, seconds: float = 10.0) -> None:
    """Wait until the condition holds."""
    deadline = reactor.seconds() + seconds
    while not condition():
        assert reactor.seconds() < deadline, "the condition never came true"
        await deferLater(reactor, 0.01)


class Reader(Protocol):
    """A client that reads a body when told to."""

    def __init__(self) -> None:
        self.received = 0
        self.over = False

    def dataReceived(self, data: bytes) -> None:
        self.received += len(data)

    def connectionLost(self, reason: Any = None) -> None:
        self.over = True
