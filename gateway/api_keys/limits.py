"""The limits of a client key: models, requests and tokens in a time, requests at once.

A request takes a :class:`LimitLease` of its key's :class:`KeyLimits`, or gets the limit that is
reached (protocol.md §5.2).  A :class:`RateWindow` counts what was used in a minute or a day.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from gateway.api_keys.limit_ledger import MAX_CONCURRENT, KeyUse, LimitWindow
from gateway.api_keys.limit_permits import Reached, SharedKey
from gateway.config import KeySettings
from gateway.protocol.errors import ApiError
from gateway.protocol.usage import Usage

_MINUTE = 60.0
_DAY = 86_400.0

#: Counters a window is made of.  Use is forgotten a counter at a time, never too early.
_COUNTERS = 60


class LimitReached(NamedTuple):
    """A limit is reached for now.

    :ivar limit: its name in the configuration.
    :ivar error: the client's error if waiting does not help.
    :ivar free_at: when the limit ends, unix seconds; None if that may be at any time.
    """

    limit: str
    error: ApiError
    free_at: float | None


class LimitLease:
    """A request within its key's limits, until it is released."""

    __slots__ = ("_limits",)

    def __init__(self, limits: KeyLimits) -> None:
        self._limits: KeyLimits | None = limits

    def used(self, usage: Usage) -> None:
        """Count the tokens of its answer."""
        if self._limits is not None:
            self._limits.used(usage)

    def release(self) -> None:
        """The request is over; later calls are ignored."""
        limits, self._limits = self._limits, None
        if limits is not None:
            limits.released()


class FollowingLease(LimitLease):
    """A request that could not be refused: its tokens count, and nothing else."""

    __slots__ = ()

    def release(self) -> None:
        """The request is over."""


class KeyLimits:
    """The limits, the usage and the refusals of one client key.

    :param settings: its limits.
    :param now: unix seconds.
    :param freed: called when a request of it ended.
    :ivar changed: called when something was used.
    :ivar shared: its part of limits that hold for several processes together, or None.
    :ivar turns_running: its requests under way, over all its connections.
    """

    def __init__(
        self, settings: KeySettings, now: Callable[[], float], freed: Callable[[], None]
    ) -> None:
        self._now = now
        self._freed = freed
        self.changed: Callable[[], None] = lambda: None
        self.shared: SharedKey | None = None
        self._windows: dict[str, RateWindow] = {}
        self.turns_running = 0
        self._turns = 0
        self._tokens = 0
        self._used_at: float | None = None
        self._refusals: Counter[str] = Counter()
        self.reconfigure(settings)

    def reconfigure(self, settings: KeySettings) -> None:
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
        self._reconfigure_shared()

    def share(self, shared: SharedKey) -> None:
        """Hold the limits for several processes together from now on."""
        self.shared = shared
        self._reconfigure_shared()

    def _reconfigure_shared(self) -> None:
        if self.shared is not None:
            windows = [
                LimitWindow(name, each.seconds, each.limit, name.startswith("tokens"))
                for name, each in self._windows.items()
            ]
            self.shared.reconfigure(self.settings.max_concurrent_turns, windows)

    def acquire(self, model: str | None) -> LimitLease | LimitReached:
        """Count a request, or say which limit is reached.

        :raises ApiError: 400 for a model that the key may not use.
        """
        if not self.may_use(model):
            self._refusals["model"] += 1
            raise ApiError.invalid_request(
                f"The key '{self.settings.name}' may not use the model '{(model or '')[:200]}'."
                if model
                else f"The key '{self.settings.name}' must name its model.",
                "model",
                "model_not_found",
            )
        shared = self.shared
        if shared is not None and shared.holds:
            elsewhere = shared.take()
            reached = None if elsewhere is None else self._reached(elsewhere)
        else:
            reached = self._full() or self._used_up()
        if reached is not None:
            return reached
        if shared is not None and not shared.holds:
            shared.local(1, 0)
        self.turns_running += 1
        self._turns += 1
        self._used_at = self._now()
        for name, window in self._windows.items():
            if name.startswith("requests"):
                window.take(1)
        self.changed()
        return LimitLease(self)

    def may_use(self, model: str | None) -> bool:
        """Whether the key may use this model.

        A request that names none gets one from its upstream, whichever that is.
        """
        models = self.settings.models
        return "*" in models or any(fnmatchcase(model or "", each) for each in models)

    def used(self, usage: Usage) -> None:
        """Count the tokens of an answer."""
        tokens = usage.input_tokens + usage.output_tokens
        self._tokens += tokens
        for name, window in self._windows.items():
            if name.startswith("tokens"):
                window.take(tokens)
        if self.shared is not None:
            self.shared.local(0, tokens)
        self.changed()

    def released(self) -> None:
        """A request of it is over."""
        self.turns_running -= 1
        if self.shared is not None:
            self.shared.released()
        self._freed()

    def refused(self, limit: str) -> None:
        """Count a request that was refused for a limit, after all waiting."""
        self._refusals[limit] += 1

    def use(self) -> KeyUse:
        """What was used, to be kept."""
        windows = {name: window.counters() for name, window in self._windows.items()}
        return KeyUse(self._turns, self._tokens, self._used_at, windows)

    def restore(self, use: KeyUse) -> None:
        """Take what was used before a restart."""
        self._turns += use.turns
        self._tokens += use.tokens
        self._used_at = self._used_at or use.used_at
        for name, counters in use.windows.items():
            if name in self._windows:
                self._windows[name].restore(counters)

    def used_when(self) -> list[tuple[float, int, int]]:
        """What was used within its limits: unix seconds, requests, tokens.

        What is older than a minute is only known of the limits of a day.
        """
        uses = []
        for requests, what in ((1, "requests"), (0, "tokens")):
            minute = self._windows.get(f"{what}_per_minute")
            day = self._windows.get(f"{what}_per_day")
            amounts = [] if minute is None else minute.counters()
            if day is not None:
                recent = sum(amount for _, amount in amounts)
                amounts.insert(0, (self._now() - 2 * _MINUTE, day.used - recent))
            uses += [(at, n * requests, n * (1 - requests)) for at, n in amounts if n]
        return uses

    def snapshot(self) -> dict[str, Any]:
        """For the admin side, ready for JSON.

        Use is that of all processes, where they share the limits.
        """
        shared = self.shared
        used = None if shared is None else shared.totals
        turns, tokens = (self._turns, self._tokens) if used is None else used
        return {
            "name": self.settings.name,
            "models": list(self.settings.models),
            "turns_running": self.turns_running,
            "max_concurrent_turns": self.settings.max_concurrent_turns,
            "turns_running_everywhere": None if shared is None else shared.held,
            "turns": turns,
            "tokens": tokens,
            "last_used_at": self._used_at,
            "limits": {
                name: self._window_snapshot(name, window) for name, window in self._windows.items()
            },
            "refusals": dict(self._refusals),
        }

    def _window_snapshot(self, name: str, window: RateWindow) -> dict[str, Any]:
        shared = self.shared
        if shared is not None and shared.holds and name in shared.used:
            reached = shared.reached
            free_at = None if reached is None or reached.limit != name else reached.free_at
            return {"used": shared.used[name], "limit": window.limit, "free_at": free_at}
        wait, used = window.wait_seconds(), window.used
        free_at = round(self._now() + wait, 3) if wait > 0 else None
        return {"used": used, "limit": window.limit, "free_at": free_at}

    def _full(self) -> LimitReached | None:
        limit = self.settings.max_concurrent_turns
        if limit is None or self.turns_running < limit:
            return None
        return LimitReached(MAX_CONCURRENT, self._limited(MAX_CONCURRENT, limit, 1), None)

    def _reached(self, reached: Reached) -> LimitReached:
        """The limit that all processes together have reached."""
        window = self._windows.get(reached.limit)
        if window is None or reached.free_at is None:
            limit = self.settings.max_concurrent_turns
            name, window = MAX_CONCURRENT, next(iter(self._windows.values()), None)
            if limit is None:
                assert window is not None
                name = next(iter(self._windows))
                limit = window.limit
            return LimitReached(name, self._limited(name, limit, 1), None)
        return self._ends_at(reached.limit, window, max(0.0, reached.free_at - self._now()))

    def _used_up(self) -> LimitReached | None:
        """The limit that lasts longest, if any is reached."""
        waits = {name: window.wait_seconds() for name, window in self._windows.items()}
        name = max(waits, key=lambda each: waits[each], default=None)
        if name is None or waits[name] <= 0:
            return None
        return self._ends_at(name, self._windows[name], waits[name])

    def _ends_at(self, name: str, window: RateWindow, wait: float) -> LimitReached:
        daily = window.seconds == _DAY
        error = (self._spent if daily else self._limited)(name, window.limit, math.ceil(wait))
        return LimitReached(name, error, self._now() + wait)

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
        """The error of a daily limit: clients show its end to users instead of waiting."""
        return ApiError(
            429,
            "usage_limit_reached",
            f"The key '{self.settings.name}' has used up its {name} of {limit}.",
            headers={"retry-after": str(wait)},
            details={"resets_at": math.ceil(self._now() + wait), "resets_in_seconds": wait},
        )


