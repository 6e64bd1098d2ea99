"""The gateway as a twistd plugin: command line, log, signals; a start that fails is one line."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import Any, ClassVar, NoReturn

from autobahn import websocket
from twisted.logger import Logger
from twisted.python import usage

from gateway import __version__
from gateway.admin.running_gateway import Configuration
from gateway.config import (
    ConfigError,
    Loaded,
    Setting,
    Settings,
    described,
    in_force,
    load,
    read_text,
)
from gateway.daemon import Daemon, allow_open_files, collect_rarely, on_second_stop, on_signal
from gateway.inheritance import NOTHING, READY, Inheritance, Succession, inherited, succession
from gateway.listening import CannotListen
from gateway.reload import ConfigReloader, needs_restart
from gateway.server.drain import DrainState
from gateway.service import GatewayService
from gateway.systemd import ServiceManager
from gateway.upgrade import Upgrade, command_line, tell_ready
from gateway.workers.service import TwistdSupervisor, workers_wanted

__all__ = ["Options", "makeService"]

_log = Logger(namespace="gateway.service")

#: Of a configuration that is right, but was not put into force.
_FAILED = "it cannot be applied; the log says why"


class Options(usage.Options):
    """The command line of ``twistd responses-gateway``; an error is one line and exit status 1.

    :ivar settings: the whole configuration, once the command line is parsed.
    :ivar inheritance: open files of the process that this one succeeds.
    :ivar succession: what twistd gave to that process.
    :ivar folder: where the command line was run; twistd may go to another one.
    """

    synopsis = "[options]"
    longdesc = (
        "Serves the OpenAI Responses API over WebSocket and HTTP from a pool of accounts, "
        "and keeps the thread of each conversation. Without --config it listens on "
        "127.0.0.1:8080 and answers from a built-in simulator, so that it can be tried "
        "without any key."
    )
    optFlags: ClassVar[list[list[Any]]] = [
        [
            "check",
            None,
            "Check the configuration, print a line or all mistakes, exit with status 0 or 1.",
        ],
    ]
    optParameters: ClassVar[list[list[Any]]] = [
        [
            "config",
            "c",
            None,
            "YAML file with the configuration; ${NAME} in it is taken from the environment.",
        ],
    ]

    settings: Settings
    inheritance: Inheritance = NOTHING
    succession: Succession | None = None
    folder = "."
    _loaded: Loaded | None = None

    def opt_version(self) -> NoReturn:
        """Print the gateway's version and exit."""
        from twisted import copyright

        print(f"responses-gateway {__version__} (Twisted {copyright.version})")
        raise SystemExit(0)

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Parse; twistd would answer an error with its help and status 0."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _fail(f"responses-gateway: {error}; see twistd responses-gateway --help")

    def parseArgs(self, *surplus: str) -> None:
        """Refuse positional arguments: most often --config was forgotten."""
        if surplus:
            raise usage.UsageError(f"unexpected argument '{surplus[0]}'; a file needs --config")

    def read(self) -> Settings:
        """Read the configuration as it is now.

        :raises ConfigError: when it is not right.
        """
        path = self["config"]
        if path is None:
            return Settings()
        self._loaded = load(read_text(path), os.environ, path)
        return self._loaded.settings

    @property
    def source(self) -> str:
        """Where the configuration comes from, for logs and the status page."""
        return self["config"] or "no file: the defaults"

    @property
    def has_file(self) -> bool:
        """Whether there is a file that can be read anew."""
        return self["config"] is not None

    def described(self) -> list[Setting]:
        """Every setting as it was read last, with its origin."""
        return described(self._loaded)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence about each thing that should be corrected in what was read last."""
        return () if self._loaded is None else self._loaded.environ.warnings

    def postOptions(self) -> None:
        """Load the configuration; end here when only a check was asked for."""
        path = self["config"]
        if path == "":  # a shell's variable that is not set
            raise usage.UsageError("option --config needs the name of a file, got nothing")
        try:
            self.settings = self.read()
        except ConfigError as error:
            _fail(str(error))
        if self["check"]:
            for warning in self.warnings:
                print(f"{path}: warning: {warning}", file=sys.stderr)
            print(f"{path or 'no file'}: ok: {summary(self.settings)}")
            raise SystemExit(0)
        self._succeed()

    def _succeed(self) -> None:
        """Start as twistd's own options would not allow, if this process is a successor."""
        self.folder = os.getcwd()
        self.inheritance = inherited(os.environ)
        self.succession = succession(os.environ)
        if self.succession is not None:
            # The pidfile is the other process's still, and whoever waits for a daemon has gone.
            twistd: Any = self.parent
            twistd.update(nodaemon=True, pidfile="", logfile=self.succession.logfile or "-")


def makeService(options: Options, reactor: Any = None) -> TwistdService | TwistdSupervisor:
    """The service that twistd runs: the gateway, or the supervisor of several.

    :param options: the command line.
    :param reactor: for tests; by default Twisted's own.
    """
    if reactor is None:
        from twisted.internet import reactor
    count = workers_wanted(options.settings)
    if count > 1:
        return TwistdSupervisor(options, summary(options.settings), count, reactor)
    return TwistdService(options, reactor)


