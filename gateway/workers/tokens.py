"""The one process that renews the OAuth tokens of all workers."""

from __future__ import annotations

from typing import Any

import msgspec
from treq.client import HTTPClient
from twisted.application.service import Service
from twisted.internet.defer import Deferred

from gateway.account_registry import AccountRegistry
from gateway.config import AccountSettings, Settings
from gateway.credentials.interface import Credentials, credentials_for
from gateway.credentials.linked import TokenServer


class TokenKeeper(Service):
    """Renews tokens, through the proxies of their accounts, and gives them to workers.

    :param settings: those in force.
    :ivar server: answers workers.
    """

    def __init__(self, reactor: Any, settings: Settings) -> None:
        self._made: dict[str, Credentials] = {}
        self._registry = AccountRegistry(reactor, settings, self._make)
        self._registry.reconfigure(_with_tokens(settings))
        self.server = TokenServer(self._made.get)

    def reconfigure(self, settings: Settings, before: Settings) -> None:
        """Take changed settings; accounts that did not change keep their tokens."""
        self._registry.reconfigure(_with_tokens(settings), _with_tokens(before))
        self._registry.release_idle()
        names = {account.name for account in self._registry.accounts}
        for name in self._made.keys() - names:
            del self._made[name]

    def stopService(self) -> Deferred[None]:
        """Let a renewal that runs come to its end."""
        super().stopService()
        return self._registry.close()

    def _make(self, settings: AccountSettings, reactor: Any, client: HTTPClient) -> Credentials:
        made = credentials_for(settings, reactor, client)
        self._made[settings.name] = made
        return made


def _with_tokens(settings: Settings) -> Settings:
    """The settings with the accounts that have tokens, which alone matter here."""
    accounts = tuple(each for each in settings.accounts if each.oauth is not None)
    return msgspec.structs.replace(settings, accounts=accounts)
