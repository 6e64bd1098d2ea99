"""The accounts that the configuration names: made once, kept while their settings are the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.logger import Logger
from twisted.web.client import URI, HTTPConnectionPool

from gateway.config import AccountSettings, Settings, TimeoutSettings
from gateway.credentials.interface import Credentials, credentials_for
from gateway.routing.account import Account
from gateway.upstream.agent import http_client
from gateway.upstream.endpoints import EgressEndpoints, EgressPath, EgressPaths
from gateway.upstream.http import HttpTimeouts, HttpUpstream
from gateway.upstream.websocket import WebSocketUpstream
from gateway.upstream.websocket_access import WebSocketAccess
from gateway.upstream.websocket_counts import SocketCounts
from gateway.upstream.websocket_pool import SocketBudget, WebSocketPool

_log = Logger(namespace="gateway.service")


class AccountRegistry:
    """Makes accounts, and closes those that are no longer configured.

    :param credentials: makes the credentials of an account from its settings, the reactor, and a
        client that reaches its token endpoint.
    :ivar socket_budget: the bound on the WebSockets of all accounts.
    :ivar accounts: those in service, in the operator's order.
    """

    def __init__(
        self,
        reactor: Any,
        settings: Settings,
        credentials: Callable[[AccountSettings, Any, HTTPClient], Credentials] = credentials_for,
    ) -> None:
        self._reactor = reactor
        self._credentials = credentials
        self._paths = EgressPaths(reactor.seconds, settings.routing.cooldown_max_seconds)
        self.socket_budget = SocketBudget(settings.limits.max_upstream_sockets)
        self._socket_counts: dict[str, SocketCounts] = {}
        self._upstreams: dict[Account, HttpUpstream | WebSocketUpstream] = {}
        self._leaving: list[Account] = []
        self.accounts: list[Account] = []

    def reconfigure(self, settings: Settings, before: Settings | None = None) -> list[Account]:
        """Take the accounts of ``settings``; those with the same settings stay as they are.

        What was learned of accounts is forgotten: their services may have changed.  Settings
        without accounts change nothing: simulated ones are made at the start.

        :param before: the settings so far, or None at the start.
        :return: those that are gone, or were made anew.
        """
        cooldown_max = settings.routing.cooldown_max_seconds
        if before is not None and cooldown_max != before.routing.cooldown_max_seconds:
            self._paths.cap_cooldowns(cooldown_max)
            for present in self.accounts:
                present.health.cap_cooldowns(cooldown_max)
        self.socket_budget.most = settings.limits.max_upstream_sockets
        for present in self.accounts:
            present.learned.forget()
            present.upstream.forget()
        if not settings.accounts:
            return []
        same_timeouts = before is not None and settings.timeouts == before.timeouts
        known = {account.name: account for account in self.accounts}
        configured: list[Account] = []
        for each in settings.accounts:
            account = known.get(each.name)
            if account is None or account.settings != each or not same_timeouts:
                account = self.add(
                    each, partial(str, each.base_url), settings.timeouts, cooldown_max
                )
                former = known.get(each.name)
                if former is not None:
                    account.inherit(former)
            configured.append(account)
        gone = [account for account in self.accounts if account not in configured]
        self._leaving += gone
        self.accounts = configured
        for name in {*self._socket_counts}.difference(each.name for each in configured):
            del self._socket_counts[name]
        return gone

    def add(
        self,
        settings: AccountSettings,
        base_url: Any,
        timeouts: TimeoutSettings,
        cooldown_max_seconds: float,
    ) -> Account:
        """Make an account.

        :param base_url: called for its base URL.
        """
        egress = self._paths.egress(
            settings.proxy, settings.ca_file, settings.client_cert_file, settings.client_key_file
        )
        # Tokens are asked for too seldom to keep a connection for it.
        unkept = HTTPConnectionPool(self._reactor, persistent=False)
        for_tokens = http_client(self._reactor, unkept, timeouts.connect_seconds, egress)
        upstream: HttpUpstream | WebSocketUpstream
        upstream = over_http = HttpUpstream(
            self._reactor,
            settings.name,
            base_url,
            self._credentials(settings, self._reactor, for_tokens),
            HttpTimeouts(
                timeouts.connect_seconds, timeouts.first_byte_seconds, timeouts.idle_seconds
            ),
            egress,
        )
        if settings.transport != "http":
            upstream = self._over_websocket(settings, over_http, timeouts, egress)
        account = Account(settings, upstream, self._reactor.seconds, cooldown_max_seconds, egress)
        self._upstreams[account] = upstream
        return account

    def _over_websocket(
        self,
        settings: AccountSettings,
        over_http: HttpUpstream,
        timeouts: TimeoutSettings,
        egress: EgressPath,
    ) -> WebSocketUpstream:
        endpoints = EgressEndpoints(self._reactor, timeouts.connect_seconds, egress)

        def connect(url: str) -> IStreamClientEndpoint:
            target = URI.fromBytes(url.encode("ascii"))
            return endpoints.endpoint(target.scheme, target.host, target.port)

        pool = WebSocketPool(
            self._reactor,
            settings.websocket.max_sockets,
            settings.websocket.max_age_minutes * 60,
            settings.websocket.idle_minutes * 60,
            self.socket_budget,
            self._socket_counts.setdefault(settings.name, SocketCounts()),
        )
        return WebSocketUpstream(WebSocketAccess(self._reactor, settings, over_http, connect, pool))

    def release_idle(self) -> None:
        """Close the connections of accounts that are gone and on which no turn runs any more."""
        idle = [account for account in self._leaving if not account.in_flight]
        for account in idle:
            self._leaving.remove(account)
            closed = self._upstreams.pop(account).close()
            closed.addErrback(lambda failure: _log.failure("an account could not close", failure))

    def close(self) -> Deferred[None]:
        """Close the connections of all accounts."""
        closed = gatherResults([upstream.close() for upstream in self._upstreams.values()])
        return closed.addCallback(lambda _: None)
