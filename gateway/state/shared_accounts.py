"""What processes tell each other of accounts while they run: cooldowns, and the turns on each.

Both are only for processes that run at the same time, so no backend writes them to disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.interfaces import IDelayedCall

from gateway.circuit_breaker import BreakerSnapshot, BreakerState
from gateway.protocol.error_classification import FaultKind
from gateway.routing.account import Account
from gateway.routing.cooldown import CooldownSnapshot
from gateway.state.backend import COOLDOWNS, IN_FLIGHT, Row
from gateway.state.replication import AccountTable
from gateway.state.serialization import AccountIds, decode, encode
from gateway.state.write_behind import WriteBehind

#: Between the parts of a row's key.
_AND = "\n"

#: How long a row of a cooldown is kept after its end, in seconds: later news must not overtake it.
_KEPT_SECONDS = 600.0

#: Where another process learned of a cooldown, its probe is given so many seconds to begin.
_OTHERS_FIRST_SECONDS = 0.2

#: The load of an account is told at most so often; again so often as long as there is any; and
#: what another process told is believed for so long.  All in seconds.
_TOLD_SECONDS = 0.1
_AGAIN_SECONDS = 2.0
_BELIEVED_SECONDS = 6.0

_CLOSED = CooldownSnapshot(BreakerSnapshot(BreakerState.CLOSED, 0.0, 0.0, None, 0))


class _WrittenCooldown(msgspec.Struct, array_like=True, frozen=True):
    """A cooldown as it is written.

    :ivar at: when it changed, unix seconds; later than each change that was known then.
    :ivar origin: the process in which it changed.
    """

    at: float
    origin: str
    state: BreakerState
    since: float
    until: float
    named: float | None
    strikes: int
    kind: FaultKind | None
    why: str

    @property
    def snapshot(self) -> CooldownSnapshot:
        """What it says."""
        breaker = BreakerSnapshot(self.state, self.since, self.until, self.named, self.strikes)
        return CooldownSnapshot(breaker, self.kind, self.why)


class _Known:
    """The latest change of one cooldown, and how it looks here since then."""

    __slots__ = ("cooldown", "version")

    def __init__(self, version: tuple[float, str], cooldown: CooldownSnapshot) -> None:
        self.version = version
        self.cooldown = cooldown


class ReplicatedCooldowns(AccountTable):
    """The cooldowns of accounts and of their models: each has a row, and its latest change counts.

    A change gets a time that is later than every change known to its process, so all processes
    agree on the latest one, whatever the order in which they hear of it.  What is taken over from
    another process is never written again.

    When a cooldown is over, the process in which it began has a moment before the others to begin
    the probe, and the others wait for it.  So there is one probe at a time, or one for each process
    that has not heard of it yet.

    :param origin: names this process.
    """

    table = COOLDOWNS

    def __init__(
        self,
        accounts: Callable[[], Iterable[Account]],
        writes: WriteBehind,
        ids: AccountIds,
        now: Callable[[], float],
        origin: str,
    ) -> None:
        super().__init__(accounts, writes, ids, now)
        self._origin = origin
        self._latest = 0.0
        #: By account and name.
        self._known: dict[str, dict[str, _Known]] = {}

    def _follow(self, account: Account, changed: Callable[[], None]) -> None:
        account.health.cooldowns_changed = changed

    def _changed(self, account: Account) -> None:
        written = self._ids.id_of(account.name)
        if written is None:
            return
        known = self._known.setdefault(written, {})
        current = account.health.cooldowns()
        for name, cooldown in current.items():
            before = known.get(name)
            if before is None:
                news = cooldown.breaker.state is not BreakerState.CLOSED
            else:
                news = before.cooldown != cooldown
            if news:
                self._tell(written, name, cooldown)
        for name, before in list(known.items()):
            if name in current:
                continue
            if before.cooldown.breaker.state is not BreakerState.CLOSED:
                self._tell(written, name, _CLOSED)
            elif before.version[0] < self._now() - _KEPT_SECONDS:
                del known[name]

    def _tell(self, account: str, name: str, cooldown: CooldownSnapshot) -> None:
        # Times of the same clock may be equal; a change that follows another one is later.
        self._latest = at = max(self._now(), self._latest + 1e-6)
        self._known[account][name] = _Known((at, self._origin), cooldown)
        breaker = cooldown.breaker
        written = _WrittenCooldown(at, self._origin, *breaker, cooldown.kind, cooldown.why)
        until = max(at, breaker.until) + _KEPT_SECONDS
        key = f"{account}{_AND}{name}".encode(errors="surrogatepass")
        self._writes.put(Row(COOLDOWNS, key, encode(written), until))

    def apply(self, row: Row) -> None:
        """Take over a cooldown, unless a later change of it is known."""
        written, _, name = row.key.decode(errors="surrogatepass").partition(_AND)
        told = None if row.value is None else decode(row.value, _WrittenCooldown)
        account = self._account(written)
        if told is None or account is None or told.origin == self._origin:
            return
        version = (told.at, told.origin)
        known = self._known.setdefault(written, {})
        before = known.get(name)
        if before is not None and before.version >= version:
            return
        self._latest = max(self._latest, told.at)
        cooldown = told.snapshot
        if told.state is BreakerState.OPEN and told.until > self._now():
            later = told.until + _OTHERS_FIRST_SECONDS
            cooldown = cooldown._replace(breaker=cooldown.breaker._replace(until=later))
        account.health.restore_cooldowns({name: cooldown})
        here = account.health.cooldowns().get(name, _CLOSED)
        known[name] = _Known(version, here)


class _WrittenLoad(msgspec.Struct, array_like=True, frozen=True):
    """The turns of one process on one account.

    :ivar requests: in the last minute.
    """

    in_flight: int
    requests: int


class SharedLoads(AccountTable):
    """The turns that run on accounts in other processes, and their requests of the last minute.

    Only for accounts with a limit on either.  The limits hold over all processes but for what
    begins in them within the same tenth of a second.  A process that is gone is forgotten after
    some seconds.

    :param clock: the reactor.
    :param origin: names this process.
    :param freed: called when another process has given back a place.
    """

    table = IN_FLIGHT

    def __init__(
        self,
        accounts: Callable[[], Iterable[Account]],
        writes: WriteBehind,
        ids: AccountIds,
        clock: Any,
        origin: str,
        freed: Callable[[], None],
    ) -> None:
        super().__init__(accounts, writes, ids, clock.seconds)
        self._clock = clock
        self._origin = origin
        self._freed = freed
        #: What others told, by account and process, and until when it is believed.
        self._others: dict[str, dict[str, tuple[_WrittenLoad, float]]] = {}
        #: The accounts whose load is told soon, and those whose load was told and is not nothing.
        self._changes: dict[str, Account] = {}
        self._told: dict[str, Account] = {}
        self._soon: IDelayedCall | None = None
        self._again: IDelayedCall | None = None

    def watch(self) -> None:
        """Follow the accounts that are in service now and have such a limit."""
        for account in self._accounts():
            limited = account.has_load_limits
            account.load_changed = partial(self._changed, account) if limited else None
            self._followed[account.name] = account
            written = self._ids.id_of(account.name)
            if limited and written in self._others:
                self._count(account, self._others[written])

    def stop(self) -> None:
        """Tell nothing more."""
        for call in (self._soon, self._again):
            if call is not None and call.active():
                call.cancel()

    def _changed(self, account: Account) -> None:
        self._changes[account.name] = account
        if self._soon is None:
            self._tell()
            self._soon = self._clock.callLater(_TOLD_SECONDS, self._tell_more)

    def _tell_more(self) -> None:
        self._soon = None
        if self._changes:
            self._tell()
            self._soon = self._clock.callLater(_TOLD_SECONDS, self._tell_more)

    def _tell(self) -> None:
        changes, self._changes = self._changes, {}
        for name, changed in changes.items():
            # Of an account that was made anew; it counts the turns that still run on this one.
            account = self._followed.get(name, changed)
            written = self._ids.id_of(name)
            if written is None:
                self._told.pop(name, None)
                continue
            load = _WrittenLoad(*account.load)
            key = f"{written}{_AND}{self._origin}".encode(errors="surrogatepass")
            until = self._now() + _BELIEVED_SECONDS
            self._writes.put(Row(IN_FLIGHT, key, encode(load), until))
            if any(account.load):
                self._told[name] = account
            else:
                self._told.pop(name, None)
        self._watch_time()

    def apply(self, row: Row) -> None:
        """Take the load of an account in another process."""
        written, _, origin = row.key.decode(errors="surrogatepass").partition(_AND)
        load = None if row.value is None else decode(row.value, _WrittenLoad)
        if load is None or not origin or origin == self._origin:
            return
        others = self._others.setdefault(written, {})
        others[origin] = (load, self._now() + _BELIEVED_SECONDS)
        account = self._account(written)
        if account is not None and account.has_load_limits:
            self._count(account, others)
        self._watch_time()

    def _count(self, account: Account, others: dict[str, tuple[_WrittenLoad, float]]) -> None:
        in_flight = sum(load.in_flight for load, _ in others.values())
        requests = sum(load.requests for load, _ in others.values())
        if account.loaded_elsewhere(in_flight, requests):
            self._freed()

    def _watch_time(self) -> None:
        if self._again is None and (self._told or self._others):
            self._again = self._clock.callLater(_AGAIN_SECONDS, self._time_passes)

    def _time_passes(self) -> None:
        """Tell again what others will forget, and forget those that told nothing for long."""
        self._again = None
        now = self._now()
        for written, others in list(self._others.items()):
            gone = [origin for origin, (_, until) in others.items() if until <= now]
            for origin in gone:
                del others[origin]
            account = self._account(written) if gone else None
            if account is not None:
                self._count(account, others)
            if not others:
                del self._others[written]
        self._changes.update(self._told)
        self._tell()