class TwistdService(GatewayService):
    """The gateway under twistd: its log, its signals, and the limits of its process.

    :param options: the command line.
    :ivar reloads: reloads the configuration.
    """

    def __init__(self, options: Options, reactor: Any) -> None:
        super().__init__(options.settings, reactor, options.inheritance)
        self._daemon = Daemon(options.parent)
        self._manager = ServiceManager(reactor, os.environ)
        self._manager.setServiceParent(self)
        self._reactor = reactor
        self._upgrade = Upgrade(
            reactor,
            command_line(),
            options.folder,
            lambda: self._daemon.succession,
            lambda: self.descriptors,
            self._hand_over,
        )
        self.reloads = ConfigReloader(
            options.settings, options.read, self.reconfigure, reactor.seconds
        )
        self._options = options
        self._described = self._started = options.described()
        self.running_gateway.configuration = Configuration(
            options.source,
            lambda: self._described,
            lambda: self.reloads.generation,
            lambda: self.reloads.last_rejected,
            self._reload if options.has_file else None,
        )
        self.drain.watchers.append(self._tell_drain)

    def reconfigure(self, settings: Settings, before: Settings) -> None:
        """Put changed settings into force, and keep their origins for the status page."""
        super().reconfigure(settings, before)
        self._log_warnings()
        waiting = needs_restart(self.settings, settings)
        self._described = in_force(self._started, self._options.described(), waiting)

    def setServiceParent(self, parent: Any) -> None:
        """Set the application's log, unless the operator chose syslog."""
        super().setServiceParent(parent)
        self._daemon.open_log(parent, self.settings.log, self.threshold)

    def startService(self) -> None:
        """Start, or end the process with one line that says why not."""
        collect_rarely()
        allow_open_files()
        on_signal(self._reactor, signal.SIGHUP, self._reload_quietly)
        if self._daemon.log_file is not None:
            on_signal(self._reactor, signal.SIGUSR1, self._daemon.log_file.reopen)
        on_signal(self._reactor, signal.SIGUSR2, self._upgrade.begin)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._upgrade.give_up)
        self._reactor.addSystemEventTrigger("before", "shutdown", self._log_open_connections)
        on_second_stop(self._reactor, self._end_all_turns)
        if not getattr(websocket, "USES_NVX", False):  # Autobahn for Python 3.10 has none
            _log.warn("Autobahn's native code is missing: large messages will stop the gateway")
        try:
            super().startService()
        except CannotListen as error:
            self._daemon.give_up(f"responses-gateway: {error}")
        _log.info(
            "responses-gateway {version} started with {configuration}: {summary}",
            version=__version__,
            configuration=self._options.source,
            summary=summary(self.settings),
        )
        self._log_warnings()
        self._reactor.callWhenRunning(self._serve)

    def _serve(self) -> None:
        """Serve; take the place of the process before this one, if there is one."""
        self._manager.ready(summary(self.settings))
        self.inherited.close_all_but([*self.descriptors, READY])
        former = self._options.succession
        if former is not None:
            tell_ready(self.inherited)
            self._daemon.succeed(former)

    def _hand_over(self, successor: int) -> None:
        """A successor accepts connections: let turns end, and end."""
        self._daemon.hand_over()
        self._manager.hand_over(successor)
        for listener in self.listeners.values():
            listener.leave()
        self.drain.handed_over = self.drain.has_successor = True
        self._reactor.stop()

    def _log_warnings(self) -> None:
        for warning in self._options.warnings:
            _log.warn("{warning}", warning=warning)

    def _log_open_connections(self) -> None:
        """Log what a stop waits for."""
        _log.info(
            "stopping, connections: {connections}; turns that run have {seconds:g} seconds,"
            " or until a second signal",
            connections=len(self.limiter),
            seconds=self.drain.stop_seconds,
        )
        self._manager.stopping(
            self.drain.stop_seconds, f"stopping, connections: {len(self.limiter)}"
        )

    def _end_all_turns(self) -> None:
        """End the turns that run: the second signal to stop."""
        _log.warn("a second signal: what runs is ended")
        self.drain.abandon()

    def _tell_drain(self) -> None:
        """The operator began or ended a drain."""
        if self.drain.state is DrainState.DRAINING:
            self._manager.status("draining: new clients are turned away")
        elif self.drain.state is DrainState.SERVING:
            self._manager.status(summary(self.reloads.settings))

    def _reload(self) -> str:
        """Reload the configuration, and keep the service manager informed."""
        self._manager.reloading()
        status = f"the configuration in force stays: {_FAILED}"
        try:
            result = status = self.reloads.reload()
        except ConfigError as error:
            status = f"the configuration in force stays: {error.summary}"
            raise
        finally:
            self._manager.ready(status)
        return result

    def _reload_quietly(self) -> None:
        with suppress(Exception):  # the reloader has logged it
            self._reload()


def summary(settings: Settings) -> str:
    """The configuration in half a line, for the log and ``--check``."""
    if settings.simulator:
        upstream = f"{_count(settings.simulator.accounts, 'simulated account')}"
    else:
        upstream = _count(len(settings.accounts), "account")
    keys = _count(len(settings.keys), "client key") if settings.keys else "no client keys"
    admin = f"admin on {settings.admin.listen}" if settings.admin.listen else "admin off"
    return f"{upstream}, {keys}, listen on {settings.listen}, {admin}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _fail(line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(1)
