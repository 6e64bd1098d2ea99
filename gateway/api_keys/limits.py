"""One client key at run time: what it may do, what it does, and what it was refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from gateway.api_keys.interface import Busy
from gateway.api_keys.window import RateWindow
from gateway.config import KeySettings
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage

_MINUTE = 60.0
_DAY = 86_400.0


class Tenant:
    """A client key.

    :param settings: what the operator allows it.
    :param now: unix seconds.
    :param freed: called when a turn of it ended.
    :ivar turns_running: its turns, over all its connections.
    """

    def __init__(
        self, settings: KeySettings, now: Callable[[], float], freed: Callable[[], None]
    ) -> None:
        self._now = now
        self._freed = freed
        self._windows: dict[str, RateWindow] = {}
        self.turns_running = 0
        self._turns = 0
        self._tokens = 0
        self._used_at: float | None = None
        self._refusals: Counter[str] = Counter()
        self.allow(settings)

    def allow(self, settings: KeySettings) -> None:
        """Take these limits from now on; what was used stays used."""
        self.settings = settings
        limits = {
            "requests_per_minute": (settings.requests_per_minute, _MINUTE),
            "requests_per_day": (settings.requests_per_day, _DAY),
            "tokens_per_minute": (settings.tokens_per_minute, _MINUTE),
            "tokens_per_day": (settings.tokens_per_day, _DAY),
        }
        windows = {}
        for name, (limit, seconds) in limits.items():
            if limit is not None:
                windows[name] = self._windows.get(name) or RateWindow(limit, seconds, self._now)
                windows[name].limit = limit
        self._windows = windows

    def enter(self, model: str | None) -> TenantVisit | Busy:
        """See :class:`~gateway.api_keys.interface.TenantLimits`."""
        if not self.may_use(model):
            self._refusals["model"] += 1
            raise ApiError.invalid_request(
                f"The key '{self.settings.name}' may not use the model '{(model or '')[:200]}'."
                if model
                else f"The key '{self.settings.name}' must name its model.",
                "model",
                "model_not_found",
            )
        busy = self._full() or self._used_up()
        if busy is not None:
            return busy
        self.turns_running += 1
        self._turns += 1
        self._used_at = self._now()
        for name, window in self._windows.items():
            if name.startswith("requests"):
                window.take(1)
        return TenantVisit(self)

    def may_use(self, model: str | None) -> bool:
        """Whether the operator allows the key this model.

        A request that names none gets one from its upstream, whichever that is.
        """
        return any(fnmatchcase(model or "", each) for each in self.settings.models)

    def used(self, usage: Usage) -> None:
        """Count the tokens of an answer."""
        tokens = usage.input_tokens + usage.output_tokens
        self._tokens += tokens
        for name, window in self._windows.items():
            if name.startswith("tokens"):
                window.take(tokens)

    def left(self) -> None:
        """A turn of it is over."""
        self.turns_running -= 1
        self._freed()

    def refused(self, limit: str) -> None:
        """A turn was refused for a limit, after all waiting."""
        self._refusals[limit] += 1

    def snapshot(self) -> dict[str, Any]:
        """For the admin side, ready for JSON."""
        return {
            "name": self.settings.name,
            "models": list(self.settings.models),
            "turns_running": self.turns_running,
            "max_concurrent_turns": self.settings.max_concurrent_turns,
            "turns": self._turns,
            "tokens": self._tokens,
            "last_used_at": self._used_at,
            "limits": {name: self._shown(window) for name, window in self._windows.items()},
            "refusals": dict(self._refusals),
        }

    def _shown(self, window: RateWindow) -> dict[str, Any]:
        wait = window.wait_seconds()
        free_at = round(self._now() + wait, 3) if wait > 0 else None
        return {"used": window.used, "limit": window.limit, "free_at": free_at}

    def _full(self) -> Busy | None:
        limit = self.settings.max_concurrent_turns
        if limit is None or self.turns_running < limit:
            return None
        name = "max_concurrent_turns"
        return Busy(name, self._limited(name, limit, 1), None)

    def _used_up(self) -> Busy | None:
        """The limit that lasts longest, if any is reached."""
        waits = {name: window.wait_seconds() for name, window in self._windows.items()}
        name = max(waits, key=lambda each: waits[each], default=None)
        if name is None or waits[name] <= 0:
            return None
        wait, window = waits[name], self._windows[name]
        daily = window.seconds == _DAY
        error = (self._spent if daily else self._limited)(name, window.limit, math.ceil(wait))
        return Busy(name, error, self._now() + wait)

    def _limited(self, name: str, limit: int, wait: int) -> ApiError:
        return ApiError(
            429,
            "rate_limit_error",
            f"The key '{self.settings.name}' has reached its {name} of {limit};"
            f" please try again in {wait}s.",
            "rate_limit_exceeded",
            headers={"retry-after": str(wait)},
        )

    def _spent(self, name: str, limit: int, wait: int) -> ApiError:
        """Clients tell their users when a limit of days ends, and do not wait for it (§5.2)."""
        return ApiError(
            429,
            "usage_limit_reached",
            f"The key '{self.settings.name}' has used up its {name} of {limit}.",
            headers={"retry-after": str(wait)},
            details={"resets_at": math.ceil(self._now() + wait), "resets_in_seconds": wait},
        )


class TenantVisit:
    """A turn of a tenant; see :class:`~gateway.api_keys.interface.Visit`."""

    __slots__ = ("_tenant",)

    def __init__(self, tenant: Tenant) -> None:
        self._tenant: Tenant | None = tenant

    def used(self, usage: Usage) -> None:
        """See ``Visit``."""
        if self._tenant is not None:
            self._tenant.used(usage)

    def leave(self) -> None:
        """See ``Visit``."""
        tenant, self._tenant = self._tenant, None
        if tenant is not None:
            tenant.left()
