"""The limits of client keys over several processes: what they ask, and the ledger that answers.

One ledger counts for all processes.  A process asks it for *permits*, each for one request, and
reports what was used without one.  The ledger is in the supervisor of several workers, or in Redis;
there ``limits.lua`` does the same as :class:`LimitLedger` does here.

What was used is counted in sixty counters for each limit, like in
:class:`gateway.api_keys.limits.RateWindow`, and forgotten a counter at a time, never too early.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec
from twisted.internet.defer import Deferred

#: Counters a window is made of.
_COUNTERS = 60

#: How long a process has its places without asking again, in seconds.
PLACES_SECONDS = 10.0

#: How long a process that was refused a place is told when one is free, in seconds.
_WAITS_SECONDS = 1.0

#: How long a process is remembered that asks nothing more, in seconds.
_REMEMBERED_SECONDS = 3_600.0

#: A process gets permits in advance: a share of what is free, and a share of the limit.
_SHARE_OF_FREE = 16
_SHARE_OF_LIMIT = 100

#: More than any limit.
_ANY_NUMBER = 10**15

#: The name of the limit on requests at the same time.
MAX_CONCURRENT = "max_concurrent_turns"


class LimitWindow(msgspec.Struct, array_like=True, frozen=True):
    """A limit on what is used in a time.

    :ivar name: in the configuration.
    :ivar counts_tokens: tokens, else requests.
    """

    name: str
    seconds: float
    limit: int
    counts_tokens: bool


class KeyUsage(NamedTuple):
    """What was used without a permit, or a permit that was not used.

    :ivar ago: seconds.
    :ivar requests: less than nothing for permits that are given back.
    """

    ago: float
    requests: int
    tokens: int


class KeyUse(NamedTuple):
    """What a key has used, as it is kept over a restart.

    :ivar used_at: unix seconds.
    :ivar windows: by the limit's name: what was used when, unix seconds.
    """

    turns: int
    tokens: int
    used_at: float | None
    windows: dict[str, list[tuple[float, int]]]


class LimitAsk(msgspec.Struct, array_like=True, frozen=True):
    """What a process asks for one key, and reports.

    :ivar process: its name.
    :ivar number: of the report.  The same number is answered in the same way, and counted once.
    :ivar held: its running requests, and its permits that are not used yet.
    :ivar wanted: permits that requests wait for.
    :ivar spare: permits that it would like in advance.
    :ivar most: requests that may run at the same time in all processes; -1 for any number.
    :ivar tenant: the key.
    """

    process: str
    number: int
    held: int
    wanted: int
    spare: int
    most: int
    windows: list[LimitWindow]
    uses: list[KeyUsage]
    tenant: str


class LimitAnswer(msgspec.Struct, array_like=True, frozen=True):
    """What a process is told.

    :ivar granted: permits, also those in advance.
    :ivar reached: the limit that keeps it from getting what it wants, or "".
    :ivar wait: until something may be free, in seconds; 0.0 for at any time.
    :ivar wake: whether another process waits for a place that is free now.
    :ivar held: by all processes.
    :ivar turns: ever, in all processes.
    :ivar tokens: ever, in all processes.
    :ivar used: in each window, as they were asked.
    :ivar born: since when the authority has counted, unix seconds; later if it lost everything.
    """

    granted: int
    reached: str
    wait: float
    wake: bool
    held: int
    turns: int
    tokens: int
    used: list[int]
    born: float


class LimitAuthority(Protocol):
    """Counts for all processes."""

    def exchange(self, ask: LimitAsk) -> Deferred[LimitAnswer]:
        """Ask and report.  Fails when the authority cannot be reached."""


class _Process(msgspec.Struct, array_like=True):
    """What is known of a process.

    :ivar until: when its places are free again.
    :ivar granted: what it was answered last.
    :ivar waits_until: until then it is to be told of a free place.
    """

    held: int
    until: float
    number: int
    granted: int
    waits_until: float


class _KeyState(msgspec.Struct, array_like=True):
    """What is known of a key.

    :ivar counters: by the window's name: what was used in each counter.
    """

    born: float = 0.0
    turns: int = 0
    tokens: int = 0
    processes: dict[str, _Process] = {}
    counters: dict[str, dict[int, int]] = {}


class LimitLedger:
    """Counts the requests of keys in all processes.

    :ivar keys: by their names; bounded by the configuration, as only its keys are asked for.
    """

    def __init__(self) -> None:
        self.keys: dict[str, _KeyState] = {}

    def exchange(self, ask: LimitAsk, now: float) -> LimitAnswer:
        """Answer a process.

        :param now: unix seconds.
        """
        key = self.keys.setdefault(ask.tenant, _KeyState(now))
        self._forget(key, ask.windows, now)
        before = key.processes.get(ask.process)
        again = before is not None and before.number == ask.number
        if not again:
            self._report(key, ask, now)
        others = sum(
            each.held
            for name, each in key.processes.items()
            if name != ask.process and each.until > now
        )
        used = _used(key, ask.windows)
        free = share = _ANY_NUMBER
        if ask.most >= 0:
            free, share = ask.most - others - ask.held, ask.most
        for window, count in zip(ask.windows, used, strict=True):
            if not window.counts_tokens:
                free, share = min(free, window.limit - count), min(share, window.limit)
            elif count >= window.limit:
                free = 0
        if again:
            assert before is not None
            granted = before.granted
        else:
            granted = self._grant(ask, free, share)
            key.turns += granted
            for window in ask.windows:
                if not window.counts_tokens and granted:
                    self._count(key, window, now, granted)
            used = _used(key, ask.windows)
        free -= granted
        reached, wait = "", 0.0
        if granted < ask.wanted:
            reached, wait = self._reached(key, ask, others + granted, now)
        waits = reached == MAX_CONCURRENT
        held = ask.held + granted
        key.processes[ask.process] = _Process(
            held,
            now + PLACES_SECONDS,
            ask.number,
            granted,
            now + _WAITS_SECONDS if waits else 0.0,
        )
        wake = ask.most >= 0 and free > 0 and self._another_waits(key, ask.process, now)
        turns, tokens, born = key.turns, key.tokens, key.born
        return LimitAnswer(granted, reached, wait, wake, others + held, turns, tokens, used, born)

    def gone(self, process: str) -> None:
        """A process has ended: its places are free."""
        for key in self.keys.values():
            key.processes.pop(process, None)

    def use_of(self, tenant: str, windows: Sequence[LimitWindow], now: float) -> KeyUse:
        """What was used with a key, to be kept."""
        key = self.keys[tenant]
        used = {
            each.name: sorted(
                (number * (each.seconds / _COUNTERS), count)
                for number, count in key.counters.get(each.name, {}).items()
            )
            for each in windows
        }
        return KeyUse(key.turns, key.tokens, now, used)

    def restore(self, tenant: str, windows: Sequence[LimitWindow], use: KeyUse) -> None:
        """Take what was used with a key before a restart."""
        key = self.keys.setdefault(tenant, _KeyState())
        key.turns += use.turns
        key.tokens += use.tokens
        for window in windows:
            for began, count in use.windows.get(window.name, ()):
                # The middle: a counter of one process begins at any time.
                self._count(key, window, began + window.seconds / _COUNTERS / 2, count)

    # --- inside ------------------------------------------------------------------------

    def _forget(self, key: _KeyState, windows: Sequence[LimitWindow], now: float) -> None:
        for window in windows:
            counters = key.counters.get(window.name)
            if counters:
                for number in [each for each in counters if _gone_at(window, each) <= now]:
                    del counters[number]
        long_ago = now - _REMEMBERED_SECONDS
        for name in [each for each, it in key.processes.items() if it.until < long_ago]:
            del key.processes[name]

    def _report(self, key: _KeyState, ask: LimitAsk, now: float) -> None:
        for use in ask.uses:
            key.turns += use.requests
            key.tokens += use.tokens
            for window in ask.windows:
                amount = use.tokens if window.counts_tokens else use.requests
                if amount:
                    self._count(key, window, now - use.ago, amount, now)

    def _count(
        self,
        key: _KeyState,
        window: LimitWindow,
        at: float,
        amount: int,
        now: float | None = None,
    ) -> None:
        number = math.floor(at / (window.seconds / _COUNTERS))
        if now is None or _gone_at(window, number) > now:
            counters = key.counters.setdefault(window.name, {})
            counters[number] = counters.get(number, 0) + amount

    def _grant(self, ask: LimitAsk, free: int, share: int) -> int:
        if free <= 0:
            return 0
        granted = min(ask.wanted, free)
        spare = min(
            ask.spare,
            (free - granted) // _SHARE_OF_FREE,
            max(1, share // _SHARE_OF_LIMIT),
        )
        return granted + spare

    def _reached(self, key: _KeyState, ask: LimitAsk, others: int, now: float) -> tuple[str, float]:
        """The limit that is reached: that on requests at once, or the one that lasts longest."""
        if ask.most >= 0 and others + ask.held >= ask.most:
            return MAX_CONCURRENT, 0.0
        reached, longest = "", 0.0
        for window in ask.windows:
            wait = self._wait(key, window, now)
            if wait > longest:
                reached, longest = window.name, wait
        return reached, longest

    def _wait(self, key: _KeyState, window: LimitWindow, now: float) -> float:
        counters = key.counters.get(window.name, {})
        over = sum(counters.values()) - window.limit
        if over < 0:
            return 0.0
        for number in sorted(counters):
            over -= counters[number]
            if over < 0:
                return _gone_at(window, number) - now
        return window.seconds

    def _another_waits(self, key: _KeyState, process: str, now: float) -> bool:
        return any(
            each.waits_until > now for name, each in key.processes.items() if name != process
        )


def _used(key: _KeyState, windows: Sequence[LimitWindow]) -> list[int]:
    """What was used in each window; permits that were given back may outlast their counters."""
    return [max(0, sum(key.counters.get(each.name, {}).values())) for each in windows]


def _gone_at(window: LimitWindow, number: int) -> float:
    """When a counter no longer counts."""
    return (number + 1) * (window.seconds / _COUNTERS) + window.seconds
