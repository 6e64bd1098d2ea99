"""Empties the gateway of its clients: for a stop, for a load balancer, for a successor.

New requests are refused, unless another process takes them.  Idle HTTP connections close at once,
busy ones after their answer.  WebSocket connections close between turns, spread over some time, so
that their clients do not all reconnect in the same moment.
"""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from gateway.server.connections import ConnectionLimiter
from gateway.server.websocket import ResponsesFactory, ResponsesProtocol
from gateway.turn.turn_log import TurnLog, TurnRecord

#: How long connections may take to close after their turns were ended, in seconds.
_CLOSE_SECONDS = 2.0

#: A few connections need less time than ``drain_spread_seconds``: this many close in a second.
_MOVES_PER_SECOND = 10.0

#: WebSockets close over at most this part of a stop's time, and wait as long for a quiet moment:
#: the rest is for the turns that have begun by then.
_SHARE = 1 / 3

#: Connections whose times are so close together are told together, in seconds.
_STEP_SECONDS = 0.01

#: How often connections are looked for that came while the gateway was emptied, in seconds.
_LOOK_SECONDS = 0.5

#: How long a process that handed its listener over waits for the requests of connections that it
#: had accepted, in seconds.
_SILENT_SECONDS = 1.0

#: The error code of the turns that a stop ends.
_CUT = "gateway_restart"

_log = Logger(namespace="gateway.drain")


class DrainState(enum.Enum):
    """What the gateway does with its clients."""

    SERVING = "serving"
    DRAINING = "draining"
    STOPPING = "stopping"


#: The states that may follow each state.
TRANSITIONS = {
    DrainState.SERVING: {DrainState.DRAINING, DrainState.STOPPING},
    DrainState.DRAINING: {DrainState.SERVING, DrainState.STOPPING},
    DrainState.STOPPING: set[DrainState](),
}


class DrainFigures(NamedTuple):
    """A drain so far.

    :ivar state: the value of the :class:`DrainState`.
    :ivar seconds: since it began.
    :ivar seconds_left: until running turns are ended; None: they have all the time they need.
    :ivar connections_left: open connections, and background turns without one.
    :ivar websockets_left: those of them that are WebSockets.
    :ivar turns_left: turns that run over WebSockets.
    :ivar completed: turns that have ended by themselves meanwhile.
    :ivar moved: WebSocket connections that were closed between turns.
    :ivar cut: turns that were ended because the time was up.
    """

    state: str
    seconds: float
    seconds_left: float | None
    connections_left: int
    websockets_left: int
    turns_left: int
    completed: int
    moved: int
    cut: int


