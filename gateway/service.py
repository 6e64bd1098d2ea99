"""Builds the gateway from its parts, and applies changed settings."""

from __future__ import annotations

import os
import secrets
from functools import partial
from typing import Any

from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from gateway.account_registry import AccountRegistry
from gateway.admin.api import Api
from gateway.admin.auth import AccessControl
from gateway.admin.managed_gateway import ManagedProcess
from gateway.admin.prometheus import Metrics
from gateway.admin.running_gateway import RunningGateway
from gateway.admin.site import AdminSite
from gateway.admin.worker_answers import WorkerAnswers
from gateway.api_keys.keys import KeyRing
from gateway.config import AccountSettings, Settings, SimulatorSettings
from gateway.config.endpoints import is_inherited, is_loopback
from gateway.conversations.owners import MemoryIssuers, MemoryOwners
from gateway.conversations.store import MemoryStore
from gateway.credentials.linked import credentials_in_worker
from gateway.inheritance import LOCK, NOTHING, Descriptors, Inheritance, listener_name
from gateway.listening import ListenerService
from gateway.log import LogThreshold
from gateway.metrics.collector import MetricsCollector
from gateway.protocol.turn_state import TurnStateSigner
from gateway.request_log.request_log import RequestLog
from gateway.routing.affinity import MemoryBindings
from gateway.routing.model_catalog import ModelCatalog
from gateway.routing.router import AccountPool
from gateway.routing.wait_queue import WaitQueue
from gateway.server.chat import ChatCompletions
from gateway.server.connections import ConnectionLimiter
from gateway.server.drain import Drain
from gateway.server.forwarding import InputEndpoints, StoredResponses
from gateway.server.http_site import ClientSite, endpoints
from gateway.server.models import Models
from gateway.server.responses import Responses
from gateway.server.websocket import ResponsesFactory
from gateway.state.keeper import NoKeeper, StateKeeper, backend_for, lock_of
from gateway.turn.context import TurnServices
from gateway.turn.turn_log import TurnLog
from simulator import SimulatedAccount, Simulator, SimulatorService

_log = Logger(namespace="gateway.service")

_EXPIRY_SECONDS = 30.0

#: Pause between the events of a simulated answer, in seconds: fast, yet visibly streamed.
_SIMULATED_PAUSE = 0.005


