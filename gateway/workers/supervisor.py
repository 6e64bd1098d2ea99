"""The supervisor: has the listening sockets, keeps workers running, and tells them what to do.

It accepts no client itself.  Parts of the supervisor that workers ask for something (tokens, the
state, limits, the operator's side) add themselves to :attr:`Supervisor.parts`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.application.internet import TimerService
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway.config import AccountSettings, Settings
from gateway.inheritance import NOTHING, Descriptors, Inheritance, listener_name
from gateway.log import LogFile
from gateway.service import built_in_simulator
from gateway.worker_link import CallFailed
from gateway.workers import orders
from gateway.workers.orders import LogOrder, Reconfiguration, StopOrder, WorkerOrder, encode
from gateway.workers.process import WorkerProcess, WorkerState
from gateway.workers.sockets import SharedListener, shares
from simulator import SimulatorService

_log = Logger(namespace="gateway.workers")

#: How long a worker may take to put changed settings into force, in seconds.
_RECONFIGURE_SECONDS = 30.0

#: How much longer than its turns a worker may take to end, in seconds.
_GRACE_SECONDS = 7.0

#: How often the size of the log file is looked at, in seconds: workers write most of it.
_ROTATE_SECONDS = 5.0

#: A part of the supervisor: adds its handlers to the link of a worker, at each start.
Part = Callable[[WorkerProcess], None]


class Supervisor(MultiService):
    """Starts workers, restarts them, stops them; hands them sockets and settings.

    :param settings: the configuration.
    :param count: how many workers.
    :param inherited: from the process that this one succeeds.
    :ivar settings: those in force.
    :ivar workers: all of them, whatever they do.
    :ivar parts: called for each worker that is started, when it has its link.
    :ivar ready: fires when all workers accept connections for the first time, and fails with
        :class:`CannotStart` when one cannot.
    :ivar handed_over: whether a successor goes on with the listening sockets.
    :ivar log: where workers log.
    :ivar log_file: the file that is logged to; None for standard output and syslog.
    """

    def __init__(
        self,
        settings: Settings,
        count: int,
        reactor: Any,
        inherited: Inheritance = NOTHING,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.parts: list[Part] = []
        self.ready: Deferred[None] = Deferred()
        self.handed_over = False
        self.log = LogOrder()
        self.log_file: LogFile | None = None
        self._reactor = reactor
        self._told_ready = self._stopping = False
        self._stopped: Deferred[None] = Deferred()
        self._kill_all: IDelayedCall | None = None
        self._simulator: SimulatorService | None = None
        if not settings.accounts:
            # One for all workers: an account knows the responses that it gave.
            self._simulator = built_in_simulator(settings, reactor)
            self._simulator.setServiceParent(self)
        self.listener = SharedListener(
            reactor, settings.listen, "listen", count, inherited.sockets("listen", settings.listen)
        )
        self.listener.setServiceParent(self)
        rotation = TimerService(_ROTATE_SECONDS, self._rotate)
        rotation.clock = reactor
        rotation.setServiceParent(self)
        # The package's own command: the path of the interpreter is that of this process.
        module = type(reactor).__module__
        self.workers = [
            WorkerProcess(
                reactor,
                number,
                [sys.executable, "-m", "gateway.workers.worker", str(number), module],
                lambda: self.descriptors,
                self._linked,
                self._changed,
            )
            for number in range(1, count + 1)
        ]

    @property
    def descriptors(self) -> Descriptors:
        """The listening sockets, for workers and for a successor."""
        return {listener_name("listen", self.settings.listen): self.listener.descriptors}

    @property
    def ready_workers(self) -> list[WorkerProcess]:
        """The workers that accept connections."""
        return [worker for worker in self.workers if worker.state is WorkerState.READY]

    @property
    def stop_seconds(self) -> float:
        """How long running turns may take at a stop as things are now."""
        timeouts = self.settings.timeouts
        return timeouts.handover_seconds if self.handed_over else timeouts.shutdown_seconds

    def order(self) -> WorkerOrder:
        """What a worker is to do at its start."""
        return WorkerOrder(self._for_workers(self.settings), self.log)

    def _for_workers(self, settings: Settings) -> Settings:
        """The settings as workers get them: simulated accounts are those of this process."""
        if settings.accounts or self._simulator is None:
            return settings
        accounts = tuple(
            AccountSettings(
                name=each.name,
                base_url=self._simulator.base_url(each),
                key=each.key,
                background=True,
            )
            for each in self._simulator.simulator.accounts
        )
        return msgspec.structs.replace(settings, accounts=accounts, simulator=None)

    def startService(self) -> None:
        """Listen, and start the workers.

        :raises CannotListen: with the setting, its value and the reason.
        """
        super().startService()
        for worker in self.workers:
            worker.start()

    def _linked(self, worker: WorkerProcess) -> None:
        """A worker is started, and has a link."""
        link = worker.link
        link.handle(orders.ORDER, lambda _: encode(self.order()))
        link.handle(orders.READY, lambda _: worker.became_ready())
        link.handle(orders.FAILED, lambda line: self._failed(worker, line))
        for part in self.parts:
            part(worker)

    # ---- settings

    def reconfigure(self, settings: Settings) -> Deferred[None]:
        """Put changed settings into force in all workers, or in none.

        A worker that is gone or does not answer gets them when it starts again.

        :return: fires when all have them; fails with a worker's error, after all others have the
            settings of before again.
        """
        before, self.settings = (
            self.settings,
            msgspec.structs.replace(settings, listen=self.settings.listen),
        )
        done: Deferred[None] = Deferred()
        problems: list[Failure] = []
        waiting = self._tell_settings(before)

        def answered(failure: Failure) -> None:
            if failure.check(CallFailed):
                problems.append(failure)

        def all_answered(_: object) -> None:
            if not problems:
                done.callback(None)
                return
            wrong, self.settings = self.settings, before
            for call in self._tell_settings(wrong):
                call.addErrback(lambda failure: None)
            done.errback(problems[0])

        for call in waiting:
            call.addErrback(answered)
        DeferredList(waiting).addCallback(all_answered)
        return done

    def _tell_settings(self, before: Settings) -> list[Deferred[Any]]:
        payload = encode(
            Reconfiguration(self._for_workers(self.settings), self._for_workers(before))
        )
        return [
            worker.link.call(orders.RECONFIGURE, payload, _RECONFIGURE_SECONDS)
            for worker in self.workers
            if worker.link.is_open
        ]

    def reopen_logs(self) -> None:
        """Another program has renamed the log file: this process and all workers open it anew."""
        if self.log_file is not None:
            self.log_file.reopen()
        self._tell_all(orders.REOPEN)

    def _rotate(self) -> None:
        if self.log_file is not None and self.log_file.rotates and self.log_file.rotate_if_large():
            self._tell_all(orders.REOPEN)

    # ---- stopping

    def stopService(self) -> Deferred[Any]:
        """Let all workers end their turns; those that do not end in time are killed."""
        self._stopping = True
        for worker in self.workers:
            worker.stop(StopOrder(self.handed_over))
        self._kill_all = self._reactor.callLater(self.stop_seconds + _GRACE_SECONDS, self._kill)
        stopped = self._stopped
        self._see_whether_all_are_gone()
        return stopped.addCallback(lambda _: MultiService.stopService(self))

    def abandon(self) -> None:
        """End the turns that run in all workers; at a stop a worker that hangs is killed soon."""
        self._tell_all(orders.ABANDON)
        kill = self._kill_all
        if kill is not None and kill.active():
            soon = self._reactor.seconds() + _GRACE_SECONDS
            if kill.getTime() > soon:
                kill.reset(_GRACE_SECONDS)

    def _kill(self) -> None:
        for worker in self.workers:
            if worker.state is WorkerState.STOPPING:
                _log.error("worker {number} did not end and is killed", number=worker.number)
                worker.kill()

    def _see_whether_all_are_gone(self) -> None:
        if all(worker.state is WorkerState.GONE for worker in self.workers):
            if self._kill_all is not None and self._kill_all.active():
                self._kill_all.cancel()
            if not self._stopped.called:
                self._stopped.callback(None)

    # ---- the workers

    def _changed(self, worker: WorkerProcess) -> None:
        """A worker's state has changed."""
        if self._stopping:
            self._see_whether_all_are_gone()
            return
        ready = self.ready_workers
        served = shares(
            len(self.listener.sockets), len(self.workers), {each.number for each in ready}
        )
        for each in ready:
            each.link.tell(orders.ACCEPT, encode(served[each.number]))
        if worker.state is WorkerState.READY:
            _log.info(
                "worker {number} (process {pid}) is ready", number=worker.number, pid=worker.pid
            )
        if len(ready) == len(self.workers) and not self._told_ready:
            self._told_ready = True
            self.ready.callback(None)

    def _failed(self, worker: WorkerProcess, line: bytes) -> None:
        """A worker says that it cannot start."""
        worker.failed_with = orders.decode(line, str)
        if not self._told_ready:
            self._told_ready = True
            self.ready.errback(CannotStart(worker.failed_with))

    def _tell_all(self, method: str) -> None:
        for worker in self.workers:
            worker.link.tell(method)


class CannotStart(Exception):
    """A worker cannot start, because of its configuration or the machine; the text says why."""
