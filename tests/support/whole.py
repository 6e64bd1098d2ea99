"""All of the gateway on a reactor in memory: what it is made of, and a client that stays."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactorClock

from gateway.config import AccountSettings, Settings, StateSettings
from gateway.service import GatewayService

ACCOUNT = AccountSettings(name="a", base_url="http://upstream.test/v1", key="sk-a")


class NoPorts(MemoryReactorClock):
    """Somebody else has them all."""

    def listenTCP(self, port: int, *_: Any, **__: Any) -> Any:
        raise CannotListenError("127.0.0.1", port, OSError(98, "Address already in use"))


def settings(**about: Any) -> Settings:
    """Settings for a gateway on a reactor without threads, so that nothing is kept on disk."""
    return Settings(**{"accounts": (ACCOUNT,), "state": StateSettings(store="memory"), **about})


def stopped(gateway: GatewayService) -> list[object]:
    results: list[object] = []
    stopping: Deferred[Any] = gateway.stopService()
    stopping.addBoth(results.append)
    return results


class Client:
    """A guest that writes down what it is told."""

    def __init__(self, reactor: MemoryReactorClock) -> None:
        self.reactor = reactor
        self.drained: list[float] = []
        self.abandoned: list[float] = []

    def drain(self) -> None:
        self.drained.append(self.reactor.seconds())

    def abandon(self) -> None:
        self.abandoned.append(self.reactor.seconds())


def connected(reactor: MemoryReactorClock, gateway: GatewayService) -> Client:
    client = Client(reactor)
    gateway.limiter.enter(client)
    return client