class Drain:
    """Empties the gateway, or lets clients in again.

    :param clock: the clock.
    :param limiter: the connections of clients.
    :param websockets: those that are WebSockets.
    :param turn_log: has the turns that end.
    :param shutdown_seconds: how long running turns may take at a stop; may change before it.
    :param handover_seconds: the same at a stop after a successor has taken over.
    :param spread_seconds: over how long WebSockets close; may change.
    :ivar state: what it does.
    :ivar handed_over: whether another process listens for new clients.  Set it before the drain;
        then nobody is refused, and ``stop_listening`` is called first.
    :ivar has_successor: whether that process serves them already, so that the turns here may take
        ``handover_seconds``.  Set it before the drain.
    :ivar watchers: called when the state has changed.
    :ivar stop_listening: stops this process's listening.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limiter: ConnectionLimiter,
        websockets: ResponsesFactory,
        turn_log: TurnLog,
        shutdown_seconds: float = 30.0,
        spread_seconds: float = 5.0,
        handover_seconds: float = 900.0,
    ) -> None:
        self.state = DrainState.SERVING
        self.handed_over = self.has_successor = False
        self.watchers: list[Callable[[], None]] = []
        self.stop_listening: Callable[[], Any] = lambda: None
        self.shutdown_seconds = shutdown_seconds
        self.handover_seconds = handover_seconds
        self.spread_seconds = spread_seconds
        self._clock = clock
        self._limiter = limiter
        self._websockets = websockets
        self._began = 0.0
        self._deadline: float | None = None
        self._told: set[ResponsesProtocol] = set()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._look_at = 0.0
        self._timer: IDelayedCall | None = None
        self._ended = self._cut = self._moved_before = 0
        self._earlier = {"completed": 0, "moved": 0, "cut": 0}
        turn_log.watchers.append(self._turn_ended)

    # --- what is asked of it -----------------------------------------------------------

    @property
    def stop_seconds(self) -> float:
        """How long running turns may take at a stop as things are now."""
        return self.handover_seconds if self.has_successor else self.shutdown_seconds

    def begin(self) -> None:
        """Empty the gateway, without a deadline.  May be called again."""
        if self.state is not DrainState.SERVING:
            return
        self._enter(DrainState.DRAINING)
        self._start()
        self._limiter.call_when_empty(self._emptied)

    def resume(self) -> bool:
        """Let clients in again; connections that stayed open go on.

        :return: whether it could: not at a stop.
        """
        if self.state is DrainState.DRAINING:
            self._enter(DrainState.SERVING)
            self._stop_timer()
            self._limiter.open_doors()
            for protocol in self._websockets.connections:
                protocol.stay()
            self._keep_totals()
        return self.state is DrainState.SERVING

    def finish(self) -> Deferred[None]:
        """Empty the gateway for a stop: running turns have :attr:`stop_seconds`.

        :return: fires when all clients are gone, or time is up; at once when it is asked again.
        """
        already = self.state is DrainState.DRAINING  # by the operator
        if self.state is DrainState.STOPPING:
            return succeed(None)
        self._enter(DrainState.STOPPING)
        seconds = self.stop_seconds
        self._deadline = self._clock.seconds() + seconds
        finished: Deferred[None] = Deferred()
        calls = [self._clock.callLater(seconds, self.abandon)]

        def done() -> None:
            for call in calls:
                if call.active():
                    call.cancel()
            if not finished.called:
                self._stop_timer()
                self._log_summary()
                finished.callback(None)

        calls.append(self._clock.callLater(seconds + _CLOSE_SECONDS, done))
        if not already:
            self._start()
        elif self.handed_over:
            self.stop_listening()
            self._limiter.close_doors(refuse=False)
        if self.handed_over and self._timer is None:
            self._step()  # clients may come whose connections were accepted before
        wait = _SILENT_SECONDS if self.handed_over and self._limiter.silent else 0.0
        if wait:
            calls.append(self._clock.callLater(wait, self._limiter.call_when_empty, done))
        else:
            self._limiter.call_when_empty(done)
        return finished

    def abandon(self) -> None:
        """End the turns that run, because there is no more time."""
        self._limiter.abandon()

    @property
    def figures(self) -> DrainFigures | None:
        """The drain so far; None while the gateway serves."""
        if self.state is DrainState.SERVING:
            return None
        now = self._clock.seconds()
        left = None if self._deadline is None else max(0.0, round(self._deadline - now, 1))
        sessions = self._websockets.sessions()
        return DrainFigures(
            self.state.value,
            round(now - self._began, 1),
            left,
            len(self._limiter),
            len(self._websockets.connections),
            sum(session.turns_running for session in sessions),
            **self._counts(),
        )

    @property
    def totals(self) -> dict[str, int]:
        """What became of turns and connections, over all drains: completed, moved, cut."""
        counts = self._counts() if self.state is not DrainState.SERVING else {}
        return {name: count + counts.get(name, 0) for name, count in self._earlier.items()}

    # --- on the way --------------------------------------------------------------------

    def _start(self) -> None:
        self._began = self._clock.seconds()
        self._ended = self._cut = 0
        self._moved_before = self._websockets.moved
        self._look_at = self._began
        if self.handed_over:
            self.stop_listening()
        websockets = frozenset(self._websockets.connections)
        self._limiter.drain(websockets, refuse=not self.handed_over)
        if self._limiter:
            self._step()

    def _plan(self, websockets: Sequence[ResponsesProtocol]) -> None:
        """Give each connection its time."""
        patience = min(self.spread_seconds, self.stop_seconds * _SHARE)
        window = min(patience, len(websockets) / _MOVES_PER_SECOND)
        self._told.update(websockets)
        now = self._clock.seconds()
        for place, protocol in enumerate(random.sample(websockets, len(websockets))):
            due = now + window * (place + random.random()) / len(websockets)
            number = next(self._numbers)
            roll_over: Callable[[], None] = partial(protocol.roll_over, patience)
            heappush(self._due, (due, number, roll_over))
            heappush(self._due, (due + patience, number, protocol.end_with_turn))

    def _step(self) -> None:
        """Tell the connections whose time has come, and now and then look for new ones."""
        now = self._clock.seconds()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            new = [each for each in self._websockets.connections if each not in self._told]
            if new:
                self._plan(new)
        while self._due and self._due[0][0] <= now:
            heappop(self._due)[2]()
        following = min(self._due[0][0], self._look_at) if self._due else self._look_at
        self._timer = self._clock.callLater(max(following - now, _STEP_SECONDS), self._step)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        self._due.clear()
        self._told.clear()

    def _emptied(self) -> None:
        """No client is left; a stop logs that itself."""
        if self.state is DrainState.DRAINING:
            self._log_summary()

    def _turn_ended(self, record: TurnRecord) -> None:
        if self.state is DrainState.SERVING:
            return
        if record.error_code == _CUT:
            self._cut += 1
        else:
            self._ended += 1

    def _counts(self) -> dict[str, int]:
        moved = self._websockets.moved - self._moved_before
        return {"completed": self._ended, "moved": moved, "cut": self._cut}

    def _keep_totals(self) -> None:
        for name, count in self._counts().items():
            self._earlier[name] += count

    def _log_summary(self) -> None:
        _log.info(
            "drained in {seconds:.1f} s: {completed} turns completed, {moved} connections moved,"
            " {cut} turns cut",
            seconds=self._clock.seconds() - self._began,
            **self._counts(),
        )

    def _enter(self, state: DrainState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"the gateway cannot go from {self.state} to {state}")
        self.state = state
        for watch in self.watchers:
            watch()
