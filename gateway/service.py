"""Builds the gateway out of its parts; the only place that wires them together."""

from __future__ import annotations

import secrets
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gateway.admin.api import Api
from gateway.admin.auth import Access
from gateway.admin.prometheus import Metrics
from gateway.admin.running import Running
from gateway.admin.site import AdminSite
from gateway.api_keys.keys import Tenants
from gateway.config import AccountSettings, Settings, SimulatorSettings
from gateway.config.endpoints import is_loopback
from gateway.conversations.issuers import SealRegister
from gateway.conversations.owners import OwnerRegister
from gateway.conversations.store import MemoryLedger
from gateway.listening import DoorService, ListenerService
from gateway.log import LogThreshold
from gateway.metrics.collector import Observatory
from gateway.protocol.turn_state import TurnStates
from gateway.roster import Roster
from gateway.routing.bindings import Bindings
from gateway.routing.model_catalog import Catalogues
from gateway.routing.pool import Pool
from gateway.routing.wait_queue import WaitingRoom
from gateway.server.chat import Chat
from gateway.server.compact import Inputs
from gateway.server.connections import Admission
from gateway.server.front import FrontFactory
from gateway.server.http_site import HttpSite
from gateway.server.models import Models
from gateway.server.responses import Responses
from gateway.server.route_table import endpoints
from gateway.server.routes import Routes
from gateway.server.stored import Stored
from gateway.server.websocket_site import ResponsesFactory
from gateway.turn.context import TurnEnvironment
from gateway.turn.turn_log import TurnJournal
from simulator import SimulatedAccount, Simulator, SimulatorService

_log = Logger(namespace="gateway.service")

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
    :ivar whole: all of it, as the admin side sees it.
    :ivar threshold: of the log.
    """

    def __init__(self, settings: Settings, reactor: Any) -> None:
        super().__init__()
        self.settings = settings
        self._roster = Roster(reactor, settings)
        if settings.accounts:
            self._roster.arrange(settings)
        else:
            self._simulate(reactor)
        self.tenants = Tenants(settings.keys, reactor.seconds)
        self.environment = self._environment(reactor)
        limits = settings.limits
        self.admission = Admission(limits.max_connections, limits.max_incoming_bytes)
        self.door = ResponsesFactory(
            reactor, self.environment, settings, self.tenants, self.admission
        )
        self._responses = Responses(self.environment, self.admission)
        self._catalogues = Catalogues(reactor)
        self.threshold = LogThreshold(settings.log.level)
        self._open_admin_side(reactor)
        expiry = TimerService(_EXPIRY_SECONDS, self._forget_what_is_old)
        expiry.clock = reactor
        expiry.setServiceParent(self)
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
        stopped.addCallback(lambda _: self._catalogues.close())
        stopped.addCallback(lambda _: MultiService.stopService(self))
        stopped.addCallback(lambda _: self._roster.close())
        return stopped

    def _environment(self, reactor: Any) -> TurnEnvironment:
        """What turns work with."""
        settings, routing = self.settings, self.settings.routing
        bindings = Bindings(routing.max_bindings, routing.affinity_minutes * 60, reactor.seconds)
        waiting = WaitingRoom(reactor, routing.max_waiting)
        pool = Pool(self._roster.accounts, bindings, routing)
        pool.released = self.tenants.freed = waiting.wake
        ttl = settings.ledger.ttl_minutes * 60
        return TurnEnvironment(
            clock=reactor,
            ledger=MemoryLedger(settings.ledger.max_bytes, ttl, reactor.seconds),
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

    def _open_admin_side(self, reactor: Any) -> None:
        """What is counted, and who may see it and act."""
        admin = self.settings.admin
        figures = Observatory(
            reactor, self.environment, self.tenants, self.admission, self.door, self._catalogues
        )
        figures.setServiceParent(self)
        self.whole = Running(
            self.environment,
            self.tenants,
            self.admission,
            self.door,
            self.threshold,
            figures,
            lambda: self._responses.turns_running,
        )
        self._access = Access(
            admin.token, is_loopback(admin.listen or ""), admin.hosts, reactor.seconds
        )
        if admin.listen is None:
            return
        api = Api(self.whole, self._access, Metrics(self.whole, figures).render)
        listener = ListenerService(reactor, admin.listen, AdminSite(api, reactor), "admin.listen")
        listener.setServiceParent(self)

    def _front(self, reactor: Any) -> FrontFactory:
        """One listener for WebSocket and HTTP clients."""
        environment = self.environment
        routes = Routes(
            endpoints(
                self._responses,
                Stored(environment),
                Inputs(environment),
                Models(environment.pool, self._catalogues, self.tenants.may_use),
                Chat(environment),
            )
        )
        self._site = HttpSite(
            reactor, routes, self.settings, self.tenants, self.admission, self.door
        )
        return FrontFactory(
            reactor,
            self.door,
            self._site,
            self.settings.timeouts.handshake_seconds,
            self.admission,
        )

    def _forget_what_is_old(self) -> None:
        """Whatever one of them fails of, the others go on, and all do next time."""
        environment = self.environment
        for forget in (
            environment.ledger.expire,
            environment.pool.bindings.expire,
            self._roster.release_idle,
        ):
            try:
                forget()
            except Exception:
                _log.failure("what is old could not be forgotten")

    def arrange(self, settings: Settings, before: Settings) -> None:
        """Put changed settings into force; what they do not name stays as it is."""
        environment = self.environment
        gone = {account.name for account in self._roster.arrange(settings, before)}
        for name in gone - {account.name for account in self._roster.accounts}:
            environment.pool.bindings.forget_account(name)
        environment.pool.arrange(self._roster.accounts, settings.routing)
        environment.pool.bindings.arrange(
            settings.routing.max_bindings, settings.routing.affinity_minutes * 60
        )
        environment.waiting.max_waiting = settings.routing.max_waiting
        self.tenants.arrange(settings.keys)
        self._door_service.shutdown_seconds = settings.timeouts.shutdown_seconds
        self.admission.max_connections = settings.limits.max_connections
        self.admission.incoming.max_bytes = settings.limits.max_incoming_bytes
        self.door.arrange(settings)
        self._site.arrange(settings)
        self._access.arrange(settings.admin.token, settings.admin.hosts)
        self._arrange_log(settings.log.level, before.log.level)
        environment.waiting.wake()

    def _arrange_log(self, level: str, before: str) -> None:
        """Take a changed level; one that was set on the admin side outlasts other changes."""
        if level != before:
            self.threshold.level = level
        elif self.threshold.level != level:
            _log.info(
                "the log's level stays {kept}, as it was set on the admin side",
                kept=self.threshold.level,
            )

    def _simulate(self, reactor: Any) -> None:
        """Accounts of the built-in simulator, whose port is known once it listens."""
        wanted = self.settings.simulator or SimulatorSettings()
        simulated = [
            SimulatedAccount(f"simulated-{number}", mode=wanted.mode)
            for number in range(1, wanted.accounts + 1)
        ]
        simulator = Simulator(simulated, reactor, event_delay=_SIMULATED_PAUSE)
        service = SimulatorService(simulator, reactor)
        service.setServiceParent(self)
        self._roster.accounts += [
            self._roster.add(
                AccountSettings(
                    name=each.name, base_url="simulator", key=each.key, background=True
                ),
                service.base_url,
                self.settings.timeouts,
                self.settings.routing.cooldown_max_seconds,
            )
            for each in simulated
        ]
