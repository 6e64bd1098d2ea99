"""Builds the gateway out of its parts; the only place that wires them together."""

from __future__ import annotations

import gc
import os
import resource
import secrets
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from autobahn.websocket import USES_NVX
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.web.client import HTTPConnectionPool

from .accounts.account import Account
from .accounts.bindings import Bindings
from .accounts.pool import Pool
from .accounts.waiting import WaitingRoom
from .admin.resource import AdminSite
from .admin.status import Status
from .config import AccountSettings, Settings, SimulatorSettings
from .credentials.choose import credentials_for
from .downstream.admission import Admission
from .downstream.front import FrontFactory
from .downstream.http.responses import Responses
from .downstream.http.routes import Routes
from .downstream.http.site import HttpSite
from .downstream.http.table import endpoints
from .downstream.websocket import ResponsesFactory
from .ledger.memory import MemoryLedger
from .ledger.owners import OwnerRegister
from .ledger.seals import SealRegister
from .listening import CannotListen, DoorService, ListenerService
from .log import log_observer
from .options import Options
from .protocol.turn_state import TurnStates
from .simulator import SimulatedAccount, Simulator, SimulatorService
from .tenants.tenants import Tenants
from .turn.environment import TurnEnvironment
from .turn.journal import TurnJournal
from .upstream.client import http_client
from .upstream.egress import EgressPaths
from .upstream.http import HttpTimeouts, HttpUpstream

__all__ = ["Options", "makeService"]

_log = Logger(namespace="gateway.service")

#: Files the gateway may open, where the system lets it.
_OPEN_FILES = 1_048_576

_EXPIRY_SECONDS = 30.0

#: Pause between the events of a simulated answer, in seconds: fast, yet visibly streamed.
_SIMULATED_PAUSE = 0.005