class RateWindow:
    """Counts what was used in the last ``seconds``.

    :param limit: what may be used in any such time.
    :param now: a clock, in seconds.
    """

    def __init__(self, limit: int, seconds: float, now: Callable[[], float]) -> None:
        self.limit = limit
        self.seconds = seconds
        self._now = now
        self._counter_seconds = seconds / _COUNTERS
        self._counters: deque[tuple[float, int]] = deque()
        self._total = 0

    @property
    def used(self) -> int:
        """What was used in the last ``seconds``."""
        self._forget()
        return self._total

    def take(self, amount: int) -> None:
        """Count ``amount``."""
        self._forget()
        now = self._now()
        if self._counters and now < self._counters[-1][0] + self._counter_seconds:
            began, count = self._counters[-1]
            self._counters[-1] = (began, count + amount)
        else:
            self._counters.append((now, amount))
        self._total += amount

    def wait_seconds(self) -> float:
        """How long until something may be used again; 0 for now."""
        self._forget()
        over = self._total - self.limit
        if over < 0:
            return 0.0
        now = self._now()
        for began, count in self._counters:
            over -= count
            if over < 0:
                return max(0.0, self._gone_at(began) - now)
        return self.seconds  # a limit of nothing

    def counters(self) -> list[tuple[float, int]]:
        """What was used when, to be kept."""
        self._forget()
        return list(self._counters)

    def restore(self, counters: Iterable[tuple[float, int]]) -> None:
        """Add what was used before a restart."""
        self._counters = deque(sorted((*counters, *self._counters)))
        self._total = sum(count for _, count in self._counters)
        self._forget()

    def _gone_at(self, began: float) -> float:
        return began + self._counter_seconds + self.seconds

    def _forget(self) -> None:
        now = self._now()
        if self._counters and self._counters[-1][0] > now + self._counter_seconds:
            self._counters.clear()  # the clock was set back; better free than locked for long
            self._total = 0
        while self._counters and self._gone_at(self._counters[0][0]) <= now:
            self._total -= self._counters.popleft()[1]
