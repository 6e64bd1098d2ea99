"""The supervisor under twistd: its log, its signals, its reloads, its upgrade."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from gateway import __version__
from gateway.admin.running_gateway import Configuration
from gateway.config import Setting, Settings, in_force
from gateway.daemon import Daemon, allow_open_files, on_second_stop, on_signal
from gateway.inheritance import LOCK, READY, Descriptors, Inheritance, Succession
from gateway.listening import CannotListen
from gateway.log import LogThreshold
from gateway.reload import ConfigReloader, needs_restart
from gateway.state.keeper import figures_of, lock_of, server_for
from gateway.state.shared_limits import LimitServer
from gateway.systemd import ServiceManager
from gateway.upgrade import Upgrade, command_line, tell_ready
from gateway.workers.admin import WorkersAdmin
from gateway.workers.orders import LogOrder
from gateway.workers.process import WorkerProcess, WorkerState
from gateway.workers.supervisor import Supervisor
from gateway.workers.tokens import TokenKeeper

_log = Logger(namespace="gateway.service")


class CommandLine(Protocol):
    """What was asked for on the command line.

    :ivar parent: twistd's own options.
    :ivar settings: the configuration.
    :ivar inheritance: open files of the process that this one succeeds.
    :ivar succession: what twistd gave to that process.
    :ivar folder: where the command line was run.
    """

    parent: Any
    settings: Settings
    inheritance: Inheritance
    succession: Succession | None
    folder: str

    def read(self) -> Settings:
        """Read the configuration as it is now."""

    def described(self) -> list[Setting]:
        """Every setting as it was read last, with its origin."""

    @property
    def has_file(self) -> bool:
        """Whether there is a file that can be read anew."""

    @property
    def source(self) -> str:
        """Where the configuration comes from."""

    @property
    def warnings(self) -> Sequence[str]:
        """A sentence about each thing that should be corrected."""


class TwistdSupervisor(Supervisor):
    """The supervisor of several workers, under twistd.

    :param options: the command line.
    :param summary: the configuration in half a line.
    :param count: how many workers.
    :ivar reloads: reloads the configuration.
    :ivar tokens: renews the tokens of accounts for all workers.
    :ivar state: keeps the state of the workers; None if a Redis server does.
    :ivar admin: the admin side; None without an address for it.
    """

    def __init__(self, options: CommandLine, summary: str, count: int, reactor: Any) -> None:
        super().__init__(options.settings, count, reactor, options.inheritance)
        self._options = options
        self._summary = summary
        self._daemon = Daemon(options.parent)
        self._manager = ServiceManager(reactor, os.environ)
        self._manager.setServiceParent(self)
        self.threshold = LogThreshold(options.settings.log.level)
        locks = options.inheritance.of(LOCK)
        self.state = server_for(
            options.settings.state, os.environ, reactor, locks[0] if locks else None
        )
        if (state := self.state) is not None:
            state.setServiceParent(self)
            self.parts.append(lambda worker: state.serve(worker.link))
            limits = LimitServer(state, reactor.seconds)
            self.parts.append(lambda worker: limits.serve(worker.link))
        self.tokens = TokenKeeper(reactor, options.settings)
        self.tokens.setServiceParent(self)
        self.parts.append(lambda worker: self.tokens.server.serve(worker.link))
        self.reloads = ConfigReloader(options.settings, options.read, self._apply, reactor.seconds)
        self._told: Deferred[None] = succeed(None)
        self._described = self._started = options.described()
        self.admin: WorkersAdmin | None = None
        if options.settings.admin.listen is not None:
            self.admin = self._administer(options, options.settings.admin.listen)
        self._upgrade = Upgrade(
            reactor,
            command_line(),
            options.folder,
            lambda: self._daemon.succession,
            self._bequest,
            self._hand_over,
        )

    def _administer(self, options: CommandLine, endpoint: str) -> WorkersAdmin:
        """Let operators see and manage all workers at one address."""
        admin = WorkersAdmin(
            options.settings,
            endpoint,
            self._reactor,
            lambda: self.workers,
            self.threshold,
            options.inheritance,
            lambda: None if self.state is None else figures_of(self.state.writes),
        )
        admin.setServiceParent(self)
        admin.managed.configuration = Configuration(
            options.source,
            lambda: self._described,
            lambda: self.reloads.generation,
            lambda: self.reloads.last_rejected,
            self._reload_all if options.has_file else None,
        )
        self.parts.append(admin.managed.attach)
        return admin

    def _changed(self, worker: WorkerProcess) -> None:
        """A worker's state has changed; one that is ready drains first where all do."""
        if self.admin is not None and worker.state is WorkerState.READY:
            self.admin.managed.became_ready(worker)
        super()._changed(worker)

    def _bequest(self) -> Descriptors:
        """What a successor inherits."""
        backend = None if self.state is None else self.state.writes.backend
        admin = {} if self.admin is None else self.admin.descriptors
        return {**self.descriptors, **admin, LOCK: lock_of(backend)}

    def setServiceParent(self, parent: Any) -> None:
        """Set the application's log, unless the operator chose syslog."""
        super().setServiceParent(parent)
        self._daemon.open_log(parent, self.settings.log, self.threshold)
        self.log_file = self._daemon.log_file
        self.log = LogOrder(self._daemon.log_path, self._daemon.syslog_prefix)

    def startService(self) -> None:
        """Start, or end the process with one line that says why not."""
        allow_open_files()
        reactor = self._reactor
        for number, call in (
            (signal.SIGHUP, self._reload),
            (signal.SIGUSR1, self.reopen_logs),
            (signal.SIGUSR2, self._upgrade.begin),
        ):
            on_signal(reactor, number, call)
        reactor.addSystemEventTrigger("before", "shutdown", self._upgrade.give_up)
        on_second_stop(reactor, self._end_all_turns)
        self._daemon.hold_status()
        self.ready.addCallbacks(self._all_ready, self._cannot_start)
        try:
            super().startService()
        except CannotListen as error:
            self._daemon.release_status()
            self._daemon.give_up(f"responses-gateway: {error}")

    def stopService(self) -> Deferred[Any]:
        """Let all workers end their turns."""
        _log.info(
            "stopping {workers} workers; turns that run have {seconds:g} seconds, or until a second"
            " signal",
            workers=len(self.workers),
            seconds=self.stop_seconds,
        )
        if self.admin is not None:
            self.admin.managed.draining = True
        self._manager.stopping(self.stop_seconds, "stopping the workers")
        return super().stopService()

    def _all_ready(self, _: None) -> None:
        _log.info(
            "responses-gateway {version} started {workers} workers with {configuration}: {summary}",
            version=__version__,
            workers=len(self.workers),
            configuration=self._options.source,
            summary=self._summary,
        )
        self._log_warnings()
        self._daemon.started()
        self._manager.ready(self._summary)
        inheritance, former = self._options.inheritance, self._options.succession
        inheritance.close_all_but([*self._bequest(), READY])
        if self.admin is not None:
            self.admin.accept()
        if former is not None:
            tell_ready(inheritance)
            self._daemon.succeed(former)

    def _cannot_start(self, failure: Failure) -> None:
        """A worker cannot start: nor can the gateway."""
        for worker in self.workers:
            worker.kill()
        self._daemon.fail(f"responses-gateway: {failure.getErrorMessage()}")

    def _log_warnings(self) -> None:
        for warning in self._options.warnings:
            _log.warn("{warning}", warning=warning)

    # ---- signals

    def _reload(self) -> None:
        with suppress(Exception):  # the reloader has logged it
            self.reloads.reload()

    def _reload_all(self) -> Deferred[str]:
        """Read the configuration anew; fires when all workers have it, or fails."""
        line = self.reloads.reload()
        done: Deferred[str] = Deferred()

        def settled(result: Any) -> Any:
            rejected = self.reloads.last_rejected
            if rejected is None:
                done.callback(line)
            else:
                done.errback(ValueError(rejected.error))
            return result

        self._told.addBoth(settled)
        return done

    def _apply(self, settings: Settings, before: Settings) -> None:
        """Put settings into force in all workers; if one cannot, those of before stay."""
        self._manager.reloading()
        self._log_warnings()
        self.tokens.reconfigure(settings, before)
        level, former = settings.log.level, before.log.level
        described = self._described

        def failed(failure: Failure) -> None:
            self.reloads.take_back(before, failure.getErrorMessage())
            self.threshold.level = former
            self.tokens.reconfigure(before, settings)
            self._described = described

        if level != former:
            self.threshold.level = level
        waiting = needs_restart(self._options.settings, settings)
        self._described = in_force(self._started, self._options.described(), waiting)

        def applied(_: object) -> None:
            if self.admin is not None:
                self.admin.reconfigure(self.settings)
            self._manager.ready(self._summary)

        self._told = self.reconfigure(settings).addErrback(failed).addCallback(applied)

    def _end_all_turns(self) -> None:
        """End the turns that run: the second signal to stop."""
        _log.warn("a second signal: what runs is ended")
        self.abandon()

    def _hand_over(self, successor: int) -> None:
        """A successor's workers accept connections: let turns end, and end."""
        self._daemon.hand_over()
        self._manager.hand_over(successor)
        self.handed_over = True
        self.listener.leave()
        if self.admin is not None:
            self.admin.leave()
        self._reactor.stop()


def workers_wanted(settings: Settings) -> int:
    """How many processes are to serve clients; ``auto`` is one for each core."""
    if settings.workers == "auto":
        return len(os.sched_getaffinity(0))
    return settings.workers