class GatewayService(MultiService):
    """All of the gateway.

    :param settings: the configuration.
    :param reactor: clock, network and threads.
    :ivar environment: what turns work with.
    :ivar tenants: the client keys.
    :ivar admission: counts the clients of all doors.
    :ivar door: the factory of WebSocket connections.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self.settings = settings
        self._upstreams: list[HttpUpstream] = []
        self._paths = EgressPaths(reactor.seconds, settings.routing.cooldown_max_seconds)
        accounts = self._simulated(reactor) if not settings.accounts else self._real(reactor)
        ttl = settings.ledger.ttl_minutes * 60
        ledger = MemoryLedger(settings.ledger.max_bytes, ttl, reactor.seconds)
        routing = settings.routing
        bindings = Bindings(routing.max_bindings, routing.affinity_minutes * 60, reactor.seconds)
        waiting = WaitingRoom(reactor, routing.max_waiting)
        pool = Pool(accounts, bindings, routing)
        self.tenants = Tenants(settings.keys, reactor.seconds)
        pool.released = self.tenants.freed = waiting.wake
        self.environment = TurnEnvironment(
            clock=reactor,
            ledger=ledger,
            seals=SealRegister(),
            owners=OwnerRegister(reactor.seconds),
            pool=pool,
            waiting=waiting,
            limits=self.tenants,
            turn_states=TurnStates(secrets.token_bytes(32)),
            journal=TurnJournal(),
            hold_seconds=settings.session.hold_seconds,
            keepalive_seconds=settings.session.keepalive_seconds,
        )
        self.admission = Admission(settings.limits.max_connections)
        self.door = ResponsesFactory(
            reactor, self.environment, settings, self.tenants, self.admission
        )
        expiry = TimerService(_EXPIRY_SECONDS, self._forget_what_is_old)
        expiry.clock = reactor
        expiry.setServiceParent(self)
        if settings.admin.listen is not None:
            status = Status(self.environment, self.door, reactor.seconds)
            site = AdminSite(status, settings.admin.token, reactor)
            ListenerService(reactor, settings.admin.listen, site, "admin.listen").setServiceParent(
                self
            )
        self._door_service = DoorService(
            reactor,
            settings.listen,
            self._front(reactor),
            self.admission,
            settings.timeouts.shutdown_seconds,
        )
        self._door_service.setServiceParent(self)

    def stopService(self) -> Deferred[Any]:
        """Let clients finish first; only then take away what serves them."""
        stopped: Deferred[Any] = self._door_service.finish_turns()
        stopped.addCallback(lambda _: self.environment.waiting.stop())
        stopped.addCallback(lambda _: MultiService.stopService(self))
        stopped.addCallback(self._close_upstreams)
        return stopped

    def _front(self, reactor: Any) -> FrontFactory:
        """One listener for WebSocket and HTTP clients."""
        routes = Routes(endpoints(Responses(self.environment, self.admission)))
        site = HttpSite(reactor, routes, self.settings, self.tenants, self.admission, self.door)
        return FrontFactory(reactor, self.door, site, self.settings.timeouts.handshake_seconds)

    def _forget_what_is_old(self) -> None:
        self.environment.ledger.expire()
        self.environment.pool.bindings.expire()

    def _close_upstreams(self, _: object) -> Deferred[None]:
        closed = gatherResults([upstream.close() for upstream in self._upstreams])
        return closed.addCallback(lambda _: None)

    def _real(self, reactor: Any) -> list[Account]:
        return [
            self._account(reactor, each, partial(str, each.base_url))
            for each in self.settings.accounts
        ]

    def _simulated(self, reactor: Any) -> list[Account]:
        """Accounts of the built-in simulator, whose port is known once it listens."""
        wanted = self.settings.simulator or SimulatorSettings()
        simulated = [
            SimulatedAccount(f"simulated-{number}", mode=wanted.mode)
            for number in range(1, wanted.accounts + 1)
        ]
        simulator = Simulator(simulated, reactor, event_delay=_SIMULATED_PAUSE)
        service = SimulatorService(simulator, reactor)
        service.setServiceParent(self)
        return [
            self._account(
                reactor,
                AccountSettings(name=each.name, base_url="simulator", key=each.key),
                service.base_url,
            )
            for each in simulated
        ]

    def _account(self, reactor: Any, settings: AccountSettings, base_url: Any) -> Account:
        timeouts = self.settings.timeouts
        way = self._paths.egress(
            settings.proxy, settings.ca_file, settings.client_cert_file, settings.client_key_file
        )
        # Tokens are asked for so seldom that no connection is kept for it.
        unkept = HTTPConnectionPool(reactor, persistent=False)
        for_tokens = http_client(reactor, unkept, timeouts.connect_seconds, way)
        upstream = HttpUpstream(
            reactor,
            base_url,
            credentials_for(settings, reactor, for_tokens),
            HttpTimeouts(
                timeouts.connect_seconds, timeouts.first_byte_seconds, timeouts.idle_seconds
            ),
            way,
        )
        self._upstreams.append(upstream)
        cooldown_max = self.settings.routing.cooldown_max_seconds
        return Account(settings, upstream, reactor.seconds, cooldown_max, way)


class TwistdService(GatewayService):
    """The gateway under twistd: its log, and starts that fail in one line.

    :param twistd: twistd's own options.
    """

    def __init__(self, settings: Settings, reactor: Any, twistd: Mapping[str, Any]) -> None:
        super().__init__(settings, reactor)
        self._twistd = twistd

    def setServiceParent(self, parent: Any) -> None:
        """Take over the application's log, unless the operator chose an observer."""
        super().setServiceParent(parent)
        if isinstance(parent, Componentized) and not self._twistd.get("syslog"):
            observer = log_observer(self.settings.log, self._logfile())
            parent.setComponent(ILogObserver, observer)

    def startService(self) -> None:
        """Start, or say in one line why not."""
        _collect_rarely()
        _allow_open_files()
        if not USES_NVX:
            _log.warn("Autobahn's native code is missing: large messages will stop the gateway")
        try:
            super().startService()
        except CannotListen as error:
            self._give_up(f"responses-gateway: {error}")

    def _give_up(self, line: str) -> NoReturn:
        """End a start that failed the way twistd would, less the traceback.

        In the foreground the line goes to the terminal; a daemon hands it to the process
        that waits for its start, and to its log.
        """
        pidfile = self._twistd.get("pidfile")
        if pidfile and os.path.exists(pidfile):
            os.unlink(pidfile)
        status_pipe = self._twistd.get("statusPipe")
        if status_pipe is not None:
            os.write(status_pipe, b"1 " + line.encode())
            _log.error("{line}", line=line)
        else:
            print(line, file=sys.__stderr__)
        raise SystemExit(1)

    def _logfile(self) -> str | None:
        logfile = self._twistd.get("logfile")
        if logfile or self._twistd.get("nodaemon", True):
            return logfile or None
        return "twistd.log"


def _allow_open_files() -> None:
    """A connection takes two files while a turn runs; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # some systems call their limit infinite, and have one
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _OPEN_FILES)), hard))


def _collect_rarely() -> None:
    """Full collections stop every stream; what is loaded by now never needs one.

    A turn leaves some 35 objects in cycles: these thresholds let them grow to about 40 MB.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


def makeService(options: Options, reactor: Any = None) -> TwistdService:
    """What twistd runs; see :class:`~gateway.options.Options`."""
    if reactor is None:
        from twisted.internet import reactor
    return TwistdService(options.settings, reactor, options.parent or {})