class GatewayService(MultiService):
    """All of the gateway.

    :param settings: the configuration.
    :param reactor: clock, network and threads.
    :param inherited: from the process that started this one.
    :ivar inherited: the same.
    :ivar listeners: by their settings.
    :ivar turn_services: the parts that turns share.
    :ivar api_keys: the client keys.
    :ivar limiter: counts the connections of clients.
    :ivar websockets: the factory of WebSocket connections.
    :ivar drain: empties the gateway of clients.
    :ivar running_gateway: its parts, for the admin side.
    :ivar threshold: of the log.
    """

    def __init__(self, settings: Settings, reactor: Any, inherited: Inheritance = NOTHING) -> None:
        super().__init__()
        self.settings = settings
        self.inherited = inherited
        self.listeners: dict[str, ListenerService] = {}
        self._registry = AccountRegistry(
            reactor, settings, partial(credentials_in_worker, inherited.link)
        )
        if settings.accounts:
            self._registry.reconfigure(settings)
        else:
            self._simulate(reactor)
        self.api_keys = KeyRing(settings.keys, reactor.seconds)
        locks = inherited.of(LOCK)
        self._backend = backend = backend_for(
            settings.state, os.environ, reactor, locks[0] if locks else None, inherited.link
        )
        self._state: StateKeeper | NoKeeper = (
            NoKeeper()
            if backend is None
            else StateKeeper(reactor, settings.state, backend, lambda: self._registry.accounts)
        )
        self.turn_services = self._services(reactor)
        limits = settings.limits
        self.limiter = ConnectionLimiter(limits.max_connections, limits.max_incoming_bytes)
        self.websockets = ResponsesFactory(
            reactor, self.turn_services, settings, self.api_keys, self.limiter
        )
        timeouts = settings.timeouts
        self.drain = Drain(
            reactor,
            self.limiter,
            self.websockets,
            self.turn_services.turn_log,
            timeouts.shutdown_seconds,
            timeouts.drain_spread_seconds,
            timeouts.handover_seconds,
        )
        self._responses = Responses(self.turn_services, self.limiter)
        self._catalogues = ModelCatalog(reactor)
        self.threshold = LogThreshold(settings.log.level)
        self._start_admin(reactor)
        self._state.setServiceParent(self)
        expiry = TimerService(_EXPIRY_SECONDS, self._expire)
        expiry.clock = reactor
        expiry.setServiceParent(self)
        site = self._client_site(reactor)
        self.drain.stop_listening = self._listen(reactor, "listen", settings.listen, site).leave

    @property
    def descriptors(self) -> Descriptors:
        """The open files that a successor goes on with."""
        listening = {
            listener_name(setting, listener.endpoint): listener.descriptors
            for setting, listener in self.listeners.items()
        }
        return {**listening, LOCK: lock_of(self._backend)}

    def stopService(self) -> Deferred[Any]:
        """Let clients finish first, then stop the parts that serve them."""
        if is_inherited(self.settings.listen):
            self.drain.handed_over = True  # new clients wait in the socket for the next process
        stopped: Deferred[Any] = self.drain.finish()
        stopped.addCallback(lambda _: self.turn_services.waiting.stop())
        stopped.addCallback(lambda _: self._catalogues.close())
        stopped.addCallback(lambda _: self.turn_services.request_log.close())
        stopped.addCallback(lambda _: MultiService.stopService(self))
        stopped.addCallback(lambda _: self._registry.close())
        return stopped

    def _services(self, reactor: Any) -> TurnServices:
        """The parts that turns share."""
        settings, routing, state = self.settings, self.settings.routing, self._state
        bindings = MemoryBindings(
            routing.max_bindings, routing.affinity_minutes * 60, reactor.seconds
        )
        waiting = WaitQueue(reactor, routing.max_waiting)
        pool = AccountPool(self._registry.accounts, bindings, routing)
        pool.released = self.api_keys.freed = waiting.wake
        ttl = settings.ledger.ttl_minutes * 60
        conversations = MemoryStore(settings.ledger.max_bytes, ttl, reactor.seconds)
        issuers, owners = MemoryIssuers(), MemoryOwners(reactor.seconds)
        signer = TurnStateSigner(secrets.token_bytes(32))
        state.replicate(signer, bindings, self.api_keys)
        return TurnServices(
            clock=reactor,
            conversations=state.conversations(conversations),
            issuers=state.issuers(issuers),
            owners=state.owners(owners),
            pool=pool,
            waiting=waiting,
            limits=self.api_keys,
            turn_states=signer,
            turn_log=TurnLog(),
            request_log=self._request_log(reactor),
            recall=state.recall(conversations, owners, issuers, self.api_keys),
            hold_seconds=settings.session.hold_seconds,
            keepalive_seconds=settings.session.keepalive_seconds,
        )

    def _request_log(self, reactor: Any) -> RequestLog:
        """A disk may take long, and streams must go on."""
        log = RequestLog(
            reactor, lambda write: deferToThreadPool(reactor, reactor.getThreadPool(), write)
        )
        self._configure_request_log(log, self.settings)
        return log

    @staticmethod
    def _configure_request_log(log: RequestLog, settings: Settings) -> None:
        log.configure(
            settings.log.content,
            settings.keys,
            (settings.admin.token, settings.state.encryption_key),
        )

    def _start_admin(self, reactor: Any) -> None:
        """Start the metrics, the access control and the listener of the admin side."""
        admin = self.settings.admin
        metrics = MetricsCollector(
            reactor,
            self.turn_services,
            self.api_keys,
            self.limiter,
            self.websockets,
            self._catalogues,
            self._state.figures,
        )
        metrics.setServiceParent(self)
        self.running_gateway = RunningGateway(
            self.turn_services,
            self.api_keys,
            self.limiter,
            self.websockets,
            self.threshold,
            metrics,
            lambda: self._responses.turns_running,
            self.drain,
            self._state.figures,
        )
        self._access = AccessControl(
            admin.token, is_loopback(admin.listen or ""), admin.hosts, reactor.seconds
        )
        metrics_text = Metrics(self.running_gateway)
        managed = ManagedProcess(self.running_gateway, metrics_text.render)
        if self.inherited.link is not None:
            WorkerAnswers(managed, metrics_text, self.inherited.link)
        elif admin.listen is not None:
            site = AdminSite(Api(managed, self._access), reactor)
            self._listen(reactor, "admin.listen", admin.listen, site)

    def _listen(self, reactor: Any, setting: str, endpoint: str, site: Any) -> ListenerService:
        """Listen for clients or operators."""
        sockets = self.inherited.sockets(setting, endpoint)
        # Workers with a socket for each share none.
        shared = self.inherited.worker is not None and len(sockets) == 1
        listener = ListenerService(reactor, endpoint, site, setting, sockets, shared)
        listener.setServiceParent(self)
        self.listeners[setting] = listener
        return listener

    def _client_site(self, reactor: Any) -> ClientSite:
        """One listener for WebSocket and HTTP clients."""
        services = self.turn_services
        table = endpoints(
            self._responses,
            StoredResponses(services),
            InputEndpoints(services),
            Models(services.pool, self._catalogues, self.api_keys.may_use),
            ChatCompletions(services),
        )
        self._site = ClientSite(
            reactor, table, self.settings, self.api_keys, self.limiter, self.websockets
        )
        return self._site

    def _expire(self) -> None:
        """Expire conversations and bindings and close idle accounts; one failure stops no other."""
        services = self.turn_services
        for forget in (
            services.conversations.expire,
            services.pool.bindings.expire,
            self._registry.release_idle,
        ):
            try:
                forget()
            except Exception:
                _log.failure("old data could not be expired")

    def reconfigure(self, settings: Settings, before: Settings) -> None:
        """Put changed settings into force; what they do not name stays as it is."""
        services = self.turn_services
        gone = {account.name for account in self._registry.reconfigure(settings, before)}
        for name in gone - {account.name for account in self._registry.accounts}:
            services.pool.bindings.forget_account(name)
        services.pool.reconfigure(self._registry.accounts, settings.routing)
        self._state.accounts_changed()
        services.pool.bindings.reconfigure(
            settings.routing.max_bindings, settings.routing.affinity_minutes * 60
        )
        services.waiting.max_waiting = settings.routing.max_waiting
        self.api_keys.reconfigure(settings.keys)
        self.drain.shutdown_seconds = settings.timeouts.shutdown_seconds
        self.drain.handover_seconds = settings.timeouts.handover_seconds
        self.drain.spread_seconds = settings.timeouts.drain_spread_seconds
        self.limiter.max_connections = settings.limits.max_connections
        self.limiter.incoming.max_bytes = settings.limits.max_incoming_bytes
        self.websockets.reconfigure(settings)
        self._site.reconfigure(settings)
        self._access.reconfigure(settings.admin.token, settings.admin.hosts)
        self._set_log_level(settings.log.level, before.log.level)
        self._configure_request_log(services.request_log, settings)
        services.waiting.wake()

    def _set_log_level(self, level: str, before: str) -> None:
        """Apply a changed log level; a level from the admin side survives other changes."""
        if level != before:
            self.threshold.level = level
        elif self.threshold.level != level:
            _log.info(
                "the log's level stays {kept}, as it was set on the admin side",
                kept=self.threshold.level,
            )

    def _simulate(self, reactor: Any) -> None:
        """Make the accounts of the built-in simulator; its port is known once it listens."""
        service = built_in_simulator(self.settings, reactor)
        service.setServiceParent(self)
        self._registry.accounts += [
            self._registry.add(
                AccountSettings(
                    name=each.name,
                    base_url="simulator",
                    key=each.key,
                    background=True,
                    transport="auto",
                ),
                service.base_url,
                self.settings.timeouts,
                self.settings.routing.cooldown_max_seconds,
            )
            for each in service.simulator.accounts
        ]


def built_in_simulator(settings: Settings, reactor: Any) -> SimulatorService:
    """The simulator that answers where no accounts are configured."""
    wanted = settings.simulator or SimulatorSettings()
    accounts = [
        SimulatedAccount(f"simulated-{number}", mode=wanted.mode)
        for number in range(1, wanted.accounts + 1)
    ]
    simulator = Simulator(accounts, reactor, event_delay=_SIMULATED_PAUSE)
    return SimulatorService(simulator, reactor)
