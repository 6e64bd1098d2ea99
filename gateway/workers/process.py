"""One worker as its supervisor sees it: a process that is started, watched, stopped, restarted.

::

    RESTING ──spawned──▶ STARTING ──ready──▶ READY
       ▲ │                │   │               │ │
       │ └──stopped──┐    │   └────stopped────┤ │
       │             ▼    │                   ▼ │
       │           GONE ◀─┼─────exited── STOPPING│
       └──────────────────┴──────exited──────────┘
"""

from __future__ import annotations

import enum
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.inheritance import LINK, bequest
from gateway.worker_link import Link, LinkBusy, connect_link
from gateway.workers import orders

_log = Logger(namespace="gateway.workers")

#: A worker that ended is started again after so many seconds; each further time doubles it.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0

#: A worker that was ready for so long, in seconds, begins with the first pause again.
_SETTLED_SECONDS = 60.0

#: How long a worker may take until it is ready, in seconds.
_START_SECONDS = 120.0

#: A worker that does not answer for so long, in seconds, is stuck for good, and killed.
_STUCK_SECONDS = 60.0
_PING_SECONDS = 10.0


#: What systemd tells the process that it started.
_NOT_FOR_WORKERS = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")


class WorkerState(enum.Enum):
    """The states of the drawing above."""

    RESTING = "resting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    GONE = "gone"


class WorkerEvent(enum.Enum):
    """What changes the state of a worker."""

    SPAWNED = "spawned"
    READY = "ready"
    STOPPED = "stopped"
    EXITED = "exited"


_S, _E = WorkerState, WorkerEvent

TRANSITIONS = {
    (_S.RESTING, _E.SPAWNED): _S.STARTING,
    (_S.RESTING, _E.STOPPED): _S.GONE,
    (_S.STARTING, _E.READY): _S.READY,
    (_S.STARTING, _E.EXITED): _S.RESTING,
    (_S.STARTING, _E.STOPPED): _S.STOPPING,
    (_S.READY, _E.EXITED): _S.RESTING,
    (_S.READY, _E.STOPPED): _S.STOPPING,
    (_S.STOPPING, _E.READY): _S.STOPPING,
    (_S.STOPPING, _E.STOPPED): _S.STOPPING,
    (_S.STOPPING, _E.EXITED): _S.GONE,
    (_S.GONE, _E.STOPPED): _S.GONE,
}


