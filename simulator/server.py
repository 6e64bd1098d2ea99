"""Serves a simulator over HTTP on a loopback port, as a twistd service."""

from __future__ import annotations

from typing import cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IReactorTCP, ITCPTransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel
from twisted.web.server import Site

from simulator.accounts import SimulatedAccount
from simulator.simulator import Simulator


class _Channel(HTTPChannel):
    """An HTTP connection that its site knows of, so that a stop can close it."""

    site: SimulatorSite

    # Clients send metadata headers of several KiB each.
    totalHeadersSize = 256 * 1024
    MAX_LENGTH = 256 * 1024

    def connectionMade(self) -> None:
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.site.channels.discard(self)
        super().connectionLost(reason)


class SimulatorSite(Site):
    """A site without an access log that keeps track of its connections."""

    noisy = False
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, simulator: Simulator) -> None:
        super().__init__(simulator.resource, reactor=simulator.clock, parsePOSTFormSubmission=False)
        self.channels: set[_Channel] = set()

    def log(self, request: http.Request) -> None:
        """Say nothing: the simulator has a request log of its own."""


class SimulatorService(Service):
    """Listens from `startService` on; the port is known as soon as that returns."""

    def __init__(
        self,
        simulator: Simulator,
        reactor: IReactorTCP,
        *,
        interface: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.simulator = simulator
        self._reactor = reactor
        self._interface = interface
        self._wanted_port = port
        self._site = SimulatorSite(simulator)
        self._listening: IListeningPort | None = None

    @property
    def port(self) -> int:
        """The port in use; RuntimeError while the service is not running."""
        if self._listening is None:
            raise RuntimeError("the simulator is not listening")
        return cast(int, self._listening.getHost().port)  # type: ignore[attr-defined]

    def base_url(self, account: SimulatedAccount | str | None = None) -> str:
        """The base URL of the account's service; its key tells it from others of that service."""
        known = self.simulator.account(account) if isinstance(account, str) else account
        prefix = self.simulator.prefixes[0] if known is None else self.simulator.prefix_of(known)
        return f"http://{self._interface}:{self.port}{prefix}"

    def startService(self) -> None:
        super().startService()
        self._listening = self._reactor.listenTCP(
            self._wanted_port,
            self._site,  # type: ignore[arg-type]
            interface=self._interface,
        )

    def stopService(self) -> Deferred[None]:
        super().stopService()
        listening, self._listening = self._listening, None
        self.simulator.abort()
        for channel in list(self._site.channels):
            cast(ITCPTransport, channel.transport).abortConnection()
        stopped = None if listening is None else listening.stopListening()
        return succeed(None) if stopped is None else stopped
