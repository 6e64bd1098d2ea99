"""The upgrade: a successor takes the listening sockets before the process that runs is drained.

SIGUSR2 starts the same command line again, with the code and the configuration as they are now.
The successor inherits the listening sockets and what else may have one owner at a time, and says
through a pipe that it accepts connections.  Then this process stops to accept, lets its turns end
and ends.  If the successor is late or fails, this process goes on as before.
"""

from __future__ import annotations

import enum
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.inheritance import READY, Descriptors, Inheritance, Succession, bequest

_log = Logger(namespace="gateway.upgrade")

#: How long a successor may take until it is ready, in seconds.
_START_SECONDS = 180.0

_WORD = b"ready"

#: Names of the environment that are for one process only.
_NOT_FOR_SUCCESSORS = ("LISTEN_", "WATCHDOG_PID")


def tell_ready(inheritance: Inheritance) -> None:
    """Tell the process before this one that it may go."""
    for number in inheritance.of(READY):
        with suppress(OSError):  # it has not waited
            os.write(number, _WORD)
        os.close(number)


class UpgradeState(enum.Enum):
    """The states of an upgrade."""

    IDLE = "idle"
    STARTING = "starting"
    HANDED_OVER = "handed over"
    NO_MORE = "no more"


#: The states that may follow each state.
TRANSITIONS = {
    UpgradeState.IDLE: {UpgradeState.STARTING, UpgradeState.NO_MORE},
    UpgradeState.STARTING: {UpgradeState.IDLE, UpgradeState.HANDED_OVER, UpgradeState.NO_MORE},
    UpgradeState.HANDED_OVER: set[UpgradeState](),
    UpgradeState.NO_MORE: set[UpgradeState](),
}


class Upgrade(ProcessProtocol):
    """Starts a successor, and hands over to it.

    :param command: the command line of this process.
    :param folder: where the command line is to be run.
    :param succession: called for what the successor gets from twistd.
    :param descriptors: called for what it inherits.
    :param hand_over: called with its process id, when it is ready.
    :ivar state: how far it is.
    """

    def __init__(
        self,
        reactor: Any,
        command: list[str],
        folder: str,
        succession: Callable[[], Succession],
        descriptors: Callable[[], Descriptors],
        hand_over: Callable[[int], None],
    ) -> None:
        self._reactor = reactor
        self._command = command
        self._folder = folder
        self._succession = succession
        self._descriptors = descriptors
        self._hand_over = hand_over
        self._said = b""
        self._late: IDelayedCall | None = None
        self._place = 0
        self._alive = False
        self.state = UpgradeState.IDLE

    def begin(self) -> None:
        """Start a successor, unless one is on its way."""
        if self.state is UpgradeState.NO_MORE:
            _log.warn("no upgrade: the gateway stops")
            return
        if self.state is not UpgradeState.IDLE or self._alive:
            _log.warn("there is a successor already")
            return
        self._enter(UpgradeState.STARTING)
        self._said = b""
        descriptors = {**self._descriptors(), READY: [-1]}
        files, told = bequest(descriptors)
        (self._place,) = (place for place, number in files.items() if number < 0)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_FOR_SUCCESSORS)}
        environ = {**kept, **told, **self._succession().environ}
        nothing = os.open(os.devnull, os.O_RDONLY)
        pipes: dict[int, int | str] = {0: nothing, 1: 1, 2: 2, **files, self._place: "r"}
        try:
            self._reactor.spawnProcess(
                self,
                self._command[0],
                self._command,
                env=environ,
                path=self._folder,
                childFDs=pipes,
            )
        except OSError as error:
            self._fail(f"cannot be started: {error.strerror}")
            return
        finally:
            os.close(nothing)
        self._alive = True
        _log.info("a successor starts: process {pid}", pid=self._pid)
        self._late = self._reactor.callLater(_START_SECONDS, self._too_late)

    def give_up(self) -> None:
        """This process stops for good: end a successor that has not taken over yet."""
        if self.state is UpgradeState.STARTING:
            _log.warn("the gateway stops: its successor, process {pid}, is ended", pid=self._pid)
            self._stop_timer()
            self._kill()
        if self.state is not UpgradeState.HANDED_OVER and self.state is not UpgradeState.NO_MORE:
            self._enter(UpgradeState.NO_MORE)

    @property
    def _pid(self) -> int:
        return int(self.transport.pid) if self.transport is not None else 0

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """The successor says something: there is one word that it may say."""
        if childFD != self._place or self.state is not UpgradeState.STARTING:
            return
        self._said = (self._said + data)[: len(_WORD)]
        if self._said == _WORD:
            self._stop_timer()
            self._enter(UpgradeState.HANDED_OVER)
            _log.info("process {pid} has taken over", pid=self._pid)
            self._hand_over(self._pid)

    def processExited(self, reason: Failure) -> None:
        """The successor has ended."""
        self._alive = False
        if self.state is UpgradeState.STARTING:
            self._fail("ended before it was ready")
        elif self.state is UpgradeState.HANDED_OVER:
            _log.error("the successor ended while this process lets its turns end")

    def _too_late(self) -> None:
        self._late = None
        self._fail(f"was not ready within {_START_SECONDS:g} s")
        self._kill()

    def _kill(self) -> None:
        if self.transport is not None:
            with suppress(ProcessExitedAlready):
                self.transport.signalProcess(signal.SIGKILL)

    def _fail(self, why: str) -> None:
        self._stop_timer()
        self._enter(UpgradeState.IDLE)
        _log.error("no upgrade: the successor {why}; this process goes on", why=why)

    def _stop_timer(self) -> None:
        late, self._late = self._late, None
        if late is not None and late.active():
            late.cancel()

    def _enter(self, state: UpgradeState) -> None:
        if state not in TRANSITIONS[self.state]:
            raise AssertionError(f"an upgrade cannot go from {self.state} to {state}")
        self.state = state


def command_line() -> list[str]:
    """How this process was started: the interpreter, its options, the script and its arguments."""
    return [sys.executable, *sys.orig_argv[1:]]
