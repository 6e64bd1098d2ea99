"""The accounts that the configuration names: made once, kept while it names them alike."""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger
from twisted.web.client import HTTPConnectionPool

from gateway.config import AccountSettings, Settings, TimeoutSettings
from gateway.credentials.interface import credentials_for
from gateway.routing.account import Account
from gateway.upstream.agent import EgressPaths, http_client
from gateway.upstream.http import HttpTimeouts, HttpUpstream

_log = Logger(namespace="gateway.service")


class AccountRegistry:
    """Makes accounts, and lets go of those that are named no longer.

    :ivar accounts: those in service, in the operator's order.
    """

    def __init__(self, reactor: Any, settings: Settings) -> None:
        self._reactor = reactor
        self._paths = EgressPaths(reactor.seconds, settings.routing.cooldown_max_seconds)
        self._upstreams: dict[Account, HttpUpstream] = {}
        self._leaving: list[Account] = []
        self.accounts: list[Account] = []

    def reconfigure(self, settings: Settings, before: Settings | None = None) -> list[Account]:
        """Take the accounts of ``settings``; who is described as before stays as it is.

        What accounts taught is forgotten: a reload says that the world may have changed.
        Settings without any leave all as it was: simulated ones are made at the start.

        :param before: the settings so far, or None at the start.
        :return: those that are gone, or were made anew.
        """
        cooldown_max = settings.routing.cooldown_max_seconds
        if before is not None and cooldown_max != before.routing.cooldown_max_seconds:
            self._cap_rests(cooldown_max)
        for present in self.accounts:
            present.learned.forget()
        if not settings.accounts:
            return []
        as_patient = before is not None and settings.timeouts == before.timeouts
        known = {account.name: account for account in self.accounts}
        arranged: list[Account] = []
        for each in settings.accounts:
            account = known.get(each.name)
            if account is None or account.settings != each or not as_patient:
                account = self.add(
                    each, partial(str, each.base_url), settings.timeouts, cooldown_max
                )
                former = known.get(each.name)
                if former is not None:
                    account.succeed(former)
            arranged.append(account)
        gone = [account for account in self.accounts if account not in arranged]
        self._leaving += gone
        self.accounts = arranged
        return gone

    def _cap_rests(self, cooldown_max_seconds: float) -> None:
        self._paths.cap_cooldowns(cooldown_max_seconds)
        for account in self.accounts:
            account.health.cap_rests(cooldown_max_seconds)

    def add(
        self,
        settings: AccountSettings,
        base_url: Any,
        timeouts: TimeoutSettings,
        cooldown_max_seconds: float,
    ) -> Account:
        """Make an account.

        :param base_url: tells its base URL.
        """
        way = self._paths.egress(
            settings.proxy, settings.ca_file, settings.client_cert_file, settings.client_key_file
        )
        # Tokens are asked for so seldom that no connection is kept for it.
        unkept = HTTPConnectionPool(self._reactor, persistent=False)
        for_tokens = http_client(self._reactor, unkept, timeouts.connect_seconds, way)
        upstream = HttpUpstream(
            self._reactor,
            settings.name,
            base_url,
            credentials_for(settings, self._reactor, for_tokens),
            HttpTimeouts(
                timeouts.connect_seconds, timeouts.first_byte_seconds, timeouts.idle_seconds
            ),
            way,
        )
        account = Account(settings, upstream, self._reactor.seconds, cooldown_max_seconds, way)
        self._upstreams[account] = upstream
        return account

    def release_idle(self) -> None:
        """Close what accounts left behind that are gone, and on which no turn runs any more."""
        idle = [account for account in self._leaving if not account.in_flight]
        for account in idle:
            self._leaving.remove(account)
            closed = self._upstreams.pop(account).close()
            closed.addErrback(lambda failure: _log.failure("an account could not close", failure))

    def close(self) -> Deferred[None]:
        """Close the connections of all accounts."""
        closed = gatherResults([upstream.close() for upstream in self._upstreams.values()])
        return closed.addCallback(lambda _: None)
