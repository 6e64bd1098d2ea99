"""All client keys: who a client is, and what it may use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.api_keys.authenticator import EVERYBODY, Authenticator
from gateway.api_keys.interface import Busy
from gateway.api_keys.limits import Tenant, TenantVisit
from gateway.api_keys.strangers import UnknownKeyThrottle
from gateway.config import KeySettings
from gateway.protocol.errors import ApiError


class KeyRing:
    """The client keys; see :class:`~gateway.api_keys.interface.TenantLimits`.

    :param keys: the configured ones; without any, everybody is one tenant without limits.
    :param now: unix seconds.
    :ivar strangers: those who come without one.
    :ivar freed: called when a turn of any of them ended.
    """

    def __init__(self, keys: Sequence[KeySettings], now: Callable[[], float]) -> None:
        self._now = now
        self.strangers = UnknownKeyThrottle(now)
        self.freed: Callable[[], None] = _nobody_waits
        self._tenants: dict[str, Tenant] = {}
        self.reconfigure(keys)

    def reconfigure(self, keys: Sequence[KeySettings]) -> None:
        """Take these keys from now on; a key that stays keeps what it has used."""
        self._authenticator = Authenticator(keys)
        allowed = keys or [KeySettings(name=EVERYBODY, key="")]
        tenants: dict[str, Tenant] = {}
        for settings in allowed:
            tenant = self._tenants.get(settings.name)
            if tenant is None:
                tenant = Tenant(settings, self._now, self._free)
            tenant.allow(settings)
            tenants[settings.name] = tenant
        self._tenants = tenants

    @property
    def one_tenant(self) -> bool:
        """See ``TenantLimits``."""
        return len(self._tenants) == 1

    def tenant_of(self, headers: Mapping[str, str], address: str) -> str:
        """The name of a client's key; see :meth:`Authenticator.tenant`.

        :param address: the client's, for the operator; who has no key is a stranger.
        """
        try:
            return self._authenticator.tenant(headers)
        except ApiError as error:
            self.strangers.refused(address, error.label)
            raise

    def is_stranger(self, headers: Mapping[str, str]) -> bool:
        """Whether a client comes without one of the keys."""
        try:
            self._authenticator.tenant(headers)
        except ApiError:
            return True
        return False

    def admits(self, key: KeySettings) -> bool:
        """Whether clients with this very key are still let in."""
        return self._authenticator.knows(key)

    def knows(self, tenant: str) -> bool:
        """Whether the key is still configured."""
        return tenant in self._tenants

    def speaks_websocket(self, tenant: str) -> bool:
        """Whether the operator lets the key in by WebSocket (§10.7)."""
        found = self._tenants.get(tenant)
        return found is not None and found.settings.websocket

    def max_connections(self, tenant: str, all_keys: int) -> int:
        """How many connections it may have at the same time.

        :param all_keys: how many there may be; of several keys none takes more than half of
            them, unless the operator says so.
        """
        found = self._tenants.get(tenant)
        wanted = None if found is None else found.settings.max_connections
        if wanted is not None:
            return wanted
        return all_keys if self.one_tenant else max(1, all_keys // 2)

    def may_use(self, tenant: str, model: str) -> bool:
        """Whether the operator allows the key this model."""
        found = self._tenants.get(tenant)
        return found is not None and found.may_use(model)

    def sees_quotas(self, tenant: str) -> bool:
        """See ``TenantLimits``; unless the operator says, who is alone owns the accounts."""
        found = self._tenants.get(tenant)
        if found is None:
            return False
        wanted = found.settings.sees_quotas
        return self.one_tenant if wanted is None else wanted

    def enter(self, tenant: str, model: str | None) -> TenantVisit | Busy:
        """See ``TenantLimits``.

        A key that was removed may finish what it began: its connections end by themselves.
        """
        found = self._tenants.get(tenant)
        if found is None:
            return TenantVisit(Tenant(KeySettings(name=tenant, key=""), self._now, self._free))
        return found.enter(model)

    def refused(self, tenant: str, limit: str) -> None:
        """See ``TenantLimits``."""
        found = self._tenants.get(tenant)
        if found is not None:
            found.refused(limit)

    def snapshot(self) -> list[dict[str, Any]]:
        """For the admin side, ready for JSON."""
        return [tenant.snapshot() for tenant in self._tenants.values()]

    def _free(self) -> None:
        self.freed()


def _nobody_waits() -> None:
    """Nobody waits for a limit to end."""