class WorkerProcess(ProcessProtocol):
    """A worker: its process, its link, and what becomes of it.

    :param number: from 1; a restarted worker keeps it.
    :param command: starts the process.
    :param descriptors: called for the open files that it inherits, by name.
    :param linked: called when it has a new link, before anything was said on it.
    :param changed: called after each change of its state.
    :ivar state: what it does.
    :ivar link: to the process that runs now or ran last.
    :ivar pid: of the process that runs, or None.
    :ivar restarts: how often it was started again.
    :ivar started_at: when the process was started, in seconds of the clock.
    :ivar failed_with: the line that the worker could not start with, or None.
    """

    def __init__(
        self,
        reactor: Any,
        number: int,
        command: Sequence[str],
        descriptors: Callable[[], Mapping[str, Sequence[int]]],
        linked: Callable[[WorkerProcess], None],
        changed: Callable[[WorkerProcess], None],
    ) -> None:
        self._reactor = reactor
        self.number = number
        self._command = command
        self._descriptors = descriptors
        self._linked = linked
        self._changed = changed
        self._timer: IDelayedCall | None = None
        self._ends_in_a_row = 0
        self._answered_at = 0.0
        self._process: Any = None
        self.state = WorkerState.RESTING
        self.link = Link(reactor)
        self.restarts = -1
        self.pid: int | None = None
        self.started_at = 0.0
        self.failed_with: str | None = None

    # ---- what is asked of it

    def start(self) -> None:
        """Start the process; if the system cannot make one now, it is tried again."""
        self._stop_timer()
        try:
            self._spawn()
        except OSError as error:
            self.link.close()
            pause = self._next_pause()
            _log.error(
                "worker {number} cannot be started: {reason}; tried again in {pause:g} s",
                number=self.number,
                reason=error.strerror or str(error),
                pause=pause,
            )
            self._timer = self._reactor.callLater(pause, self.start)
            return
        self.pid = self._process.pid  # Twisted forgets it before it tells of the end
        self._timer = self._reactor.callLater(_START_SECONDS, self._too_slow)
        self._move(WorkerEvent.SPAWNED)

    def _spawn(self) -> None:
        self.restarts += 1
        self.failed_with = None
        self.started_at = self._reactor.seconds()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self.link = Link(self._reactor)
            self._linked(self)
            files, told = bequest({LINK: [theirs.fileno()], **self._descriptors()})
            connect_link(self._reactor, ours.detach(), self.link)
            kept = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_FOR_WORKERS)}
            # It imports what this process does, wherever that was found.
            found = os.pathsep.join(filter(None, sys.path))
            environ = {**kept, "PYTHONPATH": found, **told}
            nothing = os.open(os.devnull, os.O_RDONLY)
            try:
                self._process = self._reactor.spawnProcess(
                    self,
                    self._command[0],
                    list(self._command),
                    env=environ,
                    childFDs={0: nothing, 1: 1, 2: 2, **files},
                )
            finally:
                os.close(nothing)

    def became_ready(self) -> None:
        """The worker accepts connections."""
        if self.state in (WorkerState.RESTING, WorkerState.GONE):
            return  # it said so with its last breath
        self._stop_timer()
        if self.state is WorkerState.STARTING:
            self._answered_at = self._reactor.seconds()
            self._timer = self._reactor.callLater(_PING_SECONDS, self._ping)
        self._move(WorkerEvent.READY)

    def stop(self, order: orders.StopOrder) -> None:
        """Tell the worker to end once its turns have; it is not started again."""
        self._stop_timer()
        running = self._process is not None
        if running and not self.link.tell(orders.STOP, orders.encode(order)):
            self.kill()
        self._move(WorkerEvent.STOPPED)

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            with suppress(ProcessExitedAlready):
                self._process.signalProcess(signal.SIGKILL)

    # ---- what becomes of it

    def processExited(self, reason: Failure) -> None:
        """The process has ended."""
        self._stop_timer()
        self.link.close()
        pid, self._process, self.pid = self.pid, None, None
        asked = self.state is WorkerState.STOPPING
        if not asked:
            self._rest(pid, reason)
        self._move(WorkerEvent.EXITED)

    def _rest(self, pid: int | None, reason: Failure) -> None:
        """Start it again after a pause."""
        ran = self._reactor.seconds() - self.started_at
        if self.state is WorkerState.READY and ran >= _SETTLED_SECONDS:
            self._ends_in_a_row = 0
        pause = self._next_pause()
        _log.error(
            "worker {number} (process {pid}) ended after {ran:.1f} s: {reason}; it is started again"
            " in {pause:g} s",
            number=self.number,
            pid=pid,
            ran=ran,
            reason=self.failed_with or _words(reason),
            pause=pause,
        )
        self._timer = self._reactor.callLater(pause, self.start)

    def _next_pause(self) -> float:
        """The seconds until the next start, longer each time."""
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._ends_in_a_row, 10))
        self._ends_in_a_row += 1
        return pause

    def _too_slow(self) -> None:
        self._timer = None
        self.failed_with = f"it was not ready within {_START_SECONDS:g} s"
        self.kill()

    def _ping(self) -> None:
        """See whether the worker's reactor still turns."""
        self._timer = None
        link = self.link

        def answered(_: bytes) -> None:
            if link is self.link and self.state is WorkerState.READY:
                self._answered_at = self._reactor.seconds()
                self._timer = self._reactor.callLater(_PING_SECONDS, self._ping)

        def silent(failure: Failure) -> None:
            if link is self.link and self.state is WorkerState.READY and link.is_open:
                since = self._reactor.seconds() - self._answered_at
                if failure.check(LinkBusy) and since < _STUCK_SECONDS:  # it was not even asked
                    self._timer = self._reactor.callLater(_PING_SECONDS, self._ping)
                    return
                self.failed_with = f"it did nothing for {_STUCK_SECONDS:g} s"
                self.kill()

        asked = link.call(orders.PING, seconds=_STUCK_SECONDS)
        asked.addCallbacks(answered, silent)

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _move(self, event: WorkerEvent) -> None:
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise AssertionError(f"a worker that is {self.state} cannot be {event}") from None
        self._changed(self)


def _words(reason: Failure) -> str:
    """How a process ended, in a few words."""
    number = getattr(reason.value, "signal", None)
    if number is not None:
        return f"signal {signal.Signals(number).name}"
    return f"exit status {getattr(reason.value, 'exitCode', None)}"
