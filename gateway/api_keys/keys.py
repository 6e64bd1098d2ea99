"""The client keys: authentication, permissions, and clients without a valid key.

Keys are compared in constant time (protocol.md §2.4).  The key's name is the *tenant* of the
client's requests; without configured keys all clients are one tenant.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from gateway.api_keys.limit_ledger import KeyUse
from gateway.api_keys.limit_permits import SharedLimits
from gateway.api_keys.limits import FollowingLease, KeyLimits, LimitLease, LimitReached
from gateway.config import KeySettings
from gateway.protocol.errors import ApiError

#: The tenant of every client while no keys are configured.
EVERYBODY = "everybody"

#: Headers for the key besides ``Authorization``: those of Azure's and Anthropic's clients.
KEY_HEADERS = ("api-key", "x-api-key")

#: One line of the log for each address in so many seconds.
_QUIET_SECONDS = 60.0

#: Bound on the addresses; refusals of further ones are not logged.
MAX_ADDRESSES = 1_000

_log = Logger(namespace="gateway.api_keys")


class KeyRing:
    """All client keys.

    :param keys: the configured ones; without any, everybody is one tenant without limits.
    :param now: unix seconds.
    :ivar unknown_keys: counts clients without a valid key.
    :ivar freed: called when a request of any of them ended.
    :ivar used: called with the name of a key that has used something.
    """

    def __init__(self, keys: Sequence[KeySettings], now: Callable[[], float]) -> None:
        self._now = now
        self.unknown_keys = UnknownKeyThrottle(now)
        self.freed: Callable[[], None] = lambda: None
        self.used: Callable[[str], None] = lambda tenant: None
        self._limits: dict[str, KeyLimits] = {}
        self._shared: SharedLimits | None = None
        self.reconfigure(keys)

    def reconfigure(self, keys: Sequence[KeySettings]) -> None:
        """Take these keys from now on; a key that stays keeps what it has used."""
        self._authenticator = Authenticator(keys)
        limits: dict[str, KeyLimits] = {}
        for settings in keys or [KeySettings(name=EVERYBODY, key="")]:
            of_key = self._limits.get(settings.name)
            if of_key is None:
                of_key = KeyLimits(settings, self._now, self.wake)
                of_key.changed = partial(self._use, settings.name)
                self._share(settings.name, of_key)
            of_key.reconfigure(settings)
            limits[settings.name] = of_key
        if self._shared is not None:
            for name in self._limits.keys() - limits.keys():
                self._shared.forget(name)
        self._limits = limits

    def share(self, shared: SharedLimits) -> None:
        """Hold the limits for several processes together from now on."""
        self._shared = shared
        for name, of_key in self._limits.items():
            self._share(name, of_key)

    def _share(self, name: str, of_key: KeyLimits) -> None:
        if self._shared is not None:
            running = lambda: of_key.turns_running  # noqa: E731
            of_key.share(self._shared.key(name, running, of_key.used_when))

    # --- clients -----------------------------------------------------------------------

    def tenant_of(self, headers: Mapping[str, str], address: str) -> str:
        """The name of a client's key.

        :param headers: names in lower case.
        :param address: the client's, for the log.
        :raises ApiError: see :meth:`Authenticator.tenant`.
        """
        try:
            return self._authenticator.tenant(headers)
        except ApiError as error:
            self.unknown_keys.refused(address, error.label)
            raise

    def is_unknown(self, headers: Mapping[str, str]) -> bool:
        """Whether a client presents no valid key."""
        try:
            self._authenticator.tenant(headers)
        except ApiError:
            return True
        return False

    def accepts(self, key: KeySettings) -> bool:
        """Whether this key is still valid, under the same name."""
        return self._authenticator.knows(key)

    def knows(self, tenant: str) -> bool:
        """Whether a key of that name is still configured."""
        return tenant in self._limits

    # --- what a key allows -------------------------------------------------------------

    @property
    def one_tenant(self) -> bool:
        """Whether there is only one tenant, so that no response can belong to another."""
        return len(self._limits) == 1

    def allows_websocket(self, tenant: str) -> bool:
        """Whether the key may connect by WebSocket."""
        found = self._limits.get(tenant)
        return found is not None and found.settings.websocket

    def max_connections(self, tenant: str, all_keys: int) -> int:
        """How many connections it may have at the same time.

        :param all_keys: how many there may be; of several keys none takes more than half of
            them, unless the configuration says so.
        """
        found = self._limits.get(tenant)
        wanted = None if found is None else found.settings.max_connections
        if wanted is not None:
            return wanted
        return all_keys if self.one_tenant else max(1, all_keys // 2)

    def may_use(self, tenant: str, model: str) -> bool:
        """Whether the key may use this model."""
        found = self._limits.get(tenant)
        return found is not None and found.may_use(model)

    def sees_quotas(self, tenant: str) -> bool:
        """Whether the key may see the quotas of accounts.

        By default only a single key may, because the accounts are its own.
        """
        found = self._limits.get(tenant)
        if found is None:
            return False
        wanted = found.settings.sees_quotas
        return self.one_tenant if wanted is None else wanted

    def prepare(self, tenant: str) -> Deferred[None] | None:
        """A request comes that :meth:`acquire` will be called for.

        :return: None where nothing need be waited for: always, unless several processes share its
            key's limits.  Else it fires soon, without a value.
        """
        if self._shared is None:
            return None
        found = self._limits.get(tenant)
        if found is None or found.shared is None:
            return None
        return found.shared.prepare()

    def acquire(self, tenant: str, model: str | None) -> LimitLease | LimitReached:
        """Count a request within its key's limits, or say which limit is reached.

        Requests of a removed key are not limited: its connections close after the running turns.

        :raises ApiError: when the key may never do this.
        """
        found = self._limits.get(tenant)
        if found is None:
            settings = KeySettings(name=tenant, key="")
            return LimitLease(KeyLimits(settings, self._now, self.wake))
        return found.acquire(model)

    def follow(self, tenant: str, model: str | None) -> LimitLease:
        """Count a request that runs already: beyond a limit only its tokens are counted.

        :raises ApiError: when the key may never do this.
        """
        found = self.acquire(tenant, model)
        return found if isinstance(found, LimitLease) else FollowingLease(self._limits[tenant])

    def refused(self, tenant: str, limit: str) -> None:
        """Count a request that was refused for ``limit``, after all waiting."""
        found = self._limits.get(tenant)
        if found is not None:
            found.refused(limit)

    def use_of(self, tenant: str) -> KeyUse | None:
        """What a key has used, to be kept; None for one that is not configured."""
        found = self._limits.get(tenant)
        return None if found is None else found.use()

    def restore(self, tenant: str, use: KeyUse) -> None:
        """Take what a key has used before a restart."""
        found = self._limits.get(tenant)
        if found is not None:
            found.restore(use)

    def refresh(self) -> None:
        """Somebody looks at :meth:`snapshot`: find out what other processes have used."""
        for limits in self._limits.values():
            if limits.shared is not None:
                limits.shared.refresh()

    def snapshot(self) -> list[dict[str, Any]]:
        """For the admin side, ready for JSON."""
        return [limits.snapshot() for limits in self._limits.values()]

    def wake(self) -> None:
        """Something may have become free: a limit, or a place on an account."""
        self.freed()

    def _use(self, tenant: str) -> None:
        self.used(tenant)


class Authenticator:
    """Finds the tenant by the key in a client's headers.

    :param keys: the configured client keys; without any, everybody is one tenant.
    """

    def __init__(self, keys: Sequence[KeySettings]) -> None:
        self._keys = [(key.name, _digest(key)) for key in keys]

    def knows(self, key: KeySettings) -> bool:
        """Whether ``key`` is one of them, under the same name."""
        return (key.name, _digest(key)) in self._keys

    def tenant(self, headers: Mapping[str, str]) -> str:
        """The name of the client's key.

        Of several presented keys the first valid one counts, because some clients cannot omit a
        header that they do not use.

        :param headers: names in lower case.
        :raises ApiError: 401 for a missing or wrong key; 403 for a web page that tries to
            use a gateway which asks for none.
        """
        if not self._keys:
            if "origin" in headers:
                raise ApiError(
                    403,
                    "permission_error",
                    "This gateway has no client keys, so it serves no web pages.",
                    "origin_not_allowed",
                )
            return EVERYBODY
        for given in _presented(headers):
            digest = hashlib.sha256(given.encode("latin-1", "replace")).digest()
            matches = [name for name, key in self._keys if hmac.compare_digest(key, digest)]
            if matches:
                return matches[0]
        raise ApiError(
            401,
            "authentication_error",
            "Incorrect API key provided: send 'Authorization: Bearer <key>' with a key"
            " of this gateway.",
            "invalid_api_key",
        )


class UnknownKeyThrottle:
    """Counts clients without a valid key, and limits the log lines about them.

    :param now: in seconds.
    :ivar refusals: how often it happened, by the error's code.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._logged_at: dict[str, float] = {}
        self._not_logged: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._logged_at)

    def refused(self, address: str, code: str) -> None:
        """Count a client that was turned away.

        :param address: of its end of the connection.
        :param code: of the error that it got.
        """
        self.refusals[code] += 1
        now = self._now()
        logged_at = self._logged_at.get(address)
        if logged_at is not None and 0 <= now - logged_at < _QUIET_SECONDS:
            self._not_logged[address] += 1
            return
        if logged_at is None and len(self._logged_at) >= MAX_ADDRESSES and not self._forget(now):
            return
        self._logged_at[address] = now
        more = self._not_logged.pop(address, 0)
        _log.warn(
            "a client at {address} was turned away: {code}{more}",
            address=address,
            code=code,
            more=f", and {more} times before since the last line" if more else "",
        )

    def _forget(self, now: float) -> bool:
        """Make room; whether there is some."""
        quiet = [each for each, at in self._logged_at.items() if not 0 <= now - at < _QUIET_SECONDS]
        for address in quiet:
            del self._logged_at[address]
            self._not_logged.pop(address, None)
        return bool(quiet)


def _presented(headers: Mapping[str, str]) -> Iterator[str]:
    """The keys that a client presents, in the order in which they are tried."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield token.strip()
    for name in KEY_HEADERS:
        if name in headers:
            yield headers[name].strip()


def _digest(key: KeySettings) -> bytes:
    """The SHA-256 of a key; the configuration may have only that."""
    if key.key_sha256 is not None:
        return bytes.fromhex(key.key_sha256)
    return hashlib.sha256((key.key or "").encode()).digest()
