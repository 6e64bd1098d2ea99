"""A process's part of the limits that several processes share: permits, and what it reports.

A request of a key with limits needs a permit.  Usually one is at hand that was granted in advance;
else the request waits for the authority while its conversation is looked up, at most
:data:`ASK_SECONDS`.  When the authority does not answer, requests go on within the limits of this
process alone, and what they use is reported later.  A key without limits only reports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.api_keys.limit_ledger import (
    KeyUsage,
    LimitAnswer,
    LimitAsk,
    LimitAuthority,
    LimitWindow,
)

#: How long a request waits for the authority, in seconds.
ASK_SECONDS = 0.25

#: When an ask without an answer has failed, in seconds.
_GIVE_UP_SECONDS = 2.0

#: How long a permit in advance is kept, in seconds.
_SPARE_SECONDS = 1.0

#: How long an answer that a limit is reached is believed, in seconds.
_REACHED_SECONDS = 0.1

#: Pauses in seconds: between looks at what is due, before use is reported, before the places that
#: are held are confirmed, and before an authority that did not answer is tried again.
_TICK_SECONDS = 0.25
_REPORT_SECONDS = 0.5
_CONFIRM_SECONDS = 3.0
_RETRY_SECONDS = 1.0

#: How long what others have used counts as new for somebody who looks at it, in seconds.
_FRESH_SECONDS = 2.0

#: Bound on the uses of a key that wait to be reported; earlier ones are joined.
_MAX_USES = 120

#: Bound on the permits in advance that are asked for at once.
_MAX_SPARE = 1_000

_log = Logger(namespace="gateway.api_keys")


class Reached(NamedTuple):
    """A limit is reached in all processes together.

    :ivar limit: its name, or "" where that is not known yet.
    :ivar free_at: unix seconds; None for at any time.
    """

    limit: str
    free_at: float | None


class SharedLimits:
    """The shared limits of all keys.

    :param clock: the reactor.
    :param process: names this process.
    :param tell_freed: called with a key's name when another process waits for a place of it.
    :param freed: called when requests that wait may get a permit.
    :ivar reachable: whether the authority answers.
    """

    def __init__(
        self,
        clock: Any,
        authority: LimitAuthority,
        process: str,
        tell_freed: Callable[[str], None],
        freed: Callable[[], None],
    ) -> None:
        self.clock = clock
        self.authority = authority
        self.process = process
        self.tell_freed = tell_freed
        self.freed = freed
        self.reachable = True
        self._keys: dict[str, SharedKey] = {}
        self._retry_at = 0.0
        self._tick: IDelayedCall | None = None
        self._stopped = False

    def key(
        self,
        tenant: str,
        running: Callable[[], int],
        earlier: Callable[[], Iterable[tuple[float, int, int]]],
    ) -> SharedKey:
        """The part of a key; one that it had before is replaced.

        :param running: how many requests of it run in this process.
        :param earlier: what it has used in this process: unix seconds, requests, tokens.
        """
        self._keys[tenant] = key = SharedKey(self, tenant, running, earlier)
        return key

    def forget(self, tenant: str) -> None:
        """The key is no longer configured."""
        self._keys.pop(tenant, None)

    def freed_elsewhere(self, tenant: str) -> None:
        """Another process has given back a place."""
        key = self._keys.get(tenant)
        if key is not None and key.reached is not None:
            key.reached = None
            self.freed()

    def stop(self) -> None:
        """Ask nothing more; running requests are reported, and free at once."""
        self._stopped = True
        if self._tick is not None and self._tick.active():
            self._tick.cancel()
        for key in self._keys.values():
            key.leave()

    # --- for its keys ------------------------------------------------------------------

    def watch(self) -> None:
        """A key has something that time will change."""
        if self._tick is None and not self._stopped:
            self._tick = self.clock.callLater(_TICK_SECONDS, self._time_passes)

    def failed(self, why: str) -> None:
        """The authority did not answer; at the end of this process that is no news."""
        if self._stopped:
            return
        self._retry_at = self.clock.seconds() + _RETRY_SECONDS
        if self.reachable:
            self.reachable = False
            _log.warn("limits hold for this process alone: {why}", why=why)
            self.freed()
        self.watch()

    def answered(self) -> None:
        """The authority answered."""
        if not self.reachable:
            self.reachable = True
            _log.info("limits hold for all processes again")

    def _time_passes(self) -> None:
        self._tick = None
        now = self.clock.seconds()
        if not self.reachable and now < self._retry_at:
            self.watch()
            return
        alive = not self.reachable
        for key in list(self._keys.values()):
            alive = key.time_passes(now) or alive
            if not self.reachable:
                break  # one key tries whether the authority answers
        if alive:
            self.watch()


class SharedKey:
    """A key's permits, and its use that is not reported yet.

    :ivar reached: the limit that keeps it from more permits, as far as is known.
    :ivar answer: the last one of the authority, or None.
    """

    def __init__(
        self,
        shared: SharedLimits,
        tenant: str,
        running: Callable[[], int],
        earlier: Callable[[], Iterable[tuple[float, int, int]]],
    ) -> None:
        self._shared = shared
        self._tenant = tenant
        self._running = running
        self._earlier = earlier
        self._most = -1
        self._windows: list[LimitWindow] = []
        #: When each permit was granted, the oldest first.
        self._permits: deque[float] = deque()
        self._uses: list[tuple[float, int, int]] = []
        #: The report that was not answered yet: it is sent again under the same number.
        self._report: tuple[int, list[tuple[float, int, int]]] | None = None
        self._number = 0
        self._asking = False
        self._asked_at = 0.0
        self._soon: IDelayedCall | None = None
        #: Requests that wait for the answer to what was asked, and for the next ask.
        self._in_ask: list[Deferred[None]] = []
        self._waiting: list[Deferred[None]] = []
        #: Whether a request in the queue waits for a permit.
        self._wanted = False
        #: Requests since the last ask, when the last one came, and whether they come often.
        self._taken = 0
        self._taken_at = 0.0
        self._often = False
        self._last_spare = 0
        #: Until then none is asked for in advance, because too little was left.
        self._no_spare_until = 0.0
        self.reached: Reached | None = None
        self._reached_at = 0.0
        self.answer: LimitAnswer | None = None

    def reconfigure(self, most: int | None, windows: list[LimitWindow]) -> None:
        """Take these limits from now on."""
        self._most = -1 if most is None else most
        self._windows = windows
        self.reached = None

    @property
    def limited(self) -> bool:
        """Whether it has limits that all processes share."""
        return self._most >= 0 or bool(self._windows)

    @property
    def holds(self) -> bool:
        """Whether its requests need permits: if it has such limits, and the authority answers."""
        return self.limited and self._shared.reachable

    @property
    def used(self) -> dict[str, int]:
        """The use of its limits in all processes, as the authority said last."""
        if self.answer is None or len(self.answer.used) != len(self._windows):
            return {}
        return {each.name: used for each, used in zip(self._windows, self.answer.used, strict=True)}

    @property
    def totals(self) -> tuple[int, int] | None:
        """Turns and tokens ever, in all processes; None if that is not known."""
        answer = self.answer
        if answer is None:
            return None
        uses = [*self._uses, *(() if self._report is None else self._report[1])]
        turns = answer.turns - len(self._permits) + sum(use[1] for use in uses)
        return turns, answer.tokens + sum(use[2] for use in uses)

    @property
    def held(self) -> int | None:
        """Requests that run in all processes, and permits for more; None if that is not known."""
        return None if self.answer is None else self.answer.held

    def refresh(self) -> None:
        """Somebody looks at what other processes have used: ask for it, unless it is new."""
        if not 0 <= self._shared.clock.seconds() - self._asked_at < _FRESH_SECONDS:
            self._ask_soon()

    # --- requests ----------------------------------------------------------------------

    def prepare(self) -> Deferred[None] | None:
        """A request comes that needs a permit.

        :return: fires soon, without a value: when the authority has answered, or did not in time;
            None if there is nothing to wait for.
        """
        if self._permits or not self.holds or self._is_reached():
            return None
        asked: Deferred[None] = Deferred(self._waits_no_longer)
        self._waiting.append(asked)
        self._ask()
        if not asked.called:
            clock = self._shared.clock
            # After a pause of this process an answer may be there, but not read yet.
            late = clock.callLater(ASK_SECONDS, clock.callLater, 0, self._too_late, asked)
            asked.addBoth(_without, late)
        return asked

    def take(self) -> Reached | None:
        """Take a permit.

        :return: None if there was one.
        """
        if self._permits:
            self._permits.popleft()
            self._ask_in_advance()
            return None
        if not self._is_reached():
            self._wanted = True
            self._ask()
            if self._permits:  # an authority in this process answers at once
                return self.take()
        return self.reached or Reached("", None)

    def local(self, requests: int, tokens: int) -> None:
        """Report what was used without a permit."""
        self._add(self._shared.clock.seconds(), requests, tokens)
        self._shared.watch()

    def released(self) -> None:
        """A request is over; another process may wait for its place."""
        if self._most >= 0:
            self._ask_soon()
        self._shared.watch()

    def _is_reached(self) -> bool:
        if self.reached is None:
            return False
        age: float = self._shared.clock.seconds() - self._reached_at
        return 0 <= age < _REACHED_SECONDS

    def _waits_no_longer(self, asked: Deferred[None]) -> None:
        for each in (self._in_ask, self._waiting):
            if asked in each:
                each.remove(asked)

    def _too_late(self, asked: Deferred[None]) -> None:
        """The request goes on, as do later ones, within the limits of this process."""
        if not asked.called:
            self._waits_no_longer(asked)
            self._shared.failed(f"no answer within {ASK_SECONDS:g} s")
            asked.callback(None)

    # --- asking ------------------------------------------------------------------------

    def _ask_soon(self) -> None:
        if self._soon is None and self._shared.reachable:
            self._soon = self._shared.clock.callLater(0, self._ask)

    def _ask_in_advance(self) -> None:
        """A permit was taken: if requests come often, get others before the next one comes."""
        now = self._shared.clock.seconds()
        self._often = 0 <= now - self._taken_at < _SPARE_SECONDS
        self._taken = self._taken + 1 if self._often else 1
        self._taken_at = now
        if self._spare(now) and len(self._permits) * 2 <= self._last_spare:
            self._ask_soon()

    def _spare(self, now: float) -> int:
        """How many permits to ask for in advance: more each time, as long as all are used."""
        if not self._often or not self.limited or now < self._no_spare_until:
            return 0
        return min(max(self._taken, 2 * self._last_spare), _MAX_SPARE)

    def _ask(self) -> None:
        """Ask and report, once the ask before is answered."""
        if self._soon is not None:
            if self._soon.active():
                self._soon.cancel()
            self._soon = None
        if self._asking:
            return
        self._asking = True
        now = self._shared.clock.seconds()
        self._asked_at = now
        if self._report is None:
            self._number += 1
            self._report = (self._number, self._uses)
            self._uses = []
        number, uses = self._report
        wanted = max(len(self._waiting), int(self._wanted)) - len(self._permits)
        self._in_ask, self._waiting, self._wanted = self._waiting, [], False
        spare, self._taken = self._spare(now), 0
        ask = LimitAsk(
            self._shared.process,
            number,
            self._running() + len(self._permits),
            max(0, wanted) if self.limited else 0,
            spare,
            self._most,
            self._windows,
            [KeyUsage(max(0.0, now - at), requests, tokens) for at, requests, tokens in uses],
            self._tenant,
        )
        answer = self._shared.authority.exchange(ask)
        answer.addTimeout(_GIVE_UP_SECONDS, self._shared.clock)
        answer.addCallbacks(self._answered, self._failed, callbackArgs=(ask,))
        answer.addErrback(lambda failure: _log.failure("a limit could not be asked for", failure))

    def _answered(self, answer: LimitAnswer, ask: LimitAsk) -> None:
        self._asking = False
        sent = [] if self._report is None else self._report[1]
        self._report = None
        if self.answer is not None and answer.born > self.answer.born:
            self._tell_again(sent)
        self.answer = answer
        shared = self._shared
        now = shared.clock.seconds()
        shared.answered()
        self._permits.extend([now] * answer.granted)
        if ask.spare:
            self._last_spare = max(0, answer.granted - ask.wanted)
            if not self._last_spare:
                self._no_spare_until = now + _SPARE_SECONDS  # there is too little left
        if answer.reached:
            free_at = now + answer.wait if answer.wait > 0 else None
            self.reached, self._reached_at = Reached(answer.reached, free_at), now
        elif answer.granted or ask.wanted:
            self.reached = None
        if self._permits:
            shared.watch()
        if answer.wake:
            shared.tell_freed(self._tenant)
        self._wake()
        gave_back = self._running() + len(self._permits) < ask.held + answer.granted
        if self._waiting or self._wanted:
            self._ask()
        elif gave_back and self._most >= 0:
            self._ask_soon()

    def _tell_again(self, sent: list[tuple[float, int, int]]) -> None:
        """The authority has lost what was used: report it again, without what it has by now."""
        for use in self._earlier():
            self._add(*use)
        for at, requests, tokens in sent:
            self._add(at, -requests, -tokens)
        self._shared.watch()

    def _wake(self) -> None:
        """Requests that wait for the answer go on, then those in the queue.

        Where no limit is reached but permits are too few, the later ones wait for the next answer.
        """
        waiting, self._in_ask, self._waiting = [*self._in_ask, *self._waiting], [], []
        if self.reached is None:
            count = len(self._permits)
            waiting, self._waiting = waiting[:count], waiting[count:]
        self._go_on(waiting)
        if self._permits:
            self._shared.freed()

    def _failed(self, failure: Failure) -> None:
        """The report is sent again, under the same number, when the authority answers again."""
        self._asking = False
        self._shared.failed(failure.getErrorMessage() or "no answer")
        waiting, self._in_ask, self._waiting = [*self._in_ask, *self._waiting], [], []
        self._go_on(waiting)

    def _go_on(self, waiting: list[Deferred[None]]) -> None:
        for each in waiting:
            if not each.called:  # it may have ended because of one before
                each.callback(None)

    # --- reports -----------------------------------------------------------------------

    def _add(self, at: float, requests: int, tokens: int) -> None:
        uses = self._uses
        if uses and 0 <= at - uses[-1][0] < 1.0:
            last = uses[-1]
            uses[-1] = (last[0], last[1] + requests, last[2] + tokens)
            return
        uses.append((at, requests, tokens))
        if self._is_full():
            first, second = uses[0], uses[1]
            uses[:2] = [(second[0], first[1] + second[1], first[2] + second[2])]

    def _is_full(self) -> bool:
        return len(self._uses) > _MAX_USES

    def time_passes(self, now: float) -> bool:
        """Give back permits that nobody used, and report what is due.

        :return: whether there is anything that time will change.
        """
        late = 0
        while self._permits and not 0 <= now - self._permits[0] < _SPARE_SECONDS:
            self._add(self._permits.popleft(), -1, 0)
            late += 1
        if late:
            self._often, self._last_spare = False, 0
        held = self._running() + len(self._permits)
        reports = bool(self._uses) or self._report is not None
        since = now - self._asked_at
        if (
            late
            or (reports and not 0 <= since < _REPORT_SECONDS)
            or (held and self._most >= 0 and not 0 <= since < _CONFIRM_SECONDS)
            or (not self._shared.reachable)
        ):
            self._ask()
        return held > 0 or reports

    def leave(self) -> None:
        """The process stops: its places are free, and what was used is reported."""
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        if self._asking or not self._shared.reachable:
            return
        while self._permits:
            self._add(self._permits.popleft(), -1, 0)
        self._ask()


def _without(result: Any, late: IDelayedCall) -> Any:
    """The answer came, or nobody waits for it any more."""
    if late.active():
        late.cancel()
    return result
